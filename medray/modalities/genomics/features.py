"""Features of a GenBank record as numbers: where genes lie, where a record may be cut, what a window overlaps.

Positions are 0-based, half-open. A location is its parts: exons of a join, both sides of a circle's origin.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from Bio.SeqFeature import SeqFeature
    from Bio.SeqRecord import SeqRecord

Interval = tuple[int, int]

GENES = frozenset(
    {"gene", "CDS", "mRNA", "tRNA", "rRNA", "ncRNA", "tmRNA", "misc_RNA", "precursor_RNA", "exon", "operon"}
)
"""Feature types that belong to a gene (INSDC feature table)."""


@dataclass(frozen=True)
class Features:
    """What of a record's annotation is used."""

    bases: int = 0
    """Length of the record, as its LOCUS line has it; 0 where it has none."""
    genes: tuple[tuple[str, tuple[Interval, ...]], ...] = ()
    """(name, intervals) of everything that belongs to a gene, introns included."""
    parts: dict[str, list[Interval]] = field(default_factory=dict)
    """Feature type → the parts of all its locations."""


def features(record: SeqRecord, bases: int) -> Features:
    """Genes and parts of a Biopython record of `bases` bases; features that lie in another record are left out."""
    genes: list[tuple[str, tuple[Interval, ...]]] = []
    parts: dict[str, list[Interval]] = {}
    transfer = {_gene_name(each) for each in record.features if each.type == "tRNA"}
    for number, each in enumerate(record.features):
        located = intervals(each)
        if not located:
            continue
        parts.setdefault(each.type, []).extend(located)
        if each.type in GENES:
            name, extent = _gene_name(each) or f"feature {number}", _extent(each, located, bases)
            if name in transfer:  # tRNAs of one amino acid share a name; a copy has the same size too
                name = f"{name} {sum(end - start for start, end in extent)}"
            genes.append((name, extent))
    return Features(bases, tuple(genes), parts)


def intervals(feature: SeqFeature) -> list[Interval]:
    """The parts of a location in this record, ascending; fuzzy ends at their stated position, unknown ends left out."""
    if feature.location is None:
        return []
    here = [(part.start, part.end) for part in feature.location.parts if part.ref is None]
    found = [(int(start), int(end)) for start, end in here if isinstance(start, int) and isinstance(end, int)]
    return sorted((start, end) for start, end in found if end > start)


def _extent(feature: SeqFeature, located: list[Interval], bases: int) -> tuple[Interval, ...]:
    """Exons with the introns between them; the parts alone where they are far apart on purpose."""
    around_origin = located[0][0] == 0 and located[-1][1] == bases and len(located) > 1
    if around_origin or "trans_splicing" in feature.qualifiers:
        return tuple(located)
    return ((located[0][0], max(end for _, end in located)),)


def _gene_name(feature: SeqFeature) -> str:
    for name in ("gene", "locus_tag"):
        if feature.qualifiers.get(name):
            return feature.qualifiers[name][0].lower()
    return ""


def merged(found: Iterable[Interval]) -> list[Interval]:
    """Overlapping intervals joined, ascending; touching ones stay two."""
    joined: list[Interval] = []
    for start, end in sorted(found):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


class Coverage:
    """How many bases of a window lie in a set of intervals."""

    def __init__(self, found: Iterable[Interval]) -> None:
        joined = np.array(merged(found), np.int64).reshape(-1, 2)
        self._edges = joined.reshape(-1)
        covered = np.repeat(np.cumsum(joined[:, 1] - joined[:, 0]), 2)
        self._before = covered - np.stack([joined[:, 1] - joined[:, 0], np.zeros(len(joined), np.int64)], 1).reshape(-1)

    def bases(self, start: int, end: int) -> int:
        """Of [start, end)."""
        if len(self._edges) == 0:
            return 0
        below = np.interp([start, end], self._edges, self._before)
        return round(below[1] - below[0])


def cuts(features: Features, segment_bases: int) -> list[int]:
    """Where a record is cut into segments of at least `segment_bases`: as early as no gene lies across the place."""
    genes = merged(interval for _, located in features.genes for interval in located)
    starts = np.array([start for start, _ in genes], np.int64)
    found: list[int] = []
    place = segment_bases
    while True:
        over = int(np.searchsorted(starts, place, side="left")) - 1  # the last gene that begins before the place
        if over >= 0 and genes[over][1] > place:
            place = genes[over][1]
        if place + segment_bases > features.bases:
            return found
        found.append(place)
        place += segment_bases


def groups(features: Features, cut: list[int]) -> list[int]:
    """For each segment the number of the first segment it shares a gene with, directly or by way of others.

    A gene that is trans-spliced, lies around the origin of a circle, or stands in the record more than once by name
    (inverted repeats) is in several segments, which must not be divided by a split.
    """
    group = list(range(len(cut) + 1))

    def root(segment: int) -> int:
        while group[segment] != segment:
            segment = group[segment]
        return segment

    first_of: dict[str, int] = {}
    for name, located in features.genes:
        for start, end in located:
            for segment in range(*np.searchsorted(cut, [start, end - 1], side="right") + np.array([0, 1])):
                one, other = root(first_of.setdefault(name, int(segment))), root(int(segment))
                group[max(one, other)] = min(one, other)
    return [root(segment) for segment in range(len(group))]
