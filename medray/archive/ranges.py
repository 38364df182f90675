"""Ranges: what numbers the training archive's entries stated, and how far outside of them another entry lies.

A number outside is no other kind of data: it is told beside the score, and refuses only where a run file says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from medray.archive.eligibility import Fact, Refused, number, shown_value, value_of

ROBUST = 1.4826
"""Median absolute deviation to standard deviation, for a normal distribution (Rousseeuw and Croux 1993)."""
LEAST_SCALE = 0.05
"""The least scale as a share of the median's size, so that an archive of one slice thickness has one."""
DIGITS = 2
"""Digits of a distance; one that rounds to 0 is none."""


class Range(BaseModel):
    """Numbers of one fact over the entries of a training archive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    least: float
    """The least number of an entry."""
    greatest: float
    """The greatest number of an entry."""
    scale: float
    """A robust standard deviation: 1.4826 times the median absolute deviation, at least 5 % of the median's size; 1 where
    both are 0."""
    entries: int
    """How many stated it."""

    def distance(self, value: float) -> float:
        """Distance from the nearer end of the range, in robust standard deviations, to two digits; 0 within the range."""
        return round(max(self.least - value, value - self.greatest, 0.0) / self.scale, DIGITS)


Ranges = dict[str, Range]
"""Fact (`spacing_mm[1]`) to the range of the training archive."""


def learnt_ranges(facts: Iterable[Mapping[str, Fact]], names: Sequence[str]) -> Ranges:
    """Ranges of these facts over entries; one that none states is left out."""
    values: dict[str, list[float]] = {name: [] for name in names}
    for entry in facts:
        for name in names:
            values[name] += _numbers(value_of(entry, name))
    return {name: range_of(np.array(found)) for name, found in values.items() if found}


def range_of(values: np.ndarray) -> Range:
    """The range of these numbers (N,), at least one."""
    median = float(np.median(values))
    spread = ROBUST * float(np.median(np.abs(values - median)))
    scale = max(spread, LEAST_SCALE * abs(median)) or 1.0
    return Range(
        least=float(values.min()), greatest=float(values.max()), scale=float(f"{scale:.6g}"), entries=len(values)
    )


def outside(facts: Mapping[str, Fact], ranges: Mapping[str, Range]) -> dict[str, float]:
    """How far outside each fact lies that lies outside; of several values the farthest."""
    distances = {
        name: max((known.distance(value) for value in _numbers(value_of(facts, name))), default=0.0)
        for name, known in ranges.items()
    }
    return {name: distance for name, distance in distances.items() if distance > 0}


def refused_outside(
    facts: Mapping[str, Fact], ranges: Mapping[str, Range], limit: float, shown: Iterable[str]
) -> Refused | None:
    """The first fact that lies farther outside than `limit`; None: eligible."""
    for name, distance in outside(facts, ranges).items():
        if distance > limit:
            known = ranges[name]
            stated = shown_value(name, value_of(facts, name), {*shown})
            return Refused(
                rule=name,
                detail=f"{name}: {stated}; the training archive held {known.least:g} to {known.greatest:g}, and this lies "
                f"{distance:g} robust deviations outside, more than refuse_outside = {limit:g}",
            )
    return None


def _numbers(value: Fact) -> list[float]:
    numbers = (number(each) for each in (value if isinstance(value, list) else [value]))
    return [each for each in numbers if each is not None and math.isfinite(each)]
