"""Calibration: what turns logits into probabilities that can be taken at their word, fitted on the validation split.

Platt's scale and offset for a score of two classes (Platt 1999, with his smoothed targets), one temperature for
classes that exclude each other (Guo et al. 2017, arXiv:1706.04599). Neither changes the order of scores.
"""

# N row, K class

from __future__ import annotations

import numpy as np

TINY = 1e-7
STEEPEST = 1e3


def logit(scores: np.ndarray) -> np.ndarray:
    """Probabilities of any shape to float64 log-odds; 0 and 1 are taken as 1e-7 from them."""
    p = np.clip(np.asarray(scores, np.float64), TINY, 1 - TINY)
    return np.log(p) - np.log1p(-p)


def platt(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """(scale, offset) of the logit that fit probabilities (N,) to outcomes (N,) bool; (1, 0) where one class is absent.

    Newton's method on the mean cross-entropy, which is convex. Targets are (n+ + 1) / (n+ + 2) and 1 / (n- + 2), so
    that a perfect separation has a finite answer. A scale that is not positive (scores that say nothing, or the
    opposite of the truth) is not taken: calibration never turns the order of scores around.
    """
    count = int(np.sum(positive))
    if count in (0, len(positive)):
        return 1.0, 0.0
    x = np.stack([logit(scores), np.ones(len(positive))], axis=1)
    wanted = np.where(positive, (count + 1) / (count + 2), 1 / (len(positive) - count + 2))
    fitted = np.array([1.0, 0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ fitted, -500, 500)))
        slope = x.T @ (p - wanted)
        curve = (x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2)
        move = np.linalg.solve(curve, slope)
        fitted = fitted - move / max(1.0, float(np.abs(move).max()))  # at most one unit a step: no overshooting
        if float(np.abs(move).max()) < 1e-10:
            break
    scale, offset = (float(v) for v in fitted)
    return (scale, offset) if 0 < scale < STEEPEST else (1.0, 0.0)


def temperature(scores: np.ndarray, truth: np.ndarray) -> float:
    """1 / T that the logits of probabilities (N, K) are multiplied by, for classes (N,) int; between 0.01 and 100.

    The mean cross-entropy is convex in 1 / T: bisection on its slope.
    """
    logs = np.log(np.clip(np.asarray(scores, np.float64), TINY, 1.0))
    of_truth = logs[np.arange(len(truth)), truth]
    low, high = 0.01, 100.0
    for _ in range(60):
        middle = np.sqrt(low * high)
        weights = np.exp(middle * logs - (middle * logs).max(axis=1, keepdims=True))
        expected = (weights * logs).sum(axis=1) / weights.sum(axis=1)
        if (expected - of_truth).mean() > 0:
            high = middle
        else:
            low = middle
    return float(np.sqrt(low * high))
