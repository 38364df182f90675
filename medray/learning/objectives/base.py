"""Objective: what the four have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, field_validator

from medray.learning import bootstrap as boot
from medray.learning import metrics as measure
from medray.learning.metrics import CLASSIFICATION, PLAIN, Direction, Figures
from medray.learning.objectives import calibration as cal
from medray.learning.objectives import classes as text
from medray.learning.objectives.losses import ClassWeights
from medray.plugins.brought import Numbers

if TYPE_CHECKING:
    import torch

Labels = pa.Array | pa.ChunkedArray  # of list<string>, one list per row


def precise(logits: torch.Tensor) -> torch.Tensor:
    """float64 as it is, all others as float32."""
    import torch

    return logits if logits.dtype == torch.float64 else logits.float()


class Objective(BaseModel, Numbers, ABC):
    """What the four share: a frozen type without unknown keys, and the names of its outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probabilities: ClassVar[bool] = True
    """Scores are probabilities, so that each has log-odds."""

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
        """(B, K) logits to (B, O) scores, float64 of float64 logits and float32 of all others."""

    def log_odds(self, logits: torch.Tensor) -> torch.Tensor | None:
        """(B, K) logits to (B, O) float64 natural log-odds ln(p / (1 - p)) of each score, calibrated as the score is.

        None where scores are no probabilities. Of logits, not of probabilities: those are 1 from a logit of 17 on in
        float32, and a change of log-odds is still a change of logits there.
        """
        return None

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
    ) -> tuple[dict[str, Any], ...]:
        """How sure each chosen threshold is, JSON-ready: {positives, negatives, few, interval} of the validation rows that
        it was chosen on; `interval` over resamples of whole subjects where they are few (thresholds.FEW). Empty where
        none is chosen."""
        return ()

    def called(self, scores: np.ndarray, thresholds: Sequence[float], classes: Sequence[str]) -> pa.Array | None:
        """What rows of scores (N, O) are called, (N,): a class's name, or a list of labels; None: a number is not called."""
        return None

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
        """Names of the scalars in `metrics`; early stopping may watch these and "loss". Those at a stated prevalence are
        there only where it is stated."""
        return CLASSIFICATION

    @abstractmethod
    def primary_metric(self) -> tuple[str, Direction]:
        """What early stopping watches by default, and which way is better."""

    @abstractmethod
    def _scalars(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float],
        weights: np.ndarray,
        figures: Figures = PLAIN,
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
        figures: Figures = PLAIN,
    ) -> dict[str, tuple[float, float]]:
        """{scalar metric: (low, high)}: percentile bootstrap over whole subjects (N,) str, at fixed thresholds.

        A metric that is not defined in most resamples has no interval.
        """
        subjects = np.asarray(subjects)[~np.isnan(targets).all(axis=1)]
        scores, targets = self._labelled(scores, targets)

        def scalars(weights: np.ndarray) -> boot.Scalars:
            found = self._scalars(scores, targets, thresholds, weights, figures)
            return {name: found[name] for name in self.scalar_metrics() if name in found}

        return boot.intervals(scalars, subjects, resamples=resamples, confidence=confidence, seed=seed)

    def _checked(self, scores: np.ndarray) -> np.ndarray:
        return measure.checked_scores(scores)

    def _labelled(self, scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows with a target, scores (N, O) as float64. Raises MedrayError for scores that are not finite."""
        known = ~np.isnan(targets).all(axis=1)
        return self._checked(scores)[known], np.asarray(targets, np.float64)[known]
