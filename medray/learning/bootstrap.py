"""Subject-level percentile bootstrap (Efron & Tibshirani 1993, ch. 13) of every scalar metric, vectorised.

N row, R resample, K class, B bin.  A resample draws whole subjects with replacement, so it is a weight per row:
how often the row's subject was drawn. Metrics here take weights (N, R) and give (R,); with weights of 1 they
equal those of learning/point_metrics.py, which the tests check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from medray.learning.metrics import ECE_BINS, PLAIN, REGRESSION, MetricOptions, mean_known, ratio
from medray.learning.rates import binary_rates, macro_rates, multiclass_rates
from medray.learning.thresholds import Rule, choose

Scalars = dict[str, np.ndarray]
CELLS = 500_000  # weights held at once: 4 MB, so that sums stay in the processor's cache


def intervals(
    metrics: Callable[[np.ndarray], Scalars],
    subjects: np.ndarray,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """{metric: (low, high)} over resamples of whole subjects (N,) str; `metrics` takes weights (N, R).

    Resamples in which a metric is not defined are left out of it; a metric that is not defined in most of them
    gets no interval.
    """
    parts = [metrics(weights) for weights in resampled_weights(subjects, resamples, seed)]
    tail = (1 - confidence) / 2
    bounds: dict[str, tuple[float, float]] = {}
    for name in parts[0] if parts else ():
        values = np.concatenate([part[name] for part in parts])
        values = values[~np.isnan(values)]
        if 2 * len(values) > resamples:
            low, high = np.quantile(values, (tail, 1 - tail))
            bounds[name] = (float(low), float(high))
    return bounds


def resampled_weights(subjects: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """(N, r) float64 weights, r columns at a time, `resamples` in all; same seed and subjects, same weights."""
    names, row_subject = np.unique(np.asarray(subjects), return_inverse=True)
    if not len(names):
        return
    random = np.random.default_rng(seed)
    step = max(1, CELLS // len(row_subject))
    for start in range(0, resamples, step):
        columns = min(step, resamples - start)
        drawn = [np.bincount(random.integers(0, len(names), len(names)), minlength=len(names)) for _ in range(columns)]
        yield np.stack(drawn, axis=1).astype(np.float64)[row_subject]


def threshold_interval(
    scores: np.ndarray,
    positive: np.ndarray,
    subjects: np.ndarray,
    rule: Rule,
    sensitivity_target: float,
    *,
    resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """(low, high) of what `rule` chooses on resamples of whole subjects; None where most of them have one class only."""
    chosen: list[float] = []
    for weights in resampled_weights(subjects, resamples, seed):
        for column in weights.T.astype(np.int64):
            drawn = np.repeat(np.arange(len(scores)), column)
            if 0 < positive[drawn].sum() < len(drawn):
                chosen.append(choose(scores[drawn], positive[drawn], rule, sensitivity_target))
    if 2 * len(chosen) <= resamples:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(chosen, (tail, 1 - tail))
    return float(low), float(high)


# --- weighted metrics -------------------------------------------------------------------------------------------


def ranked_areas(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision, each (R,), of (N,) scores and (N,) bool under weights (N, R); NaN if not defined.

    Rows with equal scores are one step of the curve, so ties count a half in the AUROC (Mann-Whitney).
    """
    if not positive.any():
        nothing = np.full(weights.shape[1], np.nan)
        return nothing, nothing
    order = np.argsort(-scores, kind="stable")
    ordered, hits = weights[order], positive[order]
    ends = np.append(np.flatnonzero(np.diff(scores[order])) + 1, len(order))  # rows down to each different score
    starts, hits_so_far = np.append(0, ends[:-1]), np.cumsum(hits)
    steps = np.diff(hits_so_far[ends - 1], prepend=0) > 0  # scores of negatives only add nothing to either area
    starts, ends = starts[steps], ends[steps]
    every = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(ordered, axis=0)])
    true = np.cumsum(ordered[hits], axis=0)[hits_so_far[ends - 1] - 1]
    gained = np.diff(true, axis=0, prepend=0)
    before, after = every[starts] - (true - gained), every[ends] - true  # negatives above, and down to, each score
    positives, negatives = true[-1], every[-1] - true[-1]
    area = (gained * (negatives - (before + after) / 2)).sum(axis=0)
    precision = np.divide(true, every[ends], out=np.zeros_like(true), where=every[ends] > 0)
    average = ratio((gained * precision).sum(axis=0), positives)
    return ratio(area, positives * negatives), np.where(negatives > 0, average, np.nan)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) ECE of (N,) confidences against (N,) 0/1 under weights (N, R)."""
    bins = np.searchsorted(np.linspace(0, 1, ECE_BINS + 1), confidence, side="right") - 1
    member = (bins == np.arange(ECE_BINS + 1)[:, None]).astype(np.float64)  # B, N; the last bin holds exactly 1
    gap = (member * (np.asarray(correct, np.float64) - confidence)) @ weights
    return ratio(np.abs(gap).sum(axis=0), weights.sum(axis=0))


def weighted_confusion(called: np.ndarray, truth: np.ndarray, width: int, weights: np.ndarray) -> np.ndarray:
    """(R, K, K) summed weights, true class in rows, of (N,) called and (N,) true class indices."""
    cell = truth.astype(np.int64) * width + called
    counts = np.zeros((width * width, weights.shape[1]))
    for present in np.unique(cell):
        counts[present] = weights[cell == present].sum(axis=0)
    return counts.T.reshape(-1, width, width)


def binary_scalars(
    scores: np.ndarray, positive: np.ndarray, threshold: float, weights: np.ndarray, options: MetricOptions = PLAIN
) -> Scalars:
    """Every scalar binary metric, each (R,), and `confusion` (R, 2, 2)."""
    confusion = weighted_confusion((scores >= threshold).astype(np.int64), positive, 2, weights)
    auroc, auprc = ranked_areas(scores, positive, weights)
    return binary_rates(confusion, options) | {
        "auroc": auroc,
        "auprc": auprc,
        "ece": calibration_error(scores, positive, weights),
        "brier": ratio(((scores - positive) ** 2) @ weights, weights.sum(axis=0)),
        "confusion": confusion,
    }


def multiclass_scalars(
    scores: np.ndarray, truth: np.ndarray, weights: np.ndarray, options: MetricOptions = PLAIN
) -> Scalars:
    """Every scalar multiclass metric, each (R,), of (N, K) probabilities and (N,) class indices."""
    width = scores.shape[1]
    called = scores.argmax(axis=1)
    curves = [ranked_areas(scores[:, k], truth == k, weights) for k in range(width)]
    brier = ((scores - np.eye(width)[truth]) ** 2).sum(axis=1)
    return multiclass_rates(weighted_confusion(called, truth, width, weights), options) | {
        "auroc": mean_known(np.stack([roc for roc, _ in curves], -1)),
        "auprc": mean_known(np.stack([pr for _, pr in curves], -1)),
        "ece": calibration_error(scores.max(axis=1), called == truth, weights),
        "brier": ratio(brier @ weights, weights.sum(axis=0)),
    }


def multilabel_scalars(
    scores: np.ndarray,
    targets: np.ndarray,
    thresholds: Sequence[float],
    weights: np.ndarray,
    options: MetricOptions = PLAIN,
) -> Scalars:
    """Every scalar multilabel metric, each (R,): means over labels; targets (N, T) hold NaN where not known."""
    each: list[Scalars] = []
    for k, threshold in enumerate(thresholds):
        known = ~np.isnan(targets[:, k])
        each.append(binary_scalars(scores[known, k], targets[known, k] > 0.5, threshold, weights[known], options))
    means = macro_rates(np.stack([one["confusion"] for one in each], axis=1), options)
    for name in ("auroc", "auprc", "ece", "brier"):
        means[name] = mean_known(np.stack([one[name] for one in each], -1))
    return means


def regression_scalars(values: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Scalars:
    """MAE, RMSE and R2, each (R,): means over outputs; targets (N, T) hold NaN where not known."""
    each: list[Scalars] = []
    for k in range(targets.shape[1]):
        known = ~np.isnan(targets[:, k])
        error, target, weight = values[known, k] - targets[known, k], targets[known, k], weights[known]
        total = weight.sum(axis=0)
        squares = (error**2) @ weight
        centred = target - target.mean() if len(target) else target  # R2 does not move with the origin; precision does
        spread = (centred**2) @ weight - np.nan_to_num(ratio((centred @ weight) ** 2, total))
        varied = spread > 1e-12 * np.nan_to_num((centred**2) @ weight)
        each.append(
            {
                "mae": ratio(np.abs(error) @ weight, total),
                "rmse": np.sqrt(ratio(squares, total)),
                "r2": np.where(varied, 1 - ratio(squares, np.where(varied, spread, 0)), np.nan),
            }
        )
    return {name: mean_known(np.stack([one[name] for one in each], -1)) for name in REGRESSION}
