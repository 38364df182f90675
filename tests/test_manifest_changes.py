"""The manifest as a change table: what a night adds to it, and that it is what an index from scratch would make."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import toy
from PIL import Image

from medray.archive import changes
from medray.archive import manifest as manifest_table
from medray.archive.manifest import CHANGES, Manifest, changes_of, read_state
from medray.engines.local import LocalEngine
from medray.errors import ArchiveError
from medray.flows.flow import Receipt
from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom
from medray.progress import Silent
from medray.scores import GIVEN, ScoreStore
from medray.storage import files, row_files
from medray.verbs import index as verb
from medray.verbs.index import index_archive
from medray.verbs.results import IndexResult

PICTURES: dict[str, Any] = {"kind": "imaging", "size": [4, 4]}
SERIES: dict[str, Any] = {"kind": "imaging", "size": [2, 4, 4]}


def night(folder: Path, modality: dict[str, Any] = PICTURES, work: str = "work") -> tuple[Manifest, IndexResult]:
    run = toy.train_run(folder, modality=modality, labels={}, work=str(folder / work))
    return index_archive(run, run.modality, LocalEngine(), Silent())


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)
    return path


def dicom_slice(path: Path, series: int, number: int, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        write_dicom(
            np.full((4, 4), value, np.uint8),
            patient_id=f"S{series}",
            study_uid=uid("changes", series, "study"),
            series_uid=uid("changes", series),
            instance_uid=uid("changes", series, number),
        )
    )
    return path


def write_idx(folder: Path, which: str, value: int) -> None:
    """The images or the labels of an idx array of two entries."""
    shape = (2, 4, 4) if which == "images" else (2,)
    raw = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    file = folder / f"train-{which}-idx{len(shape)}-ubyte.gz"
    file.write_bytes(gzip.compress(raw + np.full(shape, value, np.uint8).tobytes(), mtime=0))


def kinds(result: IndexResult) -> tuple[int, int, int]:
    return result.new, result.changed, result.vanished


def history(manifest: Manifest) -> list[tuple[str, str]]:
    """(entry id, change) of all rows on disk that a compaction would keep."""
    rows = changes_of(manifest.uri, read_state(manifest.uri)).scan(["entry_id", "change"]).read_all()
    return sorted(zip(rows["entry_id"].to_pylist(), rows["change"].to_pylist(), strict=True))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for number in range(5):
        picture(tmp_path / "archive" / f"{number % 2}" / f"{number}.png", number)
    return tmp_path


# --- one night ------------------------------------------------------------------------------------------------


def test_the_first_index_finds_every_entry_new_and_the_same_again_finds_nothing(archive: Path):
    manifest, first = night(archive)
    assert (kinds(first), first.entries, first.scanned) == ((5, 0, 0), 5, 5)
    state = Path(manifest.uri, "state.json").read_bytes()
    listed = sorted(os.listdir(manifest.uri))
    again, second = night(archive)
    assert (kinds(second), second.entries, second.scanned) == ((0, 0, 0), 5, 0)
    assert again.table().equals(manifest.table())
    assert Path(manifest.uri, "state.json").read_bytes() == state
    assert sorted(os.listdir(manifest.uri)) == listed  # a night without change leaves nothing behind


def test_a_night_adds_rows_for_what_is_new_changed_and_vanished_alone(archive: Path):
    night(archive)
    picture(archive / "archive" / "new.png", 9)
    os.utime(picture(archive / "archive" / "1" / "1.png", 77), ns=(0, 5))
    (archive / "archive" / "0" / "0.png").unlink()
    manifest, result = night(archive)
    assert (kinds(result), result.entries, result.scanned) == ((1, 1, 1), 5, 2)
    assert history(manifest) == [
        ("0/0.png", "vanished"),
        ("0/2.png", "new"),
        ("0/4.png", "new"),
        ("1/1.png", "changed"),
        ("1/3.png", "new"),
        ("new.png", "new"),
    ]
    assert manifest.table()["entry_id"].to_pylist() == ["0/2.png", "0/4.png", "1/1.png", "1/3.png", "new.png"]


def test_an_entry_that_comes_back_is_new_again(archive: Path):
    file = archive / "archive" / "0" / "0.png"
    before = night(archive)[0].table()
    kept = file.read_bytes()
    file.unlink()
    assert kinds(night(archive)[1]) == (0, 0, 1)
    file.write_bytes(kept)
    manifest, result = night(archive)
    assert kinds(result) == (1, 0, 0)
    assert manifest.table(["entry_id", "fingerprint"]).equals(before.select(["entry_id", "fingerprint"]))
    assert ("0/0.png", "vanished") not in history(manifest)


def test_a_touched_file_is_opened_and_its_entry_keeps_its_fingerprint(archive: Path):
    before = night(archive)[0].table(["entry_id", "fingerprint"])
    os.utime(archive / "archive" / "0" / "2.png", ns=(0, 5_000))
    manifest, result = night(archive)
    assert (kinds(result), result.scanned) == ((0, 0, 0), 1)
    assert manifest.table(["entry_id", "fingerprint"]).equals(before)
    assert ("0/2.png", "updated") in history(manifest)
    assert min(manifest.table(["modified_ns"])["modified_ns"].to_pylist()) == 5_000


def test_a_renamed_folder_of_series_changes_no_fingerprint_and_its_entries_lie_at_the_new_place(tmp_path: Path):
    for number in range(3):
        dicom_slice(tmp_path / "archive" / "a" / f"{number}.dcm", 1, number, number)
    before = night(tmp_path, SERIES)[0].table()
    (tmp_path / "archive" / "a").rename(tmp_path / "archive" / "b")
    manifest, result = night(tmp_path, SERIES)
    assert kinds(result) == (0, 0, 0)
    after = manifest.table()
    assert after["fingerprint"].equals(before["fingerprint"])
    assert {Path(part["uri"]).parent.name for part in after["parts"][0].as_py()} == {"b"}
    assert all(Path(part["uri"]).exists() for part in after["parts"][0].as_py())


def test_a_late_slice_changes_its_series_and_no_other(tmp_path: Path):
    for series in range(2):
        for number in range(2):
            dicom_slice(tmp_path / "archive" / f"{series}" / f"{number}.dcm", series, number, number)
    before = {row["entry_id"]: row["fingerprint"] for row in night(tmp_path, SERIES)[0].table().to_pylist()}
    dicom_slice(tmp_path / "archive" / "late.dcm", 1, 2, 2)
    manifest, result = night(tmp_path, SERIES)
    after = {row["entry_id"]: row for row in manifest.table().to_pylist()}
    assert (kinds(result), result.scanned, result.entries) == ((0, 1, 0), 1, 2)
    [changed] = [entry for entry, row in after.items() if row["fingerprint"] != before[entry]]
    assert len(after[changed]["parts"]) == 3


def test_other_settings_open_everything_again_and_change_only_what_is_other(archive: Path):
    night(archive)
    (archive / "archive" / "0" / "4.png").unlink()
    run = toy.train_run(archive, modality={**PICTURES, "ignore": ["3.png"]}, labels={})
    _, result = index_archive(run, run.modality, LocalEngine(), Silent())
    assert (kinds(result), result.scanned, result.entries) == ((0, 0, 2), 4, 3)


def test_the_counts_are_those_of_the_current_entries(archive: Path):
    (archive / "archive" / "empty.png").touch()
    (archive / "archive" / "text.png").write_text("no picture")
    picture(archive / "archive" / "gone.png", 1)
    night(archive)
    (archive / "archive" / "gone.png").unlink()
    manifest, result = night(archive)
    table = manifest.table()
    assert (len(manifest), result.entries, result.failed, result.subjects) == (7, 7, 2, 5)
    assert result.by_reason == {"empty_file": 1, "unrecognised_format": 1}
    assert (
        result.bytes
        == sum(table["bytes"].to_pylist())
        == sum(file.stat().st_size for file in (archive / "archive").rglob("*.png"))
    )


def test_the_columns_on_disk_are_those_documented(archive: Path):
    import pyarrow.parquet as pq

    manifest, _ = night(archive)
    state = read_state(manifest.uri)
    assert state is not None
    [file] = state.entries
    table = pq.read_table(Path(manifest.uri, file.name))
    assert table.schema.names == CHANGES.names
    assert all(field.metadata[b"comment"] for field in table.schema)
    keys = {(row["key_hi"], row["key_lo"]) for row in table.to_pylist()}
    assert len(keys) == 5
    start = datetime.now(UTC) - timedelta(minutes=5)
    assert all(start < row["seen_at"] <= datetime.now(UTC) for row in table.to_pylist())


# --- kills ----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands in for the end of the process: nothing catches it."""


@pytest.mark.parametrize("write", range(8))
def test_an_index_killed_between_two_writes_leaves_the_last_state_and_the_next_goes_on(
    archive: Path, monkeypatch: pytest.MonkeyPatch, write: int
):
    before = night(archive)[0].table()
    os.utime(picture(archive / "archive" / "0" / "0.png", 99), ns=(0, 5))
    picture(archive / "archive" / "new.png", 9)
    (archive / "archive" / "1" / "1.png").unlink()
    done = 0

    def dying(real):
        def wrapped(*args: Any):
            nonlocal done
            done += 1
            if done > write:
                raise Killed
            return real(*args)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(files, "new_file", dying(files.new_file))
        patch.setattr(files, "write_bytes", dying(files.write_bytes))
        try:
            night(archive)
        except Killed:
            assert Manifest.open(str(archive / "work" / "manifest")).table().equals(before)
        else:
            pytest.skip("there are fewer writes than that")
    manifest, result = night(archive)
    assert kinds(result) == (1, 1, 1)
    assert manifest.table().equals(night(archive, work="fresh")[0].table())


def test_a_state_whose_files_are_gone_is_made_again(archive: Path):
    manifest, _ = night(archive)
    expected = manifest.table()
    next(Path(manifest.uri).glob("parts-*")).unlink()
    with pytest.raises(ArchiveError, match="not whole"):
        Manifest.open(manifest.uri)
    with pytest.raises(ArchiveError, match="no manifest here"):
        Manifest.open(str(archive / "elsewhere"))
    manifest, result = night(archive)
    assert (result.scanned, kinds(result)) == (5, (5, 0, 0))
    assert manifest.table().equals(expected)


def test_whoever_opened_the_manifest_before_can_read_on_and_what_nobody_names_goes_after_a_day(
    archive: Path, monkeypatch: pytest.MonkeyPatch
):
    before, _ = night(archive)
    left = Path(before.uri, "parts-of-a-killed-run.parquet")
    left.touch()
    os.utime(left, ns=(0, 0))
    picture(archive / "archive" / "new.png", 9)
    after, _ = night(archive)
    assert (before.table().num_rows, after.table().num_rows) == (5, 6)
    assert not left.exists()
    monkeypatch.setattr(manifest_table, "KEPT", timedelta(0))
    for value in (1, 2):
        picture(archive / "archive" / f"newer{value}.png", value)
        last, _ = night(archive)
    state = read_state(last.uri)
    assert state is not None
    named = {"state.json", *state.names, *state.retired}
    assert set(os.listdir(last.uri)) == named
    assert len(state.retired) == 1  # the listing of the night before: retired in this one


# --- any sequence of changes ----------------------------------------------------------------------------------


def change(archive: Path, rng: random.Random, step: int) -> None:
    """One change to an archive of pictures, slices and idx arrays with labels beside them."""
    found = sorted(path for path in archive.rglob("*/*") if path.is_file())
    folders = sorted(path for path in archive.iterdir() if path.is_dir())
    kind = rng.choice(
        ["picture", "slice", "slice", "copy", "edit", "touch", "delete", "rename", "folder", "junk", "idx", "idx"]
    )
    file = rng.choice(found) if found else archive / "none"
    folder = rng.choice(folders)
    if kind == "picture":
        picture(folder / f"p{step}.png", rng.randrange(5))
    elif kind == "slice":
        dicom_slice(folder / f"s{step}.dcm", rng.randrange(3), rng.randrange(4), rng.randrange(2))
    elif kind == "idx":
        write_idx(folder, rng.choice(["images", "labels"]), rng.randrange(3))
    elif kind == "junk":
        (folder / f"j{step}.txt").write_text("notes")
    elif not found:
        return
    elif kind == "copy":
        shutil.copy(file, folder / f"c{step}{file.suffix}")
    elif kind == "edit":
        file.write_bytes(file.read_bytes()[:-1] + bytes([rng.randrange(256)]))
    elif kind == "delete":
        file.unlink()
    elif kind == "rename":
        file.rename(folder / f"r{step}{file.suffix}")
    elif kind == "folder":
        folder.rename(archive / f"f{step}")
    if file.exists() and kind in ("edit", "touch"):
        os.utime(file, ns=(0, step * 1_000))


@pytest.mark.parametrize("seed", range(2))
def test_after_any_sequence_of_changes_the_manifest_is_that_of_an_index_from_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
):
    monkeypatch.setattr(row_files, "SMALL_FILES", 3)  # compactions, and pieces of a few rows
    monkeypatch.setattr(row_files, "GROUP_ROWS", 4)
    monkeypatch.setattr(changes, "PIECE_PARTS", 3)
    monkeypatch.setattr(verb, "ROUND_FILES", 4)
    walk(tmp_path, (SERIES, PICTURES)[seed % 2], seed, nights=10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_after_many_sequences_of_changes_the_manifest_is_that_of_an_index_from_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
):
    monkeypatch.setattr(row_files, "SMALL_FILES", 2 + seed % 4)
    monkeypatch.setattr(row_files, "GROUP_ROWS", 2 + seed % 5)
    monkeypatch.setattr(changes, "PIECE_PARTS", 1 + seed % 7)
    walk(tmp_path, (SERIES, PICTURES)[seed % 2], seed, nights=40)


def walk(folder: Path, modality: dict[str, Any], seed: int, nights: int) -> None:
    """Nights of some changes each, each compared with an index from scratch and with the counts of the one before."""
    rng = random.Random(seed)
    archive = folder / "archive"
    for name in "abc":
        (archive / name).mkdir(parents=True)
    picture(archive / "stays.png", 1)
    columns = [name for name in CHANGES.names if name not in ("change", "seen_at")]
    before = {}
    for number in range(nights):
        for step in range(rng.randrange(1, 6)):
            change(archive, rng, 100 * number + step + 1)
        manifest, result = night(folder, modality)
        shutil.rmtree(folder / "fresh", ignore_errors=True)
        fresh, facts = night(folder, modality, work="fresh")
        table = manifest.table(columns)
        assert table.equals(fresh.table(columns)), f"night {number}"
        assert manifest.counts == fresh.counts
        assert result.files == facts.files
        rows = dict(zip(table["entry_id"].to_pylist(), table["fingerprint"].to_pylist(), strict=True))
        changed = [entry for entry in rows if entry in before and rows[entry] != before[entry]]
        assert kinds(result) == (len(rows.keys() - before.keys()), len(changed), len(before.keys() - rows.keys()))
        before = rows


# --- the table itself -----------------------------------------------------------------------------------------


def test_the_numbers_of_keys_are_what_take_takes(archive: Path):
    night(archive)
    (archive / "archive" / "0" / "0.png").unlink()
    picture(archive / "archive" / "new.png", 9)
    manifest, _ = night(archive)
    keys = manifest.keys().read_all()
    assert len(keys) == 5
    number = keys["row"].to_pylist()
    assert manifest.take(np.array(number[::-1])).equals(manifest.table())
    [row] = manifest.take(np.array(number[:1])).to_pylist()
    assert row in manifest.table().to_pylist()
    assert len(manifest.take(np.array([], np.int64))) == 0


def test_of_a_manifest_on_disk_only_what_is_pending_comes_into_memory(archive: Path):
    store = ScoreStore.open(str(archive / "scores"), create=True)
    manifest, _ = night(archive)
    everything = manifest.table()
    assert store.pending(manifest, "b1").equals(everything)
    done = everything.slice(0, 4)
    given = {f.name: pa.nulls(4, f.type) for f in GIVEN} | {n: done[n] for n in ("entry_id", "subject_id")}
    given |= {"sample_id": done["entry_id"], "fingerprint": done["fingerprint"].cast(pa.binary())}
    sink = store.sink(store.claim("b1"))
    sink.commit([Receipt(4, 0, payload=sink.write(pa.table(given).to_batches()))])
    assert store.pending(manifest, "b1").equals(everything.slice(4))
    (archive / "archive" / "0" / "0.png").unlink()
    os.utime(archive / "archive" / "0" / "2.png", ns=(0, 5))
    picture(archive / "archive" / "new.png", 9)
    manifest, _ = night(archive)
    pending = store.pending(manifest, "b1")
    assert pending["entry_id"].to_pylist() == ["1/3.png", "new.png"]
    assert pending.equals(store.pending(manifest.table(), "b1"))
    (archive / "archive" / "1" / "3.png").unlink()
    (archive / "archive" / "new.png").unlink()
    assert len(store.pending(night(archive)[0], "b1")) == 0


def test_rows_are_equal_only_when_all_their_values_and_lists_are():
    one = pa.table({"a": [1, None, 3, None, 5], "b": [["x"], [], None, ["y", None], ["z"]]})
    two = pa.table({"a": [1, None, 3, 4, 5], "b": [["x"], [], [], ["y", None], ["z", "z"]]})
    assert changes.same(one, two, ["a"]).tolist() == [True, True, True, False, True]
    assert changes.same(one, two, ["b"]).tolist() == [True, True, False, True, False]
    assert changes.same(one.slice(0, 0), two.slice(0, 0), ["a", "b"]).tolist() == []
