"""Being told to stop: SIGTERM and Ctrl-C end a run between two commits, never within one.

A job server, systemd and Kubernetes send SIGTERM and kill after some seconds. In those seconds what workers have
finished is committed, so that the next run does not repeat it. `flows.driver.collect` does that; `signals_deferred` keeps a
commit from being cut.
"""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """SIGTERM came. Like Ctrl-C it passes by everything that handles errors."""


class _Signals:
    def __init__(self) -> None:
        self.holds = 0
        self.waiting: int | None = None
        """A signal that came while signals were deferred."""

    def came(self, number: int, frame: FrameType | None) -> None:
        if self.holds:
            self.waiting = number
        else:
            self.end(number)

    def end(self, number: int) -> None:
        self.waiting = None
        raise Stopped if number == signal.SIGTERM else KeyboardInterrupt


_signals = _Signals()


@contextmanager
def on_signals() -> Generator[None]:
    """Let SIGTERM raise Stopped and Ctrl-C KeyboardInterrupt in the block, but not within `signals_deferred`. In the main
    thread only.

    Ray has a handler of its own from `ray.init` on, which prints a stack and aborts the process after three seconds.
    """
    before = {number: signal.signal(number, _signals.came) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_deferred() -> Generator[None]:
    """Let the block come to its end: a signal that comes meanwhile is raised then."""
    _signals.holds += 1
    try:
        yield
    finally:
        _signals.holds -= 1
    if not _signals.holds and _signals.waiting is not None:
        _signals.end(_signals.waiting)
