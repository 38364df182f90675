"""FASTA: text to records, as Biopython's parser reads them, with the offsets of the bases."""

from __future__ import annotations

from collections.abc import Iterator

from medray.errors import SampleError
from medray.modalities.genomics.formats.records import SequenceRecord, decode, first_word
from medray.modalities.genomics.formats.text import Chunk

LONGEST_HEADER = 1 << 16


def fasta(chunks: Iterator[Chunk]) -> Iterator[SequenceRecord]:
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

    for piece in pieces():
        if piece.text.strip():
            raise SampleError("corrupt", "text before the first > of a FASTA file")
    while header is not None:
        line, header = header, None
        bases = pieces()
        yield named(line, bases)
        for _ in bases:  # skip what the caller did not read
            pass


def named(line: bytes, pieces: Iterator[Chunk]) -> SequenceRecord:
    """The record that a header line, without its first character, begins."""
    try:
        header = decode(line)
    except SampleError as problem:
        return SequenceRecord("", pieces, problem=problem)
    return SequenceRecord(first_word(header), pieces, header)


def _events(chunks: Iterator[Chunk]) -> Iterator[bytes | Chunk]:
    """Header lines without their ">" as bytes, and text with bases as Chunks."""
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
