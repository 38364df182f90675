"""Moments as FHIR writes them, to microseconds since 1970 in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from medray.modalities.ehr.convert.events import Drop

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

# hl7.org/fhir/R4/datatypes.html#dateTime
_MOMENT = re.compile(
    r"\d{4}(?P<month>-\d\d(?P<day>-\d\d(?P<time>T\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?P<zone>Z|[+-]\d\d:\d\d)?)?)?)?"
)


class Moment(NamedTuple):
    us: int
    """Microseconds since 1970-01-01T00:00 UTC."""
    note: str | None = None
    """A key of events.NOTES, where less than a time of day is given."""


def moment(text: str, dates: Literal["start", "end"], zone: ZoneInfo | None) -> Moment:
    """YYYY, YYYY-MM, YYYY-MM-DD or a time with zone. Raises Drop: bad_time, no_time_zone."""
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise Drop("bad_time")
    try:
        if found["time"]:
            return Moment(_us(_zoned(datetime.fromisoformat(text), zone)))
        first, after = _days(text)
    except (ValueError, OverflowError):  # a 13th month, a 61st second
        raise Drop("bad_time") from None
    note = "date_only" if found["day"] else "month_or_year_only"
    return Moment(_us(first) if dates == "start" else _us(after) - 1, note)


def _zoned(time: datetime, zone: ZoneInfo | None) -> datetime:
    if time.tzinfo is not None:
        return time
    if zone is None:
        raise Drop("no_time_zone")
    return time.replace(tzinfo=zone).astimezone(UTC)  # an hour that comes twice: the first


def _days(text: str) -> tuple[datetime, datetime]:
    """(start of the first day, start of the day after the last) of a year, a month or a date."""
    year, month, day = (int(part) for part in (text + "-01-01")[:10].split("-"))
    first = datetime(year, month, day, tzinfo=UTC)
    if len(text) == 10:
        return first, first + timedelta(days=1)
    if len(text) == 7:
        return first, datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    return first, datetime(year + 1, 1, 1, tzinfo=UTC)


def _us(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND
