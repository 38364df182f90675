"""Dates and times of DICOM (PS3.5 6.2: DA, TM, DT) as seconds on one clock, for differences between them."""

from __future__ import annotations

import re
from datetime import date, timedelta

DAY = 86400.0
_TM = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(\.\d{1,6})?)?)?")
_DA = re.compile(r"(\d{4})[.]?(\d{2})[.]?(\d{2})")  # with points in ACR-NEMA's files
_DT = re.compile(r"(\d{8})(\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?)([+-]\d{4})?")


def time_of_day(text: str) -> float:
    """Seconds since midnight of a TM. Raises ValueError."""
    match = _TM.fullmatch(text.strip())
    if match is None:
        raise ValueError("not a time")
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3])
    if hours > 23 or minutes > 59 or seconds > 60:
        raise ValueError("not a time")
    return hours * 3600 + minutes * 60 + seconds + float(match[4] or 0)


def day(text: str) -> float:
    """Seconds, counted from the year 1, at the midnight that a DA begins with. Raises ValueError."""
    match = _DA.fullmatch(text.strip())
    if match is None:
        raise ValueError("not a date")
    return date(int(match[1]), int(match[2]), int(match[3])).toordinal() * DAY


def moment(text: str, offset: str | None = None) -> float:
    """Seconds of a DT on the local clock, which is `offset` (&ZZXX) from UTC where the file states that: a DT with an offset
    of its own is brought to it. Raises ValueError for one that is not exact to the hour.
    """
    match = _DT.fullmatch(text.strip())
    if match is None:
        raise ValueError("not a date and time")
    seconds = day(match[1]) + time_of_day(match[2])
    if match[3] and offset:
        seconds += _offset(offset) - _offset(match[3])
    return seconds


def _offset(text: str) -> float:
    match = re.fullmatch(r"([+-])(\d{2})(\d{2})", text.strip())
    if match is None:
        raise ValueError("not an offset from UTC")
    seconds = timedelta(hours=int(match[2]), minutes=int(match[3])).total_seconds()
    return -seconds if match[1] == "-" else seconds
