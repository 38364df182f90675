"""VCF as a stream: the header, blocks of records with their place in the file, and the first columns of a block.

Plain, gzip and bgzip files are told by content; offsets are those of the decompressed text, so that blocks are the
same however the file is compressed. Source of the format: VCF 4.3 specification.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash

from medray.errors import SampleError
from medray.modalities.genomics.text import Chunk

HEADER_BYTES = 1 << 28
"""A header longer than this is no header."""
BLOCK_BYTES = 1 << 26
"""A block is cut short where its lines are so wide (thousands of genotypes) that it would not be bounded else."""


class Block(NamedTuple):
    """Consecutive record lines of one file."""

    first: int
    """0-based number of the first record line in the file."""
    start: int
    end: int
    """Offsets in the text: [start, end)."""

    @property
    def locator(self) -> str:
        """Text whose order is the order in the file."""
        return f"{self.first:012d}:{self.start:015d}-{self.end:015d}"

    @classmethod
    def of(cls, locator: str) -> Block:
        return cls(*map(int, re.split("[:-]", locator)))


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


# --- blocks -----------------------------------------------------------------------------------------------------


def cut(pieces: Iterator[Chunk], records: int, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[Block, bytes]]:
    """Blocks of `records` lines, or of about `block_bytes` where lines are wide, each with xxh3_64 of its text."""
    first = lines = size = end = 0
    start, whole, blank = None, xxhash.xxh3_64(), True
    for offset, text in pieces:
        start, end = offset if start is None else start, offset + len(text)
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 10) + 1
        begin = counted = 0
        while True:
            wanted = counted + records - lines
            if wanted > len(ends) > counted and size + len(text) - begin > block_bytes:
                wanted = len(ends)
            if wanted > len(ends):
                break
            stop = int(ends[wanted - 1])
            whole.update(text[begin:stop])
            yield Block(first, start, offset + stop), whole.digest()
            first, lines, size, start = first + lines + wanted - counted, 0, 0, offset + stop
            whole, blank, begin, counted = xxhash.xxh3_64(), True, stop, wanted
        rest = text[begin:]
        whole.update(rest)
        lines, size = lines + len(ends) - counted, size + len(rest)
        blank = blank and not rest.strip()
    if not blank and start is not None:
        yield Block(first, start, end), whole.digest()


def records(text: bytes) -> list[list[bytes]]:
    """The lines of a block, 8 columns each, the eighth with all that follows; fewer in a bad line. Blank lines at its
    end are none.
    """
    lines = text.split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.split(b"\t", 7) for line in lines]
