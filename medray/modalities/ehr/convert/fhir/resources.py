"""One FHIR R4 resource to its events. Pure: a dict in, events out, or Drop.

Encounter            ENCOUNTER_START//CLASS//TYPE and ENCOUNTER_END//CLASS//TYPE, of period
Condition            CODE at onset, CODE//ABATEMENT; CODE//UNCONFIRMED (//PROVISIONAL, //DIFFERENTIAL) if not confirmed
Observation          CODE//UNIT with a number; CODE//VALUECODE; CODE//true; CODE where the value is left out.
                     CODE//UNIT//< where only a bound is known. Each component is an event of its own.
MedicationRequest    CODE of the medication at authoredOn
Procedure            CODE at performed (its start)
Immunization         CODE at occurrence; CODE//SUBPOTENT
AllergyIntolerance   ALLERGY//CODE at onset: the bare code would be a prescription; ALLERGY//CODE//UNCONFIRMED
DiagnosticReport     CODE at effective
Device               DEVICE//CODE; FHIR tells when it was made, not since when it is in use: untimed
Patient              MEDS_BIRTH, MEDS_DEATH; static GENDER//, RACE//, ETHNICITY//

Which statuses give events: fhir_status.py. Where events stand, at what happened or at when it was recorded:
fhir_reading.py. A period is over when it is known: an Observation or report of a period stands at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medray.modalities.ehr.convert.codes import code_text, coding, rows, table, text
from medray.modalities.ehr.convert.events import Drop, Event
from medray.modalities.ehr.convert.fhir.reading import Reading, event
from medray.modalities.ehr.convert.fhir.values import measured
from medray.modalities.ehr.convert.times import Moment

EXTENSIONS = {
    "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race": "RACE",
    "http://hl7.org/fhir/us/core/StructureDefinition/us-core-ethnicity": "ETHNICITY",
}
BIRTH_TIME = "http://hl7.org/fhir/StructureDefinition/patient-birthTime"
NOT_ENDED = ("arrived", "triaged", "in-progress", "onleave")
"""Encounter.status: an end is planned (FHIR R4 Period.end: in the future, it is expected)."""
ENDED = ("inactive", "remission", "resolved")
"""clinicalStatus of a Condition or an AllergyIntolerance."""

Mapper = Callable[[dict[str, Any], Reading], list[Event]]


def patient(found: dict[str, Any], reading: Reading) -> list[Event]:
    events = []
    if (born := _birth(found, reading)) is not None:
        events.append(event(born, "MEDS_BIRTH"))
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


def _birth(found: dict[str, Any], reading: Reading) -> Moment | None:
    exact = [
        each.get("valueDateTime")
        for each in rows(table(found.get("_birthDate")).get("extension"))
        if each.get("url") == BIRTH_TIME
    ]
    given = next((value for each in [*exact, found.get("birthDate")] if (value := text(each))), None)
    try:
        return None if given is None else reading.at(given, "start")
    except Drop:
        reading.notes.append("bad_time_left_out")
        return None


def _death(found: dict[str, Any], reading: Reading) -> list[Event]:
    """At deceasedDateTime. deceasedBoolean says that, not when: untimed."""
    if given := text(found.get("deceasedDateTime")):
        try:
            return [event(reading.at(given, "end"), "MEDS_DEATH")]
        except Drop:
            reading.notes.append("bad_time_left_out")
    if given or found.get("deceasedBoolean") is True:
        if reading.static_untimed:
            return [Event(None, "MEDS_DEATH")]
        reading.notes.append("death_without_time")
    return []


def encounter(found: dict[str, Any], reading: Reading) -> list[Event]:
    kind = next((each for each in (coding(each, reading.notes) for each in rows(found.get("type"))) if each), None)
    names = [code_text(table(found.get("class")).get("code"), reading.notes), kind.code if kind else None]
    tail = "//".join(name for name in names if name)
    if not tail:
        raise Drop("no_code")
    period = table(found.get("period"))
    description = kind.display if kind else None
    given, end = text(period.get("start")), text(period.get("end"))
    if end and found.get("status") in NOT_ENDED:
        reading.notes.append("planned_end_left_out")
        end = None
    start = None if given is None else reading.at(given, "start")
    if start is None and end is not None:
        return [event(reading.at(end, "end"), f"ENCOUNTER_END//{tail}", description=description)]
    events = [event(reading.stands(start), f"ENCOUNTER_START//{tail}", description=description)]
    if (over := reading.end(end, start)) is not None:
        events.append(event(over, f"ENCOUNTER_END//{tail}", description=description))
    return events


def _onset(found: dict[str, Any], reading: Reading) -> Moment | None:
    """onsetPeriod says when it began, not how long it was (FHIR R4 Condition.onset[x]): known by its end."""
    if text(found.get("onsetDateTime")):
        return reading.first(found["onsetDateTime"])
    return reading.period(found.get("onsetPeriod"), ends=reading.time == "known")


def condition(found: dict[str, Any], reading: Reading) -> list[Event]:
    code = reading.coded(found.get("code"))
    name, onset = code.code + reading.suffix, _onset(found, reading)
    when = reading.stands(onset, found.get("recordedDate"))
    events = [event(when, name, description=code.display)]
    period = table(found.get("abatementPeriod"))
    given = text(found.get("abatementDateTime")) or text(period.get("end"))
    display = f"{code.display}: abatement" if code.display else None
    if (over := reading.end(given, onset, when)) is not None:
        events.append(event(over, f"{name}//ABATEMENT", description=display))
    _note_lost_end(found, given, reading)
    return events


def _note_lost_end(found: dict[str, Any], given: str | None, reading: Reading) -> None:
    """It is over, and nobody says since when."""
    statuses = [each.get("code") for each in rows(table(found.get("clinicalStatus")).get("coding"))]
    ended = any(name in statuses for name in ENDED)
    if given is None and (ended or any(name.startswith("abatement") for name in found)):
        reading.notes.append("end_left_out")


def observation(found: dict[str, Any], reading: Reading) -> list[Event]:
    when = reading.stands(_effective(found, reading), found.get("issued"))
    code, own = coding(found.get("code"), reading.notes), None
    events, lost = _components(found, when, reading)
    valued = any(name.startswith("value") for name in found) or bool(found.get("dataAbsentReason"))
    if code is not None and (valued or not (events or lost)):
        try:
            own = measured(found, code, when, reading)
        except Drop:
            if not events or any(name.startswith("value") for name in found):
                raise
    if own is None and not events:
        raise Drop(lost[0] if lost else "no_code")
    return [own, *events] if own is not None else events


def _components(found: dict[str, Any], when: Moment | None, reading: Reading) -> tuple[list[Event], list[str]]:
    """(events, why others are none)"""
    events: list[Event] = []
    lost: list[str] = []
    for part in rows(found.get("component")):
        code = coding(part.get("code"), reading.notes)
        if code is None:
            reading.notes.append("component_without_code")
            continue
        try:
            events.append(measured(part, code, when, reading))
        except Drop as drop:
            reading.notes.append("component_left_out")
            lost.append(drop.reason)
    return events, lost


def _effective(found: dict[str, Any], reading: Reading) -> Moment | None:
    """effective[x] of an Observation or a report: of several times, or a period, the last."""
    times = table(found.get("effectiveTiming")).get("event")
    if isinstance(times, list) and (given := [each for each in times if text(each)]):
        return max(reading.at(each) for each in given)
    if single := text(found.get("effectiveDateTime")) or text(found.get("effectiveInstant")):
        return reading.at(single)
    return reading.period(found.get("effectivePeriod"), ends=True)


def medication_request(found: dict[str, Any], reading: Reading) -> list[Event]:
    """The reference to a Medication is resolved by the reader: it stands in medicationCodeableConcept, or in `ref`."""
    when = reading.stands(reading.first(found.get("authoredOn")))
    if ref := found.get("medication_ref"):
        return [event(when, "", ref=ref[0], ref_server=ref[1])]
    code = reading.coded(found.get("medicationCodeableConcept"))
    return [event(when, code.code, description=code.display)]


def procedure(found: dict[str, Any], reading: Reading) -> list[Event]:
    code, given = reading.coded(found.get("code")), text(found.get("performedDateTime"))
    happened = reading.at(given) if given else reading.period(found.get("performedPeriod"), ends=False)
    return [event(reading.stands(happened), code.code, description=code.display)]


def immunization(found: dict[str, Any], reading: Reading) -> list[Event]:
    code = reading.coded(found.get("vaccineCode"))
    when = reading.stands(reading.first(found.get("occurrenceDateTime")), found.get("recorded"))
    return [event(when, code.code + reading.suffix, description=code.display)]


def allergy(found: dict[str, Any], reading: Reading) -> list[Event]:
    code = reading.coded(found.get("code"))
    when = reading.stands(_onset(found, reading), found.get("recordedDate"))
    display = f"Allergy: {code.display}" if code.display else None
    _note_lost_end(found, None, reading)
    return [event(when, f"ALLERGY//{code.code}{reading.suffix}", description=display)]


def report(found: dict[str, Any], reading: Reading) -> list[Event]:
    code = reading.coded(found.get("code"))
    when = reading.stands(_effective(found, reading), found.get("issued"))
    if any(found.get(name) for name in ("conclusion", "conclusionCode", "presentedForm")):
        reading.notes.append("conclusion_left_out")
    return [event(when, code.code, description=code.display)]


def device(found: dict[str, Any], reading: Reading) -> list[Event]:
    code = reading.coded(found.get("type"))
    return [event(reading.stands(None), f"DEVICE//{code.code}", description=code.display)]


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
