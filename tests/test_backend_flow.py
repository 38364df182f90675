"""Back ends in whole runs: the same bits on every engine and after a kill, what the store says, and nothing scored twice."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy

from medray.engines.local import LocalEngine
from medray.engines.spec import RaySpec
from medray.errors import BundleError
from medray.learning import bundles, graphs
from medray.scores import ScoreStore
from medray.verbs.evaluate import evaluate
from medray.verbs.inspect import inspect_history
from medray.verbs.score import score
from medray.verbs.train import train

pytest.importorskip("onnxruntime")
ENTRIES = 96
ONNX = {"kind": "local", "backend": "onnx"}


class Heard:
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.facts: dict[str, dict[str, object]] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def fact(self, event: str, level: str = "info", **facts: object) -> None:
        self.facts[event] = facts

    def begin(self, name: str, total: int) -> None: ...

    def advance(self, done: int, failed: int) -> None: ...

    def training(self, live: object) -> None: ...

    def about(self, **facts: str) -> None: ...


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with an archive and the bundle trained on it, which carries its graph."""
    folder = tmp_path_factory.mktemp("trained")
    toy.write_archive(folder, ENTRIES)
    heard = Heard()
    train(toy.train_run(folder), LocalEngine(), heard)
    assert heard.facts["graph"] == {"made": True} and not any("ONNX" in note for note in heard.notes)
    assert bundles.load(str(folder / "bundle")).graph is not None
    return folder


@pytest.fixture(scope="module")
def reference(trained):
    """Scores of the whole archive by the local engine and onnxruntime."""
    score(toy.score_run(trained, store=str(trained / "r"), work=str(trained / "w"), engine=ONNX), LocalEngine())
    return toy.scores(trained / "r")


def different_bits(found, expected) -> int:
    assert found.keys() == expected.keys() and len(found) == ENTRIES
    pairs = np.array([(found[key], expected[key]) for key in expected], np.float32).view(np.uint32)
    return int((pairs[:, 0] != pairs[:, 1]).sum())


@pytest.mark.parametrize("batch_size", [1, 7, 96, 256])
def test_the_batch_size_changes_no_bit(trained, reference, tmp_path, batch_size):
    run = toy.score_run(
        trained, store=str(tmp_path / "s"), work=str(tmp_path / "w"), batch_size=batch_size, engine=ONNX
    )
    score(run, LocalEngine())
    assert different_bits(toy.scores(tmp_path / "s"), reference) == 0


@pytest.mark.parametrize(("backend", "workers"), [("onnx", 1), ("onnx", 2), ("onnx", 4), ("torch", 4)])
def test_engine_workers_and_order_change_no_bit(
    trained, reference, tmp_path, ray_session, monkeypatch, backend, workers
):
    from medray.engines.ray.engine import RayEngine
    from medray.verbs import score as verb

    monkeypatch.setattr(verb, "ENTRIES_PER_SHARD", 8)
    monkeypatch.setattr(verb, "MANY_ENTRIES", 8)
    spec = RaySpec(workers=workers, cpus_per_worker=min(1.0, 2 / workers), backend=backend)
    run = toy.score_run(
        trained, store=str(tmp_path / "s"), work=str(tmp_path / "w"), batch_size=5, order="oldest", engine=spec
    )
    result = score(run, RayEngine(spec))
    assert (result.scored, result.failed) == (ENTRIES, 0)
    if backend == "torch":
        local = toy.score_run(trained, store=str(tmp_path / "l"), work=str(tmp_path / "v"))
        score(local, LocalEngine())
        reference = toy.scores(tmp_path / "l")
    assert different_bits(toy.scores(tmp_path / "s"), reference) == 0


KILLED = """
import os, signal, sys
from medray.config import runs
from medray.engines.local import LocalEngine
from medray.progress import Silent
from medray.verbs import score as verb
verb.ENTRIES_PER_SHARD = verb.MANY_ENTRIES = 8
class Ends(Silent):
    done = 0
    def begin(self, name, total):
        self.name = name
    def advance(self, done, failed):
        self.done += done if self.name == "score" else 0
        if self.done >= 40:
            os.kill(os.getpid(), signal.SIGKILL)
run = runs.load(sys.argv[1])
verb.score(run, LocalEngine(), Ends())
"""


def test_a_kill_and_a_resumed_run_change_no_bit(trained, reference, tmp_path):
    run = toy.score_run(trained, store=str(tmp_path / "s"), work=str(tmp_path / "w"), commit_seconds=1e-6, engine=ONNX)
    file = toy.write_run_file(tmp_path / "score.toml", run)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(file)], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = toy.scores(tmp_path / "s")
    assert 0 < len(before) < ENTRIES
    result = score(run.model_copy(update={"batch_size": 3}), LocalEngine())
    assert result.scored == ENTRIES - len(before)
    assert different_bits(toy.scores(tmp_path / "s"), reference) == 0


def test_another_back_end_scores_nothing_again_and_the_audit_says_which_scored(trained, tmp_path):
    by_torch = toy.score_run(trained, store=str(tmp_path / "s"), work=str(tmp_path / "w"), limit=60)
    heard = Heard()
    assert score(by_torch, LocalEngine(), heard).scored == 60
    assert not any("computed by" in note for note in heard.notes)
    by_graph = toy.score_run(trained, store=str(tmp_path / "s"), work=str(tmp_path / "w"), engine=ONNX)
    result = score(by_graph, LocalEngine(), heard)
    assert (result.pending, result.scored) == (ENTRIES - 60, ENTRIES - 60)
    assert f"scores are computed by {graphs.runtime()}" in heard.notes
    assert score(by_torch, LocalEngine()).pending == 0
    titles = [run["backend"] for run in ScoreStore.open(str(tmp_path / "s")).runs()]
    assert titles[0] == titles[2] != titles[1] == graphs.runtime() and titles[0].startswith("torch ")
    shown = inspect_history(str(tmp_path / "s")).tables["runs"]
    assert [row["backend"] for row in shown if row["what"] == "score"] == titles


def test_a_network_without_a_graph_is_scored_by_torch_under_auto_and_refused_under_onnx(tmp_path):
    toy.write_archive(tmp_path, 24)
    size = {"kind": "imaging", "size": [40, 40], "dtype": "uint8"}  # the logistic model averages 40 to 32 pixels
    heard = Heard()
    train(toy.train_run(tmp_path, model={"kind": "logistic"}, modality=size), LocalEngine(), heard)
    assert heard.facts["graph"] == {"made": False}
    assert any("no ONNX graph, so that torch alone scores it: it cannot be exported" in note for note in heard.notes)
    with pytest.raises(BundleError, match="no ONNX graph that may score"):
        score(toy.score_run(tmp_path, engine=ONNX), LocalEngine())
    assert not (tmp_path / "scores").exists()
    score(toy.score_run(tmp_path, engine={"kind": "local", "backend": "auto"}), LocalEngine(), heard)
    (run,) = ScoreStore.open(str(tmp_path / "scores")).runs()
    assert run["backend"].startswith("torch ") and "it cannot be exported" in run["backend"]
    assert f"scores are computed by {run['backend']}" in heard.notes


def test_evaluation_by_either_back_end_has_the_same_figures(trained):
    run = toy.train_run(trained)
    by_torch = evaluate(run, LocalEngine())
    by_graph = evaluate(run.model_copy(update={"engine": toy.score_run(trained, engine=ONNX).engine}), LocalEngine())
    assert by_graph.n == by_torch.n
    assert by_graph.metrics["auroc"] == pytest.approx(by_torch.metrics["auroc"], abs=1e-6)
    assert by_graph.metrics["brier"] == pytest.approx(by_torch.metrics["brier"], abs=1e-5)


def test_a_store_from_before_the_back_end_was_kept_goes_on(trained, tmp_path, monkeypatch):
    import pyarrow as pa

    from medray.scores import audit

    run = toy.score_run(trained, store=str(tmp_path / "s"), work=str(tmp_path / "w"), limit=10)
    with monkeypatch.context() as patch:
        patch.setattr(audit, "RUNS", pa.schema([field for field in audit.RUNS if field.name != "backend"]))
        score(run, LocalEngine())
    assert [each["backend"] for each in ScoreStore.open(str(tmp_path / "s")).runs()] == [None]
    score(run, LocalEngine())
    titles = [each["backend"] for each in ScoreStore.open(str(tmp_path / "s")).runs()]
    assert titles[0].startswith("torch ") and titles[1] is None


def test_a_night_scores_by_the_back_end_of_its_run_file(trained, tmp_path):
    from medray.config.runs import NightlyRun
    from medray.verbs.nightly import nightly

    settings = toy.score_run(trained, store=str(tmp_path / "s"), work=str(tmp_path / "w"), engine=ONNX)
    run = NightlyRun.model_validate(
        settings.model_dump(exclude={"bundle"}, exclude_unset=True)
        | {"bundles": [str(trained / "bundle")], "summary": str(tmp_path / "summary")}
    )
    assert nightly(run, LocalEngine()).scored == ENTRIES
    (row,) = [each for each in ScoreStore.open(str(tmp_path / "s")).runs() if each["what"] == "score"]
    assert row["backend"] == graphs.runtime()
    assert json.loads(Path(tmp_path / "summary" / "latest.json").read_text())["scored"] == ENTRIES
