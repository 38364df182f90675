"""Metrics of scores against targets: their names, what they say, which way is better, and the types of their numbers.

    N row, O output.  A metric that is not defined is NaN in rates.py, point_metrics.py and bootstrap.py, and None in
    what `present` gives out.

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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medray.errors import MedrayError

Direction = Literal["max", "min"]

Row = dict[str, int | float | None]
"""Metrics of one class, label or output, by their names. JSON-ready."""
Confusion = list[list[int]] | list[list[list[int]]]
"""(2, 2) or (K, K) counts, true class in rows; of T labels (T, 2, 2). JSON-ready."""
MetricValue = int | float | None | Confusion | Row | dict[str, Row]
Metrics = dict[str, MetricValue]
"""What an evaluation says of scores, JSON-ready: scalars by their names, None where not defined; beside them confusion counts
and rows for each class, label or output by name."""


@dataclass(frozen=True)
class Metric:
    """A scalar metric as people meet it."""

    title: str
    """Its name, as reports write it."""
    meaning: str
    """What it says, in a few words that follow the title."""
    direction: Direction
    """Which way is better."""


METRICS: dict[str, Metric] = {
    "loss": Metric("Loss", "what training makes small", "min"),
    "accuracy": Metric("Accuracy", "share of all samples that are called correctly", "max"),
    "balanced_accuracy": Metric("Balanced accuracy", "mean over the classes of the share called correctly", "max"),
    "sensitivity": Metric("Sensitivity", "share of the positives that are found (recall)", "max"),
    "specificity": Metric("Specificity", "share of the negatives that are called negative", "max"),
    "precision": Metric("Precision", "share of those called positive that are positive (PPV)", "max"),
    "f1": Metric("F1", "harmonic mean of precision and sensitivity", "max"),
    "f_beta": Metric("F-beta", "mean of precision and sensitivity, the latter counting beta times as much", "max"),
    "mcc": Metric("MCC", "Matthews correlation of calls and truth: 1 is best, 0 is guessing", "max"),
    "lr_positive": Metric(
        "Positive likelihood ratio", "how much more often a positive is called positive than a negative is", "max"
    ),
    "lr_negative": Metric(
        "Negative likelihood ratio", "how much more often a positive is called negative than a negative is", "min"
    ),
    "ppv_at_prevalence": Metric(
        "PPV at the stated prevalence", "chance that one called positive is positive, by Bayes", "max"
    ),
    "npv_at_prevalence": Metric(
        "NPV at the stated prevalence", "chance that one called negative is negative, by Bayes", "max"
    ),
    "auroc": Metric("AUROC", "chance that a positive scores higher than a negative; 0.5 is guessing", "max"),
    "auprc": Metric("AUPRC", "average precision; guessing gives the share of positives", "max"),
    "ece": Metric("ECE", "expected calibration error: mean gap between score and observed share; 0 is best", "min"),
    "brier": Metric("Brier score", "mean squared error of the probabilities; 0 is best", "min"),
    "mae": Metric("MAE", "mean absolute error, in the unit of the target", "min"),
    "rmse": Metric("RMSE", "root of the mean squared error, in the unit of the target", "min"),
    "r2": Metric("R²", "share of the variance explained; 0 is no better than always saying the mean", "max"),
}
"""Every scalar metric that medray computes itself. `loss` is the objective's own loss on the validation split."""

REGRESSION = ("mae", "rmse", "r2")
BINARY = ("lr_positive", "lr_negative", "ppv_at_prevalence", "npv_at_prevalence")
"""Metrics of two classes only. The last two where a prevalence is stated."""
CLASSIFICATION = tuple(name for name in METRICS if name not in ("loss", *REGRESSION, *BINARY))
ECE_BINS = 15
NONE = "–"
"""Stands for a number that is not defined, in reports."""


@dataclass(frozen=True)
class MetricOptions:
    """What some metrics need to be told."""

    beta: float = 2.0
    """Beta of F-beta (van Rijsbergen 1979): sensitivity counts beta times as much as precision."""
    prevalence: float | None = None
    """Share of positives where the model is to be used, 0 to 1; None: no PPV and NPV at it."""


PLAIN = MetricOptions()


def present(value: float) -> float | None:
    """A finite float, or None."""
    return float(value) if np.isfinite(value) else None


def scalar(metrics: Mapping[str, MetricValue], name: str) -> float | None:
    """One number of them; None where it is not defined or not there. Raises TypeError for what is no number."""
    value = metrics.get(name)
    if isinstance(value, list | dict):
        raise TypeError(f"the metric {name!r} is no number")
    return value


def scalars(metrics: Mapping[str, MetricValue]) -> dict[str, float | None]:
    """All numbers of them, without what has rows of its own."""
    return {name: value for name, value in metrics.items() if not isinstance(value, list | dict)}


def rows(metrics: Mapping[str, MetricValue], name: str) -> dict[str, Row]:
    """Rows by class, label or output; {} where there are none under this name."""
    value = metrics.get(name)
    return {key: row for key, row in value.items() if isinstance(row, dict)} if isinstance(value, dict) else {}


def metric_text(value: float | None) -> str:
    """A metric as reports write it: three decimals, one from 100 up; NONE where it is not defined."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


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
