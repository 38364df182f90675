"""Names: ids of the records of one file, each of its own, that do not change when other records come or go."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from medray.modalities.genomics.variants.alleles import is_record, record_key


@dataclass
class RecordNames:
    """Rows as they come (columns as `vcf.columns` gives them) to the names of their records."""

    _records: Numbered = field(default_factory=lambda: Numbered())
    _others: Numbered = field(default_factory=lambda: Numbered())
    """Lines that are no records have no place in the order."""

    def of(self, rows: list[list[bytes]]) -> tuple[list[str], list[str]]:
        """The rows' `variants.record_key`, and these with ~2, ~3 … for the second and third of the file."""
        keys = list(map(record_key, rows))
        if all(map(is_record, rows)):
            contigs = {row[0] for row in rows}
            positions = [int(row[1]) for row in rows]
            names = self._records.in_order(keys, contigs.pop(), positions) if len(contigs) == 1 else None
            if names is not None:
                return keys, names
        return keys, [
            self._records.of(key, row[0], int(row[1])) if is_record(row) else self._others.of(key, b"", 0)
            for row, key in zip(rows, keys, strict=True)
        ]


@dataclass
class Numbered:
    """Keys as they come to names: KEY, and KEY~2, KEY~3 for its repetitions.

    Of a file in order (contigs one after the other, positions ascending) equal keys stand together, so only those of one
    place are compared, and 8 bytes a record are kept; from where a file is out of order, all of its keys are.
    """

    _place: tuple[bytes, int] = (b"", -1)
    _contigs: set[bytes] = field(default_factory=set)
    _here: set[str] = field(default_factory=set)
    _hashes: array[int] = field(default_factory=lambda: array("q"))
    _all: set[int] | None = None
    _again: dict[str, int] = field(default_factory=dict)

    def of(self, key: str, contig: bytes, position: int) -> str:
        if self._all is None and self._place != (contig, position):
            self._move(contig, position)
        if self._all is None:
            repeated = key in self._here
            self._here.add(key)
            if not repeated:
                self._hashes.append(hash(key))
        else:
            repeated = hash(key) in self._all
            self._all.add(hash(key))
        return self._next(key) if repeated else key

    def _next(self, key: str) -> str:
        count = self._again[key] = self._again.get(key, 1) + 1
        return f"{key}~{count}"

    def in_order(self, keys: list[str], contig: bytes, positions: list[int]) -> list[str] | None:
        """What `of` makes of these keys, where they are in order within one contig and follow what came before."""
        follows = contig not in self._contigs or (contig == self._place[0] and positions[0] > self._place[1])
        if self._all is not None or not follows or positions != sorted(positions):
            return None
        self._contigs.add(contig)
        self._place = (contig, positions[-1])
        self._here = {key for key, position in zip(keys, positions, strict=True) if position == positions[-1]}
        unseen = set(keys)
        self._hashes.extend(map(hash, unseen))
        if len(unseen) == len(keys):
            return keys
        names = []
        for key in keys:
            names.append(key if key in unseen else self._next(key))
            unseen.discard(key)
        return names

    def _move(self, contig: bytes, position: int) -> None:
        before = self._place
        self._place = (contig, position)
        if contig == before[0] and position > before[1]:
            self._here.clear()
        elif contig not in self._contigs:
            self._contigs.add(contig)
            self._here.clear()
        else:
            self._all = set(self._hashes)
