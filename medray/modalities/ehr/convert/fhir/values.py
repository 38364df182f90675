"""value[x] of a FHIR R4 Observation, or of one of its components, to a number, a code, or nothing and a note.

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
from typing import Any

import numpy as np

from medray.modalities.ehr.convert.codes import Coding, coding, rows, table, text, unit
from medray.modalities.ehr.convert.events import Drop, Event
from medray.modalities.ehr.convert.fhir.reading import Reading, event
from medray.modalities.ehr.convert.fhir.status import ABSENT_SYSTEM, absent
from medray.modalities.ehr.convert.times import Moment

MAX_FLOAT32 = float(np.finfo(np.float32).max)
COMPARATORS = ("<", "<=", ">=", ">")
"""FHIR R4 Quantity.comparator, required binding."""
ABSENT_EXTENSION = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
_CHOICE = re.compile(r"value[A-Z]")
_DECIMAL = re.compile(r"[-+]?\d+([.,]\d+)?([eE][-+]?\d+)?")


def measured(found: dict[str, Any], code: Coding, when: Moment | None, reading: Reading) -> Event:
    """The event of a measurement. Raises Drop: it was not made, has no result, or contradicts itself."""
    plain = event(when, code.code, description=code.display)
    choices = [(name, value) for name, value in found.items() if _CHOICE.match(name) and value is not None]
    if len(choices) > 1:
        raise Drop("contradictory")
    reason = found.get("dataAbsentReason")
    if choices and reason:  # FHIR R4 Observation, rule obs-6
        raise Drop("contradictory")
    if choices and (inside := _absent_inside(choices[0][1])):
        choices, reason = [], inside
    if why := absent(reason):
        if why.drop:
            raise Drop(why.drop)
        reading.notes.append(why.note or "value_absent")
    return _valued(plain, code, *choices[0], reading) if choices else plain


def _absent_inside(value: Any) -> dict[str, Any] | None:
    """A reason for a missing value that stands in the value's place: a code of it, or the extension."""
    codes = [each for each in rows(table(value).get("coding")) if each.get("system") == ABSENT_SYSTEM]
    for each in rows(table(value).get("extension")):
        if each.get("url") == ABSENT_EXTENSION:
            codes.append({"code": each.get("valueCode")})
    return {"coding": codes} if codes else None


def _valued(plain: Event, code: Coding, name: str, value: Any, reading: Reading) -> Event:
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


def _quantity(plain: Event, quantity: dict[str, Any], reading: Reading) -> Event:
    comparator, value = quantity.get("comparator"), number(quantity.get("value"), reading.notes)
    if comparator is not None and comparator not in COMPARATORS:
        reading.notes.append("unknown_comparator")
        comparator = value = None
    parts = [plain.code, unit(quantity, reading.notes), comparator]
    return plain._replace(code="//".join(part for part in parts if part), value=value)


def number(value: Any, notes: list[str]) -> float | None:
    """A JSON number that 32 bits hold, neither too large nor so small that it would be 0; None with a note."""
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
