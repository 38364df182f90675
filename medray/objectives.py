"""Objectives: what a model learns to say. binary, multiclass, multilabel, regression: loss, activation, metrics.

    B row of a batch, N row, K logit, O output, T target.  `classes` are raw labels, `outputs` the names of scores.

The four have the same methods, so the flow that uses them never asks which one it has:

    classes = objective.fit_classes(train_labels)           # kept in the bundle
    targets = objective.targets(labels, classes)            # list<float32>; null where there is no label
    objective = objective.fitted(train_targets)             # (N, T) array; regression keeps mean and deviation
    weights = objective.weights(train_targets, classes)
    loss = objective.loss(logits, targets, weights).mean()
    scores = objective.activate(logits)
    objective = objective.calibrated(validation_scores, validation_targets)
    thresholds = objective.choose_threshold(validation_scores, validation_targets)
    metrics = objective.metrics(scores, targets, thresholds, objective.display(classes))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medray import bootstrap as boot
from medray import calibration as cal
from medray import classes as text
from medray import losses
from medray import metrics as measure
from medray.errors import LabelError
from medray.losses import ClassWeights
from medray.metrics import CLASSIFICATION, REGRESSION, Direction
from medray.thresholds import Rule, choose

if TYPE_CHECKING:
    import torch

Labels = pa.Array | pa.ChunkedArray  # of list<string>, one list per row
Fraction = Annotated[float, Field(ge=0, le=1)]
Threshold = Rule | Fraction


class _Objective(BaseModel, ABC):
    """What the four share: a frozen type without unknown keys, and the names of its outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...] | None = None
    """Display names of the classes, labels or outputs; of classes in natural order of the raw labels ("2" < "10")."""

    calibration: Literal["none", "validation"] = "none"
    """validation: scores are calibrated on the validation split: Platt's scale and offset for each binary output, one
    temperature for classes. Their order stays; only what the numbers mean changes."""
    calibrator: tuple[tuple[float, float], ...] | None = None
    """Scale and offset of the logits of each output; fitted, not to be set in a run file."""

    @field_validator("names")
    @classmethod
    def _names_differ(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and (len(set(names)) != len(names) or not all(names)):
            raise ValueError("names must be different from each other and not empty")
        return names

    @field_validator("class_weights", check_fields=False)
    @classmethod
    def _weights_positive(cls, weights: ClassWeights) -> ClassWeights:
        if not isinstance(weights, str) and not (weights and all(0 < w < float("inf") for w in weights)):
            raise ValueError("class_weights must be 'none', 'balanced' or positive finite numbers, one for each class")
        return weights

    def fitted(self, targets: np.ndarray) -> Self:
        """This objective with its statistics of the train targets (N, T); only regression has any."""
        return self

    def calibrated(self, scores: np.ndarray, targets: np.ndarray) -> Self:
        """This objective with its calibrator, of validation scores (N, O) and targets (N, T), where it asks for one."""
        if self.calibration == "none" or self.calibrator is not None:
            return self
        return self.model_copy(update={"calibrator": self._fit_calibrator(*self._labelled(scores, targets))})

    @abstractmethod
    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, K) logits to (B, O) float32 scores."""

    def _fit_calibrator(self, scores: np.ndarray, targets: np.ndarray) -> tuple[tuple[float, float], ...] | None:
        """Of the labelled rows; None: this objective knows no calibration."""
        return None

    def recalibrated(self, scores: np.ndarray) -> np.ndarray:
        """Scores (N, O) as `activate` gave them before there was a calibrator, to those it gives now; float32."""
        if self.calibrator is None:
            return scores
        import torch

        return self.activate(torch.from_numpy(self._logits(scores).astype(np.float32))).numpy()

    def uncalibrated(self, scores: np.ndarray) -> np.ndarray:
        """The opposite of `recalibrated`: what the network said itself."""
        if self.calibrator is None:
            return scores
        import torch

        scale, offset = np.array(self.calibrator).T
        logits = (self._logits(scores) - offset) / scale
        plain = self.model_copy(update={"calibrator": None})
        return plain.activate(torch.from_numpy(logits.astype(np.float32))).numpy()

    def _logits(self, scores: np.ndarray) -> np.ndarray:
        """(N, O) float64 logits that `activate` makes these scores of."""
        return cal.logit(scores)

    def _scaled(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 logits, calibrated where there is a calibrator."""
        import torch

        logits = logits.float()
        if self.calibrator is None:
            return logits
        scale, offset = torch.tensor(self.calibrator, dtype=torch.float32, device=logits.device).T
        return logits * scale + offset

    def display(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Names for people of all classes, labels or outputs, in the order of `classes`."""
        raw = sorted(classes, key=text.natural_key)
        name = dict(zip(raw, text.displayed(self.names, raw), strict=True))
        return tuple(name[each] for each in classes)

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Names of the scores, in the order of `activate`'s columns."""
        return self.display(classes)

    def width(self, classes: Sequence[str]) -> int:
        """Number of logits."""
        return len(classes)

    def scalar_metrics(self) -> tuple[str, ...]:
        """Names of the scalars in `metrics`; early stopping may watch these and "loss"."""
        return CLASSIFICATION

    @abstractmethod
    def primary_metric(self) -> tuple[str, Direction]:
        """What early stopping watches by default, and which way is better."""

    @abstractmethod
    def _scalars(
        self, scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float], weights: np.ndarray
    ) -> boot.Scalars:
        """Each scalar metric (R,) under row weights (N, R)."""

    def bootstrap(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        subjects: np.ndarray,
        thresholds: Sequence[float] = (),
        *,
        resamples: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> dict[str, tuple[float, float]]:
        """{scalar metric: (low, high)}: percentile bootstrap over whole subjects (N,) str, at fixed thresholds.

        A metric that is not defined in most resamples has no interval.
        """
        subjects = np.asarray(subjects)[~np.isnan(targets).all(axis=1)]
        scores, targets = self._labelled(scores, targets)

        def scalars(weights: np.ndarray) -> boot.Scalars:
            found = self._scalars(scores, targets, thresholds, weights)
            return {name: found[name] for name in self.scalar_metrics()}

        return boot.intervals(scalars, subjects, resamples=resamples, confidence=confidence, seed=seed)

    def _checked(self, scores: np.ndarray) -> np.ndarray:
        return measure.checked_scores(scores)

    def _labelled(self, scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows with a target, scores (N, O) as float64. Raises MedrayError for scores that are not finite."""
        known = ~np.isnan(targets).all(axis=1)
        return self._checked(scores)[known], np.asarray(targets, np.float64)[known]


class BinaryObjective(_Objective):
    """Two classes, one score: the probability of the positive one. Targets (N, 1): 1 positive, 0 negative."""

    kind: Literal["binary"] = "binary"
    positive: str | None = None
    """The positive class, by raw label or display name; default: the last in natural order."""
    class_weights: ClassWeights = "none"
    """Numbers: negative, positive."""
    threshold: Threshold = "youden"
    """How the decision threshold is chosen on the validation split; a number is taken as it is."""
    sensitivity_target: Fraction = 0.95
    """With threshold = "sensitivity": the highest threshold that reaches it."""

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

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        return self.display(classes)[1:]

    def width(self, classes: Sequence[str]) -> int:
        return 1

    def weights(self, targets: np.ndarray, classes: Sequence[str] = ()) -> np.ndarray | None:
        """(1, 2) float32, negative and positive, of train targets (N, 1); mean over the rows is 1."""
        return losses.label_weights(targets, self.class_weights, binary=True)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, weights: Any = None) -> torch.Tensor:
        """(B, 1) logits, (B, 1) targets to (B,) float32 cross-entropy; 0 for a row without target."""
        return losses.sigmoid_loss(logits, targets, weights)

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, 1) logits to (B, 1) float32 probabilities of the positive class."""
        return self._scaled(logits).sigmoid()

    def _fit_calibrator(self, scores: np.ndarray, targets: np.ndarray) -> tuple[tuple[float, float], ...]:
        return _platt_each(scores, targets)

    def choose_threshold(self, scores: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
        """One threshold from validation scores (N, 1) and targets (N, 1)."""
        return _thresholds(scores, targets, self.threshold, self.sensitivity_target)

    def metrics(
        self, scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float], names: Sequence[str] = ()
    ) -> dict[str, Any]:
        """JSON-ready scalars and `confusion_matrix` [[tn, fp], [fn, tp]]; rows without target are left out."""
        scores, targets = self._labelled(scores, targets)
        return measure.binary_report(scores[:, 0], targets[:, 0] > 0.5, (*thresholds, 0.5)[0])

    def _scalars(
        self, scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float], weights: np.ndarray
    ) -> boot.Scalars:
        return boot.binary_scalars(scores[:, 0], targets[:, 0] > 0.5, (*thresholds, 0.5)[0], weights)

    def primary_metric(self) -> tuple[str, Direction]:
        return "auroc", "max"


class MulticlassObjective(_Objective):
    """K classes that exclude each other, K probabilities. Targets (N, 1): the index of the class."""

    kind: Literal["multiclass"] = "multiclass"
    class_weights: ClassWeights = "none"
    """Numbers: one for each class, in natural order of the raw labels."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

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

    def weights(self, targets: np.ndarray, classes: Sequence[str] = ()) -> np.ndarray | None:
        """(K,) float32 of train targets (N, 1); mean over the rows is 1. A class without rows gets 1."""
        return losses.class_weights(targets, self.class_weights, len(classes))

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, weights: Any = None) -> torch.Tensor:
        """(B, K) logits, (B, 1) targets to (B,) float32 cross-entropy; 0 for a row without target."""
        return losses.softmax_loss(logits, targets, weights, self.label_smoothing)

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, K) logits to (B, K) float32 probabilities, summing to 1."""
        return self._scaled(logits).softmax(dim=1)

    def _fit_calibrator(self, scores: np.ndarray, targets: np.ndarray) -> tuple[tuple[float, float], ...]:
        return ((cal.temperature(scores, targets[:, 0].astype(np.int64)), 0.0),) * scores.shape[1]

    def _logits(self, scores: np.ndarray) -> np.ndarray:
        return np.log(np.clip(scores, cal.TINY, 1.0))

    def choose_threshold(self, scores: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
        """None: the class of the highest probability is called."""
        return ()

    def metrics(
        self, scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float] = (), names: Sequence[str] = ()
    ) -> dict[str, Any]:
        """JSON-ready scalars (means over classes), `confusion_matrix` (K, K) and `per_class` by name (or index)."""
        scores, targets = self._labelled(scores, targets)
        return measure.multiclass_report(scores, targets[:, 0].astype(np.int64), measure.named(names, scores.shape[1]))

    def _scalars(
        self, scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float], weights: np.ndarray
    ) -> boot.Scalars:
        return boot.multiclass_scalars(scores, targets[:, 0].astype(np.int64), weights)

    def primary_metric(self) -> tuple[str, Direction]:
        return "accuracy", "max"


class MultilabelObjective(_Objective):
    """T findings that may be present together, T probabilities. Targets (N, T): 0 or 1, NaN where not known."""

    kind: Literal["multilabel"] = "multilabel"
    class_weights: ClassWeights = "none"
    """Numbers: for each label, the weight of a present one against 1 for an absent one."""
    threshold: Threshold = "youden"
    """How each label's decision threshold is chosen on the validation split; a number is taken as it is."""
    sensitivity_target: Fraction = 0.95
    """With threshold = "sensitivity": the highest threshold that reaches it."""

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

    def weights(self, targets: np.ndarray, classes: Sequence[str] = ()) -> np.ndarray | None:
        """(T, 2) float32, absent and present, of train targets (N, T); mean over each label's known rows is 1."""
        return losses.label_weights(targets, self.class_weights, binary=False)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, weights: Any = None) -> torch.Tensor:
        """(B, T) logits, (B, T) targets to (B,) float32: mean cross-entropy of the row's known labels."""
        return losses.sigmoid_loss(logits, targets, weights)

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, T) logits to (B, T) float32 probabilities."""
        return self._scaled(logits).sigmoid()

    def _fit_calibrator(self, scores: np.ndarray, targets: np.ndarray) -> tuple[tuple[float, float], ...]:
        return _platt_each(scores, targets)

    def choose_threshold(self, scores: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
        """A threshold for each label from validation scores (N, T) and targets (N, T)."""
        return _thresholds(scores, targets, self.threshold, self.sensitivity_target)

    def metrics(
        self, scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float], names: Sequence[str] = ()
    ) -> dict[str, Any]:
        """JSON-ready scalars (means over labels), `confusion_matrix` (T, 2, 2), `per_label` by name (or index)."""
        scores, targets = self._labelled(scores, targets)
        width = scores.shape[1]
        return measure.multilabel_report(
            scores, targets, list(thresholds) or [0.5] * width, measure.named(names, width)
        )

    def _scalars(
        self, scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float], weights: np.ndarray
    ) -> boot.Scalars:
        return boot.multilabel_scalars(scores, targets, list(thresholds) or [0.5] * scores.shape[1], weights)

    def primary_metric(self) -> tuple[str, Direction]:
        return "auroc", "max"


class RegressionObjective(_Objective):
    """T numbers. The network learns them standardised by the train split; scores are in the target's own unit."""

    kind: Literal["regression"] = "regression"
    loss_function: Literal["mse", "mae", "huber"] = "mse"
    """On standardised values; huber turns linear at 1 deviation (Huber 1964)."""
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None
    """Of the train targets, set by `fitted`; None: targets are learned as they are."""

    def fit_classes(self, labels: Labels) -> tuple[str, ...]:
        """Names of the outputs: `names`, or value (value_0, value_1 …). Raises LabelError where rows differ."""
        return text.output_names(labels, self.names, "value")

    def display(self, classes: Sequence[str]) -> tuple[str, ...]:
        return tuple(classes)

    def targets(self, labels: Labels, classes: Sequence[str]) -> pa.Array:
        """list<float32> of values, null elements where not known. Raises LabelError for what is no finite number."""
        return text.number_targets(labels, classes, text.finite_number, "finite numbers, or nothing")

    def fitted(self, targets: np.ndarray) -> Self:
        """This objective with mean and deviation of train targets (N, T); a constant output gets deviation 1.

        Raises LabelError where an output has no value at all.
        """
        known = np.asarray(targets, np.float64)
        if np.isnan(known).all(axis=0).any() or not len(known):
            raise LabelError("an output has no value in any training row", do="check the label columns and the split")
        mean, deviation = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
        deviation = np.where(deviation > 1e-7 * np.abs(mean), deviation, 1.0)
        return self.model_copy(update={"mean": tuple(mean.tolist()), "deviation": tuple(deviation.tolist())})

    def weights(self, targets: np.ndarray, classes: Sequence[str] = ()) -> np.ndarray | None:
        """None: there are no classes to weigh."""
        return None

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, weights: Any = None) -> torch.Tensor:
        """(B, T) logits, (B, T) targets in their unit to (B,) float32: mean over the row's known outputs."""
        mean, deviation = self._statistics(logits)
        return losses.value_loss(logits, (targets.float() - mean) / deviation, self.loss_function)

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, T) logits to (B, T) float32 values in the target's unit."""
        mean, deviation = self._statistics(logits)
        return logits.float() * deviation + mean

    def _statistics(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(T,) mean and deviation, float32, where the logits are."""
        import torch

        width = logits.shape[1]
        mean = torch.tensor(self.mean or (0.0,) * width, dtype=torch.float32, device=logits.device)
        return mean, torch.tensor(self.deviation or (1.0,) * width, dtype=torch.float32, device=logits.device)

    def choose_threshold(self, scores: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
        """None: a number is not called."""
        return ()

    def metrics(
        self, scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float] = (), names: Sequence[str] = ()
    ) -> dict[str, Any]:
        """JSON-ready scalars (means over outputs) and `per_output` by name (or index)."""
        scores, targets = self._labelled(scores, targets)
        return measure.regression_report(scores, targets, measure.named(names, scores.shape[1]))

    def _scalars(
        self, scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float], weights: np.ndarray
    ) -> boot.Scalars:
        return boot.regression_scalars(scores, targets, weights)

    def _checked(self, scores: np.ndarray) -> np.ndarray:
        return measure.checked_scores(scores, probabilities=False)

    def scalar_metrics(self) -> tuple[str, ...]:
        return REGRESSION

    def primary_metric(self) -> tuple[str, Direction]:
        return "mae", "min"


ObjectiveSpec = Annotated[
    BinaryObjective | MulticlassObjective | MultilabelObjective | RegressionObjective, Field(discriminator="kind")
]
"""The registry of objectives: what [objective] of a run file holds and a bundle keeps."""


# --- shared by binary and multilabel ----------------------------------------------------------------------------


def _platt_each(scores: np.ndarray, targets: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Scale and offset for each column of validation scores (N, T) and targets (N, T); rows not known are left out."""
    known = ~np.isnan(targets)
    return tuple(cal.platt(scores[known[:, k], k], targets[known[:, k], k] > 0.5) for k in range(scores.shape[1]))


def _thresholds(scores: np.ndarray, targets: np.ndarray, rule: Threshold, target: float) -> tuple[float, ...]:
    """One threshold for each column of validation scores (N, T) and targets (N, T); rows not known are left out."""
    scores = measure.checked_scores(scores)
    known = ~np.isnan(targets)
    columns = range(scores.shape[1])
    return tuple(choose(scores[known[:, k], k], targets[known[:, k], k] > 0.5, rule, target) for k in columns)
