"""medray init: a run file for an archive that was looked at loads, and the archive can be indexed with it."""

from __future__ import annotations

import csv
import gzip
import importlib.metadata
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy
from typer.testing import CliRunner

from medray.cli.app import app
from medray.config import runs
from medray.errors import ArchiveError, RunFileError, UserError
from medray.modalities.drafts import spread
from medray.modalities.ehr.spec import EhrSpec
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.imaging.spec import ImagingSpec
from medray.storage.files import File
from medray.verbs import init

PROJECT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def drafted(kind: str, archive: str | Path, *words: str) -> tuple[runs.Run, str]:
    """The run file that the command writes, loaded, and its text."""
    done = CliRunner().invoke(app, ["init", kind, str(archive), "--out", "run.toml", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return runs.load("run.toml"), Path("run.toml").read_text()


def counts(run_file: str = "run.toml", verb: str = "index") -> dict:
    done = CliRunner().invoke(app, [verb, run_file, "--local", "--json"], catch_exceptions=False)
    assert done.exit_code in (0, 3), done.stderr
    return json.loads(done.stdout)


# --- real archives --------------------------------------------------------------------------------------------


def test_an_array_of_images_carries_its_labels_and_splits(shared_data: Path):
    run, text = drafted("imaging", shared_data / "imaging" / "medmnist" / "breastmnist.npz")
    assert isinstance(run, runs.TrainRun) and isinstance(run.modality, ImagingSpec)
    assert (run.modality.size, run.modality.channels, run.modality.dtype) == ((28, 28), 1, "uint8")
    assert (run.objective.kind, run.split.by, run.labels.table) == ("binary", "given", None)
    assert text.startswith("# 1 file: npz, 28 x 28, uint8.\n") and "[labels] is not needed" in text
    assert counts()["entries"] == 780


def test_an_archive_of_volumes_has_three_sizes(shared_data: Path):
    run, _ = drafted("imaging", shared_data / "imaging" / "medmnist" / "adrenalmnist3d.npz")
    assert isinstance(run, runs.TrainRun) and isinstance(run.modality, ImagingSpec)
    assert run.modality.size == (28, 28, 28)


def test_a_ct_series_is_a_volume_in_hounsfield_units(shared_data: Path):
    run, text = drafted("imaging", shared_data / "imaging" / "dicom" / "ct_ge_tilt" / "GE")
    assert isinstance(run, runs.TrainRun) and isinstance(run.modality, ImagingSpec)
    assert (run.modality.size, run.modality.dtype) == ((28, 128, 128), "int16")
    assert "# 28 files: dicom (CT), 28 x 512 x 512, int16." in text and "No labels were seen" in text
    assert counts()["entries"] == 1


def test_a_table_of_sequences_names_its_columns(shared_data: Path):
    run, text = drafted("genomics", shared_data / "genomics" / "splice")
    assert isinstance(run, runs.TrainRun) and isinstance(run.modality, GenomicsSpec)
    assert "# 1 file holds no sequences: a failed entry each, unless `ignore` of [modality] names it." in text
    spec = run.modality
    assert (spec.entries, spec.length, spec.sequence_column, spec.label_column) == ("records", 60, 3, 1)
    assert run.objective.kind == "multiclass"
    found = counts()
    assert (found["entries"], found["failed"]) == (3191, 1)


def test_long_records_with_genes_are_windows_that_are_coding_or_not(shared_data: Path):
    run, text = drafted("genomics", shared_data / "genomics" / "genbank" / "NC_000932.gb")
    assert isinstance(run, runs.TrainRun) and isinstance(run.modality, GenomicsSpec)
    assert (run.modality.entries, run.modality.label_feature, run.modality.subject) == ("windows", "CDS", "segment")
    assert "154478 bases" in text
    assert counts()["entries"] > 150


def test_health_records_with_labels_are_predicted_at_the_times_of_the_label_table(shared_data: Path):
    sys.path.insert(0, str(PROJECT / "tests" / "modalities" / "ehr"))
    from meds_data import physionet

    physionet(shared_data / "ehr" / "physionet2012" / "set-a.tar.gz", Path("meds"), 30)
    run, text = drafted("ehr", "meds")
    assert isinstance(run, runs.TrainRun) and isinstance(run.modality, EhrSpec)
    assert (run.modality.window, run.modality.bin_hours, run.objective.kind) == ("48h", 1.0, "binary")
    labels = run.modality.task.labels
    assert labels is not None and (Path("meds") / labels).is_file()
    assert text.startswith("# MEDS: 2 files; 30 subjects in them")
    assert counts()["entries"] == 30


def test_health_records_of_years_have_windows_of_a_year(shared_data: Path):
    Path("convert.toml").write_text(
        f'archive = "{shared_data}/ehr/fhir_bulk_10"\nout = "meds"\n[source]\nkind = "fhir"\n[split]\n'
    )
    done = CliRunner().invoke(app, ["ehr", "to-meds", "convert.toml", "--local"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    run, _ = drafted("ehr", "meds")
    assert isinstance(run, runs.TrainRun) and isinstance(run.modality, EhrSpec)
    assert (run.modality.window, run.modality.bin_hours, run.split.by) == ("364d", 168.0, "given")
    assert counts()["entries"] == 13


def test_fhir_is_no_health_record_yet_and_the_way_to_one_is_told(shared_data: Path):
    with pytest.raises(UserError) as caught:
        init.init("ehr", str(shared_data / "ehr" / "fhir_bulk_10"))
    assert "13 .ndjson.gz" in caught.value.found and "fhir" in caught.value.found
    assert caught.value.do.startswith("medray ehr to-meds RUN.toml")


# --- label tables beside an archive ---------------------------------------------------------------------------


def test_a_table_beside_the_archive_gives_labels_and_splits():
    archive = toy.write_archive(Path.cwd(), 24)
    run, text = drafted("imaging", "archive")
    assert isinstance(run, runs.TrainRun)
    labels = run.labels
    assert (labels.table, labels.key, labels.match) == ("labels.csv", "file", "path")
    assert (labels.columns, labels.split_column, run.split.by) == (("diagnosis",), "split", "given")
    assert run.objective.kind == "binary" and 'positive = "upper"' in text
    assert counts(verb="prepare")["samples"] == 24
    assert not [number for number in range(24) if f"S{number:04}" in text], "no identifier of a patient"
    assert archive.is_dir()


def test_a_table_may_name_subjects_and_hold_numbers():
    for number in range(30):
        toy.write_image(Path("archive") / f"{number}.dcm", number, 0)
    table = pa.table({"patient": [f"S{number:04}" for number in range(30)], "age": np.arange(30) + 40.5})
    pq.write_table(table, "ages.parquet")
    run, _ = drafted("imaging", "archive")
    assert isinstance(run, runs.TrainRun)
    assert (run.labels.key, run.labels.match, run.labels.columns) == ("patient", "subject", ("age",))
    assert run.objective.kind == "regression"


def test_a_table_that_names_no_entry_is_told_and_not_used():
    for number in range(3):
        toy.write_image(Path("archive") / f"{number}.dcm", number, 0)
    with open("prices.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("item", "price"), ("a", 1), ("b", 2)])
    run, text = drafted("imaging", "archive")
    assert isinstance(run, runs.TrainRun) and run.labels.table is None
    assert "prices.csv, but no column of it names files" in text


def test_class_folders_of_pictures_are_labels():
    from PIL import Image

    for label in ("dog", "cat", "owl"):
        Path("pictures", label).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(np.full((300, 400, 3), number * 9, np.uint8)).save(f"pictures/{label}/{number}.png")
    run, _ = drafted("imaging", "pictures")
    assert isinstance(run, runs.TrainRun) and isinstance(run.modality, ImagingSpec)
    assert (run.modality.size, run.modality.channels) == ((224, 224), 3)
    assert run.objective.kind == "multiclass" and counts()["entries"] == 6


# --- what it is for -------------------------------------------------------------------------------------------


def test_a_run_file_for_scoring_and_one_for_nights():
    toy.write_archive(Path.cwd(), 4)
    score, _ = drafted("imaging", "archive", "--for", "score")
    assert isinstance(score, runs.ScoreRun) and score.store == "scores/archive" and score.modality == {}
    Path("run.toml").unlink()
    night, _ = drafted("imaging", "archive", "--for", "nightly")
    assert isinstance(night, runs.NightlyRun) and night.bundles == ("bundles/archive",) and night.deadline == "06:00"


def test_variants_are_scored_over_the_reference_beside_them():
    Path("calls").mkdir()
    with gzip.open("calls/a.vcf.gz", "wt") as out:
        out.write("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nc\t3\t.\tA\tC\t.\t.\t.\n")
    with pytest.raises(UserError, match="scored by a model that was trained on others"):
        init.init("genomics", "calls")
    Path("genome.fa").write_text(">c\nACACACAC\n")
    run, _ = drafted("genomics", "calls", "--for", "score")
    assert isinstance(run, runs.ScoreRun)
    assert run.modality == {"entries": "variants", "reference": str(Path("genome.fa").absolute())}


# --- what is refused ------------------------------------------------------------------------------------------


def test_nothing_is_overwritten():
    toy.write_archive(Path.cwd(), 4)
    Path("archive_train.toml").write_text("mine")
    done = CliRunner().invoke(app, ["init", "imaging", "archive"])
    assert done.exit_code == 2 and "archive_train.toml: this file is already there" in done.stderr
    assert Path("archive_train.toml").read_text() == "mine"
    with pytest.raises(RunFileError, match="cannot be written"):
        init.write("", Path("no/folder.toml"))


def test_an_archive_without_the_kind_says_what_is_in_it():
    Path("notes").mkdir()
    for name in ("a.txt", "b.txt", "c.docx"):
        Path("notes", name).write_text("the Tuesday list")
    for kind in init.kinds():
        with pytest.raises(UserError) as caught:
            init.init(kind, "notes")
        assert caught.value.what == f"nothing of the kind {kind} is in this archive"
        assert caught.value.found.startswith("3 files: 2 .txt, 1 .docx") and caught.value.expected


def test_an_empty_a_missing_and_an_unknown_archive():
    Path("empty").mkdir()
    with pytest.raises(UserError, match="there is nothing in this archive"):
        init.init("imaging", "empty")
    with pytest.raises(ArchiveError, match="does not exist"):
        init.init("imaging", "gone")
    with pytest.raises(UserError, match="there is no such modality"):
        init.init("video", "empty")
    done = CliRunner().invoke(app, ["init"])
    assert done.exit_code == 2 and "medray init KIND ARCHIVE" in done.stderr


def test_of_many_files_some_from_all_over_are_looked_at():
    listed = [File(f"/a/{number:05}", 1, 0) for number in range(10_000)]
    sample = spread(listed, 10)
    assert [file.uri for file in sample[:5]] == [f"/a/{number:05}" for number in range(5)]
    assert [int(file.uri[3:]) for file in sample[5:]] == [5, 2004, 4003, 6002, 8001]
    assert spread(listed[:10], 10) == listed[:10]


# --- the examples ---------------------------------------------------------------------------------------------

EXAMPLES = sorted((PROJECT / "jobs" / "runs").glob("*.toml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_printed_as_it_is(file: Path):
    done = CliRunner().invoke(app, ["init", "--example", file.stem])
    assert (done.exit_code, done.stdout) == (0, file.read_text())


def test_an_unknown_example_is_refused_with_those_there_are():
    done = CliRunner().invoke(app, ["init", "--example", "breast"])
    assert done.exit_code == 2 and "breast_train" in done.stderr


def test_the_examples_travel_in_the_wheel(tmp_path: Path):
    assert int(importlib.metadata.version("setuptools").split(".")[0]) >= 77, "what pyproject.toml builds with"
    source = tmp_path / "source"
    for folder in ("medray", "jobs"):
        shutil.copytree(PROJECT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source / name)
    code = "import setuptools.build_meta as build; build.build_wheel('../wheel')"
    (tmp_path / "wheel").mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed_examples = {name: packed.read(name) for name in packed.namelist() if name.startswith("medray/examples/")}
    assert packed_examples == {f"medray/examples/{file.name}": file.read_bytes() for file in EXAMPLES}
