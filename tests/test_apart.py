"""Decoding and scoring in workers of their own: the same scores, failures, refusals and deadlines as in one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import poison
import pyarrow as pa
import pytest
import test_poison
import toy
from test_deadline import Names, Slow, shards
from test_engines import Broken, Collect, Double, Refuse, plan

from medray.engines.local import LocalEngine
from medray.engines.ray.placement import Split, check_fraction, check_whole, cut, split_workers
from medray.engines.spec import RaySpec
from medray.errors import ArchiveError, MachineError, UserError
from medray.flows.flow import Flow, Stage
from medray.flows.lane import closing, lane, opening
from medray.verbs.score import score

APART = {"kind": "ray", "workers": 1, "stages": "split"}
ON_GPU = Stage(Double, 3, gpus=1.0, name="score")


@pytest.fixture(scope="module")
def engine(ray_session):
    from medray.engines.ray.engine import RayEngine

    return RayEngine(RaySpec.model_validate(APART))


@pytest.fixture(scope="module")
def archived(tmp_path_factory):
    """300 images, 5 that cannot be read among them, and a bundle."""
    folder = tmp_path_factory.mktemp("apart")
    test_poison.archive(folder, 295)
    for number in range(5):
        (folder / "archive" / "0" / f"broken_{number}.dcm").write_bytes(b"DICM" * 100)
    return folder


def test_scores_are_those_of_one_worker_for_all(archived, engine, tmp_path, ray_session):
    from medray.engines.ray.engine import RayEngine

    found = {}
    for name, each in (("local", LocalEngine()), ("fused", RayEngine(RaySpec(workers=2))), ("split", engine)):
        run = toy.score_run(archived, store=str(tmp_path / name), work=str(tmp_path / f"w-{name}"), batch_size=7)
        result = score(run, each)
        assert (result.entries, result.scored, result.failed) == (300, 295, 5)
        assert result.by_reason == {"not_this_modality": 5} or sum(result.by_reason.values()) == 5
        assert result.worker_seconds.keys() == {"read", "score", "write"} and len(result.slowest) == 5
        found[name] = toy.scores(tmp_path / name), toy.failures(tmp_path / name)
    for name in ("fused", "split"):
        assert found[name][0].keys() == found["local"][0].keys() and found[name][1] == found["local"][1]
        assert max(abs(found[name][0][key] - value) for key, value in found["local"][0].items()) <= 1e-5


class Where(Double):
    """Doubles, and says which process did."""

    def __call__(self, batch):
        import os

        done = super().__call__(batch)
        return pa.record_batch(
            {"value": done.column("value"), **{name: batch.column(name) for name in batch.schema.names if name != "value"},
             f"pid{len(batch.schema.names)}": [os.getpid()] * len(batch)}
        )  # fmt: skip


class Pids(Collect):
    def write(self, batches):
        found = [batch.to_pylist() for batch in batches]
        return {"values": [tuple(row.values()) for rows in found for row in rows], "parcel": True}


@pytest.mark.slow
def test_the_stages_before_the_gpu_run_in_workers_of_their_own(engine):
    sink, done = Pids(), []
    stages = (Stage(Where, 4, name="read"), Stage(Where, 3, gpus=1.0, name="score"))
    flow = Flow("double", plan(4, 50), stages, sink, lambda n, _: done.append(n), may_split=True)
    engine.run(flow)
    rows = [row for payload in sink.found for row in payload["values"]]
    assert sorted(value for value, *_ in rows) == [4 * n for n in range(200)] and sum(done) == 200
    assert len({opener for _, opener, _ in rows} & {closer for *_, closer in rows}) == 0
    together, whole = Pids(), Flow("double", plan(4, 50), stages, together := Pids())
    engine.run(whole)
    assert all(one == other for payload in together.found for _, one, other in payload["values"])


def test_two_halves_make_the_receipt_of_a_whole():
    names = pa.table({"entry_id": [f"e{n}" for n in range(10)], "reason": [None, "unreadable"] * 5})
    stages = (Stage(lambda: lambda batch: batch, 4, name="read"), Stage(lambda: lambda batch: batch, 3, name="score"))
    whole = lane(stages, Names())(names)
    opened = opening(stages[:1], None, 10**6)(names)
    receipt = closing(stages[1:], Names())(opened)
    assert receipt == whole and (receipt.entries, receipt.failed, receipt.reasons) == (10, 5, {"unreadable": 5})
    assert receipt.seconds.keys() == whole.seconds.keys() == {"read", "score", "write"}
    assert [row["entry_id"] for row in sorted(receipt.slowest, key=lambda row: row["entry_id"])] == ["e0", "e4", "e8"]


@pytest.mark.slow
def test_more_than_may_be_handed_over_is_done_by_one_worker(engine, monkeypatch):
    names = pa.table({"entry_id": ["a" * 100] * 10})
    assert opening((Stage(lambda: lambda batch: batch, 4),), None, 500)(names) is None
    monkeypatch.setattr(engine, "split", Split(1, 0.5, 1, 0.5, most_bytes=64))
    sink = Collect()
    engine.run(Flow("double", plan(2, 100), (Stage(Double, 50), ON_GPU), sink, may_split=True))
    assert sorted(v for payload in sink.found for v in payload["values"]) == [4 * n for n in range(200)]


@pytest.mark.slow  # test_engines.py does as much with one kind of workers on every run
@pytest.mark.parametrize("place", [0, 1])
def test_a_refusal_in_either_worker_comes_out_as_itself(engine, place):
    stages = [Stage(Double, 3), ON_GPU]
    stages[place] = stages[place]._replace(make=Refuse)
    with pytest.raises(ArchiveError, match="nothing here") as caught:
        engine.run(Flow("refuse", plan(), tuple(stages), Collect(), may_split=True))
    assert (caught.value.where, caught.value.do) == ("s3://bucket", "look elsewhere")
    stages[place] = stages[place]._replace(make=Broken)
    with pytest.raises(MachineError, match="failed on the cluster") as caught:
        engine.run(Flow("broken", plan(), tuple(stages), Collect(), may_split=True))
    assert "a bug" in caught.value.found


@pytest.mark.slow  # test_poison.py does as much with one kind of workers on every run
def test_entries_that_end_the_worker_that_decodes_are_failed_rows(tmp_path, ray_session, monkeypatch):
    from medray.engines.ray.engine import RayEngine

    settings = APART | {"memory_per_worker": "1GB"}
    test_poison.archive(tmp_path, 198, segfault=9001, glutton=9002)
    poison.plant(monkeypatch)
    result = score(toy.score_run(tmp_path, engine=settings), RayEngine(RaySpec.model_validate(settings)))
    assert (result.entries, result.scored, result.failed) == (200, 198, 2)
    assert result.by_reason == {"worker_died": 2}
    assert len(toy.scores(tmp_path / "scores")) == 198  # each once
    assert sorted(toy.failures(tmp_path / "scores").values()) == ["worker_died", "worker_died"]


@pytest.mark.slow  # test_deadline.py does as much with one kind of workers on every run
def test_a_flow_of_two_kinds_of_workers_stops_at_its_deadline_with_all_that_it_did(engine):
    sink, done = Names(), []
    until = time.time() + 30  # workers take seconds to start
    stages = (Stage(Slow, 16, name="read"), Stage(lambda: lambda batch: batch, 50, gpus=1.0, name="score"))
    flow = Flow("slow", shards(20, 1000), stages, sink, lambda n, _: done.append(n), until=until, may_split=True)
    engine.run(flow)
    assert until <= time.time() <= until + 10
    assert 0 < sum(done) == len(sink.committed) == len(set(sink.committed)) < 1000


def test_what_was_opened_is_finished_for_a_while_after_the_deadline():
    def opened(until):
        return opening((Stage(lambda: lambda batch: batch, 8),), until, 10**6)(shards(1, 30)[0])

    later = time.time() + 60
    assert [entries for entries, _ in opened(later).pieces] == [[1], [2], [4], [8], [8], [7]]
    assert (opened(time.time() - 1).pieces, opened(time.time() - 1).planned) == ([], [30])
    last = (Stage(lambda: lambda batch: batch, 50),)
    receipt = closing(last, Names(), time.time() - 1)(opened(later))
    assert (receipt.entries, receipt.left) == (30, 0)
    receipt = closing(last, Names(), time.time() - 5)(opened(later))
    assert (receipt.entries, receipt.left, receipt.payload) == (0, 30, {"names": []})


# -- who runs where


@pytest.mark.parametrize(
    ("settings", "cluster", "expected"),
    [
        ({}, (8, 0), None),  # no GPU: fused
        ({}, (8, 1), (7, 1.0, 1, 1.0)),
        ({}, (8, 8), None),  # no CPU left: fused
        ({"stages": "fused"}, (8, 1), None),
        ({"stages": "split"}, (2, 0), (1, 0.5, 2, 0.5)),
        ({"stages": "split", "workers": 1}, (2, 0), (1, 1.0, 1, 1.0)),
        ({"stages": "split", "workers": 1, "decode_workers": 4}, (2, 0), (4, 0.333, 1, 0.333)),
        ({"decode_workers": 3}, (16, 4), (3, 1.0, 4, 1.0)),
        ({"gpus_per_worker": 0.5}, (16, 2), (12, 1.0, 4, 1.0)),
        ({"gpus_per_worker": 0.5, "cpus_per_worker": 0.5}, (16, 1), (15, 1.0, 2, 0.5)),
    ],
)
def test_workers_share_the_cluster(settings, cluster, expected):
    found = placed(RaySpec.model_validate({"kind": "ray"} | settings), *cluster)
    assert expected == (found and (found.decoders, found.decoder_cpus, found.scorers, found.scorer_cpus))
    if found:
        assert found.decoders * found.decoder_cpus + found.scorers * found.scorer_cpus <= cluster[0]


def placed(spec, cpus, gpus):
    from medray.engines.ray.engine import RayEngine

    resources = {"CPU": float(cpus), "GPU": float(gpus)}
    engine = object.__new__(RayEngine)
    engine.spec = spec
    workers, each_cpu, each_gpu = engine._placement(resources)
    check_fraction(workers, each_gpu, gpus)
    return split_workers(spec, float(cpus), 2.0**33, workers=workers, each_cpu=each_cpu, each_gpu=each_gpu)


def test_parts_of_a_gpu_have_to_fit_on_it():
    with pytest.raises(UserError, match="parts of a GPU") as caught:
        placed(RaySpec(workers=3, gpus_per_worker=0.6), 8, 2)
    assert caught.value.expected == "at most 1 workers on each GPU"
    with pytest.raises(UserError, match="training workers cannot share a GPU"):
        check_whole(2, 0.5)
    check_whole(1, 0.5)
    with pytest.raises(ValueError, match="a part of one GPU"):
        RaySpec(gpus_per_worker=1.5)
    with pytest.raises(UserError, match="no CPU for workers that decode"):
        placed(RaySpec(workers=2, cpus_per_worker=1, stages="split"), 2, 0)


def test_parcels_are_of_moderate_size():
    """A store of 8 GB and 7 + 3 workers: half of it for 17 parcels, so 64 MB each are far from its bounds."""
    found = placed(RaySpec(), 8, 1)
    read = Stage(Double, 4, name="read", row_bytes=2**20)
    flow = Flow("score", plan(3, 1000), (read, ON_GPU), Collect(), may_split=True)
    assert [len(shard) for shard in cut(flow, found).plan[:2]] == [64, 64]
    large = flow.stages[0]._replace(row_bytes=2**27)
    assert {len(shard) for shard in cut(Flow("score", plan(1, 9), (large, ON_GPU), Collect()), found).plan} == {1}
    unknown = Flow("score", plan(3, 10000), (read._replace(row_bytes=0), ON_GPU), Collect())
    assert max(len(shard) for shard in cut(unknown, found).plan) == 256
    assert sum(len(shard) for shard in cut(unknown, found).plan) == 30000


def test_only_work_that_gains_is_cut_in_halves(engine):
    flow = Flow("score", plan(), (Stage(Double, 3, row_bytes=10), ON_GPU), Collect(), may_split=True)
    assert engine._split_of(flow) is engine.split
    for other in (
        Flow("score", plan(), flow.stages, Collect()),
        Flow("score", plan(), flow.stages[1:], Collect(), may_split=True),
        Flow("score", plan(), (Stage(Double, 3, row_bytes=2**40), ON_GPU), Collect(), may_split=True),
    ):
        assert engine._split_of(other) is None


# -- back-pressure

STREAM = """
import sys
sys.path.insert(0, {tests!r})
import test_apart
test_apart.stream({folder!r}, parcels=50)
"""


class Large:
    """A megabyte of noise for every row."""

    def __call__(self, batch):
        import numpy as np

        noise = np.random.default_rng(1).bytes(2**20)
        return pa.record_batch({"entry_id": batch.column("entry_id"), "data": pa.array([noise] * len(batch))})


class Sleepy:
    def __call__(self, batch):
        time.sleep(0.03 * len(batch))
        return batch


class Widths:
    def __init__(self):
        self.bytes = 0

    def write(self, batches):
        return {"bytes": sum(len(value) for batch in batches for value in batch.column("data").to_pylist())}

    def commit(self, receipts):
        self.bytes += sum(receipt.payload["bytes"] for receipt in receipts)


def stream(folder: str, parcels: int) -> None:
    """Decode far more than a small object store holds, faster than it is scored; print what Ray says it spilled."""
    import ray
    from ray._private import internal_api

    from medray.engines.ray import engine as engines

    engines.start(num_cpus=2, object_store_memory=120 * 2**20, object_spilling_directory=folder)
    engine = engines.RayEngine(RaySpec.model_validate(APART))
    sink, done, row = Widths(), [], 2**20
    stages = (Stage(Large, 4, name="read", row_bytes=row), Stage(Sleepy, 4, gpus=1.0, name="score"))
    rows = parcels * (engine.split.parcel_bytes(row) // row)
    table = pa.table({"entry_id": [f"e{n}" for n in range(rows)]})
    engine.run(Flow("stream", [table], stages, sink, lambda n, _: done.append(n), may_split=True))
    state = internal_api.get_state_from_address(ray.get_runtime_context().gcs_address)
    store = internal_api.get_memory_info_reply(state).store_stats
    found = {"spilled": store.spilled_bytes_total, "held": store.object_store_bytes_used, "bytes": sink.bytes}
    found |= {"receipts": len(done), "entries": sum(done), "rows": rows}
    print(json.dumps(found | {"files": [str(path) for path in Path(folder).rglob("*") if path.is_file()]}))


@pytest.mark.slow  # gigabytes
def test_a_stream_larger_than_the_object_store_does_not_spill(tmp_path):
    """Four times the store, scored more slowly than it is decoded."""
    code = STREAM.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["spilled"], found["files"]) == (0, [])
    assert found["receipts"] == 50 and found["entries"] == found["rows"]
    assert found["bytes"] == found["rows"] * 2**20 > 4 * 120 * 2**20
