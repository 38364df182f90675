"""Shares, durations and levels as the morning page writes them."""

from __future__ import annotations

from medray.learning.metrics import NONE

LEVEL_WORDS = {"alert": "alert", "watch": "watch", "none": "none", "too few": "too few scores", "": "nothing scored"}


def share(part: float | None) -> str:
    return NONE if part is None else f"{part:.2%}" if part < 0.1 else f"{part:.0%}"


def duration(seconds: float) -> str:
    """ "3.5 ms", "0.4 s", "12 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def moment(text: str) -> str:
    """ISO 8601 to "2026-11-24 06:00"."""
    return text[:16].replace("T", " ")


def nights_said(count: int) -> str:
    """ "1 night", "30 nights"."""
    return f"{count} night{'' if count == 1 else 's'}"
