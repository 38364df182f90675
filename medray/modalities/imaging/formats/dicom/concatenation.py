"""Concatenations: one object of many frames that was sent as several files (PS3.3 C.7.6.16.2.2.4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.elements import one_number
from medray.modalities.imaging.formats.dicom.frames import stated
from medray.modalities.imaging.formats.dicom.header import Header
from medray.modalities.imaging.formats.dicom.identity import digest


class Piece(NamedTuple):
    """A file of a concatenation."""

    whole: str
    """Which concatenation, a digest of its UID."""
    number: int
    """InConcatenationNumber, from 1."""
    total: int
    """InConcatenationTotalNumber; 0 where it is not stated."""
    offset: int
    """ConcatenationFrameOffsetNumber: frames of the files before; -1 where it is not stated."""
    frames: int


def piece_of(header: Header) -> Piece | None:
    """Which file of which concatenation it is; None for a file of its own. Raises SampleError `corrupt`."""
    whole = stated(header, "ConcatenationUID", header)
    if not whole:
        return None
    number, total, offset = (
        one_number(stated(header, keyword, header))
        for keyword in ("InConcatenationNumber", "InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber")
    )
    return Piece(
        digest(str(whole)), int(number or 0), int(total or 0), -1 if offset is None else int(offset), header.frames
    )


def refuse_incomplete(pieces: Iterable[Piece]) -> None:
    """Raises SampleError `bad_geometry` where files of a concatenation are missing, or do not follow each other: the volume
    would end early, or have a hole."""
    wholes: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        wholes[piece.whole].append(piece)
    for members in wholes.values():
        members.sort(key=lambda piece: piece.number)
        numbers = [piece.number for piece in members]
        total = max(max(piece.total for piece in members), max(numbers))
        if numbers != list(range(1, total + 1)):
            raise SampleError(
                "bad_geometry", f"{len(set(numbers))} of {total} files of a concatenation, which are one object"
            )
        at = 0
        for piece in members:
            if piece.offset not in (-1, at):
                raise SampleError(
                    "bad_geometry",
                    f"file {piece.number} of a concatenation begins at frame {piece.offset + 1}, those before it end with {at}",
                )
            at += piece.frames
