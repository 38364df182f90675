"""How a verb tells a person how far it is. The verbs know this protocol; the command line draws it."""

from __future__ import annotations

from typing import Any, Protocol


class Progress(Protocol):
    def begin(self, name: str, total: int) -> None:
        """A piece of work of `total` entries begins."""
        ...

    def advance(self, done: int, failed: int) -> None:
        """So many more entries are finished, of which so many failed."""
        ...

    def training(self, live: dict[str, Any]) -> None:
        """Epoch, epochs, step, steps and the history so far."""
        ...

    def note(self, text: str) -> None:
        """One line that a person should read. It may name an entry."""
        ...

    def about(self, **facts: str) -> None:
        """What a log's lines are of from now on: `run`, `run_id`, `bundle_id`."""
        ...

    def fact(self, event: str, level: str = "info", /, **facts: Any) -> None:
        """For a log that machines read: counts, codes and ids of runs; nothing of an entry."""
        ...


class Silent:
    """No progress: for tests, notebooks and jobs."""

    def begin(self, name: str, total: int) -> None: ...

    def advance(self, done: int, failed: int) -> None: ...

    def training(self, live: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def about(self, **facts: str) -> None: ...

    def fact(self, event: str, level: str = "info", /, **facts: Any) -> None: ...
