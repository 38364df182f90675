"""What objectives share whose scores are probabilities of classes or labels."""

# N row

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from medray.learning.metrics import CLASSIFICATION
from medray.learning.objectives.base import Objective, WrongCall


class ClassificationObjective(Objective):
    """Scores are probabilities: metrics of classification, and calls that may be wrong."""

    calibration_metrics: ClassVar[tuple[str, ...]] = ("ece", "brier")
    mistakes_title: ClassVar[str] = "Most confident mistakes"
    mistakes_note: ClassVar[str] = (
        "The samples the model was most sure of and wrong about. Look twice: a label may be wrong, too."
    )

    def scalar_metrics(self) -> tuple[str, ...]:
        return CLASSIFICATION

    def epoch_metrics(self) -> tuple[str, ...]:
        return "auroc", "accuracy", "balanced_accuracy"

    def curve_metrics(self) -> tuple[str, ...]:
        return "auroc", "auprc", "balanced_accuracy", "accuracy", "f1"

    @staticmethod
    def _wrong(
        called: np.ndarray, confidence: np.ndarray, targets: np.ndarray, names: Sequence[str], most: int
    ) -> list[WrongCall]:
        """The rows called wrongly, the most confident first: called classes (N,) int, confidence (N,), targets (N, 1)."""
        truth = targets[:, 0].astype(int)
        wrong = np.flatnonzero(called != truth)
        chosen = [int(row) for row in wrong[np.argsort(-confidence[wrong], kind="stable")][:most]]
        return [
            WrongCall(row, names[int(truth[row])], names[int(called[row])], float(confidence[row])) for row in chosen
        ]
