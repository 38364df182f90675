"""Metrics of scores against targets: numbers from torchmetrics, exact, and None where a metric is not defined.

    N row, K class, R resample.  Counts may carry leading axes; a rate that is not defined is NaN inside this file
    and in learning/bootstrap.py, and None in what `present` gives out.

Rules that libraries differ in, as they are here:

- A row is called positive when score >= threshold.
- Confusion matrices have the true class in rows and the called class in columns.
- A mean over classes (or labels) leaves out those that the rows cannot say anything about: sensitivity, AUROC and
  AUPRC of a class without rows. A class that has rows but is never called counts as precision 0 in the mean
  (as in scikit-learn and torchmetrics); its own precision is None.
- AUPRC is average precision (the step sum, without interpolation).
- ECE has 15 equal bins (Guo et al. 2017); binary: of the positive's probability, multiclass: of the top class.
- MCC of classes is Gorodkin's R_K (2004), of two the phi coefficient. Where all rows are, or are called, of one class
  it is not defined (scikit-learn says 0).
- Likelihood ratios are not defined where they would be infinite: no negative (or every negative) is called positive.
- PPV and NPV at a prevalence follow from sensitivity and specificity by Bayes, whatever share of the rows is positive.
- Brier (1950): binary, mean (p - y)^2, 0 to 1; multiclass, the sum of it over classes, 0 to 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medray.errors import MedrayError

Direction = Literal["max", "min"]

DIRECTIONS: dict[str, Direction] = {
    "loss": "min",
    "accuracy": "max",
    "balanced_accuracy": "max",
    "sensitivity": "max",
    "specificity": "max",
    "precision": "max",
    "f1": "max",
    "f_beta": "max",
    "mcc": "max",
    "lr_positive": "max",
    "lr_negative": "min",
    "ppv_at_prevalence": "max",
    "npv_at_prevalence": "max",
    "auroc": "max",
    "auprc": "max",
    "ece": "min",
    "brier": "min",
    "mae": "min",
    "rmse": "min",
    "r2": "max",
}
"""Every scalar metric and which way is better. `loss` is the objective's own loss on the validation split."""

MEANINGS: dict[str, tuple[str, str]] = {
    "loss": ("Loss", "what training makes small"),
    "accuracy": ("Accuracy", "share of all samples that are called correctly"),
    "balanced_accuracy": ("Balanced accuracy", "mean over the classes of the share called correctly"),
    "sensitivity": ("Sensitivity", "share of the positives that are found (recall)"),
    "specificity": ("Specificity", "share of the negatives that are called negative"),
    "precision": ("Precision", "share of those called positive that are positive (PPV)"),
    "f1": ("F1", "harmonic mean of precision and sensitivity"),
    "f_beta": ("F-beta", "mean of precision and sensitivity, the latter counting beta times as much"),
    "mcc": ("MCC", "Matthews correlation of calls and truth: 1 is best, 0 is guessing"),
    "lr_positive": (
        "Positive likelihood ratio",
        "how much more often a positive is called positive than a negative is",
    ),
    "lr_negative": (
        "Negative likelihood ratio",
        "how much more often a positive is called negative than a negative is",
    ),
    "ppv_at_prevalence": ("PPV at the stated prevalence", "chance that one called positive is positive, by Bayes"),
    "npv_at_prevalence": ("NPV at the stated prevalence", "chance that one called negative is negative, by Bayes"),
    "auroc": ("AUROC", "chance that a positive scores higher than a negative; 0.5 is guessing"),
    "auprc": ("AUPRC", "average precision; guessing gives the share of positives"),
    "ece": ("ECE", "expected calibration error: mean gap between score and observed share; 0 is best"),
    "brier": ("Brier score", "mean squared error of the probabilities; 0 is best"),
    "mae": ("MAE", "mean absolute error, in the unit of the target"),
    "rmse": ("RMSE", "root of the mean squared error, in the unit of the target"),
    "r2": ("R²", "share of the variance explained; 0 is no better than always saying the mean"),
}
"""Every scalar metric's name for people and what it says."""

REGRESSION = ("mae", "rmse", "r2")
BINARY = ("lr_positive", "lr_negative", "ppv_at_prevalence", "npv_at_prevalence")
"""Of two classes only. The last two where a prevalence is stated."""
CLASSIFICATION = tuple(name for name in DIRECTIONS if name not in ("loss", *REGRESSION, *BINARY))
ECE_BINS = 15


@dataclass(frozen=True)
class Figures:
    """What some metrics need to be told."""

    beta: float = 2.0
    """Of F-beta (van Rijsbergen 1979): sensitivity counts beta times as much as precision."""
    prevalence: float | None = None
    """Share of positives where the model is to be used, 0 to 1; None: no PPV and NPV at it."""


PLAIN = Figures()


def present(value: float) -> float | None:
    """A finite float, or None."""
    return float(value) if np.isfinite(value) else None


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0; any shapes that broadcast."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


def checked_scores(scores: np.ndarray, *, probabilities: bool = True) -> np.ndarray:
    """(N, O) scores as float64. Raises MedrayError for NaN or infinite ones, ValueError for no probabilities."""
    scores = np.asarray(scores, np.float64)
    wrong = ~np.isfinite(scores).all(axis=1)
    if wrong.any():
        raise MedrayError(
            "the model's scores are not finite",
            found=f"{int(wrong.sum())} of {len(scores)} rows with NaN or infinity",
            expected="a finite score in every row",
            do="training has diverged: lower training.learning_rate or turn mixed precision off",
        )
    if probabilities and len(scores) and (scores.min() < 0 or scores.max() > 1):
        raise ValueError(f"scores must be probabilities, found {scores.min():.4g} to {scores.max():.4g}")
    return scores


def named(names: Sequence[str], width: int) -> tuple[str, ...]:
    """The names given, or indices where none are. Raises ValueError for another number of names."""
    if names and len(names) != width:
        raise ValueError(f"{len(names)} names for {width} outputs")
    return tuple(names) or tuple(map(str, range(width)))


# --- rates of confusion counts ----------------------------------------------------------------------------------


def binary_rates(confusion: np.ndarray, figures: Figures = PLAIN) -> dict[str, np.ndarray]:
    """(..., 2, 2) counts [[tn, fp], [fn, tp]] to rates, each (...); NaN where not defined."""
    tn, fp, fn, tp = (confusion[..., i, j].astype(np.float64) for i in (0, 1) for j in (0, 1))
    sensitivity, specificity = ratio(tp, tp + fn), ratio(tn, tn + fp)
    missed, alarmed = ratio(fn, tp + fn), ratio(fp, tn + fp)  # not 1 - the others, which rounds
    weight, share = figures.beta**2, figures.prevalence
    at_prevalence = {}
    if share is not None:
        true, cleared = sensitivity * share, specificity * (1 - share)
        at_prevalence = {
            "ppv_at_prevalence": ratio(true, true + alarmed * (1 - share)),
            "npv_at_prevalence": ratio(cleared, cleared + missed * share),
        }
    return {
        "accuracy": ratio(tp + tn, tp + tn + fp + fn),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": ratio(tp, tp + fp),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "f_beta": ratio((1 + weight) * tp, (1 + weight) * tp + weight * fn + fp),
        "mcc": correlation(confusion),
        "lr_positive": ratio(sensitivity, alarmed),
        "lr_negative": ratio(missed, specificity),
        **at_prevalence,
    }


def correlation(confusion: np.ndarray) -> np.ndarray:
    """(..., K, K) counts to R_K (Gorodkin 2004), the Matthews correlation of K classes, each (...); NaN where one class
    has all rows or all calls."""
    counts = confusion.astype(np.float64)
    total, right = counts.sum((-2, -1)), np.trace(counts, axis1=-2, axis2=-1)
    truth, called = counts.sum(-1), counts.sum(-2)
    spread = (total**2 - (truth**2).sum(-1)) * (total**2 - (called**2).sum(-1))
    return ratio(right * total - (truth * called).sum(-1), np.sqrt(np.maximum(spread, 0)))


def one_against_rest(confusion: np.ndarray) -> np.ndarray:
    """(..., K, K) counts to (..., K, 2, 2): each class as the positive one."""
    tp = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    fn, fp = confusion.sum(-1) - tp, confusion.sum(-2) - tp
    tn = confusion.sum((-2, -1))[..., None] - tp - fn - fp
    return np.stack([np.stack([tn, fp], -1), np.stack([fn, tp], -1)], -2)


def macro_rates(pairs: np.ndarray, figures: Figures = PLAIN) -> dict[str, np.ndarray]:
    """(..., K, 2, 2) counts, one per class or label, to rates averaged over the K, each (...)."""
    each = {name: values for name, values in binary_rates(pairs, figures).items() if name not in BINARY}
    missed = np.isnan(each["precision"]) & (pairs[..., 1, 0] > 0)
    each["precision"] = np.where(missed, 0.0, each["precision"])
    return {name: mean_known(values) for name, values in each.items()}


def multiclass_rates(confusion: np.ndarray, figures: Figures = PLAIN) -> dict[str, np.ndarray]:
    """(..., K, K) counts to rates, each (...): accuracy and MCC over rows, the others averaged over classes.

    Balanced accuracy is the mean sensitivity of the classes that have rows.
    """
    rates = macro_rates(one_against_rest(confusion), figures)
    trace = np.trace(confusion, axis1=-2, axis2=-1)
    return rates | {
        "accuracy": ratio(trace, confusion.sum((-2, -1))),
        "balanced_accuracy": rates["sensitivity"],
        "mcc": correlation(confusion),
    }


# --- point metrics ----------------------------------------------------------------------------------------------


def areas(scores: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """(N,) scores and (N,) bool to AUROC and AUPRC; NaN where one of the two kinds is missing."""
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    if not positive.any() or positive.all():
        return {"auroc": np.nan, "auprc": np.nan}
    inputs = torch.from_numpy(np.ascontiguousarray(scores)), torch.from_numpy(positive.astype(np.int64))
    return {"auroc": binary_auroc(*inputs).item(), "auprc": binary_average_precision(*inputs).item()}


def binary_metrics(
    scores: np.ndarray, positive: np.ndarray, threshold: float, figures: Figures = PLAIN
) -> dict[str, Any]:
    """(N,) probabilities and (N,) bool to every binary metric, NaN where not defined, and `confusion` (2, 2)."""
    import torch
    from torchmetrics.functional.classification import binary_calibration_error, binary_confusion_matrix

    called = torch.from_numpy((scores >= threshold).astype(np.int64))
    target = torch.from_numpy(positive.astype(np.int64))
    confusion = binary_confusion_matrix(called, target).numpy()
    error = np.nan
    if len(scores):
        error = binary_calibration_error(torch.from_numpy(np.ascontiguousarray(scores)), target, n_bins=ECE_BINS).item()
    return {
        **{name: value.item() for name, value in binary_rates(confusion, figures).items()},
        **areas(scores, positive),
        "ece": error,
        "brier": ((scores - positive) ** 2).mean().item() if len(scores) else np.nan,
        "confusion": confusion,
    }


def binary_report(
    scores: np.ndarray, positive: np.ndarray, threshold: float, figures: Figures = PLAIN
) -> dict[str, Any]:
    """`binary_metrics`, JSON-ready: None where not defined, `confusion_matrix` [[tn, fp], [fn, tp]]."""
    found = binary_metrics(scores, positive, threshold, figures)
    confusion = found.pop("confusion")
    return {name: present(value) for name, value in found.items()} | {"confusion_matrix": confusion.tolist()}


def multiclass_report(
    scores: np.ndarray, truth: np.ndarray, names: Sequence[str], figures: Figures = PLAIN
) -> dict[str, Any]:
    """(N, K) probabilities and (N,) class indices to macro metrics and `per_class`, keyed by name. JSON-ready."""
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

    width = scores.shape[1]
    target = torch.from_numpy(truth.astype(np.int64))
    called = torch.from_numpy(scores.argmax(axis=1)) if len(scores) else target
    confusion = multiclass_confusion_matrix(called, target, num_classes=width).numpy()
    each = [areas(scores[:, k], truth == k) for k in range(width)]
    found = {name: value.item() for name, value in multiclass_rates(confusion, figures).items()}
    for name in ("auroc", "auprc"):
        found[name] = mean_known(np.array([area[name] for area in each])).item()
    found["ece"] = found["brier"] = np.nan
    if len(scores):
        probabilities = torch.from_numpy(np.ascontiguousarray(scores))
        found["ece"] = multiclass_calibration_error(probabilities, target, width, n_bins=ECE_BINS).item()
        found["brier"] = ((scores - np.eye(width)[truth]) ** 2).sum(axis=1).mean().item()
    rates = binary_rates(one_against_rest(confusion), Figures(figures.beta))
    shown = ("sensitivity", "specificity", "precision", "f1", "f_beta", "mcc", "lr_positive", "lr_negative")
    per_class = {
        name: {
            "n": int(confusion[k].sum()),
            **{rate: present(rates[rate][k]) for rate in shown},
            **{area: present(value) for area, value in each[k].items()},
        }
        for k, name in enumerate(names)
    }
    scalars: dict[str, Any] = {name: present(found[name]) for name in CLASSIFICATION}
    return scalars | {"confusion_matrix": confusion.tolist(), "per_class": per_class}


def multilabel_report(
    scores: np.ndarray,
    targets: np.ndarray,
    thresholds: Sequence[float],
    names: Sequence[str],
    figures: Figures = PLAIN,
) -> dict[str, Any]:
    """(N, T) probabilities and (N, T) 0/1 (NaN = not known) to macro metrics and `per_label`. JSON-ready.

    Every scalar is the mean over labels of the binary one; `confusion_matrix` is (T, 2, 2).
    """
    each = []
    for k, threshold in enumerate(thresholds):
        known = ~np.isnan(targets[:, k])
        each.append(binary_metrics(scores[known, k], targets[known, k] > 0.5, threshold, Figures(figures.beta)))
    confusion = np.stack([one["confusion"] for one in each])
    found = {name: value.item() for name, value in macro_rates(confusion, figures).items()}
    for name in ("auroc", "auprc", "ece", "brier"):
        found[name] = mean_known(np.array([one[name] for one in each])).item()
    per_label = {
        name: {"n": int(one["confusion"].sum()), "positives": int(one["confusion"][1].sum())}
        | {metric: present(one[metric]) for metric in (*CLASSIFICATION, "lr_positive", "lr_negative")}
        for name, one in zip(names, each, strict=True)
    }
    scalars: dict[str, Any] = {name: present(found[name]) for name in CLASSIFICATION}
    return scalars | {"confusion_matrix": confusion.tolist(), "per_label": per_label}


def regression_report(values: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """(N, T) values and (N, T) targets (NaN = not known), in the target's unit, to MAE, RMSE, R2. JSON-ready.

    Scalars are means over the outputs; `per_output` has each. R2 needs two different targets.
    """
    import torch
    from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

    per_output: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(names):
        known = ~np.isnan(targets[:, k])
        value = torch.from_numpy(values[known, k].astype(np.float64))
        target = torch.from_numpy(targets[known, k].astype(np.float64))
        found: dict[str, Any] = {"n": int(known.sum()), **dict.fromkeys(REGRESSION)}
        if len(value):
            found["mae"] = mean_absolute_error(value, target).item()
            found["rmse"] = mean_squared_error(value, target, squared=False).item()
        if len(value) > 1 and target.min() < target.max():
            found["r2"] = r2_score(value, target).item()
        per_output[name] = found
    return mean_of(per_output) | {"per_output": per_output}


def mean_of(per_output: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    """The mean of each regression metric over the outputs that have it."""
    columns = {metric: [one[metric] for one in per_output.values()] for metric in REGRESSION}
    return {metric: present(mean_known(np.array(column, np.float64)).item()) for metric, column in columns.items()}
