"""The Ray engine's own rules: what fits on a cluster, clusters by address, errors from workers, small work."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from medray.engines.local import LocalEngine
from medray.engines.opening import open_engine
from medray.engines.spec import LocalSpec, RaySpec
from medray.errors import ArchiveError, MachineError, UserError
from medray.flows.flow import Flow, Stage


class Collect:
    """A sink that keeps what workers say they did."""

    def __init__(self):
        self.found = []

    def write(self, batches):
        import os

        values = [v for batch in batches for v in batch.column("value").to_pylist()]
        return {"values": values, "pid": os.getpid(), "parent": os.getppid()}

    def commit(self, receipts):
        self.found += [receipt.payload for receipt in receipts]


class Double:
    def __call__(self, batch):
        return pa.record_batch({"value": pa.compute.multiply(batch.column("value"), 2)})


class Refuse:
    def __call__(self, batch):
        raise ArchiveError("there is nothing here", where="s3://bucket", do="look elsewhere")


class Broken:
    def __call__(self, batch):
        raise KeyError("a bug")


def plan(shards=4, rows=5):
    return [pa.table({"value": list(range(i * rows, (i + 1) * rows))}) for i in range(shards)]


@pytest.fixture(scope="module")
def ray_engine(ray_session):
    from medray.engines.ray.engine import RayEngine

    return RayEngine(RaySpec(workers=2))


def test_both_engines_do_the_same_work(ray_engine):
    outcomes = []
    for engine in (LocalEngine(), ray_engine):
        sink = Collect()
        done = []
        engine.run(Flow("double", plan(), (Stage(Double, 3),), sink, lambda n, failed: done.append(n)))  # noqa: B023
        outcomes.append(sorted(v for payload in sink.found for v in payload["values"]))
        assert sum(done) == 20
    assert outcomes[0] == outcomes[1] == [2 * n for n in range(20)]


def test_small_work_stays_beside_the_driver_in_one_process_of_its_own(ray_engine):
    import os

    small, large = Collect(), Collect()
    ray_engine.run(Flow("double", plan(), (Stage(Double, 3),), small, small=True))
    ray_engine.run(Flow("double", plan(), (Stage(Double, 3),), large))
    assert [payload["parent"] for payload in small.found] == 4 * [os.getpid()]
    assert len({payload["pid"] for payload in small.found}) == 1
    assert not {os.getpid(), *(payload["pid"] for payload in small.found)} & {p["pid"] for p in large.found}
    assert os.getpid() not in {payload["parent"] for payload in large.found}


def test_a_refusal_in_a_worker_comes_out_as_itself(ray_engine):
    with pytest.raises(ArchiveError, match="nothing here") as caught:
        ray_engine.run(Flow("refuse", plan(), (Stage(Refuse, 3),), Collect()))
    assert (caught.value.where, caught.value.do) == ("s3://bucket", "look elsewhere")


def test_a_bug_in_a_worker_stops_the_run_with_its_cause(ray_engine):
    with pytest.raises(MachineError, match="failed on the cluster") as caught:
        ray_engine.run(Flow("broken", plan(), (Stage(Broken, 3),), Collect()))
    assert "a bug" in caught.value.found


def test_an_empty_plan_is_no_work(ray_engine):
    sink = Collect()
    ray_engine.run(Flow("nothing", [], (Stage(Double, 3),), sink))
    assert sink.found == []


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (RaySpec(workers=3, cpus_per_worker=1), "too few CPUs"),
        (RaySpec(workers=1, gpus_per_worker=1), "too few GPUs"),
        (RaySpec(workers=(3, 4), cpus_per_worker=1), "too few CPUs"),
    ],
)
def test_more_than_the_cluster_has_is_refused_before_ray_hangs(ray_session, spec, what):
    from medray.engines.ray.engine import RayEngine

    with pytest.raises(UserError, match=what) as caught:
        RayEngine(spec)
    assert "lower [engine]" in caught.value.do


def test_more_workers_than_cpus_share_them_by_default(ray_session):
    from medray.engines.ray.engine import RayEngine

    engine = RayEngine(RaySpec(workers=4))
    assert (engine.workers, engine.cpus, engine.gpus) == (4, 0.5, 0.0)


@pytest.mark.parametrize(
    ("spec", "workers", "cpus"),
    [
        (RaySpec(workers=(1, 8)), 2, 1.0),
        (RaySpec(workers=(1, 2), cpus_per_worker=2), 1, 2.0),
        (RaySpec(workers=(4, 6)), 4, 0.5),
    ],
)
def test_of_a_range_of_workers_as_many_are_taken_as_there_is_room_for(ray_session, spec, workers, cpus):
    from medray.engines.ray.engine import RayEngine

    engine = RayEngine(spec)
    assert (engine.workers, engine.cpus) == (workers, cpus)


@pytest.mark.parametrize(("workers", "what"), [((3, 2), "no range"), ((0, 2), "no range"), (0, "has to be a worker")])
def test_workers_that_are_no_range_are_refused(ray_session, workers, what):
    from medray.engines.ray.engine import RayEngine

    with pytest.raises(UserError, match=what) as caught:
        RayEngine(RaySpec(workers=workers))
    assert caught.value.where == "[engine] workers" and "at least, at most" in caught.value.expected


LITTLE_WORK = """
import signal, sys
from test_engines import Collect, Double, plan
from medray.engines.opening import open_engine
from medray.engines.spec import RaySpec
from medray.flows.flow import Flow, Stage
engine, sink = open_engine(RaySpec(address="local", workers=2)), Collect()
for shards in ([], plan()):
    engine.run(Flow("test", shards, (Stage(Double, 4),), sink, lambda n, _: None, small=True))
assert sorted(value for each in sink.found for value in each["values"]) == list(range(0, 40, 2))
assert "ray" not in sys.modules, "imported for little work"
signal.signal(signal.SIGTERM, handler := lambda *_: None)
assert engine.workers == 2 and sys.modules["ray"].is_initialized()
assert signal.getsignal(signal.SIGTERM) is handler
engine.close()
assert not sys.modules["ray"].is_initialized()
"""


WITHOUT_RAY = """
import os, sys, time
from test_engines import Collect, Double, Endless, plan
from medray.engines.opening import open_engine
from medray.engines.spec import RaySpec
from medray.flows.flow import Flow, Stage
engine, sink = open_engine(RaySpec(workers=2)), Collect()
assert (engine.workers, engine.readers, engine.gpus, engine.split) == (2, 2, 0.0, None)
for small in (True, False, False):
    engine.run(Flow("test", plan(12), (Stage(Double, 4),), sink, lambda n, _: None, small=small))
assert {each["parent"] for each in sink.found} == {os.getpid()}
assert len(sink.found) == 36 and len({each["pid"] for each in sink.found}) == 2, "processes are kept"
until = time.time() + 0.5
engine.run(Flow("test", plan(3), (Stage(Endless, 4),), sink, lambda n, _: None, until=until))
assert len(sink.found) == 36 and until < time.time() < until + 60
assert "ray" not in sys.modules
engine.close()
"""


class Endless:
    """A decoder that hangs."""

    def __call__(self, batch):
        time.sleep(3600)


def test_a_machine_by_itself_works_without_ray_in_as_many_processes_and_leaves_what_hangs_at_the_deadline():
    done = subprocess.run(
        [sys.executable, "-c", "import medray.engines.ray.children as c\nc.GRACE_SECONDS = 0.5" + WITHOUT_RAY],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("settings", "gpus", "without"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"address": "local"}, False, False),
        ({"stages": "split"}, False, False),
        ({"gpus_per_worker": 0.5}, False, False),
        ({"gpus_per_worker": 0}, False, True),
        ({"cpus_per_worker": 0.5, "memory_per_worker": "1GB"}, False, True),
    ],
)
def test_ray_is_for_clusters_gpus_and_what_it_places(monkeypatch, settings, gpus, without):
    from medray.engines.ray import engine as engines

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(engines, "_is_running", lambda: False)
    monkeypatch.setattr(engines.machine, "may_have_gpus", lambda: gpus)
    engine = engines.RayEngine(RaySpec.model_validate({"workers": 1, **settings}))
    assert engine.without_ray is without and not engine.started


def test_what_a_machine_by_itself_lacks_is_refused_in_the_same_words(monkeypatch):
    from medray.engines.ray import engine as engines

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(engines, "_is_running", lambda: False)
    with pytest.raises(UserError, match="too few CPUs") as caught:
        engines.RayEngine(RaySpec(workers=5000, cpus_per_worker=1))
    assert "lower [engine]" in caught.value.do


def test_little_work_neither_imports_nor_starts_ray():
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_WORK], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class Slow:
    def __call__(self, batch):
        time.sleep(0.05)
        return batch


class DieAtSeven:
    """A decoder that ends its process."""

    def __call__(self, batch):
        if 7 in batch.column("value").to_pylist():
            os.kill(os.getpid(), signal.SIGSEGV)
        return batch


def side(stage, shards=6, **options):
    from medray.engines.ray.careful import Children
    from medray.engines.ray.children import side_by_side

    flow = Flow("test", plan(shards), (Stage(stage, 5),), Collect(), lambda n, _: None, **options)
    with closing(Children()) as kept, closing(side_by_side(flow, kept, children=2, memory=None)) as done:
        yield from (each for each in done if each is not None)


def test_children_side_by_side_do_every_shard_once_and_tell_which():
    receipts = list(side(Double))
    assert {number: receipt.payload["values"] for number, receipt in receipts} == {
        number: [2 * value for value in range(5 * number, 5 * number + 5)] for number in range(6)
    }
    assert len(receipts) == 6 and len({receipt.payload["pid"] for _, receipt in receipts}) == 2


def test_what_a_shard_refuses_ends_the_work_of_all_children():
    with pytest.raises(ArchiveError, match="nothing here"):
        list(side(Refuse))


def test_a_shard_that_ends_each_child_is_a_fault_of_the_machine():
    with pytest.raises(MachineError, match="ends its process each time"):
        list(side(DieAtSeven, shards=2))


class Hang:
    def __call__(self, batch):
        time.sleep(600)  # longer than a test may take
        return batch


def test_a_child_that_was_ended_while_it_had_nothing_to_do_is_not_given_work():
    from medray.engines.ray.careful import Children

    with closing(Children()) as kept:
        first = kept.take()
        kept.give(first)
        assert kept.take() is first
        first.process.kill()
        first.process.wait()
        kept.give(first)
        second = kept.take()
        kept.give(second)
        assert second is not first and second.process.poll() is None


class Imported:
    """Whether the process had a module before this stage was asked for anything."""

    def __call__(self, batch):
        there = "mailbox" in sys.modules
        return pa.record_batch({"value": pa.array([there] * len(batch))})


def test_what_the_next_flow_needs_is_imported_by_children_that_are_done_or_have_no_work():
    from medray.engines.ray.careful import Children
    from medray.engines.ray.children import side_by_side

    def run(kept, shards, then):
        flow = Flow("test", plan(shards), (Stage(Imported, 5),), Collect())
        done = list(side_by_side(flow, kept, children=2, memory=2**30, then=then))
        return [receipt.payload for _, receipt in filter(None, done)]

    with closing(Children()) as kept:
        (first,) = run(kept, 1, ("mailbox", "no_such_module"))
        assert not any(first["values"])
        pids = {child.process.pid for child in kept.idle}
        assert len(pids) == 2 and first["pid"] in pids, "one has worked, one was started for what comes"
        second = run(kept, 6, ())
        assert all(all(each["values"]) for each in second)
        assert {each["pid"] for each in second} <= pids


def test_children_that_are_left_before_their_end_are_ended():
    """As Ctrl-C does while a decoder hangs."""
    receipts = side(Hang)
    threading.Timer(3.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        next(receipts)


def test_after_the_deadline_children_begin_nothing():
    assert list(side(Slow, until=time.time() - 1)) == []
    assert 0 < len(list(side(Slow, shards=60, until=time.time() + 2.5))) <= 60


def test_the_local_engine_needs_no_ray():
    code = "import sys; from medray.engines.opening import *; open_engine(LocalSpec()); sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert isinstance(open_engine(LocalSpec()), LocalEngine)


CLUSTER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import toy
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, "include_dashboard": False}})
cluster.add_node(num_cpus=1)
from medray.engines.spec import RaySpec
from medray.engines.ray.engine import RayEngine
from medray.learning import bundles
from medray.verbs.score import score
folder = Path({folder!r})
toy.write_archive(folder)
bundles.save(toy.bundle(), str(folder / "bundle"))
engine = RayEngine(RaySpec(address=cluster.address, workers=2))
assert engine.workers == 2 and engine.cpus == 1.0
result = score(toy.score_run(folder), engine)
assert (result.entries, result.scored, result.failed) == (96, 96, 0), result
assert len(toy.scores(folder / "scores")) == 96
engine.close()
cluster.shutdown()
"""


def test_a_cluster_of_two_nodes_is_joined_by_its_address(tmp_path):
    code = CLUSTER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_address_without_a_cluster_says_so(tmp_path):
    code = (
        "from medray.engines.opening import open_engine\n"
        "from medray.engines.spec import RaySpec\n"
        "from medray.errors import MachineError\n"
        "try: open_engine(RaySpec(address='127.0.0.1:1'))\n"
        "except MachineError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "there is no Ray cluster at this address" in done.stdout, done.stderr[-2000:]
