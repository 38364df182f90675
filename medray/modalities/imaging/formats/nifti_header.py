"""The header of a NIfTI file: what its voxels are and where they lie (nifti1.h of the NIfTI-1.1 standard)."""

# nibabel gives some of its values no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import logging
import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.image import decoding

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
SAME_DIRECTION_DEGREES = 1.0
"""The angle up to which the axes of sform and qform are the same."""
COLORS = {128: 3, 2304: 4}
"""Datatype of colours (RGB24, RGBA32) to its number of bytes."""
COMPLEX = frozenset((32, 1792, 2048))
LABELS = frozenset((1002, 1003))
"""Intents of voxels that name a structure: LABEL, NEURONAME."""
NOT_IMAGES = frozenset((*range(1004, 1011), *range(2002, 2019), *range(3000, 3100)))
"""Intents of data that is no image: matrices, vectors, displacements, point sets, triangles, quaternions; per-node data, shapes
and vectors of colours; coefficients of FSL's fields; CIFTI's matrices."""


@dataclass(frozen=True, slots=True)
class Described:
    """One file by its header."""

    header: Nifti1Header
    shape: tuple[int, int, int]
    """(W, H, D) of one volume, as stored."""
    points: int
    """Volumes, one after the other."""
    dtype: np.dtype
    """Of a number, or of one colour's byte."""
    colors: int
    """Bytes of a voxel's colour; 0 for numbers."""
    start: int
    """First byte of the voxels."""

    @property
    def volume_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize * (self.colors or 1)


@contextmanager
def reading() -> Generator[None]:
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


def described(raw: bytes) -> Described:
    """What the first bytes of an uncompressed file say. Raises SampleError.

    `segmentation` and `not_an_image` by the file's intent, `unsupported` for a pair, ANALYZE 7.5, vectors and types of
    number that are not read.
    """
    if not (raw[344:348] == b"n+1\0" or raw[4:8] == b"n+2\0"):
        pair = raw[344:347] == b"ni1" or raw[4:7] == b"ni2"
        kind = (
            "the header of a NIfTI pair (.hdr and .img)" if pair else "ANALYZE 7.5, which does not say left from right"
        )
        raise SampleError("unsupported", f"{kind}; expected NIfTI in a single file")
    with reading():
        from nibabel.nifti1 import Nifti1Image
        from nibabel.nifti2 import Nifti2Image

        kind = Nifti2Image if raw[4:8] == b"n+2\0" else Nifti1Image
        size = kind.header_class.sizeof_hdr
        if len(raw) < size:
            raise SampleError("truncated", f"a NIfTI file of {len(raw)} bytes, which ends within its header")
        header = kind.header_class(raw[:size], check=False)
        _refuse_intent(int(header["intent_code"]))
        pixdim = np.array(header["pixdim"], float)
        header = kind.header_class(raw[:size], check=True)  # refuses what it cannot repair
        header["pixdim"] = pixdim  # a repaired 0 would be a length of 1 mm
        shape = [int(n) for n in header.get_data_shape()]
        offset = float(header["vox_offset"])
    if not math.isfinite(offset) or offset < size + 4 or offset != int(offset):
        raise SampleError("corrupt", f"vox_offset is no whole number from {size + 4} on: voxels within the header")
    dtype, colors = _type(header)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) > 4:
        raise SampleError("unsupported", f"NIfTI data of shape {shape}, more than one number a voxel; expected one")
    if len(shape) < 2:
        raise SampleError("unsupported", f"NIfTI data of shape {shape}; expected a volume")
    if min(shape) < 1:
        raise SampleError("corrupt", f"NIfTI data of shape {shape}")
    width, height, depth, points = (*shape, 1, 1)[:4]
    return Described(header, (width, height, depth), points, dtype, colors, int(offset))


def _refuse_intent(code: int) -> None:
    """Raises SampleError for data that is no image by what the file says it is meant for."""
    if code in LABELS:
        raise SampleError("segmentation", f"a NIfTI file of intent {code}: labels of structures")
    if code in NOT_IMAGES:
        raise SampleError("not_an_image", f"a NIfTI file of intent {code}, which is not an image")


def _type(header: Nifti1Header) -> tuple[np.dtype, int]:
    """(dtype of a number, bytes of a colour or 0). Raises SampleError `unsupported`."""
    code = int(header["datatype"])
    if code in COLORS:
        return np.dtype(np.uint8), COLORS[code]
    if code in COMPLEX:
        raise SampleError("unsupported", "NIfTI data of complex numbers; expected real ones")
    with reading():
        dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise SampleError("unsupported", f"NIfTI data of type {dtype}; expected real numbers of at most 64 bits")
    return dtype, 0


def stored_affine(header: Nifti1Header) -> tuple[np.ndarray, str]:
    """((4, 4) voxel (i, j, k) to RAS in mm: sform, else qform; why its turn is unsure, or ""). Raises SampleError.

    Without both, the standard's method 1 gives the axes no orientation, and readers differ in which side they take for
    left. Where both are given they have to agree on the directions of the axes. Where they still turn by more than 1°
    against each other, the turn is unsure: nibabel takes the sform, ITK the qform unless the sform's code is 1.
    """
    with reading():
        from nibabel.orientations import aff2axcodes

        sform, qform = header.get_sform(coded=True)[0], _qform(header)
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
    unit = MILLIMETRES.get(int(header["xyzt_units"]) & 7)
    if unit is None:
        raise SampleError("corrupt", "xyzt_units holds no known unit of length")
    unsure = ""
    if sform is not None and qform is not None:
        turned = _widest_angle(sform, qform)
        if turned > SAME_DIRECTION_DEGREES:
            unsure = f"qform and sform are turned by {turned:.1f}° against each other"
    return np.diag([unit, unit, unit, 1.0]) @ affine, unsure


def _qform(header: Nifti1Header) -> np.ndarray | None:
    """(4, 4) by the quaternion, None where there is none. Raises SampleError `bad_geometry` for a length of 0, which nibabel
    takes as 1, one below 0, which nibabel takes as its amount and ITK as a mirror, and a first pixdim that readers take as
    1 or as −1.
    """
    if int(header["qform_code"]) == 0:
        return None
    qfac, *sizes = (float(number) for number in header["pixdim"][:4])
    if int(header["sform_code"]) == 0 and min(sizes) <= 0:
        raise SampleError("bad_geometry", "qform with a pixdim that is not above 0: readers differ in what that means")
    if qfac not in (-1.0, 0.0, 1.0):
        raise SampleError("bad_geometry", "qform with a pixdim[0] other than 1 and -1: it says which way slices run")
    header = header.copy()
    header["pixdim"][0] = qfac or 1.0
    header["pixdim"][1:4] = [abs(size) or 1.0 for size in sizes]
    return header.get_qform(coded=True)[0]


def _widest_angle(one: np.ndarray, other: np.ndarray) -> float:
    """Degrees between the same axis of two affines, of the axis that differs most."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        directions = [each[:3, :3] / np.linalg.norm(each[:3, :3], axis=0) for each in (one, other)]
        cosines = (directions[0] * directions[1]).sum(0)
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


def spacing_of(affine: np.ndarray, depth: int) -> tuple[tuple[float, ...], np.ndarray | None]:
    """(spacing in mm of D, H, W; starts of the slices as in Image.slices_mm where they are sheared).

    `affine` is of voxels whose axes run to the left, the back and the head, in mm. Raises SampleError `bad_geometry` for
    axes of a slice that are not perpendicular.
    """
    width, height, step = affine[:3, :3].T
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
