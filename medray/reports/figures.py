"""Pictures for reports: curves, calibration, confusion, histograms, residuals, the learning curve. matplotlib, Agg.

N row, O output.  Every function takes arrays and gives a `Figure`: SVG or PNG bytes with a title, a caption and
a text for those who cannot see it. No pyplot, no window, no global style; same input, same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.learning.metrics import DIRECTIONS, MEANINGS
from medray.reports.drawing import (
    COLOURS,
    FAINT,
    INK,
    Figure,
    blank,
    labelled,
    saved,
    shortened,
    unit_square,
    whole_ticks,
)

if TYPE_CHECKING:
    import pyarrow as pa

MANY = len(COLOURS)  # with more curves than colours, all are drawn grey and the best and worst are named
BINS = 10
_CURVES = {"train_loss": "train", "loss": "validation"}


def learning_curve(history: pa.Table | Sequence[Mapping[str, Any]], best_epoch: int | None = None) -> bytes:
    """PNG: losses on the left, validation metrics on the right, over epochs.

    `history` has a row per epoch: `epoch`, `train_loss`, `loss` (validation) and metrics by their names in
    `metrics.DIRECTIONS`; other columns are not drawn, None is a gap. Works from the first epoch on.
    """
    rows = list(history) if isinstance(history, Sequence) else history.to_pylist()
    epochs = [row["epoch"] for row in rows]
    named = [name for name in DIRECTIONS if name != "loss" and any(row.get(name) is not None for row in rows)]
    curves = [name for name in ("auroc", "auprc", "balanced_accuracy", "accuracy", "f1") if name in named] or named
    canvas, axes = blank(9, 3.4, columns=2)
    for axis, names, title in ((axes[0], ["train_loss", "loss"], "Loss"), (axes[1], curves, "Validation metrics")):
        shown = [name for name in names if any(row.get(name) is not None for row in rows)]
        for name, colour in zip(shown, COLOURS, strict=False):
            values = [np.nan if row.get(name) is None else float(row[name]) for row in rows]
            label = _CURVES.get(name) or MEANINGS[name][0]
            axis.plot(epochs, values, color=colour, label=label, marker="o", markersize=3)
        if best_epoch is not None:
            axis.axvline(best_epoch, color=FAINT, linestyle=":", linewidth=1, label=f"kept: epoch {best_epoch}")
        labelled(axis, "Epoch", title, legend=bool(shown))
        if len(rows) == 1:
            axis.set_xticks(epochs)
        whole_ticks(axis.xaxis)
    return saved(canvas, "png")


def figures(
    kind: str, names: Sequence[str], scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float]
) -> list[Figure]:
    """All pictures of an evaluation for an objective of `kind` ("binary" …), scores (N, O) and targets (N, T).

    `names` are all classes, labels or outputs in their order (binary: negative, positive). Rows without a target
    are left out; a picture that the rows cannot give (curves of one class) is left out too.
    """
    known = ~np.isnan(targets).all(axis=1)
    scores, targets = np.asarray(scores, np.float64)[known], np.asarray(targets, np.float64)[known]
    if not len(scores):
        return []
    if kind == "regression":
        return [each for k, name in enumerate(names) for each in values(name, scores[:, k], targets[:, k])]
    if kind == "multiclass":
        truth = targets[:, 0].astype(np.int64)
        called, top = scores.argmax(axis=1), scores.max(axis=1)
        right = called == truth
        pairs = [(name, scores[:, k], truth == k) for k, name in enumerate(names)]
        return [
            *roc_and_precision(pairs, note="each class against the rest"),
            reliability(top, right, "Probability of the called class", "Share that is right"),
            confusion(names, truth, called),
            histogram(top, {"right": right, "wrong": ~right}, "Probability of the called class", None),
        ]
    columns = [~np.isnan(targets[:, k]) for k in range(targets.shape[1])]
    truths = [(scores[seen, k], targets[seen, k] > 0.5) for k, seen in enumerate(columns)]
    if kind == "binary":
        score, truth = truths[0]
        threshold = (*thresholds, 0.5)[0]
        positive = names[1]
        return [
            *roc_and_precision([(positive, score, truth)], threshold=threshold),
            reliability(score, truth, f"Score: probability of {positive}", f"Share that is {positive}"),
            confusion(names, truth.astype(np.int64), (score >= threshold).astype(np.int64)),
            histogram(score, {names[0]: ~truth, positive: truth}, f"Score: probability of {positive}", threshold),
        ]
    pairs = [(name, *truth) for name, truth in zip(names, truths, strict=True)]
    score, truth = (np.concatenate([each[i] for each in truths]) for i in (0, 1))
    return [
        *roc_and_precision(pairs, note="each label"),
        reliability(score, truth, "Score, all labels together", "Share that is present"),
        histogram(score, {"absent": ~truth, "present": truth}, "Score, all labels together", None),
    ]


# --- classification ---------------------------------------------------------------------------------------------


def curve_points(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(thresholds, true positives, false positives), each (S,), at every different score, from high to low."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    true = np.cumsum(positive[order])[ends]
    return scores[order][ends], true, ends + 1 - true


def roc_and_precision(
    pairs: Sequence[tuple[str, np.ndarray, np.ndarray]], *, threshold: float | None = None, note: str = ""
) -> list[Figure]:
    """ROC and precision-recall pictures of (name, scores (N,), positive (N,) bool) curves; [] where none has both."""
    drawn = [(name, s, p, *_areas(s, p)) for name, s, p in pairs if p.any() and not p.all()]
    if not drawn:
        return []
    roc, (roc_axis,) = blank(4.6, 4.3)
    precision, (pr_axis,) = blank(4.6, 4.3)
    roc_axis.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1)
    named = _named_curves([auroc for *_, auroc, _ in drawn])
    for i, (name, scores, positive, auroc, auprc) in enumerate(drawn):
        cuts, true, false = curve_points(scores, positive)
        recall, alarm = true / positive.sum(), false / (~positive).sum()
        exact = true / (true + false)
        style = {"color": COLOURS[i] if len(drawn) <= MANY else named.get(i, "#BBBBBB"), "linewidth": 1.6}
        style["zorder"] = 3 if len(drawn) <= MANY or i in named else 2
        keyed = len(drawn) <= MANY or i in named
        short = shortened(name)
        x, y = _corners(np.append(0, alarm), np.append(0, recall))
        roc_axis.plot(x, y, label=f"{short}  {auroc:.3f}" if keyed else None, **style)
        rising = np.diff(recall, prepend=0) > 0  # the steps that average precision sums
        x, y = _thinned(np.append(0, recall[rising]), np.append(exact[rising][0], exact[rising]))
        pr_axis.plot(x, y, drawstyle="steps-pre", label=f"{short}  {auprc:.3f}" if keyed else None, **style)
        if len(drawn) == 1:
            base = positive.mean()
            pr_axis.axhline(base, color=FAINT, linestyle=":", linewidth=1, label=f"chance  {base:.3f}")
        called = np.flatnonzero(cuts >= threshold) if threshold is not None else []
        if len(called):
            at = called[-1]
            dot = {"marker": "o", "color": INK, "zorder": 4, "linestyle": "none", "markersize": 6}
            roc_axis.plot(alarm[at], recall[at], label=f"threshold {threshold:.3g}", **dot)
            pr_axis.plot(recall[at], exact[at], label=f"threshold {threshold:.3g}", **dot)
    for axis in (roc_axis, pr_axis):
        unit_square(axis)
    labelled(roc_axis, "1 - specificity (false alarms)", "Sensitivity", legend=True, place="lower right")
    labelled(pr_axis, "Recall (sensitivity)", "Precision", legend=True, place="lower left")
    tail = f", {note}" if note else ""
    rocs = ", ".join(f"{name} {auroc:.3f}" for name, *_, auroc, _ in drawn)
    prs = ", ".join(f"{name} {auprc:.3f}" for name, *_, auprc in drawn)
    dotted = "" if threshold is None else " The dot is the decision threshold."
    dotted += " Named: the two best and the two worst by area." if named else ""
    return [
        Figure(f"ROC{tail}", f"Numbers: area under the curve. Dotted: chance.{dotted}",
               f"ROC curve; area under the curve: {rocs}.", saved(roc)),
        Figure(f"Precision and recall{tail}", f"Numbers: average precision.{dotted}",
               f"Precision-recall curve; average precision: {prs}.", saved(precision)),
    ]  # fmt: skip


def confusion(names: Sequence[str], truth: np.ndarray, called: np.ndarray) -> Figure:
    """Counts and share of the row, of (N,) true and called class indices; true classes in rows."""
    width = len(names)
    counts = np.zeros((width, width), np.int64)
    np.add.at(counts, (truth, called), 1)
    rows = counts.sum(axis=1, keepdims=True)
    parts = np.divide(counts, rows, out=np.zeros(counts.shape), where=rows > 0)
    side = min(9.0, max(4.3, 1.6 + 0.52 * width))
    canvas, (axis,) = blank(side + 0.3, side)
    axis.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    axis.grid(False)
    size = 12 if width <= 3 else 9 if width <= 12 else 8 if width <= 20 else 5
    for i in range(width):
        for j in range(width):
            if not counts[i, j]:
                continue
            label = f"{counts[i, j]}\n{parts[i, j]:.0%}" if width <= 12 else str(counts[i, j])
            axis.text(j, i, label, ha="center", va="center", fontsize=size,
                      color="white" if parts[i, j] > 0.55 else INK)  # fmt: skip
    shown = [shortened(name, 18) for name in names]
    turned = max(map(len, shown)) * width > 40
    axis.set_xticks(range(width), shown, rotation=40 if turned else 0, ha="right" if turned else "center")
    axis.set_yticks(range(width), shown)
    labelled(axis, "Called", "True")
    words = "; ".join(f"{names[i]}: {counts[i, i]} of {rows[i, 0]} right" for i in range(width))
    caption = "Rows: true class. Columns: what the model called. Per cent are of the row."
    return Figure("Confusion matrix", caption, f"Confusion matrix; {words}.", saved(canvas), wide=width > 6)


def reliability(confidence: np.ndarray, right: np.ndarray, x: str, y: str) -> Figure:
    """Observed against predicted probability in ten equal bins, with 95 % Wilson intervals and counts below."""
    member = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    count = np.bincount(member, minlength=BINS)
    kept = count > 0
    predicted = np.bincount(member, confidence, BINS)[kept] / count[kept]
    observed = np.bincount(member, right, BINS)[kept] / count[kept]
    low, high = wilson(observed, count[kept])
    canvas, (axis, below) = blank(4.6, 4.3, rows=2, heights=(4, 1))
    axis.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1)
    reach = np.clip([observed - low, high - observed], 0, None)
    axis.errorbar(predicted, observed, yerr=reach, fmt="o-", color=COLOURS[0], markersize=5, capsize=2, linewidth=1.4,
                  elinewidth=1)  # fmt: skip
    unit_square(axis)
    axis.set_xticklabels([])
    labelled(axis, "", y)
    below.bar((np.arange(BINS) + 0.5) / BINS, count, width=0.9 / BINS, color=FAINT)
    below.set_xlim(-0.02, 1.02)
    whole_ticks(below.yaxis, 2)
    labelled(below, x, "Samples")
    words = "; ".join(f"{p:.2f} predicted, {o:.2f} observed, {n} samples"
                      for p, o, n in zip(predicted, observed, count[kept], strict=True))  # fmt: skip
    caption = "On the dotted line, a score of 0.8 is right 8 times in 10. Bars: 95 % Wilson interval. Below: samples."
    return Figure("Calibration", caption, f"Reliability diagram; {words}.", saved(canvas))


def wilson(part: np.ndarray, count: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a proportion `part` of `count` > 0 rows (Wilson 1927)."""
    centre = (part + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(part * (1 - part) / count + z**2 / (4 * count**2))
    return centre - half, centre + half


def histogram(scores: np.ndarray, groups: Mapping[str, np.ndarray], x: str, threshold: float | None) -> Figure:
    """Counts of scores (N,) in 50 bins, one outline for each group {name: (N,) bool}."""
    canvas, (axis,) = blank(9.4, 3.2)
    edges = np.linspace(0, 1, 51)
    for (name, member), colour in zip(groups.items(), COLOURS, strict=False):
        counts = np.histogram(scores[member], edges)[0]
        axis.stairs(counts, edges, fill=True, color=colour, alpha=0.25)
        axis.stairs(counts, edges, color=colour, linewidth=1.6, label=f"{shortened(name)}  ({int(member.sum())})")
    if threshold is not None:
        axis.axvline(threshold, color=INK, linestyle="--", linewidth=1, label=f"threshold {threshold:.3g}")
    axis.set_xlim(0, 1)
    whole_ticks(axis.yaxis)
    labelled(axis, x, "Samples", legend=True)
    words = "; ".join(f"{name}: {int(member.sum())} samples, median score {np.median(scores[member]):.2f}"
                      for name, member in groups.items() if member.any())  # fmt: skip
    return Figure(
        "Scores",
        "How many samples have each score, by what is true.",
        f"Score histogram; {words}.",
        saved(canvas),
        wide=True,
    )


# --- regression -------------------------------------------------------------------------------------------------


def values(name: str, predicted: np.ndarray, true: np.ndarray) -> list[Figure]:
    """Predicted against true values, and their difference against the predicted one; (N,) each, NaN left out."""
    known = ~np.isnan(true)
    predicted, true = predicted[known], true[known]
    if not len(true):
        return []
    dot = {"marker": "o", "linestyle": "none", "markersize": 3, "alpha": 0.4, "markeredgewidth": 0}
    dot["rasterized"] = len(true) > 2000  # a picture of many dots stays small
    low, high = float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))
    first, (axis,) = blank(4.6, 4.3)
    axis.plot([low, high], [low, high], color=FAINT, linestyle=":", linewidth=1)
    axis.plot(true, predicted, color=COLOURS[0], **dot)
    labelled(axis, f"True {name}", f"Predicted {name}")
    error = predicted - true
    bias, spread = float(error.mean()), 1.96 * float(error.std())
    second, (axis,) = blank(4.6, 4.3)
    axis.axhline(0, color=FAINT, linestyle=":", linewidth=1)
    axis.plot(predicted, error, color=COLOURS[0], **dot)
    axis.axhline(bias, color=INK, linewidth=1.2, label=f"mean  {bias:.3g}")
    for limit in (bias - spread, bias + spread):
        axis.axhline(limit, color=INK, linewidth=1, linestyle="--",
                     label=f"mean ± 1.96 sd  (± {spread:.3g})" if limit > bias else None)  # fmt: skip
    labelled(axis, f"Predicted {name}", "Predicted - true", legend=True, place="best")
    facts = f"{len(true)} samples, mean difference {bias:.3g}, 95 % of differences within {spread:.3g} of it"
    return [
        Figure(f"{name}: predicted and true", "On the dotted line, the prediction is exact.",
               f"Predicted against true {name}; {facts}.", saved(first)),
        Figure(f"{name}: residuals", "Difference of predicted and true value over the predicted one.",
               f"Residuals of {name}; {facts}.", saved(second)),
    ]  # fmt: skip


# --- curves ----------------------------------------------------------------------------------------------------


def _areas(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    from medray.learning.metrics import areas

    found = areas(scores, positive)
    return found["auroc"], found["auprc"]


def _named_curves(aurocs: Sequence[float]) -> dict[int, str]:
    """Where curves are more than colours: which are named, in which colour. The best two and the worst two."""
    order = np.argsort(aurocs).tolist()
    return dict(zip((order[-1], order[-2], order[1], order[0]), COLOURS, strict=False)) if len(order) > MANY else {}


def _corners(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve without the points that lie on a straight line between their neighbours."""
    if len(x) > 2:
        before, after = np.diff(x)[:-1] * np.diff(y)[1:], np.diff(x)[1:] * np.diff(y)[:-1]
        kept = np.concatenate([[True], np.abs(before - after) > 1e-15, [True]])
        x, y = x[kept], y[kept]
    return _thinned(x, y)


def _thinned(x: np.ndarray, y: np.ndarray, most: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    kept = np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).astype(np.int64))
    return x[kept], y[kept]
