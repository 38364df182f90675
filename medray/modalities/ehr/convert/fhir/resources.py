"""MAPPERS: one FHIR R4 resource to its events. Pure: a JSON object in, events out, or Drop.

Encounter            ENCOUNTER_START//CLASS//TYPE and ENCOUNTER_END//CLASS//TYPE, of period
Condition            CODE at onset, CODE//ABATEMENT; CODE//UNCONFIRMED (//PROVISIONAL, //DIFFERENTIAL) if not confirmed
Observation          CODE//UNIT with a number; CODE//VALUECODE; CODE//true; CODE where the value is left out.
                     CODE//UNIT//< where only a bound is known. Each component is an event of its own.
MedicationRequest    CODE of the medication at authoredOn
Procedure            CODE at performed (its start)
Immunization         CODE at occurrence; CODE//SUBPOTENT
AllergyIntolerance   ALLERGY//CODE at onset: the bare code would be a prescription; ALLERGY//CODE//UNCONFIRMED
DiagnosticReport     CODE at effective
Device               DEVICE//CODE; FHIR says when it was made, not since when it is in use: untimed
Patient              MEDS_BIRTH, MEDS_DEATH; static GENDER//, RACE//, ETHNICITY//

Which statuses give events: status.py. When an event is, at when it happened or at when it was recorded: reading.py.
An Observation or report of a period is known when the period is over: its event is at the end.
"""

from __future__ import annotations

from collections.abc import Callable

from medray.modalities.ehr.convert.events import Drop, Event
from medray.modalities.ehr.convert.fhir.codes import code_text, coding, rows, table, text
from medray.modalities.ehr.convert.fhir.json import JsonObject
from medray.modalities.ehr.convert.fhir.reading import Reading, event
from medray.modalities.ehr.convert.fhir.times import Moment
from medray.modalities.ehr.convert.fhir.values import measured

EXTENSIONS = {
    "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race": "RACE",
    "http://hl7.org/fhir/us/core/StructureDefinition/us-core-ethnicity": "ETHNICITY",
}
BIRTH_TIME = "http://hl7.org/fhir/StructureDefinition/patient-birthTime"
NOT_ENDED = ("arrived", "triaged", "in-progress", "onleave")
"""Encounter.status: an end is planned (FHIR R4 Period.end: in the future, it is expected)."""
ENDED = ("inactive", "remission", "resolved")
"""clinicalStatus of a Condition or an AllergyIntolerance."""

Mapper = Callable[[JsonObject, Reading], list[Event]]


def patient(resource: JsonObject, reading: Reading) -> list[Event]:
    events: list[Event] = []
    if (born := _birth(resource, reading)) is not None:
        events.append(event(born, "MEDS_BIRTH"))
    if gender := code_text(resource.get("gender")):
        events.append(Event(None, f"GENDER//{gender}"))
    for extension in rows(resource.get("extension")):
        url = extension.get("url")
        name = EXTENSIONS.get(url) if isinstance(url, str) else None
        for part in rows(extension.get("extension")) if name else []:
            value = table(part.get("valueCoding"))
            if part.get("url") == "ombCategory" and (code := code_text(value.get("code"))):
                events.append(Event(None, f"{name}//{code}", description=text(value.get("display"))))
    events += _death(resource, reading)
    if not events:
        raise Drop("nothing_known")
    return events


def _birth(resource: JsonObject, reading: Reading) -> Moment | None:
    exact = [
        each.get("valueDateTime")
        for each in rows(table(resource.get("_birthDate")).get("extension"))
        if each.get("url") == BIRTH_TIME
    ]
    written = next((value for each in [*exact, resource.get("birthDate")] if (value := text(each))), None)
    try:
        return None if written is None else reading.at(written, "start")
    except Drop:
        reading.notes.append("bad_time_left_out")
        return None


def _death(resource: JsonObject, reading: Reading) -> list[Event]:
    """MEDS_DEATH at deceasedDateTime. deceasedBoolean tells that the patient died, not when: an untimed event."""
    if written := text(resource.get("deceasedDateTime")):
        try:
            return [event(reading.at(written, "end"), "MEDS_DEATH")]
        except Drop:
            reading.notes.append("bad_time_left_out")
    if written or resource.get("deceasedBoolean") is True:
        if reading.static_untimed:
            return [Event(None, "MEDS_DEATH")]
        reading.notes.append("death_without_time")
    return []


def encounter(resource: JsonObject, reading: Reading) -> list[Event]:
    kind = next((each for each in (coding(each, reading.notes) for each in rows(resource.get("type"))) if each), None)
    names = [code_text(table(resource.get("class")).get("code"), reading.notes), kind.code if kind else None]
    tail = "//".join(name for name in names if name)
    if not tail:
        raise Drop("no_code")
    period = table(resource.get("period"))
    description = kind.display if kind else None
    began, end = text(period.get("start")), text(period.get("end"))
    if end and resource.get("status") in NOT_ENDED:
        reading.notes.append("planned_end_left_out")
        end = None
    start = None if began is None else reading.at(began, "start")
    if start is None and end is not None:
        return [event(reading.at(end, "end"), f"ENCOUNTER_END//{tail}", description=description)]
    events = [event(reading.time_of_event(start), f"ENCOUNTER_START//{tail}", description=description)]
    if (over := reading.end(end, start)) is not None:
        events.append(event(over, f"ENCOUNTER_END//{tail}", description=description))
    return events


def _onset(resource: JsonObject, reading: Reading) -> Moment | None:
    """The onset. An onsetPeriod says when it began, not how long it lasted (FHIR R4 Condition.onset[x]): known by its end."""
    if onset := text(resource.get("onsetDateTime")):
        return reading.at(onset)
    return reading.period(resource.get("onsetPeriod"), ends=reading.time == "known")


def condition(resource: JsonObject, reading: Reading) -> list[Event]:
    code = reading.coded(resource.get("code"))
    name, onset = code.code + reading.suffix, _onset(resource, reading)
    when = reading.time_of_event(onset, resource.get("recordedDate"))
    events = [event(when, name, description=code.display)]
    period = table(resource.get("abatementPeriod"))
    ended = text(resource.get("abatementDateTime")) or text(period.get("end"))
    display = f"{code.display}: abatement" if code.display else None
    if (over := reading.end(ended, onset, when)) is not None:
        events.append(event(over, f"{name}//ABATEMENT", description=display))
    _note_lost_end(resource, ended, reading)
    return events


def _note_lost_end(resource: JsonObject, end: str | None, reading: Reading) -> None:
    """Note a condition that is over without a time at which it ended."""
    statuses = [each.get("code") for each in rows(table(resource.get("clinicalStatus")).get("coding"))]
    ended = any(name in statuses for name in ENDED)
    if end is None and (ended or any(name.startswith("abatement") for name in resource)):
        reading.notes.append("end_left_out")


def observation(resource: JsonObject, reading: Reading) -> list[Event]:
    when = reading.time_of_event(_effective(resource, reading), resource.get("issued"))
    code, own = coding(resource.get("code"), reading.notes), None
    events, lost = _components(resource, when, reading)
    valued = any(name.startswith("value") for name in resource) or bool(resource.get("dataAbsentReason"))
    if code is not None and (valued or not (events or lost)):
        try:
            own = measured(resource, code, when, reading)
        except Drop:
            if not events or any(name.startswith("value") for name in resource):
                raise
    if own is None and not events:
        raise Drop(lost[0] if lost else "no_code")
    return [own, *events] if own is not None else events


def _components(resource: JsonObject, when: Moment | None, reading: Reading) -> tuple[list[Event], list[str]]:
    """(events of the components, reasons why others give none)"""
    events: list[Event] = []
    lost: list[str] = []
    for part in rows(resource.get("component")):
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


def _effective(resource: JsonObject, reading: Reading) -> Moment | None:
    """Time of an Observation or a report, effective[x]: the last of several times, or the end of a period."""
    times = table(resource.get("effectiveTiming")).get("event")
    if isinstance(times, list) and (written := [each for each in times if isinstance(each, str) and each.strip()]):
        return max(reading.at(each) for each in written)
    if single := text(resource.get("effectiveDateTime")) or text(resource.get("effectiveInstant")):
        return reading.at(single)
    return reading.period(resource.get("effectivePeriod"), ends=True)


def medication_request(resource: JsonObject, reading: Reading) -> list[Event]:
    """Event of a request. A reference to a Medication was resolved before: to medicationCodeableConcept, or to
    `reading.medication`."""
    when = reading.time_of_event(reading.first(resource.get("authoredOn")))
    if reading.medication is not None:
        ref, server = reading.medication
        return [event(when, "", ref=ref, ref_server=server)]
    code = reading.coded(resource.get("medicationCodeableConcept"))
    return [event(when, code.code, description=code.display)]


def procedure(resource: JsonObject, reading: Reading) -> list[Event]:
    code, written = reading.coded(resource.get("code")), text(resource.get("performedDateTime"))
    happened = reading.at(written) if written else reading.period(resource.get("performedPeriod"), ends=False)
    return [event(reading.time_of_event(happened), code.code, description=code.display)]


def immunization(resource: JsonObject, reading: Reading) -> list[Event]:
    code = reading.coded(resource.get("vaccineCode"))
    when = reading.time_of_event(reading.first(resource.get("occurrenceDateTime")), resource.get("recorded"))
    return [event(when, code.code + reading.suffix, description=code.display)]


def allergy(resource: JsonObject, reading: Reading) -> list[Event]:
    code = reading.coded(resource.get("code"))
    when = reading.time_of_event(_onset(resource, reading), resource.get("recordedDate"))
    display = f"Allergy: {code.display}" if code.display else None
    _note_lost_end(resource, None, reading)
    return [event(when, f"ALLERGY//{code.code}{reading.suffix}", description=display)]


def report(resource: JsonObject, reading: Reading) -> list[Event]:
    code = reading.coded(resource.get("code"))
    when = reading.time_of_event(_effective(resource, reading), resource.get("issued"))
    if any(resource.get(name) for name in ("conclusion", "conclusionCode", "presentedForm")):
        reading.notes.append("conclusion_left_out")
    return [event(when, code.code, description=code.display)]


def device(resource: JsonObject, reading: Reading) -> list[Event]:
    code = reading.coded(resource.get("type"))
    return [event(reading.time_of_event(None), f"DEVICE//{code.code}", description=code.display)]


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
"""Resource type to its mapper, and to the element that names the patient."""
