"""Rates of confusion counts. A rate that is not defined is NaN; learning/metrics.py has the rules.

K class or label.  Counts are [[tn, fp], [fn, tp]] or (K, K) with the true class in rows, and may carry leading axes.
"""

from __future__ import annotations

import numpy as np

from medray.learning.metrics import BINARY, PLAIN, MetricOptions, mean_known, ratio


def binary_rates(confusion: np.ndarray, options: MetricOptions = PLAIN) -> dict[str, np.ndarray]:
    """(..., 2, 2) counts [[tn, fp], [fn, tp]] to rates, each (...); NaN where not defined."""
    tn, fp, fn, tp = (confusion[..., i, j].astype(np.float64) for i in (0, 1) for j in (0, 1))
    sensitivity, specificity = ratio(tp, tp + fn), ratio(tn, tn + fp)
    missed, alarmed = ratio(fn, tp + fn), ratio(fp, tn + fp)  # not 1 - the others, which rounds
    weight, share = options.beta**2, options.prevalence
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


def macro_rates(pairs: np.ndarray, options: MetricOptions = PLAIN) -> dict[str, np.ndarray]:
    """(..., K, 2, 2) counts, one per class or label, to rates averaged over the K, each (...)."""
    each = {name: values for name, values in binary_rates(pairs, options).items() if name not in BINARY}
    missed = np.isnan(each["precision"]) & (pairs[..., 1, 0] > 0)
    each["precision"] = np.where(missed, 0.0, each["precision"])
    return {name: mean_known(values) for name, values in each.items()}


def multiclass_rates(confusion: np.ndarray, options: MetricOptions = PLAIN) -> dict[str, np.ndarray]:
    """(..., K, K) counts to rates, each (...): accuracy and MCC over rows, the others averaged over classes.

    Balanced accuracy is the mean sensitivity of the classes that have rows.
    """
    rates = macro_rates(one_against_rest(confusion), options)
    trace = np.trace(confusion, axis1=-2, axis2=-1)
    return rates | {
        "accuracy": ratio(trace, confusion.sum((-2, -1))),
        "balanced_accuracy": rates["sensitivity"],
        "mcc": correlation(confusion),
    }


def wilson(part: np.ndarray, count: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a proportion `part` of `count` > 0 rows (Wilson 1927)."""
    centre = (part + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(part * (1 - part) / count + z**2 / (4 * count**2))
    return centre - half, centre + half
