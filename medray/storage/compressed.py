"""Compressed files: the beginning of gzip content, and what is wrong with data that cannot be unpacked."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager

from medray.errors import SampleError

GZIP = b"\x1f\x8b"
"""The first bytes of a gzip file (RFC 1952)."""


@contextmanager
def unpacking(what: str = "the compressed data") -> Generator[None]:
    """Errors of decompression inside the block become SampleError `truncated` or `corrupt`; other errors pass.

    `what` is the subject of the message's sentence, which never quotes the data.
    """
    try:
        yield
    except EOFError:
        raise SampleError("truncated", f"{what} ends early") from None
    except (zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise SampleError("corrupt", f"{what} is broken ({type(error).__module__}.{type(error).__name__})") from None


def unpacked_head(raw: bytes, length: int = 0) -> bytes:
    """The first `length` bytes of a gzip file's content, or all (0) that its first bytes `raw` give; b"" where broken."""
    try:
        return zlib.decompressobj(31).decompress(raw, length)
    except zlib.error:
        return b""


DEFLATED = 1032
"""The most that deflate shrinks by (zlib's technical notes)."""


def one_member(raw: bytes, most: int) -> bytes | None:
    """The content of a gzip file that is one member, of `most` bytes at the most, with nothing behind it; None for any other,
    and where its checksum or anything else is wrong: whoever unpacks it piece by piece says what.

    By libdeflate, which takes half of zlib's time, and does not say where a member ends: its last 8 bytes, which it has
    compared with the content, have to be the file's, and to occur nowhere else in it.
    """
    import imagecodecs

    size = int.from_bytes(raw[-4:], "little")
    if not raw.startswith(GZIP) or not 0 < size <= min(most, DEFLATED * len(raw), LARGE):
        return None
    try:
        content = bytes(imagecodecs.gzip_decode(raw, out=size))  # they are bytes already
    except (RuntimeError, MemoryError):  # of a size that is no size, too
        return None
    end = raw[-8:]
    whole = len(content) == size and imagecodecs.deflate_crc32(content) == int.from_bytes(end[:4], "little")
    return content if whole and raw.rfind(end, 0, len(raw) - 1) < 0 else None


LARGE, PACKED_TIMES = 2**30, 200
"""Content of more than LARGE bytes that was packed more than PACKED_TIMES is no data: such files are made to fill memory."""


def refuse_beyond_measure(size: int, packed: int) -> None:
    """Raises SampleError `refused_member` for `size` bytes that come of so few `packed` ones."""
    if size > LARGE and size > PACKED_TIMES * packed:
        raise SampleError("refused_member", f"more than {LARGE:,} bytes, packed more than {PACKED_TIMES} times")
