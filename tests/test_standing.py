"""Which rows stand: entries that go back, vanish from a file that is there, or vanish with their file."""

from __future__ import annotations

import io
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from deltalake import DeltaTable
from packed import packed
from PIL import Image
from store_rows import Receipt, content, manifest, rows, score

from medray.archive.manifest import Manifest
from medray.engines.local import LocalEngine
from medray.errors import Fenced, StoreError
from medray.learning import bundles
from medray.progress import Silent
from medray.scores import ScoreStore, standing
from medray.scores.file import EPOCH
from medray.verbs import score as verb
from medray.verbs.results import ScoreResult


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    return ScoreStore.open(str(tmp_path / "scores"), create=True)


def pending(store: ScoreStore, entries: dict[str, int], **options: Any) -> list[str]:
    return store.pending(manifest(entries), "b", **options).column("entry_id").to_pylist()


def current(store: ScoreStore) -> dict[str, float | None]:
    return {row["entry_id"]: row["value"] for row in store.scores("b").to_pylist()}


def retire(store: ScoreStore, *names: str) -> None:
    found = [{"entry_id": name, "subject_id": f"s-{name}", "at": 0, "status": "scored", "run_id": ""} for name in names]
    standing.retire(store, store.claim("b"), standing.OTHER.empty_table().from_pylist(found, schema=standing.OTHER))


def test_an_entry_that_goes_back_to_an_earlier_content_is_pending_once_more(store: ScoreStore) -> None:
    score(store, "b", rows({"a": 1, "z": 1}))
    assert pending(store, {"a": 1, "z": 1}) == []
    assert pending(store, {"a": 2, "z": 1}) == ["a"]
    score(store, "b", rows({"a": 2}))
    assert pending(store, {"a": 2, "z": 1}) == []
    assert pending(store, {"a": 1, "z": 1}) == ["a"]  # current is the score of content 2
    score(store, "b", rows({"a": 1}))
    assert pending(store, {"a": 1, "z": 1}) == [] and current(store)["a"] == 1 / 8
    assert pending(store, {"a": 2, "z": 1}) == ["a"]


def test_a_failed_entry_that_was_overtaken_is_pending_whatever_the_attempts(store: ScoreStore) -> None:
    score(store, "b", rows({"a": 1}, reason="corrupt"))
    score(store, "b", rows({"a": 2}))
    assert pending(store, {"a": 1}) == pending(store, {"a": 1}, retry_failed=True, attempts=1) == ["a"]


def test_a_retired_entry_has_no_current_row_and_is_pending_when_it_comes_back(store: ScoreStore) -> None:
    score(store, "b", rows({"a": 1, "c": 1}))
    retire(store, "a")
    assert current(store) == {"c": 1 / 8}
    facts = store.summary()["bundles"]["b"]
    assert (facts["entries"], facts["scored"], facts["failed"], facts["reasons"]) == (1, 1, 0, {})
    assert pending(store, {"a": 1, "c": 1}) == ["a"]
    score(store, "b", rows({"a": 1}))
    assert pending(store, {"a": 1, "c": 1}) == [] and current(store) == {"a": 1 / 8, "c": 1 / 8}


def test_a_bundle_whose_entries_are_all_retired_has_none(store: ScoreStore) -> None:
    score(store, "b", rows({"a": 1}))
    retire(store, "a")
    assert store.summary()["bundles"] == {} and current(store) == {}


def test_a_retired_row_is_later_than_all_before_it_whatever_the_clock_says(store: ScoreStore) -> None:
    score(store, "b", rows({"a": 1}), clock=lambda: datetime(2100, 1, 1, tzinfo=UTC))
    retire(store, "a")
    (row,) = [row for row in store._table.to_pyarrow_table().to_pylist() if row["status"] == "retired"]
    assert row["scored_at"].year == 2100 and current(store) == {}
    assert (row["fingerprint"], row["output"], row["value"], row["reason"]) == (bytes(16), None, None, None)
    assert row["subject_id"] == "s-a" and row["fingerprint"] != content(1)


def test_rows_that_a_clock_has_put_in_a_wrong_order_are_set_right_by_the_next_run(store: ScoreStore) -> None:
    """A store of a version that went by clocks alone: content 2 was scored last, by a worker whose clock was behind."""
    score(store, "b", rows({"a": 1}))
    sink = store.sink(store.claim("b"))
    sink.clock, sink.not_before = (lambda: datetime(2020, 1, 1, tzinfo=UTC)), EPOCH
    sink.commit([Receipt(sink.write(iter([rows({"a": 2})])))])
    assert current(store) == {"a": 1 / 8} and pending(store, {"a": 2}) == ["a"]
    score(store, "b", rows({"a": 2}), clock=lambda: datetime(2020, 1, 2, tzinfo=UTC))
    assert current(store) == {"a": 2 / 8} and pending(store, {"a": 2}) == []


def test_bounds_that_another_tool_has_not_written_are_read_from_the_rows(store: ScoreStore) -> None:
    score(store, "b", rows({"a": 1}), clock=lambda: datetime(2100, 1, 1, tzinfo=UTC))
    DeltaTable(store.uri, without_files=False).optimize.compact()
    assert store.next_stamp("b") > datetime(2100, 1, 1, tzinfo=UTC)
    assert store.next_stamp("other") == EPOCH


def test_an_overtaken_run_retires_nothing(store: ScoreStore) -> None:
    score(store, "b", rows({"a": 1}))
    claim = store.claim("b")
    store.claim("b")
    found = [{"entry_id": "a", "subject_id": "s", "at": 0, "status": "scored", "run_id": ""}]
    with pytest.raises(Fenced):
        standing.retire(store, claim, standing.OTHER.empty_table().from_pylist(found, schema=standing.OTHER))
    assert current(store) == {"a": 1 / 8}


def test_merging_and_forgetting_treat_retired_rows_as_rows_of_their_subject(store: ScoreStore) -> None:
    score(store, "b", rows({"a": 1, "c": 1}))
    retire(store, "a")
    store.compact()
    assert current(store) == {"c": 1 / 8}
    assert store.forget(["s-a"])["rows"] == 2  # the score, and that it is retired
    assert set(store._table.to_pyarrow_table().column("entry_id").to_pylist()) == {"c"}


# --- whole nights -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    bundles.save(toy.bundle(), str(folder / "bundle"))  # it may be asked about DICOM files and arrays alike
    return folder


def write_array(path: Path, count: int) -> None:
    """A MedMNIST array of so many test images, the first of them always the same."""
    images = np.random.default_rng(0).integers(0, 255, (6, toy.SIZE, toy.SIZE), np.uint8)[:count]
    np.savez(path, test_images=images, test_labels=np.zeros((count, 1), np.uint8))


def night(trained: Path, folder: Path, work: str = "work") -> ScoreResult:
    run = toy.score_run(trained, archive=str(folder / "archive"), store=str(folder / "s"), work=str(folder / work))
    return verb.score(run, LocalEngine())


def names(folder: Path, trained: Path) -> set[str]:
    store = ScoreStore.open(str(folder / "s"))
    return set(store.scores(bundles.load(str(trained / "bundle")).id).column("entry_id").to_pylist())


def test_images_that_an_array_no_longer_has_are_retired_and_of_a_file_that_is_gone_none(trained: Path, tmp_path: Path):
    (tmp_path / "archive").mkdir()
    for name in ("a", "b", "c"):
        write_array(tmp_path / "archive" / f"{name}.npz", 6)
    assert night(trained, tmp_path).scored == 18
    write_array(tmp_path / "archive/a.npz", 4)
    (tmp_path / "archive/b.npz").rename(tmp_path / "b.npz")  # not mounted
    cut = (tmp_path / "archive/c.npz").read_bytes()
    (tmp_path / "archive/c.npz").write_bytes(cut[: len(cut) // 2])  # being copied
    second = night(trained, tmp_path)
    assert second.retired == 2
    assert {name.partition("#")[0] for name in names(tmp_path, trained)} == {"a.npz", "b.npz", "c.npz"}
    assert sum(name.startswith("a.npz") for name in names(tmp_path, trained)) == 4
    (tmp_path / "b.npz").rename(tmp_path / "archive/b.npz")
    write_array(tmp_path / "archive/a.npz", 6)
    (tmp_path / "archive/c.npz").write_bytes(cut)
    third = night(trained, tmp_path)
    assert (third.pending, third.scored) == (2, 2)  # the two that are back
    assert third.retired <= 1  # the one failed entry that stood for the broken file
    assert len(names(tmp_path, trained)) == 18
    fourth = night(trained, tmp_path)
    assert (fourth.pending, fourth.retired) == (0, 0)


def test_a_zip_that_is_whole_again_is_no_failed_entry_any_more(trained: Path, tmp_path: Path):
    image = io.BytesIO()
    Image.fromarray(toy.pixels(1, 1)).save(image, "png")
    content = packed(tmp_path / "archive/a.zip", {"1.png": image.getvalue()}).read_bytes()
    (tmp_path / "archive/a.zip").write_bytes(content[: len(content) // 2])
    assert night(trained, tmp_path).failed == 1 and names(tmp_path, trained) == {"a.zip"}
    (tmp_path / "archive/a.zip").write_bytes(content)
    second = night(trained, tmp_path)
    assert (second.scored, second.retired) == (1, 1) and names(tmp_path, trained) == {"a.zip/1.png"}


def test_a_manifest_remembers_where_vanished_entries_lay(trained: Path, tmp_path: Path):
    (tmp_path / "archive").mkdir()
    write_array(tmp_path / "archive/a.npz", 6)
    night(trained, tmp_path)
    before = Manifest.open(str(tmp_path / "work/manifest")).table(["entry_id"]).column("entry_id").to_pylist()
    write_array(tmp_path / "archive/a.npz", 4)
    run = toy.score_run(
        trained, archive=str(tmp_path / "archive"), store=str(tmp_path / "s"), work=str(tmp_path / "work")
    )
    found, _ = verb.index_archive(run, bundles.load(run.bundle_uri).recipe.modality, LocalEngine(), Silent())
    assert found.no_longer_held([*before[4:], "unknown"], lambda name: None) == [True, True, False]
    assert found.no_longer_held(["other"], lambda name: "a.npz") == [True]
    assert found.no_longer_held(["other"], lambda name: "b.npz") == [False]


# --- several archives -------------------------------------------------------------------------------------------


def night_of(trained: Path, folder: Path, archive: str, **options: Any) -> ScoreResult:
    return verb.score(
        toy.score_run(
            trained,
            archive=str(folder / archive),
            store=str(folder / "s"),
            work=str(folder / f"w-{archive}"),
            **options,
        ),
        LocalEngine(),
    )


def test_archives_of_other_ids_share_a_store_and_retire_nothing_of_each_other(trained: Path, tmp_path: Path):
    for archive, names_of_files in (("ward", "ab"), ("clinic", "cd")):
        (tmp_path / archive).mkdir()
        for name in names_of_files:
            write_array(tmp_path / archive / f"{name}.npz", 6)
    assert [night_of(trained, tmp_path, archive).scored for archive in ("ward", "clinic")] == [12, 12]
    write_array(tmp_path / "ward/a.npz", 4)
    again = [night_of(trained, tmp_path, archive) for archive in ("ward", "clinic")]
    assert [(night.pending, night.retired) for night in again] == [(0, 2), (0, 0)]
    assert len(names(tmp_path, trained)) == 22


def test_an_archive_that_shares_ids_with_another_of_the_store_is_refused_before_anything_is_claimed(
    trained: Path, tmp_path: Path
):
    for archive, number in (("ward", 6), ("clinic", 4)):
        (tmp_path / archive).mkdir()
        write_array(tmp_path / archive / "a.npz", number)
    images = np.full((4, toy.SIZE, toy.SIZE), 7, np.uint8)
    np.savez(tmp_path / "clinic/a.npz", test_images=images, test_labels=np.zeros((4, 1), np.uint8))
    assert night_of(trained, tmp_path, "ward").scored == 6
    version = ScoreStore.open(str(tmp_path / "s")).version
    with pytest.raises(StoreError, match=r"4 entries of .*clinic have scores of other content, of .*ward") as refusal:
        night_of(trained, tmp_path, "clinic")
    assert "moved_from" in str(refusal.value) and ScoreStore.open(str(tmp_path / "s")).version == version
    assert night_of(trained, tmp_path, "ward").pending == 0


@pytest.mark.parametrize("how", ["gone", "named"])
def test_an_archive_that_has_moved_goes_on_in_its_store(trained: Path, tmp_path: Path, how: str):
    (tmp_path / "ward").mkdir()
    write_array(tmp_path / "ward/a.npz", 6)
    assert night_of(trained, tmp_path, "ward").scored == 6
    shutil.copytree(tmp_path / "ward", tmp_path / "moved")
    if how == "gone":
        shutil.rmtree(tmp_path / "ward")
    images = np.full((6, toy.SIZE, toy.SIZE), 7, np.uint8)
    images[0] = np.load(tmp_path / "moved/a.npz")["test_images"][0]
    np.savez(tmp_path / "moved/a.npz", test_images=images, test_labels=np.zeros((6, 1), np.uint8))
    moved = night_of(trained, tmp_path, "moved", moved_from=[str(tmp_path / "ward")] if how == "named" else [])
    assert (moved.pending, moved.scored) == (5, 5)
