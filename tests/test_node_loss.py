"""Loss of a node: three nodes on this machine, each with its own raylet, and one is killed with all that runs on it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from medray.engines.local import LocalEngine
from medray.verbs.train import train

SETTINGS = {"epochs": 4, "batch_size": 2, "checkpoint_minutes": 1e-9}
SOON = {"RAY_health_check_failure_threshold": "3", "RAY_health_check_period_ms": "1000"}
"""A node that is gone is seen to be after 3 seconds, not after 25."""

TRAINING = """
import json, os, signal, sys
from pathlib import Path

sys.path.insert(0, {tests!r})
import toy
from ray.cluster_utils import Cluster
from ray_cluster import below

from medray.engines.spec import RaySpec
from medray.engines.ray.engine import RayEngine
from medray.progress import Silent
from medray.verbs.train import train

cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, "include_dashboard": False}})
lost = [cluster.add_node(num_cpus=1) for _ in range(2)][1]


class LoseANode(Silent):
    at, seen, workers = None, [], set()

    def training(self, live):
        position = (live["epoch"], live["step"])
        self.workers.add(live["workers"])
        if self.at is not None:
            self.seen.append(position)
        elif position > (1, 0):
            self.at = position
            raylet = lost.all_processes["raylet"][0].process.pid
            pids = [raylet, *below(raylet)]
            titles = [Path(f"/proc/{{pid}}/cmdline").read_bytes() for pid in pids]
            assert sum(b"RayTrainWorker" in title for title in titles) == 1, titles
            for pid in pids:
                os.kill(pid, signal.SIGKILL)


folder = Path({folder!r})
run = toy.train_run(folder, bundle={bundle!r}, work={work!r}, training={settings!r})
engine = RayEngine(RaySpec(address=cluster.address, workers=(1, 3)))
assert (engine.workers, engine.cpus) == (3, 1.0), (engine.workers, engine.cpus)
progress = LoseANode()
result = train(run, engine, progress)
told = {{"at": progress.at, "seen": progress.seen, "workers": sorted(progress.workers), "history": result.history}}
print(json.dumps(told | {{"end": result.workers, "auroc": result.metrics["auroc"], "epochs": result.epochs}}))
engine.close()
cluster.shutdown()
"""


def rows(history: str) -> list[dict]:
    import pyarrow.csv

    return pyarrow.csv.read_csv(history).to_pylist()


@pytest.mark.slow  # test_train.py kills a worker of two on every run
def test_training_goes_on_without_a_lost_node_from_its_last_checkpoint(tmp_path):
    toy.write_archive(tmp_path)
    alone = train(toy.train_run(tmp_path, training=SETTINGS), LocalEngine())
    code = TRAINING.format(
        tests=str(Path(__file__).parent),
        folder=str(tmp_path),
        bundle=str(tmp_path / "lost-bundle"),
        work=str(tmp_path / "lost-work"),
        settings=SETTINGS,
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=400, env=os.environ | SOON
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["workers"] == [2, 3] and found["end"] == 2
    assert min(map(tuple, found["seen"])) >= (1, 0), "it began again from zero"
    assert found["epochs"] == 4
    assert [row["train_loss"] for row in rows(found["history"])] == pytest.approx(
        [row["train_loss"] for row in rows(alone.history)], rel=1e-3
    )
    assert found["auroc"] == pytest.approx(alone.metrics["auroc"], abs=0.02)
