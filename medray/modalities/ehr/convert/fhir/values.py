"""Values: value[x] of a FHIR R4 Observation, or of a component, to a number, a code, or nothing and a note.

valueQuantity          number; the unit and the comparator (Quantity.comparator is a modifier) are part of the code
valueInteger           number
valueCodeableConcept   CODE//VALUECODE
valueBoolean           CODE//true, CODE//false
valueString            left out, or text where the run file asks for it; never a number
others                 left out: Range, Ratio, SampledData, time, dateTime, Period
dataAbsentReason       no event (not performed, no result), or CODE where it was measured (FHIR R4 data-absent-reason)
"""

from __future__ import annotations

import math
import re

import numpy as np

from medray.modalities.ehr.convert.events import Drop, Event
from medray.modalities.ehr.convert.fhir.codes import Coding, coding, rows, table, text, unit
from medray.modalities.ehr.convert.fhir.json import JsonObject, JsonValue
from medray.modalities.ehr.convert.fhir.reading import Reading, event
from medray.modalities.ehr.convert.fhir.status import ABSENT_SYSTEM, absent
from medray.modalities.ehr.convert.fhir.times import Moment

MAX_FLOAT32 = float(np.finfo(np.float32).max)
COMPARATORS = ("<", "<=", ">=", ">")
"""FHIR R4 Quantity.comparator, required binding."""
ABSENT_EXTENSION = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
_CHOICE = re.compile(r"value[A-Z]")
_DECIMAL = re.compile(r"[-+]?\d+([.,]\d+)?([eE][-+]?\d+)?")


def measured(observation: JsonObject, code: Coding, when: Moment | None, reading: Reading) -> Event:
    """The event of an Observation or a component. Raises Drop: not performed, no result, or it contradicts itself."""
    plain = event(when, code.code, description=code.display)
    choices = [(name, value) for name, value in observation.items() if _CHOICE.match(name) and value is not None]
    if len(choices) > 1:
        raise Drop("contradictory")
    reason = observation.get("dataAbsentReason")
    if choices and reason:  # FHIR R4 Observation, rule obs-6
        raise Drop("contradictory")
    if choices and (inside := _absent_inside(choices[0][1])):
        choices, reason = [], inside
    if why := absent(reason):
        if why.drop:
            raise Drop(why.drop)
        reading.notes.append(why.note or "value_absent")
    return _valued(plain, code, *choices[0], reading) if choices else plain


def _absent_inside(value: JsonValue) -> JsonObject | None:
    """The reason for a missing value that a value itself gives: as one of its codes, or in the extension."""
    codes: list[JsonValue] = [each for each in rows(table(value).get("coding")) if each.get("system") == ABSENT_SYSTEM]
    for each in rows(table(value).get("extension")):
        if each.get("url") == ABSENT_EXTENSION:
            codes.append({"code": each.get("valueCode")})
    return {"coding": codes} if codes else None


def _valued(plain: Event, code: Coding, name: str, value: JsonValue, reading: Reading) -> Event:
    match name, value:
        case "valueQuantity", dict():
            return _quantity(plain, value, reading)
        case "valueCodeableConcept", dict():
            if answer := coding(value, reading.notes):
                both = [code.display, answer.display]
                display = " = ".join(each for each in both if each) or None
                return plain._replace(code=f"{code.code}//{answer.code}", description=display)
            reading.notes.append("text_left_out")
        case "valueBoolean", bool():
            return plain._replace(code=f"{code.code}//{str(value).lower()}")
        case "valueInteger", _:
            return plain._replace(value=number(value, reading.notes))
        case "valueString", str():
            if reading.keep_text:
                return plain._replace(text=text(value))
            reading.notes.append("number_as_text" if _DECIMAL.fullmatch(value.strip()) else "text_left_out")
        case _:
            reading.notes.append("value_left_out")
    return plain


def _quantity(plain: Event, quantity: JsonObject, reading: Reading) -> Event:
    stated, value = quantity.get("comparator"), number(quantity.get("value"), reading.notes)
    comparator = next((each for each in COMPARATORS if each == stated), None)
    if stated is not None and comparator is None:
        reading.notes.append("unknown_comparator")
        value = None
    parts = [plain.code, unit(quantity, reading.notes), comparator]
    return plain._replace(code="//".join(part for part in parts if part), value=value)


def number(value: JsonValue, notes: list[str]) -> float | None:
    """A JSON number that float32 can hold, neither too large nor so small that it would become 0; else None and a note."""
    if isinstance(value, str):
        notes.append("number_as_text")
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        notes.append("value_left_out")
        return None
    small = value != 0 and abs(value) < float(np.finfo(np.float32).tiny)
    if not math.isfinite(value) or abs(value) > MAX_FLOAT32 or small:
        notes.append("bad_value_left_out")
        return None
    return float(value)
