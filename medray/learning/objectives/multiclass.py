"""Multiclass: one of K classes."""

# B row of a batch, N row, K class

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from medray.errors import LabelError
from medray.learning import bootstrap as boot
from medray.learning import metrics as measure
from medray.learning.charts import Chart, Matrix
from medray.learning.metrics import PLAIN, Direction, MetricOptions, Metrics
from medray.learning.objectives import calibration as cal
from medray.learning.objectives import classes as text
from medray.learning.objectives import diagnostics, losses
from medray.learning.objectives.base import Breakdown, Labels, WrongCall
from medray.learning.objectives.classification import ClassificationObjective
from medray.learning.objectives.diagnostics import OneCurve
from medray.learning.objectives.losses import ClassWeights, LossWeights
from medray.learning.point_metrics import multiclass_report
from medray.learning.thresholds import ThresholdChoice

if TYPE_CHECKING:
    import torch


class MulticlassObjective(ClassificationObjective):
    """K classes that exclude each other, K probabilities. Targets (N, 1): the index of the class."""

    link: ClassVar[Literal["sigmoid", "softmax", "linear"] | None] = "softmax"
    breakdown: ClassVar[Breakdown | None] = Breakdown(
        "per_class", "Class", ("n", "auroc", "auprc", "sensitivity", "specificity", "precision", "f1")
    )

    kind: Literal["multiclass"] = "multiclass"
    """The objective: one of several classes, a probability each."""
    class_weights: ClassWeights = "none"
    """Weights of the classes in the loss: none, balanced by frequency, or one number for each, in natural order of the raw
    labels."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread evenly over all classes (Szegedy et al. 2016); 0: none."""

    def fit_classes(self, labels: Labels) -> tuple[str, ...]:
        """Raw labels seen in train, in natural order. Raises LabelError where there are fewer than two."""
        raw = text.seen_classes(labels, self.kind)
        if len(raw) < 2:
            raise LabelError(
                "objective 'multiclass' needs two classes or more in the train split",
                found=text.shown(raw),
                do="check the label column and the split",
            )
        text.displayed(self.names, raw)
        if not isinstance(self.class_weights, str) and len(self.class_weights) != len(raw):
            raise LabelError(
                "objective.class_weights must have one number for each class",
                found=f"{len(self.class_weights)} numbers",
                expected=f"{len(raw)}, for {text.shown(raw)}",
            )
        return raw

    def targets(self, labels: Labels, classes: Sequence[str]) -> pa.Array:
        """list<float32> [class index], null without label. Raises LabelError for labels not in `classes`."""
        return text.class_targets(labels, classes, self.kind)

    def called(self, scores: np.ndarray, thresholds: Sequence[float], classes: Sequence[str]) -> pa.Array:
        """(N,) string: the most probable class."""
        return pa.array([self.display(classes)[i] for i in scores.argmax(axis=1)], pa.string())

    def unknown_classes(self, labels: Labels, classes: Sequence[str]) -> tuple[str, ...]:
        return text.unknown_classes(labels, classes)

    def class_counts(self, targets: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
        return text.class_counts(targets, classes)

    def weights(self, targets: np.ndarray, classes: Sequence[str] = ()) -> np.ndarray | None:
        """(K,) float32 of train targets (N, 1); mean over the rows is 1. A class without rows gets 1."""
        return losses.class_weights(targets, self.class_weights, len(classes))

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, weights: LossWeights = None) -> torch.Tensor:
        """(B, K) logits, (B, 1) targets to (B,) float32 cross-entropy; 0 for a row without target."""
        return losses.softmax_loss(logits, targets, weights, self.label_smoothing)

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, K) logits to (B, K) probabilities, summing to 1."""
        return self._scaled(logits).softmax(dim=1)

    def log_odds(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, K) float64: the calibrated logit of a class minus the logarithm of the sum of exp of all others."""
        import torch

        scaled = self._scaled(logits.double())
        whole = scaled.logsumexp(dim=1, keepdim=True)
        others = whole + torch.log1p(-(scaled - whole).exp().clamp(max=0.5))  # exact for all classes but the likeliest
        top = scaled.argmax(dim=1, keepdim=True)
        of_top = scaled.scatter(1, top, -torch.inf).logsumexp(dim=1, keepdim=True)
        return scaled - others.scatter(1, top, of_top)

    def _fit_calibrator(self, scores: np.ndarray, targets: np.ndarray) -> tuple[tuple[float, float], ...]:
        return ((cal.temperature(scores, targets[:, 0].astype(np.int64)), 0.0),) * scores.shape[1]

    def _logits(self, scores: np.ndarray) -> np.ndarray:
        return np.log(np.clip(scores, cal.TINY, 1.0))

    def metrics(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float] = (),
        names: Sequence[str] = (),
        options: MetricOptions = PLAIN,
    ) -> Metrics:
        """JSON-ready scalars (means over classes), `confusion_matrix` (K, K) and `per_class` by name (or index)."""
        scores, targets = self._labelled(scores, targets)
        return multiclass_report(scores, targets[:, 0].astype(np.int64), measure.named(names, scores.shape[1]), options)

    def weighted_metrics(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float],
        weights: np.ndarray,
        options: MetricOptions = PLAIN,
    ) -> boot.Scalars:
        return boot.multiclass_scalars(scores, targets[:, 0].astype(np.int64), weights, options)

    def primary_metric(self) -> tuple[str, Direction]:
        return "accuracy", "max"

    def headline(self) -> tuple[str, ...]:
        return "accuracy", "balanced_accuracy", "auroc", "ece"

    def _charts(
        self, names: Sequence[str], scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float]
    ) -> list[Chart | Matrix]:
        truth = targets[:, 0].astype(np.int64)
        called, top = scores.argmax(axis=1), scores.max(axis=1)
        right, x = called == truth, "Probability of the called class"
        curves = [OneCurve(name, scores[:, k], truth == k) for k, name in enumerate(names)]
        return [
            *diagnostics.roc_and_precision(curves, note="each class against the rest"),
            diagnostics.reliability(top, right, x, "Share that is right"),
            diagnostics.confusion(names, truth, called),
            diagnostics.histogram(top, {"right": right, "wrong": ~right}, x, None),
        ]

    def mistakes(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float],
        names: Sequence[str],
        most: int,
    ) -> list[WrongCall]:
        return self._wrong(scores.argmax(axis=1), scores.max(axis=1), targets, names, most)

    def decision(
        self, names: Sequence[str], thresholds: Sequence[float], choice: Sequence[ThresholdChoice], data: str
    ) -> str:
        return "The class with the highest probability is called."

    def metric_note(self, classes: Sequence[str]) -> str:
        but = "; accuracy, ECE and Brier score are over all samples"
        return f"Means over classes, each counting the same{but}." if len(classes) > 1 else ""
