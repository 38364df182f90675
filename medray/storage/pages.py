"""Content of files in pages of memory of its own, which the system gets back as soon as it has been read.

A large file has pages of its own, which are given back one after the other; many small ones share some. Where the system has
huge pages they come as such: by small ones, taking the memory for a file costs three times what copying the file does.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import suppress
from io import FileIO
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

from medray.storage.files import open_regular, read_bytes
from medray.storage.uris import is_local, local_path

LARGE = 2**23
"""Bytes of a file from which on pages of its own pay."""
BLOCK = 2**22
"""Bytes that small files share: two huge pages of x86."""
LINE = 64
"""Bytes of a cache line, at which each of them begins."""


if TYPE_CHECKING:
    from typing_extensions import Buffer

    class Shared(Buffer, Protocol):
        """A file in shared pages: an array of ctypes' c_char, whose slices are bytes."""

        def __len__(self) -> int: ...
        def __getitem__(self, part: slice, /) -> bytes: ...


Content: TypeAlias = "bytes | mmap.mmap | Shared"
"""What a file holds. Slices of all are bytes."""


def read_pages(uri: str) -> Content:
    """The whole file, as `files.read_bytes` gives it; a large local one in memory of its own, which `give_back` can give back.

    No map of the file: one that is cut while it is read would end the process.
    """
    if not is_local(uri):
        return read_bytes(uri)
    handle = open_regular(_path(uri), os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(handle).st_size
        if size < LARGE:
            return _small(handle, size)
        pages = _pages(size)
        with memoryview(pages) as view, open(handle, "rb", buffering=0, closefd=False) as stream:
            at = _read_into(view, stream)
            more = stream.read()  # of a file that grows while it is read
    finally:
        os.close(handle)
    return pages if at == size and not more else pages[:at] + more


def _small(handle: int, size: int) -> bytes:
    """All of a file of about this size."""
    content = os.read(handle, size + 1)
    while more := os.read(handle, max(1, size - len(content))):  # it grows, or comes in pieces
        content += more
    return content


class SharedPages:
    """Reads small files one after the other into blocks of memory. A block goes back to the system when nobody holds a file of
    it any more: so files are best let go in the opposite order."""

    def __init__(self) -> None:
        self._block: mmap.mmap | None = None
        self._used = 0

    def read(self, uri: str) -> Content:
        """The whole file, as `read_pages` gives it."""
        if not is_local(uri):
            return read_bytes(uri)
        with open(_path(uri), "rb", buffering=0, opener=open_regular) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size == 0 or size > BLOCK:
                return read_pages(uri)
            content = self._room(size)
            with memoryview(content).cast("B") as view:
                at = _read_into(view, stream)
            more = stream.read()  # of a file that grows while it is read
        return content if at == size and not more else content[:at] + more

    def _room(self, size: int) -> Shared:
        """Memory for a file, in the block at hand or a new one."""
        if self._block is None or self._used + size > BLOCK:
            self._block, self._used = _pages(BLOCK), 0
        room = cast("Shared", (ctypes.c_char * size).from_buffer(self._block, self._used))
        self._used += -(-size // LINE) * LINE
        return room


def _path(uri: str) -> str:
    """The path of a local URI."""
    return uri if uri.startswith("/") else str(local_path(uri))


def _pages(size: int) -> mmap.mmap:
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # huge pages are not to be had everywhere
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _read_into(view: memoryview, stream: FileIO) -> int:
    """The number of bytes read, which is less than asked for where the file is shorter than it was."""
    at = 0
    while at < len(view) and (count := stream.readinto(view[at:])):
        at += count
    return at


def whole(content: Content) -> bytes:
    """The content in one piece, for who can do with nothing else."""
    return content if isinstance(content, bytes) else content[:]


def give_back(content: Content, start: int, stop: int) -> None:
    """Give back the memory of these bytes, as far as they are whole pages. They must not be read again: they are zero."""
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    if isinstance(content, mmap.mmap) and first < last:
        content.madvise(mmap.MADV_DONTNEED, first, last - first)
