"""Decision thresholds, chosen on validation scores: a row is called positive when its score >= threshold."""

from __future__ import annotations

from typing import Literal, TypedDict

import numpy as np

Rule = Literal["youden", "f1", "accuracy", "sensitivity"]
FEW = 100
"""Validation rows of the rarer kind: with fewer, a chosen threshold says its interval. As many events, and as many
non-events, are asked for where a model is validated (Vergouwe et al. 2005; Collins, Ogundimu, Altman 2016)."""
FALLBACK = 0.5  # where the rows have one class only, no rule can choose

WORDS: dict[str, str] = {
    "youden": "the threshold of the highest Youden's J (sensitivity + specificity - 1; Youden 1950)",
    "f1": "the threshold of the highest F1",
    "accuracy": "the threshold of the highest accuracy",
    "sensitivity": "the highest threshold that reaches the wanted sensitivity",
}
"""What each rule does, for reports."""


class ThresholdChoice(TypedDict):
    """How sure a threshold is that was chosen on validation rows. JSON-ready."""

    positives: int
    negatives: int
    few: bool
    """Fewer than FEW of one of the two."""
    interval: list[float] | None
    """[low, high] of 95 % of the resamples of whole subjects, where they are few; None: not known, or most resamples have
    one class only."""


def choose(scores: np.ndarray, positive: np.ndarray, rule: Rule | float, sensitivity_target: float) -> float:
    """A threshold for (N,) probabilities against (N,) bool by `rule`; a number is given back as it is.

    It lies half-way between two neighbouring scores, so that scores equal up to rounding stay on their side.
    Of thresholds that are equally good, the highest. With one class only: 0.5.
    """
    if not isinstance(rule, str):
        return float(rule)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return FALLBACK
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order].astype(np.float64)
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # the last row of each score
    true = np.cumsum(positive[order].astype(np.int64))[ends]
    false = ends + 1 - true
    if rule == "youden":
        best = np.argmax(true * negatives - false * positives)  # integers: J times both counts, so ties are ties
    elif rule == "f1":
        best = np.argmax(2 * true / (true + false + positives))
    elif rule == "accuracy":
        best = np.argmax(true - false)
    else:
        best = np.argmax(true >= sensitivity_target * positives - 1e-9)
    steps = np.append(ordered[ends], 0.0)  # below the lowest score there is no probability but 0
    return float((steps[best] + steps[best + 1]) / 2)
