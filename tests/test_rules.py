"""Rules that join others: exceptions, names, alternatives; and score runs, which narrow rules and never widen them."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from medray.archive.eligibility import Alternatives, Select, narrowed_any, refused, widening
from medray.errors import RunFileError
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.site import at_site
from medray.modalities.spec import Spec

HEAD = {
    "Modality": "CT",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "SliceThickness": 1.0,
    "ConvolutionKernel": "H60s",
}


def rules(given: dict):
    return TypeAdapter(Select).validate_python(given)


def alternatives(given: dict):
    return TypeAdapter(Alternatives).validate_python(given)


def spec(**settings) -> ImagingSpec:
    return ImagingSpec.model_validate({"size": [2, 4, 4], **settings})


@pytest.mark.parametrize(
    ("rule", "passes"),
    [
        ({"none": "LOCALIZER"}, True),
        ({"none": ["LOCALIZER", "AXIAL"]}, False),
        ({"none": {"pattern": "^AX"}}, False),
        ({"any": ["PRIMARY"], "none": "AXIAL"}, False),
        ({"any": ["PRIMARY"], "none": "MPR"}, True),
        ({"none": {"none": "AXIAL"}}, True),
    ],
)
def test_none_is_a_rule_that_no_value_of_the_fact_may_pass(rule, passes):
    assert (refused(HEAD, rules({"ImageType": rule}), {}) is None) is passes


def test_a_rule_asks_for_a_value_only_where_it_names_it():
    asking = rules({"a": "LOCALIZER", "b": {"pattern": "^LOC"}, "c": {"none": "MIP"}, "d": {"min": 3}, "e": "AXIAL"})
    assert [name for name, rule in asking.items() if rule.asks_for("LOCALIZER")] == ["a", "b"]
    assert [name for name, rule in asking.items() if rule.passes("LOCALIZER")] == ["a", "b", "c"]


def test_what_is_not_stated_passes_an_exception_only_where_the_rule_says_so():
    assert refused({}, rules({"ImageType": {"none": "LOCALIZER"}}), {}) is not None
    assert refused({}, rules({"ImageType": {"none": "LOCALIZER", "absent": True}}), {}) is None


def test_a_rule_goes_by_the_name_that_a_person_gave_it():
    why = refused(HEAD, rules({"SliceThickness": {"min": 3, "name": "thick slices"}}), {}, shown=["SliceThickness"])
    assert why is not None and why.rule == "thick slices"
    assert why.detail == "thick slices (SliceThickness): 1.0; [modality.select] asks for from 3 to any"


BONE_OR_THICK = {
    "bone": {"SliceThickness": {"max": 1.5}, "ConvolutionKernel": {"pattern": "^H6"}},
    "thick": {"SliceThickness": {"min": 3}},
}


@pytest.mark.parametrize(
    ("facts", "passes"),
    [
        ({}, True),
        ({"SliceThickness": 5.0}, True),
        ({"SliceThickness": 2.0}, False),
        ({"ConvolutionKernel": "H30s"}, False),
    ],
)
def test_of_alternatives_one_has_to_be_passed_whole(facts, passes):
    why = refused({**HEAD, **facts}, {}, {}, alternatives=alternatives(BONE_OR_THICK))
    assert (why is None) is passes
    if why is not None:
        assert why.rule == "select_any" and "bone: " in why.detail and "thick: " in why.detail
        assert "; wanted: " in why.detail and "H30" not in why.detail  # text of a header is not told


def test_alternatives_of_a_score_run_have_to_be_passed_beside_the_bundles():
    both = narrowed_any(alternatives(BONE_OR_THICK), alternatives({"CT": {"Modality": "CT"}, "MR": {"Modality": "MR"}}))
    assert set(both) == {"bone + CT", "bone + MR", "thick + CT", "thick + MR"}
    for facts, passes in (({}, True), ({"Modality": "PT"}, False), ({"SliceThickness": 2.0}, False)):
        assert (refused({**HEAD, **facts}, {}, {}, alternatives=both) is None) is passes


def test_for_every_entry_the_rules_of_bundle_and_score_run_together_pass_what_both_pass():
    values = [{"SliceThickness": t, "Modality": m, "ConvolutionKernel": k}
              for t in (0.5, 2.0, 4.0, None) for m in ("CT", "MR", None) for k in ("H30", "H60", None)]  # fmt: skip
    bundle = spec(select={"Modality": {"any": ["CT", "MR"], "absent": True}}, select_any=BONE_OR_THICK)
    asked = {
        "select": {"Modality": "CT"},
        "select_any": {"low": {"SliceThickness": {"max": 3}}, "H6": {"ConvolutionKernel": "H60"}},
    }
    site, own = at_site(bundle, asked), spec(**asked)

    def passes(of: Spec, facts: dict) -> bool:
        return refused(facts, of.select, {}, alternatives=of.select_any) is None

    found = [(passes(site, facts), passes(bundle, facts) and passes(own, facts)) for facts in values]
    assert all(one == other for one, other in found)
    assert {one for one, _ in found} == {True, False}


@pytest.mark.parametrize(
    ("more", "wider"),
    [
        ({"Modality": ["CT"]}, None),
        ({"Modality": ["CT", "MR"]}, "Modality = MR"),
        ({"Modality": {"pattern": "."}}, None),
        ({"Modality": {"any": ["CT"], "absent": True}}, "Modality not stated"),
        ({"SliceThickness": {"min": 2, "max": 3}}, None),
        ({"SliceThickness": {"min": 0.1}}, "SliceThickness from 0.1"),
        ({"SliceThickness": {"max": 9}}, "SliceThickness to 9"),
        ({"KVP": {"min": 80}}, None),
    ],
)
def test_a_score_run_that_asks_for_what_its_bundle_leaves_out_is_refused_with_a_sentence(more, wider):
    own = {"Modality": "CT", "SliceThickness": {"min": 1, "max": 5}}
    assert widening(rules(own), rules(more)) == wider
    if wider is None:
        at_site(spec(select=own), {"select": more})
    else:
        with pytest.raises(
            RunFileError, match="a score run cannot ask a model about entries that its bundle leaves out"
        ):
            at_site(spec(select=own), {"select": more})


def test_a_score_run_may_not_change_its_bundles_choice_or_loosen_its_limit():
    bundle = spec(choose={"of": "study", "prefer": ["most slices"]}, refuse_outside=2.0, trained_ranges={})
    for wider in ({"choose": {"of": "subject", "prefer": ["most slices"]}}, {"refuse_outside": 3.0}):
        with pytest.raises(RunFileError, match="cannot ask a model about entries"):
            at_site(bundle, wider)
    narrower = at_site(bundle, {"refuse_outside": 0.5})
    assert narrower.refuse_outside == 0.5 and narrower.choose == bundle.choose
    plain = at_site(spec(trained_ranges={}), {"choose": {"of": "study", "prefer": ["least spacing_mm[1]"]}})
    assert plain.choose is not None and plain.choose.of == "study"
    with pytest.raises(RunFileError, match="does not know ranges"):
        at_site(spec(), {"refuse_outside": 3.0})


@pytest.mark.parametrize(
    "settings",
    [
        {"select_any": {"empty": {}}},
        {"select_any": {"typo": {"Modalty": "CT"}}},
        {"choose": {"of": "study", "prefer": []}},
        {"choose": {"of": "study", "prefer": ["slices"]}},
        {"choose": {"of": "study", "prefer": ["most slides"]}},
        {"choose": {"of": "study", "prefer": [{}]}},
        {"choose": {"of": "StudyInstanceUID", "prefer": ["most slices"]}},
        {"select": {"Modality": {"any": ["CT"], "name": ""}}},
        {"refuse_outside": -1},
    ],
)
def test_rules_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(ValidationError):
        spec(**settings)


def test_a_fact_that_every_alternative_has_a_rule_for_is_not_learnt():
    facts = ['{"Modality":"CT","SOPClassUID":"1.2"}']
    one = spec(select_any={"a": {"Modality": "CT"}, "b": {"SOPClassUID": "1.2"}}).taught(facts).trained
    both = spec(select_any={"a": {"Modality": "CT"}, "b": {"Modality": "MR"}}).taught(facts).trained
    assert one == {"Modality": ("CT",), "SOPClassUID": ("1.2",)} and both == {"SOPClassUID": ("1.2",)}


def test_a_spec_with_every_kind_of_rule_is_the_same_after_json():
    whole = spec(
        select={"Modality": {"none": ["MR"], "name": "no MR"}},
        select_any=BONE_OR_THICK,
        choose={"of": "study", "prefer": [{"ConvolutionKernel": {"pattern": "^H3"}}, "most slices"]},
        refuse_outside=0,
    ).taught(['{"slices":3}'])
    assert ImagingSpec.model_validate_json(whole.model_dump_json()) == whole
