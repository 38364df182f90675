"""Summary: each code's numbers over the last hours or days, condensed to a few features that need no sequence model."""

# B sample, N event, C numeric code, M moment of `MOMENTS`

from __future__ import annotations

import numpy as np

from medray.modalities.ehr.encoding.vocabulary import Lookup
from medray.modalities.ehr.rules import duration_us
from medray.modalities.ehr.spec import EhrSpec

MOMENTS = ("measured", "log_count", "least", "greatest", "mean", "first", "last", "change", "deviation")
"""Features made of the z-scores or normal scores of a code's numbers; all 0 where there is none. log_count is
log(1 + count), change that of the least-squares line from the first number to the last."""


def width(spec: EhrSpec) -> int:
    """Number of features in `summary`: MOMENTS of each numeric code, in the order of the vocabulary, for each of `summaries`."""
    numeric = sum(code.std is not None for code in spec.vocabulary or ())
    return len(spec.summaries) * numeric * len(MOMENTS)


def summary(
    spec: EhrSpec,
    lookup: Lookup,
    sample: np.ndarray,
    codes: np.ndarray,
    before: np.ndarray,
    values: np.ndarray,
    rows: int,
) -> np.ndarray:
    """(B, width) float32 of events (N,), samples ascending and times within them. Both ends of a duration count."""
    numeric = np.array([code.std is not None for code in spec.vocabulary or ()], bool)
    column = np.append(-1, np.where(numeric, np.cumsum(numeric) - 1, -1))  # by position in the vocabulary, 0 unknown
    word = lookup.positions(codes)
    score, is_number = lookup.scores(word, values)
    numbers = np.flatnonzero(is_number)
    cell = sample[numbers] * int(numeric.sum()) + column[word[numbers]]
    score, before = score[numbers].astype(np.float64), before[numbers]
    cells = rows * int(numeric.sum())
    pieces: list[np.ndarray] = []
    for duration in spec.summaries:
        recent = np.flatnonzero(before <= duration_us(duration))
        pieces.append(moments(cell[recent], score[recent], before[recent], cells).reshape(rows, -1))
    return np.concatenate(pieces, axis=1) if pieces else np.zeros((rows, 0), np.float32)


def moments(cell: np.ndarray, score: np.ndarray, before: np.ndarray, cells: int) -> np.ndarray:
    """(cells, M) float32 of scores (N,) float64 in order of time, each in its cell; `before` in any one unit.

    Sums run in the order of events, cell by cell: what else is in the batch changes no bit.
    """
    count = np.bincount(cell, minlength=cells)
    some = np.maximum(count, 1)
    mean = np.bincount(cell, score, cells) / some
    least, greatest = np.full(cells, np.inf), np.full(cells, -np.inf)
    np.minimum.at(least, cell, score)
    np.maximum.at(greatest, cell, score)
    first, last, began, ended = (np.zeros(cells) for _ in range(4))
    last[cell], ended[cell] = score, -before  # of one cell's events, numpy keeps the last
    first[cell[::-1]], began[cell[::-1]] = score[::-1], -before[::-1]
    from_mean = score - mean[cell]
    time = -before - (np.bincount(cell, -before, cells) / some)[cell]
    spread = np.bincount(cell, time * time, cells)
    slope = np.divide(np.bincount(cell, time * from_mean, cells), spread, where=spread > 0, out=np.zeros(cells))
    deviation = np.sqrt(np.bincount(cell, from_mean * from_mean, cells) / some)
    measures = np.stack(
        [count > 0, np.log1p(count), least, greatest, mean, first, last, slope * (ended - began), deviation], axis=1
    )
    measures[count == 0] = 0
    return measures.astype(np.float32)
