"""Labels to targets, losses, activations, weights and thresholds, checked by hand on small numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from medray.errors import LabelError, MedrayError
from medray.learning.objectives import (
    BinaryObjective,
    MulticlassObjective,
    MultilabelObjective,
    ObjectiveSpec,
    RegressionObjective,
)

ALL = (BinaryObjective(), MulticlassObjective(), MultilabelObjective(), RegressionObjective())


def labels(*rows: list[str | None] | str | None) -> pa.Array:
    return pa.array([[row] if isinstance(row, str) else row for row in rows], pa.list_(pa.string()))


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


# --- the run file's [objective] ---------------------------------------------------------------------------------


def test_every_kind_is_read_by_its_name_and_survives_json():
    adapter = TypeAdapter(ObjectiveSpec)
    for objective in ALL:
        again = adapter.validate_json(adapter.dump_json(objective))
        assert again == objective
    fitted = RegressionObjective().fitted(column(1, 3))
    assert adapter.validate_json(adapter.dump_json(fitted)) == fitted


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "binary", "colour": 1},
        {"kind": "ranking"},
        {"kind": "binary", "threshold": "best"},
        {"kind": "binary", "threshold": 1.5},
        {"kind": "binary", "names": ["a"]},
        {"kind": "binary", "class_weights": [1, 2, 3]},
        {"kind": "multiclass", "class_weights": [1, 0, 3]},
        {"kind": "multiclass", "names": ["a", "a", "b"]},
        {"kind": "multiclass", "label_smoothing": 1.0},
        {"kind": "regression", "loss_function": "mape"},
        {"kind": "regression", "class_weights": "balanced"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValidationError):
        TypeAdapter(ObjectiveSpec).validate_python(settings)


def test_the_four_objectives_have_the_same_methods():
    shared = {"fit_classes", "targets", "display", "outputs", "width", "fitted", "weights", "loss", "activate",
              "choose_threshold", "metrics", "bootstrap", "scalar_metrics", "primary_metric"}  # fmt: skip
    for objective in ALL:
        assert shared <= set(dir(objective))
        name, direction = objective.primary_metric()
        assert name in objective.scalar_metrics()
        assert direction in ("max", "min")


# --- classes and targets ----------------------------------------------------------------------------------------


def test_classes_are_in_natural_order():
    assert MulticlassObjective().fit_classes(labels("10", "2", "1", "2", None)) == ("1", "2", "10")
    assert MulticlassObjective().fit_classes(labels("grade 10", "grade 9")) == ("grade 9", "grade 10")


def test_the_positive_class_is_the_last_one_unless_named():
    rows = labels("0", "1", None, "1")
    assert BinaryObjective().fit_classes(rows) == ("0", "1")
    named = BinaryObjective(names=("malignant", "normal"), positive="malignant")
    classes = named.fit_classes(rows)
    assert classes == ("1", "0")
    assert named.display(classes) == ("normal", "malignant")
    assert named.outputs(classes) == ("malignant",)
    assert named.width(classes) == 1
    assert named.targets(rows, classes).to_pylist() == [[1.0], [0.0], None, [0.0]]
    assert BinaryObjective(positive="0").fit_classes(rows) == ("1", "0")


def test_an_absent_label_stays_absent():
    rows = labels("b", None, [], " ", "nan", " a ", [None])
    objective = BinaryObjective()
    assert objective.targets(rows, objective.fit_classes(rows)).to_pylist() == [
        [1.0],
        None,
        None,
        None,
        None,
        [0.0],
        None,
    ]


def test_targets_of_a_slice_and_of_chunks_are_those_of_the_whole():
    rows = labels("a", None, "b", "c", [], "a")
    objective = MulticlassObjective()
    whole = objective.targets(rows, ("a", "b", "c")).to_pylist()
    assert whole == [[0.0], None, [1.0], [2.0], None, [0.0]]
    assert objective.targets(rows.slice(2, 3), ("a", "b", "c")).to_pylist() == whole[2:5]
    chunks = pa.chunked_array([rows.slice(0, 1), rows.slice(1)])
    assert objective.targets(chunks, ("a", "b", "c")).to_pylist() == whole


def test_a_multilabel_row_is_zeros_and_ones_and_may_be_known_in_part():
    rows = labels(["0", "1", "1.0"], ["true", "", None], None, ["", "", ""])
    objective = MultilabelObjective()
    classes = objective.fit_classes(rows)
    assert classes == ("label_0", "label_1", "label_2")
    assert objective.targets(rows, classes).to_pylist() == [[0.0, 1.0, 1.0], [1.0, None, None], None, None]
    assert MultilabelObjective(names=("x", "y", "z")).fit_classes(rows) == ("x", "y", "z")


def test_regression_reads_numbers():
    rows = labels(["1.5", "-2e3"], ["", "7"], None)
    objective = RegressionObjective()
    classes = objective.fit_classes(rows)
    assert classes == ("value_0", "value_1")
    assert objective.targets(rows, classes).to_pylist() == [[1.5, -2000.0], [None, 7.0], None]
    assert RegressionObjective().fit_classes(labels("61")) == ("value",)


@pytest.mark.parametrize(
    ("objective", "rows", "says"),
    [
        (BinaryObjective(), labels("a", "b", "c"), "'a', 'b', 'c'"),
        (BinaryObjective(), labels("a", "a"), "1: 'a'"),
        (BinaryObjective(), labels(None, ""), "no training row has a label"),
        (BinaryObjective(positive="c"), labels("a", "b"), "'c'"),
        (BinaryObjective(), labels(["0", "1"], ["1", "0"]), "one label in a row"),
        (MulticlassObjective(), labels("a"), "two classes or more"),
        (MulticlassObjective(names=("x", "y")), labels("a", "b", "c"), "2 names for 3 classes"),
        (MulticlassObjective(names=("b", "a")), labels("a", "b"), "swap"),
        (MulticlassObjective(class_weights=(1, 2)), labels("a", "b", "c"), "2 numbers"),
        (MultilabelObjective(), labels(["0"], ["0", "1"]), "the same number"),
        (MultilabelObjective(names=("x",)), labels(["0", "1"]), "1 names"),
        (RegressionObjective(), labels(None), "no row with a label"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_what_was_found(objective, rows, says):
    with pytest.raises(LabelError) as caught:
        objective.fit_classes(rows)
    assert says in str(caught.value)


def test_an_unknown_class_is_named_with_its_rows_when_it_is_a_short_code():
    with pytest.raises(LabelError) as caught:
        MulticlassObjective().targets(labels("a", "x", "x"), ("a", "b"))
    assert "'x' in 2 of 3 rows" in str(caught.value)


def test_an_unknown_class_that_may_be_a_name_a_date_or_a_record_number_is_not_shown():
    for secret in ("Doe, Jane", "1950-01-02", "MRN0012345", "a sentence of a report"):
        with pytest.raises(LabelError) as caught:
            MulticlassObjective().targets(labels("a", secret), ("a", "b"))
        assert secret not in str(caught.value)
        assert "labels that are no short codes (1 different) in 1 of 2 rows" in str(caught.value)


def test_numbers_must_be_finite_and_labels_zero_or_one():
    for text in ("inf", "1e400", "seven"):
        with pytest.raises(LabelError, match="not of the expected kind"):
            RegressionObjective().targets(labels(text), ("value",))
    with pytest.raises(LabelError) as caught:
        MultilabelObjective().targets(labels(["0", "-1"], ["-1", "1"]), ("x", "y"))
    assert "'-1' in 2 labels" in str(caught.value)


# --- weights ----------------------------------------------------------------------------------------------------


def test_balanced_weights_give_each_class_the_same_sum_and_the_rows_a_mean_of_one():
    targets = column(0, 0, 0, 1)
    assert BinaryObjective().weights(targets) is None
    weights = BinaryObjective(class_weights="balanced").weights(targets)
    assert weights == pytest.approx(np.array([[4 / 6, 2]]))
    three = MulticlassObjective(class_weights="balanced").weights(column(0, 0, 0, 1, 2, 2), ("a", "b", "c"))
    assert three == pytest.approx(np.array([2 / 3, 2, 1]))


def test_given_weights_keep_their_ratio_and_get_a_mean_of_one():
    weights = BinaryObjective(class_weights=(1, 3)).weights(column(0, 0, 0, 1, np.nan))
    assert weights == pytest.approx(np.array([[2 / 3, 2]]))
    weights = MultilabelObjective(class_weights=(3, 1)).weights(np.array([[0, 0], [0, 1], [0, np.nan], [1, 1]]))
    assert weights == pytest.approx(np.array([[2 / 3, 2], [1, 1]]))


def test_a_class_without_training_rows_has_a_finite_weight():
    weights = MulticlassObjective(class_weights="balanced").weights(column(0, 0, 2), ("a", "b", "c"))
    assert weights == pytest.approx(np.array([0.75, 1, 1.5]))
    assert BinaryObjective(class_weights="balanced").weights(column(1, 1)) == pytest.approx(np.array([[1, 1]]))


# --- loss and activation ----------------------------------------------------------------------------------------


def test_binary_loss_is_cross_entropy_and_stable_at_large_logits():
    logits = torch.tensor([[0.0], [2.0], [1000.0], [-1000.0]])
    targets = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    loss = BinaryObjective().loss(logits, targets)
    assert loss.tolist() == pytest.approx([math.log(2), 2 + math.log1p(math.exp(-2)), 1000, 0])
    weighted = BinaryObjective().loss(logits, targets, np.array([[0.5, 2]], np.float32))
    assert weighted.tolist() == pytest.approx([2 * math.log(2), (2 + math.log1p(math.exp(-2))) / 2, 500, 0])


def test_multiclass_loss_is_weighted_by_the_true_class_and_smoothed():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    targets = torch.tensor([[1.0], [2.0]])
    assert MulticlassObjective().loss(logits, targets).tolist() == pytest.approx([math.log(4), -math.log(0.8)])
    weighted = MulticlassObjective().loss(logits, targets, np.array([1, 2, 3], np.float32))
    assert weighted.tolist() == pytest.approx([2 * math.log(4), -3 * math.log(0.8)])
    smooth = MulticlassObjective(label_smoothing=0.3).loss(logits, targets)
    assert smooth[0].item() == pytest.approx(-(0.8 * math.log(0.25) + 0.1 * math.log(0.5) + 0.1 * math.log(0.25)))


def test_a_missing_target_adds_nothing_and_has_no_gradient():
    nan = float("nan")
    for objective, targets in (
        (BinaryObjective(), [[nan], [1.0]]),
        (MulticlassObjective(), [[nan], [1.0]]),
        (MultilabelObjective(), [[nan, nan], [nan, 1.0]]),
        (RegressionObjective(mean=(0.0, 0.0), deviation=(1.0, 1.0)), [[nan, nan], [nan, 1.0]]),
    ):
        width = 1 if objective.kind == "binary" else 2
        logits = torch.zeros(2, width, requires_grad=True)
        loss = objective.loss(logits, torch.tensor(targets))
        loss.sum().backward()
        assert loss.shape == (2,)
        assert loss[0].item() == 0
        assert loss[1].item() > 0
        assert logits.grad is not None and torch.isfinite(logits.grad).all()
        assert (logits.grad[0] == 0).all()


def test_multilabel_loss_is_the_mean_of_the_known_labels():
    loss = MultilabelObjective().loss(torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 1.0], [float("nan"), 1.0, 0.0]]))
    assert loss.tolist() == pytest.approx([math.log(2), math.log(2)])


def test_loss_and_scores_are_float32_for_half_precision_logits():
    logits = torch.zeros(2, 2, dtype=torch.bfloat16)
    for objective in (MulticlassObjective(), MultilabelObjective(), RegressionObjective()):
        targets = torch.zeros(2, 1 if objective.kind == "multiclass" else 2)
        assert objective.loss(logits, targets).dtype == torch.float32
        assert objective.activate(logits).dtype == torch.float32


def test_activations():
    assert BinaryObjective().activate(torch.tensor([[0.0], [math.log(3)]])).tolist() == [[0.5], [pytest.approx(0.75)]]
    assert MulticlassObjective().activate(torch.log(torch.tensor([[1.0, 1, 2]])))[0].tolist() == pytest.approx(
        [0.25, 0.25, 0.5]
    )


def test_log_odds_are_those_of_the_calibrated_score_where_a_probability_has_none_left():
    logits = torch.tensor([[100.0, 1.0, 0.0], [0.5, 0.5, 0.5], [-3.0, 200.0, 199.0]])
    odds = MulticlassObjective().log_odds(logits)
    for row, found in zip(logits.double().tolist(), odds.tolist(), strict=True):
        for k, logit in enumerate(row):
            rest = [other for j, other in enumerate(row) if j != k]
            most = max(rest)
            assert found[k] == pytest.approx(logit - most - math.log(sum(math.exp(r - most) for r in rest)), rel=1e-12)
    halved = MulticlassObjective(calibration="validation", calibrator=((0.5, 0.0),) * 3)
    assert halved.log_odds(logits)[0, 0].item() == pytest.approx(50 - math.log(math.exp(0.5) + 1), rel=1e-12)
    platt = BinaryObjective(calibration="validation", calibrator=((0.25, 1.0),))
    assert platt.log_odds(torch.tensor([[80.0], [-80.0]])).tolist() == [[21.0], [-19.0]]
    two = MultilabelObjective(calibration="validation", calibrator=((0.25, 1.0), (1.0, 0.0)))
    assert two.log_odds(torch.tensor([[80.0, 80.0]])).tolist() == [[21.0, 80.0]]
    assert RegressionObjective().log_odds(logits) is None


@pytest.mark.parametrize("objective", [BinaryObjective(), MultilabelObjective(), MulticlassObjective()])
def test_log_odds_are_the_logarithm_of_the_odds_of_the_score(objective):
    logits = torch.linspace(-9, 9, 12).reshape(-1, 1 if objective.kind == "binary" else 3)
    scores = objective.activate(logits.double())
    torch.testing.assert_close(objective.log_odds(logits), scores.log() - (1 - scores).log(), rtol=1e-9, atol=1e-9)


def test_regression_learns_standardised_values_and_scores_in_the_targets_unit():
    objective = RegressionObjective().fitted(np.array([[10.0, 5], [30, 5], [np.nan, 5]]))
    assert objective.mean == (20, 5)
    assert objective.deviation == (10, 1)  # a constant output keeps its unit
    assert objective.activate(torch.tensor([[1.5, 0.0]])).tolist() == [[35, 5]]
    logits, targets = torch.tensor([[1.5, 0.0]]), torch.tensor([[40.0, 5.0]])  # 0.5 deviations off, and 0
    assert objective.loss(logits, targets).tolist() == [0.125]
    assert objective.model_copy(update={"loss_function": "mae"}).loss(logits, targets).tolist() == [0.25]
    far = torch.tensor([[4.0, 0.0]])  # 2 deviations off: huber is 2 - 0.5
    assert objective.model_copy(update={"loss_function": "huber"}).loss(far, targets).tolist() == [0.75]


def test_an_output_without_any_value_is_refused():
    with pytest.raises(LabelError, match="no value in any training row"):
        RegressionObjective().fitted(np.array([[1.0, np.nan], [2.0, np.nan]]))


# --- thresholds -------------------------------------------------------------------------------------------------

SCORES = column(0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
TRUTH = column(1, 1, 0, 1, 0, 0, 1, 0)


def chosen(rule, **settings) -> float:
    (threshold,) = BinaryObjective(threshold=rule, **settings).choose_threshold(SCORES, TRUTH)
    return threshold


def test_thresholds_by_rule_counted_by_hand():
    # called down to  0.9   0.8   0.7   0.6   0.5   0.4   0.3   0.2
    # J * 4            1     2     1     2     1     0     1     0     first best at 0.8
    # F1              2/5   4/6   4/7   6/8   6/9  6/10  8/11  8/12    best at 0.6
    # right - 4        1     2     1     2     1     0     1     0
    assert chosen("youden") == pytest.approx(0.75)
    assert chosen("f1") == pytest.approx(0.55)
    assert chosen("accuracy") == pytest.approx(0.75)
    assert chosen("sensitivity", sensitivity_target=0.75) == pytest.approx(0.55)
    assert chosen("sensitivity", sensitivity_target=0.95) == pytest.approx(0.25)
    assert chosen(0.3) == 0.3


def test_a_threshold_lies_between_two_scores_so_that_rounding_changes_no_call():
    for nudge in (-1e-5, 1e-5):
        called = SCORES + nudge >= chosen("youden")
        assert called[:, 0].tolist() == [True, True] + [False] * 6


def test_rows_with_equal_scores_are_called_together():
    (threshold,) = BinaryObjective().choose_threshold(column(0.9, 0.5, 0.5, 0.1), column(1, 1, 0, 0))
    assert threshold == pytest.approx(0.7)


def test_one_class_gives_no_threshold_but_a_half():
    assert BinaryObjective().choose_threshold(SCORES, np.ones_like(TRUTH)) == (0.5,)


def test_multilabel_has_a_threshold_for_each_label_from_its_known_rows():
    scores, truth = np.hstack([SCORES, SCORES]), np.hstack([TRUTH, TRUTH])
    truth[1, 1] = np.nan
    assert MultilabelObjective().choose_threshold(scores, truth) == pytest.approx((0.75, 0.55))  # 0.8 is left out


def test_multiclass_and_regression_have_no_threshold():
    assert MulticlassObjective().choose_threshold(np.eye(2), column(0, 1)) == ()
    assert RegressionObjective().choose_threshold(SCORES, TRUTH) == ()


def test_scores_that_are_not_finite_are_a_clear_error():
    broken = SCORES.copy()
    broken[2] = np.nan
    with pytest.raises(MedrayError, match="not finite") as caught:
        BinaryObjective().choose_threshold(broken, TRUTH)
    assert "1 of 8 rows" in str(caught.value)


def test_importing_the_objectives_imports_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, medray.learning.objectives; print([m for m in ('torch', 'ray', 'matplotlib') if m in sys.modules])"
    )
    assert json.loads(subprocess.check_output([sys.executable, "-c", code], text=True)) == []


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["Yes", "yes", "no"], "'Yes', 'yes'"),
        (["grade 1", "grade  1", "b"], "2 different"),
        (["1", "1.0", "0"], "'1', '1.0'"),
    ],
)
def test_labels_that_differ_in_case_blanks_or_writing_are_asked_about(labels, told):
    rows = pa.array([[label] for label in labels])
    with pytest.raises(LabelError, match="are they one class") as refused:
        BinaryObjective().fit_classes(rows)
    assert told in str(refused.value) and refused.value.do
    with pytest.raises(LabelError, match="are they one class"):
        BinaryObjective().targets(rows, (labels[0], labels[2]))


def test_blanks_around_a_label_make_no_other_class():
    assert BinaryObjective().fit_classes(pa.array([["yes "], ["yes"], [" no"]])) == ("no", "yes")
