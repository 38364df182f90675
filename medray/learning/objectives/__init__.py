"""Objectives: what a model learns to say. binary, multiclass, multilabel, regression: loss, activation, metrics.

    B row of a batch, N row, K logit, O output, T target.  `classes` are raw labels, `outputs` the names of scores.

All have the methods of `Objective`, so the flow that uses them, and the reports, never ask which one they have:

    classes = objective.fit_classes(train_labels)           # kept in the bundle
    targets = objective.targets(labels, classes)            # list<float32>; null where there is no label
    objective = objective.fitted(train_targets)             # (N, T) array; regression keeps mean and deviation
    weights = objective.weights(train_targets, classes)
    loss = objective.loss(logits, targets, weights).mean()
    scores = objective.activate(logits)
    objective = objective.calibrated(validation_scores, validation_targets)
    thresholds = objective.choose_threshold(validation_scores, validation_targets)
    metrics = objective.metrics(scores, targets, thresholds, objective.display(classes))
    charts = objective.charts(objective.display(classes), scores, targets, thresholds)
"""

from __future__ import annotations

from typing import Annotated

from medray.learning.objectives.binary import BinaryObjective, MultilabelObjective
from medray.learning.objectives.multiclass import MulticlassObjective
from medray.learning.objectives.regression import RegressionObjective
from medray.plugins.kinds import Kinds

ObjectiveSpec = Annotated[
    BinaryObjective | MulticlassObjective | MultilabelObjective | RegressionObjective, Kinds("objectives")
]
"""The registry of objectives: what [objective] of a run file holds and a bundle keeps. Those of plug-ins have an entry
point in the group `medray.objectives`."""

__all__ = ["BinaryObjective", "MulticlassObjective", "MultilabelObjective", "ObjectiveSpec", "RegressionObjective"]
