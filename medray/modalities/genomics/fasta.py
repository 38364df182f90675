"""FASTA and FASTQ: text to records, as Biopython's parsers read them, with the offsets of the bases."""

from __future__ import annotations

from collections.abc import Iterator

from medray.errors import SampleError
from medray.modalities.genomics.records import Record, decode, first_word
from medray.modalities.genomics.text import Chunk, lines

LONGEST_HEADER = 1 << 16


def fasta(chunks: Iterator[Chunk]) -> Iterator[Record]:
    """Records of a FASTA text that begins with ">" (after blank lines); lines may be of any length."""
    feed = _events(chunks)
    header: bytes | None = None

    def pieces() -> Iterator[Chunk]:
        """Bases until the next header."""
        nonlocal header
        for event in feed:
            if isinstance(event, bytes):
                header = event
                return
            yield event

    for _ in pieces():  # blank lines
        pass
    while header is not None:
        line, header = header, None
        bases = pieces()
        yield _named(line, bases)
        for _ in bases:  # what nobody asked for
            pass


def _named(line: bytes, pieces: Iterator[Chunk]) -> Record:
    try:
        header = decode(line)
    except SampleError as problem:
        return Record("", pieces, problem=problem)
    return Record(first_word(header), pieces, header)


def _events(chunks: Iterator[Chunk]) -> Iterator[bytes | Chunk]:
    """A header line without its ">" as bytes, text with bases as Chunks."""
    header: bytes | None = None  # the part of a header line that was read
    new_line = True
    for offset, text in chunks:
        at = 0
        while at < len(text):
            if header is not None:
                end = text.find(b"\n", at)
                header += text[at:] if end < 0 else text[at:end]
                if len(header) > LONGEST_HEADER:
                    raise SampleError("corrupt", f"a FASTA header of more than {LONGEST_HEADER} bytes")
                if end < 0:
                    break
                yield header
                header, new_line, at = None, True, end + 1
            elif new_line and text[at : at + 1] == b">":
                header, at = b"", at + 1
            else:
                end = text.find(b"\n>", at)
                if end < 0:
                    yield Chunk(offset + at, text[at:])
                    new_line = text.endswith(b"\n")
                    break
                yield Chunk(offset + at, text[at : end + 1])
                new_line, at = True, end + 1
    if header is not None:
        yield header


def fastq(chunks: Iterator[Chunk]) -> Iterator[Record]:
    """Records of a FASTQ text; sequence and quality may go over several lines (Cock et al. 2010, NAR 38:1767).

    Raises SampleError `corrupt` where a record does not begin with @.
    """
    feed = lines(chunks)
    for _, line in feed:
        if not line.strip():
            continue
        if not line.startswith(b"@"):
            raise SampleError("corrupt", "a FASTQ record that does not begin with @")
        bases: list[Chunk] = []
        plus = b""
        for chunk in feed:
            if chunk.text.startswith(b"+"):
                plus = chunk.text
                break
            bases.append(chunk)
        count = sum(len(chunk.text.strip()) for chunk in bases)
        found = _qualities(feed, count) if plus else 0
        record = _named(line[1:], iter(bases))
        if not plus or found < count:
            yield Record(record.name, problem=SampleError("truncated", "a FASTQ record ends early"))
        elif found > count:
            yield Record(record.name, problem=SampleError("corrupt", f"{count} bases, but {found} qualities"))
            return
        else:
            yield record


def _qualities(feed: Iterator[Chunk], count: int) -> int:
    """Qualities read: lines until there are `count`, whatever they begin with, for @ and + are qualities too."""
    found = 0
    for _, text in feed:
        found += len(text.rstrip(b"\r\n"))
        if found >= count:
            break
    return found
