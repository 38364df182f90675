"""The engine protocol: where flows run and networks are fitted. No ray here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from medray.flows.flow import Flow
from medray.learning.plan import FitPlan
from medray.progress import EpochRow, Live

Show = Callable[[Live], None]
"""Called now and then with how far training is."""


class FitState(TypedDict):
    """State of a finished training, as its checkpoint has it (`learning/training.py`, State)."""

    epoch: int
    step: int
    loss_sum: float
    seconds: float
    history: list[EpochRow]
    best: float | None
    best_epoch: int
    """From 1."""
    thresholds: list[float]
    threshold_choice: NotRequired[list[dict[str, object]]]
    """Not known of checkpoints from before it was kept."""
    objective: dict[str, object]
    """As calibrated at the best epoch."""
    stopped: str
    """Why training ended."""


@dataclass(frozen=True)
class Fitted:
    """What training leaves: the best epoch's weights and the final state (history, thresholds, why it ended)."""

    weights: Mapping[str, np.ndarray]
    state: FitState
    workers: int


class Engine(Protocol):
    @property
    def workers(self) -> int:
        """How many lanes run side by side."""
        ...

    @property
    def readers(self) -> int:
        """How many of them where the work needs no GPU."""
        ...

    @property
    def scores_on_gpu(self) -> bool:
        """Whether workers that score have a GPU."""
        ...

    def run(self, flow: Flow) -> None:
        """Run every shard of the plan through stages and sink; commit; raise what a stage raised."""
        ...

    def fit(self, plans: Sequence[FitPlan], show: Show) -> list[Fitted]:
        """Train one plan after the other, each from the start or on from the last checkpoint of a plan with its name; `show` is
        told how far the one at hand is. All have one `work`. What one refuses ends those after it, too; those before it have
        finished, and are not trained again."""
        ...

    def close(self) -> None:
        """Give back what the engine started."""
        ...
