"""Content of a gzip or deflate stream by position: unpacked once from the start, with marks to go on from."""

from __future__ import annotations

import threading
import zlib
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medray.errors import SampleError
from medray.storage.compressed import LARGE, one_member, refuse_beyond_measure, unpacking

GZIP_STREAM, DEFLATE_STREAM = 31, -15
"""`wbits` of zlib for a gzip file (RFC 1952) and a bare deflate stream (RFC 1951)."""

_CHUNK, _LEAST = 32_768, 1024
"""Packed bytes unpacked at once: at most 34 MB come out of them, and about _PIECE where what came before shrank as much."""
_PIECE = 2**20
_MARKS = 512
"""A mark holds a window of 32 KB and the state of zlib: 20 MB in all."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where unpacking can go on: `unpacker` (never used itself, only copies of it) has taken the packed bytes before `packed`
    and given what is before `position`."""

    position: int
    packed: int
    unpacker: Any


class Inflated:
    """Reads what `read_at(size, start)` unpacks to, in `length` packed bytes from `start` on.

    Memory is bounded; a read begins at the last mark before it, a few MB of unpacking away. One lock: threads take turns.
    """

    def __init__(self, read_at: Callable[[int, int], bytes], start: int, length: int, wbits: int = GZIP_STREAM) -> None:
        self._read_at, self._start, self._end, self._wbits = read_at, start, start + length, wbits
        self._marks = [_Mark(0, start, zlib.decompressobj(wbits))]
        self._spacing = 2**22
        self._lock = threading.Lock()
        self._step = _LEAST
        self._go_on(self._marks[0])

    def _go_on(self, mark: _Mark) -> None:
        self._position, self._packed, self._unpacker = mark.position, mark.packed, mark.unpacker.copy()
        self._piece = b""
        """What was unpacked last; it ends at `_position`."""

    def read(self, size: int, start: int) -> bytes:
        """`size` bytes from `start` on, fewer where the stream ends. Raises SampleError `truncated` or `corrupt`."""
        with self._lock, unpacking("a compressed archive"):
            if start < self._position - len(self._piece):
                self._go_on(self._marks[bisect_right(self._marks, start, key=lambda mark: mark.position) - 1])
            elif (
                mark := self._marks[bisect_right(self._marks, start, key=lambda mark: mark.position) - 1]
            ).position > (self._position):
                self._go_on(mark)
            pieces: list[bytes] = []
            while size > 0:
                if start < self._position:
                    first = start - (self._position - len(self._piece))
                    pieces.append(self._piece[first : first + size])
                    start, size = start + len(pieces[-1]), size - len(pieces[-1])
                elif not self._unpack():
                    break
            return b"".join(pieces)

    def _unpack(self) -> bool:
        """The next piece; False at the end. Raises EOFError, zlib.error."""
        while True:
            if self._unpacker.eof:
                if self._wbits != GZIP_STREAM or not self._next_member():
                    return False
                self._unpacker = zlib.decompressobj(self._wbits)
            chunk = (
                self._read_at(min(self._step, self._end - self._packed), self._packed)
                if self._packed < self._end
                else b""
            )
            if not chunk:
                raise EOFError
            piece = self._unpacker.decompress(chunk)
            self._step = max(_LEAST, min(_CHUNK, _PIECE * len(chunk) // max(1, len(piece))))
            self._packed += len(chunk) - len(self._unpacker.unused_data)
            self._position += len(piece)
            refuse_beyond_measure(self._position, self._packed - self._start)
            if not self._unpacker.eof and self._position >= self._marks[-1].position + self._spacing:
                self._mark()
            if piece:
                self._piece = piece
                return True

    def _next_member(self) -> bool:
        """Whether a gzip member follows, which it then stands at; zeros between them are legal."""
        while self._packed < self._end:
            chunk = self._read_at(min(_CHUNK, self._end - self._packed), self._packed)
            rest = chunk.lstrip(b"\0")
            self._packed += len(chunk) - len(rest)
            if rest:
                return True
            if not chunk:
                break
        return False

    def _mark(self) -> None:
        self._marks.append(_Mark(self._position, self._packed, self._unpacker.copy()))
        if len(self._marks) > _MARKS:
            self._marks, self._spacing = self._marks[::2], 2 * self._spacing


def unpacked(
    raw: bytes, start: int = 0, wbits: int = GZIP_STREAM, *, most: Callable[[bytes], int] | None = None
) -> bytes:
    """The content of a gzip file, of one member or several, or of the deflate stream (`wbits`) that begins at `start`.

    `most` is asked once, where there are more than BEGINNING bytes, with what there is by then: how many there may be. Raises
    SampleError `truncated` or `corrupt`, also where there are more.
    """
    if start >= len(raw):
        raise SampleError("empty_file" if not raw else "truncated", "" if not raw else "the compressed data end early")
    if start == 0 and wbits == GZIP_STREAM and (whole := one_member(raw, BEGINNING if most else LARGE)) is not None:
        return whole
    stream = Inflated(lambda size, at: raw[at : at + size], start, len(raw) - start, wbits)
    pieces: list[bytes] = []
    position, limit = 0, BEGINNING if most else None
    while piece := stream.read(BEGINNING, position):
        pieces.append(piece)
        position += len(piece)
        if limit is not None and most is not None and position > limit:
            if limit == BEGINNING:
                limit = max(BEGINNING + 1, most(b"".join(pieces)))
                if start == 0 and wbits == GZIP_STREAM and (whole := one_member(raw, limit)) is not None:
                    return whole
            if position > limit:
                raise SampleError(
                    "corrupt", f"unpacks to more than {limit:,} bytes, which is all that its header accounts for"
                )
    return b"".join(pieces)


BEGINNING = 2**20
"""Bytes that are unpacked at once; the dimensions of an image stand in the first."""
