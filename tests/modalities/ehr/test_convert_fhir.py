"""FHIR resources to events: times, codes, values and what is left out, pinned by hand."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from medray.modalities.ehr.convert.events import COUNT, DROPS, EVENT, FAILED, NOTE, NOTES, READ, VERSION, Drop
from medray.modalities.ehr.convert.fhir.reading import Reading
from medray.modalities.ehr.convert.fhir.resources import MAPPERS
from medray.modalities.ehr.convert.fhir.times import moment
from medray.modalities.ehr.convert.members import Unit, units
from medray.modalities.ehr.convert.parsing import open_parser
from medray.modalities.ehr.convert.settings import FhirSource

KEY = b"k" * 64
LOINC, SNOMED = "http://loinc.org", "http://snomed.info/sct"


def concept(system: str, code: str, display: str = "") -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": display}], "text": "as a person typed it"}


def events(found: dict[str, Any], **settings: Any) -> list[tuple[str | None, str, float | None]]:
    """(time, code, value) of one resource's events."""
    made = MAPPERS[found["resourceType"]][0](found, Reading(**settings))
    return [(None if e.time is None else iso(e.time), e.code, e.value) for e in made]


def iso(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).replace(tzinfo=None).isoformat(sep=" ")


def parse(path, source: FhirSource | None = None, **place: int) -> list[dict[str, Any]]:
    """The rows of one file."""
    size = path.stat().st_size
    unit = Unit(**{"unit": 0, "uri": str(path), "size": size, "start": 0, "end": size} | place)
    return [row for batch in open_parser(source or FhirSource(), KEY)(unit) for row in batch.to_pylist()]


def counts(rows: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    return {(row["source"], row["code"]): row["count"] for row in rows if row["kind"] == COUNT and row["source"]}


def observation(**found: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": concept(LOINC, "8867-4", "Heart rate"),
        "effectiveDateTime": "2020-03-01T10:00:00Z",
        "subject": {"reference": "Patient/p1"},
    } | found


# --- times ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2020-03-01T10:00:00-05:00", "2020-03-01 15:00:00", "2020-03-01 15:00:00"),
        ("2020-03-01T00:30:00.125+02:00", "2020-02-29 22:30:00.125000", "2020-02-29 22:30:00.125000"),
        ("2020-03-01T10:00:00Z", "2020-03-01 10:00:00", "2020-03-01 10:00:00"),
        ("2020-02-28", "2020-02-28 00:00:00", "2020-02-28 23:59:59.999999"),
        ("2020-02", "2020-02-01 00:00:00", "2020-02-29 23:59:59.999999"),
        ("2019-12", "2019-12-01 00:00:00", "2019-12-31 23:59:59.999999"),
        ("2020", "2020-01-01 00:00:00", "2020-12-31 23:59:59.999999"),
        ("1923-07-04", "1923-07-04 00:00:00", "1923-07-04 23:59:59.999999"),
    ],
)
def test_a_moment_is_utc_and_a_date_its_start_or_its_end(text, start, end):
    assert iso(moment(text, "start", None).us) == start
    assert iso(moment(text, "end", None).us) == end


@pytest.mark.parametrize("text", ["2020-13", "2020-02-30", "yesterday", "20200301", "2020-03-01T10:00:61Z", "2020-3-1"])
def test_what_is_no_moment_is_dropped_for_it(text):
    with pytest.raises(Drop, match="bad_time"):
        moment(text, "start", None)


def test_a_time_without_a_zone_is_dropped_unless_the_run_file_names_one():
    from zoneinfo import ZoneInfo

    with pytest.raises(Drop, match="no_time_zone"):
        moment("2020-07-01T10:00:00", "start", None)
    assert iso(moment("2020-07-01T10:00:00", "start", ZoneInfo("Europe/Berlin")).us) == "2020-07-01 08:00:00"
    assert iso(moment("2020-01-01T10:00:00", "start", ZoneInfo("Europe/Berlin")).us) == "2020-01-01 09:00:00"


# --- patients ---------------------------------------------------------------------------------------------------


def patient(**found: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": "p1"} | found


def test_birth_is_the_start_of_the_day_and_death_is_in_utc():
    found = patient(birthDate="1950-06-15", deceasedDateTime="2019-12-31T23:30:00-05:00", gender="female")
    assert events(found, dates="end") == [
        ("1950-06-15 00:00:00", "MEDS_BIRTH", None),
        (None, "GENDER//female", None),
        ("2020-01-01 04:30:00", "MEDS_DEATH", None),
    ]


def test_a_birth_time_extension_is_the_birth():
    exact = {"extension": [{"url": "http://hl7.org/fhir/StructureDefinition/patient-birthTime",
                            "valueDateTime": "1950-06-15T23:00:00-04:00"}]}  # fmt: skip
    assert events(patient(birthDate="1950-06-15", _birthDate=exact)) == [("1950-06-16 03:00:00", "MEDS_BIRTH", None)]


def test_a_death_that_nobody_dates_is_left_out_because_it_would_tell_of_the_future():
    found, reading = patient(birthDate="1950", deceasedBoolean=True), Reading()
    assert [e.code for e in MAPPERS["Patient"][0](found, reading)] == ["MEDS_BIRTH"]
    assert reading.notes == ["month_or_year_only", "death_without_time"]
    assert events(found, static_untimed=True)[1] == (None, "MEDS_DEATH", None)
    assert [code for _, code, _ in events(found | {"deceasedBoolean": False})] == ["MEDS_BIRTH"]


def test_race_and_ethnicity_are_static_codes():
    def extension(name: str, *codes: str) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [{"url": "ombCategory", "valueCoding": {"code": code}} for code in codes]
        url = f"http://hl7.org/fhir/us/core/StructureDefinition/us-core-{name}"
        return {"url": url, "extension": [*parts, {"url": "text", "valueString": "free"}]}

    found = patient(extension=[extension("race", "2106-3", "2028-9"), extension("ethnicity", "2186-5")])
    assert [code for _, code, _ in events(found)] == ["RACE//2106-3", "RACE//2028-9", "ETHNICITY//2186-5"]


def test_a_patient_of_whom_nothing_is_known_gives_no_event():
    with pytest.raises(Drop, match="nothing_known"):
        events(patient(name=[{"family": "Doe"}]))


# --- observations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "code", "number"),
    [
        ({"valueQuantity": {"value": 72, "code": "/min", "unit": "beats"}}, "LOINC//8867-4///min", 72.0),
        ({"valueQuantity": {"value": 72.5, "unit": "bpm"}}, "LOINC//8867-4//bpm", 72.5),
        ({"valueQuantity": {"value": 72}}, "LOINC//8867-4", 72.0),
        ({"valueQuantity": {"value": 5, "comparator": "<", "code": "mg"}}, "LOINC//8867-4//mg//<", 5.0),
        ({"valueQuantity": {"value": 1e39, "code": "mg"}}, "LOINC//8867-4//mg", None),
        ({"valueQuantity": {"value": "72"}}, "LOINC//8867-4", None),
        ({"valueCodeableConcept": concept(SNOMED, "10828004")}, "LOINC//8867-4//SNOMED//10828004", None),
        ({"valueCodeableConcept": {"text": "see letter"}}, "LOINC//8867-4", None),
        ({"valueInteger": 3}, "LOINC//8867-4", 3.0),
        ({"valueBoolean": False}, "LOINC//8867-4//false", None),
        ({"valueString": "Jane says she is better"}, "LOINC//8867-4", None),
        ({"valueRange": {"low": {"value": 1}}}, "LOINC//8867-4", None),
        ({}, "LOINC//8867-4", None),
    ],
)
def test_a_value_is_a_number_or_part_of_the_code_and_never_text(value, code, number):
    made = MAPPERS["Observation"][0](observation(**value), Reading())
    assert [(e.code, e.value, e.text) for e in made] == [(code, number, None)]


def test_text_is_kept_where_the_run_file_asks_for_it():
    made = MAPPERS["Observation"][0](observation(valueString="positive"), Reading(keep_text=True))
    assert made[0].text == "positive"


def test_each_component_is_an_event_and_a_panel_without_a_value_is_none():
    parts = [
        {"code": concept(LOINC, "8480-6"), "valueQuantity": {"value": 120, "code": "mm[Hg]"}},
        {"code": concept(LOINC, "8462-4"), "valueQuantity": {"value": 80, "code": "mm[Hg]"}},
        {"code": {"text": "by hand"}, "valueQuantity": {"value": 1}},
    ]
    time = "2020-03-01 10:00:00"
    expected = [(time, "LOINC//8480-6//mm[Hg]", 120.0), (time, "LOINC//8462-4//mm[Hg]", 80.0)]
    assert events(observation(component=parts)) == expected
    assert events(observation(component=parts, valueInteger=1)) == [(time, "LOINC//8867-4", 1.0), *expected]


def test_an_observation_of_a_period_stands_at_its_end():
    found = observation(effectivePeriod={"start": "2020-03-01T00:00:00Z", "end": "2020-03-02T00:00:00Z"})
    del found["effectiveDateTime"]
    assert events(found)[0][0] == "2020-03-02 00:00:00"


# --- the other types --------------------------------------------------------------------------------------------


def test_an_encounter_is_its_start_and_its_end():
    found = {
        "resourceType": "Encounter",
        "status": "finished",
        "class": {"code": "IMP"},
        "type": [concept(SNOMED, "32485007")],
        "period": {"start": "2020-03-01T20:00:00-05:00", "end": "2020-03-05T10:00:00-05:00"},
    }
    assert events(found) == [
        ("2020-03-02 01:00:00", "ENCOUNTER_START//IMP//SNOMED//32485007", None),
        ("2020-03-05 15:00:00", "ENCOUNTER_END//IMP//SNOMED//32485007", None),
    ]
    assert [code for _, code, _ in events(found | {"period": {"end": "2020"}})] == [
        "ENCOUNTER_END//IMP//SNOMED//32485007"
    ]


def test_a_condition_has_an_onset_and_an_abatement():
    found = {
        "resourceType": "Condition",
        "code": concept("http://hl7.org/fhir/sid/icd-10-cm", "I10"),
        "onsetDateTime": "2001-02-03",
        "recordedDate": "2005-01-01",
        "abatementDateTime": "2010",
    }
    assert events(found) == [
        ("2005-01-01 23:59:59.999999", "ICD10CM//I10", None),
        ("2010-12-31 23:59:59.999999", "ICD10CM//I10//ABATEMENT", None),
    ]
    assert events(found, time="onset", dates="start") == [
        ("2001-02-03 00:00:00", "ICD10CM//I10", None),
        ("2010-12-31 23:59:59.999999", "ICD10CM//I10//ABATEMENT", None),
    ]
    del found["onsetDateTime"]
    assert events(found, time="onset", dates="start")[0][0] == "2005-01-01 00:00:00"


def test_an_allergy_is_never_taken_for_a_prescription():
    aspirin = concept("http://www.nlm.nih.gov/research/umls/rxnorm", "1191")
    allergy = {"resourceType": "AllergyIntolerance", "code": aspirin, "recordedDate": "2020-01-01"}
    request = {"resourceType": "MedicationRequest", "medicationCodeableConcept": aspirin, "authoredOn": "2020-01-01"}
    assert [events(each)[0][1] for each in (allergy, request)] == ["ALLERGY//RXNORM//1191", "RXNORM//1191"]


def test_a_device_has_no_time_and_is_static_only_on_request():
    found = {"resourceType": "Device", "type": concept(SNOMED, "72506001"), "manufactureDate": "2001-01-01"}
    with pytest.raises(Drop, match="no_time"):
        events(found)
    assert events(found, static_untimed=True) == [(None, "DEVICE//SNOMED//72506001", None)]


@pytest.mark.parametrize(
    ("coding", "code"),
    [
        ([{"system": "urn:x", "code": "a"}, {"system": LOINC, "code": "b"}], "LOINC//b"),
        ([{"system": "urn:x", "code": "a"}, {"system": "urn:y", "code": "b"}], "urn:x//a"),
        ([{"code": "a"}], "LOCAL//a"),
        ([{"system": LOINC, "code": "a text\nof two lines"}, {"system": LOINC, "code": "c"}], "LOINC//c"),
    ],
)
def test_a_known_system_names_a_concept_before_others(coding, code):
    found = {"resourceType": "Procedure", "code": {"coding": coding}, "performedDateTime": "2020-01-01"}
    assert events(found)[0][1] == code


@pytest.mark.parametrize("kind", MAPPERS)
@pytest.mark.parametrize("junk", [None, 7, "text", [], [1, [2]], {}, {"coding": 3}, {"coding": [{"code": []}]}])
def test_no_malformed_element_is_more_than_a_drop(kind, junk):
    names = ("code", "subject", "period", "class", "type", "component", "extension", "valueQuantity", "_birthDate",
             "effectiveTiming", "onsetPeriod", "vaccineCode", "medicationCodeableConcept", "effectiveDateTime")  # fmt: skip
    found = {"resourceType": kind, **dict.fromkeys(names, junk)}
    try:
        events(found)
    except Drop as drop:
        assert drop.reason in DROPS


# --- files ------------------------------------------------------------------------------------------------------

BROKEN = [
    (b"{not json", "(not JSON)", "not_json"),
    (b'{"resourceType": "Basic", "id": "1"}', "Basic", "type_not_mapped"),
    (b'{"id": "1"}', "(no resource)", "no_resource"),
    (b"[1]", "(no resource)", "no_resource"),
    (b'{"resourceType": "a name, not a type"}', "(no resource)", "no_resource"),
    (json.dumps(observation(subject={"display": "Jane Doe"})).encode(), "Observation", "no_subject"),
    (json.dumps(observation(subject={"reference": "Group/1"})).encode(), "Observation", "subject_no_patient"),
    (json.dumps(observation(subject={"reference": "Patient?x|1"})).encode(), "Observation", "unresolved_subject"),
    (json.dumps(observation(status="entered-in-error")).encode(), "Observation", "entered_in_error"),
    (json.dumps(observation(code={"text": "HR"})).encode(), "Observation", "no_code"),
    (json.dumps(observation(effectiveDateTime=None)).encode(), "Observation", "no_time"),
    (json.dumps(observation(effectiveDateTime="2020-99")).encode(), "Observation", "bad_time"),
    (json.dumps(patient(id=None)).encode(), "Patient", "no_id"),
]


@pytest.mark.parametrize(
    ("line", "source", "reason"), BROKEN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_gives_no_event_is_counted_with_its_reason_and_the_next_line_is_read(tmp_path, line, source, reason):
    path = tmp_path / "all.ndjson"
    path.write_bytes(line + b"\n\n" + json.dumps(observation(id="o")).encode() + b"\n")
    rows = parse(path)
    assert reason in DROPS
    assert counts(rows)[source, reason] == 1
    assert counts(rows)[source, READ] == (2 if source == "Observation" else 1)
    assert [row["code"] for row in rows if row["kind"] == EVENT] == ["LOINC//8867-4"]


@pytest.mark.parametrize(
    "reference", ["Patient/p1", "https://fhir.example.org/r4/Patient/p1", "Patient/p1/_history/3", "urn:uuid:p1"]
)
def test_all_literal_references_name_the_same_subject(tmp_path, reference):
    lines = [patient(gender="male"), observation(subject={"reference": reference})]
    path = tmp_path / "all.ndjson"
    path.write_text("\n".join(map(json.dumps, lines)))
    subjects = {row["subject_id"] for row in parse(path) if row["kind"] == EVENT}
    assert len(subjects) == 1 and min(subjects) > 0


def test_a_full_url_of_a_bundle_names_its_patient(tmp_path):
    bundle = {
        "resourceType": "Bundle",
        "entry": [
            {"fullUrl": "urn:uuid:aaaa", "resource": patient(id="p9", gender="male")},
            {"fullUrl": "urn:uuid:bbbb", "resource": observation(subject={"reference": "urn:uuid:aaaa"})},
            {"fullUrl": "urn:uuid:cccc"},
        ],
    }
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(bundle))
    rows = parse(path)
    assert len({row["subject_id"] for row in rows if row["kind"] == EVENT}) == 1
    assert counts(rows) == {
        ("Patient", READ): 1,
        ("Observation", READ): 1,
        ("(no resource)", READ): 1,
        ("(no resource)", "no_resource"): 1,
    }


@pytest.mark.parametrize("pieces", [1, 2, 7, 40])
def test_a_file_read_in_byte_ranges_gives_the_same_rows(tmp_path, pieces):
    path = tmp_path / "all.ndjson"
    path.write_text("".join(json.dumps(observation(valueInteger=i)) + "\n" for i in range(30)))
    from medray.storage.files import list_files

    cut = units(list(list_files(str(path))), (".ndjson",), -(-path.stat().st_size // pieces))
    assert len(cut) == pieces
    found = [row["numeric_value"] for unit in cut for row in parse(path, **unit._asdict()) if row["kind"] == EVENT]
    assert found == [float(i) for i in range(30)]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.ndjson.gz", gzip.compress(json.dumps(observation()).encode() * 50)[:-40], "truncated"),
        ("a.ndjson.gz", b"\x1f\x8b\x08\x00 no gzip after all", "corrupt"),
        ("a.ndjson", b"", "empty_file"),
        ("a.json", b'{"resourceType": "Bundle", "entry": [', "corrupt"),
        ("a.zip", b"PK no zip", "corrupt"),
        ("a.tar", b"no tar" * 200, "corrupt"),
    ],
)
def test_a_broken_file_is_a_failed_row_with_a_reason(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    assert [row["code"] for row in parse(path) if row["kind"] == FAILED] == [reason]


def test_what_stands_before_the_break_of_a_truncated_file_is_kept_and_told(tmp_path):
    lines = b"".join(json.dumps(observation(valueInteger=i)).encode() + b"\n" for i in range(3000))
    path = tmp_path / "a.ndjson.gz"
    packed = gzip.compress(lines)
    path.write_bytes(packed[: len(packed) // 2])
    rows = parse(path)
    kept = [row["numeric_value"] for row in rows if row["kind"] == EVENT]
    assert 0 < len(kept) < 3000 and kept == [float(i) for i in range(len(kept))]
    assert [row["code"] for row in rows if row["kind"] == FAILED] == ["truncated"]
    assert counts(rows)["Observation", READ] == len(kept)


def test_every_note_has_a_meaning(tmp_path):
    path = tmp_path / "a.ndjson"
    lines = [
        patient(birthDate="x", deceasedBoolean=True, gender="male", id="p2"),
        observation(valueString="text", effectiveDateTime="2020-01"),
        observation(valuePeriod={}, effectiveDateTime="2020-01-01"),
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    rows = parse(path)
    notes = {outcome.removeprefix(NOTE) for _, outcome in counts(rows) if outcome.startswith(NOTE)}
    notes |= {note for row in rows if row["kind"] == VERSION for note in row["description"].split(",")}
    assert notes == {"bad_time_left_out", "death_without_time", "text_left_out", "value_left_out", "date_only",
                     "month_or_year_only"}  # fmt: skip
    assert notes <= NOTES.keys()
