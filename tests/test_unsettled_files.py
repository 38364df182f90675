"""From night to night: what changed behind the same size and time, what storage did not give, what was half written, and what
is read beside a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import toy
from changing_files import FORMATS, REFERENCE, change, one_slice, vcf, write

import medray.modalities.imaging.modality as image_reader
import medray.modalities.imaging.scan as image_scan
from medray.archive.manifest import Manifest
from medray.config.runs import TrainRun
from medray.engines.local import LocalEngine
from medray.errors import ArchiveAway, ArchiveError, MachineError
from medray.learning import bundles
from medray.progress import Silent
from medray.scores import ScoreStore
from medray.storage import files
from medray.verbs import index as index_module
from medray.verbs.index import index
from medray.verbs.inspect import inspect
from medray.verbs.prepare import prepare
from medray.verbs.results import IndexResult, ScoreResult
from medray.verbs.score import score


def indexed(folder: Path, **settings: Any) -> IndexResult:
    run = TrainRun.model_validate(
        {
            "name": "nights",
            "archive": str(folder / "archive"),
            "bundle": str(folder / "bundle"),
            "work": str(folder / "work"),
            "engine": {"kind": "local"},
            "model": {"kind": "cnn", "channels": [4]},
            "objective": {"kind": "binary", "positive": "x"},
            "modality": {"kind": "imaging", "size": [8, 8]},
        }
        | settings
    )
    return index(run, LocalEngine())


def entries(result: IndexResult) -> dict[str, dict[str, Any]]:
    return {row["entry_id"]: row for row in Manifest.open(result.manifest).table().to_pylist()}


class Notes(Silent):
    """What a run tells."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.facts: list[tuple[str, dict[str, object]]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def fact(self, event: str, level: str = "info", /, **facts: object) -> None:
        self.facts.append((event, facts))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Eight images, and the toy bundle."""
    for number in range(8):
        toy.write_image(tmp_path / "archive" / str(number % 2) / f"{number}.dcm", number, number % 2)
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    return tmp_path


def night(folder: Path, progress: Silent | None = None, **changes: Any) -> ScoreResult:
    return score(toy.score_run(folder, **changes), LocalEngine(), progress)


def refusing(refused: Callable[[str], bool], number: int = errno.EIO, read: Callable[[str], Any] = files.read_bytes):
    """A reader of files to which storage does not give some."""

    def reader(uri: str):
        if refused(uri):
            raise OSError(number, os.strerror(number), uri)
        return read(uri)

    return reader


# --- the same size, the same time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["picture", "npz", "picture in zip", "series", "windows", "vcf in bgzip", "meds"])
def test_other_content_of_the_same_size_and_time_is_found_the_next_night(name: str, tmp_path: Path) -> None:
    form, root = FORMATS[name], tmp_path / "archive"
    write(tmp_path, form.beside)
    write(root, form.files(0))
    modality = form.spec(tmp_path).model_dump(mode="json")
    before = entries(indexed(tmp_path, modality=modality))
    assert indexed(tmp_path, modality=modality).scanned == 0
    change(root, form.files(0), form.files(1), "replaced", keep_time=True)
    again = indexed(tmp_path, modality=modality)
    assert again.scanned and (again.changed or again.new)
    after = entries(again)
    assert {row["fingerprint"] for row in before.values()}.isdisjoint(row["fingerprint"] for row in after.values())
    assert indexed(tmp_path, modality=modality).scanned == 0


def test_an_archive_whose_files_are_touched_every_night_is_watched_by_size_and_time_alone(archive: Path) -> None:
    night(archive, watch_changes=False)
    for path in (archive / "archive").rglob("*.dcm"):
        os.link(path, archive / path.name)  # as a backup does
    assert indexed(archive, watch_changes=False, work=str(archive / "work-score")).scanned == 8  # other settings
    assert indexed(archive, watch_changes=False, work=str(archive / "work-score")).scanned == 0
    for path in archive.glob("*.dcm"):
        path.unlink()
    assert indexed(archive, watch_changes=False, work=str(archive / "work-score")).scanned == 0


def test_a_listing_of_an_earlier_version_learns_when_files_were_changed(archive: Path, monkeypatch) -> None:
    indexed(archive, watch_changes=False)  # it has no such times
    assert indexed(archive).scanned == 0
    path = archive / "archive" / "0" / "0.dcm"
    facts = path.stat()
    toy.write_image(path, 100, 0)
    os.utime(path, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
    assert indexed(archive).scanned == 1


def test_a_reference_replaced_with_its_size_and_time_makes_the_variants_around_it_new_content(tmp_path: Path) -> None:
    write(tmp_path, {"reference.fa": REFERENCE, "archive/a.vcf": vcf(0)})
    modality = FORMATS["vcf"].spec(tmp_path).model_dump(mode="json")
    before = entries(indexed(tmp_path, modality=modality))
    facts = (tmp_path / "reference.fa").stat()
    other = bytearray(REFERENCE)
    other[3 + 12] = ord("T")  # base 13, in the window of the second variant alone
    (tmp_path / "reference.fa").write_bytes(other)
    os.utime(tmp_path / "reference.fa", ns=(facts.st_mtime_ns, facts.st_mtime_ns))
    after = entries(indexed(tmp_path, modality=modality))
    changed = {entry for entry in before if before[entry]["fingerprint"] != after[entry]["fingerprint"]}
    assert before.keys() == after.keys() and changed == {"a.vcf#c:9:A:C"}


def test_codes_count_where_a_file_has_no_prediction_time(tmp_path: Path) -> None:
    """The event that the rule counts from may lie in another file of the subject."""
    from datetime import datetime

    import pyarrow.parquet as pq
    from meds import DataSchema

    kinds = DataSchema.schema()

    def write_events(name: str, code: str) -> None:
        columns = {"subject_id": [1], "time": [datetime(2000, 1, 1)], "code": [code], "numeric_value": [1.0]}  # noqa: DTZ001
        rows = pa.table({key: pa.array(values, kinds.field(key).type) for key, values in columns.items()})
        (tmp_path / "archive" / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, tmp_path / "archive" / "data" / name)

    modality = {"kind": "ehr", "task": {"at": "first of ADMISSION + 24h"}, "window": "48h"}
    prints = []
    for code in ("SODIUM", "LACTATE"):
        write_events("0.parquet", "ADMISSION")
        write_events("1.parquet", code)
        ((_, entry),) = entries(indexed(tmp_path, modality=modality)).items()
        prints.append(entry["fingerprint"])
    assert prints[0] != prints[1]


# --- what was found changed -------------------------------------------------------------------------------------------


def test_an_entry_that_was_other_content_than_the_index_had_is_indexed_anew(archive: Path, monkeypatch) -> None:
    """Where storage shows no difference, as a DICOMweb server does."""
    assert night(archive, watch_changes=False).scored == 8
    path = archive / "archive" / "0" / "0.dcm"
    facts = path.stat()
    toy.write_image(path, 100, 0)
    os.utime(path, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
    before = ScoreStore.open(str(archive / "scores"))
    (bundle,) = before.summary()["bundles"]
    assert night(archive, watch_changes=False).pending == 0  # nobody can tell
    os.rename(archive / "scores", archive / "old")
    first = night(archive, watch_changes=False)
    assert (first.scored, first.by_reason, first.storage_away) == (7, {"changed": 1}, 0)
    second = night(archive, watch_changes=False)
    assert (second.pending, second.scored) == (1, 1)
    assert night(archive, watch_changes=False).pending == 0
    right = entries(indexed(archive, work=str(archive / "other"), modality=toy.MODALITY.model_dump(mode="json")))
    rows = ScoreStore.open(str(archive / "scores")).scores(bundle).to_pylist()
    assert {row["entry_id"]: row["fingerprint"] for row in rows} == {
        entry: row["fingerprint"] for entry, row in right.items()
    }


def test_what_training_found_changed_is_indexed_anew(tmp_path: Path) -> None:
    toy.write_archive(tmp_path, 20)
    run = toy.train_run(tmp_path, watch_changes=False)
    index(run, LocalEngine())
    path = next((tmp_path / "archive").rglob("*.dcm"))
    facts, other = path.stat(), bytearray(path.read_bytes())
    other[-1] ^= 1
    path.write_bytes(other)
    os.utime(path, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
    with pytest.raises(MachineError, match="could not be read as they were indexed"):
        prepare(run, LocalEngine())
    assert prepare(run, LocalEngine()).failed == 0


# --- what storage did not give ------------------------------------------------------------------------------------------


def test_a_slice_that_storage_does_not_give_for_a_night_leaves_its_series_as_it_was(
    tmp_path: Path, monkeypatch
) -> None:
    write(tmp_path / "archive", {f"{place}.dcm": one_slice(0, place) for place in range(3)})
    modality = {"kind": "imaging", "size": [3, 8, 8]}
    before = entries(indexed(tmp_path, modality=modality))
    for path in (tmp_path / "archive").iterdir():
        os.utime(path, ns=(10**9, 10**9))  # all are opened again
    with monkeypatch.context() as away:
        away.setattr(image_scan, "read_bytes", refusing(lambda uri: uri.endswith("2.dcm")))
        for _ in range(2):
            result = indexed(tmp_path, modality=modality)
            after = entries(result)
            assert after.pop("2.dcm")["reason"] == "unreadable" and result.failed == 1
            assert {entry: row["fingerprint"] for entry, row in after.items()} == {
                entry: row["fingerprint"] for entry, row in before.items()
            }
    again = indexed(tmp_path, modality=modality)
    assert (again.scanned, again.failed, entries(again).keys()) == (1, 0, before.keys())


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_listed_for_a_night_takes_no_slices_away(tmp_path: Path, monkeypatch, number) -> None:
    write(tmp_path / "archive", {f"{place % 2}/{place}.dcm": one_slice(0, place) for place in range(4)})
    modality = {"kind": "imaging", "size": [4, 8, 8]}
    before = entries(indexed(tmp_path, modality=modality))
    real = os.scandir

    def scandir(folder: str):
        if folder == str(tmp_path / "archive" / "1"):
            raise OSError(number, os.strerror(number), folder)
        return real(folder)

    with monkeypatch.context() as away:
        away.setattr(os, "scandir", scandir)
        during = indexed(tmp_path, modality=modality)
    rows = entries(during)
    assert rows.pop("1")["reason"] == "unreadable"
    assert rows == before and (during.failed, during.vanished) == (1, 0)
    assert during.exit_code(1.0) == (0 if number == errno.EACCES else 1)
    again = indexed(tmp_path, modality=modality)
    assert (entries(again), again.failed) == (before, 0)


def test_an_archive_that_was_there_and_is_not_is_away_and_one_that_never_was_is_a_wrong_run_file(archive: Path) -> None:
    with pytest.raises(ArchiveError, match="does not exist") as refusal:
        indexed(archive, archive=str(archive / "nowhere"), work=str(archive / "w"))
    assert refusal.value.exit_code == 2
    indexed(archive)
    (archive / "archive").rename(archive / "away")
    for _ in range(2):
        with pytest.raises(ArchiveAway, match="does not exist") as refusal:
            indexed(archive)
        assert refusal.value.exit_code == 1
    (archive / "archive").mkdir()
    with pytest.raises(ArchiveAway, match="holds no files"):
        indexed(archive)
    (archive / "archive").rmdir()
    (archive / "away").rename(archive / "archive")
    assert indexed(archive).scanned == 0


def test_an_archive_that_is_listed_and_gives_no_file_is_away_and_the_last_index_stays(
    tmp_path: Path, monkeypatch
) -> None:
    for number in range(120):
        toy.write_image(tmp_path / "archive" / f"{number}.dcm", number, 0)
    before = entries(indexed(tmp_path))
    for path in (tmp_path / "archive").iterdir():
        os.utime(path, ns=(10**9, 10**9))
    with monkeypatch.context() as away:
        away.setattr(image_scan, "read_bytes", refusing(lambda uri: True))
        with pytest.raises(ArchiveAway, match="gives no file"):
            indexed(tmp_path)
    again = indexed(tmp_path)
    assert (again.scanned, again.changed, entries(again).keys()) == (120, 0, before.keys())


def test_a_part_of_the_archive_that_is_away_is_told_by_the_exit_code_and_the_rest_is_scored(
    tmp_path, monkeypatch
) -> None:
    images = np.random.default_rng(0).integers(0, 255, (150, toy.SIZE, toy.SIZE), np.uint8)
    for name in ("here", "mount"):
        (tmp_path / "archive" / name).mkdir(parents=True)
        np.savez(tmp_path / "archive" / name / "a.npz", images=images)
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    notes = Notes()
    with monkeypatch.context() as away:
        from medray.modalities.imaging.formats import arrays

        away.setattr(arrays, "read_bytes", refusing(lambda uri: "mount" in uri, errno.ESTALE))
        first = night(tmp_path, notes)
    assert (first.scored, first.failed, first.storage_away, first.exit_code(1.0)) == (150, 150, 150, 1)
    assert any("storage is away: 150 entries" in note for note in notes.notes)
    second = night(tmp_path)
    assert (second.pending, second.scored, second.exit_code(0.0)) == (150, 150, 0)


def test_a_link_that_leads_nowhere_says_nothing_of_the_storage_and_gets_one_row(archive: Path) -> None:
    night(archive)
    (archive / "archive" / "lost.dcm").symlink_to("nowhere")
    first = night(archive)
    assert (first.pending, first.by_reason, first.storage_away, first.exit_code(1.0)) == (1, {"missing_file": 1}, 0, 0)
    assert [night(archive).pending for _ in range(2)] == [0, 0]
    toy.write_image(archive / "archive" / "nowhere", 50, 0)
    assert (night(archive).scored, night(archive).pending) == (1, 0)


# --- half written ---------------------------------------------------------------------------------------------------


def test_a_file_that_failed_while_it_was_new_is_looked_at_again(tmp_path: Path, monkeypatch) -> None:
    """Written in place to its full length at last, within the resolution of the file system's clock."""
    whole = one_slice(0)
    (tmp_path / "archive").mkdir()
    path = tmp_path / "archive" / "a.dcm"
    path.write_bytes(whole[:300] + bytes(len(whole) - 300))  # preallocated, and filled from the front
    facts = path.stat()
    first = indexed(tmp_path, watch_changes=False)
    assert first.failed == 1
    path.write_bytes(whole)
    os.utime(path, ns=(facts.st_mtime_ns, facts.st_mtime_ns))
    second = indexed(tmp_path, watch_changes=False)
    assert (second.scanned, second.failed) == (1, 0)
    assert indexed(tmp_path, watch_changes=False).scanned == 0


def test_a_file_that_failed_long_after_it_was_written_is_not_opened_every_night(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    path = tmp_path / "archive" / "a.dcm"
    path.write_bytes(one_slice(0)[:300])
    os.utime(path, ns=(10**18, 10**18))
    assert indexed(tmp_path).failed == 1
    assert indexed(tmp_path).scanned == 0


# --- beside the archive -----------------------------------------------------------------------------------------------


def test_a_reference_that_is_replaced_while_files_are_read_by_it_stops_the_index(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, {"reference.fa": REFERENCE, "archive/a.vcf": vcf(0)})
    modality = FORMATS["vcf"].spec(tmp_path).model_dump(mode="json")
    scan = index_module._IndexRun._scan

    def replaced(self: Any, fresh: np.ndarray) -> None:
        (tmp_path / "new.fa").write_bytes(REFERENCE)
        (tmp_path / "new.fa").rename(tmp_path / "reference.fa")
        scan(self, fresh)

    with monkeypatch.context() as during:
        during.setattr(index_module._IndexRun, "_scan", replaced)
        with pytest.raises(MachineError, match="replaced while files were read"):
            indexed(tmp_path, modality=modality)
    assert indexed(tmp_path, modality=modality).entries == 2


# --- one guard for each seam ------------------------------------------------------------------------------------------


def fails(*given: object, **named: object) -> None:
    raise KeyError("Müller^Anna")


def test_what_nobody_foresaw_is_a_row_and_told_once_without_content(archive: Path, monkeypatch) -> None:
    real = image_scan._dicom_parts

    def parts(spec: Any, whole: Any, raw: bytes):
        return fails() if whole.uri.endswith("/3.dcm") else real(spec, whole, raw)

    notes = Notes()
    with monkeypatch.context() as odd:
        odd.setattr(image_scan, "_dicom_parts", parts)
        result = night(archive, notes)
    assert (result.scored, result.failed, result.by_reason) == (7, 1, {"corrupt": 1})
    told = [facts for event, facts in notes.facts if event == "fault"]
    assert [(facts["error"], facts["count"]) for facts in told] == [("KeyError", 1)] * 2  # by the index and by the run
    assert not any("Müller" in text for text in [*notes.notes, *map(str, notes.facts)])
    (row,) = [row for row in entries(indexed(archive, work=str(archive / "work-score"))).values() if row["reason"]] or [
        {}
    ]
    assert "Müller" not in str(row)


def test_an_entry_that_a_reader_cannot_bear_is_a_row_and_the_others_of_its_batch_are_scored(
    archive, monkeypatch
) -> None:
    decode = image_reader.decode
    bad = toy.pixels(5, 1)

    def odd(raws: Any, *given: Any):
        image = decode(raws, *given)
        return fails() if np.array_equal(image.values, bad) else image

    monkeypatch.setattr(image_reader, "decode", odd)
    result = night(archive)
    assert (result.scored, result.by_reason) == (7, {"corrupt": 1})


def test_a_reader_that_fails_for_a_whole_batch_is_asked_entry_by_entry(archive: Path, monkeypatch) -> None:
    read = image_reader.Imaging.read_narrow

    def together(self: Any, batch: Any):
        return read(self, batch) if len(batch) == 1 and "5.dcm" not in batch[0].parts[0].uri else fails()

    monkeypatch.setattr(image_reader.Imaging, "read_narrow", together)
    notes = Notes()
    result = night(archive, notes)
    assert (result.scored, result.by_reason) == (7, {"corrupt": 1})
    assert [facts["error"] for event, facts in notes.facts if event == "fault"] == ["KeyError"]


def test_memory_that_is_refused_and_wrong_settings_are_no_matter_of_an_entry(archive: Path, monkeypatch) -> None:
    def no_memory(self: Any, batch: Any):
        raise MemoryError

    monkeypatch.setattr(image_reader.Imaging, "read_narrow", no_memory)
    with pytest.raises(MemoryError):
        night(archive)


def test_inspect_of_what_nobody_foresaw_is_a_refusal_with_its_place(archive: Path, monkeypatch) -> None:
    monkeypatch.setattr("medray.modalities.imaging.inspection.inspect", fails, raising=False)
    monkeypatch.setattr("medray.verbs.inspect.registry.inspect", fails)
    with pytest.raises(ArchiveError) as refusal:
        inspect(str(archive / "archive" / "0" / "0.dcm"))
    assert "KeyError at " in refusal.value.found and "Müller" not in str(refusal.value)
