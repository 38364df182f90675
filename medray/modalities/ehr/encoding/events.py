"""Events: one step each, padded at the end to the longest sample of the batch."""

# B sample, T event

from __future__ import annotations

import numpy as np

from medray.modalities.ehr.encoding.bins import HOUR_US
from medray.modalities.ehr.encoding.vocabulary import Lookup

FEATURES = 4
"""z-score or 0; 1 where there is a number; log1p hours since the event before, 0 for the first; log1p hours to the
prediction time."""


def events(
    lookup: Lookup, sample: np.ndarray, codes: np.ndarray, before: np.ndarray, values: np.ndarray, lengths: np.ndarray
) -> dict[str, np.ndarray]:
    """`codes` (B, T) int32, `sequence` (B, T, 4) float32 and `mask` (B, T) bool of events (N,), `lengths` (B,)."""
    rows, longest = len(lengths), max(1, int(lengths.max(initial=0)))
    word = lookup.positions(codes)
    score, is_number = lookup.scores(word, values)
    gap = np.zeros(len(codes))
    gap[1:] = np.where(sample[1:] == sample[:-1], before[:-1] - before[1:], 0)
    step = np.arange(len(codes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = sample * longest + step
    out_codes = np.zeros(rows * longest, np.int32)
    out_codes[at] = word
    sequence = np.zeros((rows * longest, FEATURES), np.float32)
    sequence[at, 0] = score
    sequence[at, 1] = is_number
    sequence[at, 2] = np.log1p(gap / HOUR_US)
    sequence[at, 3] = np.log1p(before / HOUR_US)
    return {
        "codes": out_codes.reshape(rows, longest),
        "sequence": sequence.reshape(rows, longest, FEATURES),
        "mask": np.arange(longest) < lengths[:, None],
    }


def facts(
    lookup: Lookup, count: int, sample: np.ndarray, codes: np.ndarray, values: np.ndarray, rows: int
) -> np.ndarray:
    """(B, 2 x count) float32: a mark of presence and the z-score of each static code; the greatest of several values."""
    word = lookup.positions(codes)
    known = np.flatnonzero(word)
    score, is_number = lookup.scores(word, values)
    out = np.zeros((rows, count, 2), np.float32)
    out[sample[known], word[known] - 1, 0] = 1
    numbers = np.flatnonzero(is_number)
    out[sample[numbers], word[numbers] - 1, 1] = score[numbers]  # values ascend within a code: the last stays
    return out.reshape(rows, 2 * count)
