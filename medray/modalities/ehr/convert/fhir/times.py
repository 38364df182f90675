"""Moment: a FHIR date or time as microseconds since 1970 in UTC, with the days as they were written."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from medray.modalities.ehr.convert.events import Drop

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

# FHIR R4 dateTime.value and instant.value (the regex of their definitions): no hour 24, seconds up to 60, zones up to
# 14:00. Seconds and zone may be missing here: the zone's lack is a reason of its own.
_MOMENT = re.compile(
    r"(?P<date>\d{4}(?:-(?:0[1-9]|1[0-2])(?P<day>-(?:0[1-9]|[12]\d|3[01]))?)?)"
    r"(?P<time>T(?:[01]\d|2[0-3]):[0-5]\d(?::(?P<second>[0-5]\d|60)(?:\.\d+)?)?"
    r"(?P<zone>Z|[+-](?:(?:0\d|1[0-3]):[0-5]\d|14:00))?)?"
)


class Moment(NamedTuple):
    us: int
    """Microseconds since 1970-01-01T00:00 UTC."""
    day: int
    """The (first) day as it is written, in days since 1970-01-01."""
    days: int = 0
    """How many days a date, a month or a year has; 0: a time of day is given."""

    @property
    def note(self) -> str | None:
        """A key of events.NOTES, where less than a time of day is given."""
        return (None, "date_only")[self.days] if self.days < 2 else "month_or_year_only"

    @property
    def last_day(self) -> int:
        return self.day + max(self.days - 1, 0)


def moment(text: str, dates: Literal["start", "end"], zone: ZoneInfo | None) -> Moment:
    """YYYY, YYYY-MM, YYYY-MM-DD or a time with zone. Raises Drop: bad_time, no_time_zone.

    A date is the start of its first day, or the end of its last, in `zone` or else in UTC. Second 60 is the next
    minute's first, as POSIX counts it; digits beyond microseconds are cut off.
    """
    match = _MOMENT.fullmatch(text)
    if match is None or (match["time"] and not match["day"]):
        raise Drop("bad_time")
    try:
        if match["time"]:
            return _timed(text, match, zone)
        first, after = _days(match["date"])
        edge = first if dates == "start" else after
        midnight = datetime(edge.year, edge.month, edge.day, tzinfo=zone or UTC)
    except (ValueError, OverflowError):  # 30 February, the year after 9999
        raise Drop("bad_time") from None
    us = _us(midnight) - (dates == "end")
    return Moment(us, _day(first), (after - first).days)


def _timed(text: str, match: re.Match[str], zone: ZoneInfo | None) -> Moment:
    leap = match["second"] == "60"
    if leap:
        text = text[: match.start("second")] + "59" + text[match.end("second") :]
    time = _zoned(datetime.fromisoformat(text), zone)
    if leap:
        time = time.replace(microsecond=0) + timedelta(seconds=1)
    return Moment(_us(time), _day(date.fromisoformat(match["date"])))


def _zoned(time: datetime, zone: ZoneInfo | None) -> datetime:
    if time.tzinfo is not None:
        return time
    if zone is None:
        raise Drop("no_time_zone")
    return time.replace(tzinfo=zone).astimezone(UTC)  # an hour that comes twice: the first


def _days(text: str) -> tuple[date, date]:
    """(first day, day after the last) of a year, a month or a date."""
    year, month, day = (int(part) for part in (text + "-01-01")[:10].split("-"))
    first = date(year, month, day)
    if len(text) == 10:
        return first, first + timedelta(days=1)
    if len(text) == 7:
        return first, date(year + month // 12, month % 12 + 1, 1)
    return first, date(year + 1, 1, 1)


def _day(day: date) -> int:
    return day.toordinal() - EPOCH.toordinal()


def _us(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND
