"""The protocol of the score store in orders that seeds decide, and the simulated log beside delta-rs."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import simulated_store
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction
from simulated_storage import Log, Violation, table_of
from simulated_store import World, simulated
from store_rows import rows

from medray.errors import MachineError
from medray.scores import ScoreStore, upkeep
from medray.scores.file import EPOCH, write_file
from medray.scores.log import Claims, ScoreLog
from medray.scores.table import SCORES
from medray.storage import delta

ALL, PROCESSES = 100_000, 2


def schedules(first: int, stop: int, *, together: bool = False) -> Counter[str]:
    """Run the schedules of these seeds; in every 25th medray's queries are asked. Raises Violation."""
    counts = Counter[str]()
    with pytest.MonkeyPatch.context() as patch:
        for seed in range(first, stop):
            with simulated(World(seed, queries=seed % 25 == 0, together=together), patch.setattr) as world:
                counts += world.run()
    return counts


def test_schedules_break_no_promise() -> None:
    counts = schedules(0, 200)
    rare = {"scores", "claim", "fence", "upkeep", "merge", "compact", "forget", "killed", "stopped"}
    assert all(counts[kind] > 5 for kind in rare), counts


def test_schedules_of_drivers_that_score_with_two_bundles_in_one_pass_break_no_promise() -> None:
    counts = schedules(0, 80, together=True)
    rare = {"scores", "claim", "fence", "merge", "killed", "stopped", "ended alone"}
    assert all(counts[kind] > 5 for kind in rare), counts


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_schedules_break_no_promise() -> None:
    began, counts = time.monotonic(), Counter[str]()
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        for piece in pool.map(schedules, range(0, ALL, 500), range(500, ALL + 500, 500)):
            counts += piece
    print({"seconds": round(time.monotonic() - began), **counts})


def test_a_seed_repeats_its_schedule() -> None:
    logs: list[Any] = []
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch, simulated(World(11, queries=False), patch.setattr) as world:
            world.run()
        logs.append([(sorted(each.live), each.counters) for each in world.log.versions])
    assert logs[0] == logs[1] and len(logs[0]) > 4


# --- a simulation that finds nothing proves nothing: faults that were there, or are near -------------------------


def by_clocks_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ScoreLog, "next_stamp", lambda *_: EPOCH)


def a_look_after_the_check_of_the_claim(patch: pytest.MonkeyPatch) -> None:
    check = ScoreLog._refuse_overtaken

    def then_look(store: Any, claim: Any) -> None:
        check(store, claim)
        store._table.update_incremental()

    patch.setattr(ScoreLog, "_refuse_overtaken", then_look)


def a_vacuum_without_a_fence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(upkeep, "_fence", lambda *_: Claims({}))
    patch.setattr(Claims, "void", lambda *_: True)


def forgetting_what_a_new_run_has_written(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Claims, "void", lambda *_: True)


def a_commit_that_does_not_look_whether_it_landed(patch: pytest.MonkeyPatch) -> None:
    count = ScoreLog._count
    patch.setattr(ScoreLog, "_count", lambda store, app: 0 if app.startswith("medray.run/") else count(store, app))


def no_check_of_the_claim(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ScoreLog, "_refuse_overtaken", lambda *_: None)


def a_receipt_that_is_taken_twice(patch: pytest.MonkeyPatch) -> None:
    class Forgetful(set[str]):
        def update(self, *others: Any) -> None:
            pass

    make = ScoreStore.sink

    def forgetful(store: ScoreStore, claim: Any) -> Any:
        sink = make(store, claim)
        sink._committed = Forgetful()
        return sink

    patch.setattr(ScoreStore, "sink", forgetful)


FAULTS: dict[Callable[[pytest.MonkeyPatch], None], int] = {
    by_clocks_alone: 34,
    a_look_after_the_check_of_the_claim: 13,
    a_vacuum_without_a_fence: 538,
    forgetting_what_a_new_run_has_written: 538,
    a_commit_that_does_not_look_whether_it_landed: 3,
    no_check_of_the_claim: 0,
    a_receipt_that_is_taken_twice: 20,
}
"""Each with the first seed that finds it; where schedules have changed, a later one does."""


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises(Violation):
            schedules(FAULTS[plant], FAULTS[plant] + 3_000)


def test_what_went_wrong_first_is_raised_where_the_storage_fails_at_closing_too() -> None:
    world = World(0, fault_rate=0.0)

    def batches(written: pa.Table) -> Iterator[pa.RecordBatch]:
        yield from written.to_batches()
        raise MachineError("a file that is read for it is gone")

    with pytest.MonkeyPatch.context() as patch, simulated(world, patch.setattr):
        store = world.store()
        claim = store.claim("b1")
        store.sink(claim).write([rows({"a": 1})])
        ((path, (written, _)),) = world.storage.files.items()
        world.fault_rate = 1.0
        with pytest.raises(MachineError, match="is gone"):
            write_file(simulated_store.STORE, "b1", claim, batches(table_of(written)), modified=simulated_store.BEGAN)
        assert [*world.storage.files] == [path]


# --- the simulated log ----------------------------------------------------------------------------------------


class Bare:
    """A world in which nothing is checked."""

    time = simulated_store.BEGAN

    def check_commit(self, *_: object) -> None:
        pass


def takes(commit: Callable[..., object], *arguments: Any, **options: Any) -> bool:
    try:
        commit(*arguments, **options)
    except DeltaError:
        return False
    return True


@pytest.mark.parametrize("seed", range(8))
def test_the_simulated_log_takes_and_refuses_what_delta_rs_does(seed: int, tmp_path: Path) -> None:
    rng, uri = random.Random(seed), str(tmp_path / "table")
    delta.make(uri, SCORES, partition_by=["bundle_id"])
    real = [DeltaTable(uri) for _ in range(2)]
    log = Log(Bare())  # type: ignore[arg-type]
    read, answers = [log.newest, log.newest], Counter[bool]()
    for step in range(60):
        who = rng.randrange(2)
        if rng.random() < 0.4:
            real[who].update_incremental()
            read[who] = log.newest
        counters = {app: read[who].counters.get(app, 0) + 1 for app in ("x", "y") if rng.random() < 0.4}
        path, changed = f"bundle_id=b/part-{step}.parquet", rng.random() < 0.5
        add = AddAction(path, 1, {"bundle_id": "b"}, 0, changed, '{"numRecords": 1}')
        live = sorted(read[who].live)
        removed = rng.sample(live, min(len(live), rng.randint(0, 2)))
        actions = [add, *(RemoveAction(path, changed, 0, 1, {"bundle_id": "b"}) for path in removed)]
        taken_by = [
            takes(log.commit, read[who], actions, counters, "scores"),
            takes(delta.transact, real[who], actions, SCORES, facts={}, counters=counters, partition_by=["bundle_id"]),
        ]
        assert taken_by[0] == taken_by[1], (step, counters, removed)
        answers[taken_by[0]] += 1
        assert real[who].version() == read[who].number
        newest = DeltaTable(uri)
        assert sorted(log.newest.live) == sorted(os.path.relpath(each, uri) for each in newest.file_uris())
        assert all((newest.transaction_version(app) or 0) == log.newest.counters.get(app, 0) for app in ("x", "y"))
    assert min(answers[True], answers[False]) > 5, answers
