"""How a driver ends a flow of many workers at its deadline: with all that they did, and without the shards behind it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple

from medray.flows.flow import Receipt

GRACE_SECONDS = 8.0
"""After the deadline the driver waits so long for what workers have begun; what comes later is done again next time."""

TICK_SECONDS = 0.5


class Said(NamedTuple):
    """A receipt, and whose it is."""

    receipt: Receipt
    worker: str
    """A worker that was started again has another name."""
    turn: int
    """Which of the worker's shards it is of, from 1."""
    number: int = 0
    """Which shard of the plan."""


class Stopped:
    """Which workers have stopped at the deadline, and told of all that they did before it."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.turns: dict[str, set[int]] = {}
        self.last: dict[str, int] = {}
        """The worker's first turn at which it began nothing."""

    def hear(self, said: Said) -> None:
        self.turns.setdefault(said.worker, set()).add(said.turn)
        if said.receipt.left and not said.receipt.entries:
            self.last[said.worker] = min(said.turn, self.last.get(said.worker, said.turn))

    @property
    def all(self) -> bool:
        """Receipts may arrive out of order, so the earlier ones of each are counted."""
        told = [worker for worker, last in self.last.items() if self.turns[worker].issuperset(range(1, last))]
        return len(told) >= self.workers


def until_stopped(
    source: Generator[Said] | Iterator[Said], until: float, workers: int
) -> Generator[Receipt | None, None, None]:
    """Receipts as they come; None where nothing has come for half a second, so that a commit need not wait.

    Ends with the source; or after the deadline `until` (seconds since the epoch) as soon as every worker has begun
    nothing of a shard, and GRACE_SECONDS after it at the latest. The shards that nobody has looked at are not waited
    for: of a large archive they are many. Raises what the source raises.
    """
    arrived: queue.SimpleQueue[Said] = queue.SimpleQueue()
    leave = threading.Event()

    def pump() -> None:
        for said in source:
            arrived.put(said)
            if leave.is_set():
                break
        if isinstance(source, Generator):
            source.close()  # ends the workers

    pool = ThreadPoolExecutor(1, thread_name_prefix="medray-receipts")
    pumping = pool.submit(pump)
    stopped = Stopped(workers)
    try:
        while True:
            ended = pumping.done()  # asked before the look into the queue: then nothing is missed
            try:
                said = arrived.get(timeout=0 if ended else TICK_SECONDS)
            except queue.Empty:
                if ended:
                    pumping.result()
                    return
                yield None
            else:
                stopped.hear(said)
                yield said.receipt
            now = time.time()
            if now >= until and (stopped.all or now >= until + GRACE_SECONDS):
                return
    finally:
        leave.set()
        wait([pumping], timeout=max(1.0, until + GRACE_SECONDS - time.time()))  # so that its workers make room
        pool.shutdown(wait=False)
