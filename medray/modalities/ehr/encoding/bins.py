"""Bins: events to a regular grid of time, the last number carried forward, with marks of what was measured when."""

# B sample, T bin, F numeric code, P code of presence alone

from __future__ import annotations

import numpy as np

from medray.modalities.ehr.encoding.vocabulary import Lookup
from medray.modalities.ehr.spec import EhrSpec

HOUR_US = 3_600_000_000


def features(spec: EhrSpec) -> int:
    """Channels of `sequence`: a z-score for each code with numbers, a mark of presence for each code, and the time since its
    last event where `since_last` asks for it."""
    codes = spec.vocabulary or ()
    return sum(code.std is not None for code in codes) + len(codes) * (2 if spec.since_last else 1)


def bins(
    spec: EhrSpec,
    lookup: Lookup,
    sample: np.ndarray,
    codes: np.ndarray,
    before: np.ndarray,
    values: np.ndarray,
    rows: int,
) -> np.ndarray:
    """(B, T, features) float32 of events (N,), samples ascending and times within them: see `features` for the order.

    Bin t has the events from window start + t bins on; one at the prediction time is in the last bin. The memory layout
    is T first, as recurrent layers take it.
    """
    vocabulary = spec.vocabulary or ()
    steps, width, channels = spec.bins, len(vocabulary), features(spec)
    numeric = np.array([code.std is not None for code in vocabulary], bool)
    count = int(numeric.sum())
    word = lookup.positions(codes)
    if not word.all():
        known = np.flatnonzero(word)
        sample, word, before, values = sample[known], word[known], before[known], values[known]
    step = np.minimum(((spec.window_us or 0) - before) // spec.bin_us, steps - 1)
    score, is_number = lookup.scores(word, values)
    cell = (step * rows + sample) * channels  # of the flat grid: several times faster than three indices
    grid = np.zeros((steps, rows, channels), np.float32)
    column = np.append(-1, np.where(numeric, np.cumsum(numeric) - 1, -1))  # by position in the vocabulary, 0 unknown
    _numbers(grid, count, spec.bin_value, (cell + column[word])[is_number], score[is_number])
    counted = is_number | ~numeric[word - 1]  # a numeric code whose number is missing was not measured
    grid.reshape(-1)[(cell + (count + word - 1))[counted]] = 1
    if spec.since_last:
        grid[:, :, count + width :] = _hours_since(
            spec, (steps, rows, width), step[counted], sample[counted], word[counted] - 1, before[counted]
        )
    return grid.transpose(1, 0, 2)


def _numbers(grid: np.ndarray, count: int, how: str, cell: np.ndarray, score: np.ndarray) -> None:
    """Fill the first `count` channels of `grid` (T, B, features), zeros, with each bin's number, or the last one before
    it. `cell` (N,): where in the flat grid each score belongs."""
    flat = grid.reshape(-1)
    if how == "mean":
        cells, number = np.unique(cell, return_inverse=True)
        flat[cells] = (np.bincount(number, score) / np.bincount(number)).astype(np.float32)
    else:
        flat[cell] = score  # of one cell's events, numpy keeps the last
    carried = np.zeros(grid.shape, bool)
    carried[:, :, :count] = True
    carried.reshape(-1)[cell] = False
    width = grid.shape[1] * grid.shape[2]
    by_step, carried = grid.reshape(-1, width), carried.reshape(-1, width)
    # over whole rows, the other channels too: one long run is faster than many short ones
    for t in range(1, len(grid)):
        np.copyto(by_step[t], by_step[t - 1], where=carried[t])


def _hours_since(
    spec: EhrSpec, shape: tuple[int, ...], step: np.ndarray, sample: np.ndarray, word: np.ndarray, before: np.ndarray
) -> np.ndarray:
    """(T, B, F) log1p hours from each code's last event to the bin's end; the whole window where there was none."""
    window_us = spec.window_us or 0
    last = np.full(shape, -1.0)  # hours from the window's start
    last[step, sample, word] = (window_us - before) / HOUR_US
    np.maximum.accumulate(last, axis=0, out=last)
    ends = (np.arange(len(last)) + 1)[:, None, None] * (spec.bin_us / HOUR_US)
    hours = np.where(last < 0, window_us / HOUR_US, np.maximum(ends - last, 0))
    return np.log1p(hours).astype(np.float32)
