"""VCF as a stream: the header, and records with their place in the file.

Plain, gzip and bgzip files are told apart by content; offsets are those of the decompressed text, so they are the
same however the file is compressed. Source of the format: VCF 4.3 specification.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import SampleError
from medray.modalities.genomics.formats.text import LONGEST_LINE, Chunk

HEADER_BYTES = 1 << 28
"""Bytes of the longest header that is read."""


class RecordLines(NamedTuple):
    """Record lines of one file, one after the other."""

    edges: list[int]
    """Offsets in the text: a line is [edges[i], edges[i + 1]), its line end included."""
    rows: list[list[bytes]]
    """Their columns."""

    def locators(self) -> list[str]:
        """One text per line; sorted as text they are in the order of the file."""
        offsets = [f"{edge:015d}" for edge in self.edges]
        return [f"{start}-{end}" for start, end in pairwise(offsets)]


def spans(locators: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 starts and (N,) int64 ends of N locators."""
    ends = (pc.utf8_slice_codeunits(locators, start, start + 15) for start in (0, 16))
    start, end = (pc.cast(each, pa.int64()).to_numpy(zero_copy_only=False) for each in ends)
    return start, end


@dataclass(frozen=True)
class VcfHeader:
    """The lines above the records, as they stand in the file."""

    text: bytes
    """All of it, the #CHROM line and its line end included."""
    version: str
    """VCFv4.x"""
    contigs: dict[str, int | None]
    """Name to length, where the header says it."""
    samples: int
    """How many genotype columns; their names are never kept."""


# --- the header -------------------------------------------------------------------------------------------------


def split_header(pieces: Iterator[Chunk]) -> tuple[VcfHeader, Iterator[Chunk]]:
    """The header, and the chunks from the first record on. Raises SampleError where the text is no VCF 4."""
    head = b""
    for offset, text in pieces:
        before, head = len(head), head + text
        if head.startswith(b"BCF\2"):
            raise SampleError("unsupported", "BCF: bcftools view -Oz makes VCF of it")
        if not head.startswith(b"##fileformat="[: len(head)]):
            raise SampleError("unrecognised_format", "expected ##fileformat=VCFv4 in the first line")
        line = head.rfind(b"\n", 0, before) + 1
        if match := re.search(rb"^[^#]", head[line:], re.MULTILINE):
            end = line + match.start()  # in this chunk, or an earlier round would have found it
            return parse_header(head[:end]), _again(Chunk(offset + end - before, head[end:]), pieces)
        if len(head) > HEADER_BYTES:
            raise SampleError("unsupported", f"a header of more than {HEADER_BYTES} bytes")
    if not head:
        raise SampleError("empty_file")
    return parse_header(head), iter(())


def _again(first: Chunk, others: Iterator[Chunk]) -> Iterator[Chunk]:
    yield first
    yield from others


def parse_header(text: bytes) -> VcfHeader:
    """Raises SampleError: `not_text`, `unrecognised_format`, `unsupported` (a version before 4), `corrupt`."""
    try:
        lines = text.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SampleError("not_text", f"byte {error.start} of the header; VCF is UTF-8: iconv -f LATIN1") from None
    version = lines[0].removeprefix("##fileformat=").strip() if lines else ""
    if not lines or not lines[0].startswith("##fileformat="):
        raise SampleError("unrecognised_format", "expected ##fileformat=VCFv4 in the first line")
    if not re.fullmatch(r"VCFv4\.\d+", version):
        raise SampleError("unsupported", "expected ##fileformat=VCFv4.x: bcftools view converts")
    columns = lines[-1].split("\t")
    if columns[:8] != ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO"]:
        raise SampleError("corrupt", "the header does not end with the line #CHROM POS ID REF ALT QUAL FILTER INFO")
    contigs: dict[str, int | None] = {}
    for line in lines:
        if line.startswith("##contig=") and (name := re.search(r"[<,]ID=([^,>]+)", line)):
            length = re.search(r"[<,]length=(\d+)", line)
            contigs[name[1]] = int(length[1]) if length else None
    return VcfHeader(text, version, contigs, max(0, len(columns) - 9))


# --- records ----------------------------------------------------------------------------------------------------


def record_lines(pieces: Iterator[Chunk], most: int) -> Iterator[RecordLines]:
    """The lines below the header, up to `most` at once, without blank ones at the end. Lines before damage
    are yielded before the damage raises. Raises SampleError `corrupt` where a line does not end."""
    pending = RecordLines([], [])
    try:
        for lines in _whole_lines(pieces):
            pending = _joined(pending, lines)
            whole = len(pending.rows) - len(pending.rows) % most
            for start in range(0, whole, most):
                yield _part(pending, start, start + most)
            pending = _part(pending, whole, len(pending.rows))
    except SampleError:
        if pending.rows:
            yield pending
        raise
    if pending.rows:
        yield pending


def _whole_lines(pieces: Iterator[Chunk]) -> Iterator[RecordLines]:
    """The lines in groups as they are read. A group never ends with a blank line: that stays with what follows it."""
    rest, start = b"", 0
    for offset, text in pieces:
        start = start if rest else offset
        if len(rest) > LONGEST_LINE and b"\n" not in text:
            raise SampleError("corrupt", f"a line of more than {LONGEST_LINE} bytes")
        stop = text.rfind(b"\n") + 1
        if stop == 0 or not text[:stop].rsplit(b"\n", 2)[-2].strip():
            rest += text
            continue
        yield _lines(start, rest + text[:stop])
        rest, start = text[stop:], offset + stop
    if rest.strip():
        yield _lines(start, rest)


def _lines(start: int, text: bytes) -> RecordLines:
    """The lines of a text that begins with one, without blank ones at its end."""
    lines = text.split(b"\n")
    edges = (np.cumsum([start, *map(len, lines)]) + np.arange(len(lines) + 1)).tolist()
    edges[-1] = start + len(text)  # the last line of a file may have no line end
    while not lines[-1].strip():
        lines.pop()
        edges.pop()
    return RecordLines(edges, list(map(columns, lines)))


def _joined(one: RecordLines, two: RecordLines) -> RecordLines:
    return RecordLines([*one.edges[:-1], *two.edges], one.rows + two.rows) if one.rows else two


def _part(lines: RecordLines, start: int, stop: int) -> RecordLines:
    return RecordLines(lines.edges[start : stop + 1], lines.rows[start:stop])


def columns(line: bytes) -> list[bytes]:
    """The 8 columns that VCF fixes; fewer in a bad line. Genotypes are left out."""
    row = line.split(b"\t", 8)
    if len(row) < 8:
        row[-1] = row[-1].rstrip()
    else:
        del row[8:]
    return row
