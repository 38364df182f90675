"""Facts of the slices of one file, as a part of an index keeps them: where they lie, and what tells volumes apart.

Frames that are of one volume by the file's own account share an entry of BLOCKS, so that thousands of frames take few
bytes. Where the file is one volume, as most are, what a block would say stands in the facts themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from medray.archive.eligibility import Fact
from medray.modalities.imaging.formats.dicom.assembly import TIME, Piece, Volume, assemble
from medray.modalities.imaging.formats.dicom.identity import Values
from medray.modalities.imaging.formats.dicom.slices import Plane, Slice, make_plane
from medray.modalities.imaging.frames_text import frames_of, frames_text

POSITIONS, LINE, DIRECTIONS, BETWEEN = "positions", "line", "directions", "between_mm"
"""Names of facts that only parts have, from which the geometry of the entry is computed: where frames start (x y z of
each, LPS, mm; or the first, the step and the count where they lie on a line); along and down of a frame;
SpacingBetweenSlices."""
VOLUME, BLOCKS, FRAMES = "volume", "blocks", "frames"
"""What slices state of the volume that they belong to (`identity`); the blocks of a file that holds several volumes, each
with what it does not share with the others; which frames are of a block."""
OWN = "own"
"""Facts of the file in which the frames of a block differ from the whole; None: what these do not state."""
GRID = ("rows", "columns", "spacing_mm")
KNOWN = {"modality": "Modality", "photometric": "PhotometricInterpretation", "sop-class": "SOPClassUID"}
"""What a volume has one value of and every file states as a fact anyway."""
THICKNESSES = "thicknesses_mm"
"""SliceThickness of each slice of a file in which it is not the same for all; 0: not stated."""
CONCATENATION = "concatenation"
"""Of a file that is a part of a larger object: `concatenation.Piece`."""
INNER = frozenset((CONCATENATION, THICKNESSES, POSITIONS, LINE, DIRECTIONS, BETWEEN, VOLUME, BLOCKS))
"""Facts that are of parts alone."""


def of_slices(slices: Sequence[Slice], thickness_known: bool) -> dict[str, Fact]:
    """Facts of the slices of one file, in its order. `thickness_known`: the file states SliceThickness for all."""
    pieces = [Piece(0, each.number, each.plane, each.values) for each in slices]
    volumes = assemble(pieces) if len(pieces) > 1 else [Volume(pieces)]
    blocks = [_block(volume, thickness_known) for volume in volumes]
    if len(blocks) == 1:
        return {name: value for name, value in blocks[0].items() if name != FRAMES}
    shared = {
        name: value for name, value in blocks[0].items() if name not in (FRAMES, VOLUME) and _same(name, value, blocks)
    }
    values: dict[str, Fact] = {
        key: value
        for key, value in _values(blocks[0]).items()
        if all(_values(block).get(key) == value for block in blocks)
    }
    own = [
        {
            **{name: value for name, value in block.items() if name not in shared},
            VOLUME: {key: value for key, value in _values(block).items() if key not in values},
        }
        for block in blocks
    ]
    return {**shared, VOLUME: cast("Any", values), BLOCKS: cast("list[Any]", own)}


def _same(name: str, value: Fact, blocks: Iterable[Mapping[str, Fact]]) -> bool:
    return all(block.get(name) == value for block in blocks)


def _values(block: Mapping[str, Fact]) -> dict[str, Any]:
    return cast("dict[str, Any]", block[VOLUME])


def _block(volume: Volume, thickness_known: bool) -> dict[str, Fact]:
    """Facts of slices that are one volume by their own file's account."""
    pieces = sorted(volume.pieces, key=lambda piece: piece.number)
    facts = placed(pieces)
    thickness = pieces[0].plane.thickness
    if thickness and not thickness_known and THICKNESSES not in facts:
        facts["SliceThickness"] = round(thickness, 6)
    common = {
        key: value
        for key, value in pieces[0].values.items()
        if key not in KNOWN
        and all(piece.values is pieces[0].values or piece.values.get(key) == value for piece in pieces)
    }
    if TIME in volume.values:
        common[TIME] = volume.values[TIME]
    return {**facts, VOLUME: cast("Any", common), FRAMES: frames_text([piece.number for piece in pieces])}


def placed(pieces: Sequence[Piece]) -> dict[str, Fact]:
    """Facts of slices of one orientation, shape and spacing: their grid, and where each begins."""
    first = pieces[0].plane
    facts: dict[str, Fact] = {
        "rows": first.shape[0],
        "columns": first.shape[1],
        "spacing_mm": [round(each, 6) for each in first.spacing],
        DIRECTIONS: [round(float(number), 9) for number in (*first.along, *first.down)],
    }
    thicknesses = [round(piece.plane.thickness or 0.0, 6) for piece in pieces]
    if len(set(thicknesses)) > 1:
        facts[THICKNESSES] = [*thicknesses]
    if first.between:
        facts[BETWEEN] = round(first.between, 6)
    return facts | positions(np.array([piece.plane.position for piece in pieces]))


def positions(starts: np.ndarray) -> dict[str, Fact]:
    """(F, 3) mm as POSITIONS, or as LINE where that is shorter and says the same within a micrometre."""
    step = (starts[-1] - starts[0]) / max(1, len(starts) - 1)
    if len(starts) > 3 and np.abs(starts - starts[0] - np.arange(len(starts))[:, None] * step).max() < 1e-3:
        return {LINE: [*(round(float(number), 7) for number in (*starts[0], *step)), len(starts)]}
    return {POSITIONS: [round(float(number), 4) for number in starts.reshape(-1)]}


# --- and back -------------------------------------------------------------------------------------------------


def has_places(facts: Mapping[str, Fact]) -> bool:
    """Whether the part says where its slices lie."""
    return BLOCKS in facts or (DIRECTIONS in facts and "spacing_mm" in facts)


def pieces_of(part: int, facts: Mapping[str, Fact]) -> list[Piece]:
    """The slices of a part that `has_places`."""
    blocks = cast("list[dict[str, Any]] | None", facts.get(BLOCKS))
    known: Values = {key: str(facts[name]) for key, name in KNOWN.items() if name in facts}
    if blocks is None:
        values = {**known, **cast("Values", facts.get(VOLUME) or {})}
        return [Piece(part, number, plane, values) for number, plane in enumerate(planes_of(facts))]
    pieces: list[Piece] = []
    for block in blocks:
        values = {**known, **cast("dict[str, Any]", facts[VOLUME]), **block[VOLUME]}
        numbers = frames_of(str(block[FRAMES]))
        planes = planes_of({**facts, **block})
        pieces += [Piece(part, number, plane, values) for number, plane in zip(numbers, planes, strict=True)]
    return sorted(pieces, key=lambda piece: piece.number)


def selected(facts: Mapping[str, Fact], pieces: Sequence[Piece]) -> dict[str, Fact]:
    """The facts of a part as if it held these of its slices alone, which are of one volume."""
    values = pieces[0].values
    own = {name: value for name, value in facts.items() if name not in INNER}
    ends = ("type", "type-end") if facts.get("Modality") == "CT" else ("type",)  # `identity` splits that of CT
    own |= _own(facts, pieces)
    own = {name: value for name, value in own.items() if value is not None}
    types = [str(values[key]) for key in ends if key in values]
    if BLOCKS in facts and types and "\\" in types[0]:
        own["ImageType"] = cast("list[Any]", "\\".join(types).split("\\"))
    places = placed(pieces)
    thickness = pieces[0].plane.thickness
    if THICKNESSES in places:
        own["SliceThickness"] = sorted({round(piece.plane.thickness or 0.0, 6) for piece in pieces})
    elif thickness:
        own["SliceThickness"] = round(thickness, 6)
    return {
        **own,
        **places,
        VOLUME: cast("Any", {key: value for key, value in values.items() if key not in KNOWN}),
    }


def _own(facts: Mapping[str, Fact], pieces: Sequence[Piece]) -> dict[str, Fact]:
    """What the blocks of these slices say otherwise than their file; of several blocks what they agree on."""
    numbers = {piece.number for piece in pieces}
    blocks = cast("list[dict[str, Any]]", facts.get(BLOCKS) or [])
    stated = [
        cast("dict[str, Fact]", block.get(OWN) or {})
        for block in blocks
        if not numbers.isdisjoint(frames_of(str(block[FRAMES])))
    ]
    if not stated:
        return {}
    first, *others = stated
    return {
        name: value for name, value in first.items() if all(name in other and other[name] == value for other in others)
    }


def planes_of(part: Mapping[str, Fact]) -> Iterator[Plane]:
    """The place of each slice of a part, or of a block."""
    thickness, between, (high, wide) = part.get("SliceThickness"), part.get(BETWEEN), _numbers(part, "spacing_mm")
    if LINE in part:
        line = _numbers(part, LINE)
        first, step, count = np.array(line[:3]), np.array(line[3:6]), int(line[6])
        starts = first + np.arange(count)[:, None] * step
    else:
        starts = np.reshape(_numbers(part, POSITIONS), (-1, 3))
    each_thickness = _numbers(part, THICKNESSES) if THICKNESSES in part else [None] * len(starts)
    for start, own_thickness in zip(starts, each_thickness, strict=True):
        yield make_plane(
            start,
            _numbers(part, DIRECTIONS),
            (high, wide),
            (_whole(part, "rows"), _whole(part, "columns")),
            thickness=own_thickness or (thickness if isinstance(thickness, (int, float)) else None),
            between=between if isinstance(between, (int, float)) else None,
        )


def _numbers(part: Mapping[str, Fact], name: str) -> list[float]:
    """A fact that `of_slices` writes as a list of numbers."""
    fact = part[name]
    assert isinstance(fact, list)
    return fact


def _whole(part: Mapping[str, Fact], name: str) -> int:
    """A fact that `of_slices` writes as a whole number."""
    fact = part[name]
    assert isinstance(fact, int)
    return fact
