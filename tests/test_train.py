"""Training through the verbs: resuming, workers, refusals. Real shards, real Ray, real kills."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy
from processes import descendants

from medray.engines import checkpoints as places
from medray.engines.local import LocalEngine
from medray.engines.spec import RaySpec
from medray.errors import BundleError, LabelError, MachineError, RunFileError
from medray.learning import bundles
from medray.progress import Silent
from medray.verbs.evaluate import evaluate
from medray.verbs.prepare import prepare
from medray.verbs.train import train


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    toy.write_archive(folder)
    return folder


def run_in(archive, folder, **changes):
    """A run on the module's archive that writes into `folder`."""
    places = {"bundle": str(folder / "bundle"), "work": str(folder / "work")}
    return toy.train_run(archive, **(places | changes))


def history(result) -> list[dict]:
    import pyarrow.csv

    return pyarrow.csv.read_csv(result.history).to_pylist()


def test_a_small_network_learns_the_toy_archive(archive, tmp_path):
    run = run_in(archive, tmp_path, training={"epochs": 8})
    result = train(run, LocalEngine())
    assert result.metrics["auroc"] > 0.95
    assert result.epochs == len(history(result)) == 8
    assert Path(result.history).with_name("learning_curve.png").read_bytes()[:4] == b"\x89PNG"
    tested = evaluate(run, LocalEngine())
    assert tested.n == 18 and tested.metrics["auroc"] > 0.9
    low, high = tested.intervals["auroc"]
    assert low <= tested.metrics["auroc"] <= high


def test_a_run_that_gives_mean_and_deviation_is_trained_and_evaluated_by_them(archive, tmp_path):
    known = toy.train_run(archive).modality.model_copy(update={"mean": (100.0,), "std": (50.0,)})
    run = run_in(archive, tmp_path, modality=known, training={"epochs": 1})
    result = train(run, LocalEngine())
    assert bundles.load(result.bundle).recipe.modality.mean == (100.0,)
    assert evaluate(run, LocalEngine()).n == 18


def test_the_same_run_gives_the_same_bundle_and_another_seed_another(archive, tmp_path):
    ids = [
        train(run_in(archive, tmp_path / str(i), training={"seed": seed}), LocalEngine()).bundle_id
        for i, seed in enumerate((1, 1, 2))
    ]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("decay", [None, 0.9])
def test_training_stopped_in_mid_epoch_goes_on_to_the_same_weights(archive, tmp_path, monkeypatch, decay):
    settings = {"epochs": 2, "batch_size": 2, "checkpoint_minutes": 1e-9, "average_weights": decay}
    whole = train(run_in(archive, tmp_path / "whole", training=settings), LocalEngine())
    saves = []

    class Killed(BaseException):
        pass

    def save_then_die(checkpoint, save):
        local_replace(checkpoint, save)
        saves.append(json.loads((checkpoint / "state.json").read_text()))
        if len(saves) == 1:
            raise Killed

    local_replace = places.replace_newest
    monkeypatch.setattr(places, "replace_newest", save_then_die)
    run = run_in(archive, tmp_path / "cut", training=settings)
    with pytest.raises(Killed):
        train(run, LocalEngine())
    resumed = train(run, LocalEngine())
    assert (saves[0]["epoch"], saves[0]["step"]) == (0, 20)
    assert (saves[1]["epoch"], saves[1]["step"]) != (0, 20), "it began again from zero"
    assert resumed.bundle_id == whole.bundle_id
    expected = [row["train_loss"] for row in history(whole)]
    assert [row["train_loss"] for row in history(resumed)] == pytest.approx(expected, rel=1e-6)


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_a_finished_training_is_not_repeated_unless_asked(archive, tmp_path):
    run = run_in(archive, tmp_path)
    first = train(run, LocalEngine())
    assert not first.reused
    assert train(run, LocalEngine()).reused
    fresh = train(run, LocalEngine(), fresh=True)
    assert not fresh.reused and fresh.bundle_id == first.bundle_id


@pytest.mark.parametrize("fresh", [False, True])
def test_the_bundle_of_another_training_stays_unless_it_may_be_replaced(archive, tmp_path, fresh):
    first = train(run_in(archive, tmp_path), LocalEngine())
    other_run = run_in(archive, tmp_path, training={"seed": 5})
    with pytest.raises(BundleError, match="holds the bundle of another training") as refused:
        train(other_run, LocalEngine(), fresh=fresh)
    assert first.bundle_id in str(refused.value) and "--replace" in str(refused.value)
    assert bundles.load(first.bundle).id == first.bundle_id
    notes = Notes()
    other = train(other_run, LocalEngine(), notes, fresh=fresh, replace=True)
    assert bundles.load(first.bundle).id == other.bundle_id != first.bundle_id
    assert fresh or [note for note in notes.said if f"{first.bundle_id[:12]}, is replaced" in note]


def test_a_bundle_that_another_training_put_there_meanwhile_stays(archive, tmp_path, monkeypatch):
    others = train(run_in(archive, tmp_path / "other", training={"seed": 5}), LocalEngine())
    run, fit = run_in(archive, tmp_path), LocalEngine.fit

    def late(engine, plan, show):
        fitted = fit(engine, plan, show)
        bundles.save(bundles.load(others.bundle), run.bundle_uri)
        return fitted

    monkeypatch.setattr(LocalEngine, "fit", late)
    with pytest.raises(BundleError, match="holds the bundle of another training"):
        train(run, LocalEngine())
    assert bundles.load(run.bundle_uri).id == others.bundle_id


def test_shards_are_prepared_once(archive, tmp_path):
    run = run_in(archive, tmp_path)
    assert not prepare(run, LocalEngine()).reused
    assert prepare(run, LocalEngine()).reused
    assert not prepare(run_in(archive, tmp_path, modality=run.modality.model_copy(update={"size": (8, 8)})), LocalEngine()).reused  # fmt: skip


def test_early_stopping_ends_training(archive, tmp_path):
    settings = {"epochs": 50, "learning_rate": 1e-9, "early_stopping": {"patience": 2, "min_delta": 0.01}}
    result = train(run_in(archive, tmp_path, training=settings), LocalEngine())
    assert (result.epochs, result.best_epoch) == (3, 1)
    assert "has not improved for 2 epochs" in result.stopped


def test_accumulation_gives_the_same_training_within_rounding(archive, tmp_path):
    whole = train(run_in(archive, tmp_path / "a"), LocalEngine())
    pieces = train(run_in(archive, tmp_path / "b", training={"accumulate": 4}), LocalEngine())
    assert [r["train_loss"] for r in history(pieces)] == pytest.approx(
        [r["train_loss"] for r in history(whole)], rel=1e-4
    )


def test_a_metric_that_is_none_is_refused_with_the_names_that_are(archive, tmp_path):
    with pytest.raises(RunFileError, match="no such metric") as caught:
        train(run_in(archive, tmp_path, training={"select_by": "dice"}), LocalEngine())
    assert "auroc" in caught.value.expected


def test_a_loss_that_is_no_number_stops_training_with_advice(archive, tmp_path):
    settings = {"optimizer": "sgd", "learning_rate": 1e30, "schedule": "constant"}
    with pytest.raises(MachineError, match="no longer a finite number") as caught:
        train(run_in(archive, tmp_path, training=settings), LocalEngine())
    assert "learning_rate" in caught.value.do


def test_one_class_cannot_be_told_apart(archive, tmp_path):
    rows = (archive / "labels.csv").read_text().replace("upper", "lower")
    (tmp_path / "labels.csv").write_text(rows)
    run = run_in(archive, tmp_path)
    run = run.model_copy(update={"labels": run.labels.model_copy(update={"table": str(tmp_path / "labels.csv")})})
    with pytest.raises(LabelError, match="two classes"):
        train(run, LocalEngine())


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ray_with_any_number_of_workers_trains_as_the_local_engine(archive, tmp_path, ray_session, workers):
    from medray.engines.ray.engine import RayEngine

    alone = train(run_in(archive, tmp_path / "local"), LocalEngine())
    many = train(run_in(archive, tmp_path / "ray"), RayEngine(RaySpec(workers=workers)))
    assert many.workers == workers
    losses = [[row["train_loss"] for row in history(result)] for result in (alone, many)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert many.metrics["auroc"] == pytest.approx(alone.metrics["auroc"], abs=0.02)


def test_a_worker_without_a_row_of_the_batch_waits_for_nobody_and_changes_nothing(archive, tmp_path, ray_session):
    from medray.engines.ray.engine import RayEngine

    settings = {"epochs": 2, "batch_size": 1}
    alone = train(run_in(archive, tmp_path / "local", training=settings), LocalEngine())
    many = train(run_in(archive, tmp_path / "ray", training=settings), RayEngine(RaySpec(workers=2)))
    losses = [[row["train_loss"] for row in history(result)] for result in (alone, many)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.slow  # test_engines.py does as much with a flow on every run
def test_a_worker_refuses_settings_once_and_in_words(archive, tmp_path, ray_session):
    from medray.engines.ray.engine import RayEngine

    run = run_in(archive, tmp_path, training={"select_by": "dice"})
    with pytest.raises(RunFileError, match="no such metric"):
        train(run, RayEngine(RaySpec(workers=2, max_failures=0)))


class KillAWorker:
    """Progress that kills one training worker's process, once, in the middle of the second epoch, or soon after."""

    def __init__(self, driver_children) -> None:
        self.children, self.killed = driver_children, None

    def begin(self, name, total): ...
    def advance(self, done, failed): ...
    def note(self, text): ...
    def about(self, **facts): ...
    def fact(self, event, level="info", **facts): ...

    def training(self, live):
        if self.killed is None and live["epoch"] >= 1 and live["step"] > 0:
            self.killed = self.children()[0]
            os.kill(self.killed, signal.SIGKILL)


def worker_processes() -> list[int]:
    """Process ids of the training workers of this process's own Ray."""
    return descendants(os.getpid(), b"ray::RayTrainWorker")


def test_training_survives_a_killed_worker(archive, tmp_path, ray_session):
    from medray.engines.ray.engine import RayEngine

    settings = {"epochs": 20, "batch_size": 2, "checkpoint_minutes": 1e-9}
    alone = train(run_in(archive, tmp_path / "whole", training=settings), LocalEngine())
    killer = KillAWorker(worker_processes)
    result = train(run_in(archive, tmp_path / "killed", training=settings), RayEngine(RaySpec(workers=2)), killer)
    assert killer.killed is not None
    assert result.epochs == 20
    expected = [row["train_loss"] for row in history(alone)]
    assert [row["train_loss"] for row in history(result)] == pytest.approx(expected, rel=1e-3)


DRIVER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import toy
from medray.engines.opening import open_engine
from medray.engines.spec import RaySpec
from medray.verbs.train import train
run = toy.train_run(Path({archive!r}), bundle={bundle!r}, work={work!r}, training={training!r})
engine = open_engine(RaySpec(workers=2))
result = train(run, engine)
print(result.model_dump_json())
engine.close()
"""


@pytest.mark.slow  # on engine local a training is stopped and goes on, and on Ray a worker is killed, on every run
def test_a_killed_driver_goes_on_from_the_last_checkpoint(archive, tmp_path):
    code = DRIVER.format(
        tests=str(Path(__file__).parent),
        archive=str(archive),
        bundle=str(tmp_path / "bundle"),
        work=str(tmp_path / "work"),
        training={"epochs": 6, "batch_size": 4, "checkpoint_minutes": 1e-9},
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    first = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    kept: list[Path] = []
    while not kept and time.monotonic() < deadline and first.poll() is None:
        kept = list(tmp_path.glob("work/training/*/checkpoint/state.json"))
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert kept, "no checkpoint before the deadline"
    before = max((json.loads(path.read_text()) for path in kept), key=lambda s: (s["epoch"], s["step"]))
    assert (before["epoch"], before["step"]) < (6, 0)

    second = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=180)
    assert second.returncode == 0, second.stderr
    result = json.loads(second.stdout.strip().splitlines()[-1])
    whole = train(run_in(archive, tmp_path / "whole", training={"epochs": 6, "batch_size": 4}), LocalEngine())
    weights = bundles.load(result["bundle"]).weights
    expected = bundles.load(whole.bundle).weights
    assert result["epochs"] == 6
    assert max(float(np.abs(weights[name] - expected[name]).max()) for name in expected) < 1e-3
    live = json.loads(next(tmp_path.glob("work/training/*/live.json")).read_text())
    assert live["history"][0]["seconds"] >= before["seconds"] or before["epoch"] > 0, "it began again from zero"


def test_a_class_that_validation_lacks_is_refused_before_the_first_epoch(archive, tmp_path):
    import csv

    with open(archive / "labels.csv", newline="") as stream:
        rows = list(csv.reader(stream))
    table = tmp_path / "labels.csv"
    with open(table, "w", newline="") as stream:
        csv.writer(stream).writerows(row for row in rows if row[1:] != ["validation", "lower"])
    labels = {"table": str(table), "key": "file", "columns": ["diagnosis"], "split_column": "split"}
    run = run_in(archive, tmp_path, labels=labels)
    with pytest.raises(LabelError, match="the validation split lacks a class") as refused:
        train(run, LocalEngine())
    assert "lower: train 30, validation 0, test 9" in str(refused.value)
    assert not (tmp_path / "work" / "training").exists()
