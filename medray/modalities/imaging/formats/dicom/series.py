"""DICOM series as volumes, from all their files, or from the frames of one volume among several.

Volumes are D, H, W: D along the slice normal (the cross product of both directions), H down the rows, W along the columns.
One volume is stacked. What else is there (time points, echoes, other orientations, and whatever else tells two volumes
apart) is for `volumes` to say: a series of several is refused, or its volumes become channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.assembly import (
    TOLD_BY_ORDER,
    Piece,
    Volume,
    assemble,
    difference,
    places_of,
)
from medray.modalities.imaging.formats.dicom.concatenation import piece_of, refuse_incomplete
from medray.modalities.imaging.formats.dicom.frames import Frame
from medray.modalities.imaging.formats.dicom.header import Header, parse
from medray.modalities.imaging.formats.dicom.mixture import refuse_rescales, rescale
from medray.modalities.imaging.formats.dicom.objects import refuse_other_objects
from medray.modalities.imaging.formats.dicom.one_volume import one_volume
from medray.modalities.imaging.formats.dicom.pixel_description import check
from medray.modalities.imaging.formats.dicom.quantity import AS_RESCALED, Quantity, factors, frame_values, map_unit
from medray.modalities.imaging.formats.dicom.slices import Slice, pixels_of, slices
from medray.modalities.imaging.formats.dicom.stacking import REGULAR_MM, TILT_DEGREES, Stack
from medray.modalities.imaging.formats.image import Image
from medray.storage.pages import Content


@dataclass
class _File:
    """A file of which slices are taken."""

    header: Header
    slices: list[Slice]


def volume(
    raws: Iterable[Content], selections: Sequence[Sequence[int] | None] | None = None
) -> tuple[list[Frame], Stack]:
    """The frames of the files of one series, as given, and their geometry; no pixel is decoded. Raises SampleError.

    `selections`: of each file the frames (or tiles of a mosaic) that are taken, from 0; None: all.
    Refuses what is not an image, colour, several volumes under one series, and slices on different scales.
    """
    taken = [each for file in _opened(raws, selections, AS_RESCALED) for each in file.slices]
    return [each.frame for each in taken], _stacked(taken, assemble(_pieces(taken)))


def read_series(
    raws: Iterable[Content],
    selections: Sequence[Sequence[int] | None] | None = None,
    *,
    channels: bool = False,
    wanted: Quantity = AS_RESCALED,
    whole: bool = True,
) -> Image:
    """The files of one series, in any order, as a volume: each slice rescaled by its own slope and intercept, and brought to
    the quantity that is `wanted`.

    float32 (D, H, W), or the stored integers where no rescale is given. `selections`: as for `volume`. `channels`: several
    volumes are read, too, as (C, D, H, W) in the order of what tells them apart. Files are let go as they are read, so
    that no more is held than the volume and what is still to be read. `whole`: these are all files of the series.
    Raises SampleError.
    """
    files = _opened(raws, selections, wanted)
    if whole:
        refuse_incomplete(piece for piece in (piece_of(file.header) for file in files) if piece is not None)
    taken = [each for file in files for each in file.slices]
    volumes = assemble(_pieces(taken))
    if not channels or len(volumes) == 1:
        try:
            stacks, members = [_stacked(taken, volumes, wanted)], [list(range(len(taken)))]
        except SampleError as error:
            if error.reason == "unsupported":
                _refuse_copies(files)
            raise
    else:
        stacks, members = _channels(taken, volumes, wanted)
    scales = factors([each.frame for each in taken], wanted, whole)
    targets = np.empty((len(taken), 2), int)
    for channel, (one, indices) in enumerate(zip(stacks, members, strict=True)):
        targets[np.array(indices)[one.order]] = [(channel, depth) for depth in range(len(one.order))]
    wanted = wanted.of_shape((len(stacks[0].order), *taken[0].plane.shape))
    del taken, volumes
    values = _filled(files, targets, (len(stacks), len(stacks[0].order)), wanted, scales)
    return _image(values if channels and len(stacks) > 1 else values[0], stacks[0])


def _opened(
    raws: Iterable[Content], selections: Sequence[Sequence[int] | None] | None, wanted: Quantity
) -> list[_File]:
    """The slices that are taken of each file. Raises SampleError."""
    files: list[_File] = []
    for number, raw in enumerate(raws):
        header = parse(raw)
        refuse_other_objects(header, wanted.dose)
        check(header)
        if header.samples != 1 or header.photometric == "PALETTE COLOR":
            raise SampleError("unsupported", "a volume of colour slices")
        of_file = slices(header)
        chosen = None if selections is None else selections[number]
        if chosen is not None and max(chosen, default=0) >= len(of_file):
            raise SampleError("changed", f"a file of {len(of_file)} frames, of which {max(chosen) + 1} was asked for")
        files.append(_File(header, of_file if chosen is None else [of_file[k] for k in chosen]))
    return files


def _pieces(taken: Sequence[Slice]) -> list[Piece]:
    return [Piece(0, k, each.plane, each.values) for k, each in enumerate(taken)]


def _stacked(taken: Sequence[Slice], volumes: Sequence[Volume], wanted: Quantity = AS_RESCALED) -> Stack:
    """All these slices as one volume. Raises SampleError where they are several: whatever it was that told them apart."""
    stacked = one_volume([each.plane for each in taken], [each.values for each in taken], volumes)
    if map_unit(taken[0].frame, wanted) is None:  # else the rescale does not count
        refuse_rescales([each.frame for each in taken])
    return stacked


def _refuse_copies(files: Sequence[_File]) -> None:
    """Raises SampleError `duplicate_slices` where every slice that lies at the place of another is an exact copy of it: equal
    pixels, directions, rescale, and all that tells volumes apart but times and numbers of instances.

    Equal values under new instance UIDs are a series that was sent again. It is refused, and not taken once: facts of the
    entry are of all its slices, and which of the two copies an archive keeps is not for a reader to say.
    """
    taken = [each for file in files for each in file.slices]
    copies: dict[int, set[object]] = defaultdict(set)
    places = iter(places_of(_pieces(taken)))
    for file in files:
        for first, pixels in pixels_of(file.header, file.slices):
            for each, one in zip(file.slices[first : first + len(pixels)], pixels, strict=True):
                copies[next(places)].add(_content(each, one))
    if len(copies) < len(taken) and all(len(each) == 1 for each in copies.values()):
        raise SampleError(
            "duplicate_slices",
            f"{len(taken)} slices at {len(copies)} positions, those at one position with equal pixels: sent again under new UIDs",
        )


def _content(of: Slice, pixels: np.ndarray) -> object:
    plane, own = of.plane, {key: value for key, value in of.values.items() if key not in TOLD_BY_ORDER}
    return (
        xxhash.xxh3_128_digest(np.ascontiguousarray(pixels).data),
        pixels.dtype.str,
        plane.shape,
        tuple(np.round([*plane.along, *plane.down, *plane.spacing], 6)),
        tuple(sorted((key, str(value)) for key, value in own.items())),
        rescale(of.frame),
    )


def _channels(
    taken: Sequence[Slice], volumes: Sequence[Volume], wanted: Quantity
) -> tuple[list[Stack], list[list[int]]]:
    """Each volume's geometry, and which of `taken` it is made of. Raises SampleError where they do not lie on one grid."""
    members = [[piece.number for piece in each.pieces] for each in volumes]
    stacks = [
        _stacked([taken[k] for k in indices], [each], wanted) for each, indices in zip(volumes, members, strict=True)
    ]
    first = stacks[0]
    for other in stacks[1:]:
        if len(other.order) != len(first.order) or not np.allclose(other.affine_ras, first.affine_ras, atol=REGULAR_MM):
            raise SampleError(
                "bad_geometry",
                f"{len(volumes)} volumes that do not lie on one grid cannot be channels (they differ in "
                f"{difference(volumes)})",
            )
        if not np.allclose(other.slices_mm, first.slices_mm, atol=REGULAR_MM):
            raise SampleError("bad_geometry", f"{len(volumes)} volumes whose slices are not at the same places")
    shapes = {taken[indices[0]].plane.shape for indices in members}
    spaces = {taken[indices[0]].values.get("frame-of-reference") for indices in members}
    if len(shapes) > 1 or len(spaces) > 1:
        raise SampleError("bad_geometry", f"{len(volumes)} volumes of other shapes or frames of reference")
    return stacks, members


def _filled(
    files: list[_File],
    targets: np.ndarray,
    shape: tuple[int, int],
    wanted: Quantity,
    scales: Sequence[float],
) -> np.ndarray:
    """(C, D, H, W) values; padding is the least real value of its volume. `targets`: (N, 2) channel and depth of each slice;
    `scales`: of each slice, see `quantity.factors`. Empties `files` as it goes.
    """
    values: np.ndarray | None = None
    covered: dict[tuple[int, int], np.ndarray] = {}  # where padding is, eight pixels in a byte
    at = len(targets)
    while files:
        file = files.pop()  # the last that was read: its memory lies on top of the heap, which gives it back
        at -= len(file.slices)
        for first, pixels in pixels_of(file.header, file.slices):
            frame, number, places = file.slices[first].frame, at + first, targets[at + first : at + first + len(pixels)]
            out = None if values is None else _room(values, places)
            real, outside = frame_values(frame, pixels, wanted, scales[number], out)
            if values is None:
                values = np.empty((*shape, *pixels.shape[1:]), _dtype(real.dtype, real.dtype, wanted))
            if (dtype := _dtype(values.dtype, real.dtype, wanted)) != values.dtype:
                values = values.astype(dtype)
            if real is not out:
                values[places[:, 0], places[:, 1]] = real
            if outside is not None:
                for (channel, depth), bits in zip(places.tolist(), outside, strict=True):
                    if bits.any():
                        covered[channel, depth] = np.packbits(bits)
    assert values is not None  # every file has a slice
    for channel in {channel for channel, _ in covered}:
        _cover(values[channel], {depth: packed for (own, depth), packed in covered.items() if own == channel})
    return values


def _dtype(one: np.dtype, other: np.dtype, wanted: Quantity) -> np.dtype:
    """What holds the values of slices of both dtypes: float32 instead of integers of several dtypes where it holds them, too,
    and where a sample is made of it."""
    dtype = np.result_type(one, other)
    if wanted.kept is None or (wanted.kept.dtype == "int16" and one == other):
        return dtype
    exact = all(np.can_cast(each, np.float32, "safe") for each in (one, other))
    return np.dtype(np.float32) if exact else dtype


def _room(values: np.ndarray, places: np.ndarray) -> np.ndarray | None:
    """(N, H, W) view of `values` at these places, channel and depth of each; None where they do not follow each other."""
    channel, first = places[0].tolist()
    if len(places) == 1:
        return values[channel, first : first + 1]
    step = int(places[1, 1]) - first
    if abs(step) != 1 or (places[:, 0] != channel).any() or (np.diff(places[:, 1]) != step).any():
        return None
    stop = first + step * len(places)
    return values[channel, first : stop if stop >= 0 else None : step]


def _cover(values: np.ndarray, packed: dict[int, np.ndarray]) -> None:
    """Padding of a volume (D, H, W) replaced in place by the least real value (see `transform.cover`); `packed`: slice to
    the bits of its padding."""

    def padding(depth: int) -> np.ndarray:
        bits: np.ndarray = np.unpackbits(packed[depth], count=values[depth].size)
        return bits.view(bool).reshape(values.shape[1:])

    inside = (values[depth][~padding(depth)] if depth in packed else values[depth] for depth in range(len(values)))
    least = [each.min() for each in inside if each.size]
    for depth in packed if least else ():
        values[depth][padding(depth)] = min(least)


def _image(values: np.ndarray, one: Stack) -> Image:
    uneven = one.residual_mm > REGULAR_MM or one.tilt_degrees > TILT_DEGREES
    return Image(
        values,
        spacing_mm=one.spacing_mm if one.spacing_mm[0] > 0 else None,
        slices_mm=one.slices_mm if uneven else None,
        irregular=one.irregular,
        hole_mm=one.largest_hole_mm,
        affine_ras=one.affine_ras,
        channels=values.ndim == 4,
    )
