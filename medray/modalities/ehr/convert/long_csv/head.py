"""The first row of a CSV: the names of its columns, looked at before Arrow reads the rest."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import BinaryIO

from medray.errors import SampleError

HEAD = 2**16
"""Bytes in which the first row has to end."""


def column_names(head: bytes, delimiter: str, encoding: str) -> list[str]:
    """Of the first row, without a byte order mark."""
    text = io.TextIOWrapper(io.BytesIO(head), encoding, errors="replace", newline="")
    return [name.removeprefix("\ufeff") for name in next(csv.reader(text, delimiter=delimiter), [])]


def check_names(names: Sequence[str], columns: Sequence[str]) -> None:
    """Raises SampleError where one of `columns` is not there, or twice: Arrow would take the first without a word."""
    if names and not set(columns) <= set(names):
        raise SampleError("bad_columns", f"expected the columns {', '.join(columns)}")
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise SampleError("bad_columns", f"expected one column {twice[0]}, found several of that name")


class Rest(io.RawIOBase):
    """What was read of a stream already, and then the rest of it."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self.head, self.stream = head, stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self.head:
            return self.stream.read(size)
        found = self.head if size < 0 else self.head[:size]
        self.head = self.head[len(found) :]
        return found + self.stream.read() if size < 0 else found
