"""FHIR counts by type against a reader that is written here: json alone, no code of medray's, on both shared sets."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from medray.config.runs import ConvertRun
from medray.engines.opening import open_engine
from medray.engines.spec import LocalSpec
from medray.verbs.results import ToMedsResult
from medray.verbs.to_meds import to_meds

# FHIR R4: codes of a status that say that nothing happened, is known, or is valid
NO_EVENT = {"entered-in-error", "not-done", "cancelled", "planned", "draft", "preparation", "registered"}
NO_ORDER = {"proposal", "plan", "option"}
ABSENT_YET_MEASURED = {"masked", "unsupported", "as-text", "not-a-number", "negative-infinity", "positive-infinity"}
WHOSE = {"Encounter": "subject", "Condition": "subject", "Observation": "subject", "MedicationRequest": "subject",
         "Procedure": "subject", "DiagnosticReport": "subject", "Immunization": "patient",
         "AllergyIntolerance": "patient"}  # fmt: skip


class Reader:
    """Counts of one folder, resource by resource."""

    def __init__(self, folder: Path) -> None:
        self.read: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.subjects: set[str] = set()
        self.times: Counter[str] = Counter()
        newest: dict[tuple[str, str], dict[str, Any]] = {}
        gone: set[tuple[str, ...]] = set()
        for each in resources(folder):
            kind = each.get("resourceType", "(no resource)")
            if kind == "Bundle":  # of deletions
                gone |= {tuple(entry["request"]["url"].split("/")) for entry in each["entry"]}
                self.read["(deletion)"] += len(each["entry"])
                continue
            self.read[kind] += 1
            if kind != "(no resource)":
                version = newest.setdefault((kind, each["id"]), each)
                if updated(each) > updated(version):
                    newest[kind, each["id"]] = each
        newest = {name: each for name, each in newest.items() if name not in gone}
        known = {name for (kind, name) in newest if kind == "Patient"}
        for (kind, _), each in newest.items():
            times = moments(kind, each)
            if times and (kind == "Patient" or patient_of(each, kind) in known):
                self.events[kind] += len(times)
                self.times.update(time for time in times if time)
                self.subjects.add(each["id"] if kind == "Patient" else patient_of(each, kind))


def resources(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in sorted(folder.iterdir()):
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        if ".ndjson" in path.name:
            found += [json.loads(line) for line in text.splitlines() if line]
        else:
            found += [entry["resource"] for entry in json.loads(text)["entry"]]
    return found


def updated(each: dict[str, Any]) -> str:
    return each.get("meta", {}).get("lastUpdated", "")


def patient_of(each: dict[str, Any], kind: str) -> str:
    return each[WHOSE[kind]]["reference"].replace("urn:uuid:", "Patient/").split("/")[-1]


def moments(kind: str, each: dict[str, Any]) -> list[str]:
    """UTC times of the events that a resource stands for, "" for one without a time; none: it stands for none."""
    verified = each.get("verificationStatus", {}).get("coding", [{}])[0].get("code")
    if {each.get("status"), verified} & (NO_EVENT | {"refuted"}) or each.get("intent") in NO_ORDER:
        return []
    assert "modifierExtension" not in json.dumps(each) and "implicitRules" not in each and "link" not in each
    match kind:
        case "Patient":
            static = [
                extension for extension in each["extension"] if extension["url"].endswith(("-race", "-ethnicity"))
            ]
            categories = [part for one in static for part in one["extension"] if part["url"] == "ombCategory"]
            death = [utc(each["deceasedDateTime"])] if "deceasedDateTime" in each else []
            return [utc(each["birthDate"] + "T00:00:00Z"), *death, *[""] * (len(categories) + ("gender" in each))]
        case "Encounter":
            return [utc(each["period"][name]) for name in ("start", "end") if name in each["period"]]
        case "Condition":
            known = max(utc(each["onsetDateTime"]), utc(each["recordedDate"]))
            over = [max(known, utc(each["abatementDateTime"]))] if "abatementDateTime" in each else []
            return [known, *over]
        case "Observation" | "DiagnosticReport":
            happened, issued = utc(each["effectiveDateTime"]), utc(each["issued"])
            time = issued if issued[:19] > happened[:19] else happened
            parts = [part for part in each.get("component", []) if measured(part)]
            own = measured(each) and (not parts or any(name.startswith("value") for name in each))
            return [time] * (len(parts) + own)
        case "MedicationRequest":
            return [] if each.get("doNotPerform") else [utc(each["authoredOn"])]
        case "Procedure":
            return [utc(each["performedPeriod"]["start"])]
        case "Immunization":
            return [utc(each["occurrenceDateTime"])]
        case "AllergyIntolerance":
            return [utc(each["recordedDate"])]
    return []  # Device: nobody says when; other types: no events


def measured(part: dict[str, Any]) -> bool:
    reasons = [each["code"] for each in part.get("dataAbsentReason", {}).get("coding", [])]
    return not reasons or bool(ABSENT_YET_MEASURED & set(reasons))


def utc(text: str) -> str:
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")


def convert(folder: Path, tmp_path: Path) -> tuple[ToMedsResult, Counter[str]]:
    """(result, how many events stand at each time)"""
    (tmp_path / "key").write_text("k" * 64)
    facts = {"archive": str(folder), "out": str(tmp_path / "out"), "pseudonym_key": str(tmp_path / "key")}
    run = ConvertRun.model_validate(facts | {"engine": LocalSpec(), "source": {"kind": "fhir"}})
    engine = open_engine(run.engine)
    try:
        result = to_meds(run, engine)
    finally:
        engine.close()
    times: Counter[str] = Counter()
    for path in (tmp_path / "out/data").rglob("*.parquet"):
        column = pq.read_table(path)["time"].to_pylist()
        times.update(time.isoformat(timespec="microseconds") for time in column if time)
    return result, times


def check(folder: Path, tmp_path: Path) -> ToMedsResult:
    result, times = convert(folder, tmp_path)
    own = Reader(folder)
    assert result.read == dict(own.read)
    assert result.events_by_type == {kind: count for kind, count in own.events.items() if count}
    assert result.subjects == len(own.subjects)
    for kind, read in result.read.items():
        assert read == result.converted.get(kind, 0) + sum(result.dropped.get(kind, {}).values()), kind
    assert times == own.times
    return result


@pytest.mark.parametrize("name", ["fhir_bulk_10", "fhir_synthea_hiv"])
def test_counts_by_type_subjects_and_every_time_equal_an_independent_readers(shared_data, tmp_path, name):
    result = check(shared_data / "ehr" / name, tmp_path)
    assert result.faults == 0


STATUSES = {
    "Encounter": ("planned", "cancelled", "entered-in-error", "unknown"),
    "Observation": ("registered", "preliminary", "amended", "cancelled", "entered-in-error"),
    "DiagnosticReport": ("registered", "partial", "appended", "cancelled"),
    "MedicationRequest": ("draft", "cancelled", "on-hold", "entered-in-error"),
    "Procedure": ("preparation", "not-done", "stopped", "entered-in-error"),
    "Immunization": ("not-done", "entered-in-error", "completed"),
}


@pytest.mark.parametrize("name", ["fhir_bulk_10", "fhir_synthea_hiv"])
def test_they_are_equal_with_other_statuses_versions_deletions_and_later_records(shared_data, tmp_path, name):
    """A third of the resources of real sets changed, seeded: all over several files, in any order."""
    chance = random.Random(11)
    lines: list[dict[str, Any]] = []
    gone: list[dict[str, Any]] = []
    for each in resources(shared_data / "ehr" / name):
        kind = each.get("resourceType")
        if kind not in WHOSE or chance.random() > 1 / 3:
            lines.append(each)
            continue
        each.setdefault("meta", {})["lastUpdated"] = "2024-01-02T00:00:00Z"
        newer = json.loads(json.dumps(each))
        newer["meta"]["lastUpdated"] = "2024-01-02T00:00:01Z"
        if kind in STATUSES:
            newer["status"] = chance.choice(STATUSES[kind])
        if kind == "MedicationRequest":
            newer["intent"] = chance.choice(("order", "proposal", "plan", "option", "instance-order"))
        if kind == "Condition":
            newer["verificationStatus"]["coding"][0]["code"] = chance.choice(("confirmed", "refuted", "provisional"))
            newer["recordedDate"] = "2023-05-06T07:08:09Z"
        if kind in ("Observation", "DiagnosticReport"):
            newer["issued"] = "2023-05-06T07:08:09.5Z"
        lines += chance.choice(([newer], [each, newer], [newer, each], [newer, newer]))
        if chance.random() < 0.1:
            url = f"{kind}/{each['id']}"
            gone.append({"request": {"method": "DELETE", "url": url}})
    lines.append({"resourceType": "Bundle", "type": "transaction", "entry": gone})
    chance.shuffle(lines)
    archive = tmp_path / "in"
    archive.mkdir()
    for part in range(3):
        (archive / f"{part}.ndjson").write_text("\n".join(map(json.dumps, lines[part::3])))
    result = check(archive, tmp_path)
    reasons = {reason for reasons in result.dropped.values() for reason in reasons}
    assert reasons >= {"superseded", "deleted", "deletion", "entered_in_error", "not_done"} and result.faults == 0
