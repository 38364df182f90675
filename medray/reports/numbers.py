"""Numbers as reports write them. (`cli.console.readable` is the terminal's way: significant digits, any value.)"""

from __future__ import annotations

import math

NONE = "–"
"""Stands for a number that is not defined."""


def metric_text(value: float | None) -> str:
    """A metric: three decimals, one from 100 up; NONE where it is not defined."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def score_text(value: float | None) -> str:
    """A score or a measure of drift: three decimals, two significant digits below 0.01; NONE where there is none."""
    if value is None:
        return NONE
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"
