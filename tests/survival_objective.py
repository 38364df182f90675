"""Survival as an objective of a plug-in: one file, and nothing of medray knows of it.

An exponential model: each sample has a rate of events of its own, constant in time. Labels are two columns, the time that a
subject was watched and whether the event came at its end (1) or the subject was lost to sight (0).

    B row of a batch, N row, R resample
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa

from medray.errors import LabelError
from medray.learning.charts import Chart, Curve, Matrix, Panel
from medray.learning.metrics import (
    PLAIN,
    Direction,
    Metric,
    MetricOptions,
    Metrics,
    checked_scores,
    present,
    ratio,
)
from medray.learning.objectives import classes as text
from medray.learning.objectives.base import Labels, Objective, WrongCall, precise
from medray.learning.objectives.losses import LossWeights

if TYPE_CHECKING:
    import torch

LABELS = ("time", "event")


class SurvivalObjective(Objective):
    """One score, the rate of events per unit of time. Targets (N, 2): time above 0, and 1 for an event or 0 for none."""

    probabilities: ClassVar[bool] = False
    own_metrics: ClassVar[Mapping[str, Metric]] = {
        "concordance": Metric(
            "Concordance", "chance that of two samples the one with the earlier event has the higher rate", "max"
        )
    }
    mistakes_title: ClassVar[str] = "Least expected events"
    mistakes_note: ClassVar[str] = "Samples with an event to which the model gave the lowest rates."

    kind: Literal["exponential_survival"] = "exponential_survival"
    """The objective: time to an event, where some are not seen to have it."""
    rate: float | None = None
    """Fitted: events per unit of time in train. Not to be set in a run file."""

    # -- labels and training

    def fit_classes(self, labels: Labels) -> tuple[str, ...]:
        self.targets(labels, ())
        return ("rate",)

    def targets(self, labels: Labels, classes: Sequence[str]) -> pa.Array:
        return text.number_targets(labels, LABELS, text.finite_number, "a time, and 0 or 1")

    def fitted(self, targets: np.ndarray) -> Self:
        time, event = targets.astype(np.float64).T
        if not (time > 0).all() or not np.isin(event, (0, 1)).all() or not event.any():
            raise LabelError("survival needs times above 0 and events that are 0 or 1, one event at least")
        return self.model_copy(update={"rate": float(event.sum() / time.sum())})

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, weights: LossWeights = None) -> torch.Tensor:
        """(B, 1) logits, (B, 2) targets to (B,): minus the logarithm of the likelihood, times as multiples of 1 / rate."""
        time, event = targets.float().nan_to_num(0).unbind(dim=1)
        log_rate = logits.float()[:, 0]
        known = ~targets.isnan().any(dim=1)
        return (log_rate.exp() * time * (self.rate or 1.0) - event * log_rate) * known

    def activate(self, logits: torch.Tensor) -> torch.Tensor:
        return precise(logits).exp() * (self.rate or 1.0)

    # -- metrics

    def scalar_metrics(self) -> tuple[str, ...]:
        return ("concordance",)

    def primary_metric(self) -> tuple[str, Direction]:
        return "concordance", "max"

    def metrics(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float] = (),
        names: Sequence[str] = (),
        options: MetricOptions = PLAIN,
    ) -> Metrics:
        scores, targets = self._labelled(scores, targets)
        found = self.weighted_metrics(scores, targets, thresholds, np.ones((len(scores), 1)))
        return {"concordance": present(float(found["concordance"][0]))}

    def weighted_metrics(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float],
        weights: np.ndarray,
        options: MetricOptions = PLAIN,
    ) -> dict[str, np.ndarray]:
        """Harrell's concordance (1982): of pairs of which the earlier time is an event's; equal scores count a half."""
        time, event = targets.T
        pairs = (time[:, None] < time) & (event[:, None] == 1)
        score = scores[:, 0]
        right = pairs * ((score[:, None] > score) + 0.5 * (score[:, None] == score))
        return {
            "concordance": ratio(
                *((each.astype(np.float64) @ weights * weights).sum(axis=0) for each in (right, pairs))
            )
        }

    def _checked(self, scores: np.ndarray) -> np.ndarray:
        return checked_scores(scores, probabilities=False)

    # -- what reports show and say

    def metric_note(self, classes: Sequence[str]) -> str:
        return "Pairs are compared where the earlier time is that of an event."

    def _charts(
        self, names: Sequence[str], scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float]
    ) -> list[Chart | Matrix]:
        high = scores[:, 0] > np.median(scores[:, 0])
        halves = {"lower rates": targets[~high], "higher rates": targets[high]}
        curves = [
            Curve(*kaplan_meier(rows), colour=colour, label=f"{name}  ({len(rows)})", steps=True)
            for colour, (name, rows) in enumerate(halves.items())
        ]
        return [
            Chart(
                "Survival",
                "Kaplan-Meier curves of the halves with the lower and the higher rates.",
                f"Survival of {len(scores)} samples in two halves by their rates.",
                [Panel(curves, "Time", "Share without an event", "lower left")],
            )
        ]

    def mistakes(
        self,
        scores: np.ndarray,
        targets: np.ndarray,
        thresholds: Sequence[float],
        names: Sequence[str],
        most: int,
    ) -> list[WrongCall]:
        events = np.flatnonzero(targets[:, 1] == 1)
        chosen = events[np.argsort(scores[events, 0], kind="stable")][:most]
        return [WrongCall(int(k), f"an event at {targets[k, 0]:g}", "", float(scores[k, 0])) for k in chosen]


def kaplan_meier(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) times and events to times from 0 and the share without an event just before each (Kaplan & Meier 1958)."""
    times = np.unique(targets[:, 0])
    watched = (targets[:, 0] >= times[:, None]).sum(axis=1)
    events = ((targets[:, 0] == times[:, None]) & (targets[:, 1] == 1)).sum(axis=1)
    after = np.cumprod(1 - events / watched)
    return np.append(0, [*times, times[-1]]), np.concatenate([[1, 1], after])
