"""Durations as people write them in run files and on the command line."""

from __future__ import annotations

import re

UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
"""Seconds in each."""
PATTERN = r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)"
"""Of a regular expression: two groups, the number and the unit."""


def seconds_of(text: str) -> float:
    """Seconds of "30s", "1.5 h", "7d" or "2w". Raises ValueError."""
    found = re.fullmatch(PATTERN, text.strip())
    if found is None:
        raise ValueError(f"a duration is a number and a unit ({', '.join(UNITS)}), such as 48h; found {text!r}")
    return float(found[1]) * UNITS[found[2]]
