"""The engine protocol: where flows run and networks are fitted. No ray here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from medray.flows.flow import Flow
from medray.learning.plan import FitPlan

Live = Callable[[dict[str, Any]], None]
"""Called now and then with how far training is: epoch, epochs, step, steps, history."""


@dataclass(frozen=True)
class Fitted:
    """What training leaves: the best epoch's weights and the final state (history, thresholds, why it ended)."""

    weights: Mapping[str, np.ndarray]
    state: dict[str, Any]
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

    def run(self, flow: Flow) -> None:
        """Run every shard of the plan through stages and sink; commit; raise what a stage raised."""
        ...

    def fit(self, plan: FitPlan, show: Live) -> Fitted:
        """Train, or go on from the last checkpoint of a plan with this name; `show` is told how far it is."""
        ...

    def close(self) -> None:
        """Give back what the engine started."""
        ...
