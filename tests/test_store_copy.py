"""A score store copied to another place: the same scores, claims and audit table; half a copy is no store."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from s3_server import BUCKET, s3_server
from store_rows import Hours, manifest, rows, score, seen

from medray.errors import MachineError, StoreError, UserError
from medray.scores import ScoreStore, artefacts, audit, copying
from medray.verbs.upkeep import copy, vacuum

EARLIER = Path(__file__).parent / "compatibility" / "written_by_6119fbd" / "scores"


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    """Two bundles, a merged file, an artefact, a checkpoint in the middle of the log, and an audit table."""
    store = ScoreStore.open(str(tmp_path / "scores"), create=True)
    clock = Hours()
    for batch in (rows({"a": 1, "b": 1}, outputs=("x", "y")), rows({"c": 1}, reason="truncated"), rows({"a": 2})):
        score(store, "b1", batch, clock=clock)
    image = {"media_type": "image/png", "content": b"a picture"}
    pictured = rows({"d": 1})
    score(
        store,
        "b2",
        pictured.set_column(9, "artefact", pa.array([image], pictured.schema.field("artefact").type)),
        clock=clock,
    )
    store.compact()
    store.checkpoint()
    score(store, "b2", rows({"e": 1}), clock=clock)
    return store


def whole(store: ScoreStore) -> list[dict[str, Any]]:
    table = DeltaTable(store.uri).to_pyarrow_table()
    return sorted(
        table.to_pylist(), key=lambda row: (row["bundle_id"], row["scored_at"], row["entry_id"], row["output"])
    )


def test_a_copy_has_the_scores_the_claims_the_artefacts_and_the_audit_table(store: ScoreStore, tmp_path: Path) -> None:
    done = copy(store.uri, str(tmp_path / "backup" / "scores"))
    copied = ScoreStore.open(done.copy_of_it)
    assert whole(copied) == whole(store) and len(whole(store)) == 8
    assert (copied.version, done.version) == (store.version, store.version)
    assert copied.runs() == store.runs() and len(copied.runs()) == 1
    assert copied.history() == store.history()
    [pictured] = [row for row in whole(copied) if row["artefact"]]
    assert copied.artefact(pictured) == b"a picture"
    assert copied.claim("b1").number == 4 and copied.claim("b2").number == 3
    score(copied, "b1", rows({"f": 1}))
    assert len(whole(copied)) == 9 and len(whole(store)) == 8
    assert copied.pending(manifest({"a": 2, "f": 1, "g": 1}), "b1").column("entry_id").to_pylist() == ["g"]


def test_a_copy_holds_nothing_that_was_replaced_or_never_committed(store: ScoreStore, tmp_path: Path) -> None:
    store.sink(store.claim("b1")).write(iter([rows({"never": 1})]))
    Path(store.uri, "_medray", "nightly.json").write_text("{}")  # a night at work
    live = {each.path for each in store.live_files()}
    copied = Path(copy(store.uri, str(tmp_path / "backup")).copy_of_it)
    assert {str(path.relative_to(copied)) for path in copied.glob("bundle_id=*/*")} == live
    assert not (copied / "_medray" / "nightly.json").exists()
    assert len(list(Path(store.uri).glob("bundle_id=*/*"))) > len(live)


def test_a_copy_is_of_one_version_whatever_is_committed_meanwhile(
    store: ScoreStore, tmp_path: Path, monkeypatch
) -> None:
    before = whole(store)
    copy_file = copying.copy_file

    def meanwhile(source: str, to: str) -> int:
        monkeypatch.setattr(copying, "copy_file", copy_file)
        score(ScoreStore.open(store.uri), "b1", rows({"meanwhile": 1}))
        return copy_file(source, to)

    monkeypatch.setattr(copying, "copy_file", meanwhile)
    copied = ScoreStore.open(copy(store.uri, str(tmp_path / "backup")).copy_of_it)
    assert whole(copied) == before and "meanwhile" in seen(store)


@pytest.mark.parametrize("cleaned", [False, True])
def test_a_copy_that_is_cut_short_is_no_store(store: ScoreStore, tmp_path: Path, monkeypatch, cleaned: bool) -> None:
    """Cut after each of its files. `cleaned`: of a store whose first commits are summed up in a checkpoint alone."""
    if cleaned:
        checkpoint = max(int(file.name[:20]) for file in Path(store.uri, "_delta_log").glob("*.checkpoint.parquet"))
        for number in range(checkpoint):
            Path(store.uri, "_delta_log", f"{number:020d}.json").unlink()
    whole_one = copy(store.uri, str(tmp_path / "whole"))
    assert seen(ScoreStore.open(whole_one.copy_of_it)) == seen(store)
    copy_file, left = copying.copy_file, 0

    def cut(source: str, to: str) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        return copy_file(source, to)

    monkeypatch.setattr(copying, "copy_file", cut)
    monkeypatch.setattr(copying, "AT_ONCE", 1)
    place = tmp_path / "cut"
    for after in range(whole_one.files):
        left = after
        with pytest.raises(MachineError, match="the copy cannot be written"):
            copy(store.uri, str(place))
        with pytest.raises(StoreError):
            ScoreStore.open(str(place))
        if after:
            with pytest.raises(StoreError, match="holds something"):
                copy(store.uri, str(place))
        shutil.rmtree(place)


def test_a_place_that_holds_something_is_refused(store: ScoreStore, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("x")
    for place in (tmp_path / "taken", Path(store.uri), Path(store.uri) / "inside", tmp_path):
        with pytest.raises(StoreError):
            copy(store.uri, str(place))
    with pytest.raises(StoreError, match="no score store"):
        copy(str(tmp_path / "none"), str(tmp_path / "backup"))
    (tmp_path / "empty").mkdir()
    assert copy(store.uri, str(tmp_path / "empty")).files > 5


def test_a_copy_is_its_users_alone(store: ScoreStore, tmp_path: Path) -> None:
    copy(store.uri, str(tmp_path / "backup"))
    modes = {path.stat().st_mode & 0o077 for path in [tmp_path / "backup", *(tmp_path / "backup").rglob("*")]}
    assert modes == {0}


def test_a_file_that_is_gone_is_said(store: ScoreStore, tmp_path: Path) -> None:
    Path(store.uri, store.live_files()[0].path).unlink()
    with pytest.raises(MachineError, match="cannot be written"):
        copy(store.uri, str(tmp_path / "backup"))


def test_a_store_of_an_earlier_version_is_copied_as_it_is(tmp_path: Path) -> None:
    shutil.copytree(EARLIER, tmp_path / "old")
    copied = ScoreStore.open(copy(str(tmp_path / "old"), str(tmp_path / "new")).copy_of_it)
    assert whole(copied) == whole(ScoreStore.open(str(tmp_path / "old"))) and len(whole(copied)) == 11
    assert len(copied.runs()) == 1
    assert not (Path(copied.uri) / artefacts.FOLDER).exists()


def test_a_store_goes_to_a_bucket_and_back(store: ScoreStore, tmp_path: Path, monkeypatch) -> None:
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        there = copy(store.uri, f"s3://{BUCKET}/backup/scores")
        assert ScoreStore.open(there.copy_of_it).version == store.version
        with pytest.raises(StoreError, match="holds something"):
            copy(store.uri, f"s3://{BUCKET}/backup/scores")
        back = copy(there.copy_of_it, str(tmp_path / "back"))
    assert whole(ScoreStore.open(back.copy_of_it)) == whole(store)
    assert (there.files, there.bytes) == (back.files, back.bytes)


# --- the order of a log -----------------------------------------------------------------------------------------


def log(*names: str) -> list[str]:
    return [f"_delta_log/{int(name.split('.', 1)[0]):020d}.{name.split('.', 1)[1]}" for name in names]


def test_the_first_commit_or_the_checkpoint_comes_last() -> None:
    commits = log("0.json", "1.json", "2.json", "3.json")
    assert copying.ordered(commits, 2) == log("2.json", "1.json", "0.json")
    some = [*log("1.checkpoint.parquet", "2.checkpoint.parquet"), *commits, "_delta_log/_last_checkpoint"]
    assert copying.ordered(some, 3) == log("3.json", "2.json", "1.json", "0.json")
    assert copying.ordered(some[:2] + log("2.json", "3.json"), 3) == log("3.json", "2.json", "2.checkpoint.parquet")
    assert copying.ordered(some[:2] + log("0.json", "3.json"), 3) == log("3.json", "2.checkpoint.parquet")


@pytest.mark.parametrize(
    "names", [("0.json", "2.json"), ("1.json", "2.json"), ("0.checkpoint.parquet", "2.json"), ("3.checkpoint.parquet",)]
)
def test_a_log_with_a_gap_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(StoreError, match="gap"):
        copying.ordered(log(*names), 2)


# --- retention of the audit table -------------------------------------------------------------------------------


def test_old_rows_of_the_audit_table_go_but_those_of_runs_that_wrote_scores(store: ScoreStore) -> None:
    runs = {"wrote": {"scored": 3, "pending": 3}, "found-nothing": {"scored": 0, "failed": 0, "not_eligible": 0}}
    for run_id, counts in runs.items():
        store.end_run(audit.begin(store.uri, "score", run_id, "b1"), **counts)
    audit.begin(store.uri, "score", "killed", "b1")
    with audit.recorded(store.uri, audit.NIGHTLY, "night"):
        pass
    scores = whole(store)
    everything = {row["run_id"] for row in store.runs()}
    assert vacuum(store.uri, audit_older_than="1d").audit_rows_removed == 0
    assert {row["run_id"] for row in store.runs()} > everything  # a compaction and the vacuum, too
    assert (
        store.forget_runs(datetime.now(UTC) + timedelta(hours=1)) == 5
    )  # two compactions, vacuum, found-nothing, night
    assert {(row["run_id"], row["state"]) for row in store.runs()} == {("wrote", "done"), ("killed", "running")}
    assert whole(store) == scores and store.forget_runs(datetime.now(UTC) + timedelta(hours=1)) == 0
    with pytest.raises(UserError, match="no age"):
        vacuum(store.uri, audit_older_than="two years")
