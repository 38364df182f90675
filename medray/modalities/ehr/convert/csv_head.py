"""The first row of a CSV: the names of its columns, looked at before Arrow reads the rest."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import BinaryIO

from medray.errors import SampleError

HEAD = 2**16
"""Bytes in which the first row has to end."""


def check_names(head: bytes, columns: Sequence[str], delimiter: str, encoding: str) -> None:
    """Raises SampleError where one of `columns` is there twice: Arrow would take the first without a word."""
    text = io.TextIOWrapper(io.BytesIO(head), encoding, errors="replace", newline="")
    names = [name.removeprefix("\ufeff") for name in next(csv.reader(text, delimiter=delimiter), [])]
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
