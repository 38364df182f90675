"""Metrics of scores against targets, one number each: from torchmetrics, exact. learning/metrics.py has the rules.

N row, K class, T label or output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medray.learning.metrics import (
    CLASSIFICATION,
    ECE_BINS,
    PLAIN,
    REGRESSION,
    MetricOptions,
    Metrics,
    Row,
    mean_known,
    present,
)
from medray.learning.rates import binary_rates, macro_rates, multiclass_rates, one_against_rest


def areas(scores: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """(N,) scores and (N,) bool to AUROC and AUPRC; NaN where one of the two kinds is missing."""
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    if not positive.any() or positive.all():
        return {"auroc": np.nan, "auprc": np.nan}
    inputs = torch.as_tensor(np.ascontiguousarray(scores)), torch.as_tensor(positive.astype(np.int64))
    return {"auroc": binary_auroc(*inputs).item(), "auprc": binary_average_precision(*inputs).item()}


def binary_metrics(
    scores: np.ndarray, positive: np.ndarray, threshold: float, options: MetricOptions = PLAIN
) -> tuple[dict[str, float], np.ndarray]:
    """(N,) probabilities and (N,) bool to every binary metric, NaN where not defined, and confusion counts (2, 2)."""
    import torch
    from torchmetrics.functional.classification import binary_calibration_error, binary_confusion_matrix

    called = torch.as_tensor((scores >= threshold).astype(np.int64))
    target = torch.as_tensor(positive.astype(np.int64))
    confusion = binary_confusion_matrix(called, target).numpy()
    error = np.nan
    if len(scores):
        error = binary_calibration_error(torch.as_tensor(np.ascontiguousarray(scores)), target, n_bins=ECE_BINS).item()
    numbers: dict[str, float] = {
        **{name: value.item() for name, value in binary_rates(confusion, options).items()},
        **areas(scores, positive),
        "ece": error,
        "brier": ((scores - positive) ** 2).mean().item() if len(scores) else np.nan,
    }
    return numbers, confusion


def binary_report(
    scores: np.ndarray, positive: np.ndarray, threshold: float, options: MetricOptions = PLAIN
) -> Metrics:
    """`binary_metrics`, JSON-ready: None where not defined, `confusion_matrix` [[tn, fp], [fn, tp]]."""
    numbers, confusion = binary_metrics(scores, positive, threshold, options)
    return {**{name: present(value) for name, value in numbers.items()}, "confusion_matrix": confusion.tolist()}


def multiclass_report(
    scores: np.ndarray, truth: np.ndarray, names: Sequence[str], options: MetricOptions = PLAIN
) -> Metrics:
    """(N, K) probabilities and (N,) class indices to macro metrics and `per_class`, keyed by name. JSON-ready."""
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

    width = scores.shape[1]
    target = torch.as_tensor(truth.astype(np.int64))
    called = torch.as_tensor(scores.argmax(axis=1)) if len(scores) else target
    confusion = multiclass_confusion_matrix(called, target, num_classes=width).numpy()
    each = [areas(scores[:, k], truth == k) for k in range(width)]
    scalars: dict[str, float] = {name: value.item() for name, value in multiclass_rates(confusion, options).items()}
    for name in ("auroc", "auprc"):
        scalars[name] = mean_known(np.array([area[name] for area in each])).item()
    scalars["ece"] = scalars["brier"] = np.nan
    if len(scores):
        probabilities = torch.as_tensor(np.ascontiguousarray(scores))
        scalars["ece"] = multiclass_calibration_error(probabilities, target, width, n_bins=ECE_BINS).item()
        scalars["brier"] = ((scores - np.eye(width)[truth]) ** 2).sum(axis=1).mean().item()
    rates = binary_rates(one_against_rest(confusion), MetricOptions(options.beta))
    shown = ("sensitivity", "specificity", "precision", "f1", "f_beta", "mcc", "lr_positive", "lr_negative")
    per_class: dict[str, Row] = {
        name: {
            "n": int(confusion[k].sum()),
            **{rate: present(rates[rate][k]) for rate in shown},
            **{area: present(value) for area, value in each[k].items()},
        }
        for k, name in enumerate(names)
    }
    means = {name: present(scalars[name]) for name in CLASSIFICATION}
    return {**means, "confusion_matrix": confusion.tolist(), "per_class": per_class}


def multilabel_report(
    scores: np.ndarray,
    targets: np.ndarray,
    thresholds: Sequence[float],
    names: Sequence[str],
    options: MetricOptions = PLAIN,
) -> Metrics:
    """(N, T) probabilities and (N, T) 0/1 (NaN = not known) to macro metrics and `per_label`. JSON-ready.

    Every scalar is the mean over labels of the binary one; `confusion_matrix` is (T, 2, 2).
    """
    each: list[dict[str, float]] = []
    counts: list[np.ndarray] = []
    for k, threshold in enumerate(thresholds):
        known = ~np.isnan(targets[:, k])
        truth = targets[known, k] > 0.5
        numbers, confusion = binary_metrics(scores[known, k], truth, threshold, MetricOptions(options.beta))
        each.append(numbers)
        counts.append(confusion)
    confusion = np.stack(counts)
    scalars: dict[str, float] = {name: value.item() for name, value in macro_rates(confusion, options).items()}
    for name in ("auroc", "auprc", "ece", "brier"):
        scalars[name] = mean_known(np.array([numbers[name] for numbers in each])).item()
    per_label: dict[str, Row] = {
        name: {
            "n": int(confusion[k].sum()),
            "positives": int(confusion[k, 1].sum()),
            **{metric: present(numbers[metric]) for metric in (*CLASSIFICATION, "lr_positive", "lr_negative")},
        }
        for k, (name, numbers) in enumerate(zip(names, each, strict=True))
    }
    means = {name: present(scalars[name]) for name in CLASSIFICATION}
    return {**means, "confusion_matrix": confusion.tolist(), "per_label": per_label}


def regression_report(values: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> Metrics:
    """(N, T) values and (N, T) targets (NaN = not known), in the target's unit, to MAE, RMSE, R2. JSON-ready.

    Scalars are means over the outputs; `per_output` has each. R2 needs two different targets.
    """
    import torch
    from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

    per_output: dict[str, Row] = {}
    for k, name in enumerate(names):
        known = ~np.isnan(targets[:, k])
        value = torch.as_tensor(values[known, k].astype(np.float64))
        target = torch.as_tensor(targets[known, k].astype(np.float64))
        row: Row = {"n": int(known.sum()), **dict.fromkeys(REGRESSION)}
        if len(value):
            row["mae"] = mean_absolute_error(value, target).item()
            row["rmse"] = mean_squared_error(value, target, squared=False).item()
        if len(value) > 1 and target.min() < target.max():
            row["r2"] = r2_score(value, target).item()
        per_output[name] = row
    return {**mean_of(per_output), "per_output": per_output}


def mean_of(per_output: Mapping[str, Row]) -> dict[str, float | None]:
    """The mean of each regression metric over the outputs that have it."""
    columns = {metric: [one[metric] for one in per_output.values()] for metric in REGRESSION}
    return {metric: present(mean_known(np.array(column, np.float64)).item()) for metric, column in columns.items()}
