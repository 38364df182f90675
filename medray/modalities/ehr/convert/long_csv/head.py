"""Column names of a CSV: its first row, checked before Arrow reads the rest."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from typing import BinaryIO

from medray.errors import SampleError

HEAD = 2**16
"""Bytes in which the first row has to end."""
PIECE = 2**16
NO_TEXT, DAMAGED = "\ufdd0", "medray.no_text"
"""What stands for bytes that are no text, a code point that no text may have (Unicode, section 23.7), and the name of the
rule of `codecs` that puts it there."""


def _no_text(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return NO_TEXT, error.end


codecs.register_error(DAMAGED, _no_text)


def column_names(head: bytes, delimiter: str, encoding: str) -> list[str]:
    """Cells of the first row, without a byte order mark; none for an empty file."""
    text = io.TextIOWrapper(io.BytesIO(head), encoding, errors=DAMAGED, newline="")
    first = next(csv.reader(text, delimiter=delimiter), None)
    return [name.removeprefix("\ufeff") for name in first or ()]


def check_names(names: Sequence[str], columns: Sequence[str]) -> None:
    """Raise SampleError where one of `columns` is missing or occurs twice: Arrow would silently take the first."""
    if names and not set(columns) <= set(names):
        raise SampleError("bad_columns", f"expected the columns {', '.join(columns)}")
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise SampleError("bad_columns", f"expected one column {twice[0]}, found several of that name")


class Rest(io.RawIOBase):
    """A stream from its start as UTF-8: the bytes that were read of it already, then the rest. What is no text of the encoding
    becomes NO_TEXT. Gives all there is before it raises what the stream raises."""

    def __init__(self, head: bytes, stream: BinaryIO, encoding: str) -> None:
        self.head, self.stream = head, stream
        self.decoder = codecs.getincrementaldecoder(encoding)(DAMAGED)
        self.ready = b""
        """UTF-8 that was not asked for yet."""
        self.problem: Exception | None = None
        self.ended = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        pieces, length = [self.ready], len(self.ready)
        while not self.ended and not 0 <= size <= length:
            pieces.append(self._next())
            length += len(pieces[-1])
        text = b"".join(pieces)
        size = len(text) if size < 0 else size
        text, self.ready = text[:size], text[size:]
        if not text and size and self.problem is not None:
            raise self.problem
        return text

    def _next(self) -> bytes:
        try:
            piece, self.head = self.head or self.stream.read(PIECE), b""
        except (SampleError, OSError) as problem:
            self.problem, self.ended = problem, True
            return b""
        self.ended = not piece
        return self.decoder.decode(piece, final=self.ended).encode()
