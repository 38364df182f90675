"""Content of large files in pages of memory that are given back one after the other, as what lies in them has been read."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

from medray.storage.files import open_regular, read_bytes
from medray.storage.uris import is_local, local_path

LARGE = 2**23
"""Bytes of a file from which on it pays."""
Content = bytes | mmap.mmap
"""What a file holds. Slices of both are bytes."""


def read_pages(uri: str) -> Content:
    """The whole file, as `files.read_bytes` gives it; a large local one in memory of its own, which `give_back` can give back.

    No map of the file: one that is cut while it is read would end the process.
    """
    if not is_local(uri):
        return read_bytes(uri)
    with open(local_path(uri), "rb", buffering=0, opener=open_regular) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size < LARGE:
            return stream.read()
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(AttributeError, OSError):  # huge pages are not to be had everywhere
            pages.madvise(mmap.MADV_HUGEPAGE)
        at = 0
        with memoryview(pages) as view:
            while at < size and (count := stream.readinto(view[at:])):
                at += count
        more = stream.read()  # of a file that grows while it is read
    return pages if at == size and not more else pages[:at] + more


def whole(content: Content) -> bytes:
    """The content in one piece, for who can do with nothing else."""
    return content if isinstance(content, bytes) else content[:]


def give_back(content: Content, start: int, stop: int) -> None:
    """Give back the memory of these bytes, as far as they are whole pages. They must not be read again: they are zero."""
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    if isinstance(content, mmap.mmap) and first < last:
        content.madvise(mmap.MADV_DONTNEED, first, last - first)
