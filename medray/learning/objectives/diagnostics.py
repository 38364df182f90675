"""Charts that several objectives show of their scores: curves, calibration, confusion, histograms, residuals.

N row, K class, S different score. Rows are those with a target; a chart that they cannot give is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from medray.learning.charts import (
    COLOURS,
    Bars,
    Chart,
    Colour,
    Curve,
    Dots,
    Histogram,
    Intervals,
    Line,
    Mark,
    Matrix,
    Panel,
    shortened,
)
from medray.learning.point_metrics import areas
from medray.learning.rates import wilson

BINS = 10
"""Bins of the calibration chart."""
NARROW = 6
"""Classes of a confusion matrix that takes half of a row."""
DIAGONAL = Curve(np.array([0, 1]), np.array([0, 1]), "faint", width=1, dash="dotted")


class OneCurve(NamedTuple):
    """What ROC and precision-recall curves are drawn of."""

    name: str
    scores: np.ndarray
    """(N,)"""
    positive: np.ndarray
    """(N,) bool"""


def curve_points(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(thresholds, true positives, false positives), each (S,), at every different score, from high to low."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    true = np.cumsum(positive[order])[ends]
    return scores[order][ends], true, ends + 1 - true


def roc_and_precision(curves: Sequence[OneCurve], *, threshold: float | None = None, note: str = "") -> list[Chart]:
    """ROC and precision-recall charts; [] where no curve has rows of both kinds."""
    drawn = [each for each in curves if each.positive.any() and not each.positive.all()]
    if not drawn:
        return []
    under = [areas(each.scores, each.positive) for each in drawn]
    crowd = len(drawn) > COLOURS  # then all are grey, and the best and worst are named
    named = _named_curves([area["auroc"] for area in under]) if crowd else {}
    roc: list[Mark] = [DIAGONAL]
    precision: list[Mark] = []
    for i, (one, area) in enumerate(zip(drawn, under, strict=True)):
        cuts, true, false = curve_points(one.scores, one.positive)
        recall, alarm = true / one.positive.sum(), false / (~one.positive).sum()
        exact = true / (true + false)
        colour: Colour = named.get(i, "grey") if crowd else i
        keyed = not crowd or i in named
        layer, short = 3 if keyed else 2, shortened(one.name)
        x, y = _corners(np.append(0, alarm), np.append(0, recall))
        roc.append(Curve(x, y, colour, f"{short}  {area['auroc']:.3f}" if keyed else None, layer=layer))
        rising = np.diff(recall, prepend=0) > 0  # the steps that average precision sums
        x, y = _thinned(np.append(0, recall[rising]), np.append(exact[rising][0], exact[rising]))
        label = f"{short}  {area['auprc']:.3f}" if keyed else None
        precision.append(Curve(x, y, colour, label, steps=True, layer=layer))
        if len(drawn) == 1:
            base = float(one.positive.mean())
            precision.append(Line(base, "y", label=f"chance  {base:.3f}", dash="dotted"))
        called = np.flatnonzero(cuts >= threshold) if threshold is not None else np.array([], np.int64)
        if len(called):
            at, label = called[-1:], f"threshold {threshold:.3g}"
            roc.append(Dots(alarm[at], recall[at], "ink", label, 6, layer=4))
            precision.append(Dots(recall[at], exact[at], "ink", label, 6, layer=4))
    tail = f", {note}" if note else ""
    rocs, prs = (
        ", ".join(f"{one.name} {area[kind]:.3f}" for one, area in zip(drawn, under, strict=True))
        for kind in ("auroc", "auprc")
    )
    dotted = "" if threshold is None else " The dot is the decision threshold."
    dotted += " Named: the two best and the two worst by area." if named else ""
    alarms = Panel(roc, "1 - specificity (false alarms)", "Sensitivity", legend=True, unit=True)
    return [
        Chart(
            f"ROC{tail}",
            f"Numbers: area under the curve. Dotted: chance.{dotted}",
            f"ROC curve; area under the curve: {rocs}.",
            [alarms],
        ),
        Chart(
            f"Precision and recall{tail}",
            f"Numbers: average precision.{dotted}",
            f"Precision-recall curve; average precision: {prs}.",
            [Panel(precision, "Recall (sensitivity)", "Precision", legend=True, unit=True)],
        ),
    ]


def confusion(names: Sequence[str], truth: np.ndarray, called: np.ndarray) -> Matrix:
    """Counts of (N,) true and called class indices."""
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (truth, called), 1)
    rows = counts.sum(axis=1)
    words = "; ".join(f"{name}: {counts[i, i]} of {rows[i]} right" for i, name in enumerate(names))
    caption = "Rows: true class. Columns: what the model called. Per cent are of the row."
    return Matrix("Confusion matrix", caption, f"Confusion matrix; {words}.", names, counts, wide=len(names) > NARROW)


def reliability(confidence: np.ndarray, right: np.ndarray, x: str, y: str) -> Chart:
    """Observed share of (N,) bool against predicted probability (N,) in ten equal bins, with 95 % Wilson intervals."""
    member = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    count = np.bincount(member, minlength=BINS)
    filled = count > 0
    predicted = np.bincount(member, confidence, BINS)[filled] / count[filled]
    observed = np.bincount(member, right, BINS)[filled] / count[filled]
    low, high = wilson(observed, count[filled])
    bins = zip(predicted, observed, count[filled], strict=True)
    words = "; ".join(f"{p:.2f} predicted, {o:.2f} observed, {n} samples" for p, o, n in bins)
    bars = Bars((np.arange(BINS) + 0.5) / BINS, count, width=0.9 / BINS)
    return Chart(
        "Calibration",
        "On the dotted line, a score of 0.8 is right 8 times in 10. Bars: 95 % Wilson interval. Below: samples.",
        f"Reliability diagram; {words}.",
        [
            Panel([DIAGONAL, Intervals(predicted, observed, low, high)], "", y, unit=True, x_numbers=False),
            Panel([bars], x, "Samples", x_limits=(-0.02, 1.02), whole="y", most=2),
        ],
        heights=(4, 1),
    )


def histogram(scores: np.ndarray, groups: Mapping[str, np.ndarray], x: str, threshold: float | None) -> Chart:
    """Counts of probabilities (N,) in 50 bins, an outline for each group {name: (N,) bool}."""
    edges = np.linspace(0, 1, 51)
    marks: list[Mark] = [
        Histogram(np.histogram(scores[member], edges)[0], edges, colour, f"{shortened(name)}  ({int(member.sum())})")
        for colour, (name, member) in enumerate(groups.items())
    ]
    if threshold is not None:
        marks.append(Line(threshold, "x", "ink", f"threshold {threshold:.3g}", dash="dashed"))
    words = "; ".join(
        f"{name}: {int(member.sum())} samples, median score {np.median(scores[member]):.2f}"
        for name, member in groups.items()
        if member.any()
    )
    return Chart(
        "Scores",
        "How many samples have each score, by what is true.",
        f"Score histogram; {words}.",
        [Panel(marks, x, "Samples", legend=True, x_limits=(0, 1), whole="y")],
        size=(9.4, 3.2),
        wide=True,
    )


def values(name: str, predicted: np.ndarray, true: np.ndarray) -> list[Chart]:
    """Predicted against true values, and their difference against the predicted one; (N,) each, NaN left out."""
    known = ~np.isnan(true)
    predicted, true = predicted[known], true[known]
    if not len(true):
        return []
    ends = np.array([min(true.min(), predicted.min()), max(true.max(), predicted.max())], np.float64)
    error = predicted - true
    bias, spread = float(error.mean()), 1.96 * float(error.std())
    residuals: list[Mark] = [
        Line(0, "y", dash="dotted"),
        Dots(predicted, error, many=True),
        Line(bias, "y", "ink", f"mean  {bias:.3g}", width=1.2),
    ]
    for limit in (bias - spread, bias + spread):
        label = f"mean ± 1.96 sd  (± {spread:.3g})" if limit > bias else None
        residuals.append(Line(limit, "y", "ink", label, dash="dashed"))
    facts = f"{len(true)} samples, mean difference {bias:.3g}, 95 % of differences within {spread:.3g} of it"
    exact = Curve(ends, ends, "faint", width=1, dash="dotted")
    return [
        Chart(
            f"{name}: predicted and true",
            "On the dotted line, the prediction is exact.",
            f"Predicted against true {name}; {facts}.",
            [Panel([exact, Dots(true, predicted, many=True)], f"True {name}", f"Predicted {name}")],
        ),
        Chart(
            f"{name}: residuals",
            "Difference of predicted and true value over the predicted one.",
            f"Residuals of {name}; {facts}.",
            [Panel(residuals, f"Predicted {name}", "Predicted - true", legend=True)],
        ),
    ]


def _named_curves(aurocs: Sequence[float]) -> dict[int, int]:
    """Colours of the named ones, by curve, where there are more curves than colours: the best two and the worst two."""
    order = [int(i) for i in np.argsort(aurocs)]
    return dict(zip((order[-1], order[-2], order[1], order[0]), range(COLOURS), strict=False))


def _corners(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve without the points that lie on a straight line between their neighbours."""
    if len(x) > 2:
        before, after = np.diff(x)[:-1] * np.diff(y)[1:], np.diff(x)[1:] * np.diff(y)[:-1]
        corner = np.concatenate([[True], np.abs(before - after) > 1e-15, [True]])
        x, y = x[corner], y[corner]
    return _thinned(x, y)


def _thinned(x: np.ndarray, y: np.ndarray, most: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    points = np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).astype(np.int64))
    return x[points], y[points]
