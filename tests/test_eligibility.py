"""Rules over what headers say of an entry: which entries a model may be asked about."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from medray.archive.eligibility import Select, learnt, narrowed, refused

CT = {
    "Modality": "CT",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "BodyPartExamined": "HEAD",
    "SliceThickness": 5.0,
}
LEARNT = ("Modality", "ImageType[3]", "BodyPartExamined")


def rules(given: dict):
    return TypeAdapter(Select).validate_python(given)


@pytest.mark.parametrize(
    ("rule", "passes"),
    [
        ({"Modality": "CT"}, True),
        ({"Modality": " ct "}, True),
        ({"Modality": ["MR", "CT"]}, True),
        ({"Modality": "MR"}, False),
        ({"ImageType": "AXIAL"}, True),
        ({"ImageType[3]": "AXIAL"}, True),
        ({"ImageType[3]": "PRIMARY"}, False),
        ({"ImageType[4]": "AXIAL"}, False),
        ({"BodyPartExamined": {"pattern": "^HE"}}, True),
        ({"BodyPartExamined": {"pattern": "^EA"}}, False),
        ({"SliceThickness": {"min": 1, "max": 5}}, True),
        ({"SliceThickness": {"max": 4.9}}, False),
        ({"SliceThickness": 5}, True),
        ({"KVP": {"min": 0}}, False),
        ({"KVP": {"min": 0, "absent": True}}, True),
        ({"Modality": {"any": ["MR"], "absent": True}}, False),
    ],
)
def test_a_rule_is_a_value_a_list_a_pattern_or_a_range(rule, passes):
    assert (refused(CT, rules(rule), {}) is None) is passes


def test_every_rule_has_to_hold_and_the_first_that_does_not_is_told():
    why = refused(CT, rules({"Modality": "CT", "BodyPartExamined": "CHEST", "SliceThickness": 1}), {})
    assert why is not None and why.rule == "BodyPartExamined"


def test_a_message_holds_what_was_found_only_where_it_is_a_code():
    select = rules({"BodyPartExamined": "CHEST", "Modality": "CT"})
    hidden, shown = refused(CT, select, {}), refused(CT, select, {}, shown=["BodyPartExamined"])
    assert hidden is not None and shown is not None
    assert hidden.detail == "BodyPartExamined: another value; [modality.select] asks for CHEST"
    assert shown.detail == "BodyPartExamined: HEAD; [modality.select] asks for CHEST"


@pytest.mark.parametrize(
    "given",
    [
        {"Modality": {}},
        {"Modality": {"absent": True}},
        {"Modality": []},
        {"Modality": {"pattern": "("}},
        {"KVP": {"min": 2, "max": 1}},
    ],
)
def test_a_rule_that_says_nothing_or_cannot_hold_is_refused(given):
    with pytest.raises(ValidationError):
        rules(given)


def test_what_the_training_archive_held_is_learnt_and_anything_else_refused():
    trained = learnt([CT, {**CT, "BodyPartExamined": None}], LEARNT, ["BodyPartExamined"])
    assert trained == {"Modality": ("CT",), "ImageType[3]": ("AXIAL",), "BodyPartExamined": ("HEAD",)}

    def why(**other):
        found = refused(
            {**CT, **other}, {}, trained, where_stated=["BodyPartExamined"], shown=["Modality", "ImageType"]
        )
        return found and found.detail

    assert why() is None
    assert why(BodyPartExamined="head ") is None
    assert why(BodyPartExamined=None) is None
    assert why(BodyPartExamined="ABDOMEN") == "BodyPartExamined: another value; the training archive held HEAD"
    assert why(Modality="MR") == "Modality: MR; the training archive held CT"
    assert why(Modality=None) == "Modality: not stated; the training archive held CT"
    assert why(ImageType=["DERIVED", "SECONDARY"]) == "ImageType[3]: not stated; the training archive held AXIAL"


def test_entries_that_did_not_state_a_fact_in_training_may_leave_it_out_later():
    trained = learnt([CT, {**CT, "ImageType": ["ORIGINAL", "PRIMARY"]}], LEARNT)
    assert trained["ImageType[3]"] == ("", "AXIAL")
    assert refused({**CT, "ImageType": ["ORIGINAL", "PRIMARY"]}, {}, trained) is None


def test_a_fact_that_no_entry_states_is_not_learnt():
    assert learnt([{}, {"format": "png"}], LEARNT) == {}


def test_parts_that_differ_have_all_to_be_known():
    trained = {"Modality": ("CT", "PT")}
    assert refused({"Modality": ["CT", "PT"]}, {}, trained) is None
    assert refused({"Modality": ["CT", "MR"]}, {}, trained) is not None


def test_a_score_runs_rules_narrow_those_of_its_bundle():
    both = narrowed(rules({"Modality": ["CT", "PT"]}), rules({"Modality": ["PT", "MR"], "KVP": {"min": 100}}))
    facts = {"KVP": 120}
    passing = [name for name in ("CT", "PT", "MR") if refused({**facts, "Modality": name}, both, {}) is None]
    assert passing == ["PT"]
    assert refused({"Modality": "PT"}, both, {}) is not None
    assert str(both["Modality"]) == "(CT or PT) and (PT or MR)"


def test_an_entry_that_does_not_state_a_fact_has_to_be_let_pass_by_both_rules():
    lenient, strict = rules({"Modality": {"any": ["CT"], "absent": True}}), rules({"Modality": "CT"})
    assert refused({}, narrowed(lenient, lenient), {}) is None
    assert refused({}, narrowed(lenient, strict), {}) is not None
    assert str(lenient["Modality"]) == "CT or nothing stated"
