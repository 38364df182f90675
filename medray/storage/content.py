"""Content: bytes that are read by position, as a file that pyarrow and Python's readers take."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Protocol

import pyarrow as pa

from medray.errors import SampleError


class Closed(Protocol):
    """What a Content reads from, where that has to be closed."""

    def close(self) -> None: ...


class Content:
    """A file for reading of `length` bytes. `read_at(size, start)` gives `size` bytes, fewer where there are no more.

    With `crc` (CRC-32 of the whole) what is read from its beginning to its end is compared with it, and fails as `corrupt`;
    a `member` of a container that is shorter fails as `truncated`.
    """

    def __init__(
        self,
        read_at: Callable[[int, int], bytes],
        length: int,
        inner: Closed | None = None,
        *,
        crc: int | None = None,
        member: bool = False,
    ) -> None:
        self.read_at, self.length, self.inner, self.crc, self.member = read_at, length, inner, crc, member
        self.position, self.closed = 0, False
        self._checked, self._sum = 0, 0

    def read(self, size: int | None = None) -> bytes:
        left = max(0, self.length - self.position)
        wanted = left if size is None or size < 0 else min(size, left)
        content = self.read_at(wanted, self.position) if wanted > 0 else b""
        if len(content) < wanted and self.member:
            raise SampleError("truncated", "the zip or tar ends within the member")
        if self.crc is not None and self.position == self._checked and content:
            self._sum, self._checked = zlib.crc32(content, self._sum), self._checked + len(content)
            if self._checked == self.length and self._sum != self.crc:
                raise SampleError("corrupt", "a member of a zip is of another content than its checksum says")
        self.position += len(content)
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = offset + {0: 0, 1: self.position, 2: self.length}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
        if self.inner is not None:
            self.inner.close()


class Stream(io.RawIOBase):
    """A Content for Python's own readers (tarfile, zipfile), which ask for little at a time: read ahead by `ahead` bytes.

    Raises ValueError for a seek before the start, and SampleError for a piece larger than `largest` bytes, which nothing but a
    broken length asks for.
    """

    def __init__(self, content: Content, *, largest: int, ahead: int = 2**16) -> None:
        self.content, self.largest, self.ahead = content, largest, ahead
        self._position, self._piece, self._from = 0, b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        target = offset + {0: 0, 1: self._position, 2: self.content.length}[whence]
        if target < 0:
            raise ValueError("a seek before the start")
        self._position = target
        return target

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]  # never None
        wanted = self.content.length - self._position if size < 0 else size
        if wanted > self.largest:
            raise SampleError("corrupt", "a header that states more bytes than headers have")
        first = self._position - self._from
        if not 0 <= first <= first + wanted <= len(self._piece):
            self.content.seek(self._position)
            self._piece, self._from, first = self.content.read(max(wanted, self.ahead)), self._position, 0
        piece = self._piece[first : first + wanted]
        self._position += len(piece)
        return piece


def as_file(content: Content) -> pa.NativeFile:
    """The content as a pyarrow file, seekable."""
    return pa.PythonFile(content, mode="r")
