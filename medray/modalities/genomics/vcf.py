"""VCF as a stream: the header, and records with their place in the file.

Plain, gzip and bgzip files are told by content; offsets are those of the decompressed text, so that places are the
same however the file is compressed. Source of the format: VCF 4.3 specification.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from medray.errors import SampleError
from medray.modalities.genomics.text import Chunk, lines

HEADER_BYTES = 1 << 28
"""A header longer than this is no header."""


class Line(NamedTuple):
    """One record line of a file."""

    start: int
    end: int
    """Offsets in the text, line end included: [start, end)."""
    columns: list[bytes]

    @property
    def locator(self) -> str:
        """Text whose order is the order in the file."""
        return f"{self.start:015d}-{self.end:015d}"


def span(locator: str) -> tuple[int, int]:
    """(start, end) of a locator."""
    start, _, end = locator.partition("-")
    return int(start), int(end)


@dataclass(frozen=True)
class Header:
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


def split_header(pieces: Iterator[Chunk]) -> tuple[Header, Iterator[Chunk]]:
    """The header, and the chunks from the first record on. Raises SampleError where the text is no VCF 4."""
    held = b""
    for offset, text in pieces:
        before, held = len(held), held + text
        if held.startswith(b"BCF\2"):
            raise SampleError("unsupported", "BCF: bcftools view -Oz makes VCF of it")
        if not held.startswith(b"##fileformat="[: len(held)]):
            raise SampleError("unrecognised_format", "expected ##fileformat=VCFv4 in the first line")
        line = held.rfind(b"\n", 0, before) + 1
        if found := re.search(rb"^[^#]", held[line:], re.MULTILINE):
            end = line + found.start()  # in this chunk, or an earlier round had found it
            return parse_header(held[:end]), _again(Chunk(offset + end - before, held[end:]), pieces)
        if len(held) > HEADER_BYTES:
            raise SampleError("unsupported", f"a header of more than {HEADER_BYTES} bytes")
    if not held:
        raise SampleError("empty_file")
    return parse_header(held), iter(())


def _again(first: Chunk, others: Iterator[Chunk]) -> Iterator[Chunk]:
    yield first
    yield from others


def parse_header(text: bytes) -> Header:
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
    contigs = {}
    for line in lines:
        if line.startswith("##contig=") and (name := re.search(r"[<,]ID=([^,>]+)", line)):
            length = re.search(r"[<,]length=(\d+)", line)
            contigs[name[1]] = int(length[1]) if length else None
    return Header(text, version, contigs, max(0, len(columns) - 9))


# --- records ----------------------------------------------------------------------------------------------------


def record_lines(pieces: Iterator[Chunk]) -> Iterator[Line]:
    """The lines below the header, without blank ones at the end. Raises SampleError `corrupt` where a line does not end."""
    blank: list[Line] = []
    for start, line in lines(pieces):
        found = Line(start, start + len(line), columns(line))
        if not line.strip():
            blank.append(found)
            continue
        yield from blank
        blank.clear()
        yield found


def columns(line: bytes) -> list[bytes]:
    """The 8 columns that VCF fixes; fewer in a bad line. Genotypes are left out."""
    row = line.split(b"\t", 8)
    if len(row) <= 8:
        row[-1] = row[-1].rstrip(b"\r\n")
    return row[:8]


def batches(found: Iterator[Line], size: int) -> Iterator[list[Line]]:
    """Up to `size` lines at once. What stands before damage is given before the damage raises."""
    held: list[Line] = []
    try:
        for line in found:
            held.append(line)
            if len(held) == size:
                yield held
                held = []
    except SampleError:
        if held:
            yield held
        raise
    if held:
        yield held
