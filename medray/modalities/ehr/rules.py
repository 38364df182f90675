"""Durations ("48h") and prediction-time rules ("first of ICU* + 24h") of a run file."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from medray.durations import PATTERN, UNITS, seconds_of

_RULE = re.compile(rf"(first|last)(?:\s+(?:event\s+)?of\s+(?:code\s+)?(\S(?:.*?\S)??))?(?:\s*\+\s*{PATTERN})?")


class TimeRule(NamedTuple):
    """A prediction time: that of the first or last event (of a code), plus a duration."""

    which: Literal["first", "last"]
    code: str | None
    """Glob; None: any code."""
    after_us: int

    def __str__(self) -> str:
        of = f" of {self.code}" if self.code else ""
        seconds = self.after_us / 1e6
        unit = next(unit for unit in ("h", "min", "s") if unit == "s" or seconds % UNITS[unit] == 0)
        after = f" + {seconds / UNITS[unit]:.15g}{unit}" if self.after_us else ""
        return f"{self.which}{of}{after}"


def duration_us(text: str) -> int:
    """Microseconds of "30min", "48h" or "365d". Raises ValueError."""
    seconds = seconds_of(text)
    if seconds == 0:
        raise ValueError(f"a duration is above 0 here; found {text!r}")
    return round(seconds * 1_000_000)


def parse_rule(text: str) -> TimeRule:
    """The rule of "first + 48h", "last" or "first of CODE + 24h". Raises ValueError."""
    match = _RULE.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f'a prediction time is "first", "last" or "first of CODE", optionally followed by "+ 48h"; found {text!r}'
        )
    after = duration_us(f"{match[3]}{match[4]}") if match[3] and float(match[3]) else 0
    return TimeRule("first" if match[1] == "first" else "last", match[2], after)
