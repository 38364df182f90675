"""One FHIR R4 resource to its events. Pure: a dict in, events out, or Drop.

Encounter            ENCOUNTER_START//CLASS//TYPE and ENCOUNTER_END//CLASS//TYPE, of period
Condition            CODE at onset (else recordedDate), CODE//ABATEMENT
Observation          CODE//UNIT with a number; CODE//VALUECODE; CODE//true; CODE where the value is left out.
                     CODE//UNIT//< where only a bound is known. Each component is an event of its own.
MedicationRequest    CODE of the medication at authoredOn
Procedure            CODE at performed (its start)
Immunization         CODE at occurrence
AllergyIntolerance   ALLERGY//CODE at onset (else recordedDate): the bare code would be a prescription
DiagnosticReport     CODE at effective (else issued)
Device               DEVICE//CODE; FHIR tells when it was made, not since when it is in use: untimed
Patient              MEDS_BIRTH, MEDS_DEATH; static GENDER//, RACE//, ETHNICITY//

A period is over when it is known: an Observation or report of a period stands at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from medray.modalities.ehr.convert.codes import Coding, code_text, coding, rows, table, text, unit
from medray.modalities.ehr.convert.events import Drop, Event
from medray.modalities.ehr.convert.times import Moment, moment

MAX_FLOAT32 = 3.4028234e38
EXTENSIONS = {
    "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race": "RACE",
    "http://hl7.org/fhir/us/core/StructureDefinition/us-core-ethnicity": "ETHNICITY",
}
BIRTH_TIME = "http://hl7.org/fhir/StructureDefinition/patient-birthTime"


class Reference(NamedTuple):
    type: str
    id: str


@dataclass
class Reading:
    """What mappers need besides the resource, and the notes they leave."""

    dates: Literal["start", "end"] = "start"
    zone: ZoneInfo | None = None
    static_untimed: bool = False
    keep_text: bool = False
    notes: list[str] = field(default_factory=list)

    def at(self, value: str) -> int:
        return self._noted(moment(value, self.dates, self.zone))

    def birth(self, value: str) -> int:
        return self._noted(moment(value, "start", self.zone))

    def _noted(self, found: Moment) -> int:
        if found.note:
            self.notes.append(found.note)
        return found.us

    def first(self, *values: Any) -> int | None:
        """The moment of the first that is given; None: static. Raises Drop."""
        for value in values:
            if found := text(value):
                return self.at(found)
        if self.static_untimed:
            return None
        raise Drop("no_time")


Mapper = Callable[[dict[str, Any], Reading], list[Event]]


def _coded(concept: Any) -> Coding:
    found = coding(concept)
    if found is None:
        raise Drop("no_code")
    return found


def patient(found: dict[str, Any], reading: Reading) -> list[Event]:
    events = []
    if (born := _birth(found, reading)) is not None:
        events.append(Event(born, "MEDS_BIRTH"))
    if gender := code_text(found.get("gender")):
        events.append(Event(None, f"GENDER//{gender}"))
    for extension in rows(found.get("extension")):
        name = EXTENSIONS.get(extension.get("url", ""))
        for part in rows(extension.get("extension")) if name else []:
            value = table(part.get("valueCoding"))
            if part.get("url") == "ombCategory" and (code := code_text(value.get("code"))):
                events.append(Event(None, f"{name}//{code}", description=text(value.get("display"))))
    events += _death(found, reading)
    if not events:
        raise Drop("nothing_known")
    return events


def _birth(found: dict[str, Any], reading: Reading) -> int | None:
    exact = [
        each.get("valueDateTime")
        for each in rows(table(found.get("_birthDate")).get("extension"))
        if each.get("url") == BIRTH_TIME
    ]
    given = next((value for each in [*exact, found.get("birthDate")] if (value := text(each))), None)
    try:
        return None if given is None else reading.birth(given)
    except Drop:
        reading.notes.append("bad_time_left_out")
        return None


def _death(found: dict[str, Any], reading: Reading) -> list[Event]:
    """At deceasedDateTime. deceasedBoolean says that, not when: untimed."""
    if given := text(found.get("deceasedDateTime")):
        try:
            return [Event(reading.at(given), "MEDS_DEATH")]
        except Drop:
            reading.notes.append("bad_time_left_out")
    if given or found.get("deceasedBoolean") is True:
        if reading.static_untimed:
            return [Event(None, "MEDS_DEATH")]
        reading.notes.append("death_without_time")
    return []


def encounter(found: dict[str, Any], reading: Reading) -> list[Event]:
    if found.get("status") in ("planned", "cancelled"):
        raise Drop("not_done")
    kind = next((each for each in map(coding, rows(found.get("type"))) if each), None)
    names = [code_text(table(found.get("class")).get("code")), kind.code if kind else None]
    tail = "//".join(name for name in names if name)
    if not tail:
        raise Drop("no_code")
    period = table(found.get("period"))
    description = kind.display if kind else None
    start, end = text(period.get("start")), text(period.get("end"))
    events = []
    if start or not end:
        events.append(Event(reading.first(start), f"ENCOUNTER_START//{tail}", description=description))
    return events + _end(end, f"ENCOUNTER_END//{tail}", description, reading, alone=not events)


def _end(
    value: str | None, code: str, description: str | None, reading: Reading, *, alone: bool = False
) -> list[Event]:
    """The end of something that has begun: its time may be wrong, and the start still stands."""
    if value is None:
        return []
    try:
        return [Event(reading.at(value), code, description=description)]
    except Drop:
        if alone:
            raise
        reading.notes.append("bad_time_left_out")
        return []


def condition(found: dict[str, Any], reading: Reading) -> list[Event]:
    code = _coded(found.get("code"))
    onset, over = table(found.get("onsetPeriod")), table(found.get("abatementPeriod"))
    start = reading.first(found.get("onsetDateTime"), onset.get("start"), found.get("recordedDate"))
    end = text(found.get("abatementDateTime")) or text(over.get("end")) or text(onset.get("end"))
    if end is None and any(name.startswith("abatement") for name in found):
        reading.notes.append("end_left_out")
    display = f"{code.display}: abatement" if code.display else None
    return [Event(start, code.code, description=code.display), *_end(end, f"{code.code}//ABATEMENT", display, reading)]


def observation(found: dict[str, Any], reading: Reading) -> list[Event]:
    if found.get("status") == "cancelled":
        raise Drop("not_done")
    period, timing = table(found.get("effectivePeriod")), table(found.get("effectiveTiming"))
    times = timing.get("event")
    time = reading.first(
        found.get("effectiveDateTime"),
        found.get("effectiveInstant"),
        period.get("end"),
        period.get("start"),
        times[0] if isinstance(times, list) and times else None,
        found.get("issued"),
    )
    events = []
    for part in rows(found.get("component")):
        code = coding(part.get("code"))
        if code is None:
            reading.notes.append("component_without_code")
        else:
            events.append(_measured(part, code, time, reading))
    code = coding(found.get("code"))
    valued = any(name.startswith("value") for name in found)
    if code is not None and (valued or not events):
        events.insert(0, _measured(found, code, time, reading))
    if not events:
        raise Drop("no_code")
    return events


def _measured(found: dict[str, Any], code: Coding, time: int | None, reading: Reading) -> Event:
    """value[x] of an Observation or of a component."""
    plain = Event(time, code.code, description=code.display)
    match next(((name, value) for name, value in found.items() if name.startswith("value")), None):
        case None:
            return plain
        case ("valueQuantity", value):
            quantity = table(value)
            parts = [code.code, unit(quantity), code_text(quantity.get("comparator"))]
            number = _number(quantity.get("value"), reading)
            return plain._replace(code="//".join(part for part in parts if part), value=number)
        case ("valueCodeableConcept", value):
            if answer := coding(value):
                both = [code.display, answer.display]
                display = " = ".join(each for each in both if each) or None
                return plain._replace(code=f"{code.code}//{answer.code}", description=display)
            reading.notes.append("text_left_out")
        case ("valueBoolean", bool(value)):
            return plain._replace(code=f"{code.code}//{str(value).lower()}")
        case ("valueInteger", value):
            return plain._replace(value=_number(value, reading))
        case ("valueString", value):
            if reading.keep_text:
                return plain._replace(text=text(value))
            reading.notes.append("text_left_out")
        case _:
            reading.notes.append("value_left_out")
    return plain


def _number(value: Any, reading: Reading) -> float | None:
    """A JSON number that fits 32 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value) or abs(value) > MAX_FLOAT32:
        reading.notes.append("bad_value_left_out")
        return None
    return float(value)


def medication_request(found: dict[str, Any], reading: Reading) -> list[Event]:
    """The reference to a Medication is resolved by the reader: it stands in medicationCodeableConcept, or in `ref`."""
    if found.get("status") == "draft" or found.get("doNotPerform") is True:
        raise Drop("not_done")
    time = reading.first(found.get("authoredOn"))
    if ref := found.get("medication_ref"):
        return [Event(time, "", ref=ref)]
    code = _coded(found.get("medicationCodeableConcept"))
    return [Event(time, code.code, description=code.display)]


def procedure(found: dict[str, Any], reading: Reading) -> list[Event]:
    if found.get("status") in ("not-done", "preparation"):
        raise Drop("not_done")
    code, period = _coded(found.get("code")), table(found.get("performedPeriod"))
    time = reading.first(found.get("performedDateTime"), period.get("start"), period.get("end"))
    return [Event(time, code.code, description=code.display)]


def immunization(found: dict[str, Any], reading: Reading) -> list[Event]:
    if found.get("status") == "not-done":
        raise Drop("not_done")
    code = _coded(found.get("vaccineCode"))
    time = reading.first(found.get("occurrenceDateTime"), found.get("recorded"))
    return [Event(time, code.code, description=code.display)]


def allergy(found: dict[str, Any], reading: Reading) -> list[Event]:
    code = _coded(found.get("code"))
    onset = table(found.get("onsetPeriod"))
    time = reading.first(found.get("onsetDateTime"), onset.get("start"), found.get("recordedDate"))
    display = f"Allergy: {code.display}" if code.display else None
    return [Event(time, f"ALLERGY//{code.code}", description=display)]


def report(found: dict[str, Any], reading: Reading) -> list[Event]:
    if found.get("status") == "cancelled":
        raise Drop("not_done")
    code, period = _coded(found.get("code")), table(found.get("effectivePeriod"))
    time = reading.first(found.get("effectiveDateTime"), period.get("end"), period.get("start"), found.get("issued"))
    if any(found.get(name) for name in ("conclusion", "conclusionCode", "presentedForm")):
        reading.notes.append("conclusion_left_out")
    return [Event(time, code.code, description=code.display)]


def device(found: dict[str, Any], reading: Reading) -> list[Event]:
    code = _coded(found.get("type"))
    return [Event(reading.first(), f"DEVICE//{code.code}", description=code.display)]


MAPPERS: dict[str, tuple[Mapper, str]] = {
    "Patient": (patient, ""),
    "Encounter": (encounter, "subject"),
    "Condition": (condition, "subject"),
    "Observation": (observation, "subject"),
    "MedicationRequest": (medication_request, "subject"),
    "Procedure": (procedure, "subject"),
    "Immunization": (immunization, "patient"),
    "AllergyIntolerance": (allergy, "patient"),
    "DiagnosticReport": (report, "subject"),
    "Device": (device, "patient"),
}
"""Per resource type: its mapper, and the element that names the patient."""


def in_error(found: dict[str, Any]) -> bool:
    """Entered in error, or a diagnosis that was refuted."""
    verified = {each.get("code") for each in rows(table(found.get("verificationStatus")).get("coding"))}
    return found.get("status") == "entered-in-error" or not verified.isdisjoint({"entered-in-error", "refuted"})
