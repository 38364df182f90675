"""Predictions to metrics with their intervals: of a split, and of each archive beside the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.config.runs import EvaluationSettings
from medray.datasets.samples import stacked
from medray.learning.metrics import Metrics, scalar, scalars
from medray.learning.recipe import Recipe


def measured(
    recipe: Recipe, predictions: pa.Table, settings: EvaluationSettings
) -> tuple[Metrics, dict[str, tuple[float, float]]]:
    """(metrics, intervals) of predictions at the bundle's thresholds."""
    scores, targets = score_matrix(predictions, recipe.outputs), stacked(predictions.column("target").combine_chunks())
    names, objective = recipe.objective.display(recipe.classes), recipe.objective
    metrics = objective.metrics(scores, targets, recipe.thresholds, names, settings.metric_options)
    if objective.calibrator is not None:
        plain = objective.metrics(objective.uncalibrated(scores), targets, recipe.thresholds, names)
        metrics["before_calibration"] = {name: scalar(plain, name) for name in objective.calibration_metrics}
    intervals = objective.bootstrap(
        scores,
        targets,
        np.array(predictions.column("subject_id").to_pylist()),
        recipe.thresholds,
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=settings.seed,
        options=settings.metric_options,
    )
    return metrics, intervals


def score_matrix(predictions: pa.Table, outputs: tuple[str, ...]) -> np.ndarray:
    """(N, O) float32"""
    return np.stack([predictions.column(name).to_numpy() for name in outputs], axis=1)


@dataclass(frozen=True)
class Archive:
    """One of the archives of an evaluation."""

    name: str
    n: int
    subjects: int
    metrics: Metrics
    intervals: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, recipe: Recipe, name: str, predictions: pa.Table, settings: EvaluationSettings) -> Archive:
        subjects = pc.count_distinct(predictions.column("subject_id")).as_py()
        return cls(name, len(predictions), subjects, *measured(recipe, predictions, settings))

    def as_json(self) -> dict[str, Any]:
        """The scalars of the metrics; the rest is for the whole."""
        return {
            "n": self.n,
            "subjects": self.subjects,
            "metrics": scalars(self.metrics),
            "intervals": self.intervals,
        }
