"""NIfTI-1 and NIfTI-2 in a single file: voxels, their scale, axes and units (nifti1.h of the NIfTI-1.1 standard)."""

# nibabel gives some of its values no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.arrays import unzipped
from medray.modalities.imaging.formats.image import Image, decoding

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Spatial code of xyzt_units to millimetres: unknown (taken as mm, as ITK, FSL and SPM do), metre, mm, micron."""
PERPENDICULAR = 0.01
"""Cosine up to which axes count as perpendicular."""
SHEARED = 0.0017
"""Sine of 0.1°: slices that are shifted more than this along each other are a sheared stack."""
SAME_SPACING = 0.01
"""Relative difference up to which the voxels of sform and pixdim are of one size."""


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


def read_nifti(raw: bytes) -> Image:
    """A volume as (D, H, W) with D towards the head, H towards the back, W towards the left of the patient.

    These are the axes of an axial DICOM series, so that both give one array. Scaled by scl_slope and scl_inter:
    float32, or the stored numbers without scaling. Spacing in mm. Raises SampleError.
    """
    raw = unzipped(raw)
    header, shape, dtype, start = _described(raw)
    need, have = int(np.prod(shape)) * dtype.itemsize, len(raw) - start
    if have < need:
        raise SampleError("truncated", f"{max(0, have)} of {need} bytes of voxels")
    if any(raw[start + need :]):
        raise SampleError("corrupt", f"{have} bytes of voxels; the dimensions make {need}")
    affine = _affine(header)
    with _reading():
        from nibabel.orientations import (
            apply_orientation,
            axcodes2ornt,
            inv_ornt_aff,
            io_orientation,
            ornt_transform,
        )

        values = np.frombuffer(raw, dtype, int(np.prod(shape)), start).reshape(shape, order="F")
        turn = ornt_transform(io_orientation(affine), axcodes2ornt(("L", "P", "S")))
        values = apply_orientation(values, turn)
        affine = affine @ inv_ornt_aff(turn, shape)
    values = np.ascontiguousarray(values.transpose(2, 1, 0))
    values = values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
    spacing, slices_mm = _spacing(affine, len(values), header)
    return Image(_scaled(values, header), spacing_mm=spacing, slices_mm=slices_mm, affine_ras=_in_mm(affine, header))


def grid(head: bytes) -> tuple[tuple[int, int, int], tuple[float, ...], np.ndarray | None]:
    """((D, H, W), spacing in mm, starts of the slices where they are sheared) that `read_nifti` gives, by the header of
    an uncompressed file alone. Raises SampleError.
    """
    header, shape, _, _ = _described(head)
    affine = _affine(header)
    with _reading():
        from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

        turn = ornt_transform(io_orientation(affine), axcodes2ornt(("L", "P", "S")))
        affine = affine @ inv_ornt_aff(turn, shape)
    lengths = dict(zip(turn[:, 0].astype(int).tolist(), shape, strict=True))
    return (lengths[2], lengths[1], lengths[0]), *_spacing(affine, lengths[2], header)


@contextmanager
def _reading() -> Generator[None, None, None]:
    """`decoding` with nibabel's own exceptions, and without its log of headers that it repairs."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.orientations import OrientationError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    log = logging.getLogger("nibabel.global")
    silent, log.disabled = log.disabled, True
    try:
        with decoding("NIfTI", ImageFileError, HeaderDataError, OrientationError, WrapStructError):
            yield
    finally:
        log.disabled = silent


def _described(raw: bytes) -> tuple[Nifti1Header, tuple[int, int, int], np.dtype, int]:
    """(header, shape, dtype, first byte of the voxels) of one volume. Raises SampleError."""
    single = raw[344:348] == b"n+1\0" or raw[4:8] == b"n+2\0"
    if not single:
        pair = raw[344:347] == b"ni1" or raw[4:7] == b"ni2"
        kind = (
            "the header of a NIfTI pair (.hdr and .img)" if pair else "ANALYZE 7.5, which does not say left from right"
        )
        raise SampleError("unsupported", f"{kind}; expected NIfTI in a single file")
    with _reading():
        from nibabel.nifti1 import Nifti1Image
        from nibabel.nifti2 import Nifti2Image

        kind = Nifti2Image if raw[4:8] == b"n+2\0" else Nifti1Image
        if len(raw) < kind.header_class.sizeof_hdr:
            raise SampleError("truncated", f"a NIfTI file of {len(raw)} bytes, which ends within its header")
        header = kind.header_class(raw[: kind.header_class.sizeof_hdr], check=True)
        shape = [int(n) for n in header.get_data_shape()]
        start = int(header.get_data_offset())
        dtype = header.get_data_dtype()
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) not in (2, 3):
        raise SampleError("unsupported", f"NIfTI data of shape {shape}; expected one volume")
    if min(shape) < 1:
        raise SampleError("corrupt", f"NIfTI data of shape {shape}")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise SampleError("unsupported", f"NIfTI data of type {dtype}; expected real numbers of at most 64 bits")
    width, height, depth = shape if len(shape) == 3 else (*shape, 1)
    return header, (width, height, depth), dtype, start


def _affine(header: Nifti1Header) -> np.ndarray:
    """(4, 4) voxel (i, j, k) to RAS in units of the file: sform, else qform. Raises SampleError `bad_geometry`.

    Without both, the standard's method 1 gives the axes no orientation, and readers differ in which side they take for
    left. Where both are given they have to agree on the directions of the axes.
    """
    with _reading():
        from nibabel.orientations import aff2axcodes

        sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
        if sform is not None and qform is not None and aff2axcodes(sform) != aff2axcodes(qform):
            raise SampleError("bad_geometry", "qform and sform say that the axes run in different directions")
    if sform is None and qform is None:
        raise SampleError("bad_geometry", "neither qform nor sform: the file does not say which side is left")
    affine = np.asarray(qform if sform is None else sform, float)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite([*affine.ravel(), *lengths]).all() or min(lengths) == 0:
        raise SampleError("bad_geometry", "an affine that is not finite, or gives voxels no size")
    sizes = np.asarray(header["pixdim"][1:4], float)
    given = np.isfinite(sizes) & (sizes != 0)
    if (np.abs(lengths - np.abs(sizes)) > SAME_SPACING * lengths)[given].any():
        raise SampleError("bad_geometry", "the voxels of sform and those of pixdim are of different size")
    return affine


def _in_mm(affine: np.ndarray, header: Nifti1Header) -> np.ndarray:
    """(4, 4) voxel to RAS mm, of one in units of the file. Raises SampleError `corrupt` for an unknown unit."""
    unit = MILLIMETRES.get(int(header["xyzt_units"]) & 7)
    if unit is None:
        raise SampleError("corrupt", "xyzt_units holds no known unit of length")
    return np.diag([unit, unit, unit, 1.0]) @ affine


def _spacing(affine: np.ndarray, depth: int, header: Nifti1Header) -> tuple[tuple[float, ...], np.ndarray | None]:
    """(spacing in mm of D, H, W; starts of the slices as in Image.slices_mm where they are sheared).

    `affine` is of voxels whose axes run to the left, the back and the head, in units of the file. Raises SampleError
    `bad_geometry` for axes of a slice that are not perpendicular, `corrupt` for an unknown unit.
    """
    width, height, step = _in_mm(affine, header)[:3, :3].T
    along, down = width / np.linalg.norm(width), height / np.linalg.norm(height)
    if abs(along @ down) > PERPENDICULAR:
        raise SampleError("bad_geometry", "an affine with shear within its slices")
    normal = np.cross(along, down)  # left × back: towards the head
    normal /= np.linalg.norm(normal)
    gap, shift = float(abs(step @ normal)), (float(step @ down), float(step @ along))
    if gap == 0:
        raise SampleError("bad_geometry", "an affine whose slices lie in one plane")
    spacing = (gap, float(np.linalg.norm(height)), float(np.linalg.norm(width)))
    if max(map(abs, shift)) <= SHEARED * gap:
        return spacing, None
    return spacing, np.arange(depth)[:, None] * np.array([gap, *shift])


def _scaled(values: np.ndarray, header: Nifti1Header) -> np.ndarray:
    """Voxels by scl_slope and scl_inter, rounded once to float32; a slope of 0 or NaN means none (nifti1.h)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isnan(slope) or slope == 0:
        return values
    if not np.isfinite([slope, intercept]).all():
        raise SampleError("corrupt", "scl_slope or scl_inter is not finite")
    if (slope, intercept) == (1.0, 0.0):
        return values
    with np.errstate(over="ignore", invalid="ignore"):  # infinite values are refused later, by `conform`
        return (values.astype(np.float64) * slope + intercept).astype(np.float32)
