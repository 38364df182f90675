"""Versions of a resource are one, deletions take it away; ids of two servers are two subjects, linked records one.

FHIR R4: Meta.versionId and Meta.lastUpdated, Bundle.type history, Bundle.entry.request and .response, Bundle.entry.fullUrl,
Reference.reference, Patient.link; Bulk Data Access IG for `deleted` and the manifest.
"""

from __future__ import annotations

import itertools
from typing import Any

import pyarrow.parquet as pq
import pytest
from fhir_data import HEMOGLOBIN, convert, meta, observation, patient, quantity, valid

from medray.modalities.ehr.convert.versions import Version, lost

DAY = "2020-01-0{}T00:00:00Z"


def bundle(*entries: dict[str, Any], kind: str = "collection", **found: Any) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries)} | found


def entry(url: str, resource: dict[str, Any], **found: Any) -> dict[str, Any]:
    return {"fullUrl": url, "resource": resource} | found


def deletion(url: str, **found: Any) -> dict[str, Any]:
    return {"request": {"method": "DELETE", "url": url}} | found


# --- versions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_newest_of_several_versions_is_the_event_wherever_they_stand(tmp_path, order):
    versions = [
        observation(value=41, status="preliminary", **meta("1", DAY.format(2))),
        observation(value=15, **meta("2", DAY.format(3))),
        observation(value=14, status="corrected", **meta("3", DAY.format(4))),
    ]
    files = {f"{place}.ndjson": [versions[which]] for place, which in enumerate(order)}
    done = convert(tmp_path, {"p.ndjson": [patient()]} | files)
    assert done.values == [14.0]
    assert done.result.dropped == {"Observation": {"superseded": 2}}
    assert done.result.notes == {"Patient": {"date_only": 1}}, "of the newest alone"


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        (meta("9", DAY.format(2)), meta("10", DAY.format(2)), 2.0),  # of one time: the numbers, not their letters
        (meta("b", DAY.format(3)), meta("a", DAY.format(2)), 1.0),  # an id without an order
        (meta(None, "2020-01-02T10:00:00+05:00"), meta(None, "2020-01-02T06:00:00Z"), 2.0),
        (meta(None, "2020-01-02T10:00:00.5Z"), meta(None, "2020-01-02T10:00:00.25Z"), 1.0),
        (meta("2"), meta("1"), 1.0),
        (meta("2", DAY.format(2)), meta("1"), 1.0),  # only one has a time, both a number
    ],
)
def test_versions_are_ordered_by_their_time_and_then_by_their_number(tmp_path, first, second, value):
    done = convert(tmp_path, [patient(), observation(value=1, **first), observation(value=2, **second)])
    assert done.values == [value]


@pytest.mark.parametrize(
    ("first", "second"),
    [({}, {}), (meta("a"), meta("b")), (meta("1"), {}), (meta("x", DAY.format(2)), meta("y", DAY.format(2)))],
)
def test_versions_that_differ_and_have_no_order_are_all_dropped_and_are_faults(tmp_path, first, second):
    done = convert(tmp_path, [patient(), observation(value=1, **first), observation(value=2, **second)])
    assert done.values == []
    assert done.result.dropped == {"Observation": {"unordered_versions": 2}} and done.result.faults == 2


@pytest.mark.parametrize(("first", "second"), [({}, {}), (meta("1"), {}), (meta("a"), meta("b"))])
def test_the_same_resource_again_is_one_event(tmp_path, first, second):
    """Two files of an export, or two pages of a search."""
    files = {"a.ndjson": [patient(), observation(**first)], "b.ndjson": [observation(**second)]}
    done = convert(tmp_path, files)
    assert done.values == [14.0] and done.result.dropped == {"Observation": {"superseded": 1}}


def test_resources_of_one_id_and_two_types_are_two(tmp_path):
    done = convert(tmp_path, [patient(), observation("x"), valid("Condition"), valid("Procedure")])
    assert len(done.codes) == 3


def test_an_observation_without_an_id_is_no_version_of_another(tmp_path):
    done = convert(tmp_path, [patient(), observation(None, 1), observation(None, 2)])
    assert done.values == [1.0, 2.0]


@pytest.mark.parametrize("status", ["entered-in-error", "cancelled"])
def test_a_later_version_that_is_no_event_takes_the_earlier_away(tmp_path, status):
    versions = [observation(**meta("1", DAY.format(2))), observation(status=status, **meta("2", DAY.format(3)))]
    done = convert(tmp_path, [patient(), *versions])
    reason = "entered_in_error" if status == "entered-in-error" else "not_done"
    assert done.values == [] and done.result.dropped == {"Observation": {reason: 1, "superseded": 1}}


def test_a_version_of_another_patient_moves_the_event(tmp_path):
    """A result that was filed under the wrong patient, corrected."""
    wrong = observation(subject={"reference": "Patient/p2"}, **meta("1", DAY.format(2)))
    done = convert(tmp_path, [patient("p1"), patient("p2", birthDate="1960-01-01"), wrong,
                              observation(**meta("2", DAY.format(3)))])  # fmt: skip
    born = {time: subject for subject, time, code, _ in done.rows if code == "MEDS_BIRTH"}
    assert done.subjects(HEMOGLOBIN) == {born["1950-01-01 00:00:00"]}


def test_a_patients_newest_version_gives_the_facts(tmp_path):
    versions = [patient(gender="male", **meta("1", DAY.format(2))),
                patient(gender="female", birthDate="1951-01-01", **meta("2", DAY.format(3)))]  # fmt: skip
    done = convert(tmp_path, [*versions, observation()])
    assert done.times("MEDS_BIRTH") == ["1951-01-01 00:00:00"] and len(done.subjects("GENDER//male")) == 0
    assert done.values == [14.0]


def test_a_medications_newest_version_gives_the_code(tmp_path):
    request = valid("MedicationRequest", medicationReference={"reference": "Medication/m"})
    del request["medicationCodeableConcept"]

    def medication(code: str, **found: Any) -> dict[str, Any]:
        return {"resourceType": "Medication", "id": "m", "code": {"coding": [{"code": code}]}} | found

    old, new = medication("old", **meta("1", DAY.format(2))), medication("new", **meta("2", DAY.format(3)))
    assert convert(tmp_path, [patient(), request, new, old]).codes == ["LOCAL//new"]


# --- histories and deletions ------------------------------------------------------------------------------------

HISTORY_URL = "https://a.example/fhir/Observation/o1"


def history(*entries: dict[str, Any]) -> dict[str, Any]:
    return bundle(*entries, kind="history")


def versions_without_meta() -> list[dict[str, Any]]:
    """Newest first; Bundle.entry.response says which version each is."""
    return [
        entry(HISTORY_URL, observation(value=value), request={"method": "PUT", "url": "Observation/o1"},
              response={"status": "200", "etag": f'W/"{version}"', "lastModified": DAY.format(version + 1)})
        for version, value in ((2, 14), (1, 41))
    ]  # fmt: skip


def test_a_history_is_its_newest_version(tmp_path):
    done = convert(tmp_path, {"a.json": history(*versions_without_meta()), "p.ndjson": [patient()]})
    assert done.values == [14.0]


@pytest.mark.parametrize(
    ("gone", "values"),
    [
        ({"response": {"status": "204", "etag": 'W/"3"', "lastModified": DAY.format(4)}}, []),
        ({"response": {"status": "204", "lastModified": DAY.format(2)}}, [14.0]),  # created again since
        ({"response": {"status": "204", "etag": 'W/"3"'}}, []),
        ({}, []),  # at a time that nobody says
    ],
)
def test_a_deletion_of_a_history_takes_away_what_is_not_newer(tmp_path, gone, values):
    done = convert(
        tmp_path,
        {
            "a.json": history(deletion("Observation/o1", fullUrl=HISTORY_URL, **gone), *versions_without_meta()),
            "p.ndjson": [patient()],
        },
    )
    assert done.values == values
    assert done.result.read["(deletion)"] == 1 and done.result.dropped["(deletion)"] == {"deletion": 1}


@pytest.mark.parametrize("url", ["Observation/o1", "/Observation/o1", "Observation/o1/_history/4", HISTORY_URL])
def test_what_an_export_reports_as_deleted_is_no_event(tmp_path, url):
    done = convert(
        tmp_path,
        {
            "Observation.ndjson": [patient(), observation(), observation("o2", 9)],
            "deleted.ndjson": [bundle(deletion(url), kind="transaction")],
        },
    )
    assert done.values == [9.0] and done.result.dropped["Observation"] == {"deleted": 1}


@pytest.mark.parametrize(("updated", "values"), [(DAY.format(2), []), (DAY.format(4), [14.0])])
def test_a_resource_of_a_later_export_outlives_an_earlier_deletion(tmp_path, updated, values):
    """Bundle.meta.lastUpdated of the deletion against Meta.lastUpdated of the resource."""
    gone = bundle(deletion("Observation/o1"), kind="transaction", meta={"lastUpdated": DAY.format(3)})
    done = convert(tmp_path, [patient(), observation(**meta(None, updated)), gone])
    assert done.values == values


def test_a_deleted_patient_is_known_no_more(tmp_path):
    done = convert(tmp_path, [patient(), observation(), patient("p2"), bundle(deletion("Patient/p1"))])
    assert done.result.dropped["Patient"] == {"deleted": 1}
    assert done.result.dropped["Observation"] == {"unknown_patient": 1} and done.result.subjects == 1


def test_a_deletion_of_what_is_not_there_and_one_that_names_nothing_are_told(tmp_path):
    done = convert(tmp_path, [patient(), bundle(deletion("Observation/o9"), deletion("Observation?identifier=x"))])
    assert done.result.dropped == {"(deletion)": {"deletion": 1, "not_applied": 1}} and done.result.faults == 1


def test_a_patch_is_not_applied_and_told(tmp_path):
    """Bundle.entry.request.method PATCH: what it makes of the resource is not known."""
    patch = {"request": {"method": "PATCH", "url": "Observation/o1"}, "resource": {"resourceType": "Parameters"}}
    done = convert(tmp_path, [patient(), bundle(patch, kind="transaction")])
    assert done.result.dropped == {"Observation": {"not_applied": 1}} and done.result.faults == 1


def test_an_export_manifest_that_names_deletions_says_so(tmp_path):
    manifest = {"transactionTime": DAY.format(2), "output": [], "deleted": [{"type": "Bundle", "url": "https://x/1"}]}
    done = convert(tmp_path, {"manifest.json": manifest, "p.ndjson": [patient()]})
    assert done.result.read["(manifest)"] == 1 and done.result.dropped["(manifest)"] == {"manifest": 1}
    assert done.result.notes["(manifest)"] == {"names_deletions": 1}


def version(row: int, updated: int | None = None, number: int | None = None, **found: Any) -> Version:
    return Version(row, **{"server": 0, "updated": updated, "number": number, "digest": row, "deletion": False} | found)


def test_versions_of_two_servers_are_apart_and_what_names_none_stands_alone():
    a, b, nobody = version(0, 1, server=7), version(1, 2, server=8), version(2, 3)
    assert lost([a, b]) == {}
    assert lost([a, nobody]) == {0: "superseded"}, "one server alone is named: it is of that one"
    assert lost([a, b, nobody]) == {}
    assert lost([a, b, version(3, deletion=True)]) == {0: "deleted", 1: "deleted"}
    assert lost([a, b, version(3, deletion=True, server=7)]) == {0: "deleted"}


# --- servers ----------------------------------------------------------------------------------------------------


def of_server(base: str, reference: str | None = None, value: int = 14, born: str = "1950") -> list[dict[str, Any]]:
    about = {"reference": reference or f"{base}/Patient/p1"}
    return [
        entry(f"{base}/Patient/p1", patient(birthDate=born)),
        entry(f"{base}/Observation/o1", observation(value=value, subject=about)),
    ]


@pytest.mark.parametrize("reference", [None, "Patient/p1", "Patient/p1/_history/2"])
def test_one_id_on_two_servers_is_two_subjects(tmp_path, reference):
    """Bundle.entry.fullUrl; a relative reference is of the entry's own server."""
    pages = [
        *of_server("https://a.example/fhir", reference),
        *of_server("https://b.example/fhir", reference, 9, "1990"),
    ]
    done = convert(tmp_path, {"a.json": bundle(*pages)})
    of = {time: subject for subject, time, code, _ in done.rows if code == "MEDS_BIRTH"}
    values = {subject: value for subject, _, code, value in done.rows if code == HEMOGLOBIN}
    assert values == {of["1950-01-01 00:00:00"]: 14.0, of["1990-01-01 00:00:00"]: 9.0}
    assert done.result.dropped == {} and all(0 < subject < 2**63 for subject in values)


@pytest.mark.parametrize(
    "base",
    ["https://a.example/fhir", "http://a.example/fhir", "https://A.Example/fhir", "https://a.example:443/fhir"],
)
def test_ways_to_write_one_server_are_one(tmp_path, base):
    done = convert(tmp_path, {"a.json": bundle(*of_server("https://a.example/fhir", f"{base}/Patient/p1"))})
    assert (done.result.subjects, done.values) == (1, [14.0])


def test_where_one_server_is_named_what_names_none_is_of_it(tmp_path):
    """An export and a search of one server: NDJSON has no base URL."""
    page = bundle(*of_server("https://a.example/fhir"))
    done = convert(tmp_path, {"a.json": page, "b.ndjson": [observation("o2", 9), observation("o1", 14)]})
    assert done.result.subjects == 1 and sorted(done.values) == [9.0, 14.0]
    assert done.result.dropped == {"Observation": {"superseded": 1}}


def test_a_patient_of_another_server_is_unknown_there(tmp_path):
    page = bundle(*of_server("https://a.example/fhir"))
    stranger = observation("o2", 9, subject={"reference": "https://b.example/fhir/Patient/p1"})
    done = convert(tmp_path, {"a.json": page, "b.ndjson": [stranger]})
    assert done.values == [14.0] and done.result.dropped == {"Observation": {"unknown_patient": 1}}


def test_medications_of_two_servers_keep_their_codes(tmp_path):
    def page(base: str, code: str) -> list[dict[str, Any]]:
        request = valid("MedicationRequest", medicationReference={"reference": "Medication/m"})
        del request["medicationCodeableConcept"]
        medication = {"resourceType": "Medication", "id": "m", "code": {"coding": [{"code": code}]}}
        return [
            entry(f"{base}/Patient/p1", patient()),
            entry(f"{base}/MedicationRequest/x", request),
            entry(f"{base}/Medication/m", medication),
        ]

    done = convert(tmp_path, {"a.json": bundle(*page("https://a.example", "a"), *page("https://b.example", "b"))})
    assert sorted(done.codes) == ["LOCAL//a", "LOCAL//b"]
    assert len(done.subjects("LOCAL//a") | done.subjects("LOCAL//b")) == 2


def test_a_urn_that_is_not_made_of_the_id_is_who_it_is(tmp_path):
    """Two transactions whose temporary ids are equal: the full URL is the identity, the id of a POST means nothing."""

    def transaction(urn: str, born: str, value: int) -> dict[str, Any]:
        return bundle(
            entry(urn, patient("temporary", birthDate=born), request={"method": "POST", "url": "Patient"}),
            entry(f"{urn}-o", observation("o", value, subject={"reference": urn})),
            kind="transaction",
        )

    done = convert(tmp_path, {"a.json": transaction("urn:uuid:aa", "1950", 14), "b.json": transaction("urn:uuid:bb", "1990", 9)})  # fmt: skip
    assert done.result.subjects == 2 and sorted(done.values) == [9.0, 14.0]
    assert len(done.subjects(HEMOGLOBIN)) == 2


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        ({"identifier": {"system": "urn:x", "value": "7"}}, "identifier_only"),
        ({"reference": "#p"}, "unresolved_subject"),
        ({"reference": "Patient?identifier=7"}, "unresolved_subject"),
        ({"reference": "Device/p1"}, "subject_no_patient"),
        ({"display": "Jane Doe"}, "no_subject"),
    ],
)
def test_a_reference_that_names_no_patient_says_why(tmp_path, subject, reason):
    """Reference.identifier is no literal reference; a contained patient cannot be identified independently."""
    done = convert(tmp_path, [patient(), observation(subject=subject, contained=[patient("p")])])
    assert done.result.dropped == {"Observation": {reason: 1}}


def test_labels_name_a_patient_of_two_servers_by_its_url(tmp_path):
    pages = [*of_server("https://a.example/fhir"), *of_server("https://b.example/fhir", None, 9, "1990")]
    (tmp_path / "y.csv").write_text("id,y\nhttps://b.example/fhir/Patient/p1,1\np1,0\n")
    labels = {"name": "y", "file": str(tmp_path / "y.csv"), "subject_column": "id", "value_column": "y",
              "after": "2021-01-01T00:00:00"}  # fmt: skip
    done = convert(tmp_path, {"a.json": bundle(*pages)}, labels=labels)
    assert done.result.labels["labels"] == 1 and done.result.labels["dropped"] == {"unknown_subject": 1}
    labelled = pq.read_table(tmp_path / "out/labels/y.parquet")["subject_id"].to_pylist()
    assert labelled == [subject for subject, _, _, value in done.rows if value == 9.0]


# --- linked patients --------------------------------------------------------------------------------------------


def linked(name: str, kind: str, other: str, **found: Any) -> dict[str, Any]:
    return patient(name, link=[{"type": kind, "other": {"reference": f"Patient/{other}"}}], **found)


def of(name: str, value: int) -> dict[str, Any]:
    return observation(f"of-{name}", value, subject={"reference": f"Patient/{name}"})


@pytest.mark.parametrize("shards", [1, 7])
@pytest.mark.parametrize("kind", ["replaced-by", "replaces"])
def test_a_patient_that_was_merged_is_one_subject_with_the_facts_of_the_one_that_stays(tmp_path, kind, shards):
    """Patient.link.type: replaced-by must no longer be used; replaces points back to it."""
    old, new = patient("old", birthDate="1940-01-01", gender="male"), patient("new", gender="female")
    changed = linked("old", kind, "new") | old if kind == "replaced-by" else linked("new", kind, "old") | new
    found = [changed if each["id"] == changed["id"] else each for each in (old, new)]
    done = convert(tmp_path, [*found, of("old", 1), of("new", 2)], shards=shards)
    assert done.result.subjects == 1 and sorted(done.values) == [1.0, 2.0]
    assert done.times("MEDS_BIRTH") == ["1950-01-01 00:00:00"] and done.subjects("GENDER//male") == set()
    assert done.result.dropped == {"Patient": {"replaced_patient": 1}}


def test_chains_and_circles_of_links_are_one_subject(tmp_path):
    chain = [linked("a", "replaced-by", "b"), linked("b", "replaced-by", "c"), patient("c", gender="female")]
    circle = [linked("d", "replaced-by", "e"), linked("e", "replaced-by", "d"), linked("f", "replaced-by", "f")]
    names = "abcdef"
    done = convert(tmp_path, [*chain, *circle, *(of(name, i) for i, name in enumerate(names))], shards=5)
    who = {value: subject for subject, _, code, value in done.rows if code == HEMOGLOBIN}
    assert who[0] == who[1] == who[2] and who[3] == who[4]
    assert len({who[0], who[3], who[5]}) == done.result.subjects == 3
    assert done.subjects("GENDER//female") == {who[0]}
    assert done.result.dropped == {"Patient": {"replaced_patient": 3}}, "a, b and one of the circle"


@pytest.mark.parametrize("kind", ["refer", "seealso"])
def test_a_second_record_of_a_person_that_stays_in_use_is_of_the_same_subject(tmp_path, kind):
    """Patient.link: another record of the same actual patient; both stay valid."""
    done = convert(tmp_path, [linked("a", kind, "b", gender="female"), patient("b"), of("a", 1), of("b", 2)])
    assert done.result.subjects == 1 and sorted(done.values) == [1.0, 2.0] and done.result.dropped == {}


def test_a_record_whose_successor_is_elsewhere_keeps_its_facts(tmp_path):
    done = convert(tmp_path, [linked("a", "replaced-by", "elsewhere"), of("a", 1)])
    assert done.values == [1.0] and done.times("MEDS_BIRTH") == ["1950-01-01 00:00:00"]


def test_a_link_of_an_older_version_holds_no_more(tmp_path):
    """Two records that were linked by mistake, and are apart again."""
    was = linked("a", "replaced-by", "b", **meta("1", DAY.format(2)))
    done = convert(tmp_path, [was, patient("a", **meta("2", DAY.format(3))), patient("b"), of("a", 1), of("b", 2)])
    assert done.result.subjects == 2 and len(done.subjects(HEMOGLOBIN)) == 2


def test_links_between_servers_join_what_ids_do_not(tmp_path):
    pages = [*of_server("https://a.example/fhir"), *of_server("https://b.example/fhir", None, 9, "1990")]
    pages[0]["resource"]["link"] = [
        {"type": "replaced-by", "other": {"reference": "https://b.example/fhir/Patient/p1"}}
    ]
    done = convert(tmp_path, {"a.json": bundle(*pages)}, shards=6)
    assert done.result.subjects == 1 and sorted(done.values) == [9.0, 14.0]
    assert done.times("MEDS_BIRTH") == ["1990-01-01 00:00:00"]


@pytest.mark.parametrize(
    ("link", "dropped", "notes"),
    [
        (
            [{"type": "replaced-by", "other": {"identifier": {"value": "1"}}}],
            {},
            {"link_unresolved": 1, "date_only": 1},
        ),
        ([{"type": "seealso", "other": {"reference": "RelatedPerson/r"}}], {}, {"date_only": 1}),
        ([{"type": "twin", "other": {"reference": "Patient/b"}}], {"Patient": {"unknown_status": 1}}, {}),
    ],
)
def test_a_link_that_names_no_patient_or_is_of_no_known_type_is_told(tmp_path, link, dropped, notes):
    done = convert(tmp_path, [patient(link=link)], time="known")
    assert done.result.dropped == dropped and done.result.notes.get("Patient", {}) == notes


def test_labels_of_a_replaced_record_are_of_the_one_that_stays(tmp_path):
    (tmp_path / "y.csv").write_text("id,y\nold,1\n")
    labels = {"name": "y", "file": str(tmp_path / "y.csv"), "subject_column": "id", "value_column": "y",
              "after": "2021-01-01T00:00:00"}  # fmt: skip
    done = convert(tmp_path, [linked("old", "replaced-by", "new"), patient("new"), of("new", 2)], labels=labels)
    labelled = pq.read_table(tmp_path / "out/labels/y.parquet")["subject_id"].to_pylist()
    assert labelled == [subject for subject, _, code, _ in done.rows if code == HEMOGLOBIN]


def test_no_id_comes_out_of_links_servers_and_versions(tmp_path):
    import json

    secret = "mrn-4711"
    pages = bundle(
        entry(f"https://secret.example/fhir/Patient/{secret}", linked(secret, "replaced-by", "mrn-4712")),
        entry("https://other.example/fhir/Patient/mrn-4712", patient("mrn-4712")),
        entry(f"https://other.example/fhir/Patient/{secret}", patient(secret)),
        deletion(f"Observation/{secret}"),
    )
    done = convert(tmp_path, {"a.json": pages})
    said = json.dumps(done.result.model_dump(mode="json", exclude={"out"}))
    for path in (tmp_path / "out").rglob("*.json"):
        said += path.read_text().replace(str(tmp_path), "")
    assert "mrn" not in said and "secret" not in said and quantity(1)["value"] == 1
