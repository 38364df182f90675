"""What mappers of FHIR resources need besides the resource: how times are read, and the notes they leave.

The rule of times (one for all types)

- A time is UTC. A date, a month or a year lies at the end of its last day (`dates = "end"`: nothing is known early), or
  at the start of its first (`dates = "start"`). Whatever `dates` says, a birth and the start of an encounter lie at the
  start, and a death and every end (Period.end, abatement) at the end: FHIR R4 Period.end includes any time of its day.
- No end lies before its start. One that contradicts it (an earlier day, or an earlier time where both have one) is left
  out and counted.
- `time = "known"`: an event stands where it was known: at Condition.recordedDate, AllergyIntolerance.recordedDate,
  Immunization.recorded, Observation.issued, DiagnosticReport.issued, where these are later than when it happened.
  `time = "onset"`: where it happened. Both count the events for which that makes a difference.
- Where an admission or a death has a time, dates of that day lie between them (days.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal
from zoneinfo import ZoneInfo

from medray.modalities.ehr.convert.codes import Coding, coding, table, text
from medray.modalities.ehr.convert.events import Drop, Event
from medray.modalities.ehr.convert.times import Moment, moment

Dates = Literal["start", "end"]
SECOND = 1_000_000
"""Microseconds."""


@dataclass
class Reading:
    dates: Dates = "end"
    zone: ZoneInfo | None = None
    static_untimed: bool = False
    keep_text: bool = False
    time: Literal["known", "onset"] = "known"
    suffix: str = ""
    """What the status appends to the resource's codes."""
    notes: list[str] = field(default_factory=list)

    def at(self, value: str, dates: Dates | None = None) -> Moment:
        found = moment(value, dates or self.dates, self.zone)
        if found.note:
            self.notes.append(found.note)
        return found

    def first(self, *values: Any) -> Moment | None:
        """The moment of the first that is given. Raises Drop."""
        given = next((found for value in values if (found := text(value))), None)
        return None if given is None else self.at(given)

    def period(self, value: Any, *, ends: bool) -> Moment | None:
        """A period as one moment: its end, or its start, whichever of the two is asked for and given."""
        start, end = (text(table(value).get(name)) for name in ("start", "end"))
        if ends and (over := self.end(end, self._quietly(start))) is not None:
            return over
        if start:
            return self.at(start)
        return self.at(end, "end") if end else None

    def _quietly(self, value: str | None) -> Moment | None:
        try:
            return moment(value or "", "start", self.zone)
        except Drop:
            return None

    def stands(self, happened: Moment | None, recorded: Any = None) -> Moment | None:
        """Where an event stands that happened and was recorded then. None: static. Raises Drop: nobody says when."""
        if self.time == "onset" and happened is not None:
            self._count_early(happened, recorded)
            return happened
        known = self.first(recorded)
        if happened is None or known is None:
            found = happened or known
            if found is None and not self.static_untimed:
                raise Drop("no_time")
            return found
        if _is_later(known, happened):
            self.notes.append("known_later")
            return known
        if known.days:
            return max(happened, known)
        return known if known.day >= happened.day and happened.days else happened  # at a time of the day it happened on

    def _count_early(self, happened: Moment, recorded: Any) -> None:
        known = self._quietly(text(recorded))
        if known is not None and _is_later(known, happened):
            self.notes.append("before_recorded")

    def end(self, value: Any, start: Moment | None, stands: Moment | None = None) -> Moment | None:
        """The end of what began at `start` and stands at `stands` (or there). None: none is given, or it is left out."""
        given = text(value)
        if given is None:
            return None
        try:
            found = self.at(given, "end")
        except Drop:
            self.notes.append("bad_time_left_out")
            return None
        if start is not None and (
            found.last_day < start.day or (not found.days and not start.days and found.us < start.us)
        ):
            self.notes.append("end_before_start")
            return None
        return max([found, *(each for each in (start, stands) if each is not None)], key=lambda each: each.us)

    def coded(self, concept: Any) -> Coding:
        found = coding(concept, self.notes)
        if found is None:
            raise Drop("no_code")
        return found


def _is_later(known: Moment, happened: Moment) -> bool:
    """Certainly so: another day, or another time where both have one (another second, where one has no fraction)."""
    if known.days or happened.days:
        return known.day > happened.last_day
    return known.us - happened.us >= (1 if happened.us % SECOND else SECOND)


def event(when: Moment | None, code: str, **values: Any) -> Event:
    if when is None:
        return Event(None, code, **values)
    return Event(when.us, code, day=when.day, days=when.days, **values)
