"""What a training is asked for, and what it reports: plan, state, the report of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medray.learning.models import ModelSpec
from medray.learning.objectives import ObjectiveSpec
from medray.learning.optimizers import TrainingSettings
from medray.learning.pretrained import Initial
from medray.learning.thresholds import ThresholdChoice
from medray.modalities.registry import ModalitySpec
from medray.progress import EpochRow, Live


@dataclass(frozen=True)
class FitPlan:
    """Everything a training worker needs; small and picklable."""

    name: str
    """Unique to this run file and data: a checkpoint is resumed only under the same name."""
    modality: ModalitySpec
    model: ModelSpec
    objective: ObjectiveSpec
    classes: tuple[str, ...]
    shards: str
    """Folder of the shard index."""
    settings: TrainingSettings
    work: str
    """Folder for checkpoints and progress, reachable from all workers."""
    initial: Initial | None = None
    """Weights to start from; None: random ones."""


class Report(Protocol):
    def __call__(self, live: Live, save: Callable[[Path], None] | None) -> None:
        """`live`: position and history, JSON-ready. `save` writes a checkpoint into a folder.

        With `save`, every worker calls in step with the others, and worker 0's checkpoint is the one to keep: the
        state is equal everywhere. Without it, worker 0 alone calls, to show how far it is.
        """
        ...


@dataclass
class State:
    """Where training is. With the network and the optimiser, it is the checkpoint."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    """Sum over the samples seen so far in this epoch."""
    seconds: float = 0.0
    history: list[EpochRow] | None = None
    best: float | None = None
    best_epoch: int = -1
    thresholds: tuple[float, ...] = ()
    threshold_choice: tuple[ThresholdChoice, ...] = ()
    """Choice at the best epoch, as `Objective.threshold_choice` has it."""
    objective: dict[str, Any] | None = None
    """As calibrated at the best epoch; JSON-ready."""
    stopped: str = ""
    """Why training ended, once it has."""
