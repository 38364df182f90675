"""Times: text cells of a CSV to times in UTC, a whole column at once. What cannot be read as a time is null, never a guess."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.modalities.ehr.convert.settings import CsvTable

_STAMP = pa.timestamp("us")
# ISO 8601: a date, and a time of day to the minute, second or a fraction of it, and a zone
_ISO = (
    r"^(?P<day>\d{4}-\d\d-\d\d)(?:[ T](?P<time>\d\d:\d\d)(?::(?P<seconds>\d\d)(?:[.,](?P<part>\d{1,9}))?)?"
    r" ?(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?)?$"
)
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_CLOCK = r"^(?P<hours>\d{1,6}):(?P<minutes>[0-5]\d)(?::(?P<seconds>[0-5]\d))?$"
_SECONDS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
_FIRST_US, _LAST_US = -62135596800_000000, 253402300799_999999  # 0001-01-01 to 9999-12-31
_NONE = _LAST_US + 1
_HOUR_US, _MINUTE_US = 3_600_000_000, 60_000_000
_LARGEST_OFFSET = 14 * 60  # minutes; hl7.org/fhir/R4/datatypes.html#dateTime, after ISO 8601
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_LONG_FRACTION = re.compile(r"([.,]\d{6})\d+")
_PLAIN = re.compile(r"%[YmdHMSbBjaAp]")
"""Directives that Arrow and Python read and write alike."""


class Times(NamedTuple):
    time: pa.Array
    """(N,) timestamps in UTC, null where there is none"""
    wrong: np.ndarray
    """(N,) bool: no time can be read"""
    unsure: np.ndarray
    """(N,) bool: in the hour that clocks show twice, or in the one that they pass over"""


def times(cells: pa.Array, table: CsvTable) -> Times:
    """(N,) strings to times. Days, hours and seconds that do not exist are none; fractions are cut to a microsecond."""
    unsure = np.zeros(len(cells), bool)
    if table.time_format == "hh:mm":
        time = _offset(_clock(cells), table)
    elif table.time_format in _SECONDS:
        numeric = pc.match_substring_regex(cells, _NUMBER)
        counted = pc.if_else(numeric, cells, None).cast(pa.float64())
        time = _offset(counted.to_numpy(zero_copy_only=False) * _SECONDS[table.time_format], table)
    elif table.time_format == "iso":
        time, unsure = _iso(cells, table.time_zone)
    else:
        time, unsure = _formatted(cells, table.time_format, table.time_zone)
    return Times(time, time.is_null().to_numpy(zero_copy_only=False), unsure)


def _clock(cells: pa.Array) -> np.ndarray:
    """(N,) seconds of hh:mm or hh:mm:ss, hours beyond 24 allowed; NaN where it is neither."""
    parts = pc.extract_regex(cells, _CLOCK)
    total = np.zeros(len(cells))
    for name, seconds in (("hours", 3600), ("minutes", 60), ("seconds", 1)):
        part = pc.struct_field(parts, name)
        if name == "seconds":
            part = pc.if_else(pc.equal(part, ""), "0", part)
        total += seconds * part.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return total


def _offset(seconds: np.ndarray, table: CsvTable) -> pa.Array:
    """(N,) seconds from the origin, NaN for none, to timestamps, rounded to a microsecond."""
    start = pa.scalar(table.origin, _STAMP).value
    assert start is not None
    us = seconds * 1e6 + start
    return _stamps(np.where(np.isfinite(us), us, 0).round(), np.isfinite(us))


def _stamps(us: np.ndarray, good: np.ndarray) -> pa.Array:
    """(N,) microseconds to timestamps; null where not good, or before year 1 or after year 9999."""
    good = good & (us >= _FIRST_US) & (us <= _LAST_US)
    return pa.array(np.where(good, us, 0).astype(np.int64), mask=~good).cast(_STAMP)


def _iso(cells: pa.Array, zone: str) -> tuple[pa.Array, np.ndarray]:
    """Dates (start of the day) and times; those with an offset by it, the others in `zone`; and which are unsure."""
    parts = pc.extract_regex(cells, _ISO)
    text = {name: pc.struct_field(parts, name) for name in ("day", "time", "seconds", "part", "zone")}
    days = _days(text["day"])
    hours, minutes = _two(text["time"], 0), _two(text["time"], 3)
    seconds = _two(text["seconds"], 0)
    part = _whole(pc.utf8_slice_codeunits(pc.utf8_rpad(text["part"], 6, "0"), 0, 6))
    good = (days != _NO_DAY) & (hours < 24) & (minutes < 60) & (seconds < 60)
    us = days * 86_400_000_000 + hours * _HOUR_US + minutes * _MINUTE_US + seconds * 1_000_000 + part
    offset, zoned, known = _offsets(text["zone"])
    local, unsure = _utc(_stamps(us, good & ~zoned), zone)
    fixed = _stamps(us - offset * _MINUTE_US, good & zoned & known)
    return pc.if_else(pa.array(zoned), fixed, local), unsure


_NO_DAY = np.iinfo(np.int64).min // 86_400_000_000 // 2


def _days(text: pa.Array) -> np.ndarray:
    """(N,) "YYYY-MM-DD" or null to int64 days since 1970; _NO_DAY for none, and for a day that does not exist."""
    words = text.dictionary_encode()
    known = np.array([_day(word) for word in words.dictionary.to_pylist()], np.int64)
    return np.append(known, _NO_DAY)[words.indices.fill_null(len(known)).to_numpy()]


def _day(word: str) -> int:
    try:
        return (datetime.strptime(word, "%Y-%m-%d").replace(tzinfo=UTC) - _EPOCH).days
    except ValueError:
        return int(_NO_DAY)


def _two(text: pa.Array, start: int) -> np.ndarray:
    """(N,) the number of two digits from `start` on; 0 where there is no text."""
    return _whole(pc.utf8_slice_codeunits(text, start, start + 2))


def _whole(text: pa.Array) -> np.ndarray:
    """(N,) digits to int64; 0 for none."""
    filled = pc.if_else(pc.equal(text, ""), "0", text).fill_null("0")
    return filled.cast(pa.int64()).to_numpy()


def _offsets(text: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) zones ("Z", "+0530", "-05", "" or null) to (minutes east of UTC; whether one is given; whether it is valid)."""
    words = text.fill_null("").dictionary_encode()
    each = [_minutes(word) for word in words.dictionary.to_pylist()]
    indices = words.indices.to_numpy()
    minutes = np.array([offset or 0 for offset in each], np.int64)[indices]
    named = np.array([word != "" for word in words.dictionary.to_pylist()], bool)[indices]
    return minutes, named, np.array([offset is not None for offset in each], bool)[indices]


def _minutes(zone: str) -> int | None:
    """Minutes east of UTC of "Z", "+05:30", "+0530" or "+05"; None beyond 14 hours, or 60 minutes or more."""
    if zone in ("", "Z"):
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    total = 60 * hours + minutes
    return None if minutes > 59 or total > _LARGEST_OFFSET else -total if zone[0] == "-" else total


# --- a format of the run file -----------------------------------------------------------------------------------


def _formatted(cells: pa.Array, form: str, zone: str) -> tuple[pa.Array, np.ndarray]:
    """By a strptime format. Arrow reads most cells; it is lax (30 February is a day in March, 20 is the year 20), so
    that a cell counts only when the time it gave is written the same way again. The others are read by Python."""
    empty = pa.array([False] * len(cells))
    if "%" in _PLAIN.sub("", form):
        read, sure = pa.nulls(len(cells), pa.timestamp("s")), empty
    else:
        read = pc.strptime(cells, form, "s", error_is_null=True)
        sure = pc.equal(pc.strftime(read, form, locale="C"), cells).fill_null(False)
    words = pc.if_else(sure, None, cells).dictionary_encode()
    each = np.array([_one(word, form) for word in words.dictionary.to_pylist()], np.int64).reshape(-1, 2)
    us, zoned = np.append(each, [[_NONE, 0]], axis=0)[words.indices.fill_null(len(each)).to_numpy()].T
    fixed = _stamps(us, zoned == 1)
    local = pc.coalesce(pc.if_else(sure, read, None).cast(_STAMP), _stamps(us, zoned == 0))
    local, unsure = _utc(local, zone)
    return pc.if_else(pa.array(zoned == 1), fixed, local), unsure


def _one(word: str, form: str) -> tuple[int, bool]:
    """(microseconds since 1970, _NONE for no time; they are in UTC, not in the zone of the run file) of one cell."""
    text = _LONG_FRACTION.sub(r"\1", word) if "%f" in form else word
    try:
        time = datetime.strptime(text, form)  # noqa: DTZ007 - of the zone of the run file, where it names none
        if time.tzinfo is None:
            return (time.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND, False
        far = abs(time.utcoffset() or timedelta()) > timedelta(minutes=_LARGEST_OFFSET)
        return (_NONE if far else (time - _EPOCH) // _MICROSECOND), True
    except (ValueError, OverflowError):
        return _NONE, False


def _utc(local: pa.Array, zone: str) -> tuple[pa.Array, np.ndarray]:
    """(times in UTC; those that the clocks of `zone` showed twice or never). Of two the first; of none the end."""
    if zone == "UTC":
        return local, np.zeros(len(local), bool)
    stamps = [
        pc.assume_timezone(local, zone, ambiguous=twice, nonexistent=never).cast(pa.int64())
        for twice, never in (("earliest", "latest"), ("latest", "latest"), ("earliest", "earliest"))
    ]
    chosen = stamps[0]
    unsure = pc.or_(pc.not_equal(chosen, stamps[1]), pc.not_equal(chosen, stamps[2])).fill_null(False)
    return chosen.cast(_STAMP), unsure.to_numpy(zero_copy_only=False)
