"""DICOM series as volumes: slices in spatial order by their own positions (PS3.3 C.7.6.2.1.1).

Volumes are D, H, W: D along the slice normal (the cross product of both directions), H down the rows, W along the columns.
Nothing is stacked that is no single volume: repeated positions (time series, echoes), mixed orientations or
shapes, mosaics and missing geometry are refused with what was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medray.errors import SampleError
from medray.modalities.imaging.dicom import cover, plane_spacing, real_world, stored
from medray.modalities.imaging.header import Header, check, parse, reading
from medray.modalities.imaging.image import Image

REGULAR_MM = 0.01
"""A stack is regular when its affine meets every slice's own position within this."""
EVEN = 0.05
"""Gaps that differ by less than this share of the median gap may be stacked as even."""
TILT_DEGREES = 0.1
"""More than this between the slice normal and the line of slice positions is a sheared stack."""
SAME_DIRECTION = 1e-3
SAME_POSITION_MM = 1e-3


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


@dataclass(frozen=True, slots=True)
class Stack:
    """Slices as one volume: their order and geometry."""

    order: np.ndarray
    """(D,) index of the k-th slice in what was given."""
    slices_mm: np.ndarray
    """(D, 3) start of slice k from slice 0 along (normal, height, width)."""
    gaps_mm: np.ndarray
    """(D - 1,) along the normal."""
    spacing_mm: tuple[float, float, float]
    affine_ras: np.ndarray
    """(4, 4) (W, H, D) index to RAS mm: NIfTI's convention."""
    residual_mm: float
    """max over k of the distance between affine · (0, 0, k) and slice k's own position."""
    tilt_degrees: float

    @property
    def irregular(self) -> bool:
        return bool(len(self.gaps_mm) and np.ptp(self.gaps_mm) > EVEN * np.median(self.gaps_mm))

    @property
    def flags(self) -> list[str]:
        found = []
        if self.tilt_degrees > TILT_DEGREES:
            found.append("gantry_tilt")
        if self.residual_mm > REGULAR_MM:
            found.append("irregular_gaps")
        return found


def planes(header: Header) -> list[Plane]:
    """The plane of every frame of a file. Raises SampleError `bad_geometry` where one is missing."""
    shape = (header.rows, header.columns)
    if not header.get("PerFrameFunctionalGroupsSequence"):
        if header.frames > 1:
            raise SampleError("bad_geometry", f"{header.frames} frames without a position each")
        return [_plane(header, header, header, shape)]
    dataset = header.dataset
    per_frame = dataset.PerFrameFunctionalGroupsSequence
    if len(per_frame) != header.frames:
        raise SampleError("corrupt", f"{header.frames} frames, but {len(per_frame)} frame descriptions")
    return [
        _plane(
            _group(dataset, k, "PlanePositionSequence"),
            _group(dataset, k, "PlaneOrientationSequence"),
            _group(dataset, k, "PixelMeasuresSequence"),
            shape,
        )
        for k in range(header.frames)
    ]


def _group(dataset: Dataset, frame: int, keyword: str) -> Dataset:
    """A functional group of a frame, its own or the shared one; empty where there is none (PS3.3 C.7.6.16)."""
    with reading("functional groups"):
        own = dataset.PerFrameFunctionalGroupsSequence[frame].get(keyword)
        shared = dataset.get("SharedFunctionalGroupsSequence")
        items = own or (shared[0].get(keyword) if shared else None)
        return items[0] if items else Dataset()


def _plane(
    place: Header | Dataset, turn: Header | Dataset, measures: Header | Dataset, shape: tuple[int, int]
) -> Plane:
    position, turned = place.get("ImagePositionPatient"), turn.get("ImageOrientationPatient")
    spacing = plane_spacing(measures)
    if not position or not turned or spacing is None:
        missing = [
            name
            for name, value in (("position", position), ("orientation", turned), ("pixel spacing", spacing))
            if not value
        ]
        raise SampleError("bad_geometry", f"a slice without {', '.join(missing)}")
    with reading("geometry"):
        at = np.array([float(v) for v in position])
        along, down = np.array([float(v) for v in turned]).reshape(2, 3)
        thickness = measures.get("SliceThickness")
        thick = float(thickness) if thickness else None
    lengths = np.linalg.norm(along), np.linalg.norm(down)
    if at.shape != (3,) or abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(along @ down) > 0.01:
        raise SampleError("bad_geometry", "an orientation that is not two perpendicular unit vectors")
    return Plane(at, along / lengths[0], down / lengths[1], spacing, shape, thick)


def stack(given: Sequence[Plane]) -> Stack:
    """Planes, in any order, as one volume, sorted by dot(position, normal). Raises SampleError."""
    first = given[0]
    shapes = {plane.shape for plane in given}
    if len(shapes) > 1:
        raise SampleError("bad_geometry", f"{len(given)} slices of {len(shapes)} different shapes")
    for plane in given:
        turned = max(np.abs(plane.along - first.along).max(), np.abs(plane.down - first.down).max())
        if turned > SAME_DIRECTION:
            raise SampleError("bad_geometry", f"{len(given)} slices with different orientations")
        if not np.allclose(plane.spacing, first.spacing, rtol=1e-3):
            raise SampleError("bad_geometry", f"{len(given)} slices with different pixel spacing")
    normal = np.cross(first.along, first.down)
    positions = np.array([plane.position for plane in given])
    depth = positions @ normal
    order = np.argsort(depth, kind="stable")
    positions, depth = positions[order], depth[order]
    gaps = np.diff(depth)
    if (gaps < SAME_POSITION_MM).any():
        places = 1 + int((gaps >= SAME_POSITION_MM).sum())
        raise SampleError(
            "unsupported", f"{len(given)} slices at {places} positions: a time series or several volumes, not one"
        )
    steps = positions - positions[0]
    step = steps[-1] / (len(given) - 1) if len(given) > 1 else normal * (first.thickness or 1.0)
    affine = np.eye(4)
    affine[:3, 0] = first.along * first.spacing[1]
    affine[:3, 1] = first.down * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    met = affine[:3, 3] + np.arange(len(given))[:, None] * step
    affine[:2] *= -1  # LPS to RAS
    cosine = float(abs(step @ normal) / np.linalg.norm(step))
    return Stack(
        order=order,
        slices_mm=np.stack([steps @ normal, steps @ first.down, steps @ first.along], axis=1),
        gaps_mm=gaps,
        spacing_mm=(float(np.median(gaps)) if len(gaps) else first.thickness or 0.0, *first.spacing),
        affine_ras=affine,
        residual_mm=float(np.linalg.norm(met - positions, axis=1).max()),
        tilt_degrees=float(np.degrees(np.arccos(min(1.0, cosine)))),
    )


def is_mosaic(header: Header) -> bool:
    """A Siemens mosaic: one image that holds the slices of a volume as tiles."""
    return "MOSAIC" in [str(part).upper() for part in header.get("ImageType") or []]


def headers_and_stack(raws: Sequence[bytes]) -> tuple[list[Header], Stack]:
    """Parsed files of one series and their geometry; no pixel is decoded yet. Raises SampleError."""
    headers = [parse(raw) for raw in raws]
    for header in headers:
        check(header)
        if is_mosaic(header):
            raise SampleError("unsupported", "a mosaic: many slices tiled into one image")
        if header.samples != 1 or header.photometric == "PALETTE COLOR":
            raise SampleError("unsupported", "a volume of colour slices")
    return headers, stack([plane for header in headers for plane in planes(header)])


def read_series(raws: Sequence[bytes]) -> Image:
    """The files of one series, in any order, as a volume: each slice rescaled by its own slope and intercept.

    float32 (D, H, W), or the stored integers where no rescale is given. Raises SampleError.
    """
    headers, found = headers_and_stack(raws)
    place = np.empty(len(found.order), int)
    place[found.order] = np.arange(len(found.order))
    shape = (headers[0].rows, headers[0].columns)
    volume: Any = None
    padding: np.ndarray | None = None
    k = 0
    for header in headers:
        enhanced = header.get("PerFrameFunctionalGroupsSequence")
        for frame, pixels in enumerate(stored(header)):
            scaling = _group(header.dataset, frame, "PixelValueTransformationSequence") if enhanced else None
            values, outside = real_world(pixels, header, scaling)
            if volume is None:
                volume = np.empty((len(place), *shape), values.dtype)
            if np.result_type(volume, values) != volume.dtype:
                volume = volume.astype(np.result_type(volume, values))
            volume[place[k]] = values
            if outside is not None:
                padding = np.zeros(volume.shape, bool) if padding is None else padding
                padding[place[k]] = outside
            k += 1
    thick = found.spacing_mm[0] > 0
    return Image(
        cover(volume, padding),
        spacing_mm=found.spacing_mm if thick else None,
        slices_mm=found.slices_mm if found.residual_mm > REGULAR_MM or found.tilt_degrees > TILT_DEGREES else None,
        irregular=found.irregular,
    )
