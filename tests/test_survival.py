"""An objective of a plug-in in one file, through train, evaluate and the report: nothing of medray asks which one it has."""

from __future__ import annotations

import csv
import json
import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import toy
from survival_objective import SurvivalObjective, kaplan_meier

from medray.cli.console import epoch_line
from medray.engines.local import LocalEngine
from medray.learning import bundles
from medray.plugins.installed import installed
from medray.progress import Live, Silent
from medray.verbs.evaluate import evaluate
from medray.verbs.train import train


@pytest.fixture(scope="module")
def plug_in(tmp_path_factory):
    """A distribution whose entry point is the objective, as pip leaves it: its folder on the path."""
    folder = tmp_path_factory.mktemp("installed")
    described = folder / "medray_survival-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: medray-survival\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(
        "[medray.objectives]\nexponential_survival = survival_objective:SurvivalObjective\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        installed.cache_clear()
        yield
    installed.cache_clear()


def by_pairs(scores: np.ndarray, targets: np.ndarray) -> float:
    """Concordance, pair by pair."""
    right = pairs = 0.0
    for i, j in permutations(range(len(scores)), 2):
        if targets[i, 0] < targets[j, 0] and targets[i, 1] == 1:
            pairs += 1
            right += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
    return right / pairs


def test_concordance_and_loss_counted_by_hand():
    targets = np.array([[1.0, 1], [2, 1], [3, 0], [4, 1]])
    scores = np.array([[0.9], [0.3], [0.5], [0.1]])
    # of the pairs 1-2, 1-3, 1-4, 2-3, 2-4 all are right but 2-3
    assert SurvivalObjective().metrics(scores, targets) == {"concordance": 0.8}
    assert SurvivalObjective().metrics(scores, targets * [1, 0]) == {"concordance": None}
    objective = SurvivalObjective().fitted(targets)
    assert objective.rate == 0.3
    logits, target = torch.tensor([[math.log(2)]] * 3), torch.tensor([[5.0, 1.0], [5.0, 0.0], [math.nan, math.nan]])
    assert objective.loss(logits, target).tolist() == pytest.approx([2 * 0.3 * 5 - math.log(2), 2 * 0.3 * 5, 0])
    assert objective.activate(logits)[0].item() == pytest.approx(0.6)


def test_the_survival_curve_of_four():
    times, share = kaplan_meier(np.array([[1.0, 1], [2, 1], [3, 0], [4, 1]]))
    assert times.tolist() == [0, 1, 2, 3, 4, 4]
    assert share.tolist() == pytest.approx([1, 1, 3 / 4, 1 / 2, 1 / 2, 0])


class Epochs(Silent):
    """Keeps the line of each epoch as a person sees it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def training(self, live: Live) -> None:
        self.lines = [epoch_line(row, live.get("metrics", ())) for row in live["history"]]


def test_an_objective_of_ones_own_is_trained_evaluated_and_reported(plug_in, tmp_path):
    toy.write_archive(tmp_path, 60)
    random = np.random.default_rng(0)
    with open(tmp_path / "labels.csv", newline="") as stream:
        entries = list(csv.DictReader(stream))
    with open(tmp_path / "labels.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file", "split", "time", "event"])
        for k, entry in enumerate(entries):  # the event comes four times as fast below
            time = random.exponential(2.5 if entry["diagnosis"] == "lower" else 10.0) + 0.01
            table.writerow([entry["file"], entry["split"], f"{time:.3f}", int(k % 5 != 0)])
    run = toy.train_run(
        tmp_path,
        objective={"kind": "exponential_survival"},
        labels={
            "table": str(tmp_path / "labels.csv"),
            "key": "file",
            "columns": ["time", "event"],
            "split_column": "split",
        },
        training={"epochs": 4, "learning_rate": 0.01},
    )
    epochs = Epochs()
    trained = train(run, LocalEngine(), epochs)
    assert len(epochs.lines) == 4 and all(" concordance 0." in line for line in epochs.lines)
    recipe = bundles.load(run.bundle_uri).recipe
    assert recipe.outputs == ("rate",) and recipe.metrics["concordance"] == trained.metrics["concordance"]
    assert [(each.kind, each.distribution) for each in recipe.plugins] == [("exponential_survival", "medray-survival")]

    result = evaluate(run, LocalEngine())
    rows = pq.read_table(result.predictions)
    scores, targets = rows["rate"].to_numpy(), np.array(rows["target"].to_pylist())
    expected = by_pairs(scores, targets)
    assert result.n == 12 and expected > 0.5
    assert result.metrics == {"concordance": pytest.approx(expected)}
    low, high = result.intervals["concordance"]
    assert low < expected <= high
    written = json.loads(Path(result.report).with_name("metrics.json").read_text())
    assert written["metrics"]["concordance"] == result.metrics["concordance"]

    page = Path(result.report).read_text()
    for part in (f"<div class=\"head\">Concordance<b>{expected:.3f}</b>", "Pairs are compared", "<h3>Survival</h3>",
                 "<h2>Least expected events</h2>", "True: an event at", "<h3>Learning curve</h3>"):  # fmt: skip
        assert part in page, part
    assert "Most confident" not in page and "threshold" not in page.split("<h2>Data")[0].split("</style>")[1]
