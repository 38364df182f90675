"""Sequences: records and windows as entries. Where they lie in a file, and their bases as codes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from medray.archive.entries import Entry, Part, digest, since_indexed
from medray.datasets.samples import tensor_column, tensor_field
from medray.errors import SampleError
from medray.modalities.genomics.codes import PAD, N, SoftMask, to_codes
from medray.modalities.genomics.formats.source import Source
from medray.modalities.genomics.formats.table import ParquetCells
from medray.modalities.genomics.formats.text import Ranges, blocks
from medray.modalities.genomics.scan import scan, sniff, span, to_plain
from medray.modalities.genomics.spec import GenomicsSpec
from medray.storage.files import File, open_input

LINE_NUMBERS = re.compile(rb"(?:^|\n)[ \t]*\d+(?=\s)")
"""The numbers of GenBank's lines of bases."""
_CLEAR = bytes(range(N))


class Sequences(Source):
    """The source of `entries` = "records" and "windows"."""

    def __init__(self, spec: GenomicsSpec) -> None:
        self.spec = spec
        self._payload = pa.schema([tensor_field("bases", (spec.length,), "uint8", dims="L")])
        self._open: Ranges | ParquetCells | None = None
        self._soft_mask: SoftMask = spec.soft_mask
        self._genbank = False

    @property
    def payload(self) -> pa.Schema:
        """`bases` (L) uint8: codes, PAD at the right."""
        return self._payload

    def scan(self, file: File, root: str) -> Iterator[Part]:
        """The parts of one file: see `scan.py`."""
        return scan(self.spec, file, root)

    def read(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        """One sample per entry, in their order: `entry`, `sample_id` "0" ("" where failed), `reason`, `detail`, `bases` (L) uint8 codes.

        The file last read stays open for the next entries.
        """
        bases = np.full((len(entries), self.spec.length), PAD, np.uint8)
        problems: list[SampleError | None] = [None] * len(entries)
        for row, entry in enumerate(entries):
            try:
                codes = self._codes(entry)
                bases[row, : len(codes)] = codes
            except SampleError as error:
                problems[row] = error
            except FileNotFoundError:
                problems[row] = SampleError("missing_file", "the file is no longer there")
            except OSError as error:
                problems[row] = SampleError("unreadable", error.strerror or type(error).__name__)
        valid = np.array([problem is None for problem in problems], bool)
        return pa.RecordBatch.from_arrays(
            [
                pa.array(np.arange(len(entries), dtype=np.int32)),
                pa.array(np.where(valid, "0", ""), pa.string()),
                pa.array([None if p is None else p.reason for p in problems], pa.string()),
                pa.array([None if p is None else p.detail for p in problems], pa.string()),
                tensor_column(bases, valid),
            ],
            names=["entry", "sample_id", "reason", "detail", "bases"],
        )

    def _codes(self, entry: Entry) -> np.ndarray:
        """(≤ L,) uint8: codes of the middle of the entry's bases. Raises SampleError and OSError."""
        part = entry.parts[0]
        try:
            text = self._text(part.uri, part.locator)
        except SampleError as error:
            raise since_indexed(error) from None
        codes = to_codes(LINE_NUMBERS.sub(b"", text) if self._genbank else text, self._soft_mask)
        if digest(codes) != entry.fingerprint:
            raise SampleError("changed", "its bases differ from when it was indexed")
        surplus = max(0, len(codes) - self.spec.length)
        codes = codes[surplus // 2 : surplus // 2 + self.spec.length]
        if self.spec.ambiguous == "refuse" and (unclear := len(to_plain(codes).translate(None, _CLEAR))):
            raise SampleError("ambiguous_bases", f"{unclear} of {len(codes)} bases are not A, C, G or T")
        return np.frombuffer(codes, np.uint8)

    def _text(self, uri: str, locator: str) -> bytes:
        if self._open is None or self._open.uri != uri:
            if self._open is not None:
                self._open.close()
                self._open = None
            self._open = self._opened(uri)
            self._genbank = self._is_genbank(uri)
            self._soft_mask = "ignore" if self._genbank else self.spec.soft_mask  # in GenBank, lower case means nothing
        start, end = span(locator)
        return self._open.read(start, end)

    def _opened(self, uri: str) -> Ranges | ParquetCells:
        with open_input(uri) as stream:
            parquet = stream.read(4) == b"PAR1"
        return ParquetCells(self.spec, uri) if parquet else Ranges(uri)

    def _is_genbank(self, uri: str) -> bool:
        first = None if isinstance(self._open, ParquetCells) else next(blocks(uri), None)
        return first is not None and sniff(first.text) == "genbank"
