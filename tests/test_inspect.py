"""inspect: whatever folder it is given, it says what that is and which command takes it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy

from medray.cli.console import readable
from medray.engines.local import LocalEngine
from medray.errors import ArchiveError
from medray.verbs import recognise
from medray.verbs.inspect import inspect
from medray.verbs.score import score
from medray.verbs.train import train

PATIENT = '{"resourceType":"Patient","id":"a","birthDate":"1970-01-01"}\n'
HEAD = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture(scope="module")
def worked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("worked")
    toy.write_archive(folder, 20)
    run = toy.train_run(folder, training={"epochs": 1})
    train(run, LocalEngine())
    score(toy.score_run(folder), LocalEngine())
    toy.write_run_file(folder / "train.toml", run)
    toy.write_run_file(folder / "score.toml", toy.score_run(folder))
    (folder / "empty").mkdir()
    texts = {
        "fhir/Patient.ndjson": PATIENT,
        "bundle.json/b.json": '{\n "resourceType" : "Bundle", "entry": []}',
        "array/all.json": "[" + PATIENT + "]",
        "events/e.csv": "subject_id;time;code;value\n1;2000-01-01;A;1\n",
        "vcf/a.vcf": f"##fileformat=VCFv4.2\n{HEAD}c\t5\t.\tA\tC\t.\t.\t.\n",
        "fasta/a.fa": ">c\nACGT\n",
        "wrong.toml": 'name = "x"\nstore = "s"\nbundel = "b"\narchive = "a"\n',
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "zipped").mkdir()
    (folder / "zipped" / "Patient.ndjson.gz").write_bytes(gzip.compress(PATIENT.encode()))
    return folder


@pytest.mark.parametrize(
    ("name", "title", "command"),
    [
        ("fhir", "FHIR resources", "medray ehr to-meds"),
        ("fhir/Patient.ndjson", "FHIR resources", "medray ehr to-meds"),
        ("bundle.json", "FHIR resources", "medray ehr to-meds"),
        ("array", "FHIR resources", "medray ehr to-meds"),
        ("zipped", "FHIR resources", "medray ehr to-meds"),
        ("events", "table", "medray ehr to-meds"),
        ("labels.csv", "table", "[labels] table"),
        ("empty", "empty folder", "none"),
        ("vcf", "folder of sequences", "medray index"),
        ("fasta", "folder of sequences", "medray index"),
        ("archive", "folder of images", "medray index"),
        ("bundle", "bundle", "medray score"),
        ("work", "work folder", "medray inspect"),
        ("work/shards/*", "prepared shards", "medray train"),
        ("work/training/*/checkpoint", "checkpoint", "medray train"),
        ("train.toml", "run file", "medray train"),
        ("score.toml", "run file", "medray score"),
        ("wrong.toml", "run file with a fault", "none, before it is right"),
    ],
)
def test_inspect_says_what_it_is_and_which_command_takes_it(worked, name, title, command):
    [place] = worked.glob(name)
    seen = inspect(str(place))
    assert seen.title.startswith(title)
    assert command in seen.facts["command"]


def test_a_store_and_a_manifest_are_seen_as_before(worked):
    assert inspect(str(worked / "scores")).title == "score store"
    assert inspect(str(worked / "work" / "manifest")).facts["entries"] == 20


def test_nothing_of_a_patient_stands_in_what_is_seen_of_fhir(worked):
    text = inspect(str(worked / "fhir")).model_dump_json()
    assert "1970" not in text and '"a"' not in text


def test_what_nobody_knows_is_refused_with_what_medray_reads(tmp_path):
    (tmp_path / "x.bin").write_bytes(bytes(1000))
    with pytest.raises(ArchiveError) as refused:
        inspect(str(tmp_path))
    assert "ehr to-meds" in refused.value.expected and refused.value.do


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (1234567.8, "1,234,568"), (0.123456, "0.1235"), (10**399, "1" + 133 * ",000")],
)
def test_numbers_of_any_size_are_shown(value, text):
    assert readable(value) == text


def test_a_parquet_whose_footer_cannot_be_read_has_no_columns(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(64) + b"PAR1")

    def unknown(*_):
        raise pa.ArrowNotImplementedError("integers of more than 64 bits")

    monkeypatch.setattr(pq, "read_schema", unknown)
    assert recognise._columns(str(tmp_path / "a.parquet"), b"PAR1") == []
