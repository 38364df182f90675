"""Column names of a CSV: its first row, checked before Arrow reads the rest."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import BinaryIO

from medray.errors import SampleError

HEAD = 2**16
"""Bytes in which the first row has to end."""


def column_names(head: bytes, delimiter: str, encoding: str) -> list[str]:
    """Cells of the first row, without a byte order mark; none for an empty file."""
    text = io.TextIOWrapper(io.BytesIO(head), encoding, errors="replace", newline="")
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
    """A stream from its start: the bytes that were read of it already, then the rest."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self.head, self.stream = head, stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self.head:
            return self.stream.read(size)
        piece = self.head if size < 0 else self.head[:size]
        self.head = self.head[len(piece) :]
        return piece + self.stream.read() if size < 0 else piece
