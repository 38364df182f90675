"""medray init: a run file for an archive that was looked at loads, the archive can be indexed with it, and what could not
be found out is refused by name."""

from __future__ import annotations

import csv
import gzip
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy
from pages import blocks
from s3_server import BUCKET, s3_server
from typer.testing import CliRunner

from medray.alerts.settings import AlertSettings
from medray.cli.app import app
from medray.config import outline, runs
from medray.config.undecided import UNDECIDED
from medray.errors import ArchiveError, RunFileError, UserError
from medray.modalities.drafts import spread
from medray.modalities.ehr.convert.settings import CsvSource, FhirSource
from medray.modalities.ehr.spec import EhrSpec
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.imaging.spec import ImagingSpec
from medray.storage.files import File, write_bytes
from medray.verbs import init

PROJECT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def medray_(*words: str | Path):
    return CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)


def drafted(kind: str, archive: str | Path, *words: str) -> dict:
    """What the command says of the run file that it writes, run.toml."""
    done = medray_("init", kind, archive, "-o", "run.toml", "--json", *words)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def loaded(*overrides: str) -> tuple[runs.Run, str]:
    """The run file that was written, and its text."""
    return runs.load("run.toml", overrides), Path("run.toml").read_text()


def facts(verb: str, *words: str) -> dict:
    done = medray_(*verb.split(), "run.toml", "--local", "--json", *words)
    assert done.exit_code in (0, 3), done.stderr
    return json.loads(done.stdout)


def write_vcf(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt") as out:
        out.write("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nc\t3\t.\tA\tC\t.\t.\t.\n")


def write_meds(shared_data: Path) -> None:
    """30 stays of PhysioNet 2012 as a MEDS dataset in the folder `meds`."""
    sys.path.insert(0, str(PROJECT / "tests" / "modalities" / "ehr"))
    from meds_data import physionet

    physionet(shared_data / "ehr" / "physionet2012" / "set-a.tar.gz", Path("meds"), 30)


# --- images ---------------------------------------------------------------------------------------------------


def test_arrays_carry_their_labels_and_can_be_indexed(shared_data: Path):
    Path("digits").mkdir()
    for name in ("images-idx3", "labels-idx1"):
        shutil.copy(shared_data / "imaging" / "mnist" / f"t10k-{name}-ubyte.gz", "digits")
    said = drafted("imaging", "digits")
    assert said["undecided"] == {} and said["next"] == "medray index run.toml"
    assert said["saw"][0] == "2 files: idx, 28 x 28, uint8." and said["saw"][-1] == "Labels: 10 classes."
    run, text = loaded()
    assert isinstance(run, runs.TrainRun) and isinstance(run.modality, ImagingSpec)
    assert (run.modality.size, run.modality.channels, run.modality.dtype) == ((28, 28), 1, "uint8")
    assert (run.objective.kind, run.labels.table, run.split.by) == ("multiclass", None, "hash")
    assert "Where labels come from. Not needed: the archive itself carries labels." in text
    assert facts("index")["entries"] == 10_000


def test_of_two_labels_a_person_says_which_is_the_positive_one(shared_data: Path):
    said = drafted("imaging", shared_data / "imaging" / "medmnist" / "breastmnist.npz")
    assert said["undecided"] == {"objective.positive": 'TODO: which label is the positive one: "0" or "1"'}
    assert said["chose"]["split.by"] == "given"
    run, _ = loaded('objective.positive="0"')
    assert isinstance(run, runs.TrainRun) and run.objective.model_dump()["positive"] == "0"


def test_a_ct_series_is_a_volume_in_hounsfield_units(shared_data: Path):
    said = drafted("imaging", shared_data / "imaging" / "dicom" / "ct_ge_tilt" / "GE")
    assert said["saw"] == ["28 files: dicom (CT), 28 x 512 x 512, int16.", "No labels."]
    assert (said["chose"]["modality.size"], said["chose"]["modality.dtype"]) == ([28, 128, 128], "int16")
    assert sorted(said["undecided"]) == ["labels.columns", "labels.key", "labels.table", "objective.kind"]
    Path("labels.csv").write_text("series,label\n")
    decided = ("labels.table=labels.csv", "labels.key=series", 'labels.columns=["label"]', "objective.kind=regression")
    run, _ = loaded(*decided)
    assert isinstance(run, runs.TrainRun) and isinstance(run.modality, ImagingSpec) and run.modality.volumetric


def test_an_archive_of_volumes_has_three_sizes(shared_data: Path):
    said = drafted("imaging", shared_data / "imaging" / "medmnist" / "adrenalmnist3d.npz")
    assert said["chose"]["modality.size"] == [28, 28, 28]


def test_class_folders_of_pictures_are_labels():
    from PIL import Image

    for label in ("dog", "cat", "owl"):
        Path("pictures", label).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(np.full((300, 400, 3), number * 9, np.uint8)).save(f"pictures/{label}/{number}.png")
    drafted("imaging", "pictures")
    run, text = loaded()
    assert isinstance(run, runs.TrainRun) and isinstance(run.modality, ImagingSpec)
    assert (run.modality.size, run.modality.channels) == ((224, 224), 3)
    assert "Found: 300 x 400; images are resized." in text
    assert run.objective.kind == "multiclass" and facts("index")["entries"] == 6


def test_a_table_beside_the_archive_gives_labels_and_splits_and_a_model_can_be_trained():
    toy.write_archive(Path.cwd(), 40)
    said = drafted("imaging", "archive")
    assert "A table that names its entries: labels.csv, by file." in said["saw"]
    assert said["undecided"] == {"objective.positive": 'TODO: which label is the positive one: "lower" or "upper"'}
    positive = ("--set", "objective.positive=lower")
    run, text = loaded(positive[1])
    assert isinstance(run, runs.TrainRun)
    assert (run.labels.table, run.labels.key, run.labels.match) == ("labels.csv", "file", "path")
    assert (run.labels.columns, run.labels.split_column, run.split.by) == (("diagnosis",), "split", "given")
    assert not re.search(r"S0\d\d\d|im_0\d|\d+\.\d+\.\d+\.\d+", text + json.dumps(said)), "an identifier of a patient"
    small = ('model={kind="cnn", channels=[4], dense=4}', "training.epochs=1", "floor=false")
    trained = facts("train", *positive, *(word for key in small for word in ("--set", key)))
    assert trained["epochs"] == 1 and Path("bundles/archive/spec.json").is_file()

    said = drafted("imaging", "archive", "--verb", "score", "--force")  # takes the bundle that lies there
    assert said["undecided"] == {} and said["chose"]["bundle"] == "bundles/archive"
    scored = facts("score")
    assert (scored["scored"], scored["failed"]) == (40, 0)
    write_vcf(Path("calls/a.vcf.gz"))
    with pytest.raises(UserError, match="trained on another kind of data"):
        init.init("genomics", "calls", bundle="bundles/archive")


def test_a_table_may_name_subjects_and_hold_numbers():
    for number in range(30):
        toy.write_image(Path("archive") / f"{number}.dcm", number, 0)
    table = pa.table({"patient": [f"S{number:04}" for number in range(30)], "age": np.arange(30) + 40.5})
    pq.write_table(table, "ages.parquet")
    said = drafted("imaging", "archive")
    assert said["undecided"] == {}
    run, _ = loaded()
    assert isinstance(run, runs.TrainRun)
    assert (run.labels.key, run.labels.match, run.labels.columns) == ("patient", "subject", ("age",))
    assert run.objective.kind == "regression"


def test_where_several_columns_may_be_the_label_a_person_says_which():
    for number in range(8):
        toy.write_image(Path("archive") / f"{number}.dcm", number, 0)
    with open("t.csv", "w", newline="") as stream:
        rows = [(f"{n}.dcm", "mf"[n % 2], "ab"[n // 4], f"P{n // 2}", f"record {n}") for n in range(8)]
        csv.writer(stream).writerows([("file", "sex", "finding", "patient", "note"), *rows])
    said = drafted("imaging", "archive")
    assert said["undecided"]["labels.columns"] == "TODO: which column is the label: sex, finding"
    assert said["chose"]["labels.subject_column"] == "patient"
    assert "P1" not in Path("run.toml").read_text() and "record" not in Path("run.toml").read_text()


def test_a_table_that_names_no_entry_is_counted_and_not_used():
    for number in range(3):
        toy.write_image(Path("archive") / f"{number}.dcm", number, 0)
    Path("prices.csv").write_text("item,price\na,1\nb,2\n")
    said = drafted("imaging", "archive")
    assert said["saw"][-1] == "No labels. 1 tables beside the archive name none of its entries."
    assert "prices" not in Path("run.toml").read_text()


def test_an_archive_in_a_bucket_with_its_table_is_looked_at_like_a_folder(monkeypatch: pytest.MonkeyPatch):
    archive = toy.write_archive(Path.cwd(), 6)
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for file in (*archive.rglob("*.dcm"), Path("labels.csv")):
            below = file.relative_to(archive) if file.suffix == ".dcm" else file
            write_bytes(f"s3://{BUCKET}/scans/{below}", file.read_bytes())
        said = drafted("imaging", f"s3://{BUCKET}/scans")
    assert said["saw"][0] == "6 files: dicom (US), 16 x 16, uint8."
    assert said["chose"]["labels.table"] == f"s3://{BUCKET}/scans/labels.csv"
    assert (said["chose"]["name"], said["chose"]["modality.size"]) == ("scans", [16, 16])


# --- sequences ------------------------------------------------------------------------------------------------


def test_a_table_of_sequences_names_its_columns(shared_data: Path):
    said = drafted("genomics", shared_data / "genomics" / "splice")
    assert said["undecided"] == {}
    assert said["saw"][0] == "2 files: 1 sequence table. Records of 60 bases."
    run, _ = loaded()
    assert isinstance(run, runs.TrainRun) and isinstance(run.modality, GenomicsSpec)
    assert (run.modality.entries, run.modality.length, run.modality.sequence_column) == ("records", 60, 3)
    assert (run.modality.label_column, run.objective.kind) == (1, "multiclass")
    found = facts("index")
    assert (found["entries"], found["failed"]) == (3191, 1)


def test_long_records_with_genes_are_windows_that_are_coding_or_not(shared_data: Path):
    said = drafted("genomics", shared_data / "genomics" / "genbank" / "NC_000932.gb")
    assert said["chose"]["objective.positive"] == "coding" and said["undecided"] == {}
    run, text = loaded()
    assert isinstance(run, runs.TrainRun) and isinstance(run.modality, GenomicsSpec)
    assert (run.modality.entries, run.modality.label_feature, run.modality.subject) == ("windows", "CDS", "segment")
    assert "records of 154,478 bases" in text
    assert facts("index")["entries"] > 150


def test_reads_of_fastq_are_records_and_their_labels_are_asked_for():
    Path("reads").mkdir()
    Path("reads/a.fastq").write_text("@one\nACGTACGT\n+\nIIIIIIII\n@two\nACGT\n+\nIIII\n")
    said = drafted("genomics", "reads")
    assert said["saw"][:2] == ["1 file: 1 FASTQ file. Records of 4 to 8 bases.", "No labels."]
    assert said["chose"]["modality.length"] == 8 and "labels.table" in said["undecided"]


def test_variants_are_scored_over_the_one_reference_beside_them():
    write_vcf(Path("calls/a.vcf.gz"))
    said = drafted("genomics", "calls")
    assert said["verb"] == "score" and sorted(said["undecided"]) == ["bundle", "modality.reference"]
    Path("genome.fa").write_text(">c\nACACACAC\n")
    said = drafted("genomics", "calls", "--force")
    assert said["undecided"] == {"bundle": "TODO: the folder of the trained model"}
    run, _ = loaded("bundle=b")
    assert isinstance(run, runs.ScoreRun) and run.modality == {"entries": "variants", "reference": "genome.fa"}
    Path("other.fa").write_text(">c\nACACACAC\n")
    assert "modality.reference" in drafted("genomics", "calls", "--force")["undecided"]
    with pytest.raises(UserError, match="scored by a model that was trained on others"):
        init.init("genomics", "calls", "train")


# --- health records -------------------------------------------------------------------------------------------


def test_records_are_predicted_at_the_times_of_the_label_table(shared_data: Path):
    write_meds(shared_data)
    said = drafted("ehr", "meds")
    assert said["undecided"] == {} and said["saw"][0].startswith("MEDS: 2 files; 30 subjects in them")
    run, _ = loaded()
    assert isinstance(run, runs.TrainRun) and isinstance(run.modality, EhrSpec)
    assert (run.modality.window, run.modality.bin_hours, run.objective.kind) == ("48h", 1.0, "binary")
    assert run.objective.model_dump()["positive"] == "true"
    assert run.modality.task.labels is not None and (Path("meds") / run.modality.task.labels).is_file()
    assert facts("index")["entries"] == 30

    drafted("ehr", "meds", "--verb", "nightly", "--force")
    night, _ = loaded('bundles=["b"]')
    assert isinstance(night, runs.NightlyRun) and night.modality == {"task": {"labels": run.modality.task.labels}}


def test_fhir_is_converted_first_and_records_of_years_have_windows_of_a_year(shared_data: Path):
    archive = str(shared_data / "ehr" / "fhir_bulk_10")
    with pytest.raises(UserError) as caught:
        init.init("ehr", archive, "train")
    assert caught.value.what == "these records have to be converted to MEDS first"
    said = drafted("ehr", archive)
    assert (said["verb"], said["next"], said["undecided"]) == ("convert", "medray ehr to-meds run.toml", {})
    assert "After the conversion: medray init ehr fhir_bulk_10_meds" in said["saw"]
    convert, _ = loaded()
    assert isinstance(convert, runs.ConvertRun) and isinstance(convert.source, FhirSource)
    facts("ehr to-meds")

    said = drafted("ehr", "fhir_bulk_10_meds", "--force")
    assert (said["chose"]["modality.window"], said["chose"]["split.by"]) == ("364d", "given")
    assert sorted(said["undecided"]) == ["modality.task.labels", "objective.kind"]
    found = facts("index", "--set", 'modality.task={at="last"}', "--set", "objective.kind=binary")
    assert (found["entries"], found["failed"]) == (13, 0)


def test_long_csv_in_a_tar_says_its_columns_and_a_person_the_rest():
    with tarfile.open("stays.tar.gz", "w:gz") as tar:
        for stay in ("7", "8"):
            Path(f"{stay}.txt").write_text("Time;Parameter;Value\n00:07;HR;80\n01:00;HR;81\n")
            tar.add(f"{stay}.txt")
    said = drafted("ehr", "stays.tar.gz")
    assert said["undecided"] == {} and "names of the files have to" in said["saw"][1]
    run, _ = loaded()
    assert isinstance(run, runs.ConvertRun) and isinstance(run.source, CsvSource)
    (table,) = run.source.tables
    assert (table.files, table.delimiter, table.subject_column) == ("*.txt", ";", None)
    assert (table.time_column, table.time_format, table.code_column) == ("Time", "hh:mm", "Parameter")
    converted = facts("ehr to-meds")
    assert (converted["subjects"], converted["events"]) == (2, 4)

    Path("lab.csv").write_text("mrn,when,analyte,result\n1,3.4.2020,Na,140\n")
    left = drafted("ehr", "lab.csv", "--force")["undecided"]
    assert left == {
        "source.tables[0].time_column": "TODO: which column is the time: mrn, when, analyte, result",
        "source.tables[0].code_column": "TODO: which column is the code: mrn, when, analyte, result",
    }


def test_omop_is_known_and_not_read(shared_data: Path):
    with pytest.raises(UserError, match="medray does not read OMOP"):
        init.init("ehr", str(shared_data / "ehr" / "omop_synthea27nj"))


# --- what is written ------------------------------------------------------------------------------------------

OPTIONAL = re.compile(r"#(\[.*\]|\w+ = .*)")


@pytest.mark.parametrize("verb", ["train", "score", "nightly"])
def test_a_key_that_is_left_out_can_be_turned_on_and_changes_nothing(verb: str):
    toy.write_archive(Path.cwd(), 6)
    drafted("imaging", "archive", "--verb", verb)
    decided = {
        "train": ("objective.positive=lower",),
        "score": ("bundle=b",),
        "nightly": ('bundles=["b"]',),
    }[verb]
    run, text = loaded(*decided)
    lines = text.splitlines()
    assert sum(OPTIONAL.fullmatch(line) is not None for line in lines) > 10
    turned_on = [line.removeprefix("#") if OPTIONAL.fullmatch(line) else line for line in lines]
    # an optional table that is none by default is another run, and a name that is wanted is no default
    whole = "\n".join(turned_on).replace("[training.early_stopping]", "[training.early_stopping]#")
    whole = whole.replace("command = [] ", 'command = ["page-me"] ')
    Path("run.toml").write_text(whole)
    again, _ = loaded(*decided)
    kept = run.model_dump()
    if verb == "train":
        kept["training"]["early_stopping"] = {"patience": 5, "min_delta": 0.0}
    if verb == "nightly":
        kept["alert"] = AlertSettings(command=("page-me",)).model_dump()
    assert again.model_dump() == kept


@pytest.mark.parametrize("verb", ["train", "score"])
def test_every_key_that_is_given_has_a_comment_above_it(verb: str):
    toy.write_archive(Path.cwd(), 6)
    drafted("imaging", "archive", "--verb", verb)
    lines = Path("run.toml").read_text().splitlines()
    given = [number for number, line in enumerate(lines) if re.match(r"\w+ = |\[", line)]
    assert len(given) > 6
    assert [lines[number] for number in given if not lines[number - 1].startswith("# ")] == []


def test_what_is_left_to_decide_is_refused_by_name_before_anything_heavy_is_imported():
    write_vcf(Path("calls/a.vcf.gz"))
    drafted("genomics", "calls")
    for check in (runs.load, outline.check):
        with pytest.raises(RunFileError) as caught:
            check("run.toml")
        assert "bundle: this key is still to be decided" in caught.value.what
        assert "modality.reference: this key is still to be decided" in caught.value.what
    refused = medray_("index", "run.toml")
    assert refused.exit_code == 2 and f"found: {UNDECIDED} the folder of the trained model" in refused.stderr
    code = "import sys\nfrom medray.config import outline\ntry:\n    outline.check('run.toml')\nexcept Exception as error:\n"
    code += "    print(type(error).__name__, [name for name in ('pydantic', 'torch', 'ray', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "RunFileError []\n"


def test_a_person_reads_what_was_seen_what_was_chosen_and_what_comes_next():
    toy.write_archive(Path.cwd(), 6)
    done = medray_("init", "imaging", "archive")
    assert done.exit_code == 0 and Path("archive_train.toml").is_file()
    parts = re.split(r"\n(saw|chose|left for you to decide|next)\n", done.stdout)
    assert parts[1::2] == ["saw", "chose", "left for you to decide", "next"]
    assert "objective.positive" in parts[6]
    assert (
        parts[8].strip() == "archive_train.toml: look at it, replace each TODO, then: medray index archive_train.toml"
    )


def test_nothing_is_overwritten_without_force():
    toy.write_archive(Path.cwd(), 4)
    Path("archive_train.toml").write_text("mine")
    done = medray_("init", "imaging", "archive")
    assert done.exit_code == 2 and "archive_train.toml: this file is already there" in done.stderr
    assert Path("archive_train.toml").read_text() == "mine"
    assert medray_("init", "imaging", "archive", "--force").exit_code == 0
    assert Path("archive_train.toml").read_text() != "mine"
    done = medray_("init", "imaging", "archive", "-o", "no/folder.toml")
    assert done.exit_code == 2 and "cannot be written" in done.stderr


def test_an_archive_without_the_kind_says_what_is_in_it():
    Path("notes").mkdir()
    for name in ("Smith_1970.a.txt", "b.txt", "c.docx"):
        Path("notes", name).write_text("the Tuesday list")
    for kind in ("imaging", "ehr", "genomics"):
        with pytest.raises(UserError) as caught:
            init.init(kind, "notes")
        assert caught.value.what == f"nothing of the kind {kind} is in this archive"
        assert caught.value.found.startswith("3 files:") and "Smith" not in str(caught.value)


def test_an_empty_a_missing_and_an_unknown_archive():
    Path("empty").mkdir()
    with pytest.raises(UserError, match="there is nothing in this archive"):
        init.init("imaging", "empty")
    with pytest.raises(ArchiveError, match="does not exist"):
        init.init("imaging", "gone")
    with pytest.raises(UserError, match="there is no such modality"):
        init.init("video", "empty")
    toy.write_archive(Path.cwd(), 2)
    with pytest.raises(UserError, match="there is nothing to convert"):
        init.init("imaging", "archive", "convert")
    done = medray_("init")
    assert done.exit_code == 2 and "medray init KIND ARCHIVE" in done.stderr


def test_of_many_files_some_from_all_over_are_looked_at():
    listed = [File(f"/a/{number:05}", 1, 0) for number in range(10_000)]
    sample = spread(listed, 10)
    assert [file.uri for file in sample[:5]] == [f"/a/{number:05}" for number in range(5)]
    assert [int(file.uri[3:]) for file in sample[5:]] == [5, 2004, 4003, 6002, 8001]
    assert spread(listed[:10], 10) == listed[:10]


# --- the pages, and the examples ------------------------------------------------------------------------------


def test_the_commands_of_the_page_do_what_it_says(shared_data: Path):
    lines = [
        line
        for block in blocks(PROJECT / "docs" / "run-files.md", "bash")
        for line in block.text.splitlines()
        if line.startswith("medray init ")
    ]
    Path("data").mkdir()
    toy.write_archive(Path("data"), 6)
    Path("data/archive").rename("data/ultrasound")
    Path("data/export").symlink_to(shared_data / "ehr" / "fhir_bulk_10")
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    assert len(commands) == 4
    for words in commands:
        done = medray_(*words)
        assert done.exit_code == 0, (words, done.stderr)
    assert {file.name for file in Path.cwd().glob("*.toml")} == {
        "ultrasound_train.toml",
        "export_convert.toml",
        "night.toml",
    }


EXAMPLES = sorted((PROJECT / "jobs" / "runs").glob("*.toml"))


def test_an_example_is_printed_as_it_is():
    for file in EXAMPLES:
        done = medray_("init", "--example", file.stem)
        assert (done.exit_code, done.stdout) == (0, file.read_text())
    done = medray_("init", "--example", "breast")
    assert done.exit_code == 2 and "breast_train" in done.stderr


def test_the_examples_travel_in_the_wheel_and_in_the_source_archive(tmp_path: Path):
    assert int(importlib.metadata.version("setuptools").split(".")[0]) >= 77, "what pyproject.toml builds with"
    source = tmp_path / "source"
    for folder in ("medray", "jobs"):
        shutil.copytree(PROJECT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source / name)
    code = "import setuptools.build_meta as build; build.build_wheel('..'); build.build_sdist('..')"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        examples = {name: packed.read(name) for name in packed.namelist() if name.startswith("medray/examples/")}
    assert examples == {f"medray/examples/{file.name}": file.read_bytes() for file in EXAMPLES}
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        held = {member.name.partition("/")[2] for member in packed if member.isfile()}
    assert held >= examples.keys()
