"""DICOM series as volumes: slices in spatial order by their own positions (PS3.3 C.7.6.2.1.1).

Volumes are D, H, W: D along the slice normal (the cross product of both directions), H down the rows, W along the columns.
Only a single volume is stacked: repeated positions (time series, echoes), mixed orientations or shapes, mosaics, missing
geometry and whatever else tells two volumes apart (`mixture.py`) are refused, and the message says what was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.elements import numbers, one_number
from medray.modalities.imaging.formats.dicom.frames import Frame, Group, frames, has_groups
from medray.modalities.imaging.formats.dicom.header import Header, parse
from medray.modalities.imaging.formats.dicom.mixture import (
    BLOCKWISE,
    UNIFORM,
    differing,
    refuse_mixture,
    refuse_places,
    refuse_rescales,
)
from medray.modalities.imaging.formats.dicom.objects import refuse_mosaic, refuse_other_objects
from medray.modalities.imaging.formats.dicom.pixel_description import check
from medray.modalities.imaging.formats.dicom.pixels import cover, plane_spacing, stored
from medray.modalities.imaging.formats.dicom.quantity import AS_RESCALED, Quantity, factors, frame_values
from medray.modalities.imaging.formats.image import Image

REGULAR_MM = 0.01
"""A stack is regular when its affine meets every slice's own position within this."""
EVEN = 0.05
"""Gaps that differ by less than this share of the median gap may be stacked as even."""
TILT_DEGREES = 0.1
"""More than this between the slice normal and the line of slice positions is a sheared stack."""
SAME_DIRECTION = 1e-3
SAME_POSITION_MM = 1e-3
HOLE = 1.5
"""A gap larger than this many times the median gap is a hole."""
ROUNDING_MM = 1e-3


@dataclass(frozen=True, slots=True)
class Plane:
    """Where one slice lies in the patient (LPS, mm)."""

    position: np.ndarray
    """Centre of its first pixel."""
    along: np.ndarray
    """Unit vector of growing column index (W)."""
    down: np.ndarray
    """Unit vector of growing row index (H)."""
    spacing: tuple[float, float]
    """(between rows, between columns)"""
    shape: tuple[int, int]
    thickness: float | None
    """SliceThickness, mm."""
    between: float | None = None
    """SpacingBetweenSlices, mm."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Slices as one volume: their order and geometry."""

    order: np.ndarray
    """(D,) index of the k-th slice among the given planes."""
    slices_mm: np.ndarray
    """(D, 3) start of slice k from slice 0 along (normal, height, width)."""
    gaps_mm: np.ndarray
    """(D - 1,) mm between neighbouring slices along the normal."""
    spacing_mm: tuple[float, float, float]
    affine_ras: np.ndarray
    """(4, 4) (W, H, D) index to RAS mm: NIfTI's convention."""
    residual_mm: float
    """max over k of the distance between affine · (0, 0, k) and slice k's own position."""
    tilt_degrees: float
    limits_mm: np.ndarray
    """(D - 1,) a larger gap is a hole, where the run sets no max_gap_mm."""

    @property
    def largest_hole_mm(self) -> float:
        """The widest gap that is a hole; 0 where there is none."""
        holes = self.gaps_mm[self.gaps_mm > self.limits_mm + ROUNDING_MM]
        return float(holes.max()) if len(holes) else 0.0

    @property
    def irregular(self) -> bool:
        """Whether the gaps between slices differ by more than EVEN."""
        return bool(len(self.gaps_mm) and np.ptp(self.gaps_mm) > EVEN * np.median(self.gaps_mm))

    @property
    def flags(self) -> list[str]:
        """Peculiarities of the geometry, for `medray inspect`."""
        flags: list[str] = []
        if self.tilt_degrees > TILT_DEGREES:
            flags.append("gantry_tilt")
        if self.residual_mm > REGULAR_MM:
            flags.append("irregular_gaps")
        if self.largest_hole_mm:
            flags.append("hole")
        return flags


def planes(header: Header) -> list[Plane]:
    """The plane of every frame of a file. Raises SampleError `bad_geometry` where one is missing."""
    if header.frames > 1 and not has_groups(header):
        raise SampleError("bad_geometry", f"{header.frames} frames without a position each")
    return [plane(frame) for frame in frames(header)]


def plane(frame: Frame) -> Plane:
    """The plane of a frame, from its functional groups, those of an ultrasound volume (PS3.3 C.8.24.3.4), or the file."""
    top = Group(frame.header, frame.header)
    position_group = frame.group("PlanePositionSequence") or top
    orientation_group = frame.group("PlaneOrientationSequence") or top
    measures = frame.group("PixelMeasuresSequence") or top
    position = numbers(position_group.get("ImagePositionPatient"))
    orientation = numbers(orientation_group.get("ImageOrientationPatient"))
    if not position and (volume := frame.group("PlanePositionVolumeSequence")):
        position = numbers(volume.get("ImagePositionVolume"))
    if not orientation and (volume := frame.group("PlaneOrientationVolumeSequence")):
        orientation = numbers(volume.get("ImageOrientationVolume"))
    spacing = plane_spacing(measures)
    if not position or not orientation or spacing is None:
        missing = [
            name
            for name, value in (("position", position), ("orientation", orientation), ("pixel spacing", spacing))
            if not value
        ]
        raise SampleError("bad_geometry", f"a slice without {', '.join(missing)}")
    return make_plane(
        position,
        orientation,
        spacing,
        (frame.header.rows, frame.header.columns),
        thickness=one_number(measures.get("SliceThickness")),
        between=one_number(measures.get("SpacingBetweenSlices")),
    )


def make_plane(
    position: Sequence[float] | np.ndarray,
    orientation: Sequence[float],
    spacing: tuple[float, float],
    shape: tuple[int, int],
    *,
    thickness: float | None = None,
    between: float | None = None,
) -> Plane:
    """A plane from the numbers of a header. Raises SampleError `bad_geometry`."""
    start = np.array(position, float)
    if start.shape != (3,) or len(orientation) != 6:
        raise SampleError("bad_geometry", "a position that is not three numbers, or an orientation that is not six")
    along, down = np.array(orientation, float).reshape(2, 3)
    lengths = np.linalg.norm(along), np.linalg.norm(down)
    if abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(along @ down) > 0.01:
        raise SampleError("bad_geometry", "an orientation that is not two perpendicular unit vectors")
    thickness_mm, between_mm = (None if value is None or value <= 0 else float(value) for value in (thickness, between))
    return Plane(start, along / lengths[0], down / lengths[1], spacing, shape, thickness_mm, between_mm)


def stack(slices: Sequence[Plane]) -> Stack:
    """Planes, in any order, as one volume, sorted by dot(position, normal). Raises SampleError."""
    first = slices[0]
    shapes = {plane.shape for plane in slices}
    if len(shapes) > 1:
        raise SampleError("bad_geometry", f"{len(slices)} slices of {len(shapes)} different shapes")
    for plane in slices:
        deviation = max(np.abs(plane.along - first.along).max(), np.abs(plane.down - first.down).max())
        if deviation > SAME_DIRECTION:
            raise SampleError("bad_geometry", f"{len(slices)} slices with different orientations")
        if not np.allclose(plane.spacing, first.spacing, rtol=1e-3):
            raise SampleError("bad_geometry", f"{len(slices)} slices with different pixel spacing")
    normal = np.cross(first.along, first.down)
    positions = np.array([plane.position for plane in slices])
    depth = positions @ normal
    order = np.argsort(depth, kind="stable")
    positions, depth = positions[order], depth[order]
    gaps = np.diff(depth)
    if (gaps < SAME_POSITION_MM).any():
        count = 1 + int((gaps >= SAME_POSITION_MM).sum())
        raise SampleError(
            "unsupported", f"{len(slices)} slices at {count} positions: a time series or several volumes, not one"
        )
    steps = positions - positions[0]
    step = steps[-1] / (len(slices) - 1) if len(slices) > 1 else normal * (first.thickness or 1.0)
    affine = np.eye(4)
    affine[:3, 0] = first.along * first.spacing[1]
    affine[:3, 1] = first.down * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    predicted = affine[:3, 3] + np.arange(len(slices))[:, None] * step
    affine[:2] *= -1  # LPS to RAS
    tilt = np.arctan2(np.linalg.norm(np.cross(step, normal)), abs(step @ normal))
    return Stack(
        order=order,
        slices_mm=np.stack([steps @ normal, steps @ first.down, steps @ first.along], axis=1),
        gaps_mm=gaps,
        spacing_mm=(float(np.median(gaps)) if len(gaps) else first.thickness or 0.0, *first.spacing),
        affine_ras=affine,
        residual_mm=float(np.linalg.norm(predicted - positions, axis=1).max()),
        tilt_degrees=float(np.degrees(tilt)),
        limits_mm=_limits(gaps, [slices[int(k)] for k in order]),
    )


def _limits(gaps: np.ndarray, ordered: Sequence[Plane]) -> np.ndarray:
    """(D - 1,) mm: the widest that each gap may be without being a hole, 1.5 times the median gap.

    The median is taken over gaps between slices of the same thickness: a head CT of 4 mm slices below and 7 mm slices
    above has no hole. A single gap is its own median, so it is compared with the stated distance or thickness.
    """
    if len(gaps) == 1:
        distance = max(each or 0.0 for plane in ordered for each in (plane.thickness, plane.between))
        return np.array([HOLE * distance if distance else np.inf])
    thicknesses = np.array([plane.thickness or 0.0 for plane in ordered]).round(1)
    below, above = thicknesses[:-1], thicknesses[1:]
    medians = {
        each: np.median(inner) for each in set(thicknesses) if len(inner := gaps[(below == each) & (above == each)]) > 1
    }
    everywhere = float(np.median(gaps)) if len(gaps) else 0.0
    medians_beside = [
        max(medians.get(a, everywhere), medians.get(b, everywhere)) for a, b in zip(below, above, strict=True)
    ]
    return HOLE * np.array(medians_beside)


def volume(raws: Sequence[bytes], wanted: Quantity = AS_RESCALED) -> tuple[list[Frame], Stack]:
    """The frames of the files of one series, as given, and their geometry; no pixel is decoded. Raises SampleError.

    Refuses what is not an image, mosaics, colour, several volumes under one series, and slices on different scales.
    """
    slices: list[Frame] = []
    slice_planes: list[Plane] = []
    for raw in raws:
        header = parse(raw)
        refuse_other_objects(header)
        check(header)
        refuse_mosaic(header)
        if header.samples != 1 or header.photometric == "PALETTE COLOR":
            raise SampleError("unsupported", "a volume of colour slices")
        slices += frames(header)
        slice_planes += planes(header)
    refuse_places(slices)
    try:
        stacked = stack(slice_planes)
    except SampleError as error:
        names = differing(slices, (*UNIFORM, *BLOCKWISE)) if error.reason == "unsupported" else []
        hint = f" (they differ in {', '.join(names)})" if names else ""
        raise SampleError(error.reason, error.detail + hint) from None
    refuse_mixture(slices, stacked.order)
    if wanted.unit is None:  # else the rescale does not count
        refuse_rescales(slices)
    return slices, stacked


def read_series(raws: Sequence[bytes], wanted: Quantity = AS_RESCALED) -> Image:
    """The files of one series, in any order, as a volume: each slice rescaled by its own slope and intercept, and brought to
    the quantity that is asked for.

    float32 (D, H, W), or the stored integers where no rescale is given. Raises SampleError.
    """
    slices, volume_stack = volume(raws, wanted)
    to_quantity = factors(slices, wanted, whole=True)
    depths = np.empty(len(volume_stack.order), int)
    depths[volume_stack.order] = np.arange(len(volume_stack.order))
    values: np.ndarray | None = None
    padding: np.ndarray | None = None
    k = 0
    for _, of_file in groupby(slices, key=lambda each: id(each.header)):
        file_frames = list(of_file)
        for frame, pixels in zip(file_frames, stored(file_frames[0].header), strict=True):
            real, outside = frame_values(frame, pixels, wanted, to_quantity[k])
            if values is None:
                values = np.empty((len(depths), *pixels.shape), real.dtype)
            if np.result_type(values, real) != values.dtype:
                values = values.astype(np.result_type(values, real))
            values[depths[k]] = real
            if outside is not None:
                padding = np.zeros(values.shape, bool) if padding is None else padding
                padding[depths[k]] = outside
            k += 1
    assert values is not None  # every file has a frame
    has_depth = volume_stack.spacing_mm[0] > 0
    uneven = volume_stack.residual_mm > REGULAR_MM or volume_stack.tilt_degrees > TILT_DEGREES
    return Image(
        cover(values, padding),
        spacing_mm=volume_stack.spacing_mm if has_depth else None,
        slices_mm=volume_stack.slices_mm if uneven else None,
        irregular=volume_stack.irregular,
        hole_mm=volume_stack.largest_hole_mm,
        affine_ras=volume_stack.affine_ras,
    )
