"""Durations as people write them in run files and on the command line."""

from __future__ import annotations

import re
import time

UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
"""Seconds in each."""
PATTERN = r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)"
"""Regular expression of two groups, the number and the unit."""


def seconds_of(text: str) -> float:
    """Seconds of "30s", "1.5 h", "7d" or "2w". Raises ValueError."""
    match = re.fullmatch(PATTERN, text.strip())
    if match is None:
        raise ValueError(f"a duration is a number and a unit ({', '.join(UNITS)}), such as 48h; found {text!r}")
    return float(match[1]) * UNITS[match[2]]


_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")


def deadline_at(text: str, now: float) -> float:
    """Seconds since the epoch of the next "06:00" by this machine's local clock after `now`, or of "4h" after it.

    A duration is as `durations.seconds_of` reads it. On the nights when clocks are changed "06:00" is what the clock on the wall
    shows. Raises ValueError for anything else.
    """
    clock = _CLOCK.fullmatch(text.strip())
    if clock is None:
        try:
            return now + seconds_of(text)
        except ValueError:
            expected = 'expected a local time such as "06:00", or a duration such as "30s", "90min" or "4h"'
            raise ValueError(expected) from None
    today = time.localtime(now)
    for days in (0, 1):
        day = (today.tm_year, today.tm_mon, today.tm_mday + days, int(clock[1]), int(clock[2]), 0, 0, 0, -1)
        at = time.mktime(day)  # -1: whether summer time holds is looked up for that day
        if at > now:
            break
    return at
