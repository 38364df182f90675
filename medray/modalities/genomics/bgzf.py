"""BGZF, what bgzip writes: gzip members of at most 64 KiB that can be decoded one by one (SAM specification, 4.1).

Virtual offsets, as in every index of such files: offset of the member in the file << 16 | offset in its content.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from medray.errors import SampleError

if TYPE_CHECKING:
    from pyarrow import NativeFile

GZIP = b"\x1f\x8b"
HEADER = 18
"""Bytes of a member's header: gzip's 12 and the one extra field, BC, with the member's size."""
READ = 1 << 22


def is_gzip(head: bytes) -> bool:
    return head[:2] == GZIP


def is_bgzf(head: bytes) -> bool:
    """The first bytes of a file are a BGZF member."""
    return len(head) >= HEADER and head[:4] == GZIP + b"\x08\x04" and head[10:16] == b"\x06\0BC\x02\0"


def member_size(head: bytes) -> int:
    """Bytes of the member that begins with these 18. Raises SampleError `corrupt`."""
    if not is_bgzf(head):
        raise SampleError("corrupt", "a bgzip member without its BC field")
    return int.from_bytes(head[16:18], "little") + 1


def members(stream: NativeFile) -> Iterator[tuple[int, bytes]]:
    """(offset in the file, compressed bytes) of each member, in order. Raises SampleError `truncated` or `corrupt`.

    The last member of a whole file is empty: a file that ends without it was cut off (SAM specification, 4.1.2).
    """
    held, offset, last = b"", 0, b""
    while True:
        if len(held) < HEADER or len(held) < member_size(held[:HEADER]):
            more = stream.read(READ)
            if not more:
                break
            held += more
            continue
        at = 0
        while len(held) - at >= HEADER and len(held) - at >= (size := member_size(held[at : at + HEADER])):
            last = held[at : at + size]
            yield offset + at, last
            at += size
        held, offset = held[at:], offset + at
    if held or last[-4:] != bytes(4):
        raise SampleError("truncated", "the bgzip end-of-file member is missing")


def content(member: bytes) -> bytes:
    """A member decoded, checked against its CRC. Raises SampleError `corrupt`."""
    try:
        return zlib.decompress(member, 31)
    except zlib.error as error:
        raise SampleError("corrupt", f"a bgzip member: {error}") from None


def read_virtual(stream: NativeFile, start: int, end: int) -> bytes:
    """Content between two virtual offsets. Raises SampleError `truncated` or `corrupt`."""
    offset, within = start >> 16, start & 0xFFFF
    last, tail = end >> 16, end & 0xFFFF
    stream.seek(offset)
    packed = stream.read(last - offset + (1 << 16 if tail else 0))  # a member is at most 64 KiB
    pieces, at = [], 0
    while at < last - offset or (tail and at == last - offset):
        size = member_size(packed[at : at + HEADER])
        if at + size > len(packed):
            raise SampleError("truncated", "a bgzip member is cut off")
        pieces.append(content(packed[at : at + size]))
        at += size
    if tail:
        pieces[-1] = pieces[-1][:tail]
    if pieces:
        pieces[0] = pieces[0][within:]
    return b"".join(pieces)
