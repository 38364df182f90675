"""Small FHIR R4 resources, and a whole conversion of them: what the tests of FHIR share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from medray.config.runs import ConvertRun
from medray.engines.opening import open_engine
from medray.engines.spec import LocalSpec
from medray.verbs.results import ToMedsResult
from medray.verbs.to_meds import to_meds

KEY = "k" * 64
LOINC, SNOMED, UCUM = "http://loinc.org", "http://snomed.info/sct", "http://unitsofmeasure.org"
HEMOGLOBIN = "LOINC//718-7//g/dL"


class Converted(NamedTuple):
    result: ToMedsResult
    rows: list[tuple[int, str | None, str, float | None]]
    """(subject, time, code, value) of every event, as they stand."""

    @property
    def codes(self) -> list[str]:
        """Without what a Patient says."""
        return [code for _, _, code, _ in self.rows if code != "MEDS_BIRTH" and not code.startswith("GENDER")]

    @property
    def values(self) -> list[float]:
        """The hemoglobin results, in the order of subjects and times."""
        return [value for _, _, code, value in self.rows if code == HEMOGLOBIN and value is not None]

    def times(self, start: str) -> list[str | None]:
        return [time for _, time, code, _ in self.rows if code.startswith(start)]

    def subjects(self, code: str) -> set[int]:
        return {subject for subject, _, each, _ in self.rows if each == code}


def convert(tmp_path: Path, files: dict[str, Any] | list[dict[str, Any]], **keys: Any) -> Converted:
    """`files`: content by name (bytes, a JSON value for .json, a list of lines for others); a list is one NDJSON file."""
    archive = tmp_path / "in"
    archive.mkdir(exist_ok=True)
    for name, content in (files if isinstance(files, dict) else {"a.ndjson": files}).items():
        if not isinstance(content, bytes):
            lines = [content] if name.endswith(".json") else content
            content = "\n".join(map(json.dumps, lines)).encode()
        (archive / name).write_bytes(content)
    (tmp_path / "key").write_text(KEY)
    settings = {name: keys.pop(name) for name in ("time", "dates", "untimed", "time_zone", "unknown_patients")
                if name in keys}  # fmt: skip
    facts: dict[str, Any] = {"archive": str(archive), "out": str(tmp_path / "out"), "pseudonym_key": str(tmp_path / "key"),
             "engine": LocalSpec(), "source": {"kind": "fhir"} | settings}  # fmt: skip
    run = ConvertRun(**facts | keys)
    engine = open_engine(run.engine)
    try:
        result = to_meds(run, engine)
    finally:
        engine.close()
    whole = result.read.keys() | result.converted.keys() | result.dropped.keys()
    for kind in whole:
        assert result.read[kind] == result.converted.get(kind, 0) + sum(result.dropped.get(kind, {}).values()), kind
    rows = []
    for path in sorted((tmp_path / "out/data").rglob("*.parquet")):
        table = pq.read_table(path)
        columns = [table["subject_id"], table["time"].cast(pa.string()), table["code"], table["numeric_value"]]
        rows += zip(*(column.to_pylist() for column in columns), strict=True)
    rows = [(subject, time and time.removesuffix(".000000"), code, value) for subject, time, code, value in rows]
    return Converted(result, rows)


def concept(code: str, system: str = LOINC) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


def quantity(value: Any, unit: str = "g/dL", **found: Any) -> dict[str, Any]:
    return {"value": value, "unit": unit, "system": UCUM, "code": unit} | found


def patient(name: str = "p1", **found: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": name, "birthDate": "1950-01-01"} | found


def observation(name: str | None = "o1", value: Any = 14, **found: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        **({"id": name} if name else {}),
        "status": "final",
        "code": concept("718-7"),
        "subject": {"reference": "Patient/p1"},
        "effectiveDateTime": "2020-01-02T10:00:00Z",
        **({} if value is None else {"valueQuantity": quantity(value)}),
    } | found


def meta(version: str | None = None, updated: str | None = None) -> dict[str, Any]:
    return {"meta": {name: value for name, value in (("versionId", version), ("lastUpdated", updated)) if value}}


VALID: dict[str, dict[str, Any]] = {
    "Patient": patient(),
    "Encounter": {"status": "finished", "class": {"code": "IMP"}, "period": {"start": "2020-01-02T10:00:00Z"}},
    "Condition": {"code": concept("1", SNOMED), "onsetDateTime": "2020-01-02T10:00:00Z"},
    "Observation": observation(),
    "MedicationRequest": {
        "status": "active",
        "intent": "order",
        "medicationCodeableConcept": concept("1191", "http://www.nlm.nih.gov/research/umls/rxnorm"),
        "authoredOn": "2020-01-02T10:00:00Z",
    },
    "Procedure": {"status": "completed", "code": concept("2", SNOMED), "performedDateTime": "2020-01-02T10:00:00Z"},
    "Immunization": {
        "status": "completed",
        "vaccineCode": concept("140", "http://hl7.org/fhir/sid/cvx"),
        "occurrenceDateTime": "2020-01-02T10:00:00Z",
    },
    "AllergyIntolerance": {"code": concept("3", SNOMED), "recordedDate": "2020-01-02T10:00:00Z"},
    "DiagnosticReport": {"status": "final", "code": concept("58410-2"), "effectiveDateTime": "2020-01-02T10:00:00Z"},
    "Device": {"status": "active", "type": concept("4", SNOMED)},
    "Medication": {"status": "active", "code": concept("1191", "http://www.nlm.nih.gov/research/umls/rxnorm")},
}
"""The least that gives an event, per type."""


def valid(kind: str, **found: Any) -> dict[str, Any]:
    whose = "patient" if kind in ("Immunization", "AllergyIntolerance", "Device") else "subject"
    of_whom = {} if kind in ("Patient", "Medication") else {whose: {"reference": "Patient/p1"}}
    return {"resourceType": kind, "id": "x"} | of_whom | VALID[kind] | found
