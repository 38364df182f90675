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


LARGE, PACKED_TIMES = 2**30, 200
"""Content of more than LARGE bytes that was packed more than PACKED_TIMES is no data: such files are made to fill memory."""


def refuse_beyond_measure(size: int, packed: int) -> None:
    """Raises SampleError `refused_member` for `size` bytes that come of so few `packed` ones."""
    if size > LARGE and size > PACKED_TIMES * packed:
        raise SampleError("refused_member", f"more than {LARGE:,} bytes, packed more than {PACKED_TIMES} times")
