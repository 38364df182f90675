"""NIfTI-1 and NIfTI-2 in a single file: voxels with their scale and axes. What the header says: `nifti_header.py`."""

# nibabel gives some of its values no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import gzip
import io
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.image import Image, decoding
from medray.modalities.imaging.formats.nifti_header import Described, described, reading, spacing_of, stored_affine
from medray.modalities.imaging.formats.pictures import over_black
from medray.storage.compressed import DEFLATED, GZIP, one_member

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

BEHIND = 1 << 20
"""Bytes behind the voxels that are looked at: padding is zeros."""
LONGEST_HEADER = 1024
"""Bytes that hold any header."""


class Grid(NamedTuple):
    """The voxels of a file, as `read_nifti` turns them."""

    shape: tuple[int, int, int]
    """(D, H, W)"""
    spacing_mm: tuple[float, ...]
    slices_mm: np.ndarray | None
    """Starts of the slices, as in Image, where they are sheared."""
    affine_ras: np.ndarray
    """(4, 4) index (W, H, D) to RAS mm."""
    points: int
    """Volumes, one after the other."""
    intent: int
    """What the file says its numbers are: 0 nothing, 2 to 24 a statistic (nifti1.h)."""
    stored_ras: np.ndarray
    """(4, 4) the file's own index (i, j, k), not turned, to RAS mm: k goes from slice to slice as converters write them."""


def is_nifti(head: bytes) -> bool:
    """Whether the first 352 bytes are a NIfTI header: of a single file, or of a pair or ANALYZE 7.5, which are not read."""
    return head[344:348] == b"n+1\0" or head[4:8] in (b"n+2\0", b"ni2\0") or _is_header_alone(head)


def _is_header_alone(head: bytes) -> bool:
    """Whether sizeof_hdr is 348 in either byte order, with 1 to 7 dimensions: ANALYZE 7.5, or the .hdr of a NIfTI pair."""
    for order in ("little", "big"):
        size, axes = int.from_bytes(head[:4], order), int.from_bytes(head[40:42], order)
        if size == 348 and 1 <= axes <= 7 and len(head) >= 348:
            return True
    return False


def read_nifti(raw: bytes, point: int | None = None) -> Image:
    """A volume as (D, H, W[, 3]) with D towards the head, H towards the back, W towards the left of the patient.

    These are the axes of an axial DICOM series, so that both give one array. Scaled by scl_slope and scl_inter:
    float32, or the stored numbers without scaling; colours as R G B over black. Spacing in mm. `point`: which volume of
    several, from 0; None where the file has to hold one. Raises SampleError.
    """
    file = described(unpacked(raw, LONGEST_HEADER))
    if point is None and file.points > 1:
        raise SampleError(
            "unsupported",
            f'{file.points} volumes in one NIfTI file; expected one volume: set volumes = "each", "first" or "channels" '
            "to take them",
        )
    first = point or 0
    if first >= file.points:
        raise SampleError("changed", f"the file has {file.points} volumes; volume {first + 1} is not there any more")
    values, affine, unsure = _read(raw, file, first, first + 1)
    return _image(values[..., 0] if not file.colors else values[..., 0, :], affine, unsure, file)


def read_channels(raw: bytes) -> Image:
    """All volumes of a file as the channels of one, (C, D, H, W), each as `read_nifti` gives it. Raises SampleError."""
    file = described(unpacked(raw, LONGEST_HEADER))
    if file.points == 1:
        return read_nifti(raw)
    if file.colors:
        raise SampleError("bad_shape", f"{file.points} volumes of colours, which are not channels each")
    values, affine, unsure = _read(raw, file, 0, file.points)
    first = _image(values[..., 0], affine, unsure, file)
    scaled = _scaled(values.transpose(3, 2, 1, 0), file.header)
    return replace(first, values=scaled, channels=True)


def grid(raw: bytes) -> Grid:
    """What `read_nifti` will give, by the header of a file alone: its first bytes, plain or zipped. Raises SampleError."""
    file = described(unpacked(raw, LONGEST_HEADER))
    affine, _ = stored_affine(file.header)
    turned, lengths = _turned_affine(affine, file.shape)
    spacing, starts = spacing_of(turned, lengths[2])
    intent = int(file.header["intent_code"])
    return Grid((lengths[2], lengths[1], lengths[0]), spacing, starts, turned, file.points, intent, affine)


def count_volumes(raw: bytes) -> int:
    """How many volumes a file holds, by its header. Raises SampleError: `truncated` for more than its bytes can hold."""
    file = described(unpacked(raw, LONGEST_HEADER))
    _refuse_beyond(raw, file, file.points)
    return file.points


def whole_content(raw: bytes) -> bytes:
    """The content of a file, plain or zipped, with at most BEHIND bytes behind its voxels. Raises SampleError."""
    file = described(unpacked(raw, LONGEST_HEADER))
    _refuse_beyond(raw, file, file.points)
    return unpacked(raw, file.start + file.points * file.volume_bytes + BEHIND)


def _refuse_beyond(raw: bytes, file: Described, volumes: int) -> None:
    """Raises SampleError `truncated` for more volumes than the file's bytes can hold, before memory is taken for them."""
    need, most = file.start + volumes * file.volume_bytes, len(raw) * (DEFLATED if raw.startswith(GZIP) else 1)
    if need > most:
        have = max(0, most - file.start)
        raise SampleError("truncated", f"at most {have} of {file.points * file.volume_bytes} bytes of voxels")


def unpacked(raw: bytes, length: int) -> bytes:
    """The first `length` bytes of a file's content, fewer where it is shorter; of a zipped file no more than that is unpacked,
    of a plain one all is given. Raises SampleError `truncated` or `corrupt`.
    """
    if not raw.startswith(GZIP):
        return raw
    whole = one_member(raw, length)
    if whole is not None:
        return whole
    with decoding("gzip"):
        return gzip.GzipFile(fileobj=io.BytesIO(raw)).read(length)


def _read(raw: bytes, file: Described, first: int, last: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Volumes `first` to before `last` as ((W, H, D, T) or (W, H, D, T, 3 or 4) of native byte order, their axes towards
    left, back and head; (4, 4) index to RAS mm; why its turn is unsure).
    """
    size, whole = file.volume_bytes, last == file.points
    start, need = file.start + first * size, file.start + last * size
    _refuse_beyond(raw, file, last)
    content = unpacked(raw, need + (BEHIND if whole else 0))
    if len(content) < need:
        have = max(0, len(content) - file.start)
        raise SampleError("truncated", f"{have} of {file.points * size} bytes of voxels")
    if whole and content.count(0, need) < len(content) - need:
        raise SampleError(
            "corrupt", f"{len(content) - file.start} bytes of voxels; the dimensions make {file.points * size}"
        )
    affine, unsure = stored_affine(file.header)
    count = (need - start) // file.dtype.itemsize
    colors = (file.colors,) if file.colors else ()
    shape = (*colors, *file.shape, last - first)
    values = np.frombuffer(content, file.dtype, count, start).reshape(shape, order="F")
    if colors:
        values = np.moveaxis(values, 0, -1)
    with reading():
        from nibabel.orientations import apply_orientation

        values = apply_orientation(values, _turn(affine))
    values = values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
    return values, _turned_affine(affine, file.shape)[0], unsure


def _turn(affine: np.ndarray) -> np.ndarray:
    """nibabel's orientation from the stored axes to those towards left, back and head."""
    with reading():
        from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

        return ornt_transform(io_orientation(affine), axcodes2ornt(("L", "P", "S")))


def _turned_affine(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, tuple[int, int, int]]:
    """((4, 4) of turned indices, (W, H, D) of the turned volume)."""
    turn = _turn(affine)
    with reading():
        from nibabel.orientations import inv_ornt_aff

        affine = affine @ inv_ornt_aff(turn, shape)
    lengths = dict(zip(turn[:, 0].astype(int).tolist(), shape, strict=True))
    return affine, (lengths[0], lengths[1], lengths[2])


def _image(values: np.ndarray, affine: np.ndarray, unsure: str, file: Described) -> Image:
    """One volume (W, H, D[, colours]) as an image."""
    if file.colors:
        values = np.ascontiguousarray(values.transpose(2, 1, 0, 3))
        values = over_black(values[..., :3], values[..., 3:]) if file.colors == 4 else values
    else:
        values = _scaled(values.transpose(2, 1, 0), file.header)
    spacing, slices_mm = spacing_of(affine, len(values))
    return Image(
        values,
        color=bool(file.colors),
        spacing_mm=spacing,
        slices_mm=slices_mm,
        affine_ras=affine,
        turn_unsure=unsure,
    )


def _scaled(values: np.ndarray, header: Nifti1Header) -> np.ndarray:
    """Voxels by scl_slope and scl_inter, rounded once to float32; a slope of 0 or NaN means none (nifti1.h)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isnan(slope) or slope == 0:
        return np.ascontiguousarray(values)
    if not np.isfinite([slope, intercept]).all():
        raise SampleError("corrupt", "scl_slope or scl_inter is not finite")
    if (slope, intercept) == (1.0, 0.0):
        return np.ascontiguousarray(values)
    scaled = np.empty(values.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite values are refused later, by `conform`
        for place in np.ndindex(values.shape[:-2]):  # float64 of a plane, not of a volume
            scaled[place] = values[place].astype(np.float64) * slope + intercept
    return scaled
