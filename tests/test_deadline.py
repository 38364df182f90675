"""Deadlines: a flow stops in time with all it did, in this process and on Ray; nothing is half done."""

from __future__ import annotations

import time

import pyarrow as pa
import pytest

from medray.engines.local import LocalEngine
from medray.engines.ray.deadline import Reply, StoppedWorkers, until_stopped
from medray.engines.spec import RaySpec
from medray.flows.flow import Flow, Receipt, Stage
from medray.flows.lane import lane


class Slow:
    """A tenth of a second for every row."""

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        time.sleep(0.1 * len(batch))
        return batch


class Names:
    """A sink that keeps the names of the entries that came through, as their receipts tell."""

    def __init__(self):
        self.committed = []

    def write(self, batches):
        return {"names": [name for batch in batches for name in batch.column("entry_id").to_pylist()]}

    def commit(self, receipts):
        self.committed += [name for receipt in receipts for name in receipt.payload["names"]]


def shards(count: int, rows: int) -> list[pa.Table]:
    names = [f"e{n:05}" for n in range(count * rows)]
    return [pa.table({"entry_id": names[start : start + rows]}) for start in range(0, len(names), rows)]


@pytest.fixture(params=["local", "ray"])
def engine(request):
    if request.param == "local":
        return LocalEngine()
    request.getfixturevalue("ray_session")
    from medray.engines.ray.engine import RayEngine

    return RayEngine(RaySpec(workers=2))


def test_a_flow_stops_within_ten_seconds_of_its_deadline_with_all_that_it_did(engine):
    """A shard alone would take 100 seconds; the plan's 20 shards half an hour."""
    sink, done = Names(), []
    until = time.time() + (2 if isinstance(engine, LocalEngine) else 30)  # Ray's workers take seconds to start
    flow = Flow(
        "slow", shards(20, 1000), (Stage(Slow, 64), Stage(Slow, 50)), sink, lambda n, _: done.append(n), until=until
    )
    engine.run(flow)
    assert until <= time.time() <= until + 10
    assert 0 < sum(done) == len(sink.committed) == len(set(sink.committed)) < 1000


@pytest.mark.slow
def test_the_workers_of_a_flow_that_was_stopped_make_room_for_the_next(ray_session):
    from medray.engines.ray.engine import RayEngine

    engine, sink = RayEngine(RaySpec(workers=2)), Names()
    engine.run(Flow("slow", shards(200, 100), (Stage(Slow, 8),), Names(), until=time.time() + 8))
    engine.run(Flow("quick", shards(4, 2), (Stage(Slow, 8),), sink))
    assert len(sink.committed) == 8


def test_nothing_is_begun_when_the_deadline_has_passed(engine):
    sink = Names()
    engine.run(Flow("slow", shards(3, 2), (Stage(Slow, 1),), sink, until=time.time() - 1))
    assert sink.committed == []


def test_a_lane_takes_on_pieces_by_the_pace_it_has_seen():
    seen = []

    class Seen(Slow):
        def __call__(self, batch):
            seen.append(len(batch))
            return super().__call__(batch) if len(seen) > 3 else batch

    run = lane((Stage(Seen, 8),), Names(), until=time.time() + 60)
    receipt = run(shards(1, 30)[0])
    assert seen[:4] == [1, 2, 4, 8]  # doubled, up to the batch size
    assert max(seen) == 8 and (receipt.entries, receipt.left) == (30, 0)
    assert receipt.seconds.keys() == {"work", "write"} and receipt.seconds["work"] >= 2.2
    assert receipt.slowest[0]["seconds"] >= 0.1


def said(worker: str, turn: int, entries: int, left: int) -> Reply:
    return Reply(Receipt(entries, 0, left=left), worker, turn)


def test_a_worker_has_stopped_when_all_it_did_before_has_arrived():
    stopped = StoppedWorkers(2)
    for each in (said("a", 1, 9, 0), said("a", 3, 0, 9), said("b", 1, 4, 5)):
        stopped.note(each)
    assert not stopped.all
    stopped.note(said("b", 2, 0, 9))
    assert not stopped.all  # what a did at its second turn is still on its way
    stopped.note(said("a", 2, 3, 6))
    assert stopped.all


def test_shards_that_nobody_looked_at_are_not_waited_for():
    def source():
        yield said("a", 1, 5, 4)
        for turn in range(2, 100_000):
            yield said("a", turn, 0, 9)
            time.sleep(0.05)

    found = list(until_stopped(source(), time.time() - 1, 1))
    assert found[0].entries == 5 and len(found) < 5


def test_what_a_source_raises_comes_out():
    def source():
        yield said("a", 1, 5, 0)
        raise KeyError("a bug")

    receipts = until_stopped(source(), time.time() + 60, 1)
    assert next(receipts).entries == 5
    with pytest.raises(KeyError, match="a bug"):
        list(receipts)
