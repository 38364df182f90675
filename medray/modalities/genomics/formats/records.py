"""Records: the form in which every format is read. Bases come piece by piece: a record may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from medray.errors import SampleError
from medray.modalities.genomics.formats.features import Features
from medray.modalities.genomics.formats.text import Chunk


@dataclass(frozen=True)
class SequenceRecord:
    """One record, to be used before the next one is asked for: its pieces are read from the file as they are taken."""

    name: str
    """Its id in the file; may be empty."""
    pieces: Iterable[Chunk] = ()
    """Text that holds its bases, in order, with the offsets it has in the file."""
    header: str = ""
    """Its header line, which the patterns search; never shown."""
    label: str | None = None
    subject: str | None = None
    split: str | None = None
    features: Features = field(default_factory=Features)
    build: str | None = None
    """The assembly it belongs to, where the file says so."""
    problem: SampleError | None = None
    """Why it cannot be read, where that is known."""
    lost: Callable[[], SampleError | None] = lambda: None
    """Called once `pieces` are read: why bases after them are missing, or why they cannot be taken for the record's; None
    where nothing is wrong."""


Reader = Callable[[Iterator[Chunk]], Iterator[SequenceRecord]]
"""Blocks of a text file to its records. Raises SampleError where the file cannot be read any further."""


def decode(line: bytes) -> str:
    """A header line or cell as text. Raises SampleError `not_text`."""
    try:
        return line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise SampleError("not_text", f"byte {error.start} of the record's header is not UTF-8") from None


def first_word(header: str) -> str:
    return (header.split(None, 1) or [""])[0]
