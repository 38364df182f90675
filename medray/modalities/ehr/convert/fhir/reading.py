"""Reading: what mappers of FHIR resources need besides the resource: how times are read, and the notes they leave.

The rule of times (one for all types)

- A time is UTC. A date, a month or a year is the end of its last day (`dates = "end"`: nothing is known early), or
  the start of its first (`dates = "start"`). Whatever `dates` says, a birth and the start of an encounter are the start
  of the day, and a death and every end (Period.end, abatement) its end: Period.end includes any time of its day.
- No end is before its start. One that contradicts it (an earlier day, or an earlier time where both have one) is left
  out and counted.
- `time = "known"`: an event is at the time it became known: Condition.recordedDate, AllergyIntolerance.recordedDate,
  Immunization.recorded, Observation.issued, DiagnosticReport.issued, where these are later than when it happened.
  `time = "onset"`: when it happened. Both count the events for which that makes a difference.
- Where an admission or a death has a time, dates of that day are put between them (days.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from zoneinfo import ZoneInfo

from medray.modalities.ehr.convert.events import Drop, Event
from medray.modalities.ehr.convert.fhir.codes import Coding, coding, table, text
from medray.modalities.ehr.convert.fhir.json import JsonValue
from medray.modalities.ehr.convert.fhir.times import Moment, moment

Dates = Literal["start", "end"]
SECOND = 1_000_000
"""Microseconds."""


@dataclass
class Reading:
    """How one resource is read: the settings of the run file, what its status appends, and the notes it gets."""

    dates: Dates = "end"
    zone: ZoneInfo | None = None
    static_untimed: bool = False
    keep_text: bool = False
    time: Literal["known", "onset"] = "known"
    suffix: str = ""
    """What the status appends to the resource's codes."""
    medication: tuple[str, int] | None = None
    """Reference of a MedicationRequest's Medication and hash of its server, where only a look-up gives the code."""
    notes: list[str] = field(default_factory=list[str])
    """Keys of events.NOTES."""

    def at(self, value: str, dates: Dates | None = None) -> Moment:
        """The moment of a FHIR date, dateTime or instant; raises Drop: bad_time, no_time_zone."""
        when = moment(value, dates or self.dates, self.zone)
        if when.note:
            self.notes.append(when.note)
        return when

    def first(self, *values: JsonValue) -> Moment | None:
        """The moment of the first value that is a text; None where none is. Raises Drop."""
        written = next((stated for value in values if (stated := text(value))), None)
        return None if written is None else self.at(written)

    def period(self, value: JsonValue, *, ends: bool) -> Moment | None:
        """A period as one moment: its end where `ends` asks for it, else its start; the other where that one is missing."""
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

    def time_of_event(self, happened: Moment | None, recorded: JsonValue = None) -> Moment | None:
        """The time of an event that happened and was recorded at these times; None: static. Raises Drop: no time is known."""
        if self.time == "onset" and happened is not None:
            self._count_early(happened, recorded)
            return happened
        known = self.first(recorded)
        if happened is None or known is None:
            when = happened or known
            if when is None and not self.static_untimed:
                raise Drop("no_time")
            return when
        if _is_later(known, happened):
            self.notes.append("known_later")
            return known
        if known.days:
            return max(happened, known)
        return known if known.day >= happened.day and happened.days else happened  # at a time of the day it happened on

    def _count_early(self, happened: Moment, recorded: JsonValue) -> None:
        known = self._quietly(text(recorded))
        if known is not None and _is_later(known, happened):
            self.notes.append("before_recorded")

    def end(self, value: JsonValue, start: Moment | None, event_at: Moment | None = None) -> Moment | None:
        """The end of something that began at `start`, its event at `event_at` or `start`; never before either. None where no
        end is given, or it is left out."""
        written = text(value)
        if written is None:
            return None
        try:
            ended = self.at(written, "end")
        except Drop:
            self.notes.append("bad_time_left_out")
            return None
        if start is not None and (
            ended.last_day < start.day or (not ended.days and not start.days and ended.us < start.us)
        ):
            self.notes.append("end_before_start")
            return None
        return max([ended, *(each for each in (start, event_at) if each is not None)], key=lambda each: each.us)

    def coded(self, concept: JsonValue) -> Coding:
        """The coding that names a CodeableConcept. Raises Drop: no_code."""
        code = coding(concept, self.notes)
        if code is None:
            raise Drop("no_code")
        return code


def _is_later(known: Moment, happened: Moment) -> bool:
    """Whether it was certainly known later: on a later day, or at a later time where both have one (to the second where
    one has no fraction)."""
    if known.days or happened.days:
        return known.day > happened.last_day
    return known.us - happened.us >= (1 if happened.us % SECOND else SECOND)


def event(
    when: Moment | None, code: str, *, description: str | None = None, ref: str | None = None, ref_server: int = 0
) -> Event:
    """An event at a moment; a static one for None."""
    if when is None:
        return Event(None, code, None, None, description, ref, ref_server)
    return Event(when.us, code, None, None, description, ref, ref_server, when.day, when.days)
