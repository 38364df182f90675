"""Index: what is opened again and what is not, what vanishes, what cannot be read."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import toy

from medray.archive import listing
from medray.archive.manifest import Manifest
from medray.engines.local import LocalEngine
from medray.engines.spec import RaySpec
from medray.errors import ArchiveError, UserError
from medray.learning import bundles
from medray.verbs import index as verb
from medray.verbs.index import index


@pytest.fixture
def archive(tmp_path):
    for number in range(6):
        toy.write_image(tmp_path / "archive" / f"{number}.dcm", number, number % 2)
    return tmp_path


def rows(result) -> list[dict]:
    return Manifest.open(result.manifest).table().to_pylist()


def paths(result) -> set[str]:
    return {Path(part["uri"]).name for row in rows(result) for part in row["parts"]}


# --- the same archive again -----------------------------------------------------------------------------------


def test_files_that_have_not_changed_are_not_opened_again(archive):
    run = toy.train_run(archive)
    first = index(run, LocalEngine())
    assert (first.entries, first.subjects, first.files, first.scanned, first.failed) == (6, 6, 6, 6, 0)
    assert first.bytes == sum(file.stat().st_size for file in (archive / "archive").iterdir())
    again = index(run, LocalEngine())
    assert (again.entries, again.scanned) == (6, 0)
    assert rows(again) == rows(first)


@pytest.mark.parametrize("key", ["work", "bundle", "store"])
def test_what_medray_writes_may_not_lie_in_the_archive(archive, key):
    bundles.save(toy.bundle(), str(archive / "bundle"))
    make = toy.train_run if key == "bundle" else toy.score_run
    run = make(archive, **{"archive": str(archive / "archive"), key: str(archive / "archive" / "x")})
    with pytest.raises(UserError, match=f"the {key} lies inside the archive"):
        index(run, LocalEngine())
    beside = toy.score_run(archive, archive=str(archive / "archive"), work=str(archive / "archive-work"))
    assert index(beside, LocalEngine()).entries == 6


def test_a_changed_file_and_a_new_one_are_opened(archive):
    run = toy.train_run(archive)
    before = {row["entry_id"]: row["fingerprint"] for row in rows(index(run, LocalEngine()))}
    toy.write_image(archive / "archive" / "6.dcm", 6, 0)
    file = archive / "archive" / "2.dcm"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    os.utime(file, ns=(0, 5))
    result = index(run, LocalEngine())
    after = {row["entry_id"]: row["fingerprint"] for row in rows(result)}
    assert (result.entries, result.scanned) == (7, 2)
    assert sum(after[entry] != print_ for entry, print_ in before.items()) == 1


def test_a_file_that_vanished_vanishes_from_the_manifest(archive):
    run = toy.train_run(archive)
    index(run, LocalEngine())
    (archive / "archive" / "2.dcm").unlink()
    (archive / "archive" / "3.dcm").rename(archive / "archive" / "moved.dcm")
    result = index(run, LocalEngine())
    assert (result.entries, result.files, result.scanned) == (5, 5, 1)
    assert paths(result) == {"0.dcm", "1.dcm", "4.dcm", "5.dcm", "moved.dcm"}


def test_other_settings_or_another_key_open_everything_again(archive, tmp_path):
    run = toy.train_run(archive)
    before = {row["subject_id"] for row in rows(index(run, LocalEngine()))}
    other = toy.train_run(archive, modality={"kind": "imaging", "size": [8, 8]})
    assert index(other, LocalEngine()).scanned == 6
    (tmp_path / "key").write_text("a key of at least 32 characters, for this test\n")
    keyed = index(toy.train_run(archive, pseudonym_key=str(tmp_path / "key")), LocalEngine())
    assert keyed.scanned == 6
    assert before.isdisjoint(row["subject_id"] for row in rows(keyed))


def test_no_identifier_of_a_patient_is_in_what_is_written(archive):
    result = index(toy.train_run(archive), LocalEngine())
    for file in Path(result.manifest).parent.rglob("*"):
        assert b"S0003" not in (file.read_bytes() if file.is_file() else b""), file


# --- files that belong to others ------------------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    lengths = struct.pack(f">{values.ndim}I", *values.shape)
    return gzip.compress(bytes([0, 0, 8, values.ndim]) + lengths + values.astype(np.uint8).tobytes(), mtime=0)


def write_idx(folder: Path, labels: list[int]) -> None:
    folder.mkdir(exist_ok=True)
    pixels = np.stack([toy.pixels(i, 0) for i in range(len(labels))])
    (folder / "train-images-idx3-ubyte.gz").write_bytes(idx(pixels))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(idx(np.array(labels)))


def labels(result) -> list[list[str] | None]:
    return [row["label"] for row in sorted(rows(result), key=lambda row: row["parts"][0]["locator"])]


def test_a_changed_labels_file_makes_its_images_be_read_again(tmp_path):
    write_idx(tmp_path / "archive", [3, 1, 4])
    run = toy.train_run(tmp_path, labels={})
    first = index(run, LocalEngine())
    assert (first.entries, first.files, labels(first)) == (3, 2, [["3"], ["1"], ["4"]])
    assert index(run, LocalEngine()).scanned == 0
    file = tmp_path / "archive" / "train-labels-idx1-ubyte.gz"
    file.write_bytes(idx(np.array([3, 5, 4])))
    os.utime(file, ns=(0, 5))
    changed = index(run, LocalEngine())
    assert (changed.scanned, labels(changed)) == (2, [["3"], ["5"], ["4"]])


def test_a_labels_file_that_came_or_went_makes_its_images_be_read_again(tmp_path):
    write_idx(tmp_path / "archive", [3, 1, 4])
    file = tmp_path / "archive" / "train-labels-idx1-ubyte.gz"
    kept = file.read_bytes()
    file.unlink()
    run = toy.train_run(tmp_path, labels={})
    assert labels(index(run, LocalEngine())) == [None, None, None]
    file.write_bytes(kept)
    assert labels(index(run, LocalEngine())) == [["3"], ["1"], ["4"]]
    file.unlink()
    assert labels(index(run, LocalEngine())) == [None, None, None]


# --- what cannot be read --------------------------------------------------------------------------------------


def test_a_link_that_leads_nowhere_is_a_failed_entry_until_it_leads_somewhere(archive):
    (archive / "archive" / "late.dcm").symlink_to(archive / "late.dcm")
    run = toy.train_run(archive)
    first = index(run, LocalEngine())
    assert (first.entries, first.failed, first.by_reason) == (7, 1, {"missing_file": 1})
    assert (first.exit_code(0.1), first.exit_code(0.2)) == (3, 0)
    again = index(run, LocalEngine())
    assert (again.scanned, again.failed) == (1, 1)  # what storage refused is tried each time
    toy.write_image(archive / "late.dcm", 9, 1)
    repaired = index(run, LocalEngine())
    assert (repaired.entries, repaired.failed, repaired.scanned) == (7, 0, 1)


def test_a_folder_that_is_not_there_says_so(tmp_path):
    with pytest.raises(ArchiveError, match="the archive does not exist"):
        index(toy.train_run(tmp_path), LocalEngine())


def test_a_folder_without_files_says_so(tmp_path):
    (tmp_path / "archive").mkdir()
    with pytest.raises(ArchiveError, match="holds no files"):
        index(toy.train_run(tmp_path), LocalEngine())


def test_a_folder_with_nothing_but_ignored_files_says_so(tmp_path):
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "Thumbs.db").touch()
    with pytest.raises(ArchiveError, match="holds no data that this modality reads"):
        index(toy.train_run(tmp_path), LocalEngine())


# --- engines and bundles --------------------------------------------------------------------------------------


def test_an_index_on_ray_is_that_of_the_local_engine(archive, monkeypatch, ray_session):
    from medray.engines.ray.engine import RayEngine

    (archive / "archive" / "text.dcm").write_text("no image")
    local = index(toy.train_run(archive, work=str(archive / "local")), LocalEngine())
    monkeypatch.setattr(verb, "SMALL_FILES", 0)
    ray = index(toy.train_run(archive, work=str(archive / "ray")), RayEngine(RaySpec(workers=2)))
    assert rows(ray) == rows(local)
    changes = {"manifest": "", "seconds": 0.0}
    assert ray.model_copy(update=changes) == local.model_copy(update=changes)


def test_a_score_run_reads_as_its_bundle_does(archive):
    bundles.save(toy.bundle(), str(archive / "bundle"))
    result = index(toy.score_run(archive), LocalEngine())
    assert (result.entries, result.failed) == (6, 0)


def test_what_writing_a_listing_raises_ends_the_index_and_leaves_no_half_file(archive, monkeypatch):
    """It is written in a thread of its own."""
    run, folder = toy.train_run(archive), archive / "work" / "manifest"

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(listing, "_keyed", full)
        with pytest.raises(OSError, match="No space left"):
            index(run, LocalEngine())
    assert not list(folder.glob("files-*"))
    assert index(run, LocalEngine()).scanned == 6
