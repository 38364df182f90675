"""Regression: numbers in the target's own unit."""

# B row of a batch, N row, T output

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa

from medray.errors import LabelError
from medray.learning import bootstrap as boot
from medray.learning import metrics as measure
from medray.learning.charts import Chart, Matrix
from medray.learning.metrics import PLAIN, REGRESSION, Direction, MetricOptions, Metrics
from medray.learning.objectives import classes as text
from medray.learning.objectives import diagnostics, losses
from medray.learning.objectives.base import Breakdown, Labels, Objective, precise
from medray.learning.objectives.losses import LossWeights
from medray.learning.point_metrics import regression_report

if TYPE_CHECKING:
    import torch


class RegressionObjective(Objective):
    """T numbers. The network learns them standardised by the train split; scores are in the target's own unit."""

    link: ClassVar[Literal["sigmoid", "softmax", "linear"] | None] = "linear"
    probabilities: ClassVar[bool] = False
    breakdown: ClassVar[Breakdown | None] = Breakdown("per_output", "Output", ("n", *REGRESSION))

    kind: Literal["regression"] = "regression"
    """The objective: one or several numbers."""
    loss_function: Literal["mse", "mae", "huber"] = "mse"
    """Loss on standardised values; huber turns linear at 1 deviation (Huber 1964)."""
    mean: tuple[float, ...] | None = None
    """Fitted: means of the train targets; None: targets are learned as they are. Not to be set in a run file."""
    deviation: tuple[float, ...] | None = None
    """Fitted: standard deviations of the train targets. Not to be set in a run file."""

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

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, weights: LossWeights = None) -> torch.Tensor:
        """(B, T) logits, (B, T) targets in their unit to (B,) float32: mean over the row's known outputs."""
        mean, deviation = self._statistics(logits)
        return losses.value_loss(logits, (targets.float() - mean) / deviation, self.loss_function)

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, T) logits to (B, T) values in the target's unit."""
        logits = precise(logits)
        mean, deviation = self._statistics(logits)
        return logits * deviation + mean

    def _statistics(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(T,) mean and deviation, as precise as the logits and where they are."""
        import torch

        width, dtype = logits.shape[1], precise(logits).dtype
        mean = torch.tensor(self.mean or (0.0,) * width, dtype=dtype, device=logits.device)
        return mean, torch.tensor(self.deviation or (1.0,) * width, dtype=dtype, device=logits.device)

    def metrics(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float] = (),
        names: Sequence[str] = (),
        options: MetricOptions = PLAIN,
    ) -> Metrics:
        """JSON-ready scalars (means over outputs) and `per_output` by name (or index)."""
        scores, targets = self._labelled(scores, targets)
        return regression_report(scores, targets, measure.named(names, scores.shape[1]))

    def weighted_metrics(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float],
        weights: np.ndarray,
        options: MetricOptions = PLAIN,
    ) -> boot.Scalars:
        return boot.regression_scalars(scores, targets, weights)

    def _checked(self, scores: np.ndarray) -> np.ndarray:
        return measure.checked_scores(scores, probabilities=False)

    def scalar_metrics(self) -> tuple[str, ...]:
        return REGRESSION

    def primary_metric(self) -> tuple[str, Direction]:
        return "mae", "min"

    def epoch_metrics(self) -> tuple[str, ...]:
        return ("rmse",)

    def _charts(
        self, names: Sequence[str], scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float]
    ) -> list[Chart | Matrix]:
        return [
            chart for k, name in enumerate(names) for chart in diagnostics.values(name, scores[:, k], targets[:, k])
        ]

    def metric_note(self, classes: Sequence[str]) -> str:
        return "Means over outputs, each counting the same." if len(classes) > 1 else ""
