"""FHIR JSON files as they come: arrays, single resources, lines, byte order marks, Bundles in lines, names twice."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from fhir_data import convert, observation, patient

from medray.modalities.ehr.convert.fhir.json import TWICE, load

PAIR = [patient(), observation()]
LINES = "\n".join(map(json.dumps, PAIR)).encode()
BUNDLE = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": each} for each in PAIR]}
MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(PAIR).encode()),
        ("a.json", json.dumps(PAIR, indent=2).encode()),
        ("a.json", MARK + json.dumps(PAIR).encode()),
        ("a.json", json.dumps([[PAIR[0]], BUNDLE]).encode()),
        ("a.json", json.dumps(BUNDLE).encode()),
        ("a.json", LINES),  # lines under the name of one value
        ("a.json", MARK + LINES + b"\n\n"),
        ("a.JSON.GZ", gzip.compress(json.dumps(PAIR).encode())),
        ("a.ndjson", LINES),
        ("a.ndjson", MARK + LINES),
        ("a.ndjson", LINES.replace(b"\n", b"\r\n") + b"\r\n\r\n"),
        ("a.ndjson", b"\n \n" + LINES + b"\n\t\n"),
        ("a.ndjson", json.dumps(BUNDLE).encode()),
        ("a.ndjson", json.dumps(PAIR).encode()),
        ("a.jsonl", MARK + json.dumps(BUNDLE).encode() + b"\r\n"),
        ("a.ndjson.gz", gzip.compress(MARK + LINES)),
        ("a.ndjson", gzip.compress(LINES)),  # packed, under a plain name
    ],
)
def test_resources_are_read_however_they_are_put_into_a_file(tmp_path, name, content):
    done = convert(tmp_path, {name: content})
    assert done.values == [14.0] and len(done.rows) == 2
    assert (done.result.failed, done.result.faults, done.result.exit_code(0.0)) == (0, 0, 0)


def test_single_resources_in_files_of_their_own_are_read(tmp_path):
    files = {f"{i}.json": MARK + json.dumps(each).encode() for i, each in enumerate(PAIR)}
    assert convert(tmp_path, files).values == [14.0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[]", "unrecognised_format"),
        (b" \n", "empty_file"),
        (MARK, "empty_file"),
        (b"{", "corrupt"),
        (LINES[:-3], "corrupt"),
        (json.dumps(PAIR).encode("utf-16"), "corrupt"),
        (b'{"resourceType": "Patient", "id": "p", "x": NaN}', "corrupt"),
    ],
)
def test_a_file_of_nothing_is_a_failed_file(tmp_path, content, reason):
    done = convert(tmp_path, {"a.json": content, "b.ndjson": LINES})
    assert [each["reason"] for each in done.result.failed_files] == [reason]
    assert done.values == [14.0] and done.result.exit_code(0.1) == 3


@pytest.mark.parametrize(
    "content",
    [
        b'{"hello": "world"}',
        json.dumps({"resourceType": "Bundle", "type": "searchset", "total": 0}).encode(),
        json.dumps(observation(status="entered-in-error")).encode(),
        json.dumps({"resourceType": "Basic", "id": "b"}).encode(),
    ],
)
def test_an_archive_that_gives_no_event_does_not_end_well(tmp_path, content):
    done = convert(tmp_path, {"a.json": content})
    assert done.result.events == 0 and done.result.exit_code(1.0) == 3


# --- properties named twice -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ('{"a": 1, "a": 2}', True),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', True),
        ('{"a": 1, "\\u0061": 2}', True),
        ('[{"a": 1}, {"a": 2}]', False),
        ('{"a": "\\": \\" :", "b": "x\\\\"}', False),
        ('{"a" : "\\"a\\": 1, \\"a\\": 2"}', False),
        ('{"a\\\\": {"": 1}, "é": 2}', False),
    ],
)
def test_a_property_that_is_named_twice_is_found(text, twice):
    found = load(text.encode())
    assert (TWICE in json.dumps(found) or "\\u0000twice" in json.dumps(found)) == twice
    if not twice:
        assert found == json.loads(text)


@pytest.mark.parametrize("name", ["a.ndjson", "a.json"])
def test_a_resource_that_names_a_property_twice_is_dropped_and_a_fault(tmp_path, name):
    """Which of the two statuses holds? JSON objects of FHIR name a property once."""
    twice = json.dumps(observation("o2")).replace(
        '"status": "final"', '"status": "entered-in-error", "status": "final"'
    )
    inside = json.dumps(observation("o3")).replace('"value": 14', '"value": 14, "value": 41')
    lines = [json.dumps(each) for each in PAIR] + [twice, inside]
    content = "\n".join(lines) if name == "a.ndjson" else f"[{','.join(lines)}]"
    done = convert(tmp_path, {name: content.encode()})
    assert done.result.dropped == {"Observation": {"duplicate_keys": 2}} and done.result.faults == 2
    assert done.values == [14.0]


@pytest.mark.parametrize(
    ("written", "value"), [("1.4e1", 14.0), ("14.00", 14.0), ("1400E-2", 14.0), ("12345678901234567890", 12345678901234567890.0)]
)  # fmt: skip
def test_numbers_may_have_exponents(tmp_path, written, value):
    line = json.dumps(observation()).replace('"value": 14', f'"value": {written}')
    done = convert(tmp_path, {"a.ndjson": (json.dumps(patient()) + "\n" + line).encode()})
    assert done.values == [pytest.approx(value, rel=1e-6)]


def test_junk_around_a_bundles_entries_is_no_more_than_a_drop(tmp_path):
    entries: list[Any] = [
        {"resource": observation(), "request": []},
        {"request": {"method": "DELETE", "url": 7}},
        {"request": {"method": ["DELETE"]}, "response": 3},
        {"fullUrl": 3, "resource": {"resourceType": ["Patient"]}},
        {"fullUrl": "http://[bad:port/Patient/p1", "resource": patient("p9")},
        {"resource": patient("p8", link=[{"type": ["x"], "other": 3}])},
        {"resource": observation("o9", meta={"versionId": 3, "lastUpdated": [], "security": "x"})},
        None,
    ]
    bundle = {"resourceType": "Bundle", "type": "history", "entry": entries, "meta": []}
    done = convert(tmp_path, {"a.json": bundle, "b.ndjson": [patient()]})
    assert done.result.read == {"(deletion)": 1, "(no resource)": 2, "Observation": 2, "Patient": 3}
    assert len(done.values) == 2
