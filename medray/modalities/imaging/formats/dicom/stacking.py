"""Stacking: the planes of slices as one volume, in spatial order by their own positions (PS3.3 C.7.6.2.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.slices import Plane

REGULAR_MM = 0.01
"""A stack is regular when its affine meets every slice's own position within this."""
EVEN = 0.05
"""Gaps that differ by less than this share of the median gap may be stacked as even."""
TILT_DEGREES = 0.1
"""More than this between the slice normal and the line of slice positions is a sheared stack."""
SAME_DIRECTION = 1e-3
SAME_SPACING = 1e-3
"""Pixel spacings that differ by less than this share are one."""
SAME_POSITION_MM = 1e-3
HOLE = 1.5
"""A gap larger than this many times the median gap is a hole."""
ROUNDING_MM = 1e-3


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


def stack(slices: Sequence[Plane]) -> Stack:
    """Planes, in any order, as one volume, sorted by dot(position, normal). Raises SampleError."""
    first = slices[0]
    differences = _grid_differences(slices)
    if differences:
        raise SampleError("bad_geometry", f"{len(slices)} slices {differences[0]}")
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


def one_grid(slices: Sequence[Plane]) -> bool:
    """Whether slices have one orientation, shape and pixel spacing."""
    return not _grid_differences(slices)


def _grid_differences(slices: Sequence[Plane]) -> list[str]:
    """Differences of slices from the first one: shape, orientation, pixel spacing."""
    slices = _different(slices)
    if len(slices) == 1:
        return []
    shapes = {plane.shape for plane in slices}
    differences = [f"of {len(shapes)} different shapes"] if len(shapes) > 1 else []
    directions = np.array([(plane.along, plane.down) for plane in slices])
    if np.abs(directions - directions[0]).max() > SAME_DIRECTION:
        differences.append("with different orientations")
    spacings = np.array([plane.spacing for plane in slices])
    if (np.abs(spacings - spacings[0]) > SAME_SPACING * spacings[0]).any():
        differences.append("with different pixel spacing")
    return differences


def _different(slices: Sequence[Plane]) -> Sequence[Plane]:
    """One slice for each grid, in their order: tiles of a mosaic share theirs."""
    grids = {(id(plane.along), id(plane.down), plane.spacing, plane.shape): plane for plane in reversed(slices)}
    return [*reversed(grids.values())]


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
