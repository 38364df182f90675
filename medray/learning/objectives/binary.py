"""Binary and multilabel: each output is a probability of its own, with a threshold of its own."""

# B row of a batch, N row, T label

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from medray.errors import LabelError
from medray.learning import bootstrap as boot
from medray.learning import metrics as measure
from medray.learning.charts import Chart, Matrix
from medray.learning.metrics import BINARY, CLASSIFICATION, PLAIN, Direction, MetricOptions, Metrics, metric_text
from medray.learning.objectives import calibration as cal
from medray.learning.objectives import classes as text
from medray.learning.objectives import diagnostics, losses
from medray.learning.objectives.base import Breakdown, Labels, WrongCall
from medray.learning.objectives.classification import ClassificationObjective
from medray.learning.objectives.diagnostics import OneCurve
from medray.learning.objectives.losses import ClassWeights, LossWeights
from medray.learning.point_metrics import binary_report, multilabel_report
from medray.learning.thresholds import FEW, WORDS, Rule, ThresholdChoice, choose

if TYPE_CHECKING:
    import torch

Fraction = Annotated[float, Field(ge=0, le=1)]
Threshold = Rule | Fraction


class _YesOrNo(ClassificationObjective):
    """Each of T outputs is a probability of its own; T is 1 for two classes."""

    link: ClassVar[Literal["sigmoid", "softmax", "linear"] | None] = "sigmoid"

    threshold: Threshold = "youden"
    """How the decision threshold is chosen on the validation split; a number is taken as it is."""
    sensitivity_target: Fraction = 0.95
    """Sensitivity that the threshold has to reach, with threshold = "sensitivity": the highest that does is taken."""

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, weights: LossWeights = None) -> torch.Tensor:
        """(B, T) logits, (B, T) targets to (B,) float32: mean cross-entropy of what is known of the row; 0 for nothing."""
        return losses.sigmoid_loss(logits, targets, weights)

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, T) logits to (B, T) probabilities of the positive class, or of each label."""
        return self._scaled(logits).sigmoid()

    def log_odds(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, T) float64: the calibrated logits themselves, for p = 1 / (1 + exp(-logit))."""
        return self._scaled(logits.double())

    def _fit_calibrator(self, scores: np.ndarray, targets: np.ndarray) -> tuple[tuple[float, float], ...]:
        return tuple(cal.platt(score, truth) for score, truth in self._known(scores, targets))

    def choose_threshold(self, scores: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
        """A threshold for each output from validation scores (N, T) and targets (N, T)."""
        known = self._known(measure.checked_scores(scores), targets)
        return tuple(choose(score, truth, self.threshold, self.sensitivity_target) for score, truth in known)

    def threshold_choice(
        self, scores: np.ndarray, targets: np.ndarray, subjects: np.ndarray
    ) -> tuple[ThresholdChoice, ...]:
        choices: list[ThresholdChoice] = []
        subjects = np.asarray(subjects)
        for column, (score, truth) in enumerate(self._known(measure.checked_scores(scores), targets)):
            positives, negatives = int(truth.sum()), int((~truth).sum())
            few = min(positives, negatives) < FEW
            pair = None
            if few and isinstance(self.threshold, str):
                of_row = subjects[~np.isnan(targets[:, column])]
                pair = boot.threshold_interval(score, truth, of_row, self.threshold, self.sensitivity_target)
            choices.append(
                {"positives": positives, "negatives": negatives, "few": few, "interval": pair and list(pair)}
            )
        return tuple(choices) if isinstance(self.threshold, str) else ()

    def headline(self) -> tuple[str, ...]:
        return "auroc", "sensitivity", "specificity", "ece"

    def primary_metric(self) -> tuple[str, Direction]:
        return "auroc", "max"

    def _how(self, choice: Sequence[ThresholdChoice], data: str) -> str:
        """How the threshold was chosen, and how sure it is where it was chosen on few rows; of several outputs that stands
        in their table."""
        if not isinstance(self.threshold, str):
            return "It was set in the run file."
        wanted = f" of {self.sensitivity_target:.0%}" if self.threshold == "sensitivity" else ""
        how = f"It is {WORDS[self.threshold]}{wanted} on the validation split; {data} had no part in the choice."
        if len(choice) != 1 or not choice[0]["few"]:
            return how
        pair = choice[0]["interval"]
        sure = "most resamples of them have one class only"
        if pair is not None:
            between = f"between {metric_text(pair[0])} and {metric_text(pair[1])}"
            sure = f"on 95% of the resamples of these subjects it lies {between}"
        counts = f"{choice[0]['positives']:,} positive and {choice[0]['negatives']:,} negative ones"
        return f"{how} It was chosen on few rows, {counts}: {sure}."

    @staticmethod
    def _known(scores: np.ndarray, targets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Scores of each output and whether it is so (bool), of the rows where that is known."""
        for score, target in zip(scores.T, targets.T, strict=True):
            known = ~np.isnan(target)
            yield score[known], target[known] > 0.5


class BinaryObjective(_YesOrNo):
    """Two classes, one score: the probability of the positive one. Targets (N, 1): 1 positive, 0 negative."""

    at_prevalence: ClassVar[bool] = True
    binding: ClassVar[tuple[str, ...]] = ("kind", "names", "positive")

    kind: Literal["binary"] = "binary"
    """The objective: one of two classes, one score, the probability of the positive one."""
    positive: str | None = None
    """The positive class, by raw label or display name; default: the last in natural order."""
    class_weights: ClassWeights = "none"
    """Weights of the classes in the loss: none, balanced by frequency, or two numbers: negative, positive."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.names is not None and len(self.names) != 2:
            raise ValueError(f"binary has two names, found {len(self.names)}")
        if not isinstance(self.class_weights, str) and len(self.class_weights) != 2:
            raise ValueError(f"binary has two class_weights (negative, positive), found {len(self.class_weights)}")
        return self

    def fit_classes(self, labels: Labels) -> tuple[str, ...]:
        """(negative, positive) raw labels seen in train. Raises LabelError where there are not two."""
        raw = text.seen_classes(labels, self.kind)
        if len(raw) != 2:
            raise LabelError(
                "objective 'binary' needs two classes in the train split",
                found=f"{len(raw)}: {text.shown(raw)}",
                expected="2",
                do="set objective.kind = 'multiclass'" if len(raw) > 2 else "check the labels and the split",
            )
        shown = text.displayed(self.names, raw)
        if self.positive is None:
            return raw
        if self.positive not in (*raw, *shown):
            raise LabelError(
                "objective.positive is none of the classes",
                found=repr(self.positive),
                expected=f"one of {text.shown({*raw, *shown})}",
            )
        positive = raw.index(self.positive) if self.positive in raw else shown.index(self.positive)
        return raw[1 - positive], raw[positive]

    def targets(self, labels: Labels, classes: Sequence[str]) -> pa.Array:
        """list<float32> [1] positive, [0] negative, null without label. Raises LabelError for other labels."""
        return text.class_targets(labels, classes, self.kind)

    def called(self, scores: np.ndarray, thresholds: Sequence[float], classes: Sequence[str]) -> pa.Array:
        """(N,) string: the positive class from the threshold on (0.5 where there is none), below it the other."""
        names = self.display(classes)
        return pa.array([names[int(is_positive)] for is_positive in scores[:, 0] >= (*thresholds, 0.5)[0]], pa.string())

    def unknown_classes(self, labels: Labels, classes: Sequence[str]) -> tuple[str, ...]:
        return text.unknown_classes(labels, classes)

    def class_counts(self, targets: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
        return text.class_counts(targets, classes)

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        return self.display(classes)[1:]

    def scalar_metrics(self) -> tuple[str, ...]:
        return (*CLASSIFICATION, *BINARY)

    def width(self, classes: Sequence[str]) -> int:
        return 1

    def weights(self, targets: np.ndarray, classes: Sequence[str] = ()) -> np.ndarray | None:
        """(1, 2) float32, negative and positive, of train targets (N, 1); mean over the rows is 1."""
        return losses.label_weights(targets, self.class_weights, binary=True)

    def metrics(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float] = (),
        names: Sequence[str] = (),
        options: MetricOptions = PLAIN,
    ) -> Metrics:
        """JSON-ready scalars and `confusion_matrix` [[tn, fp], [fn, tp]]; rows without target are left out."""
        scores, targets = self._labelled(scores, targets)
        return binary_report(scores[:, 0], targets[:, 0] > 0.5, (*thresholds, 0.5)[0], options)

    def weighted_metrics(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float],
        weights: np.ndarray,
        options: MetricOptions = PLAIN,
    ) -> boot.Scalars:
        return boot.binary_scalars(scores[:, 0], targets[:, 0] > 0.5, (*thresholds, 0.5)[0], weights, options)

    def _charts(
        self, names: Sequence[str], scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float]
    ) -> list[Chart | Matrix]:
        score, truth = next(self._known(scores, targets))
        threshold, positive = (*thresholds, 0.5)[0], names[1]
        x = f"Score: probability of {positive}"
        return [
            *diagnostics.roc_and_precision([OneCurve(positive, score, truth)], threshold=threshold),
            diagnostics.reliability(score, truth, x, f"Share that is {positive}"),
            diagnostics.confusion(names, truth.astype(np.int64), (score >= threshold).astype(np.int64)),
            diagnostics.histogram(score, {names[0]: ~truth, positive: truth}, x, threshold),
        ]

    def mistakes(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float],
        names: Sequence[str],
        most: int,
    ) -> list[WrongCall]:
        called = (scores[:, 0] >= thresholds[0]).astype(int)
        confidence = np.where(called == 1, scores[:, 0], 1 - scores[:, 0])
        return self._wrong(called, confidence, targets, names, most)

    def decision(
        self, names: Sequence[str], thresholds: Sequence[float], choice: Sequence[ThresholdChoice], data: str
    ) -> str:
        if not thresholds:
            return ""
        called = f"A sample is called “{names[1]}” when its score is at least {metric_text(thresholds[0])}."
        return f"{called} {self._how(choice, data)}"


class MultilabelObjective(_YesOrNo):
    """T findings that may be present together, T probabilities. Targets (N, T): 0 or 1, NaN where not known."""

    breakdown: ClassVar[Breakdown | None] = Breakdown(
        "per_label",
        "Label",
        ("n", "positives", "auroc", "auprc", "sensitivity", "specificity", "precision", "f1"),
    )

    kind: Literal["multilabel"] = "multilabel"
    """The objective: several findings that may be present together, a probability each."""
    class_weights: ClassWeights = "none"
    """Weights in the loss: none, balanced by frequency, or for each label the weight of a present one against 1 for an absent
    one."""
    threshold: Threshold = "youden"
    """How each label's decision threshold is chosen on the validation split; a number is taken as it is."""
    sensitivity_target: Fraction = 0.95
    """Sensitivity that the threshold has to reach, with threshold = "sensitivity": the highest that does is taken."""

    def fit_classes(self, labels: Labels) -> tuple[str, ...]:
        """Names of the labels: `names`, or label_0, label_1 … Raises LabelError where rows differ in length."""
        classes = text.output_names(labels, self.names, "label")
        if not isinstance(self.class_weights, str) and len(self.class_weights) != len(classes):
            raise LabelError(
                "objective.class_weights must have one number for each label",
                found=f"{len(self.class_weights)} numbers",
                expected=str(len(classes)),
            )
        return classes

    def display(self, classes: Sequence[str]) -> tuple[str, ...]:
        return tuple(classes)

    def targets(self, labels: Labels, classes: Sequence[str]) -> pa.Array:
        """list<float32> of 0 and 1 per label, null elements where not known. Raises LabelError for other values."""
        return text.number_targets(labels, classes, text.truth_value, "0 or 1 for each label, or nothing")

    def called(self, scores: np.ndarray, thresholds: Sequence[float], classes: Sequence[str]) -> pa.Array:
        """(N,) list of string: the labels whose scores reach their thresholds (0.5 where there are none)."""
        present = scores >= np.array(list(thresholds) or [0.5] * scores.shape[1], np.float32)
        labels = [[name for name, yes in zip(classes, row, strict=True) if yes] for row in present]
        return pa.array(labels, pa.list_(pa.string()))

    def class_counts(self, targets: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
        return {name: int((targets[:, column] == 1).sum()) for column, name in enumerate(classes)}

    def weights(self, targets: np.ndarray, classes: Sequence[str] = ()) -> np.ndarray | None:
        """(T, 2) float32, absent and present, of train targets (N, T); mean over each label's known rows is 1."""
        return losses.label_weights(targets, self.class_weights, binary=False)

    def metrics(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float] = (),
        names: Sequence[str] = (),
        options: MetricOptions = PLAIN,
    ) -> Metrics:
        """JSON-ready scalars (means over labels), `confusion_matrix` (T, 2, 2), `per_label` by name (or index)."""
        scores, targets = self._labelled(scores, targets)
        width = scores.shape[1]
        return multilabel_report(
            scores, targets, list(thresholds) or [0.5] * width, measure.named(names, width), options
        )

    def weighted_metrics(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float],
        weights: np.ndarray,
        options: MetricOptions = PLAIN,
    ) -> boot.Scalars:
        return boot.multilabel_scalars(scores, targets, list(thresholds) or [0.5] * scores.shape[1], weights, options)

    def _charts(
        self, names: Sequence[str], scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float]
    ) -> list[Chart | Matrix]:
        known = list(self._known(scores, targets))
        curves = [OneCurve(name, *one) for name, one in zip(names, known, strict=True)]
        score, truth = np.concatenate([one[0] for one in known]), np.concatenate([one[1] for one in known])
        x = "Score, all labels together"
        return [
            *diagnostics.roc_and_precision(curves, note="each label"),
            diagnostics.reliability(score, truth, x, "Share that is present"),
            diagnostics.histogram(score, {"absent": ~truth, "present": truth}, x, None),
        ]

    def decision(
        self, names: Sequence[str], thresholds: Sequence[float], choice: Sequence[ThresholdChoice], data: str
    ) -> str:
        if not thresholds:
            return ""
        how = self._how(choice, data).replace("It", "Each", 1)
        return f"A label is called present when its score is at least its threshold (below). {how}"

    def metric_note(self, classes: Sequence[str]) -> str:
        return "Means over labels, each counting the same." if len(classes) > 1 else ""
