"""to-meds on real data: counts equal the input's own, nothing lost without a reason, no name in what comes out."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tarfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import meds
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from medray.cli.app import app
from medray.config import runs
from medray.config.loader import load_run
from medray.config.runs import ConvertRun
from medray.engines.opening import open_engine
from medray.engines.spec import LocalSpec, RaySpec
from medray.errors import ArchiveError, MachineError
from medray.modalities.ehr.convert.arranging import Arrange
from medray.modalities.ehr.convert.events import BUCKET_ROWS, DROPS, PATIENT, Subjects
from medray.verbs import to_meds

PROJECT = Path(__file__).resolve().parents[1]
KEY = "k" * 64


def run_of(tmp_path: Path, archive: Path, **keys: Any) -> ConvertRun:
    key = tmp_path / "pseudonym.key"
    key.write_text(KEY)
    facts = {"archive": str(archive), "out": str(tmp_path / "out"), "pseudonym_key": str(key), "engine": LocalSpec()}
    return ConvertRun(**{"source": {"kind": "fhir"}} | facts | keys)


def convert(run: ConvertRun):
    engine = open_engine(run.engine)
    try:
        return to_meds.to_meds(run, engine)
    finally:
        engine.close()


def events(out: Path | str, split: str = "*") -> pa.Table:
    """All events, files in the order of their names."""
    found = sorted(Path(out).glob(f"data/{split}/*.parquet"))
    return pa.concat_tables([pq.read_table(path) for path in found])


def by_subject(table: pa.Table) -> pa.Table:
    """Subjects in the order of their ids; the events of each as they stand."""
    place = pa.array(range(len(table)))
    return (
        table.append_column("place", place).sort_by([("subject_id", "ascending"), ("place", "ascending")]).drop("place")
    )


def resources(folder: Path) -> list[dict[str, Any]]:
    """Every resource of a folder, with json alone."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.iterdir()):
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        if ".ndjson" in path.name:
            found += [json.loads(line) for line in text.splitlines() if line]
        else:
            found += [entry["resource"] for entry in json.loads(text)["entry"]]
    return found


@pytest.fixture(scope="module")
def bulk(shared_data, tmp_path_factory):
    """(result, folder of the input) of the bulk export."""
    folder = shared_data / "ehr" / "fhir_bulk_10"
    return convert(run_of(tmp_path_factory.mktemp("bulk"), folder)), folder


@pytest.fixture(scope="module")
def bundles(shared_data, tmp_path_factory):
    folder = shared_data / "ehr" / "fhir_synthea_hiv"
    return convert(run_of(tmp_path_factory.mktemp("bundles"), folder)), folder


@pytest.fixture(scope="module")
def physionet(shared_data, tmp_path_factory):
    """The run file that ships, on the whole of set-a."""
    folder = tmp_path_factory.mktemp("physionet")
    overrides = [f"archive={shared_data}/ehr/physionet2012", f"out={folder}/out", 'engine={kind="local"}']
    run = load_run(PROJECT / "jobs/runs/physionet_to_meds.toml", ConvertRun, overrides)
    return convert(run), run


# --- counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bulk", "bundles"])
def test_what_is_read_equals_the_inputs_own_counts_and_is_converted_or_dropped(name, request):
    result, folder = request.getfixturevalue(name)
    own = Counter(each.get("resourceType", "(no resource)") for each in resources(folder))
    assert result.read == dict(own)
    for kind, read in result.read.items():
        assert read == result.converted.get(kind, 0) + sum(result.dropped.get(kind, {}).values()), kind
    assert (result.failed, result.faults, result.ignored) == (0, 0, 0)
    assert {reason for reasons in result.dropped.values() for reason in reasons} <= DROPS.keys()


def test_the_bulk_export_is_converted_whole(bulk):
    result, folder = bulk
    assert (result.entries, result.subjects) == (14, 13)
    assert {kind: result.converted[kind] for kind in ("Patient", "Encounter", "Condition", "MedicationRequest")} == {
        "Patient": 13,
        "Encounter": 1215,
        "Condition": 555,
        "MedicationRequest": 1745,
    }
    abated = sum("abatementDateTime" in each for each in resources(folder))
    assert result.events_by_type["Encounter"] == 2 * 1215
    assert result.events_by_type["Condition"] == 555 + abated == 1003
    assert result.events == sum(result.events_by_type.values()) == len(events(result.out))


def test_the_bundles_are_converted_whole(bundles):
    result, folder = bundles
    assert (result.entries, result.subjects, result.converted["Observation"]) == (19, 19, 5438)
    numeric = sum("valueQuantity" in each for each in resources(folder) if each["resourceType"] == "Observation")
    assert pc.count(events(result.out)["numeric_value"]).as_py() == numeric == 536


def test_a_lab_and_a_death_stand_where_the_input_has_them(bundles, bulk):
    table = events(bundles[0].out)
    weight = pc.filter(table, pc.equal(table["code"], "LOINC//5089AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA//kg"))
    assert len(weight) > 0
    subject = Subjects(KEY.encode())("7cffc0c9-6c87-70d6-09a4-6ede378e9b0a")[0]
    of_first = weight.filter(pc.equal(weight["subject_id"], subject)).to_pylist()
    assert str(of_first[0]["time"]) == "1977-02-09 10:24:44" and abs(of_first[0]["numeric_value"] - 65.646) < 1e-4
    deaths = [each["deceasedDateTime"] for each in resources(bulk[1]) if "deceasedDateTime" in each]
    made = events(bulk[0].out)
    died = made.filter(pc.equal(made["code"], meds.death_code))["time"].to_pylist()
    in_utc = [datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None) for text in deaths]
    assert len(deaths) > 0 and sorted(died) == sorted(in_utc)
    assert pc.sum(pc.equal(made["code"], meds.birth_code)).as_py() == 13


def test_physionet_is_converted_whole(physionet, shared_data):
    result, _ = physionet
    rows, unknown, died = own_counts(shared_data / "ehr/physionet2012/set-a.tar.gz")
    assert (result.entries, result.subjects, result.failed, result.ignored) == (4000, 4000, 0, 1)
    assert result.read == {"measurements": rows}
    assert result.dropped == {"measurements": {"by_rule": 4000, "missing_value": unknown}}
    assert result.events == rows - 4000 - unknown
    assert (result.labels["labels"], result.labels["positive"], died) == (4000, 554, 554)


def own_counts(path: Path) -> tuple[int, int, int]:
    """(rows, rows of an unknown height, weight or gender, deaths), line by line."""
    rows = unknown = died = 0
    with tarfile.open(path) as tar:
        for info in tar:
            if not info.isfile():
                continue
            lines = tar.extractfile(info).read().decode().split("\n")[1:]  # type: ignore[union-attr]  # a file
            cells = [line.split(",") for line in lines if line.strip()]
            if info.name.endswith("Outcomes-a.txt"):
                died = sum(row[-1].strip() == "1" for row in cells)
            else:
                rows += len(cells)
                unknown += sum(c[1] in ("Height", "Weight", "Gender") and float(c[2]) == -1 for c in cells)
    return rows, unknown, died


def test_labels_stand_48_hours_after_admission_and_name_the_subjects_of_the_data(physionet):
    result, _ = physionet
    labels = pq.read_table(Path(result.out) / result.labels["table"])
    assert {str(time) for time in labels["prediction_time"].to_pylist()} == {"2000-01-03 00:00:00"}
    assert labels.schema.names == ["subject_id", "prediction_time", "boolean_value"]
    table = events(result.out)
    assert set(labels["subject_id"].to_pylist()) == set(table["subject_id"].unique().to_pylist())
    assert str(pc.max(table["time"]).as_py()) <= "2000-01-03 00:00:00"


def test_splits_are_whole_subjects_in_files_of_their_own(physionet):
    result, _ = physionet
    splits = pq.read_table(Path(result.out) / meds.subject_splits_filepath)
    assert len(splits) == 4000
    shares = {row["values"]: row["counts"] / 4000 for row in splits["split"].value_counts().to_pylist()}
    assert abs(shares["train"] - 0.7) < 0.03 and abs(shares["tuning"] - 0.1) < 0.03
    for name in ("train", "tuning", "held_out"):
        of_split = splits.filter(pc.equal(splits["split"], name))["subject_id"]
        assert set(events(result.out, name)["subject_id"].unique().to_pylist()) == set(of_split.to_pylist())


# --- the dataset ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bulk", "bundles", "physionet"])
def test_a_dataset_is_meds(name, request):
    out = Path(request.getfixturevalue(name)[0].out)
    codes = pq.read_table(out / meds.code_metadata_filepath)
    meds.CodeMetadataSchema.validate(codes)
    meds.DatasetMetadataSchema.validate(json.loads((out / meds.dataset_metadata_filepath).read_text()))
    seen: set[int] = set()
    used: set[str] = set()
    for path in sorted(out.glob("data/*/*.parquet")):
        table = pq.read_table(path)
        meds.DataSchema.validate(table)
        assert table.schema.equals(meds.DataSchema.schema())
        subjects = table["subject_id"].to_numpy()
        times = table["time"].cast(pa.int64()).fill_null(-(2**62)).to_numpy()
        assert (subjects[1:] >= subjects[:-1]).all()  # in one piece each
        assert seen.isdisjoint(subjects)
        seen |= set(subjects.tolist())
        assert (times[1:] >= times[:-1])[subjects[1:] == subjects[:-1]].all()  # static first
        used |= set(table["code"].unique().to_pylist())
    assert codes["code"].to_pylist() == sorted(used)


def test_a_code_is_described_by_its_display(bulk):
    codes = pq.read_table(Path(bulk[0].out) / meds.code_metadata_filepath).to_pylist()
    described = {row["code"]: row["description"] for row in codes}
    assert described["RXNORM//314076"] == "lisinopril 10 MG Oral Tablet"
    assert described["ALLERGY//RXNORM//1191"] == "Allergy: Aspirin"
    assert described[meds.birth_code] is None


def same_events(run: ConvertRun, tmp_path: Path, *changes: dict[str, Any]) -> None:
    tables, reports = [], []
    for number, keys in enumerate(changes):
        result = convert(run.model_copy(update=keys | {"out": str(tmp_path / f"out{number}")}))
        assert result.files == len(list(Path(result.out).glob("data/*/*.parquet"))) > keys["shards"] // 2
        tables.append(by_subject(events(result.out)))
        reports.append(result.model_dump(exclude={"files", "out", "seconds"}))
    assert all(table.equals(tables[0]) for table in tables)
    assert all(report == reports[0] for report in reports)


@pytest.mark.parametrize("name", ["bulk_archive", "stays"])
def test_one_bucket_and_seven_give_the_same_events(name, request, tmp_path):
    same_events(request.getfixturevalue(name), tmp_path, {"shards": 1}, {"shards": 7})


def test_the_engines_give_the_same_events(stays, tmp_path, monkeypatch, ray_session):
    monkeypatch.setattr(to_meds, "SMALL_BYTES", 0)  # so that ray starts workers
    same_events(stays, tmp_path, {"shards": 3}, {"shards": 3, "engine": RaySpec(workers=2)})


def test_versions_links_and_servers_come_out_the_same_in_any_pieces_and_buckets(linked_archive, tmp_path, monkeypatch):
    monkeypatch.setattr(to_meds, "PIECE_BYTES", 700)
    same_events(linked_archive, tmp_path, {"shards": 1}, {"shards": 13})


@pytest.mark.slow  # those of stays are compared on every run
def test_the_engines_give_the_same_events_of_versions_links_and_servers(
    linked_archive, tmp_path, monkeypatch, ray_session
):
    monkeypatch.setattr(to_meds, "SMALL_BYTES", 0)
    same_events(linked_archive, tmp_path, {"shards": 3}, {"shards": 3, "engine": RaySpec(workers=2)})


@pytest.fixture
def linked_archive(tmp_path) -> ConvertRun:
    """30 patients, each third replaced by the next; visits in two versions, some deleted; one id on two servers."""
    lines: list[dict[str, Any]] = []
    for i in range(30):
        link = [{"type": "replaced-by", "other": {"reference": f"Patient/p{i + 1}"}}] if i % 3 == 0 else []
        lines.append(JANE | {"id": f"p{i}", "link": link})
        for version in (2, 1):
            meta = {"versionId": str(version), "lastUpdated": f"2021-01-0{version}T00:00:00Z"}
            lines.append(visit(f"2020-01-0{version}", f"p{i}") | {"id": f"v{i}", "meta": meta})
    deletions = [{"request": {"method": "DELETE", "url": f"Encounter/v{i}"}} for i in (4, 5)]
    pages = [{"fullUrl": f"https://{name}.example/fhir/Patient/p2", "resource": JANE | {"id": "p2"}} for name in "ab"]
    archive = tmp_path / "linked"
    write(archive, "a.ndjson", *lines[::2])
    write(archive, "b.ndjson", *lines[1::2], {"resourceType": "Bundle", "entry": [*deletions, *pages]})
    return run_of(tmp_path, archive)


@pytest.fixture
def bulk_archive(shared_data, tmp_path) -> ConvertRun:
    return run_of(tmp_path, shared_data / "ehr" / "fhir_bulk_10")


@pytest.fixture
def stays(shared_data, tmp_path) -> ConvertRun:
    """The first 60 stays of PhysioNet in three tars."""
    archive = tmp_path / "stays"
    archive.mkdir()
    with tarfile.open(shared_data / "ehr/physionet2012/set-a.tar.gz") as tar:
        infos = [info for info in tar if re.search(r"\d+\.txt$", info.name)][:60]
        for part in range(3):
            with tarfile.open(archive / f"part{part}.tar.gz", "w:gz") as out:
                for info in infos[part::3]:
                    content = tar.extractfile(info).read()  # type: ignore[union-attr]  # a file
                    out.addfile(info, io.BytesIO(content))
    shipped = load_run(PROJECT / "jobs/runs/physionet_to_meds.toml", ConvertRun)
    return run_of(tmp_path, archive, source=shipped.source)


# --- running again ----------------------------------------------------------------------------------------------


def write(folder: Path, name: str, *found: dict[str, Any] | str) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [each if isinstance(each, str) else json.dumps(each) for each in found]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


JANE = {
    "resourceType": "Patient",
    "id": "mrn-4711",
    "name": [{"family": "Doe", "given": ["Jane"]}],
    "gender": "female",
    "birthDate": "1950-06-15",
}


def visit(day: str, patient: str = "mrn-4711") -> dict[str, Any]:
    return {
        "resourceType": "Encounter",
        "status": "finished",
        "class": {"code": "AMB"},
        "subject": {"reference": f"Patient/{patient}", "display": "Jane Doe"},
        "period": {"start": f"{day}T09:00:00Z", "end": f"{day}T10:00:00Z"},
    }


def test_a_second_run_does_nothing_and_a_changed_archive_replaces_the_dataset(tmp_path):
    run = run_of(tmp_path, write(tmp_path / "in", "a.ndjson", JANE, visit("2020-01-01")))
    first = convert(run)
    before = {path: path.stat().st_mtime_ns for path in Path(first.out).rglob("*")}
    again = convert(run)
    assert (first.reused, again.reused) == (False, True)
    assert again.model_dump(exclude={"reused", "seconds"}) == first.model_dump(exclude={"reused", "seconds"})
    assert before == {path: path.stat().st_mtime_ns for path in Path(first.out).rglob("*")}
    write(tmp_path / "in", "b.ndjson", visit("2020-01-02"))
    changed = convert(run)
    assert (changed.reused, changed.events, first.events) == (False, 6, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "pseudonym.key"]  # no draft is left


def test_a_run_that_breaks_leaves_the_dataset_as_it_was(tmp_path, monkeypatch):
    run = run_of(tmp_path, write(tmp_path / "in", "a.ndjson", JANE, visit("2020-01-01")))
    convert(run)
    write(tmp_path / "in", "b.ndjson", visit("2020-01-02"))
    with monkeypatch.context() as patch:
        patch.setattr(to_meds.dataset, "write_report", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            convert(run)
    assert len(events(run.out)) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "pseudonym.key"]
    assert convert(run).events == 6


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    run = run_of(tmp_path, write(tmp_path / "in", "a.ndjson", JANE))
    write(tmp_path / "out", "thesis.txt", "years of work")
    with pytest.raises(ArchiveError, match="something else"):
        convert(run)
    assert (tmp_path / "out" / "thesis.txt").exists()


# --- bad input --------------------------------------------------------------------------------------------------


def test_a_reference_to_an_unknown_patient_is_dropped_or_kept_as_the_run_file_says(tmp_path):
    archive = write(tmp_path / "in", "a.ndjson", JANE, visit("2020-01-01"), visit("2020-01-02", "nobody"))
    result = convert(run_of(tmp_path, archive))
    assert result.dropped == {"Encounter": {"unknown_patient": 1}}
    assert (result.read, result.converted) == ({"Encounter": 2, "Patient": 1}, {"Encounter": 1, "Patient": 1})
    assert (result.subjects, result.faults, result.exit_code(0.01)) == (1, 1, 3)
    kept = convert(run_of(tmp_path, archive, source={"kind": "fhir", "unknown_patients": "keep"}))
    assert (kept.subjects, kept.dropped, kept.exit_code(0.01)) == (2, {}, 0)


def test_a_patient_of_whom_nothing_is_known_is_still_known(tmp_path):
    nobody = {"resourceType": "Patient", "id": "n"}
    result = convert(run_of(tmp_path, write(tmp_path / "in", "a.ndjson", visit("2020-01-01", "n"), nobody)))
    assert (result.converted, result.dropped) == ({"Encounter": 1}, {"Patient": {"nothing_known": 1}})


def test_a_medication_of_another_file_gives_its_code(tmp_path):
    def request(name: str) -> dict[str, Any]:
        return {
            "resourceType": "MedicationRequest",
            "authoredOn": "2020-01-01",
            "subject": {"reference": "Patient/mrn-4711"},
            "medicationReference": {"reference": f"Medication/{name}"},
        }

    code = {"coding": [{"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": "1191", "display": "Aspirin"}]}
    write(tmp_path / "in", "1.ndjson", request("m1"), request("m2"), JANE)
    archive = write(tmp_path / "in", "2.ndjson", {"resourceType": "Medication", "id": "m1", "code": code})
    result = convert(run_of(tmp_path, archive))
    assert pc.sum(pc.equal(events(result.out)["code"], "RXNORM//1191")).as_py() == 1
    assert result.dropped == {"Medication": {"looked_up": 1}, "MedicationRequest": {"unknown_medication": 1}}
    codes = pq.read_table(Path(result.out) / meds.code_metadata_filepath).to_pylist()
    assert {"code": "RXNORM//1191", "description": "Aspirin", "parent_codes": None} in codes


def test_events_that_are_there_twice_are_kept_and_told(tmp_path):
    archive = write(tmp_path / "in", "a.ndjson", JANE, visit("2020-01-01"), visit("2020-01-01"))
    result = convert(run_of(tmp_path, archive))
    assert result.events == 6
    assert result.notes["Encounter"] == {"repeated_events": 2}


def test_two_subjects_of_one_id_are_refused():
    rows = [{"kind": PATIENT, "subject_id": 5, "check": check, "unit": 0, "seq": 0, "head": False} for check in (1, 2)]
    table = pa.Table.from_pylist(rows, schema=BUCKET_ROWS)
    from medray.modalities.ehr.convert.arranging import _refuse_collisions

    _refuse_collisions(table.slice(0, 1))
    with pytest.raises(ArchiveError, match="same keyed id"):
        _refuse_collisions(table)
    assert Arrange((), True).known_only


# --- the command, and what it never says ------------------------------------------------------------------------


def run_file(tmp_path: Path, archive: Path) -> Path:
    (tmp_path / "key").write_text(KEY)
    text = f'archive = "{archive}"\nout = "{tmp_path}/out"\npseudonym_key = "{tmp_path}/key"\n'
    (tmp_path / "run.toml").write_text(text + '[source]\nkind = "fhir"\n[engine]\nkind = "local"\n')
    return tmp_path / "run.toml"


def command(*arguments: str | Path):
    return CliRunner().invoke(app, ["ehr", "to-meds", *map(str, arguments)], catch_exceptions=False)


def said_and_written(done, out: Path) -> str:
    """All text of the terminal and of every file of the dataset."""
    text = done.stdout + done.stderr
    for path in out.rglob("*"):
        text += path.name
        if path.suffix == ".json":
            text += path.read_text()
        elif path.suffix == ".parquet":
            table = pq.read_table(path)
            for name in set(table.schema.names) & {"code", "description", "text_value"}:
                text += "\n".join(value for value in table[name].unique().to_pylist() if value)
    return text


def identifying(found: list[dict[str, Any]]) -> set[str]:
    """Names, streets, telephone numbers and identifiers of the patients and of whoever treated them."""
    words: set[str] = set()
    for each in found:
        if each.get("resourceType") not in ("Patient", "Practitioner"):
            continue
        words |= {each["id"], *(identifier["value"] for identifier in each.get("identifier", []))}
        for name in each.get("name", []):
            words |= {name["family"], *name["given"]}
        words |= {line for address in each.get("address", []) for line in address.get("line", [])}
        words |= {each["value"] for each in each.get("telecom", [])}
    return words


@pytest.mark.parametrize("name", ["fhir_bulk_10", "fhir_synthea_hiv"])
def test_no_name_address_identifier_or_note_comes_out(shared_data, tmp_path, name):
    folder = shared_data / "ehr" / name
    found = resources(folder)
    words = identifying(found)
    assert len(words) > 100
    done = command(run_file(tmp_path, folder), "--json")
    assert done.exit_code == 0, done.stderr
    text = said_and_written(done, tmp_path / "out")
    assert not [word for word in words if word in text]
    assert "Chief Complaint" not in text and "Social History" not in text


def test_a_failed_file_is_named_by_its_place_because_its_name_may_be_a_patients(shared_data, tmp_path):
    archive = tmp_path / "in"
    archive.mkdir()
    for path in sorted((shared_data / "ehr" / "fhir_synthea_hiv").iterdir())[:3]:
        content = path.read_bytes()
        (archive / path.name).write_bytes(content[: len(content) // 2] if path.name.startswith("Bob") else content)
    (archive / "Doe_Jane.ndjson").write_text('{"resourceType": "Patient", "name": "Jane Doe"\n')
    for options in ((), ("--json",)):
        done = command(run_file(tmp_path, archive), *options)
        assert done.exit_code == 3
        text = said_and_written(done, tmp_path / "out")
        assert not [word for word in ("Bob965", "Keeling57", "Jane", "Doe") if word in text]
        assert "truncated" in done.stdout
    found = json.loads(done.stdout)
    assert found["failed_files"] == [
        {"file": 2, "of": 4, "member": None, "reason": "truncated", "detail": "the compressed data ends early"}
    ]
    assert (found["entries"], found["failed"], found["faults"]) == (4, 1, 1)
    assert found["dropped"]["(not JSON)"] == {"not_json": 1}
    assert found.keys() >= {"subjects", "events", "files", "read", "events_by_type", "dropped"}


def test_the_command_refuses_run_files_of_other_verbs_and_others_refuse_this_one(tmp_path):
    shipped = PROJECT / "jobs" / "runs"
    done = command(shipped / "breast_train.toml")
    assert done.exit_code == 2 and "medray train" in done.stderr
    for verb in ("train", "score", "index"):
        done = CliRunner().invoke(app, [verb, str(shipped / "physionet_to_meds.toml")], catch_exceptions=False)
        assert done.exit_code == 2 and "medray ehr to-meds" in done.stderr, verb


def test_an_archive_without_files_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    done = command(run_file(tmp_path, tmp_path / "in"))
    assert done.exit_code == 2 and "no files" in done.stderr


def test_an_archive_that_holds_nothing_of_this_source_is_refused(tmp_path):
    done = command(run_file(tmp_path, write(tmp_path / "in", "letter.txt", "Dear Jane")))
    assert done.exit_code == 2 and "no file that this source reads" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_empty_file_is_one_that_failed(tmp_path):
    archive = write(tmp_path / "in", "a.ndjson", JANE)
    (archive / "b.ndjson").touch()
    result = convert(run_of(tmp_path, archive))
    assert (result.entries, result.failed, result.failed_files[0]["reason"]) == (2, 1, "empty_file")


def test_the_run_file_that_ships_is_a_conversion():
    assert isinstance(runs.load(PROJECT / "jobs/runs/physionet_to_meds.toml"), ConvertRun)


# --- files that change, or that storage does not give, while they are converted ----------------------------------------


def patient_file(path: Path, birth: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    patients = ({"resourceType": "Patient", "id": f"p{number}", "birthDate": birth} for number in range(3))
    path.write_text("".join(json.dumps(patient) + "\n" for patient in patients))


def births(out: Path) -> set[str]:
    born = events(out).filter(pc.equal(events(out).column("code"), meds.birth_code))
    return {str(moment.date()) for moment in born.column("time").to_pylist()}


def test_a_source_replaced_with_its_size_and_time_is_converted_again(tmp_path):
    path = tmp_path / "source" / "Patient.ndjson"
    patient_file(path, "1950-01-01")
    run = run_of(tmp_path, path.parent)
    assert not convert(run).reused and convert(run).reused
    facts = path.stat()
    patient_file(path, "1960-01-01")
    os.utime(path, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
    assert not convert(run).reused
    assert births(tmp_path / "out") == {"1960-01-01"}


def test_a_source_that_is_written_to_while_it_is_converted_leaves_the_dataset_before(tmp_path, monkeypatch):
    path = tmp_path / "source" / "Patient.ndjson"
    patient_file(path, "1950-01-01")
    run = run_of(tmp_path, path.parent)
    convert(run)
    patient_file(path, "1960-01-01")
    settle = to_meds._settle

    def written_to(*given: Any) -> Any:
        patient_file(path, "1970-01-01")
        return settle(*given)

    with monkeypatch.context() as during:
        during.setattr(to_meds, "_settle", written_to)
        with pytest.raises(MachineError, match="written to while they were converted"):
            convert(run)
    assert births(tmp_path / "out") == {"1950-01-01"}
    convert(run)
    assert births(tmp_path / "out") == {"1970-01-01"}


def test_a_file_that_storage_does_not_give_leaves_the_dataset_before(tmp_path, monkeypatch):
    from medray.modalities.ehr.convert import members

    for name in ("a", "b"):
        patient_file(tmp_path / "source" / f"{name}.ndjson", "1950-01-01")
    run = run_of(tmp_path, tmp_path / "source")
    convert(run)
    patient_file(tmp_path / "source" / "a.ndjson", "1960-01-01")
    opened = members.files.open_input

    def refusing(uri: str) -> Any:
        if uri.endswith("b.ndjson"):
            raise OSError(5, "Input/output error")
        return opened(uri)

    with monkeypatch.context() as away:
        away.setattr(members.files, "open_input", refusing)
        with pytest.raises(MachineError, match="could not be read, so that nothing is converted"):
            convert(run)
    assert births(tmp_path / "out") == {"1950-01-01"}
    (tmp_path / "source" / "c").mkdir()
    scandir = os.scandir

    def forbidden(folder: Any) -> Any:
        if str(folder).endswith("/c"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    with monkeypatch.context() as away:
        away.setattr(os, "scandir", forbidden)
        with pytest.raises(MachineError, match="folders cannot be listed"):
            convert(run)
    assert convert(run).failed == 0
