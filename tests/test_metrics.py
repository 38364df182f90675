"""Metrics against numbers counted by hand and against scikit-learn; the bootstrap against the metrics themselves."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn import metrics as sk

from medray.errors import MedrayError
from medray.learning import bootstrap as boot
from medray.learning.metrics import BINARY, CLASSIFICATION, METRICS, REGRESSION
from medray.learning.objectives import BinaryObjective, MulticlassObjective, MultilabelObjective, RegressionObjective

N = 600
SUBJECTS = np.array([f"s{i // 3}" for i in range(N)])


def binary_case(seed: int = 0, rows: int = N) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = (random.random((rows, 1)) < 0.3).astype(np.float32)
    scores = np.clip(0.3 * truth + 0.7 * random.random((rows, 1)), 0, 1)
    return np.round(scores, 2).astype(np.float32), truth  # rounded: with ties


def multiclass_case(seed: int = 0, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, (N, 1))
    logits = random.normal(size=(N, classes)) + 1.5 * np.eye(classes)[truth[:, 0]]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return scores.astype(np.float32), truth.astype(np.float32)


def multilabel_case() -> tuple[np.ndarray, np.ndarray]:
    cases = [binary_case(seed) for seed in (1, 2, 3)]
    scores, truth = (np.hstack([case[i] for case in cases]) for i in (0, 1))
    truth[::5, 1] = np.nan
    return scores, truth


def regression_case() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    truth = random.normal(50, 10, (N, 2)).astype(np.float32)
    truth[::7, 1] = np.nan
    return np.nan_to_num(truth, nan=50) + random.normal(1, 4, (N, 2)), truth


CASES = {
    "binary": (BinaryObjective(), *binary_case(), (0.5,)),
    "multiclass": (MulticlassObjective(), *multiclass_case(), ()),
    "multilabel": (MultilabelObjective(), *multilabel_case(), (0.4, 0.5, 0.6)),
    "regression": (RegressionObjective(), *regression_case(), ()),
}


def scalars(objective, found) -> dict[str, float | None]:
    return {name: found[name] for name in objective.scalar_metrics() if name in found}


# --- by hand ----------------------------------------------------------------------------------------------------


def test_binary_metrics_counted_by_hand():
    scores, truth = np.array([[0.9], [0.6], [0.5], [0.2], [0.1]]), np.array([[1.0], [0], [1], [1], [0]])
    found = BinaryObjective().metrics(scores, truth, (0.5,))  # called: 1 1 1 0 0
    assert found["confusion_matrix"] == [[1, 1], [1, 2]]
    expected = {
        "accuracy": 3 / 5,
        "sensitivity": 2 / 3,
        "specificity": 1 / 2,
        "balanced_accuracy": 7 / 12,
        "precision": 2 / 3,
        "f1": 2 / 3,
        "auroc": 4 / 6,  # 6 pairs of a positive and a negative: .9 beats both, .5 and .2 beat .1
        "auprc": (1 / 1 + 2 / 3 + 3 / 4) / 3,
        "brier": (0.01 + 0.36 + 0.25 + 0.64 + 0.01) / 5,
        "ece": (0.1 + 0.6 + 0.5 + 0.8 + 0.1) / 5,  # each row in a bin of its own
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_score_equal_to_the_threshold_is_called_positive():
    score = np.array([[0.3]], np.float32)  # 0.3 in float32 is above 0.3 in float64
    assert BinaryObjective().metrics(score, np.ones((1, 1)), (float(score[0, 0]),))["sensitivity"] == 1


def test_multiclass_metrics_counted_by_hand():
    scores = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
    truth = np.array([[0.0], [1], [1], [2]])
    found = MulticlassObjective().metrics(scores, truth, (), ("a", "b", "c"))
    assert found["confusion_matrix"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert found["accuracy"] == 0.75
    assert found["balanced_accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["precision"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert found["per_class"]["b"]["sensitivity"] == 0.5
    assert found["per_class"]["a"]["precision"] == 0.5
    assert {name: each["n"] for name, each in found["per_class"].items()} == {"a": 1, "b": 2, "c": 1}
    assert found["brier"] == pytest.approx((0.06 + 0.14 + 0.86 + 0.14) / 4)


def test_regression_metrics_counted_by_hand():
    found = RegressionObjective().metrics(np.array([[1.0], [2], [6]]), np.array([[1.0], [3], [5]]))
    assert found["mae"] == pytest.approx(2 / 3)
    assert found["rmse"] == pytest.approx(math.sqrt(2 / 3))
    assert found["r2"] == pytest.approx(1 - 2 / 8)


# --- not defined ------------------------------------------------------------------------------------------------


def test_a_metric_that_is_not_defined_is_none_and_never_a_number():
    found = BinaryObjective().metrics(np.array([[0.2], [0.3]]), np.zeros((2, 1)), (0.5,))
    undefined = {"sensitivity", "balanced_accuracy", "precision", "f1", "f_beta", "mcc", "auroc", "auprc"}
    assert {name for name in CLASSIFICATION if found[name] is None} == undefined
    assert found["specificity"] == 1
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("name", CASES)
def test_no_rows_give_no_numbers(name):
    objective, scores, targets, thresholds = CASES[name]
    found = objective.metrics(scores[:0], targets[:0], thresholds)
    assert set(scalars(objective, found).values()) == {None}
    assert objective.bootstrap(scores[:0], targets[:0], SUBJECTS[:0], thresholds, resamples=10) == {}


def test_a_class_without_rows_is_left_out_of_the_means_and_one_never_called_counts_as_precision_zero():
    scores = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.9, 0.1, 0.0]])
    found = MulticlassObjective().metrics(scores, np.array([[0.0], [1], [0]]), ())
    assert found["balanced_accuracy"] == 0.5  # 1 and 0; the third class has no rows
    assert found["precision"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["per_class"]["1"]["precision"] is None
    assert found["per_class"]["2"]["sensitivity"] is None
    assert found["per_class"]["2"]["auroc"] is None
    json.dumps(found, allow_nan=False)


def test_r2_of_one_constant_target_is_not_defined():
    found = RegressionObjective().metrics(np.array([[1.0], [2.0]]), np.array([[3.0], [3.0]]))
    assert found["r2"] is None
    assert found["mae"] == 1.5


def test_rows_without_a_target_change_nothing():
    for objective, scores, targets, thresholds in CASES.values():
        more_scores = np.vstack([scores, scores[:3]])
        more_targets = np.vstack([targets, np.full((3, targets.shape[1]), np.nan)])
        assert objective.metrics(more_scores, more_targets, thresholds) == objective.metrics(
            scores, targets, thresholds
        )


def test_scores_that_are_no_probabilities_are_refused():
    with pytest.raises(ValueError, match="probabilities"):
        BinaryObjective().metrics(np.array([[2.0]]), np.ones((1, 1)), (0.5,))
    with pytest.raises(MedrayError, match="not finite"):
        RegressionObjective().metrics(np.array([[np.inf]]), np.ones((1, 1)))


# --- against scikit-learn ---------------------------------------------------------------------------------------


def test_binary_metrics_equal_scikit_learns():
    scores, truth = binary_case()
    found = BinaryObjective().metrics(scores, truth, (0.5,))
    score, true, called = scores[:, 0], truth[:, 0].astype(int), (scores[:, 0] >= 0.5).astype(int)
    expected = {
        "accuracy": sk.accuracy_score(true, called),
        "balanced_accuracy": sk.balanced_accuracy_score(true, called),
        "sensitivity": sk.recall_score(true, called),
        "specificity": sk.recall_score(true, called, pos_label=0),
        "precision": sk.precision_score(true, called),
        "f1": sk.f1_score(true, called),
        "auroc": sk.roc_auc_score(true, score),
        "auprc": sk.average_precision_score(true, score),
        "brier": sk.brier_score_loss(true, score.astype(np.float64)),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found["confusion_matrix"] == sk.confusion_matrix(true, called).tolist()


def test_multiclass_metrics_equal_scikit_learns():
    scores, truth = multiclass_case()
    scores = scores / scores.sum(axis=1, keepdims=True)
    found = MulticlassObjective().metrics(scores, truth, (), ("a", "b", "c", "d"))
    true, called = truth[:, 0].astype(int), scores.argmax(axis=1)
    hot = np.eye(4)[true]
    expected = {
        "accuracy": sk.accuracy_score(true, called),
        "balanced_accuracy": sk.balanced_accuracy_score(true, called),
        "precision": sk.precision_score(true, called, average="macro"),
        "f1": sk.f1_score(true, called, average="macro"),
        "auroc": sk.roc_auc_score(hot, scores, average="macro"),
        "auprc": sk.average_precision_score(hot, scores, average="macro"),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    each = [found["per_class"][name]["sensitivity"] for name in "abcd"]
    assert each == pytest.approx(sk.recall_score(true, called, average=None))


def test_multilabel_metrics_are_the_means_of_the_binary_ones_on_known_rows():
    objective, scores, targets, thresholds = CASES["multilabel"]
    found = objective.metrics(scores, targets, thresholds, ("x", "y", "z"))
    for k, name in enumerate("xyz"):
        known = ~np.isnan(targets[:, k])
        one = BinaryObjective().metrics(scores[known, k : k + 1], targets[known, k : k + 1], (thresholds[k],))
        expected = scalars(BinaryObjective(), one)
        assert {m: found["per_label"][name][m] for m in expected} == expected
        assert found["confusion_matrix"][k] == one["confusion_matrix"]
    for metric in CLASSIFICATION:
        assert found[metric] == pytest.approx(np.mean([found["per_label"][name][metric] for name in "xyz"]))
    assert found["per_label"]["y"]["n"] == 480


def test_regression_metrics_equal_scikit_learns():
    objective, values, targets, _ = CASES["regression"]
    found = objective.metrics(values, targets, (), ("a", "b"))
    for k, name in enumerate("ab"):
        known = ~np.isnan(targets[:, k])
        pair = targets[known, k].astype(np.float64), values[known, k]
        assert found["per_output"][name]["mae"] == pytest.approx(sk.mean_absolute_error(*pair))
        assert found["per_output"][name]["rmse"] == pytest.approx(math.sqrt(sk.mean_squared_error(*pair)))
        assert found["per_output"][name]["r2"] == pytest.approx(sk.r2_score(*pair), abs=1e-6)


# --- order, batches, workers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_metrics_of_gathered_batches_in_any_order_are_those_of_the_whole(name):
    objective, scores, targets, thresholds = CASES[name]
    whole = scalars(objective, objective.metrics(scores, targets, thresholds))
    parts = [np.arange(start, N, 3) for start in range(3)]  # as three workers hold them
    gathered = np.concatenate(parts[::-1])
    again = scalars(objective, objective.metrics(scores[gathered], targets[gathered], thresholds))
    assert again == pytest.approx(whole, abs=1e-6)  # torchmetrics sums bins of ECE in float32
    assert objective.choose_threshold(scores[gathered], targets[gathered]) == objective.choose_threshold(
        scores, targets
    )


# --- bootstrap --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_resample_of_every_row_once_equals_the_metrics(name):
    objective, scores, targets, thresholds = CASES[name]
    weighted = objective.weighted_metrics(
        scores.astype(np.float64), targets.astype(np.float64), thresholds, np.ones((N, 1))
    )
    found = scalars(objective, objective.metrics(scores, targets, thresholds))
    assert {metric: weighted[metric][0] for metric in found} == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_resample_equals_the_metrics_of_the_repeated_rows(name):
    objective, scores, targets, thresholds = CASES[name]
    weights = np.hstack(list(boot.resampled_weights(SUBJECTS, 3, seed=1)))
    weighted = objective.weighted_metrics(scores.astype(np.float64), targets.astype(np.float64), thresholds, weights)
    for column in range(3):
        rows = np.repeat(np.arange(N), weights[:, column].astype(int))
        found = scalars(objective, objective.metrics(scores[rows], targets[rows], thresholds))
        assert {metric: weighted[metric][column] for metric in found} == pytest.approx(found, abs=1e-6)


def test_whole_subjects_are_drawn_as_many_as_there_are():
    weights = np.hstack(list(boot.resampled_weights(SUBJECTS, 50, seed=0)))
    assert weights.shape == (N, 50)
    by_subject = weights.reshape(N // 3, 3, 50)
    assert (by_subject == by_subject[:, :1]).all()
    assert (by_subject[:, 0].sum(axis=0) == N // 3).all()


def test_the_same_seed_gives_the_same_intervals_and_chunks_do_not_matter(monkeypatch):
    objective, scores, targets, thresholds = CASES["binary"]
    arguments = scores, targets, SUBJECTS, thresholds
    whole = objective.bootstrap(*arguments, resamples=50, seed=3)
    monkeypatch.setattr(boot, "CELLS", 7 * N)
    again = objective.bootstrap(*arguments, resamples=50, seed=3)
    assert again.keys() == whole.keys()
    for metric, pair in whole.items():
        assert again[metric] == pytest.approx(pair)
    assert objective.bootstrap(*arguments, resamples=50, seed=4) != whole


@pytest.mark.parametrize("name", CASES)
def test_an_interval_holds_the_metric_for_every_scalar(name):
    objective, scores, targets, thresholds = CASES[name]
    found = objective.metrics(scores, targets, thresholds)
    pairs = objective.bootstrap(scores, targets, SUBJECTS, thresholds, resamples=200)
    assert set(pairs) == set(objective.scalar_metrics()) & found.keys()
    for metric, (low, high) in pairs.items():
        if metric != "ece":  # biased upwards on resamples
            assert low < found[metric] < high


def test_the_interval_of_a_mean_is_the_textbook_one():
    random = np.random.default_rng(0)
    truth = (random.random((2000, 1)) < 0.5).astype(np.float32)
    scores = np.where(random.random((2000, 1)) < 0.8, truth, 1 - truth)  # right 8 times in 10
    pair = BinaryObjective().bootstrap(scores, truth, np.arange(2000).astype(str), (0.5,), resamples=2000)["accuracy"]
    share = (scores == truth).mean()
    half = 1.96 * math.sqrt(share * (1 - share) / 2000)
    assert pair == pytest.approx((share - half, share + half), abs=0.003)


def test_rows_of_few_subjects_have_a_wider_interval_than_rows_of_many():
    scores, truth = binary_case()
    few = np.array([f"s{i // 60}" for i in range(N)])
    order = np.argsort(truth[:, 0] - scores[:, 0])  # neighbours are alike, as images of one subject are
    alike = BinaryObjective().bootstrap(scores[order], truth[order], few, (0.5,), resamples=300)["accuracy"]
    apart = BinaryObjective().bootstrap(scores, truth, np.arange(N).astype(str), (0.5,), resamples=300)["accuracy"]
    assert alike[1] - alike[0] > 2 * (apart[1] - apart[0])


def test_a_metric_that_resamples_mostly_cannot_give_has_no_interval():
    scores, truth = np.array([[0.1], [0.2], [0.3]]), np.zeros((3, 1))
    pairs = BinaryObjective().bootstrap(scores, truth, np.array(["a", "b", "c"]), (0.5,), resamples=50)
    assert set(pairs) == {"accuracy", "specificity", "ece", "brier"}
    assert pairs["specificity"] == (1, 1)


# --- names ------------------------------------------------------------------------------------------------------


def test_every_metric_has_a_direction_and_a_meaning():
    assert set(METRICS) == {"loss", *CLASSIFICATION, *BINARY, *REGRESSION}
    for objective, *_ in CASES.values():
        for name in (*objective.scalar_metrics(), *objective.headline(), *objective.curve_metrics(), "loss"):
            metric = objective.metric(name)
            assert metric.title and metric.meaning and metric.direction == objective.direction(name)
