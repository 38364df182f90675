"""How a verb tells a person how far it is. The verbs know this protocol; the command line draws it."""

from __future__ import annotations

from typing import NotRequired, Protocol, TypedDict


class EpochRow(TypedDict):
    """One epoch of a training's history. Beside these it has the metrics of the validation split that are one number or
    null, by their names."""

    epoch: int
    """From 1."""
    train_loss: float
    loss: float
    """Mean loss of the validation split."""
    learning_rate: float
    seconds: float
    samples_per_second: float
    """Training samples."""


class Live(TypedDict):
    """How far a training is."""

    epoch: int
    """Epochs that are done."""
    epochs: int
    step: int
    """Steps of this epoch that are done."""
    steps: int
    history: list[EpochRow]
    stopped: str
    """Why training ended, once it has."""
    metrics: NotRequired[tuple[str, ...]]
    """Which metrics of an epoch its line shows, in this order."""
    note: NotRequired[str]
    """What a person should know of how it began; "" where nothing is to be said."""
    workers: NotRequired[int]
    """Workers that train now; of training on a cluster."""


class Progress(Protocol):
    def begin(self, name: str, total: int) -> None:
        """A piece of work of `total` entries begins."""
        ...

    def advance(self, done: int, failed: int) -> None:
        """So many more entries are finished, of which so many failed."""
        ...

    def training(self, live: Live) -> None:
        """Called now and then while a network is trained."""
        ...

    def note(self, text: str) -> None:
        """One line that a person should read. It may name an entry."""
        ...

    def about(self, **facts: str) -> None:
        """What a log's lines are of from now on: `run`, `run_id`, `bundle_id`."""
        ...

    def fact(self, event: str, level: str = "info", /, **facts: object) -> None:
        """For a log that machines read: counts, codes and ids of runs; nothing of an entry."""
        ...


class Silent:
    """No progress: for tests, notebooks and jobs."""

    def begin(self, name: str, total: int) -> None: ...

    def advance(self, done: int, failed: int) -> None: ...

    def training(self, live: Live) -> None: ...

    def note(self, text: str) -> None: ...

    def about(self, **facts: str) -> None: ...

    def fact(self, event: str, level: str = "info", /, **facts: object) -> None: ...
