"""Archives in zip, tar and gzip, and those that a DICOMDIR names: indexed, scored, and indexed again."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import toy
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.fileset import FileSet

from medray.api import Bundle
from medray.archive.manifest import Manifest
from medray.datasets.label_table import LabelSettings
from medray.datasets.labels import apply_labels
from medray.engines.local import LocalEngine
from medray.errors import ArchiveAway, ArchiveError, UserError
from medray.learning import bundles
from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom
from medray.storage import archives, files
from medray.verbs import stages
from medray.verbs.index import index
from medray.verbs.inspect import inspect
from medray.verbs.score import score


def image(number: int) -> bytes:
    path = Path(os.environ["HOME"]) / f"toy-{number}.dcm"
    toy.write_image(path, number, number % 2)
    return path.read_bytes()


def zipped(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(name, data)


def tarred(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as made:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Twelve images: two in a folder, four in a zip, three in a tar, two in a tar.gz, one in gzip."""
    folder = tmp_path / "archive"
    for number in (0, 1):
        toy.write_image(folder / "plain" / f"{number}.dcm", number, number % 2)
    zipped(folder / "z.zip", {f"head/{i}.dcm": image(i) for i in (2, 3, 4, 5)})
    tarred(folder / "t.tar", {f"./{i}": image(i) for i in (6, 7, 8)})
    tarred(folder / "g.tar.gz", {f"{i}.dcm": image(i) for i in (9, 10)})
    (folder / "11.dcm.gz").write_bytes(gzip.compress(image(11)))
    return tmp_path


def entries(result) -> dict[str, dict]:
    return {row["entry_id"]: row for row in Manifest.open(result.manifest).table().to_pylist()}


def images(*numbers: int) -> set[str]:
    return {uid("toy", number, "image") for number in numbers}


def test_images_are_scored_wherever_they_lie_and_as_if_they_lay_in_folders(archive):
    bundles.save(toy.bundle(), str(archive / "bundle"))
    result = score(toy.score_run(archive), LocalEngine())
    assert (result.scored, result.failed) == (12, 0)
    for number in range(12):
        toy.write_image(archive / "unpacked" / "archive" / f"{number}.dcm", number, number % 2)
    beside = toy.score_run(
        archive, archive=str(archive / "unpacked"), work=str(archive / "w"), store=str(archive / "s")
    )
    assert score(beside, LocalEngine()).scored == 12
    assert toy.scores(archive / "scores") == toy.scores(archive / "s")


def test_only_a_container_that_changed_is_opened_again(archive):
    run = toy.train_run(archive)
    first = index(run, LocalEngine())
    assert (first.entries, first.failed, first.scanned) == (12, 0, 15)  # twelve images, three containers
    again = index(run, LocalEngine())
    assert (again.entries, again.scanned) == (12, 0)
    assert entries(again) == entries(first)
    time = (archive / "archive" / "z.zip").stat().st_mtime_ns
    zipped(archive / "archive" / "z.zip", {f"head/{i}.dcm": image(i) for i in (2, 3, 4)} | {"new.dcm": image(20)})
    os.utime(archive / "archive" / "z.zip", ns=(time, time))
    later = index(run, LocalEngine())
    assert (later.entries, later.scanned, later.new, later.vanished, later.changed) == (12, 5, 1, 1, 0)
    assert set(entries(later)) == images(*range(5), *range(6, 12), 20)


def test_members_are_opened_again_where_a_zip_was_rewritten_in_the_same_size_and_time_of_its_members(archive):
    run = toy.train_run(archive)
    before = entries(index(run, LocalEngine()))
    path = archive / "archive" / "t.tar"
    changed = bytearray(image(7))
    changed[-1] ^= 1
    tarred(path, {"./6": image(6), "./7": bytes(changed), "./8": image(8)})
    result = index(run, LocalEngine())
    assert (result.scanned, result.changed, result.new, result.vanished) == (4, 1, 0, 0)
    after = entries(result)
    assert {each for each in after if after[each]["fingerprint"] != before[each]["fingerprint"]} == images(7)


def test_a_zip_that_an_earlier_version_took_for_a_file_becomes_its_members(archive, monkeypatch):
    run = toy.train_run(archive)
    with monkeypatch.context() as earlier:
        earlier.setattr(archives, "is_container", lambda _: False)
        earlier.setattr(stages, "holds_data", lambda _: True)
        before = index(run, LocalEngine(), failed=True)
        assert {row["path"] for row in before.failed_entries or ()} == {"z.zip", "t.tar", "g.tar.gz"}
    after = index(run, LocalEngine())
    assert (after.entries, after.failed, after.scanned) == (12, 0, 12)  # nine members and three containers
    assert index(run, LocalEngine()).scanned == 0


def test_an_image_that_moves_from_a_folder_into_a_zip_or_is_packed_is_not_scored_again(archive):
    bundles.save(toy.bundle(), str(archive / "bundle"))
    run = toy.score_run(archive)
    score(run, LocalEngine())
    zipped(archive / "archive" / "moved.zip", {"a/0.dcm": image(0)})
    (archive / "archive" / "plain" / "0.dcm").unlink()
    (archive / "archive" / "plain" / "1.dcm.gz").write_bytes(gzip.compress(image(1), 1))
    (archive / "archive" / "plain" / "1.dcm").unlink()
    again = score(run, LocalEngine())
    assert (again.scored, again.failed, again.pending) == (0, 0, 0)


def test_a_zip_alone_is_an_archive_and_its_folders_are_classes(tmp_path):
    from PIL import Image

    members = {}
    for number, name in enumerate(("cats/a.png", "cats/b.png", "dogs/c.png")):
        stream = io.BytesIO()
        Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(stream, "PNG")
        members[name] = stream.getvalue()
    zipped(tmp_path / "pets.zip", members)
    result = index(toy.train_run(tmp_path, archive=str(tmp_path / "pets.zip")), LocalEngine())
    rows = entries(result)
    assert {name: row["label"] for name, row in rows.items()} == {
        "cats/a.png": ["cats"],
        "cats/b.png": ["cats"],
        "dogs/c.png": ["dogs"],
    }
    seen = inspect(str(tmp_path / "pets.zip")).facts
    assert (seen["files"], seen["other_files"]) == (3, {"picture": 3})


def test_spoilt_members_and_containers_are_rows_beside_the_others(archive):
    folder = archive / "archive"
    zipped(folder / "bad.zip", {"good.dcm": image(30), "inner.zip": b"PK", "text.dcm": b"no image"})
    (folder / "cut.tar.gz").write_bytes((folder / "g.tar.gz").read_bytes()[:-40])
    (folder / "no.zip").write_bytes(b"this is no zip")
    (folder / "none.zip").write_bytes(b"")
    (folder / "cut.dcm.gz").write_bytes((folder / "11.dcm.gz").read_bytes()[:-20])
    result = index(toy.train_run(archive), LocalEngine(), failed=True)
    assert {row["path"]: row["reason"] for row in result.failed_entries or ()} == {
        "bad.zip/inner.zip": "refused_member",
        "bad.zip/text.dcm": "unrecognised_format",
        "cut.tar.gz": "truncated",
        "no.zip": "corrupt",
        "none.zip": "empty_file",
        "cut.dcm.gz": "truncated",
    }
    assert result.entries == 12 + 1 + 6


def test_a_member_that_is_replaced_after_the_index_is_not_scored_under_the_old_fingerprint(archive, monkeypatch):
    bundles.save(toy.bundle(), str(archive / "bundle"))
    from medray.verbs import score as verb

    real = verb.index_archive

    def and_replace(*args, **options):
        found = real(*args, **options)
        zipped(archive / "archive" / "z.zip", {"head/2.dcm": image(3), "head/3.dcm": image(2), "head/4.dcm": image(4)})
        return found

    monkeypatch.setattr(verb, "index_archive", and_replace)
    result = score(toy.score_run(archive), LocalEngine())
    assert (result.scored, result.failed) == (9, 3)
    reasons = {
        uid("toy", 2, "image"): "changed",
        uid("toy", 3, "image"): "changed",
        uid("toy", 5, "image"): "missing_file",
    }
    assert toy.failures(archive / "scores") == reasons


# --- DICOMDIR -------------------------------------------------------------------------------------------------


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    """A medium as pydicom writes it: a DICOMDIR that names five images, and a file that it does not name."""
    made = FileSet()
    for number in range(5):
        one = dcmread(io.BytesIO(image(number)))
        one.StudyDate, one.StudyTime, one.StudyID, one.SeriesNumber = "20260101", "101010", "1", 1
        one.PatientName = "toy"
        made.add(one)
    made.write(tmp_path / "archive")
    made._stage["t"].cleanup()  # its finalizer would warn
    toy.write_image(tmp_path / "archive" / "UNNAMED", 9, 1)
    return tmp_path


def test_a_dicomdir_is_an_archive_of_the_files_that_it_names(medium):
    root = medium / "archive"
    run = toy.train_run(medium, archive=str(root / "DICOMDIR"))
    result = index(run, LocalEngine())
    assert set(entries(result)) == images(*range(5))
    assert {row["path"] for row in index(run, LocalEngine(), failed=True).failed_entries or ()} == set()
    assert index(run, LocalEngine()).scanned == 0
    whole = index(toy.train_run(medium, work=str(medium / "w2")), LocalEngine())
    assert set(entries(whole)) == images(*range(5), 9)


def test_a_file_that_a_dicomdir_names_and_that_is_not_there_is_a_missing_file(medium):
    root = medium / "archive"
    names = sorted(path for path in root.rglob("*") if path.is_file() and path.name not in ("DICOMDIR", "UNNAMED"))
    names[0].unlink()
    names[1].rename(names[1].with_name(names[1].name.lower()))  # as systems show a CD
    run = toy.train_run(medium, archive=str(root / "DICOMDIR"))
    result = index(run, LocalEngine(), failed=True)
    assert [(row["path"], row["reason"]) for row in result.failed_entries or ()] == [
        (names[0].relative_to(root).as_posix(), "missing_file")
    ]
    assert result.entries == 5
    (root / "DICOMDIR").write_bytes(image(0))
    with pytest.raises(ArchiveError, match="no DICOMDIR"):
        index(run, LocalEngine())


def test_a_medium_in_a_zip_is_read_by_its_dicomdir_too(medium):
    root = medium / "archive"
    zipped(
        medium / "cd.zip",
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()},
    )
    result = index(toy.train_run(medium, archive=f"{medium / 'cd.zip'}!/DICOMDIR"), LocalEngine())
    assert set(entries(result)) == images(*range(5))


def test_pydicoms_own_dicomdir_is_read():
    path = str(get_testdata_file("DICOMDIR"))
    named = {file.uri for file in files.archive_files(path)}
    assert len(named) == 31 and all(file.size for file in files.archive_files(path))


# --- several places -------------------------------------------------------------------------------------------


def test_a_patient_of_several_archives_is_one_subject_and_a_series_in_two_is_one_volume(tmp_path):
    def slices(*numbers: int) -> dict[str, bytes]:
        return {
            f"{number}.dcm": write_dicom(
                toy.pixels(number, 0), patient_id="P1", study_uid=uid("study"), series_uid=uid("series"),
                instance_uid=uid("slice", number), instance_number=number, modality="CT", spacing_mm=(1.0, 1.0),
                position_mm=(0.0, 0.0, 2.0 * number),
            )
            for number in numbers
        }  # fmt: skip

    zipped(tmp_path / "one.zip", slices(0, 2, 4))
    for name, data in slices(1, 3, 5).items():
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / name).write_bytes(data)
    toy.write_image(tmp_path / "two" / "other.dcm", 9, 1, subject="P1")
    modality = {"kind": "imaging", "size": [6, 16, 16]}
    run = toy.train_run(tmp_path, archive=[str(tmp_path / "one.zip"), str(tmp_path / "two")], modality=modality)
    result = index(run, LocalEngine())
    rows = entries(result)
    assert (result.entries, result.subjects, result.failed) == (2, 1, 0)
    assert len(rows[uid("series")]["parts"]) == 6
    assert index(run, LocalEngine()).scanned == 0
    shutil.rmtree(tmp_path / "two")
    (tmp_path / "two").mkdir()
    with pytest.raises(ArchiveAway, match="one of the archives holds no files"):
        index(run, LocalEngine())
    assert files.is_away(run.root)


def test_pictures_of_one_path_in_two_archives_are_two_entries_with_the_labels_of_their_folders(tmp_path):
    from PIL import Image

    for place, name, value in (("a/x", "cats/1.png", 1), ("b/x", "cats/1.png", 2), ("b/x", "dogs/1.png", 3)):
        path = tmp_path / place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)
    (tmp_path / "labels.csv").write_text("file,diagnosis\na/x/cats/1.png,upper\nb/x/cats/1.png,lower\n")
    run = toy.train_run(tmp_path, archive=[str(tmp_path / "a" / "x"), str(tmp_path / "b" / "x")])
    result = index(run, LocalEngine())
    found = {name: row["label"] for name, row in entries(result).items()}
    assert found == {"a/x/cats/1.png": ["cats"], "b/x/cats/1.png": ["cats"], "b/x/dogs/1.png": ["dogs"]}
    (tmp_path / "a" / "x" / "cats" / "1.png").write_bytes(b"no picture")
    broken = index(run, LocalEngine(), failed=True)
    assert [row["path"] for row in broken.failed_entries or ()] == ["a/x/cats/1.png"]
    settings = LabelSettings(table=str(tmp_path / "labels.csv"), key="file", columns=("diagnosis",))
    table, _ = apply_labels(Manifest.open(result.manifest).table(), settings, root=run.root, pseudonym_key=b"k" * 32)
    labels = {row["entry_id"]: row["label"] for row in table.to_pylist()}
    assert labels["a/x/cats/1.png"] == ["upper"] and labels["b/x/cats/1.png"] == ["lower"]


def test_labels_name_members_by_path(tmp_path):
    zipped(tmp_path / "archive" / "z.zip", {f"{i}.dcm": image(i) for i in range(3)})
    (tmp_path / "labels.csv").write_text(
        f"file,diagnosis\nz.zip/0.dcm,upper\n{tmp_path}/archive/z.zip!/1.dcm,lower\n./z.zip/2.dcm,lower\n"
    )
    run = toy.train_run(tmp_path)
    rows = Manifest.open(index(run, LocalEngine()).manifest).table()
    settings = LabelSettings(table=str(tmp_path / "labels.csv"), key="file", columns=("diagnosis",))
    table, _ = apply_labels(rows, settings, root=run.root, pseudonym_key=b"k" * 32)
    labels = {row["entry_id"]: row["label"] for row in table.to_pylist()}
    assert labels == {
        uid("toy", 0, "image"): ["upper"],
        uid("toy", 1, "image"): ["lower"],
        uid("toy", 2, "image"): ["lower"],
    }


def test_archives_inside_each_other_and_several_of_health_records_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one lies in the other"):
        toy.train_run(tmp_path, archive=[str(tmp_path), str(tmp_path / "a")])
    with pytest.raises(ValueError, match="one lies in the other"):
        toy.train_run(tmp_path, archive=[str(tmp_path / "a"), str(tmp_path / "a")])
    run = toy.train_run(
        tmp_path, archive=[str(tmp_path / "a"), str(tmp_path / "b")], modality={"kind": "ehr", "window": "48h"}
    )
    with pytest.raises(UserError, match="one archive at a time"):
        index(run, LocalEngine())


def test_predict_and_inspect_take_a_zip_and_a_member(tmp_path):
    zipped(tmp_path / "z.zip", {f"head/{i}.dcm": image(i) for i in range(3)})
    uri = str(tmp_path / "z.zip")
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    bundle = Bundle.load(tmp_path / "bundle")
    table = bundle.predict(uri)
    assert set(table.column("entry_id").to_pylist()) == images(0, 1, 2)
    assert len(bundle.predict(f"{uri}!/head/1.dcm")) == 1
    assert inspect(f"{uri}!/head/1.dcm").facts["format"] == "dicom" and inspect(uri).facts["series"] == 3
