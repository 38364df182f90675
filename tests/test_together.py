"""Bundles that read alike, scored in one pass: each comes to what it comes to alone, in every count, row and score."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import poison
import pyarrow as pa
import pytest
import toy
from deltalake import DeltaTable

from medray.archive import order as schedule
from medray.archive.manifest import Manifest
from medray.archive.order import first, rounds
from medray.config.runs import NightlyRun
from medray.datasets.samples import good
from medray.engines.base import Engine
from medray.engines.opening import open_engine
from medray.errors import BundleError
from medray.flows.flow import TAKER, TAKERS, Flow, Receipt, Stage, wanted
from medray.flows.lane import closing, lane, opening
from medray.learning import bundles
from medray.learning.models.cnn import CnnSpec
from medray.progress import Silent
from medray.reports.nightly import Summary
from medray.reports.nightly.summary import BundleNight
from medray.scores import ScoreStore
from medray.scores.log import ScoreLog
from medray.verbs import nightly as verb
from medray.verbs import score, stages
from medray.verbs.nightly import nightly

NAMES = ("a", "b", "c")
COUNTS = ("entries", "new", "changed", "vanished", "pending", "scored", "failed", "not_eligible", "left", "retired")
COUNTS += ("samples", "failed_samples", "not_eligible_samples", "by_reason", "stopped", "storage_away", "too_many")


def save(folder: Path, name: str, seed: int, **changes: Any) -> str:
    """The id of a bundle that is there then."""
    recipe = toy.recipe(name=name, **changes)
    bundle = bundles.make_bundle(recipe, toy.weights(recipe, seed=seed))
    bundles.save(bundle, str(folder / name))
    return bundle.id


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """12 images, a file that is none, and three bundles that read alike; the third has another network."""
    for number in range(12):
        toy.write_image(tmp_path / "archive" / f"im_{number:02}.dcm", number, number % 2)
        moment = 10**18 + number * 10**9
        os.utime(tmp_path / "archive" / f"im_{number:02}.dcm", ns=(moment, moment))
    (tmp_path / "archive" / "notes.txt").write_text("no image")
    os.utime(tmp_path / "archive" / "notes.txt", ns=(10**18, 10**18))
    save(tmp_path, "a", 0)
    save(tmp_path, "b", 1)
    save(tmp_path, "c", 2, model=CnnSpec(channels=(3, 5), dense=4))
    return tmp_path


def run_of(folder: Path, names: tuple[str, ...] = NAMES, **changes: Any) -> NightlyRun:
    settings: dict[str, Any] = {
        "name": "nights",
        "archive": str(folder / "archive"),
        "bundles": [str(folder / name) for name in names],
        "store": str(folder / "scores"),
        "work": str(folder / "work"),
        "engine": {"kind": "local"},
        "max_failed": 1.0,
        "pseudonym_key": str(folder / "key"),
        "batch_size": 5,
        "housekeeping": {"compact": False},
    }
    return NightlyRun.model_validate(settings | changes)


def night(run: NightlyRun, progress: Any = None, engine: Engine | None = None) -> dict[str, BundleNight]:
    """One night, by the name of each bundle's folder."""
    opened = engine or open_engine(run.engine, run.name)
    result = nightly(run, opened, progress)
    if engine is None:
        opened.close()
    summary = Summary.model_validate_json(Path(result.summary).read_text())
    return {Path(each.bundle).name: each for each in summary.bundles}


def rows_of(store: str) -> list[tuple[Any, ...]]:
    """Every row, but for the run that wrote it and when."""
    rows = DeltaTable(store).to_pyarrow_table().to_pylist()
    names = [name for name in rows[0] if name not in ("run_id", "scored_at")] if rows else []
    return sorted((tuple(row[name] for name in names) for row in rows), key=repr)


def audit_of(store: str, run_id: str) -> dict[str, Any]:
    [row] = [row for row in ScoreStore.open(store).runs() if row["run_id"] == run_id]
    names = ("what", "state", "bundle_id", "entries", "pending", "scored", "failed", "not_eligible", "reasons", "error")
    return {name: row[name] for name in names}


def scoring_runs(store: str) -> list[Any]:
    """The audit table, without upkeep."""
    return [row for row in ScoreStore.open(store).runs() if row["what"] == "score"]


class Both:
    """Nights of one archive: with the bundles together, and beside it with each alone, into a store of its own."""

    def __init__(self, folder: Path, engine: dict[str, Any] | None = None) -> None:
        self.folder, self.engine = folder, engine or {"kind": "local"}
        self.opened = open_engine(run_of(folder, engine=self.engine).engine, "nights")

    def night(self, names: tuple[str, ...] = NAMES, **changes: Any) -> dict[str, BundleNight]:
        """What both came to, which is the same."""
        told: list[dict[str, BundleNight]] = []
        for way, at_once in (("together", 16), ("apart", 1)):
            places = {key: str(self.folder / f"{key}-{way}") for key in ("store", "work")}
            settings = {"engine": self.engine, "bundles_at_once": at_once} | places | changes
            told.append(night(run_of(self.folder, names, **settings), engine=self.opened))
        together, apart = told
        for name in names:
            found, expected = (
                {each: getattr(of[name], each) for each in COUNTS} | {"error": of[name].error} for of in told
            )
            assert found == expected, name
            if together[name].run_id:
                stores = [str(self.folder / f"store-{way}") for way in ("together", "apart")]
                audits = [audit_of(store, of[name].run_id) for store, of in zip(stores, told, strict=True)]
                assert audits[0] == audits[1], name
        assert rows_of(str(self.folder / "store-together")) == rows_of(str(self.folder / "store-apart"))
        assert all(each.together == 1 for each in apart.values())
        return together


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries each call of the read stage is given, in this process."""
    given: list[int] = []
    whole = stages.Read.__call__

    def counted(self: stages.Read, batch: pa.RecordBatch) -> pa.RecordBatch:
        given.append(len(batch))
        return whole(self, batch)

    monkeypatch.setattr(stages.Read, "__call__", counted)
    return given


# --- as alone ---------------------------------------------------------------------------------------------------


def test_each_entry_is_read_once_and_scored_by_every_bundle(archive: Path, read: list[int]) -> None:
    told = night(run_of(archive))
    assert [(each.pending, each.scored, each.failed, each.together) for each in told.values()] == [(13, 12, 1, 3)] * 3
    assert sum(read) == 13
    read.clear()
    assert [each.pending for each in night(run_of(archive)).values()] == [0, 0, 0] and sum(read) == 0


def engines() -> dict[str, dict[str, Any]]:
    return {
        "local": {"kind": "local"},
        "children": {"kind": "ray", "workers": 2},
        "ray": {"kind": "ray", "address": "auto", "workers": 2},
        "split": {"kind": "ray", "address": "auto", "workers": 1, "stages": "split"},
    }


@pytest.mark.parametrize("name", ["local", "children", "ray", "split"])
def test_on_every_engine_counts_rows_and_scores_are_those_of_separate_runs(
    archive: Path, name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if name in ("ray", "split"):
        request.getfixturevalue("ray_session")
        import ray

        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setattr(score, "SMALL_ENTRIES", 0)
    both = Both(archive, engines()[name])
    if name in ("local", "children"):  # on Ray every flow starts actors
        limited = both.night(limit=5)
        assert [(each.pending, each.scored + each.failed, each.left) for each in limited.values()] == [(13, 5, 8)] * 3
    told = both.night()
    both.opened.close()
    assert all(each.scored + each.failed == each.pending and each.failed == 1 for each in told.values())


@pytest.mark.parametrize("backend", ["onnx", "auto"])
def test_by_onnxruntime_scores_are_those_of_separate_runs(archive: Path, backend: str) -> None:
    pytest.importorskip("onnxruntime")
    Both(archive, {"kind": "local", "backend": backend}).night()


def test_nights_of_bundles_that_come_and_go_are_those_of_separate_runs(archive: Path, read: list[int]) -> None:
    """Pending entries differ from bundle to bundle in every night but the first."""
    both = Both(archive)
    both.night(("a",), limit=4)
    told = both.night(("b", "a"), limit=6, order="oldest")
    assert {name: (each.pending, each.left) for name, each in told.items()} == {"b": (13, 7), "a": (9, 3)}
    toy.write_image(archive / "archive" / "im_03.dcm", 50, 1)  # another image in its place
    (archive / "archive" / "im_04.dcm").unlink()
    toy.write_image(archive / "archive" / "new.dcm", 51, 1)
    (archive / "archive" / "torn.dcm").write_bytes(b"")
    told = both.night(("c", "a", "b"))
    assert len({each.pending for each in told.values()}) == 3 and told["c"].pending == told["c"].entries
    told = both.night(("a", "b", "c"), retry=["empty_file"], retry_attempts=2)
    assert [(each.pending, each.by_reason) for each in told.values()] == [(1, {"empty_file": 1})] * 3
    told = both.night(("a", "b", "c"), retry="all", retry_attempts=3)
    assert [each.pending for each in told.values()] == [2, 2, 2]
    (archive / "archive" / "torn.dcm").unlink()
    shutil.copy(archive / "archive" / "im_01.dcm", archive / "archive" / "copy.dcm")
    both.night(("b", "c"))
    both.night(("a",), retry="all", retry_attempts=9)
    told = both.night(("a", "b", "c"), retry="all", retry_attempts=3)  # a has tried more often than the others
    assert told["a"].pending == 0 and told["b"].pending == told["c"].pending > 0


def test_what_one_bundle_alone_is_not_asked_about_is_read_by_none_for_it(archive: Path, read: list[int]) -> None:
    """A rule of its own makes another index and another pass: its rows are not eligible, those of the others are scored."""
    rule = {"Modality": {"any": ["CT"]}}
    save(archive, "d", 3, modality=type(toy.MODALITY).model_validate(toy.MODALITY.model_dump() | {"select": rule}))
    told = Both(archive).night(("a", "d", "b"))
    assert [told[name].together for name in ("a", "d", "b")] == [2, 1, 2]
    assert (told["d"].scored, told["d"].not_eligible, told["a"].scored, told["a"].not_eligible) == (0, 12, 12, 0)
    assert len(list((archive / "work-together").glob("index-imaging-*"))) == 2


def test_bundles_are_alike_only_where_every_setting_and_fitted_number_is_equal(archive: Path) -> None:
    changes = {
        "same": {},
        "mean": {"mean": (51.75,)},
        "dtype": {"dtype": "uint8"},
        "trained": {"trained": {"Modality": ("US",)}},
    }
    loaded = [
        verb._Loaded(name, toy.bundle(name=name), toy.MODALITY.model_copy(update=each), {})
        for name, each in [("first", {}), *changes.items()]
    ]
    different = [each._replace(bundle=bundles.make_bundle(each.bundle.recipe, toy.weights(each.bundle.recipe, n)))
                 for n, each in enumerate(loaded)]  # fmt: skip
    groups = [[each.uri for each in group] for group in verb.grouped(different, 16)]
    assert groups == [["first", "same"], ["mean"], ["dtype"], ["trained"]]
    assert [len(group) for group in verb.grouped(different[:2], 1)] == [1, 1]
    assert [len(group) for group in verb.grouped([different[0], different[0]], 16)] == [1, 1]  # it would fence itself


def test_a_bundle_that_is_named_twice_is_scored_once(archive: Path) -> None:
    shutil.copytree(archive / "a", archive / "copy of a")
    told = night(run_of(archive, ("a", "copy of a", "b")))
    assert {name: (each.pending, each.scored) for name, each in told.items()} == {
        "a": (13, 12), "copy of a": (0, 0), "b": (13, 12),
    }  # fmt: skip


def test_at_a_deadline_that_has_come_each_bundle_has_its_entries_left(archive: Path) -> None:
    both = Both(archive)
    told = both.night(deadline="0s")
    assert [(each.pending, each.left, each.stopped) for each in told.values()] == [(13, 13, "deadline")] * 3
    both.night()


# --- one of them is harmed ------------------------------------------------------------------------------------


class At(Silent):
    """Does something once, when the first entries have been scored."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self.happens: Callable[[], object] | None = happens
        self.work = ""

    def begin(self, name: str, total: int) -> None:
        self.work = name

    def advance(self, done: int, failed: int) -> None:
        if self.work == "score" and self.happens is not None:
            happens, self.happens = self.happens, None
            happens()


def test_a_bundle_that_another_run_claims_is_fenced_and_the_others_are_scored(archive: Path) -> None:
    ids = {name: bundles.load(str(archive / name)).id for name in NAMES}
    run = run_of(archive, commit_files=1, commit_seconds=3600.0)
    told = night(run, At(lambda: ScoreStore.open(run.store_uri).claim(ids["b"])))
    assert told["b"].error is not None and "a later run has claimed" in told["b"].error
    assert [(told[name].error, told[name].scored, told[name].failed) for name in ("a", "c")] == [(None, 12, 1)] * 2
    noted = {row["bundle_id"]: row["state"] for row in scoring_runs(run.store_uri)}
    assert noted == {ids["a"]: "done", ids["b"]: "fenced", ids["c"]: "done"}
    assert {row["bundle_id"] for row in DeltaTable(run.store_uri).to_pyarrow_table().to_pylist()} == {
        ids["a"],
        ids["c"],
    }
    again = night(run)
    assert {name: (each.pending, each.scored) for name, each in again.items()} == {
        "a": (0, 0),
        "b": (13, 12),
        "c": (0, 0),
    }
    Both(archive).night()
    assert rows_of(run.store_uri) == rows_of(str(archive / "store-apart"))


def test_a_run_whose_bundles_are_all_claimed_by_another_stops(archive: Path, read: list[int]) -> None:
    run = run_of(archive, commit_files=1, commit_seconds=3600.0)
    store = ScoreStore.open(run.store_uri, create=True)
    told = night(run, At(lambda: [store.claim(bundles.load(str(archive / name)).id) for name in NAMES]))
    assert all("a later run has claimed" in (each.error or "") for each in told.values())
    assert sum(read) < 13  # no more is read for nobody


def test_a_bundle_that_workers_see_otherwise_fails_and_the_others_are_scored(archive: Path) -> None:
    run = run_of(archive, commit_files=1, commit_seconds=3600.0)
    whole = score.score_manifest

    def after_it_was_replaced(*given: Any, **options: Any) -> Any:
        shutil.rmtree(archive / "b")
        shutil.copytree(archive / "c", archive / "b")
        return whole(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "score_manifest", after_it_was_replaced)
        told = night(run)
    assert "this worker sees another bundle than the driver" in (told["b"].error or "")
    assert [(told[name].error, told[name].scored, told[name].failed) for name in ("a", "c")] == [(None, 12, 1)] * 2
    states = sorted((row["state"], row["error"]) for row in scoring_runs(run.store_uri))
    assert states == [("done", None), ("done", None), ("failed", "BundleError")]


class RefusesLate:
    """A stage of scoring that is refused at its third batch."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.apply, self.batches = make(), 0

    def __call__(self, batch: pa.RecordBatch) -> Any:
        self.batches += 1
        if self.batches == 3:
            raise BundleError("its network cannot compute this")
        return self.apply(batch)


@pytest.mark.parametrize("limit", [None, 11])
def test_a_network_that_fails_half_way_ends_its_own_run_alone_and_nothing_is_scored_twice(
    archive: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    made, of_b = stages.score, bundles.load(str(archive / "b")).id

    def failing(uri: str, bundle_id: str, *given: Any, **options: Any) -> Stage:
        stage = made(uri, bundle_id, *given, **options)
        return stage._replace(make=partial(RefusesLate, stage.make)) if bundle_id == of_b else stage

    monkeypatch.setattr(stages, "score", failing)
    told = night(run_of(archive, commit_files=1, commit_seconds=3600.0, limit=limit))
    assert "its network cannot compute this" in (told["b"].error or "")
    taken = limit or 13
    assert [told[name].scored + told[name].failed for name in ("a", "c")] == [taken, taken]
    assert [told[name].left for name in ("a", "c")] == [13 - taken] * 2
    rows = [
        (row["bundle_id"], row["entry_id"])
        for row in DeltaTable(str(archive / "scores")).to_pyarrow_table().to_pylist()
    ]
    assert len(rows) == len(set(rows)) and sum(bundle_id == told["a"].bundle_id for bundle_id, _ in rows) == taken
    done = sum(bundle_id == of_b for bundle_id, _ in rows)  # what it had committed stays
    monkeypatch.undo()
    rest = night(run_of(archive))
    assert 0 < done < taken and (rest["b"].error, rest["b"].pending) == (None, 13 - done)


def test_an_archive_that_goes_stops_all_runs_and_the_next_night_scores_it(archive: Path) -> None:
    run = run_of(archive, commit_files=1, commit_seconds=3600.0)
    told = night(run, At(lambda: (archive / "archive").rename(archive / "away")))
    assert [(each.stopped, each.failed, each.error) for each in told.values()] == [("archive", 0, None)] * 3
    states = {(row["state"], row["error"]) for row in scoring_runs(run.store_uri)}
    assert states == {("failed", "ArchiveAway")}
    (archive / "away").rename(archive / "archive")
    again = night(run)
    assert [each.scored + told[name].scored for name, each in again.items()] == [12, 12, 12]


KILLED = """
import os, signal, sys
from medray.config import runs
from medray.engines.local import LocalEngine
from medray.scores.log import ScoreLog
from medray.verbs.nightly import nightly

transact, left = ScoreLog._transact, int(sys.argv[2])

def transacted(log, claim, actions, *given):
    global left
    if actions:
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
    return transact(log, claim, actions, *given)

ScoreLog._transact = transacted
nightly(runs.load(sys.argv[1]), LocalEngine())
"""


@pytest.mark.parametrize("commits", [0, 1, 2, 4])
def test_a_night_that_is_killed_between_two_commits_is_taken_up_for_each_bundle(archive: Path, commits: int) -> None:
    run = run_of(archive, commit_files=1, commit_seconds=3600.0)
    toy.write_run_file(archive / "night.toml", run)  # type: ignore[arg-type]
    words = [sys.executable, "-c", KILLED, str(archive / "night.toml"), str(commits)]
    assert subprocess.run(words, capture_output=True).returncode == -9
    rows = DeltaTable(run.store_uri).to_pyarrow_table().to_pylist()
    before = {name: sum(row["bundle_id"] == bundles.load(str(archive / name)).id for row in rows) for name in NAMES}
    assert sorted(before.values()) == {0: [0, 0, 0], 1: [0, 0, 4], 2: [0, 4, 4], 4: [4, 4, 8]}[commits]
    told = night(run)
    assert {name: each.pending for name, each in told.items()} == {name: 13 - count for name, count in before.items()}
    Both(archive).night()
    assert rows_of(run.store_uri) == rows_of(str(archive / "store-apart"))


# --- what ends a worker -----------------------------------------------------------------------------------------


class Dies:
    """A stage of scoring that ends its process at the brightest image."""

    def __init__(self, make: Callable[[], Any], entry_id: str) -> None:
        self.apply, self.entry_id = make(), entry_id

    def __call__(self, batch: pa.RecordBatch) -> Any:
        if self.entry_id in good(batch).column("entry_id").to_pylist():
            os._exit(5)
        return self.apply(batch)


def test_an_entry_that_ends_one_bundles_network_fails_for_that_bundle_alone(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import test_together  # not __main__: child processes find the class by this name

    made, of_b = stages.score, bundles.load(str(archive / "b")).id
    entry_id = toy.uid("toy", 4, "image")

    def dying(uri: str, bundle_id: str, *given: Any, **options: Any) -> Stage:
        stage = made(uri, bundle_id, *given, **options)
        return stage._replace(make=partial(test_together.Dies, stage.make, entry_id)) if bundle_id == of_b else stage

    monkeypatch.setattr(stages, "score", dying)
    told = night(run_of(archive, engine={"kind": "ray", "workers": 2}))
    assert [(each.scored, each.failed) for each in told.values()] == [(12, 1), (11, 2), (12, 1)]
    assert told["b"].by_reason == {"unrecognised_format": 1, "worker_died": 1}
    assert toy.failures(archive / "scores")[entry_id] == "worker_died"


def test_an_entry_that_ends_its_reader_fails_for_every_bundle(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.write_image(archive / "archive" / "segfault.dcm", 77, 1)
    poison.plant(monkeypatch)
    told = night(run_of(archive, engine={"kind": "ray", "workers": 2}))
    assert [(each.scored, each.failed) for each in told.values()] == [(12, 2)] * 3
    assert all(each.by_reason["worker_died"] == 1 for each in told.values())


# --- the parts --------------------------------------------------------------------------------------------------


def for_takers(*bits: int) -> pa.Table:
    return pa.table({"entry_id": [f"e{n}" for n in range(len(bits))], TAKERS: pa.array(bits, pa.uint64())})


def test_a_plan_says_who_wants_which_row() -> None:
    assert wanted(for_takers(1, 3, 2)).tolist() == [[True, True, False], [False, True, True]]
    assert wanted(for_takers(0, 0)).tolist() == [] and wanted(for_takers(1 << 63)).shape == (64, 1)
    assert wanted(pa.table({"entry_id": ["e0", "e1"]})).tolist() == [[True, True]]


def judge(bad: str) -> Callable[[], Callable[[pa.RecordBatch], pa.RecordBatch]]:
    """A stage by which one entry fails."""

    def judged(batch: pa.RecordBatch) -> pa.RecordBatch:
        reasons = ["corrupt" if name == bad else None for name in batch.column("entry_id").to_pylist()]
        return pa.RecordBatch.from_pydict(
            {"entry_id": batch.column("entry_id"), "reason": pa.array(reasons, pa.string())}
        )

    return lambda: judged


class Named:
    """A sink that keeps which taker got which entries."""

    def write(self, batches: Any) -> dict[str, Any]:
        return {"got": [[batch.column(TAKER)[0].as_py(), batch.column("entry_id").to_pylist()] for batch in batches]}

    def commit(self, receipts: Any) -> None: ...


@pytest.mark.parametrize("halves", [False, True])
def test_a_shard_goes_through_the_stage_of_each_taker_and_is_counted_for_each(halves: bool) -> None:
    made: list[str] = []

    def noted(name: str, make: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (made.append(name), make())[1]

    each = stages.for_each([Stage(noted(name, judge(name)), 3, name="score") for name in ("e0", "e1", "e2", "e3")])
    reading = Stage(lambda: lambda batch: batch, 2, name="read")
    shard = for_takers(1, 3, 2, 1, 3)  # e0 e1 e3 e4 for the first, e1 e2 e4 for the second
    if halves:
        opened = opening([reading], None, 10**6)(shard)
        assert opened is not None
        receipt = closing([each], Named())(opened)
    else:
        receipt = lane([reading, each], Named())(shard)
    assert receipt.payload["got"] == [[0, ["e0", "e1"]], [1, ["e1", "e2"]], [0, ["e3", "e4"]], [1, ["e4"]]]
    assert made == ["e0", "e1"]  # nobody has made the others' networks
    assert [(of.entries, of.failed, of.samples, of.reasons) for of in receipt.takers] == [
        (4, 1, 4, {"corrupt": 1}),
        (3, 1, 3, {"corrupt": 1}),
    ]
    assert (receipt.entries, receipt.failed, receipt.left, receipt.samples, receipt.reasons) == (
        7,
        2,
        0,
        7,
        {"corrupt": 2},
    )
    assert receipt.of(1, {}).entries == 3 and receipt.of(5, {}).entries == 0
    assert Receipt.of_json(json.loads(json.dumps(dataclasses.asdict(receipt)))) == receipt


def test_before_a_deadline_each_taker_is_told_what_is_left_for_it() -> None:
    def slow(batch: pa.RecordBatch) -> pa.RecordBatch:
        time.sleep(0.3)
        return batch

    stage = stages.for_each([Stage(judge(""), 4), Stage(judge(""), 4)])
    work = lane([Stage(lambda: slow, 1), stage], Named(), time.time() + 0.2)
    receipt = work(for_takers(3, 1, 2, 3))
    assert [(of.entries, of.left) for of in receipt.takers] == [(1, 2), (1, 2)]
    assert (receipt.entries, receipt.left) == (2, 4)


def test_a_row_of_several_that_ends_a_process_becomes_one_for_each() -> None:
    from medray.engines.ray.careful import _apart

    shard = for_takers(1, 7, 2)
    assert _apart(shard, [1]).to_pydict() == {"entry_id": ["e0", "e1", "e1", "e1", "e2"], TAKERS: [1, 1, 2, 4, 2]}
    assert _apart(shard, []).equals(shard)


def test_entries_of_several_bundles_come_once_each_in_the_order_of_the_run(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night(run_of(archive, ("a",), limit=1))
    [folder] = (archive / "work").glob("index-imaging-*/manifest")
    manifest = Manifest.open(str(folder))
    numbers = np_numbers(manifest)
    some = [numbers[:8], numbers[5:], numbers[:0]]
    for order, limit in (("newest", None), ("oldest", 3), ("bytes descending", 4), ("entry_id", 6)):
        alone = [[table.column("entry_id").to_pylist() for table, _ in rounds(manifest, [taken], order)]
                 for taken in (first(manifest, each, order, limit) for each in some)]  # fmt: skip
        for size in (2**19, 4):
            monkeypatch.setattr(schedule, "ROUND_ENTRIES", size)
            chosen = [first(manifest, each, order, limit) for each in some]
            found: list[list[str]] = [[], [], []]
            entries: list[str] = []
            for table, takers in rounds(manifest, chosen, order):
                assert len(table) <= size
                entries += table.column("entry_id").to_pylist()
                for name, bits in zip(table.column("entry_id").to_pylist(), takers.tolist(), strict=True):
                    for taker in range(3):
                        if bits >> taker & 1:
                            found[taker].append(name)
            assert len(entries) == len(set(entries))
            assert [set(each) for each in found] == [{name for names in each for name in names} for each in alone]
            monkeypatch.undo()


def np_numbers(manifest: Manifest) -> Any:
    return manifest.keys("row").read_all().column("row").to_numpy()


def test_prometheus_counts_bytes_once_and_entries_for_each_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    from medray.engines.ray.prometheus import FlowMeter, Meter

    monkeypatch.setattr(FlowMeter, "_show_left", lambda meter: None)  # without a Ray
    shard = for_takers(3, 1, 3).append_column("bytes", pa.array([10, 20, 40]))
    told: list[tuple[str, float]] = []
    meter = Meter("run").begin(Flow("score", [shard], (), Named()))
    meter._count = lambda what, value, **labels: told.append((what, value))  # type: ignore[method-assign]
    assert meter.left == 5
    meter(shard, Receipt(3, 0, left=2))
    assert ("entries", 3) in told and ("bytes", 30) in told and meter.left == 2


def test_committing_waits_for_no_bundle_that_has_ended(archive: Path) -> None:
    """What a fenced bundle has written is of no commit, and the log of each names its own files alone."""
    run = run_of(archive, ("a", "b"), commit_files=1, commit_seconds=3600.0)
    appended: list[str] = []
    append = ScoreLog.append

    def noted(log: Any, claim: Any, written: Any) -> None:
        append(log, claim, written)
        appended.extend(each["path"] for each in written)

    of_a = bundles.load(str(archive / "a")).id
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScoreLog, "append", noted)
        night(run, At(lambda: ScoreStore.open(run.store_uri).claim(of_a)))
    of_b = bundles.load(str(archive / "b")).id
    assert appended and all(path.startswith(f"bundle_id={of_b}/") for path in appended)
