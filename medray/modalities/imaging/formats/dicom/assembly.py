"""Assembly: the slices of one series as the volumes that they are, from what their headers state. No pixel is looked at.

1. Slices that differ in what one volume has one value of (`identity.COMMON_SPACE`, `UNIFORM`), in shape, orientation or
   pixel spacing are of different volumes.
2. Where slices lie at one place several times, the first attribute that gives each value the same places tells them apart
   (`identity.REPEATING`), or a time that has an interval for each repetition (`identity.TIMES`).
3. Where an attribute changes to and fro along a volume, two scans lie between each other.

What still lies at one place several times stays together: reading it says so. Names of files and their order play no part.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from medray.modalities.imaging.formats.dicom.identity import (
    BLOCKWISE,
    COMMON_SPACE,
    REPEATING,
    TIMES,
    UNIFORM,
    Attribute,
    Text,
    Values,
    names_of,
)
from medray.modalities.imaging.formats.dicom.mixture import interleaved
from medray.modalities.imaging.formats.dicom.slices import Plane
from medray.modalities.imaging.formats.dicom.stacking import SAME_POSITION_MM, one_grid

PLACE, SHAPE, IN_PLANE = "plane", "shape", "spacing"
"""Keys of what is computed from planes."""
TIME = "time"
"""Key of the number of a repetition, from 1, where only an order tells repetitions apart."""
NAMES = {PLACE: "orientation", SHAPE: "rows and columns", IN_PLANE: "pixel spacing", TIME: "time"}
ALWAYS = (*(each.key for each in (*COMMON_SPACE, *UNIFORM)), TIME)
"""What one volume has one value of."""
NUMBERED = 3
"""More slices than this, each with a value of its own, are not as many volumes."""
INCOMPLETE = ("t", "t-index", TIME)
"""Keys of points of time: all of them have the same places, or one was cut short."""


class Piece(NamedTuple):
    """One slice, as far as assembly looks at it."""

    part: int
    """Which file."""
    number: int
    """Which frame or tile of it, from 0."""
    plane: Plane
    values: Values


@dataclass
class Volume:
    """Slices of one volume, as far as their headers tell."""

    pieces: list[Piece]
    values: dict[str, Text] = field(default_factory=dict[str, "Text"])
    """What tells it from the other volumes of its series: keys of `identity`, PLACE, SHAPE, IN_PLANE and TIME."""
    missing: int = 0
    """How many slices it has less than the other points of time."""


def assemble(pieces: Iterable[Piece]) -> list[Volume]:
    """The volumes of a series, in the order of what tells them apart (`order_of`)."""
    given = list(pieces)
    if _plainly_one(given):
        return [Volume(given)]
    ordered = _by_place(given)  # so that no order of files decides what is alike
    volumes = [whole for part in _partition(ordered) for whole in _separate(part)]
    if (
        len(volumes) == len(ordered) > NUMBERED
        and one_grid([piece.plane for piece in ordered])
        and not _repeat(ordered)
    ):
        return [Volume(ordered)]  # a value of its own for every slice tells no volumes apart; reading names it
    _mark_incomplete(volumes)
    return sorted(volumes, key=order_of)


def _by_place(pieces: Sequence[Piece]) -> list[Piece]:
    """Slices sorted by direction, then position."""
    distinct = {id(each): each for piece in pieces for each in (piece.plane.along, piece.plane.down)}
    directions = {number: each.round(6).tolist() for number, each in distinct.items()}
    keys = [
        (
            directions[id(piece.plane.along)],
            directions[id(piece.plane.down)],
            piece.plane.position.tolist(),
            piece.part,
            piece.number,
        )
        for piece in pieces
    ]
    return [pieces[k] for k in sorted(range(len(pieces)), key=keys.__getitem__)]


def _plainly_one(pieces: Sequence[Piece]) -> bool:
    """Whether nothing at all tells the slices apart but their places: the usual series, without a further look."""
    first = pieces[0]
    identity_of_first = _telling(first.values)
    return (
        all(piece.values is first.values or _telling(piece.values) == identity_of_first for piece in pieces)
        and one_grid([piece.plane for piece in pieces])
        and not _repeat(pieces)
    )


def _telling(values: Values) -> dict[str, Text]:
    return {key: value for key, value in values.items() if key not in TOLD_BY_ORDER}


TOLD_BY_ORDER = frozenset(each.key for each in TIMES)


# --- 1: what a volume has one value of ------------------------------------------------------------------------


def _partition(pieces: Sequence[Piece]) -> list[Volume]:
    groups: dict[tuple[object, ...], list[Piece]] = defaultdict(list)
    distinct = {id(piece.values): piece.values for piece in pieces}  # slices of a file may share what they state
    always = {number: tuple(map(values.get, ALWAYS)) for number, values in distinct.items()}
    for piece in pieces:
        groups[always[id(piece.values)]].append(piece)
    return [
        Volume(grid, {**{key: grid[0].values[key] for key in ALWAYS if key in grid[0].values}, **values})
        for group in groups.values()
        for values, grid in _by_grid(group)
    ]


def _by_grid(pieces: Sequence[Piece]) -> list[tuple[dict[str, Text], list[Piece]]]:
    """Slices of one orientation, shape and pixel spacing each, with what these are."""
    if one_grid([piece.plane for piece in pieces]):
        return [(_grid_values(pieces[0].plane), list(pieces))]
    grids: list[tuple[Plane, list[Piece]]] = []
    for piece in pieces:
        for plane, members in grids:
            if one_grid([plane, piece.plane]):
                members.append(piece)
                break
        else:
            grids.append((piece.plane, [piece]))
    return [(_grid_values(plane), members) for plane, members in grids]


def _grid_values(plane: Plane) -> dict[str, Text]:
    directions = "\\".join(f"{number + 0.0:.3f}" for number in (*plane.along, *plane.down))
    return {
        PLACE: directions.replace("-0.000", "0.000"),
        SHAPE: f"{plane.shape[0]}x{plane.shape[1]}",
        IN_PLANE: f"{plane.spacing[0]:.4g}x{plane.spacing[1]:.4g}",
    }


# --- 2: what lies at one place several times ------------------------------------------------------------------


def _depths(pieces: Sequence[Piece]) -> np.ndarray:
    first = pieces[0].plane
    return np.array([piece.plane.position for piece in pieces]) @ np.cross(first.along, first.down)


def _repeat(pieces: Sequence[Piece]) -> bool:
    return bool((np.diff(np.sort(_depths(pieces))) < SAME_POSITION_MM).any())


def places_of(pieces: Sequence[Piece]) -> list[int]:
    """The number of the place of each slice along the normal: within SAME_POSITION_MM of the next it is one."""
    depths = _depths(pieces)
    order = np.argsort(depths, kind="stable")
    steps = np.diff(depths[order], prepend=depths[order[0]]) >= SAME_POSITION_MM
    places = np.empty(len(pieces), int)
    places[order] = np.cumsum(steps)
    return places.tolist()


def _separate(volume: Volume) -> list[Volume]:
    """The volumes of slices that agree in all that always tells volumes apart."""
    if not _repeat(volume.pieces):
        return _untangled(volume)
    groups = _resolved(volume.pieces, places_of(volume.pieces), REPEATING)
    if groups is None:
        return [volume]
    return [each for values, pieces in groups for each in _untangled(Volume(pieces, {**volume.values, **values}))]


Group = tuple[dict[str, "Text"], list[Piece]]


def _resolved(pieces: list[Piece], places: list[int], attributes: Sequence[Attribute]) -> list[Group] | None:
    """Groups without two slices at one place, by the first attributes that give each value the same places; None: there
    are none."""
    if len(set(places)) == len(places):
        return [({}, pieces)]
    for number, attribute in enumerate(attributes):
        groups: dict[Text | None, list[int]] = defaultdict(list)
        for index, piece in enumerate(pieces):
            groups[piece.values.get(attribute.key)].append(index)
        if len(groups) < 2 or not _alike([[places[k] for k in group] for group in groups.values()]):
            continue
        resolved: list[Group] = []
        for value, group in groups.items():
            inner = _resolved([pieces[k] for k in group], [places[k] for k in group], attributes[number + 1 :])
            if inner is None:
                break
            own = {} if value is None else {attribute.key: value}
            resolved += [({**own, **values}, members) for values, members in inner]
        else:
            return resolved
    return _in_intervals(pieces, places)


def _alike(groups: Sequence[Sequence[int]]) -> bool:
    """Whether groups hold the same places, each as often."""
    first = Counter(groups[0])
    return all(Counter(group) == first for group in groups[1:])


def _in_intervals(pieces: list[Piece], places: list[int]) -> list[Group] | None:
    """Repetitions of the same places one after the other: the first time that has an interval for each of them."""
    repeats = set(Counter(places).values())
    if len(repeats) > 1:
        return None
    size = len(set(places))
    for attribute in TIMES:
        stated = [piece.values.get(attribute.key) for piece in pieces]
        times = [time for time in stated if isinstance(time, (int, float))]
        if len(times) < len(pieces):
            continue
        order: list[int] = np.lexsort((places, times)).tolist()
        rounds = [order[start : start + size] for start in range(0, len(order), size)]
        apart = all(times[one[-1]] < times[two[0]] for one, two in pairwise(rounds))
        if apart and all(len({places[k] for k in each}) == size for each in rounds):
            return [({TIME: number}, [pieces[k] for k in each]) for number, each in enumerate(rounds, 1)]
    return None


# --- 3: scans that lie between each other ---------------------------------------------------------------------


def _untangled(volume: Volume) -> list[Volume]:
    """The scans that lie between each other in a volume without repeated places; itself where it is one."""
    keys = _to_and_fro(volume.pieces)
    if not keys:
        return [volume]
    groups: dict[tuple[Text | None, ...], list[Piece]] = defaultdict(list)
    for piece in volume.pieces:
        groups[tuple(piece.values.get(key) for key in keys)].append(piece)
    own = [
        Volume(pieces, volume.values | {k: v for k, v in zip(keys, values, strict=True) if v is not None})
        for values, pieces in groups.items()
    ]
    return [volume] if any(_to_and_fro(each.pieces) for each in own) else own


def _to_and_fro(pieces: Sequence[Piece]) -> list[str]:
    order = np.argsort(_depths(pieces), kind="stable")
    return interleaved([pieces[int(k)].values for k in order], BLOCKWISE)


# --- together -------------------------------------------------------------------------------------------------


def _mark_incomplete(volumes: Sequence[Volume]) -> None:
    """Points of time that have fewer slices than others of the same kind are marked."""
    kinds: dict[tuple[object, ...], list[Volume]] = defaultdict(list)
    for volume in volumes:
        if any(key in volume.values for key in INCOMPLETE):
            kinds[tuple(sorted((k, str(v)) for k, v in volume.values.items() if k not in INCOMPLETE))].append(volume)
    for alike in kinds.values():
        most = max(len(volume.pieces) for volume in alike)
        for volume in alike:
            volume.missing = most - len(volume.pieces)


ORDER = (
    "study", "frame-of-reference", "stack", "series", PLACE, SHAPE, IN_PLANE, "acquisition", "echo", "echo-time", "t",
    "t-index", TIME, "trigger", "frame-time", "phase", "delay", "b", "gradient", "inversion", "flip", "type", "type-end",
    "component", "kind", "kvp", "kernel", "contrast", "sequence", "dimensions", "photometric", "corrected", "modality",
    "sop-class", "dose-type", "dose-units", "summation", "dose",
)  # fmt: skip
"""Keys, in the order by which volumes are sorted and named: of two volumes the first has the lesser echo, time, b-value."""


def order_of(volume: Volume) -> list[tuple[int, float, str]]:
    """The sort key of a volume: images before what was computed of them (an original type, magnitudes), then by ORDER: what
    is not stated before what is, numbers by size."""
    original = str(volume.values.get("type", "ORIGINAL")).startswith("ORIGINAL")
    magnitude = volume.values.get("component", "MAGNITUDE") in ("MAGNITUDE", "MIXED")
    first = (int(not original), float(not magnitude), "")
    return [first, *(_order(volume.values.get(key)) for key in ORDER)]


def _order(value: Text | None) -> tuple[int, float, str]:
    if value is None:
        return (0, 0.0, "")
    return (2, 0.0, value) if isinstance(value, str) else (1, float(value), "")


def telling(volumes: Sequence[Volume]) -> list[str]:
    """The keys that volumes are named by: in ORDER, each that tells some apart that those before it do not."""
    keys: list[str] = []
    names_apart = 1
    for key in ORDER:
        count = len({tuple(volume.values.get(each) for each in (*keys, key)) for volume in volumes})
        if count > names_apart:
            keys, names_apart = [*keys, key], count
    return keys


def difference(volumes: Sequence[Volume]) -> str:
    """What the volumes of a series differ in, for a message."""
    return ", ".join(NAMES.get(key) or names_of([key])[0] for key in telling(volumes))
