"""Windows: a record's bases, as they stream by, to tiles of `length`; memory is bounded whatever the record's size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from medray.modalities.genomics.codes import SoftMask, is_base, to_codes
from medray.modalities.genomics.formats.text import Chunk

_IS_BASE = is_base()


class Stretch(NamedTuple):
    """Bases [start, end) of a record and where their text lies in the file."""

    start: int
    end: int
    codes: bytes
    text_start: int
    text_end: int
    segment: int = 0


class _Stream:
    """The bases of a record from `first` on, with the offset of each in the file."""

    def __init__(self, pieces: Iterable[Chunk], soft_mask: SoftMask) -> None:
        self._pieces = iter(pieces)
        self._soft_mask: SoftMask = soft_mask
        self.first, self._codes, self._offsets = 0, b"", np.zeros(0, np.int64)

    @property
    def end(self) -> int:
        """The number of bases read so far."""
        return self.first + len(self._codes)

    def fill(self, end: int) -> bool:
        """Read on until `end` bases are read; False where the record ends before that."""
        new_codes, new_offsets, reached = [self._codes], [self._offsets], self.end
        while reached < end and (piece := next(self._pieces, None)) is not None:
            codes = to_codes(piece.text, self._soft_mask)
            new_codes.append(codes)
            new_offsets.append(np.flatnonzero(_IS_BASE[np.frombuffer(piece.text, np.uint8)]) + piece.offset)
            reached += len(codes)
        if len(new_codes) > 1:
            self._codes, self._offsets = b"".join(new_codes), np.concatenate(new_offsets)
        return reached >= end

    def drop(self, before: int) -> None:
        """Forget the bases before this one, once they are many."""
        dropped = min(before, self.end) - self.first
        if dropped > len(self._codes) // 2:
            self._codes, self._offsets = self._codes[dropped:], self._offsets[dropped:].copy()
            self.first += dropped

    def cut(self, start: int, end: int, segment: int) -> Stretch:
        """Bases [start, end), which have been read and not dropped."""
        low, high = start - self.first, end - self.first
        text_start, text_end = int(self._offsets[low]), int(self._offsets[high - 1]) + 1
        return Stretch(start, end, self._codes[low:high], text_start, text_end, segment)


def tile(
    pieces: Iterable[Chunk], length: int, step: int, cuts: Iterable[int] = (), soft_mask: SoftMask = "ignore"
) -> Iterator[Stretch]:
    """Windows of up to `length` bases, one every `step`, from the first base of each segment until its last is covered.

    Segments end at `cuts`, ascending; no window reaches over a cut. The last window of a segment may be short.
    """
    stream = _Stream(pieces, soft_mask)
    start = 0
    for segment, stop in enumerate([*cuts, None]):
        while stop is None or start < stop:
            limit = start + length if stop is None else min(start + length, stop)
            stream.fill(limit)
            end = min(limit, stream.end)
            if end <= start:
                return
            yield stream.cut(start, end, segment)
            if end == stop or not stream.fill(end + 1):
                break
            start += step
            stream.drop(start if stop is None else min(start, stop))
        if stop is not None:
            start = stop
            stream.drop(start)
