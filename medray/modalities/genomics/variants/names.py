"""Names: unique ids of the records of one file, which do not change when other records come or go."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from medray.modalities.genomics.variants.alleles import is_record, record_key


@dataclass
class RecordNames:
    """Names of records for rows as they come (columns as `vcf.columns` gives them)."""

    _records: Numbered = field(default_factory=lambda: Numbered())
    _others: Numbered = field(default_factory=lambda: Numbered())
    """For lines that are not records, and so have no position."""

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
    """Names for keys as they come: KEY, and KEY~2, KEY~3 for its repetitions.

    In a file in order (contigs one after the other, positions ascending) equal keys stand together, so only those of one
    position are compared, and 8 bytes a record are kept. Once a file is out of order, all of its keys are compared.
    """

    _last: tuple[bytes, int] = (b"", -1)
    _contigs: set[bytes] = field(default_factory=set[bytes])
    _keys_at_last: set[str] = field(default_factory=set[str])
    _hashes: array[int] = field(default_factory=lambda: array("q"))
    _all_hashes: set[int] | None = None
    _counts: dict[str, int] = field(default_factory=dict[str, int])

    def of(self, key: str, contig: bytes, position: int) -> str:
        """The name of the next key, at this position of this contig."""
        if self._all_hashes is None and self._last != (contig, position):
            self._move(contig, position)
        if self._all_hashes is None:
            repeated = key in self._keys_at_last
            self._keys_at_last.add(key)
            if not repeated:
                self._hashes.append(hash(key))
        else:
            repeated = hash(key) in self._all_hashes
            self._all_hashes.add(hash(key))
        return self._next(key) if repeated else key

    def _next(self, key: str) -> str:
        count = self._counts[key] = self._counts.get(key, 1) + 1
        return f"{key}~{count}"

    def in_order(self, keys: list[str], contig: bytes, positions: list[int]) -> list[str] | None:
        """The names that `of` gives these keys, if they are in order within one contig and follow what came before."""
        follows = contig not in self._contigs or (contig == self._last[0] and positions[0] > self._last[1])
        if self._all_hashes is not None or not follows or positions != sorted(positions):
            return None
        self._contigs.add(contig)
        self._last = (contig, positions[-1])
        self._keys_at_last = {key for key, position in zip(keys, positions, strict=True) if position == positions[-1]}
        unseen = set(keys)
        self._hashes.extend(map(hash, unseen))
        if len(unseen) == len(keys):
            return keys
        names: list[str] = []
        for key in keys:
            names.append(key if key in unseen else self._next(key))
            unseen.discard(key)
        return names

    def _move(self, contig: bytes, position: int) -> None:
        before = self._last
        self._last = (contig, position)
        if contig == before[0] and position > before[1]:
            self._keys_at_last.clear()
        elif contig not in self._contigs:
            self._contigs.add(contig)
            self._keys_at_last.clear()
        else:
            self._all_hashes = set(self._hashes)
