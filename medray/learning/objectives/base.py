"""Objective: what every one of them has to say, and what it may say of itself: metrics, charts, mistakes, words of reports.

    B row of a batch, N row, K logit, O output, T target, R resample.

What is abstract here an objective of one's own has to have; everything else has a default that works.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, field_validator

from medray.learning import bootstrap as boot
from medray.learning import metrics as measure
from medray.learning.charts import Chart, Matrix
from medray.learning.metrics import METRICS, PLAIN, Direction, Metric, MetricOptions, Metrics
from medray.learning.objectives import calibration as cal
from medray.learning.objectives import classes as text
from medray.learning.objectives.losses import ClassWeights, LossWeights
from medray.learning.thresholds import ThresholdChoice
from medray.plugins.brought import Numbers

if TYPE_CHECKING:
    import torch

Labels = pa.Array | pa.ChunkedArray  # of list<string>, one list per row


class WrongCall(NamedTuple):
    """A row that an evaluation should show to a person."""

    row: int
    true: str
    called: str
    """"" where nothing is called: of a number."""
    score: float
    """How sure the model was of what it called, 0 to 1; of a number, the predicted one."""


@dataclass(frozen=True)
class Breakdown:
    """A table of a report with a row for each class, label or output."""

    key: str
    """Where the rows are in `metrics`: "per_class"."""
    of: str
    """What a row is of, for people: "Class"."""
    metrics: tuple[str, ...]
    """Its columns; beside metrics there may be `n`, samples, and `positives`."""


def precise(logits: torch.Tensor) -> torch.Tensor:
    """float64 as it is, all others as float32."""
    import torch

    return logits if logits.dtype == torch.float64 else logits.float()


class Objective(BaseModel, Numbers, ABC):
    """What all share: a frozen type without unknown keys, and the names of its outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    link: ClassVar[Literal["sigmoid", "softmax", "linear"] | None] = None
    """What `activate` does to the logits of a network where there is no calibrator; None: nothing of these."""
    probabilities: ClassVar[bool] = True
    """Scores are probabilities, so that each has log-odds."""
    at_prevalence: ClassVar[bool] = False
    """Some metrics ask for a stated prevalence."""
    binding: ClassVar[tuple[str, ...]] = ("kind", "names")
    """Keys that a run file must not have otherwise than the bundle that it evaluates."""
    own_metrics: ClassVar[Mapping[str, Metric]] = {}
    """What `metrics` gives by names that learning/metrics.py does not know."""
    calibration_metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics that calibration changes; reports show what they were before."""
    breakdown: ClassVar[Breakdown | None] = None
    """Whether `metrics` has rows of parts, and how reports show them."""
    mistakes_title: ClassVar[str] = "Largest errors"
    mistakes_note: ClassVar[str] = ""
    """Stands above what `mistakes` gives, in reports."""

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

    # -- labels

    @abstractmethod
    def fit_classes(self, labels: Labels) -> tuple[str, ...]:
        """Raw classes, or names of the outputs, of the labels of train. Raises LabelError for labels that do not fit."""

    @abstractmethod
    def targets(self, labels: Labels, classes: Sequence[str]) -> pa.Array:
        """list<float32> of T numbers, null for a row without a label. Raises LabelError for labels that do not fit."""

    def unknown_classes(self, labels: Labels, classes: Sequence[str]) -> tuple[str, ...]:
        """Labels that are none of `classes`, sorted; () where labels are no classes."""
        return ()

    def class_counts(self, targets: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
        """{raw class: rows of targets (N, T) that have it}; {} where labels are no classes."""
        return {}

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

    # -- training

    def weights(self, targets: np.ndarray, classes: Sequence[str] = ()) -> np.ndarray | None:
        """float32 weights that `loss` takes, of train targets (N, T); None: there are none."""
        return None

    @abstractmethod
    def loss(self, logits: torch.Tensor, targets: torch.Tensor, weights: LossWeights = None) -> torch.Tensor:
        """(B, K) logits, (B, T) targets to (B,) float32; 0 for a row without a target."""

    def fitted(self, targets: np.ndarray) -> Self:
        """This objective with its statistics of the train targets (N, T); only regression has any."""
        return self

    def calibrated(self, scores: np.ndarray, targets: np.ndarray) -> Self:
        """This objective with its calibrator, from validation scores (N, O) and targets (N, T), where it asks for one."""
        if self.calibration == "none" or self.calibrator is not None:
            return self
        return self.model_copy(update={"calibrator": self._fit_calibrator(*self._labelled(scores, targets))})

    @abstractmethod
    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, K) logits to (B, O) scores, float64 of float64 logits and float32 of all others."""

    def log_odds(self, logits: torch.Tensor) -> torch.Tensor | None:
        """(B, K) logits to (B, O) float64 natural log-odds ln(p / (1 - p)) of each score, calibrated as the score is.

        None where scores are no probabilities. Of logits, not of probabilities: those are 1 from a logit of 17 on in
        float32, and a change of log-odds is still a change of logits there.
        """
        return None

    def _fit_calibrator(self, scores: np.ndarray, targets: np.ndarray) -> tuple[tuple[float, float], ...] | None:
        """Calibrator fitted to the labelled rows; None: this objective knows no calibration."""
        return None

    def recalibrated(self, scores: np.ndarray) -> np.ndarray:
        """Scores (N, O) as `activate` gave them before there was a calibrator, to those it gives now; float32."""
        if self.calibrator is None:
            return scores
        import torch

        return self.activate(torch.as_tensor(self._logits(scores).astype(np.float32))).numpy()

    def uncalibrated(self, scores: np.ndarray) -> np.ndarray:
        """The opposite of `recalibrated`: what the network said itself."""
        if self.calibrator is None:
            return scores
        import torch

        scale, offset = np.array(self.calibrator).T
        logits = (self._logits(scores) - offset) / scale
        plain = self.model_copy(update={"calibrator": None})
        return plain.activate(torch.as_tensor(logits.astype(np.float32))).numpy()

    def _logits(self, scores: np.ndarray) -> np.ndarray:
        """(N, O) float64 logits that `activate` makes these scores of."""
        return cal.logit(scores)

    def _scaled(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits as `precise` has them, calibrated where there is a calibrator."""
        import torch

        logits = precise(logits)
        if self.calibrator is None:
            return logits
        scale, offset = torch.tensor(self.calibrator, dtype=logits.dtype, device=logits.device).T
        return logits * scale + offset

    def choose_threshold(self, scores: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
        """Decision thresholds from validation scores (N, O) and targets (N, T). None: of classes the most probable is
        called, and a number is not called at all."""
        return ()

    def threshold_choice(
        self, scores: np.ndarray, targets: np.ndarray, subjects: np.ndarray
    ) -> tuple[ThresholdChoice, ...]:
        """How sure each chosen threshold is, from the validation rows that it was chosen on; its interval where they are
        few (thresholds.FEW). Empty where none is chosen."""
        return ()

    def called(self, scores: np.ndarray, thresholds: Sequence[float], classes: Sequence[str]) -> pa.Array | None:
        """What rows of scores (N, O) are called, (N,): a class's name, or a list of labels; None: a number is not called."""
        return None

    # -- metrics

    @abstractmethod
    def scalar_metrics(self) -> tuple[str, ...]:
        """Names of the scalars in `metrics`, in the order of reports; early stopping may watch these and "loss". Those at a
        stated prevalence are there only where it is stated."""

    @abstractmethod
    def primary_metric(self) -> tuple[str, Direction]:
        """What early stopping watches by default, and which way is better."""

    def metric(self, name: str) -> Metric:
        """What a scalar metric is called and says. Raises KeyError for one that nobody has described."""
        return self.own_metrics.get(name) or METRICS[name]

    def direction(self, name: str) -> Direction:
        """Which way of a watched number is better: less, unless it is a metric that says otherwise."""
        known = self.own_metrics.get(name) or METRICS.get(name)
        return "min" if known is None else known.direction

    def headline(self) -> tuple[str, ...]:
        """Metrics that a report shows first, large."""
        return self.scalar_metrics()[:4]

    def epoch_metrics(self) -> tuple[str, ...]:
        """Metrics that the line of an epoch shows."""
        return self.primary_metric()[:1]

    def curve_metrics(self) -> tuple[str, ...]:
        """Metrics of the learning curve; where training has none of them, all are drawn."""
        return self.scalar_metrics()

    @abstractmethod
    def metrics(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float] = (),
        names: Sequence[str] = (),
        options: MetricOptions = PLAIN,
    ) -> Metrics:
        """Every scalar metric of scores (N, O) against targets (N, T), None where not defined; rows without target are left
        out. JSON-ready."""

    @abstractmethod
    def weighted_metrics(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float],
        weights: np.ndarray,
        options: MetricOptions = PLAIN,
    ) -> boot.Scalars:
        """Each scalar metric (R,) under row weights (N, R), NaN where not defined; of 1 each they are those of `metrics`."""

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
        options: MetricOptions = PLAIN,
    ) -> dict[str, tuple[float, float]]:
        """{scalar metric: (low, high)}: percentile bootstrap over whole subjects (N,) str, at fixed thresholds.

        A metric that is not defined in most resamples has no interval.
        """
        subjects = np.asarray(subjects)[~np.isnan(targets).all(axis=1)]
        scores, targets = self._labelled(scores, targets)

        def scalars(weights: np.ndarray) -> boot.Scalars:
            values = self.weighted_metrics(scores, targets, thresholds, weights, options)
            return {name: values[name] for name in self.scalar_metrics() if name in values}

        return boot.intervals(scalars, subjects, resamples=resamples, confidence=confidence, seed=seed)

    # -- what reports show and say

    def charts(
        self, names: Sequence[str], scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float]
    ) -> list[Chart | Matrix]:
        """All charts of an evaluation, of scores (N, O) and targets (N, T). `names` are those of `display`.

        Rows without a target are left out; so is a chart that the rows cannot give (curves of one class).
        """
        known = ~np.isnan(targets).all(axis=1)
        scores, targets = np.asarray(scores, np.float64)[known], np.asarray(targets, np.float64)[known]
        return self._charts(names, scores, targets, thresholds) if len(scores) else []

    def _charts(
        self, names: Sequence[str], scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float]
    ) -> list[Chart | Matrix]:
        """Charts of float64 rows with a target, at least one."""
        return []

    def mistakes(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float],
        names: Sequence[str],
        most: int,
    ) -> list[WrongCall]:
        """At most `most` rows of scores (N, O) that are most wrong, the worst first; every row has a target. `names` are
        those of `display`."""
        return []

    def decision(
        self, names: Sequence[str], thresholds: Sequence[float], choice: Sequence[ThresholdChoice], data: str
    ) -> str:
        """How a score becomes a call, and how the threshold was chosen, in sentences; "" where nothing is called. `data` is
        what was evaluated: "the test split"."""
        return ""

    def metric_note(self, classes: Sequence[str]) -> str:
        """A sentence on how the metrics were computed, for reports; "": none is needed."""
        return ""

    def _checked(self, scores: np.ndarray) -> np.ndarray:
        return measure.checked_scores(scores)

    def _labelled(self, scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows with a target, scores (N, O) as float64. Raises MedrayError for scores that are not finite."""
        known = ~np.isnan(targets).all(axis=1)
        return self._checked(scores)[known], np.asarray(targets, np.float64)[known]
