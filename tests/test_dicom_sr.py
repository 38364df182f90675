"""Scores as DICOM Structured Reports: read back by highdicom, and by dciodvfy where it is there or can be had."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from typer.testing import CliRunner

from medray.archive.entries import PartRef, digest
from medray.cli.app import app
from medray.engines.local import LocalEngine
from medray.errors import MedrayError, RunFileError, SampleError, UserError
from medray.exports.base import Algorithm
from medray.exports.dicom_sr import document, headers
from medray.exports.sr_settings import SrSettings
from medray.learning import bundles
from medray.learning.models.logistic import LogisticSpec
from medray.learning.objectives import RegressionObjective
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom
from medray.progress import Silent
from medray.scores import ScoreStore
from medray.verbs.export import export
from medray.verbs.nightly import nightly
from medray.verbs.results import ExportResult
from medray.verbs.score import score

sr = pytest.importorskip("highdicom.sr")

HEMORRHAGE = ["50960005", "SCT", "Hemorrhage"]
OUTPUTS: dict[str, Any] = {"lower": {"finding": HEMORRHAGE, "presence": True}}
NAME, RECORD = "Doe^Jane^Q", "MRN-4711"


def edited(raw: bytes, **elements: object) -> bytes:
    """A DICOM file with other elements."""
    import io

    dataset = dcmread(io.BytesIO(raw))
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    stream = io.BytesIO()
    dcmwrite(stream, dataset)
    return stream.getvalue()


def write_archive(folder: Path, count: int = 4) -> Path:
    """Images of one study, with a patient's name, and a truncated one."""
    for number in range(count):
        toy.write_image(folder / "archive" / f"{number}.dcm", number, number % 2)
        path = folder / "archive" / f"{number}.dcm"
        path.write_bytes(
            edited(
                path.read_bytes(),
                PatientName=NAME,
                PatientID=RECORD,
                StudyInstanceUID=uid("study"),
                StudyDate="20260102",
                StudyTime="101112",
                StudyID="1",
                AccessionNumber="A1",
                InstanceNumber=number + 1,
                TimezoneOffsetFromUTC="+0100",
            )
        )
    whole = (folder / "archive" / "0.dcm").read_bytes()
    (folder / "archive" / "cut.dcm").write_bytes(whole[:-100])
    return folder


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images and a truncated one, scored by a binary bundle; run.toml is the run."""
    folder = write_archive(tmp_path_factory.mktemp("sr"))
    bundles.save(toy.bundle(), str(folder / "bundle"))
    run_scoring(folder)
    return folder


def run_scoring(folder: Path, **changes: Any) -> Path:
    run = toy.score_run(folder, **({"sr": {"outputs": OUTPUTS}} | changes))
    score(run, LocalEngine())
    return toy.write_run_file(folder / "run.toml", run)


def exported(folder: Path, out: str = "out", run: str = "run.toml") -> ExportResult:
    return export("dicom-sr", str(folder / "scores"), str(folder / run), str(folder / out))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def balanced(result: ExportResult) -> bool:
    """Every entry of the index is told of once."""
    refused = sum(result.refused.values())
    return result.records == result.scored + result.failed + result.not_eligible + result.not_scored + refused


# --- what a report says ---------------------------------------------------------------------------------------


def test_every_scored_image_is_a_report_that_highdicom_reads(scored: Path):
    result = exported(scored)
    assert (result.records, result.scored, result.failed, result.already) == (5, 4, 1, 0) and balanced(result)
    rows = {row["entry_id"]: row for row in ScoreStore.open(str(scored / "scores")).current().to_pylist()}
    bundle_id = bundles.load(str(scored / "bundle")).id
    seen = set[str]()
    for path in (scored / "out").iterdir():
        report = sr.srread(path)
        assert path.name == f"{report.SOPInstanceUID}.dcm"
        [evidence] = report.get_evidence()
        row = rows[str(evidence[2])]
        seen.add(row["entry_id"])
        [group] = report.content.get_image_measurement_groups()
        assert group.finding_type == Code(*HEMORRHAGE)
        [measurement] = group.get_measurements()
        assert (measurement.name, measurement.unit) == (codes.DCM.CertaintyOfFinding, codes.UCUM.Percent)
        assert measurement.value == pytest.approx(100 * row["value"], rel=1e-12)
        # highdicom takes the algorithm's family for an evaluation of the image
        family, evaluation = group.get_qualitative_evaluations()
        assert family.value == codes.DCM.ArtificialIntelligence
        called = codes.SCT.Present if row["value"] >= 0.4375 else codes.SCT.Absent
        assert (evaluation.name, evaluation.value) == (codes.DCM.PresenceOfProperty, called)
        said = [str(item.TextValue) for item in group[0].ContentSequence if item.ValueType == "TEXT"]
        assert {"toy", bundle_id, "not calibrated"} <= set(said)
        assert any("decision threshold 0.4375" in text for text in said)
        [source] = group.source_images
        assert source.referenced_sop_instance_uid == row["entry_id"]
        assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert len(seen) == 4


def test_a_report_belongs_to_the_patient_and_study_of_its_image(scored: Path):
    exported(scored)
    for path in (scored / "out").iterdir():
        report = dcmread(path)
        [[_, _, instance, _]] = sr.srread(path).get_evidence()
        [image] = [each for each in images(scored) if each.SOPInstanceUID == instance]
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber"):
            assert report[keyword] == image[keyword]
        assert report.InstanceNumber == image.InstanceNumber
        assert report.SeriesInstanceUID != image.SeriesInstanceUID
    assert len({dcmread(path).SeriesInstanceUID for path in (scored / "out").iterdir()}) == 1


def images(folder: Path) -> list[Dataset]:
    return [dcmread(path) for path in (folder / "archive").iterdir() if path.name != "cut.dcm"]


def test_times_are_those_of_the_score_in_the_zone_of_the_image(scored: Path):
    exported(scored)
    rows = {row["entry_id"]: row for row in ScoreStore.open(str(scored / "scores")).current().to_pylist()}
    for path in (scored / "out").iterdir():
        report = dcmread(path)
        [[_, _, instance, _]] = sr.srread(path).get_evidence()
        moment: datetime = rows[str(instance)]["scored_at"]
        here = moment.astimezone(timezone(timedelta(hours=1)))
        assert report.ContentDate + report.ContentTime == here.strftime("%Y%m%d%H%M%S.%f")
        assert report.TimezoneOffsetFromUTC == "+0100"
        [group] = sr.srread(path).content.get_image_measurement_groups()
        [number] = [item for item in group[0].ContentSequence if item.ValueType == "NUM"]
        assert str(number.ObservationDateTime) == moment.strftime("%Y%m%d%H%M%S.%f+0000")


# --- once -----------------------------------------------------------------------------------------------------


def test_exporting_twice_stores_one_object_byte_for_byte(scored: Path):
    exported(scored, "once")
    before = contents(scored / "once")
    again = exported(scored, "once")
    assert (again.scored, again.already) == (4, 4) and contents(scored / "once") == before
    exported(scored, "elsewhere")
    assert contents(scored / "elsewhere") == before


def test_another_score_or_another_meaning_is_another_object():
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    first = document.Scored("1.2.3", b"0" * 16, {"lower": 0.25}, moment)
    algorithm = Algorithm("toy", "0123456789abcdef", ("lower",), True)
    settings = SrSettings.model_validate({"outputs": OUTPUTS})

    def made(scored: document.Scored = first, algorithm: Algorithm = algorithm, settings: SrSettings = settings) -> str:
        return document.instance_uid(document.names(scored, algorithm, settings))

    others = [
        made(document.Scored("1.2.4", b"0" * 16, {"lower": 0.25}, moment)),
        made(document.Scored("1.2.3", b"1" * 16, {"lower": 0.25}, moment)),
        made(document.Scored("1.2.3", b"0" * 16, {"lower": 0.5}, moment)),
        made(document.Scored("1.2.3", b"0" * 16, {"lower": 0.25}, moment + timedelta(seconds=1))),
        made(algorithm=Algorithm("toy", "fedcba9876543210", ("lower",), True)),
        made(settings=SrSettings.model_validate({"outputs": {"lower": {"finding": HEMORRHAGE}}})),
    ]
    assert len({made(), *others}) == 7
    assert made() == made() and made().startswith("2.25.") and len(made()) <= 64
    # the output of another bundle of the same run file changes nothing
    assert made(settings=SrSettings.model_validate({"outputs": OUTPUTS | {"other": {"finding": HEMORRHAGE}}})) == made()


def test_a_night_exports_what_is_new_alone(tmp_path: Path):
    write_archive(tmp_path, 2)
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    run_scoring(tmp_path)
    assert exported(tmp_path).scored == 2
    toy.write_image(tmp_path / "archive" / "9.dcm", 9, 1)
    run_scoring(tmp_path)
    again = exported(tmp_path)
    assert (again.records, again.scored, again.already) == (4, 3, 2)
    assert len(contents(tmp_path / "out")) == 3


# --- what is not written --------------------------------------------------------------------------------------


def test_images_that_changed_or_went_since_they_were_scored_are_refused_and_counted(tmp_path: Path):
    write_archive(tmp_path)
    from PIL import Image

    Image.fromarray(toy.pixels(7, 1)).save(tmp_path / "archive" / "7.png")
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    run_scoring(tmp_path)
    (tmp_path / "archive" / "0.dcm").unlink()
    image = tmp_path / "archive" / "1.dcm"
    image.write_bytes(edited(image.read_bytes(), PatientName="Other^Patient"))
    done = CliRunner().invoke(
        app, ["export", "dicom-sr", *(str(tmp_path / name) for name in ("scores", "run.toml", "out")), "--json"]
    )
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert (result["records"], result["scored"], result["failed"]) == (6, 2, 1)
    assert result["refused"] == {"missing_file": 1, "changed": 1, "unsupported": 1}
    assert done.exit_code == 3
    # the next index knows of both: one is gone, the other has no score at its new content yet
    from medray.verbs.index import index_archive

    run = toy.score_run(tmp_path)
    index_archive(run, toy.MODALITY, LocalEngine(), Silent())
    told = exported(tmp_path)
    assert (told.records, told.scored, told.not_scored, told.not_in_index) == (5, 2, 1, 2) and balanced(told)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"PatientID": "A"}, {"PatientID": "B"}, "mixed_subjects"),
        ({}, {"StudyInstanceUID": "1.2.9"}, "corrupt"),
        ({}, {"SeriesInstanceUID": ""}, "corrupt"),
    ],
)
def test_images_that_are_not_of_one_patient_and_study_make_no_report(
    tmp_path: Path, first: dict[str, str], second: dict[str, str], reason: str
):
    parts: list[PartRef] = []
    for number, changes in enumerate((first, second)):
        raw = edited(image_bytes(number), **changes)
        (tmp_path / f"{number}.dcm").write_bytes(raw)
        parts.append(PartRef(str(tmp_path / f"{number}.dcm"), "", digest(raw)))
    with pytest.raises(SampleError) as refused:
        headers.read_source(parts)
    assert refused.value.reason == reason


def image_bytes(number: int = 0) -> bytes:
    return write_dicom(
        toy.pixels(number, 0),
        patient_id=RECORD,
        study_uid=uid("study"),
        series_uid=uid("series"),
        instance_uid=uid("image", number),
        instance_number=number + 1,
        modality="CT",
    )


# --- images of all kinds --------------------------------------------------------------------------------------


def one_report(folder: Path, files: dict[str, bytes], **settings: Any) -> bytes:
    """The report of an entry of these files, with the score 0.25."""
    parts: list[PartRef] = []
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
        parts.append(PartRef(str(folder / name), "", digest(raw)))
    scored = document.Scored("entry", b"0" * 16, {"lower": 0.25}, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    chosen = SrSettings.model_validate({"outputs": {"lower": {"finding": HEMORRHAGE}}} | settings)
    algorithm = Algorithm("toy", "0123456789abcdef", ("lower",), True)
    return document.report(headers.read_source(parts), scored, algorithm, chosen, UTC)


def test_a_series_is_one_report_that_refers_to_every_slice_in_order(tmp_path: Path):
    import io

    files = {f"{name}.dcm": image_bytes(number) for number, name in enumerate("cab")}
    report = sr.srread(io.BytesIO(one_report(tmp_path, files | {"copy.dcm": files["a.dcm"]})))
    slices = [uid("image", number) for number in range(3)]
    [group] = report.content.get_image_measurement_groups()
    assert [str(each.referenced_sop_instance_uid) for each in group.source_images] == slices
    assert [str(each[2]) for each in report.get_evidence()] == slices
    [procedure] = [i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "121058"]
    assert procedure.ConceptCodeSequence[0].CodeMeaning == "CT unspecified body region"
    assert report.ContentDate + report.ContentTime == "20260102030405.000000"  # UTC: the images state no zone


@pytest.mark.parametrize(
    ("taken", "named"),
    [("", None), ("#frames=2", [2]), ("#frames=1-3:2", [1, 3]), ("#frames=1-4", None)],
    ids=["all", "one", "some", "every one"],
)
def test_an_entry_of_some_frames_names_them(tmp_path: Path, taken: str, named: list[int] | None):
    import io

    raw = edited(image_bytes(), NumberOfFrames=4)
    (tmp_path / "m.dcm").write_bytes(raw)
    source = headers.read_source([PartRef(str(tmp_path / "m.dcm"), f"1.2.3{taken}", digest(raw))])
    scored = document.Scored("entry#t=0001", b"0" * 16, {"lower": 0.25}, datetime(2026, 1, 2, tzinfo=UTC))
    settings = SrSettings.model_validate({"outputs": {"lower": {"finding": HEMORRHAGE}}})
    algorithm = Algorithm("toy", "0123456789abcdef", ("lower",), True)
    report = sr.srread(io.BytesIO(document.report(source, scored, algorithm, settings, UTC)))
    [group] = report.content.get_image_measurement_groups()
    [image] = group.source_images
    assert image.referenced_frame_numbers == named


def test_images_in_gzip_and_in_zip_files_are_read_where_they_are(tmp_path: Path):
    import gzip
    import zipfile

    toy.write_image(tmp_path / "a.dcm", 1, 1)
    raw = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "1.dcm.gz").write_bytes(gzip.compress(raw))
    toy.write_image(tmp_path / "b.dcm", 2, 0)
    with zipfile.ZipFile(tmp_path / "archive" / "all.zip", "w") as archive:
        archive.write(tmp_path / "b.dcm", "in/b.dcm")
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    run_scoring(tmp_path)
    result = exported(tmp_path)
    assert (result.scored, result.refused) == (2, {})
    subjects = {str(dcmread(path).PatientID) for path in (tmp_path / "out").iterdir()}
    assert subjects == {"S0001", "S0002"}


def test_tiles_of_a_mosaic_are_no_frames(tmp_path: Path):
    raw = image_bytes()
    (tmp_path / "m.dcm").write_bytes(raw)
    source = headers.read_source([PartRef(str(tmp_path / "m.dcm"), "1.2.3#frames=2", digest(raw))])
    assert source.instances[0].frames == ()


def charset_files() -> list[Path]:
    import pydicom.data

    folder = Path(pydicom.data.__file__).parent / "charset_files"
    return sorted(path for path in folder.glob("chr*.dcm") if "SQ" not in path.name)


@pytest.mark.parametrize("path", charset_files(), ids=lambda path: path.stem)
def test_names_in_every_character_set_stay_byte_for_byte(tmp_path: Path, path: Path):
    import io

    raw = one_report(tmp_path, {"image.dcm": path.read_bytes()})
    image, report = dcmread(path), sr.srread(io.BytesIO(raw))
    assert report.PatientName == image.PatientName
    assert report.get("SpecificCharacterSet") == image.get("SpecificCharacterSet")
    bytes_of = [dcmread(file).get_item("PatientName").value for file in (path, io.BytesIO(raw))]  # type: ignore[union-attr]
    assert bytes_of[0] == bytes_of[1] and len(bytes_of[0]) > 0


def test_the_numbers_of_a_regression_are_in_the_unit_that_the_run_file_says(tmp_path: Path):
    import io

    reported = {"name": ["37016008", "SCT", "Age"]}
    with pytest.raises(ValueError, match="UCUM"):
        SrSettings.model_validate({"outputs": {"age": reported | {"unit": ["a", "LN", "years"]}}})
    settings = SrSettings.model_validate(
        {"outputs": {"age": {"name": ["37016008", "SCT", "Age"], "unit": ["a", "UCUM", "years"]}}}
    )
    (tmp_path / "i.dcm").write_bytes(image_bytes())
    source = headers.read_source([PartRef(str(tmp_path / "i.dcm"), "")])
    scored = document.Scored("entry", b"0" * 16, {"age": 61.5}, datetime(2026, 1, 2, tzinfo=UTC))
    algorithm = Algorithm("age", "0123456789abcdef", ("age",), False)
    report = sr.srread(io.BytesIO(document.report(source, scored, algorithm, settings, UTC)))
    [group] = report.content.get_image_measurement_groups()
    [measurement] = group.get_measurements()
    assert (measurement.value, measurement.unit.value, measurement.name.value) == (61.5, "a", "37016008")


# --- privacy --------------------------------------------------------------------------------------------------


def test_nothing_of_the_patient_is_said_or_stands_in_a_name(tmp_path: Path, scored: Path):
    """As a process of its own: what libraries print or log is seen, too."""
    toy.write_image(tmp_path / "archive" / "x.dcm", 1, 1)
    path = tmp_path / "archive" / "x.dcm"
    # a name without ^, an impossible date and sex: libraries warn of such, and quote them
    path.write_bytes(
        edited(path.read_bytes(), PatientName="Schmidt", PatientID=RECORD, PatientSex="QQ", PatientComments="ward 7")
        .replace(b"SchmidtQ", b"Schmidt ")
    )  # fmt: skip
    shutil.copytree(scored / "bundle", tmp_path / "bundle")
    run_scoring(tmp_path)
    command = [sys.executable, "-m", "medray.cli", "export", "dicom-sr"]
    done = subprocess.run(
        [*command, *(str(tmp_path / name) for name in ("scores", "run.toml", "out"))],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONWARNINGS": "default"},
    )
    assert done.returncode == 0, done.stderr
    [report] = (tmp_path / "out").iterdir()
    assert dcmread(report).PatientName == "Schmidt"
    for secret in ("Schmidt", RECORD, "QQ", "ward"):
        assert secret not in done.stdout + done.stderr + report.name


# --- run files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "does not say which coded concepts"),
        ({"outputs": {"other": {"finding": HEMORRHAGE}}}, "does not say what each output"),
        ({"outputs": OUTPUTS, "leave_out": ["lower"]}, "leaves all outputs out"),
        ({"outputs": {"lower": {}}}, "what is this the probability of"),
        ({"outputs": {"lower": {"finding": HEMORRHAGE, "unit": ["mm", "UCUM", "mm"]}}}, "in another unit"),
        ({"outputs": {"lower": {"finding": ["111047", "DCM", "Hemorrhage"]}}}, "has another meaning"),
        ({"outputs": {"lower": {"finding": ["111999", "DCM", "Hemorrhage"]}}}, "no such term"),
    ],
)
def test_outputs_without_a_sound_code_are_refused(scored: Path, settings: dict[str, Any], said: str):
    run = toy.score_run(scored, **({"sr": settings} if settings else {}))
    toy.write_run_file(scored / "other.toml", run)
    with pytest.raises(RunFileError, match=said):
        exported(scored, run="other.toml")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (["X1", "99HOSPITAL", "Bleeding"], "private coding scheme"),
        (["X1", "L", "Bleeding"], "private coding scheme"),
        (["12345678901234567", "SCT", "Bleeding"], "1 to 16"),
        (["50960005", "SCT", "Blutung im Gehirn, groß"], "ASCII"),
        (["50960005", "SCT", ""], "meaning"),
    ],
)
def test_codes_that_another_system_could_not_read_are_refused(code: list[str], said: str):
    with pytest.raises(ValueError, match=said):
        SrSettings.model_validate({"outputs": {"lower": {"finding": code}}})


def test_a_zone_that_is_none_and_a_name_that_is_too_long_are_refused():
    with pytest.raises(ValueError, match="no time zone"):
        SrSettings.model_validate({"outputs": OUTPUTS, "timezone": "Mars/Olympus"})
    with pytest.raises(ValueError, match="1 to 64"):
        SrSettings.model_validate({"outputs": OUTPUTS, "algorithm": "x" * 65})
    assert SrSettings.model_validate({"outputs": OUTPUTS, "timezone": "UTC"}).timezone == "UTC"


def test_numbers_that_are_no_probabilities_need_a_name_and_a_unit(tmp_path: Path):
    write_archive(tmp_path, 1)
    bundle = toy.bundle(
        objective=RegressionObjective(),
        classes=("age",),
        thresholds=(),
    )
    bundles.save(bundle, str(tmp_path / "bundle"))
    run_scoring(tmp_path, sr={"outputs": {"age": {"finding": HEMORRHAGE}}})
    with pytest.raises(RunFileError, match="what is measured, and in which unit"):
        exported(tmp_path)


def test_other_kinds_of_data_and_other_run_files_are_refused(scored: Path, tmp_path: Path):
    toy.write_run_file(scored / "train.toml", toy.train_run(scored))
    with pytest.raises(RunFileError, match="no run file of a scoring"):
        exported(scored, run="train.toml")
    with pytest.raises(MedrayError, match="no such scores"):
        export("dicom-sr", str(scored / "scores"), str(scored / "run.toml"), str(tmp_path), bundle="ffff")
    sequences = toy.recipe(modality=GenomicsSpec(length=8), model=LogisticSpec())
    bundles.save(bundles.make_bundle(sequences, {"weight": np.zeros(1, np.float32)}), str(tmp_path / "bundle"))
    toy.write_run_file(scored / "sequences.toml", toy.score_run(scored, bundle=str(tmp_path / "bundle")))
    with pytest.raises(UserError, match="of DICOM images") as refused:
        exported(scored, run="sequences.toml")
    assert "genomics" in str(refused.value)


def test_without_highdicom_a_sentence_says_what_to_install(scored: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UserError, match="not installed") as refused:
        exported(scored, "nowhere")
    assert "medray[dicom-sr]" in str(refused.value) and not (scored / "nowhere").exists()


def test_a_nightly_run_file_serves_as_well(scored: Path, tmp_path: Path):
    from medray.config.runs import NightlyRun

    settings = toy.score_run(scored, sr={"outputs": OUTPUTS}).model_dump(mode="json", exclude_unset=True)
    settings |= {"store": str(tmp_path / "scores"), "work": str(tmp_path / "work"), "bundles": [settings.pop("bundle")]}
    run = NightlyRun.model_validate(settings)
    nightly(run, LocalEngine())
    toy.write_run_file(tmp_path / "night.toml", run)  # type: ignore[arg-type]
    result = exported(tmp_path, run="night.toml")
    assert (result.records, result.scored, result.failed) == (5, 4, 1)


# --- dciodvfy -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def dciodvfy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The validator of the package dicom3tools: as installed, or unpacked from Debian's archive."""
    installed = shutil.which("dciodvfy")
    if installed:
        return installed
    folder = tmp_path_factory.mktemp("dicom3tools")
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("dciodvfy is not installed")
    got = subprocess.run(["apt-get", "download", "dicom3tools"], cwd=folder, capture_output=True, timeout=120)
    packages = list(folder.glob("*.deb"))
    if got.returncode or not packages:
        pytest.skip("dciodvfy is not installed, and dicom3tools cannot be had")
    subprocess.run(["dpkg", "-x", packages[0], folder / "x"], check=True, timeout=120)
    return str(folder / "x/usr/bin/dciodvfy")


def errors_of(dciodvfy: str, file: Path) -> list[str]:
    done = subprocess.run([dciodvfy, file], capture_output=True, timeout=60)
    lines = done.stderr.decode(errors="replace").splitlines()
    assert "EnhancedSR" in lines
    return [line for line in lines if line.startswith("Error")]


@pytest.mark.slow
def test_dciodvfy_finds_no_error_in_reports_of_real_images(
    scored: Path, tmp_path: Path, dciodvfy: str, shared_data: Path
):
    exported(scored)
    for path in (scored / "out").iterdir():
        assert errors_of(dciodvfy, path) == []
    real = [
        path for path in sorted((shared_data / "imaging/dicom").rglob("*.dcm")) if b"DICM" in path.read_bytes()[:132]
    ]
    assert len(real) > 600
    folders = {path.parent: path for path in real}  # one of each: the slices of a series have one header but for places
    for path in [*folders.values(), *charset_files()]:
        (tmp_path / "report.dcm").write_bytes(one_report(tmp_path, {"image.dcm": path.read_bytes()}))
        assert errors_of(dciodvfy, tmp_path / "report.dcm") == [], path.name
