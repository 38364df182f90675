"""Slices: every (file, frame) of a series with its place, the one reading of frames that volumes are made of.

A classic file is one slice, an enhanced file a slice for each frame, a mosaic a slice for each tile, a dose one for each plane.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.dose import dose_positions, is_dose
from medray.modalities.imaging.formats.dicom.elements import numbers, one_number
from medray.modalities.imaging.formats.dicom.frames import Frame, Group, frames, has_groups
from medray.modalities.imaging.formats.dicom.header import Header, native_bytes
from medray.modalities.imaging.formats.dicom.identity import Values, file_identity, identity
from medray.modalities.imaging.formats.dicom.mosaic import RUN_PIXELS, Mosaic, mosaic, tile_positions
from medray.modalities.imaging.formats.dicom.objects import is_mosaic
from medray.modalities.imaging.formats.dicom.pixels import plane_spacing, stored_frames


class Plane(NamedTuple):
    """The place of one slice in the patient (LPS, mm)."""

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


class Slice(NamedTuple):
    """One frame of a file, or one tile of a mosaic."""

    frame: Frame
    number: int
    """Number within its file, from 0."""
    plane: Plane
    values: Values
    """What it states of the volume that it belongs to."""
    layout: Mosaic | None = None
    """The mosaic that it is a tile of."""


def count_slices(header: Header) -> int:
    """How many slices a file has: frames, or tiles of a mosaic. Raises SampleError."""
    return mosaic(header).count if is_mosaic(header) else header.frames


def slices(header: Header) -> list[Slice]:
    """The slices of a file, in its order. Raises SampleError: `bad_geometry` where a place is missing."""
    if is_dose(header):
        frame = frames(header)[0]
        first, values = plane(frame), identity(frame, file_identity(frame))
        return [Slice(frame, k, first._replace(position=at), values) for k, at in enumerate(dose_positions(header))]
    if header.frames > 1 and not has_groups(header):
        raise SampleError("bad_geometry", f"{header.frames} frames without a position each")
    of_file = frames(header)
    whole = file_identity(of_file[0])
    if not is_mosaic(header):
        return [Slice(frame, k, plane(frame), identity(frame, whole)) for k, frame in enumerate(of_file)]
    frame, layout = of_file[0], mosaic(header)
    positions = tile_positions(header, layout)
    values, shape = identity(frame, whole), (layout.rows, layout.columns)
    first = plane(frame, shape)
    return [Slice(frame, k, first._replace(position=at), values, layout) for k, at in enumerate(positions)]


def pixels_of(header: Header, taken: Sequence[Slice]) -> Iterator[tuple[int, np.ndarray]]:
    """Stored values of these slices of a file, in that order, in runs of slices of one frame: (index of its first slice,
    (N, H, W)). No other frame is decoded. Raises SampleError.

    A run is valid until the next one is asked for: then the memory of the file behind it may be given back.
    """
    numbers = [each.number for each in taken]
    layout = taken[0].layout
    if layout is None:
        yield from ((index, pixels[None]) for index, pixels in enumerate(stored_frames(header, numbers)))
        return
    whole = next(stored_frames(header, [0]))
    if whole.size <= RUN_PIXELS:
        yield 0, layout.unfolded(whole)[numbers]
        return
    ascending = not header.encapsulated and all(number < following for number, following in pairwise(numbers))
    row_bytes = native_bytes(header) // header.rows
    for first, count in layout.runs(numbers):
        tiles = layout.tiles(whole, numbers[first], count)
        yield first, tiles
        if ascending:
            below = (numbers[first] + count) // layout.across * layout.rows  # a row of tiles may hold another run
            header.give_back(header.start + below * row_bytes)


def plane(frame: Frame, shape: tuple[int, int] | None = None) -> Plane:
    """The plane of a frame, from its functional groups, those of an ultrasound volume (PS3.3 C.8.24.3.4), or the file.

    Raises SampleError `bad_geometry` where it is missing.
    """
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
        shape or (frame.header.rows, frame.header.columns),
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
