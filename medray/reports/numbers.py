"""Scores as reports write them; metrics: learning/metrics.py. (`cli.console.readable` is the terminal's way.)"""

from __future__ import annotations

from medray.learning.metrics import NONE


def score_text(value: float | None) -> str:
    """A score or a measure of drift: three decimals, two significant digits below 0.01; NONE where there is none."""
    if value is None:
        return NONE
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"
