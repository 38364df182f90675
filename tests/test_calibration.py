"""Calibration: fitted scales are those the data were drawn with, the order of scores stays, and the way back exists."""

from __future__ import annotations

import numpy as np
import pytest

from medray.learning.objectives import BinaryObjective, MulticlassObjective, RegressionObjective
from medray.learning.objectives.calibration import logit, platt, temperature


def drawn(rows: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose logits are twice too far apart and one too high, and outcomes."""
    random = np.random.default_rng(0)
    logits = 2 * random.normal(size=rows)
    return 1 / (1 + np.exp(-logits)), random.random(rows) < 1 / (1 + np.exp(-(0.5 * logits - 1)))


def test_the_logit_of_a_half_is_zero_and_the_ends_are_finite():
    assert logit(np.array([0.5])).tolist() == [0.0]
    assert np.isfinite(logit(np.array([0.0, 1.0]))).all()


def test_platt_finds_the_scale_and_offset_that_the_outcomes_were_drawn_with():
    scale, offset = platt(*drawn())
    assert scale == pytest.approx(0.5, abs=0.05) and offset == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize("outcomes", [np.zeros(4, bool), np.ones(4, bool), np.array([1, 1, 0, 0], bool)])
def test_one_class_or_scores_against_the_truth_change_nothing(outcomes):
    assert platt(np.array([0.1, 0.2, 0.8, 0.9]), outcomes) == (1.0, 0.0)


def test_a_perfect_separation_has_a_finite_answer():
    scale, offset = platt(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1], bool))
    assert 0 < scale < 10 and abs(offset) < 1


def test_the_temperature_undoes_a_power_of_the_probabilities():
    random = np.random.default_rng(1)
    logits = random.normal(size=(5000, 3))
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (honest.cumsum(axis=1) > random.random(5000)[:, None]).argmax(axis=1)
    sharp = honest**3 / (honest**3).sum(axis=1, keepdims=True)
    assert temperature(sharp, truth) == pytest.approx(1 / 3, abs=0.03)


def test_a_calibrated_objective_has_a_smaller_error_the_same_order_and_a_way_back():
    scores, outcomes = drawn()
    column, targets = scores[:, None].astype(np.float32), outcomes[:, None].astype(float)
    objective = BinaryObjective(calibration="validation").calibrated(column, targets)
    after = objective.recalibrated(column)
    assert objective.metrics(after, targets, (0.5,))["ece"] < 0.03 < objective.metrics(column, targets, (0.5,))["ece"]
    assert (np.argsort(after[:, 0], kind="stable") == np.argsort(column[:, 0], kind="stable")).mean() > 0.99
    assert np.allclose(objective.uncalibrated(after), column, atol=1e-5)


def test_calibrated_classes_still_add_up_to_one():
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], np.float32)
    objective = MulticlassObjective(calibration="validation").calibrated(scores, np.array([[0.0], [1.0], [0.0]]))
    assert objective.recalibrated(scores).sum(axis=1) == pytest.approx([1, 1, 1])
    assert np.allclose(objective.uncalibrated(objective.recalibrated(scores)), scores, atol=1e-6)


def test_an_objective_that_is_not_asked_or_has_no_probabilities_stays_as_it_is():
    scores, targets = np.array([[0.2], [0.7]]), np.array([[0.0], [1.0]])
    assert BinaryObjective().calibrated(scores, targets).calibrator is None
    assert RegressionObjective(calibration="validation").calibrated(scores, targets).calibrator is None
