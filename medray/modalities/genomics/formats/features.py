"""Features of a GenBank record as numbers: where genes lie, where a record may be cut, what a window overlaps.

Positions are 0-based, half-open. A location is its parts: exons of a join, both sides of a circle's origin. What lies
in another record (a remote reference) is not part of this one. INSDC feature table, section 3.4 has the locations.
"""

# Biopython gives some of its values no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from Bio.SeqFeature import Position, SeqFeature
    from Bio.SeqRecord import SeqRecord

Interval = tuple[int, int]

GENES = frozenset(
    {"gene", "CDS", "mRNA", "tRNA", "rRNA", "ncRNA", "tmRNA", "misc_RNA", "precursor_RNA", "exon", "operon"}
)
"""Feature types that belong to a gene (INSDC feature table)."""


ANYWHERE = 1 << 62
"""Length assumed for a record that does not state its own."""


class LocationPart(NamedTuple):
    """A part of a location, as certain as the record is about it."""

    certain: Interval
    """Bases that lie in it; empty where end <= start."""
    possible: Interval
    """Bases that may lie in it, the certain ones among them."""
    open_left: bool = False
    """It begins somewhere before `possible` (<5..10)."""
    open_right: bool = False
    """It ends somewhere after `possible` (5..>10)."""

    @property
    def vague(self) -> bool:
        return self.certain != self.possible or self.open_left or self.open_right


@dataclass(frozen=True)
class Features:
    """The parts of a record's annotation that are used."""

    bases: int = 0
    """Length of the record, as its LOCUS line has it; 0 where it has none."""
    genes: tuple[tuple[str, tuple[Interval, ...]], ...] = ()
    """(name, intervals) of everything that belongs to a gene, introns included."""
    parts: dict[str, list[LocationPart]] = field(default_factory=dict[str, list[LocationPart]])
    """Feature type → the parts of all its locations."""


def features(record: SeqRecord, bases: int) -> Features:
    """Genes and parts of a Biopython record of `bases` bases; features that lie in another record are left out."""
    genes: list[tuple[str, tuple[Interval, ...]]] = []
    parts: dict[str, list[LocationPart]] = {}
    transfer = {_gene_name(each) for each in record.features if each.type == "tRNA"}
    for number, each in enumerate(record.features):
        feature_parts = placed(each, bases)
        parts.setdefault(each.type, []).extend(feature_parts)
        located = sorted(part.possible for part in feature_parts if part.possible[1] > part.possible[0])
        if not located:
            continue
        if each.type in GENES:
            name, extent = _gene_name(each) or f"feature {number}", _extent(each, located, bases)
            if name in transfer:  # tRNAs of one amino acid share a name; a copy has the same size too
                name = f"{name} {sum(end - start for start, end in extent)}"
            genes.append((name, extent))
    return Features(bases, tuple(genes), parts)


def placed(feature: SeqFeature, bases: int) -> list[LocationPart]:
    """The parts of a location in a record of `bases` bases (0: unknown).

    A location that Biopython cannot read, or that reaches beyond the record, may be anywhere in it.
    """
    bases = bases or ANYWHERE
    anywhere = LocationPart((0, 0), (0, bases))
    if feature.location is None:
        return [anywhere]
    local_parts = [_part(part.start, part.end, bases) for part in feature.location.parts if part.ref is None]
    inside = all(0 <= part.possible[0] <= part.possible[1] <= bases for part in local_parts)
    return local_parts if inside else [anywhere]


def _part(start: Position, end: Position, bases: int) -> LocationPart:
    from Bio.SeqFeature import AfterPosition, BeforePosition, UnknownPosition

    if isinstance(start, UnknownPosition) or isinstance(end, UnknownPosition):
        return LocationPart((0, 0), (0, bases))
    first, latest_first = _bounds(start)
    earliest_last, last = _bounds(end)
    if isinstance(start, AfterPosition):  # >5..10: from somewhere after base 5
        latest_first = last
    if isinstance(end, BeforePosition):  # 5..<10: to somewhere before base 10
        earliest_last = first
    return LocationPart(
        (latest_first, max(latest_first, earliest_last)),
        (first, last),
        isinstance(start, BeforePosition) and first > 0,
        isinstance(end, AfterPosition) and last < bases,
    )


def _bounds(position: Position) -> tuple[int, int]:
    """The first and the last base that a position may mean: (3.5), one-of(3,5); for others both are the stated one."""
    from Bio.SeqFeature import BetweenPosition, OneOfPosition, WithinPosition

    if isinstance(position, (WithinPosition, BetweenPosition)):
        return position._left, position._right  # type: ignore[attr-defined]  # Biopython has no public name for them
    if isinstance(position, OneOfPosition):
        choices = [int(each) for each in position.position_choices]  # type: ignore[attr-defined]  # set in __new__
        return min(choices), max(choices)
    return int(position), int(position)  # type: ignore[call-overload]  # UnknownPosition is handled before


def _extent(feature: SeqFeature, located: list[Interval], bases: int) -> tuple[Interval, ...]:
    """Exons with the introns between them; only the parts themselves where these are meant to lie far apart."""
    around_origin = located[0][0] == 0 and located[-1][1] == bases and len(located) > 1
    if around_origin or "trans_splicing" in feature.qualifiers:
        return tuple(located)
    return ((located[0][0], max(end for _, end in located)),)


def _gene_name(feature: SeqFeature) -> str:
    for name in ("gene", "locus_tag"):
        if feature.qualifiers.get(name):
            return feature.qualifiers[name][0].lower()
    return ""


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Overlapping intervals joined, ascending; touching ones stay two."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if end <= start:
            continue
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


class Coverage:
    """How many bases of a window lie in a set of intervals."""

    def __init__(self, intervals: Iterable[Interval]) -> None:
        joined = np.array(merged(intervals), np.int64).reshape(-1, 2)
        self._edges = joined.reshape(-1)
        covered = np.repeat(np.cumsum(joined[:, 1] - joined[:, 0]), 2)
        self._before = covered - np.stack([joined[:, 1] - joined[:, 0], np.zeros(len(joined), np.int64)], 1).reshape(-1)

    def bases(self, start: int, end: int) -> int:
        """How many bases of [start, end) lie in the intervals."""
        if len(self._edges) == 0:
            return 0
        below = np.interp([start, end], self._edges, self._before)
        return round(below[1] - below[0])


class Overlap:
    """How many bases of a window lie in the parts of a type of feature: at least, and at most where a location is vague.

    A part that begins somewhere before its stated base, or ends somewhere after it, may cover any base of the windows
    that hold that base or its neighbour. It is taken not to reach further windows: INSDC says only "somewhere before".
    """

    def __init__(self, parts: Sequence[LocationPart]) -> None:
        self._certain = Coverage(part.certain for part in parts)
        self._vague = any(part.vague for part in parts)
        self._possible = Coverage(part.possible for part in parts) if self._vague else self._certain
        self._ends = [part for part in parts if part.open_left or part.open_right]

    def bases(self, start: int, end: int) -> tuple[int, int]:
        """(at least, at most) how many bases of [start, end) lie in the parts."""
        least = self._certain.bases(start, end)
        if not self._vague:
            return least, least
        most = self._possible.bases(start, end)
        for (first, last), left, right in ((part.possible, part.open_left, part.open_right) for part in self._ends):
            most += max(0, first - start) if left and first <= end else 0
            most += max(0, end - last) if right and last >= start else 0
        return least, min(most, end - start)


def cuts(features: Features, segment_bases: int) -> list[int]:
    """Where a record is cut into segments of at least `segment_bases`: each time as early as possible outside of genes."""
    genes = merged(interval for _, located in features.genes for interval in located)
    starts = np.array([start for start, _ in genes], np.int64)
    positions: list[int] = []
    position = segment_bases
    while True:
        over = int(np.searchsorted(starts, position, side="left")) - 1  # the last gene that begins before it
        if over >= 0 and genes[over][1] > position:
            position = genes[over][1]
        if position + segment_bases > features.bases:
            return positions
        positions.append(position)
        position += segment_bases


def groups(features: Features, positions: list[int]) -> list[int]:
    """For each segment the number of the first segment that it shares a gene with, directly or through others.

    A gene that is trans-spliced, lies around the origin of a circle, or stands in the record more than once by name
    (inverted repeats) lies in several segments, which a split must not divide.
    """
    group = list(range(len(positions) + 1))

    def root(segment: int) -> int:
        while group[segment] != segment:
            segment = group[segment]
        return segment

    first_of: dict[str, int] = {}
    for name, located in features.genes:
        for start, end in located:
            for segment in range(*np.searchsorted(positions, [start, end - 1], side="right") + np.array([0, 1])):
                one, other = root(first_of.setdefault(name, int(segment))), root(int(segment))
                group[max(one, other)] = min(one, other)
    return [root(segment) for segment in range(len(group))]
