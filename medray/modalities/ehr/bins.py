"""Bins: events to a regular grid of time, the last number carried forward, and where something was measured."""

# B sample, T bin, F numeric code, P code of presence alone

from __future__ import annotations

import numpy as np

from medray.modalities.ehr.spec import EhrSpec
from medray.modalities.ehr.vocabulary import Lookup

HOUR_US = 3_600_000_000


def features(spec: EhrSpec) -> int:
    """Channels of `sequence`: a z-score for each code with numbers, present for each code, perhaps time since last."""
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

    Bin t holds events from window start + t bins on; one at the prediction time is in the last bin. The memory lies
    T first, as recurrent layers take it.
    """
    vocabulary = spec.vocabulary or ()
    steps, width, window_us = spec.bins, len(vocabulary), spec.window_us or 0
    numeric = np.array([code.std is not None for code in vocabulary], bool)
    column = np.append(-1, np.where(numeric, np.cumsum(numeric) - 1, -1))  # by place in the vocabulary, 0 unknown
    count = int(numeric.sum())
    place = lookup.places(codes)
    known = np.flatnonzero(place)
    sample, place, before = sample[known], place[known], before[known]
    step = np.minimum((window_us - before) // spec.bin_us, steps - 1)
    score, is_number = lookup.scores(place, values[known])
    grid = np.zeros((steps, rows, features(spec)), np.float32)
    _numbers(grid[:, :, :count], spec.bin_value, step, sample, column[place], score, is_number)
    present = grid[:, :, count : count + width]
    counted = is_number | ~numeric[place - 1]  # a numeric code whose number is missing was not measured
    present[step[counted], sample[counted], place[counted] - 1] = 1
    if spec.since_last:
        grid[:, :, count + width :] = _hours_since(
            spec, present.shape, step[counted], sample[counted], place[counted] - 1, before[counted]
        )
    return grid.transpose(1, 0, 2)


def _numbers(
    out: np.ndarray, how: str, step: np.ndarray, sample: np.ndarray, column: np.ndarray, score: np.ndarray,
    is_number: np.ndarray,
) -> None:  # fmt: skip
    """Fill `out` (T, B, F), zeros, with each bin's number, or the last one before it."""
    step, sample, column, score = (each[is_number] for each in (step, sample, column, score))
    measured = np.zeros(out.shape, bool)
    measured[step, sample, column] = True
    if how == "mean":
        flat = np.ravel_multi_index((step, sample, column), out.shape)
        cells, number = np.unique(flat, return_inverse=True)
        means = np.bincount(number, score) / np.bincount(number)
        out[np.unravel_index(cells, out.shape)] = means.astype(np.float32)
    else:
        out[step, sample, column] = score  # of one cell's events, numpy keeps the last
    for t in range(1, len(out)):
        np.copyto(out[t], out[t - 1], where=~measured[t])


def _hours_since(
    spec: EhrSpec, shape: tuple[int, ...], step: np.ndarray, sample: np.ndarray, place: np.ndarray, before: np.ndarray
) -> np.ndarray:
    """(T, B, F) log1p hours from each code's last event to the bin's end; the whole window where there was none."""
    window_us = spec.window_us or 0
    last = np.full(shape, -1.0)  # hours from the window's start
    last[step, sample, place] = (window_us - before) / HOUR_US
    np.maximum.accumulate(last, axis=0, out=last)
    ends = (np.arange(len(last)) + 1)[:, None, None] * (spec.bin_us / HOUR_US)
    hours = np.where(last < 0, window_us / HOUR_US, np.maximum(ends - last, 0))
    return np.log1p(hours).astype(np.float32)
