"""VCF as a stream: the header, blocks of records with their place in the file, and the first columns of a block.

Plain, gzip and bgzip files are told by content. A block is a range of addresses: byte offsets of the decoded text,
for bgzip virtual offsets, so that a worker begins to read where its block does (in gzip: decodes up to there and
goes on from where it was). Source of the format: VCF 4.3 specification.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xxhash

from medray.errors import SampleError
from medray.files import open_input
from medray.modalities.genomics import bgzf

if TYPE_CHECKING:
    from pyarrow import NativeFile

CHUNK = 1 << 20
HEADER_BYTES = 1 << 28
"""A header longer than this is no header."""
BLOCK_BYTES = 1 << 26
"""A block is cut short where its lines are so wide (thousands of genotypes) that it would not be bounded else."""
SUFFIXES = (".vcf", ".vcf.gz", ".vcf.bgz")


class Chunk(NamedTuple):
    base: int
    """Address of the first byte; the address of byte i is base + i, in plain text as in one bgzip member."""
    after: int
    """Address of the first byte of the next chunk."""
    text: bytes

    def address(self, index: int) -> int:
        return self.after if index == len(self.text) else self.base + index


class Block(NamedTuple):
    """Consecutive record lines of one file."""

    first: int
    """0-based number of the first record line in the file."""
    start: int
    end: int
    """Addresses: [start, end)."""

    @property
    def locator(self) -> str:
        """Text whose order is the order in the file."""
        return f"{self.first:012d}:{self.start:020d}-{self.end:020d}"

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


def chunks(stream: NativeFile) -> Iterator[Chunk]:
    """The decoded text with its addresses. Raises SampleError `truncated` or `corrupt`."""
    head = stream.read(bgzf.HEADER)
    stream.seek(0)
    if bgzf.is_bgzf(head):
        for offset, member in bgzf.members(stream):
            yield Chunk(offset << 16, offset + len(member) << 16, bgzf.content(member))
        return
    text = gzip.GzipFile(fileobj=stream) if bgzf.is_gzip(head) else stream
    base = 0
    while piece := gunzipped(text, CHUNK):
        yield Chunk(base, base + len(piece), piece)
        base += len(piece)


def gunzipped(text, length: int) -> bytes:
    """The next bytes of a gzip or plain stream. Raises SampleError `truncated` or `corrupt`."""
    try:
        return text.read(length)
    except EOFError:
        raise SampleError("truncated", "the gzip stream ends early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise SampleError("corrupt", f"gzip: {error}") from None


# --- the header -------------------------------------------------------------------------------------------------


def split_header(pieces: Iterator[Chunk]) -> tuple[Header, Iterator[Chunk]]:
    """The header, and the chunks from the first record on. Raises SampleError where the text is no VCF 4."""
    held, last = b"", Chunk(0, 0, b"")
    for last in pieces:
        before, held = len(held), held + last.text
        if not held.startswith(b"##fileformat="[: len(held)]):
            raise SampleError("unrecognised_format", "expected ##fileformat=VCFv4 in the first line")
        line = _line_start(held, before)
        if found := re.search(rb"^[^#]", held[line:], re.MULTILINE):
            end = line + found.start()  # in this chunk, or an earlier round had found it
            rest = Chunk(last.address(end - before), last.after, held[end:])
            return parse_header(held[:end]), _again(rest, pieces)
        if len(held) > HEADER_BYTES:
            raise SampleError("unsupported", f"a header of more than {HEADER_BYTES} bytes")
    if not held:
        raise SampleError("empty_file")
    return parse_header(held), _again(Chunk(last.after, last.after, b""), iter(()))


def _line_start(text: bytes, position: int) -> int:
    return text.rfind(b"\n", 0, position) + 1


def _again(first: Chunk, others: Iterator[Chunk]) -> Iterator[Chunk]:
    yield first
    yield from others


def parse_header(text: bytes) -> Header:
    """Raises SampleError: `not_utf8`, `unrecognised_format`, `unsupported` (a version before 4), `corrupt`."""
    try:
        lines = text.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SampleError("not_utf8", f"byte {error.start} of the header; VCF is UTF-8: iconv -f LATIN1") from None
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
    for chunk in pieces:
        text, end = chunk.text, chunk.after
        start = chunk.base if start is None else start
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
            yield Block(first, start, chunk.address(stop)), whole.digest()
            first, lines, size, start = first + lines + wanted - counted, 0, 0, chunk.address(stop)
            whole, blank, begin, counted = xxhash.xxh3_64(), True, stop, wanted
        rest = text[begin:]
        whole.update(rest)
        lines, size = lines + len(ends) - counted, size + len(rest)
        blank = blank and not rest.strip()
    if not blank and start is not None:
        yield Block(first, start, end), whole.digest()


class VcfFile:
    """An opened VCF, in the worker that reads its blocks. Blocks are read in their order at the least cost."""

    def __init__(self, uri: str) -> None:
        self.uri, self._stream = uri, open_input(uri)
        head = self._stream.read(bgzf.HEADER)
        self._bgzf, self._gzip = bgzf.is_bgzf(head), bgzf.is_gzip(head)
        self._text, self._at = self._stream, 0

    def read(self, block: Block) -> bytes:
        """The lines of a block. Raises SampleError: `truncated`, `corrupt`."""
        if self._bgzf:
            return bgzf.read_virtual(self._stream, block.start, block.end)
        if not self._gzip:
            self._stream.seek(block.start)
            return self._whole(self._stream.read(block.end - block.start), block)
        if self._text is self._stream or block.start < self._at:
            self._stream.seek(0)
            self._text, self._at = gzip.GzipFile(fileobj=self._stream), 0
        while self._at < block.start:
            skipped = len(gunzipped(self._text, min(CHUNK, block.start - self._at)))
            if not skipped:
                break
            self._at += skipped
        text = gunzipped(self._text, block.end - block.start)
        self._at += len(text)
        return self._whole(text, block)

    @staticmethod
    def _whole(text: bytes, block: Block) -> bytes:
        if len(text) < block.end - block.start:
            raise SampleError("truncated", f"{len(text)} of {block.end - block.start} bytes of a block")
        return text

    def close(self) -> None:
        self._stream.close()


def records(text: bytes) -> list[list[bytes]]:
    """The lines of a block, 8 columns each, the eighth with all that follows; fewer in a bad line. Blank lines at its
    end are none.
    """
    lines = text.split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.split(b"\t", 7) for line in lines]
