"""Samples of health records as reports show them: their events by code and by the time before the prediction."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from medray.modalities.pictures import Timeline

LINES = 10
"""Codes with a line of their own, the most frequent of a sample; the others share one."""
HOUR_US, DAYS_FROM = 3_600_000_000, 14 * 24
"""Hours from which on times are in days."""


def pictures(samples: pa.RecordBatch, names: Mapping[int, str]) -> list[Timeline | None]:
    """A timeline of each sample (see reading.PAYLOAD); None where it has no event. `names`: hash to code; a code that is not in
    it is among the others, nameless."""
    found: list[Timeline | None] = []
    for row in range(len(samples)):
        codes, before, values = (_of(samples.column(name), row) for name in ("codes", "before", "values"))
        found.append(_timeline(codes, before, values, names) if len(codes) else None)
    return found


def _of(column: pa.ListArray, row: int) -> np.ndarray:
    """The items of one sample."""
    return column.slice(row, 1).flatten().to_numpy(zero_copy_only=False)


def _timeline(codes: np.ndarray, before: np.ndarray, values: np.ndarray, names: Mapping[int, str]) -> Timeline:
    """(E,) code hashes, microseconds before the prediction time, and numbers."""
    hours = before / HOUR_US
    days = bool(hours.max() > DAYS_FROM)
    times = hours / 24 if days else hours
    found, counts = np.unique(codes, return_counts=True)
    known = [(-count, names[code], code) for code, count in zip(found.tolist(), counts.tolist(), strict=True)
             if code in names]  # fmt: skip
    shown = sorted(known)[:LINES]
    lines: list[tuple[str, np.ndarray, np.ndarray]] = [
        (name, times[codes == code], values[codes == code]) for _, name, code in shown
    ]
    rest = ~np.isin(codes, np.array([code for *_, code in shown], codes.dtype))
    if rest.any():
        others = len(found) - len(shown)
        # numbers of different codes cannot be compared
        lines.append(
            (f"{others:,} other code{'s' if others > 1 else ''}", times[rest], np.full(np.count_nonzero(rest), np.nan))
        )
    unit = "Days" if days else "Hours"
    listed = ", ".join(f"{name} {-count:,}" for count, name, _ in shown[:3])
    alt = (
        f"{len(codes):,} events of {len(found):,} codes in {times.max():.3g} {unit.lower()} before the prediction time"
    )
    return Timeline(lines, f"{unit} before the prediction time", f"{alt}: {listed}" if listed else alt)
