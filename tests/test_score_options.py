"""What a scoring run may be told: a deadline, an order, a limit, which failed entries to try again. On real files."""

from __future__ import annotations

import os
import time

import pyarrow as pa
import pytest
import toy
from deltalake import DeltaTable
from pydantic import ValidationError

from medray.archive import order as schedule
from medray.archive.manifest import Manifest
from medray.archive.order import file_edges, first, in_order, newest_part, rounds
from medray.durations import deadline_at
from medray.engines.local import LocalEngine
from medray.engines.spec import RaySpec
from medray.learning import bundles
from medray.learning.models.resnet import ResNetSpec
from medray.scores import ScoreStore
from medray.verbs.score import score

DAY = 86_400


def local(*moment: int) -> float:
    """Seconds since the epoch of a local year, month, day, hour, minute."""
    return time.mktime((*moment, 0, 0, 0, -1))


@pytest.fixture
def archive(tmp_path):
    """Twelve files, im_00 the oldest and im_11 the newest, and a bundle that was never trained."""
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    for number in range(12):
        file = tmp_path / "archive" / f"im_{number:02}.dcm"
        toy.write_image(file, number, number % 2)
        os.utime(file, (1_700_000_000 + number * DAY,) * 2)
    return tmp_path


def rows(folder) -> list[dict]:
    return DeltaTable(str(folder / "scores")).to_pyarrow_table().to_pylist()


def entry_ids(folder, run_id: str | None = None) -> list[str]:
    return [row["entry_id"] for row in rows(folder) if run_id in (None, row["run_id"])]


def ids_by_number() -> list[str]:
    from medray.modalities.imaging.formats.dicom.writer import uid

    return [uid("toy", number, "image") for number in range(12)]


# --- deadlines --------------------------------------------------------------------------------------------------


def test_a_time_of_day_is_the_next_such_time_by_the_clock_on_the_wall():
    assert deadline_at("06:00", local(2026, 3, 1, 22, 15)) == local(2026, 3, 2, 6, 0)
    assert deadline_at("06:00", local(2026, 3, 1, 5, 59)) == local(2026, 3, 1, 6, 0)
    assert deadline_at("6:00", local(2026, 12, 31, 6, 0)) == local(2027, 1, 1, 6, 0)


def test_a_time_of_day_is_right_in_the_night_when_clocks_change(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        evening = local(2026, 3, 28, 22, 0)
        assert deadline_at("06:00", evening) - evening == 7 * 3600  # an hour of this night is left out
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_duration_counts_from_the_start():
    assert [deadline_at(text, 1000.0) for text in ("30s", "1.5 min", "4h")] == [1030.0, 1090.0, 15_400.0]


@pytest.mark.parametrize("text", ["tonight", "25:00", "06:75", "4", "-1h", "06:00:00"])
def test_a_deadline_that_is_none_is_refused_with_what_was_expected(tmp_path, text):
    with pytest.raises(ValidationError, match='expected a local time such as "06:00", or a duration'):
        toy.score_run(tmp_path, deadline=text)


MANY = 640


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """MANY images of 16 x 16 and a network that takes some 10 to 50 ms for each: all of them take far more than 2 s."""
    folder = tmp_path_factory.mktemp("slow")
    modality = toy.MODALITY.model_copy(update={"size": (96, 96)})
    of = toy.recipe(modality=modality, model=ResNetSpec(depth=18))
    bundles.save(bundles.make_bundle(of, toy.weights(of)), str(folder / "bundle"))
    for number in range(MANY):
        toy.write_image(folder / "archive" / f"{number}.dcm", number, number % 2)
    return folder


def test_at_the_deadline_what_is_scored_is_committed_and_the_next_runs_do_the_rest(slow, ray_session):
    from medray.engines.ray.engine import RayEngine

    began = time.time()
    first = score(toy.score_run(slow, deadline="2s", batch_size=32), LocalEngine())
    assert time.time() - began < 2 + 10
    assert (first.entries, first.pending, first.failed, first.stopped) == (MANY, MANY, 0, "deadline")
    assert 0 < first.scored < MANY and first.left == MANY - first.scored
    assert len(entry_ids(slow)) == len(set(entry_ids(slow))) == first.scored
    assert first.exit_code(0.01) == 0

    began = time.time()
    second = score(toy.score_run(slow, deadline="9s", batch_size=32), RayEngine(RaySpec(workers=2)))
    assert time.time() - began < 9 + 10
    assert second.pending == first.left == second.scored + second.left
    assert len(entry_ids(slow)) == len(set(entry_ids(slow))) == first.scored + second.scored

    third = score(toy.score_run(slow), LocalEngine())
    assert (third.pending, third.scored, third.left, third.stopped) == (second.left, second.left, 0, None)
    assert len(entry_ids(slow)) == len(set(entry_ids(slow))) == MANY


# --- order and limit --------------------------------------------------------------------------------------------


def test_a_limit_takes_the_newest_first_and_leaves_the_rest(archive):
    result = score(toy.score_run(archive, limit=3), LocalEngine())
    assert (result.pending, result.scored, result.left, result.stopped) == (12, 3, 9, "limit")
    assert sorted(entry_ids(archive)) == sorted(ids_by_number()[-3:])
    again = score(toy.score_run(archive, limit=3), LocalEngine())
    assert sorted(entry_ids(archive, again.run_id)) == sorted(ids_by_number()[6:9])
    rest = score(toy.score_run(archive, limit=6), LocalEngine())
    assert (rest.scored, rest.left, rest.stopped) == (6, 0, None)


@pytest.mark.parametrize(
    ("order", "expected"),
    [("oldest", "im_00 im_01"), ("newest", "im_10 im_11"), ("entry_id", None), ("entry_id descending", None)],
)
def test_a_run_takes_entries_in_the_order_asked_for(archive, order, expected):
    score(toy.score_run(archive, order=order, limit=2), LocalEngine())
    ids = ids_by_number()
    numbers = {"oldest": ids[:2], "newest": ids[-2:], "entry_id": sorted(ids)[:2]}
    assert sorted(entry_ids(archive)) == sorted(numbers.get(order, sorted(ids)[-2:]))


@pytest.mark.parametrize("order", ["newest", "oldest", "entry_id", "bytes descending"])
@pytest.mark.parametrize("limit", [None, 7])
def test_an_archive_that_is_taken_in_rounds_is_taken_in_the_same_order(archive, monkeypatch, order, limit):
    score(toy.score_run(archive, limit=1), LocalEngine())  # the index, and one that is not pending
    manifest = Manifest.open(str(archive / "work-score" / "manifest"))
    pending = ScoreStore.open(str(archive / "scores")).pending_rows(manifest, toy.bundle().id)
    [(whole, takers)] = rounds(manifest, [first(manifest, pending, order, limit)], order)
    assert takers.tolist() == [1] * (11 if limit is None else 7)
    monkeypatch.setattr(schedule, "ROUND_ENTRIES", 4)
    some = [entries for entries, _ in rounds(manifest, [first(manifest, pending, order, limit)], order)]
    assert [len(each) for each in some] == ([4, 4, 3] if limit is None else [4, 3])
    assert pa.concat_tables(some).equals(whole)


def test_a_run_of_many_rounds_scores_each_entry_once_and_stops_at_its_limit(archive, monkeypatch):
    monkeypatch.setattr(schedule, "ROUND_ENTRIES", 4)
    first = score(toy.score_run(archive, limit=9), LocalEngine())
    assert (first.pending, first.scored, first.left, first.stopped) == (12, 9, 3, "limit")
    assert sorted(entry_ids(archive)) == sorted(ids_by_number()[3:])
    assert len(first.slowest) == 5 and all("key_hi" in row for row in first.slowest)
    rest = score(toy.score_run(archive), LocalEngine())
    assert (rest.pending, rest.scored, rest.left, rest.stopped) == (3, 3, 0, None)
    assert sorted(entry_ids(archive)) == sorted(ids_by_number())


def test_an_order_that_no_manifest_has_is_refused(tmp_path):
    with pytest.raises(ValidationError, match='expected "newest", "oldest", or one of entry_id, subject_id'):
        toy.score_run(tmp_path, order="parts")


def test_equal_entries_keep_the_order_of_their_places_in_a_file():
    parts = [[("b", "0", 5)], [("a", "1", 9), ("a", "2", 3)], [("a", "0", 9)], [("b", "1", 5)], [("a", "3", 9)]]
    table = pa.table(
        {
            "entry_id": list("vwxyz"),
            "parts": [[{"uri": u, "locator": loc, "modified_ns": t} for u, loc, t in entry] for entry in parts],
            "bytes": [4, 2, 4, 4, 2],
        }
    )
    assert newest_part(table).to_pylist() == [5, 9, 9, 5, 9]
    assert in_order(table, "newest").column("entry_id").to_pylist() == ["x", "w", "z", "v", "y"]
    assert in_order(table, "oldest").column("entry_id").to_pylist() == ["v", "y", "x", "w", "z"]
    assert in_order(table, "bytes descending").column("entry_id").to_pylist() == ["x", "v", "y", "w", "z"]
    assert file_edges(table).tolist() == [1, 3, 4] and file_edges(table.slice(0, 1)).tolist() == []


# --- commits and attempts ---------------------------------------------------------------------------------------


def test_commits_come_after_so_many_files(archive):
    result = score(toy.score_run(archive, commit_files=1, commit_seconds=3600), LocalEngine())
    (run,) = [run for run in ScoreStore.open(str(archive / "scores")).history() if run["run_id"] == result.run_id]
    assert (run["commits"], run["files"]) == (4, 4)  # 12 entries in 4 shards


def test_a_failed_entry_is_tried_again_by_its_reason_and_not_more_often_than_allowed(archive):
    (archive / "archive" / "im_00.dcm").write_bytes(b"")
    (archive / "archive" / "notes.txt").write_text("no image")
    assert score(toy.score_run(archive), LocalEngine()).failed == 2
    assert score(toy.score_run(archive), LocalEngine()).pending == 0
    run = toy.score_run(archive, retry=["empty_file"], retry_attempts=3)
    for _ in range(2):  # the second and the third attempt
        again = score(run, LocalEngine())
        assert (again.pending, again.failed, again.by_reason) == (1, 1, {"empty_file": 1})
    assert score(run, LocalEngine()).pending == 0
    every = toy.score_run(archive, retry="all", retry_attempts=3)
    assert score(every, LocalEngine()).by_reason == {"unrecognised_format": 1}


def test_an_unknown_reason_to_retry_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="unknown reason codes lost"):
        toy.score_run(tmp_path, retry=["lost", "empty_file"])


def test_the_audit_table_tells_what_a_run_did(archive):
    (archive / "archive" / "im_00.dcm").write_bytes(b"")
    result = score(toy.score_run(archive, limit=12, order="oldest"), LocalEngine())
    (run,) = ScoreStore.open(str(archive / "scores")).runs()
    told = {
        name: run[name] for name in ("run_id", "what", "state", "bundle_id", "entries", "pending", "scored", "failed")
    }
    assert told == {
        "run_id": result.run_id, "what": "score", "state": "done", "bundle_id": result.bundle_id,
        "entries": 12, "pending": 12, "scored": 11, "failed": 1,
    }  # fmt: skip
    assert run["reasons"] == {"empty_file": 1}


def test_a_result_tells_where_the_time_went_without_naming_an_entry(archive):
    result = score(toy.score_run(archive), LocalEngine())
    assert result.stages.keys() == {"index", "pending", "scoring"}
    assert result.worker_seconds.keys() == {"read", "score", "write"}
    keys = {row["key_hi"] for row in rows(archive)}
    assert result.slowest and {row["key_hi"] for row in result.slowest} <= keys
    assert all(row.keys() == {"key_hi", "seconds", "together"} for row in result.slowest)
