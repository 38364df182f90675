"""Text files, plain, gzip or bgzip, as one stream of bytes: forward in blocks to scan, by byte range to read.

An offset is always one of the decompressed text, so a file has the same offsets however it is compressed.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from medray.errors import SampleError
from medray.storage.compressed import GZIP, unpacking
from medray.storage.files import open_input

BLOCK = 1 << 20
"""Bytes of text read at once."""
LONGEST_LINE = 1 << 28
"""Bytes of the longest line; what has longer ones is not text."""
BGZF_HEADER, LONGEST_BGZF_BLOCK = 18, 1 << 16
LEAST_BLOCK = BGZF_HEADER + 2 + 8
"""Bytes of a block without text: its header, an empty deflate stream, its checksum and length."""


class RawFile(Protocol):
    """A file that `open_input` opened: the part of pyarrow's NativeFile that is used here."""

    def read(self, nbytes: int, /) -> bytes: ...

    def seek(self, position: int, /) -> int: ...

    def size(self) -> int: ...

    def close(self) -> None: ...


class Chunk(NamedTuple):
    """A stretch of text and the offset of its first byte."""

    offset: int
    text: bytes


class Unread(Exception):
    """Compressed text that is broken from some place on, of which so many `packed` bytes are not read."""

    def __init__(self, damage: zlib.error, packed: int) -> None:
        super().__init__()
        self.packed = packed
        try:
            with unpacking():
                raise damage
        except SampleError as problem:
            self.problem = problem


def compression(head: bytes) -> str:
    """ "bgzip", "gzip" or "" by the first 18 bytes (RFC 1952; SAM specification 4.1)."""
    if not head.startswith(GZIP):
        return ""
    return "bgzip" if head[3:4] == b"\x04" and head[12:16] == b"BC\x02\x00" else "gzip"


def blocks(uri: str) -> Iterator[Chunk]:
    """The whole text, block by block. Raises OSError, and SampleError `truncated` or `corrupt`.

    Text is yielded after its checksum has passed, since a flipped bit makes other bases more often than an error: a gzip
    file is first read to its end, and yielded as far as its members are whole (if it was cut off, its text up to there, too),
    bgzip block by block. What is raised says how much was not read. A bgzip file without its empty last block was cut between two blocks: truncated too (SAM specification 4.1.2).
    """
    with open_input(uri) as file:
        raw: RawFile = file
        kind = compression(raw.read(BGZF_HEADER))
        raw.seek(0)
        offset = 0
        try:
            with unpacking():
                for text in _pieces(raw, kind):
                    yield Chunk(offset, text)
                    offset += len(text)
                if kind == "bgzip":
                    raw.seek(max(0, raw.size() - 4))
                    if raw.read(4) != bytes(4):
                        raise EOFError
        except Unread as error:
            detail = f"{error.problem.detail}: {error.packed} of {raw.size()} packed bytes are not read"
            raise SampleError(error.problem.reason, detail) from None


def lines(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same text line by line, line ends included. Raises SampleError `corrupt` where a line does not end."""
    rest, start = b"", 0
    for offset, text in chunks:
        if not rest:
            start = offset
        text = rest + text
        if len(text) > LONGEST_LINE and b"\n" not in text:
            raise SampleError("corrupt", f"a line of more than {LONGEST_LINE} bytes")
        *whole, rest = text.split(b"\n")
        for line in whole:
            yield Chunk(start, line + b"\n")
            start += len(line) + 1
    if rest:
        yield Chunk(start, rest)


def _pieces(raw: RawFile, kind: str) -> Iterator[bytes]:
    """Pieces of text of about BLOCK bytes. Raises EOFError and zlib.error."""
    if kind == "bgzip":
        yield from _verified_blocks(raw)
        return
    if kind == "gzip":
        yield from _verified_members(raw)
        return
    while text := raw.read(BLOCK):
        yield text


def _verified_members(raw: RawFile) -> Iterator[bytes]:
    """The text of a gzip file, once its checksums have passed; one that was cut off has none left to fail. Of a damaged one
    the members before the damage. Raises EOFError, and Unread."""
    stream, damage = _Gzip(raw), None
    try:
        while stream.read(BLOCK):
            pass
    except EOFError:
        pass
    except zlib.error as error:
        damage = error
    certain, packed = stream.whole
    stream, given = _Gzip(raw), 0
    while damage is None or given < certain:
        text = stream.read(BLOCK if damage is None else min(BLOCK, certain - given))
        if not text:
            return
        yield text
        given += len(text)
    raise Unread(damage, raw.size() - packed)


def _verified_blocks(raw: RawFile) -> Iterator[bytes]:
    """The text of bgzip blocks, each after its checksum. Raises EOFError and Unread (SAM specification 4.1)."""
    packed, at, before = b"", 0, 0
    texts: list[bytes] = []
    try:
        while True:
            if len(packed) - at < LONGEST_BGZF_BLOCK:
                packed, before, at = packed[at:] + raw.read(BLOCK), before + at, 0
            if at == len(packed):
                break
            head = packed[at : at + BGZF_HEADER]
            if len(head) < BGZF_HEADER:
                raise EOFError
            if compression(head) != "bgzip":
                raise zlib.error("no block begins where the last one ends")
            end = at + int.from_bytes(head[16:18], "little") + 1  # BSIZE
            if end > len(packed):
                raise EOFError
            texts.append(_whole_block(packed[at:end]))
            at = end
            if sum(map(len, texts)) >= BLOCK:
                yield b"".join(texts)
                texts = []
    except EOFError:
        if texts:
            yield b"".join(texts)
        raise
    except zlib.error as damage:
        if texts:
            yield b"".join(texts)
        raise Unread(damage, raw.size() - before - at) from None
    if text := b"".join(texts):
        yield text


class LineReader:
    """Lines one by one; what was taken since a mark can be read again."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._feed = lines(chunks)
        self._ahead: deque[Chunk] = deque()
        self._since: list[Chunk] = []
        """Lines taken since the mark."""
        self.broken: SampleError | None = None
        """Why the stream broke off; None where it ended as a file does."""

    def next(self) -> Chunk | None:
        """The next line; None at the end, and where the stream breaks off."""
        if self._ahead:
            line = self._ahead.popleft()
        else:
            try:
                line = next(self._feed, None)
            except SampleError as problem:
                self.broken, line = problem, None
        if line is not None:
            self._since.append(line)
        return line

    def next_filled(self) -> Chunk | None:
        """The next line that is not blank; sets the mark behind it."""
        while (line := self.next()) is not None and not line.text.strip():
            pass
        self._since = []
        return line

    def rewind(self) -> None:
        """Go back to the mark."""
        self._ahead.extendleft(reversed(self._since))
        self._since = []

    def put_back(self, line: Chunk) -> None:
        """Put back `line`, the last that was taken."""
        self._ahead.appendleft(line)
        self._since = self._since[:-1]


class Ranges:
    """Byte ranges of one open text file. Ranges asked for in ascending order are read forward, each byte once."""

    AHEAD = 1 << 16

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._raw: RawFile = open_input(uri)
        kind = compression(self._raw.read(BGZF_HEADER))
        self._raw.seek(0)
        self.size: int | None = None
        """Bytes of the text; None for gzip, where only reading it all would tell."""
        if kind == "bgzip":
            bgzip = _Bgzip(self._raw)
            self._stream: _Bgzip | _Gzip | RawFile = bgzip
            self.size = bgzip.size
        else:
            self._stream = _Gzip(self._raw) if kind else self._raw
            self.size = None if kind else self._raw.size()
        self._held = Chunk(0, b"")

    def read(self, start: int, end: int) -> bytes:
        """Text of [start, end). Raises SampleError `truncated` where the file ends before, or `corrupt`."""
        last = self._held
        if not last.offset <= start <= end <= last.offset + len(last.text):
            with unpacking():
                text = self._fill(start, max(end - start, self.AHEAD))
                while len(text) < end - start:  # the end, or damage, which is raised where nothing comes before it
                    self._stream.seek(start + len(text))
                    piece = self._stream.read(end - start - len(text))
                    if not piece:
                        raise SampleError("truncated", "the file is shorter than when it was indexed")
                    text += piece
                last = self._held = Chunk(start, text)
        return last.text[start - last.offset : end - last.offset]

    def _fill(self, start: int, size: int) -> bytes:
        last = self._held
        if last.offset <= start < last.offset + len(last.text):  # decompressed before: not again
            begin = last.text[start - last.offset :]
            self._stream.seek(last.offset + len(last.text))
            return begin + self._stream.read(size - len(begin))
        self._stream.seek(start)
        return self._stream.read(size)

    def close(self) -> None:
        self._raw.close()


class _Gzip:
    """A gzip file read forward; a seek back starts over. Text before damage is returned before the damage raises."""

    PACKED = 1 << 17
    """Compressed bytes read at once."""

    def __init__(self, raw: RawFile) -> None:
        self._raw = raw
        self._begin()

    def _begin(self) -> None:
        self._raw.seek(0)
        self._member, self._packed = zlib.decompressobj(31), b""
        self._at = self._taken = 0
        self.whole = (0, 0)
        """(bytes of text, packed bytes) up to the end of the last whole member."""
        self._damage: EOFError | zlib.error | None = None

    def seek(self, offset: int) -> None:
        if offset < self._at:
            self._begin()
        while self._at < offset and self.read(min(BLOCK, offset - self._at)):
            pass

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, less only at the end. Raises EOFError or zlib.error where nothing more can be read."""
        texts: list[bytes] = []
        while size and not self._damage:
            try:
                text = self._next_text(size)
            except (EOFError, zlib.error) as damage:
                self._damage = damage
                break
            if not text:
                break
            texts.append(text)
            size -= len(text)
            self._at += len(text)
        if self._damage and not texts:
            raise self._damage
        return b"".join(texts)

    def _next_text(self, size: int) -> bytes:
        while True:
            if self._member.eof:  # another member, zeros that fill up a tape block, or the end (RFC 1952, 2.2)
                self.whole = (self._at, self._taken - len(self._member.unused_data))
                rest = self._member.unused_data.lstrip(b"\0")
                while not rest:
                    packed = self._next_packed()
                    if not packed:
                        return b""
                    rest = packed.lstrip(b"\0")
                self._member, self._packed = zlib.decompressobj(31), rest
            elif not self._packed:
                self._packed = self._next_packed()
                if not self._packed:
                    raise EOFError
            text = self._member.decompress(self._packed, size)
            self._packed = self._member.unconsumed_tail
            if text:
                return text

    def _next_packed(self) -> bytes:
        packed = self._raw.read(self.PACKED)
        self._taken += len(packed)
        return packed


class _Bgzip:
    """Seek and read by offsets of the text: a table of the blocks made from their headers, blocks decoded when needed."""

    def __init__(self, raw: RawFile) -> None:
        self._raw = raw
        self._files, self._texts = _block_table(raw)
        self.size = int(self._texts[-1])
        self._at = 0
        self._block, self._decoded = -1, b""

    def seek(self, offset: int) -> None:
        self._at = offset

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, less at the end and before a broken block. Raises zlib.error in one."""
        texts: list[bytes] = []
        while size and self._at < self._texts[-1]:
            block = int(np.searchsorted(self._texts, self._at, side="right")) - 1
            if block != self._block:
                self._raw.seek(int(self._files[block]))
                packed = self._raw.read(int(self._files[block + 1] - self._files[block]))
                try:
                    self._block, self._decoded = block, _whole_block(packed)
                except zlib.error:
                    if texts:
                        break
                    raise
            within = self._at - int(self._texts[block])
            texts.append(self._decoded[within : within + size])
            if not texts[-1]:
                raise zlib.error("a block holds less than it says")
            self._at += len(texts[-1])
            size -= len(texts[-1])
        return b"".join(texts)


def _whole_block(packed: bytes) -> bytes:
    """The text of one block. Raises zlib.error where its gzip member is not what its header says, and no more: what follows
    it would be lost, and all offsets after it be wrong."""
    member = zlib.decompressobj(31)
    text = member.decompress(packed)
    if not member.eof or member.unused_data:
        raise zlib.error("a block of another length than it says")
    return text


def _block_table(raw: RawFile) -> tuple[np.ndarray, np.ndarray]:
    """(blocks + 1,) offsets in the file and in the text where blocks begin, then their ends (SAM specification 4.1).

    What follows the last whole block is left out: the scan has reported it.
    """
    size = raw.size()
    files, texts = [0], [0]
    while files[-1] < size:
        raw.seek(files[-1])
        head = raw.read(BGZF_HEADER)
        end = files[-1] + int.from_bytes(head[16:18], "little") + 1  # BSIZE
        if compression(head) != "bgzip" or end > size or end < files[-1] + LEAST_BLOCK:
            break
        raw.seek(end - 4)
        files.append(end)
        texts.append(texts[-1] + int.from_bytes(raw.read(4), "little"))  # ISIZE
    return np.array(files, np.int64), np.array(texts, np.int64)
