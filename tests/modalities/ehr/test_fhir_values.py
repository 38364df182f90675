"""value[x] of FHIR R4 observations: no number without its scale and comparator, nothing left out without a word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fhir_data import SNOMED, UCUM, concept, convert, observation, patient, quantity, valid

from medray.modalities.ehr.convert.events import DROPS, NOTES, Drop
from medray.modalities.ehr.convert.fhir.reading import Reading
from medray.modalities.ehr.convert.fhir.resources import MAPPERS

CODE = "LOINC//718-7"
ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"


def measured(**found: Any) -> tuple[list[tuple[str, float | None]], list[str]]:
    """(code and value of the events, notes); a dropped one is [("(reason)", None)]."""
    reading = Reading()
    try:
        events = MAPPERS["Observation"][0](observation(value=None, **found), reading)
    except Drop as drop:
        assert drop.reason in DROPS
        return [(f"({drop.reason})", None)], reading.notes
    assert set(reading.notes) <= NOTES.keys()
    return [(each.code, each.value) for each in events], reading.notes


# --- units and codes --------------------------------------------------------------------------------------------

LONG = "million per microlitre of blood"


@pytest.mark.parametrize(
    ("found", "unit"),
    [
        ({"unit": "g/dL"}, "g/dL"),
        ({"unit": "gram", "code": "g/dL", "system": UCUM}, "g/dL"),
        ({"unit": "g/dL", "system": UCUM}, "g/dL"),
        ({"code": "g/dL"}, "g/dL"),
        ({"unit": "mg", "code": "258684004", "system": SNOMED}, "SNOMED:258684004"),
        ({"unit": "mg", "code": "mg", "system": "urn:mine"}, "urn:mine:mg"),
        ({"unit": "mg  per\tdL "}, "mg per dL"),
    ],
)
def test_a_unit_is_its_code_in_ucum_or_as_it_is_written(found, unit):
    assert measured(valueQuantity={"value": 3} | found) == ([(f"{CODE}//{unit}", 3.0)], [])


def test_long_units_are_two_scales_of_two_codes_and_told(tmp_path):
    units = [LONG, "cells per nanolitre of whole blood", LONG]
    found = [observation(f"o{i}", None, valueQuantity={"value": i, "unit": unit}) for i, unit in enumerate(units)]
    done = convert(tmp_path, [patient(), *found])
    first, second, third = done.codes
    assert first == third != second and first.startswith(f"{CODE}//#") and LONG not in first
    assert done.result.notes["Observation"] == {"long_unit_hashed": 3}


def test_a_long_code_is_kept_apart_by_its_hash_and_told(tmp_path):
    """FHIR R4 code has no greatest length; SNOMED CT expressions are codes."""
    expression = "83152002 |Oophorectomy| : 405815000 |Procedure device| = 122456005 |Laser device|"
    others = [expression, expression + " ", expression.replace("Laser", "Other"), "1" * 64]
    found = [valid("Condition", id=f"c{i}", code=concept(code, SNOMED)) for i, code in enumerate(others)]
    codes = convert(tmp_path, [patient(), *found]).codes
    assert codes[0] == codes[1] != codes[2] and codes[3] == f"SNOMED//{'1' * 64}"
    assert codes[0].startswith("SNOMED//#") and len(codes[0]) == len("SNOMED//#") + 16


def test_long_codes_are_told_wherever_they_stand():
    long = "x" * 65
    assert measured(valueCodeableConcept=concept(long))[1] == ["long_code_hashed"]
    assert measured(code=concept(long))[1] == ["long_code_hashed"]
    assert measured(component=[{"code": concept(long), "valueInteger": 1}])[1] == ["long_code_hashed"]


# --- comparators and numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("comparator", ["<", "<=", ">=", ">"])
def test_a_bound_is_never_taken_for_the_value(comparator):
    """Quantity.comparator is a modifier of the value."""
    made = measured(valueQuantity=quantity(5, comparator=comparator))
    assert made == ([(f"{CODE}//g/dL//{comparator}", 5.0)], [])
    part = {"code": concept("1"), "valueQuantity": quantity(5, comparator=comparator)}
    assert measured(component=[part])[0] == [(f"LOINC//1//g/dL//{comparator}", 5.0)]


@pytest.mark.parametrize("comparator", ["ad", "~", "", 7, ["<"]])
def test_a_comparator_that_r4_does_not_have_leaves_the_number_out(comparator):
    made = measured(valueQuantity=quantity(5, comparator=comparator))
    assert made == ([(f"{CODE}//g/dL", None)], ["unknown_comparator"])


@pytest.mark.parametrize(
    ("value", "number", "note"),
    [
        (5, 5.0, None),
        (1.5e3, 1500.0, None),
        (-0.0, 0.0, None),
        ("5.4", None, "number_as_text"),
        (True, None, "value_left_out"),
        (None, None, "value_left_out"),
        ([5], None, "value_left_out"),
        (3.5e38, None, "bad_value_left_out"),
        (1e-46, None, "bad_value_left_out"),  # 32 bits would make it 0
    ],
)
def test_a_quantity_is_a_json_number_that_32_bits_hold(value, number, note):
    made, notes = measured(valueQuantity=quantity(value))
    assert made == [(f"{CODE}//g/dL", number)] and notes == ([note] if note else [])
    assert number is None or np.float32(number) == number


@pytest.mark.parametrize(
    ("value", "note"),
    [
        ({"valueString": "5.4"}, "number_as_text"),
        ({"valueString": " 5,4 "}, "number_as_text"),
        ({"valueString": "1e3"}, "number_as_text"),
        ({"valueString": "< 5"}, "text_left_out"),
        ({"valueInteger": "3"}, "number_as_text"),
        ({"valueRange": {"low": quantity(1), "high": quantity(2)}}, "value_left_out"),
        ({"valueRatio": {"numerator": quantity(1), "denominator": quantity(128)}}, "value_left_out"),
        ({"valueSampledData": {"origin": quantity(0), "period": 10, "dimensions": 1, "data": "1 2 E"}}, "value_left_out"),
        ({"valueTime": "10:00:00"}, "value_left_out"),
        ({"valueDateTime": "2020"}, "value_left_out"),
        ({"valuePeriod": {"start": "2020"}}, "value_left_out"),
        ({"valueBoolean": "true"}, "value_left_out"),
        ({"valueCodeableConcept": {"text": "see letter"}}, "text_left_out"),
    ],
)  # fmt: skip
def test_a_value_that_is_no_number_is_left_out_with_a_note(value, note):
    assert measured(**value) == ([(CODE, None)], [note])


def test_two_values_are_a_contradiction():
    """Observation.value[x] is 0..1."""
    assert measured(valueInteger=1, valueString="two")[0] == [("(contradictory)", None)]


# --- values that are not there ----------------------------------------------------------------------------------

ABSENCE = {
    "unknown": "(no_result)",
    "asked-unknown": "(no_result)",
    "temp-unknown": "(no_result)",
    "not-asked": "(not_done)",
    "asked-declined": "(not_done)",
    "masked": CODE,
    "not-applicable": "(not_done)",
    "unsupported": CODE,
    "as-text": CODE,
    "error": "(no_result)",
    "not-a-number": CODE,
    "negative-infinity": CODE,
    "positive-infinity": CODE,
    "not-performed": "(not_done)",
    "not-permitted": "(not_done)",
    "a-reason-of-ones-own": "(no_result)",
}


@pytest.mark.parametrize("reason", ABSENCE)
def test_a_reason_for_a_missing_value_says_whether_it_was_measured(reason):
    """Observation.dataAbsentReason, and the same as a value or as an extension in the value's place."""
    assert measured(dataAbsentReason=concept(reason, ABSENT))[0] == [(ABSENCE[reason], None)]
    assert measured(valueCodeableConcept=concept(reason, ABSENT))[0] == [(ABSENCE[reason], None)]
    extension = [{"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": reason}]
    assert measured(valueQuantity={"extension": extension})[0] == [(ABSENCE[reason], None)]


def test_a_reason_in_words_alone_is_no_result():
    assert measured(dataAbsentReason={"text": "patient was at lunch"})[0] == [("(no_result)", None)]


def test_a_value_and_a_reason_why_there_is_none_contradict_each_other():
    """Observation rule obs-6."""
    both = {"valueInteger": 1, "dataAbsentReason": concept("not-performed", ABSENT)}
    assert measured(**both)[0] == [("(contradictory)", None)]


def component(code: str, **found: Any) -> dict[str, Any]:
    return {"code": concept(code)} | found


def test_components_that_were_not_measured_are_left_out_and_a_panel_of_none_is_not_done():
    missing = component("8480-6", dataAbsentReason=concept("not-performed", ABSENT))
    there = component("8462-4", valueQuantity=quantity(80, "mm[Hg]"))
    assert measured(component=[missing, there]) == ([("LOINC//8462-4//mm[Hg]", 80.0)], ["component_left_out"])
    assert measured(component=[missing, missing])[0] == [("(not_done)", None)]
    contradictory = component("1", valueInteger=1, valueString="2")
    assert measured(component=[contradictory, there])[0] == [("LOINC//8462-4//mm[Hg]", 80.0)]


def test_a_panel_without_a_value_of_its_own_may_say_why():
    """The panel has a reason, its components have values."""
    there = component("8462-4", valueQuantity=quantity(80, "mm[Hg]"))
    assert measured(component=[there], dataAbsentReason=concept("not-applicable", ABSENT))[0] == [
        ("LOINC//8462-4//mm[Hg]", 80.0)
    ]


def test_a_group_is_an_event_without_a_value_and_its_members_are_their_own(tmp_path):
    """Observation.hasMember: a panel of observations that are resources of their own."""
    panel = observation("panel", None, code=concept("24323-8"), hasMember=[{"reference": "Observation/o1"}])
    done = convert(tmp_path, [patient(), panel, observation()])
    assert done.codes == ["LOINC//24323-8", f"{CODE}//g/dL"]
