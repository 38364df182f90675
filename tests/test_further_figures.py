"""MCC, F-beta, likelihood ratios, PPV and NPV at a prevalence; and how sure a threshold is that few rows chose."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import toy
from sklearn import metrics as sk
from test_metrics import SUBJECTS, N, binary_case, multiclass_case

from medray.engines.local import LocalEngine
from medray.errors import RunFileError
from medray.learning import bootstrap as boot
from medray.learning import bundles
from medray.learning.metrics import BINARY, MetricOptions
from medray.learning.objectives import BinaryObjective, MulticlassObjective, MultilabelObjective, RegressionObjective
from medray.learning.thresholds import FEW, choose
from medray.verbs.evaluate import evaluate
from medray.verbs.train import train

AT_5 = MetricOptions(beta=2.0, prevalence=0.05)


def counted(tn: int, fp: int, fn: int, tp: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets, each (N, 1), of these counts at the threshold 0.5."""
    truth = np.repeat([0.0, 0.0, 1.0, 1.0], [tn, fp, fn, tp])[:, None]
    return np.repeat([0.2, 0.8, 0.2, 0.8], [tn, fp, fn, tp])[:, None], truth


# --- by hand --------------------------------------------------------------------------------------------------


def test_figures_of_two_classes_counted_by_hand():
    found = BinaryObjective().metrics(*counted(tn=80, fp=10, fn=2, tp=8), (0.5,), options=AT_5)
    sensitivity, specificity = 0.8, 8 / 9
    assert found["mcc"] == pytest.approx((8 * 80 - 10 * 2) / math.sqrt(18 * 10 * 90 * 82))
    assert found["f_beta"] == pytest.approx(5 * 8 / (5 * 8 + 4 * 2 + 10))
    assert found["lr_positive"] == pytest.approx(0.8 / (1 / 9))
    assert found["lr_negative"] == pytest.approx(0.2 / (8 / 9))
    ppv = sensitivity * 0.05 / (sensitivity * 0.05 + (1 - specificity) * 0.95)
    npv = specificity * 0.95 / (specificity * 0.95 + (1 - sensitivity) * 0.05)
    assert (found["ppv_at_prevalence"], found["npv_at_prevalence"]) == (pytest.approx(ppv), pytest.approx(npv))


def test_at_the_prevalence_of_the_rows_themselves_ppv_is_the_precision():
    scores, truth = counted(tn=80, fp=10, fn=2, tp=8)
    found = BinaryObjective().metrics(scores, truth, (0.5,), options=MetricOptions(prevalence=0.1))
    assert found["ppv_at_prevalence"] == pytest.approx(found["precision"])
    assert found["npv_at_prevalence"] == pytest.approx(80 / 82)


def test_a_prevalence_moves_by_the_likelihood_ratio():
    """Odds after = odds before x LR+ (Altman & Bland 1994)."""
    found = BinaryObjective().metrics(*counted(tn=80, fp=10, fn=2, tp=8), (0.5,), options=AT_5)
    odds = 0.05 / 0.95 * found["lr_positive"]
    assert found["ppv_at_prevalence"] == pytest.approx(odds / (1 + odds))


def test_without_a_stated_prevalence_there_is_no_such_figure():
    found = BinaryObjective().metrics(*counted(1, 1, 1, 1), (0.5,))
    assert not {"ppv_at_prevalence", "npv_at_prevalence"} & found.keys()


# --- against scikit-learn -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_figures_of_two_classes_equal_scikit_learns(beta):
    scores, truth = binary_case()
    found = BinaryObjective().metrics(scores, truth, (0.5,), options=MetricOptions(beta=beta))
    true, called = truth[:, 0].astype(int), (scores[:, 0] >= 0.5).astype(int)
    positive, negative = sk.class_likelihood_ratios(true, called)
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(true, called))
    assert found["f_beta"] == pytest.approx(sk.fbeta_score(true, called, beta=beta))
    assert (found["lr_positive"], found["lr_negative"]) == (pytest.approx(positive), pytest.approx(negative))
    if beta == 1:
        assert found["f_beta"] == pytest.approx(found["f1"])


def test_figures_of_classes_equal_scikit_learns():
    scores, truth = multiclass_case()
    found = MulticlassObjective().metrics(scores, truth, (), ("a", "b", "c", "d"), MetricOptions(beta=0.5))
    true, called = truth[:, 0].astype(int), scores.argmax(axis=1)
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(true, called))
    assert found["f_beta"] == pytest.approx(sk.fbeta_score(true, called, beta=0.5, average="macro"))
    one = sk.class_likelihood_ratios((true == 1).astype(int), (called == 1).astype(int))
    assert (found["per_class"]["b"]["lr_positive"], found["per_class"]["b"]["lr_negative"]) == pytest.approx(one)
    assert not set(BINARY) & found.keys()


# --- not defined ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "undefined"),
    [
        ((5, 0, 2, 3), {"lr_positive"}),  # no false alarm: the ratio would be infinite
        ((0, 5, 2, 3), {"lr_negative"}),
        ((5, 0, 5, 0), {"mcc", "lr_positive", "ppv_at_prevalence"}),  # nothing is called positive
        ((0, 5, 0, 5), {"mcc", "lr_negative", "npv_at_prevalence"}),
        ((5, 5, 0, 0), {"mcc", "lr_positive", "lr_negative", "ppv_at_prevalence", "npv_at_prevalence"}),
        ((5, 0, 0, 0), {"mcc", "f_beta", "lr_positive", "lr_negative", "ppv_at_prevalence", "npv_at_prevalence"}),
    ],
)
def test_what_is_not_defined_is_null_and_never_a_number(counts, undefined):
    found = BinaryObjective().metrics(*counted(*counts), (0.5,), options=AT_5)
    assert {name for name in ("mcc", "f_beta", *BINARY) if found[name] is None} == undefined
    json.dumps(found, allow_nan=False)


def test_the_correlation_of_classes_that_are_all_called_one_is_null():
    scores = np.tile([0.8, 0.1, 0.1], (4, 1))
    assert MulticlassObjective().metrics(scores, np.array([[0.0], [1], [2], [0]]), ())["mcc"] is None


# --- intervals ------------------------------------------------------------------------------------------------


def test_intervals_are_those_of_the_repeated_rows_and_hold_the_figure():
    scores, truth = binary_case()
    weights = np.hstack(list(boot.resampled_weights(SUBJECTS, 2, seed=1)))
    weighted = BinaryObjective().weighted_metrics(
        scores.astype(np.float64), truth.astype(np.float64), (0.5,), weights, AT_5
    )
    for column in range(2):
        rows = np.repeat(np.arange(N), weights[:, column].astype(int))
        found = BinaryObjective().metrics(scores[rows], truth[rows], (0.5,), options=AT_5)
        for name in ("mcc", "f_beta", *BINARY):
            assert weighted[name][column] == pytest.approx(found[name])
    found = BinaryObjective().metrics(scores, truth, (0.5,), options=AT_5)
    pairs = BinaryObjective().bootstrap(scores, truth, SUBJECTS, (0.5,), resamples=200, options=AT_5)
    for name in ("mcc", "f_beta", *BINARY):
        assert pairs[name][0] < found[name] < pairs[name][1]
    assert not set(BINARY[2:]) & BinaryObjective().bootstrap(scores, truth, SUBJECTS, (0.5,), resamples=5).keys()


# --- thresholds chosen on few rows ----------------------------------------------------------------------------


def test_the_interval_of_a_threshold_is_that_of_what_resamples_choose():
    scores, truth = binary_case(rows=60)
    subjects = np.arange(60).astype(str)
    low, high = boot.threshold_interval(scores[:, 0], truth[:, 0] > 0.5, subjects, "youden", 0.95, resamples=300) or (
        0,
        0,
    )
    assert low < choose(scores[:, 0], truth[:, 0] > 0.5, "youden", 0.95) < high
    random, by_hand = np.random.default_rng(0), []
    for _ in range(300):
        drawn = np.bincount(random.integers(0, 60, 60), minlength=60)
        order = np.repeat(np.unique(subjects, return_inverse=True)[1].argsort(), drawn)  # subjects are sorted as text
        by_hand.append(choose(scores[order, 0], truth[order, 0] > 0.5, "youden", 0.95))
    assert (low, high) == pytest.approx(np.quantile(by_hand, (0.025, 0.975)))


def test_few_rows_of_the_rarer_kind_have_an_interval_and_many_have_none():
    for positives, few in ((FEW - 1, True), (FEW, False)):
        truth = np.repeat([1.0, 0.0], [positives, 400])[:, None]
        scores = np.clip(np.random.default_rng(0).normal(0.3 + 0.3 * truth, 0.1), 0, 1)
        (choice,) = BinaryObjective().threshold_choice(scores, truth, np.arange(len(truth)).astype(str))
        assert (choice["positives"], choice["negatives"], choice["few"]) == (positives, 400, few)
        assert (choice["interval"] is not None) == few


def test_a_threshold_that_was_set_or_is_none_has_no_interval():
    scores, truth = binary_case(rows=20)
    subjects = np.arange(20).astype(str)
    assert BinaryObjective(threshold=0.3).threshold_choice(scores, truth, subjects) == ()
    assert MulticlassObjective().threshold_choice(np.eye(2)[truth[:, 0].astype(int)], truth, subjects) == ()
    assert RegressionObjective().threshold_choice(scores, truth, subjects) == ()
    two = MultilabelObjective().threshold_choice(
        np.hstack([scores, scores]), np.hstack([truth, truth * np.nan]), subjects
    )
    assert [each["positives"] for each in two] == [int(truth.sum()), 0] and two[1]["interval"] is None


# --- from training to report ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    toy.write_archive(folder, 60)
    train(toy.train_run(folder), LocalEngine())
    return folder


def test_bundle_card_and_report_say_how_sure_the_threshold_is(trained):
    recipe = bundles.load(str(trained / "bundle")).recipe
    (choice,) = recipe.training["threshold_choice"]
    low, high = choice["interval"]
    assert choice["few"] and choice["positives"] == choice["negatives"] == 6 and low <= recipe.thresholds[0] <= high
    card = (trained / "bundle" / "README.md").read_text()
    assert f"The threshold of lower was chosen on few rows (6 positive, 6 negative): 95% interval {low:.4g} to" in card
    result = evaluate(toy.train_run(trained), LocalEngine())
    assert "It was chosen on few rows, 6 positive and 6 negative ones" in Path(result.report).read_text(
        encoding="utf-8"
    )


def test_the_result_and_the_report_hold_the_figures_with_beta_and_prevalence(trained):
    run = toy.train_run(trained, evaluation={"resamples": 50, "beta": 0.5, "prevalence": 0.02})
    result = evaluate(run, LocalEngine())
    assert (result.beta, result.prevalence) == (0.5, 0.02)
    assert {"mcc", "f_beta", *BINARY} <= result.metrics.keys()
    page = Path(result.report).read_text(encoding="utf-8")
    assert "beta = 0.5" in page and "prevalence of 0.02" in page and "likelihood ratio" in page and "MCC" in page


def test_a_bundle_from_before_is_evaluated_without_an_interval_of_its_threshold(trained, tmp_path):
    bundle = bundles.load(str(trained / "bundle"))
    training = {name: value for name, value in bundle.recipe.training.items() if name != "threshold_choice"}
    old = bundles.TrainedModel(bundle.recipe.model_copy(update={"training": training}), bundle.weights)
    bundles.save(old, str(tmp_path / "old"))
    run = toy.train_run(trained, bundle=str(tmp_path / "old"))
    result = evaluate(run, LocalEngine())
    assert result.bundle_id == bundle.id and "few rows" not in Path(result.report).read_text(encoding="utf-8")


def test_a_prevalence_of_what_is_not_binary_is_refused(trained, tmp_path):
    recipe = toy.recipe(objective=MulticlassObjective(), thresholds=())
    bundles.save(bundles.make_bundle(recipe, toy.weights(recipe)), str(tmp_path / "bundle"))
    run = toy.train_run(trained, bundle=str(tmp_path / "bundle"), evaluation={"prevalence": 0.1})
    with pytest.raises(RunFileError, match="two classes"):
        evaluate(run, LocalEngine())
