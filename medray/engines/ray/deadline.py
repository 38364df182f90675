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


class Reply(NamedTuple):
    """A receipt, and which worker sent it."""

    receipt: Receipt
    worker: str
    """A worker that was started again has another name."""
    turn: int
    """The number of this shard among the worker's, from 1."""
    number: int = 0
    """Place of the shard in the plan."""


class StoppedWorkers:
    """The workers that have stopped at the deadline, and whose replies up to then have all arrived."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.turns: dict[str, set[int]] = {}
        self.last: dict[str, int] = {}
        """The worker's first turn at which it began nothing."""

    def note(self, reply: Reply) -> None:
        self.turns.setdefault(reply.worker, set()).add(reply.turn)
        if reply.receipt.left and not reply.receipt.entries:
            self.last[reply.worker] = min(reply.turn, self.last.get(reply.worker, reply.turn))

    @property
    def all(self) -> bool:
        """Receipts may arrive out of order, so the earlier ones of each are counted."""
        complete = [worker for worker, last in self.last.items() if self.turns[worker].issuperset(range(1, last))]
        return len(complete) >= self.workers


def until_stopped(
    source: Generator[Reply] | Iterator[Reply], until: float, workers: int
) -> Generator[Receipt | None, None, None]:
    """Receipts as they come; None where nothing has come for half a second, so that a commit need not wait.

    Ends with the source; or after the deadline `until` (seconds since the epoch) as soon as every worker has begun
    nothing of a shard, and GRACE_SECONDS after it at the latest. The shards that nobody has looked at are not waited
    for: of a large archive they are many. Raises what the source raises.
    """
    arrived: queue.SimpleQueue[Reply] = queue.SimpleQueue()
    leave = threading.Event()

    def pump() -> None:
        for reply in source:
            arrived.put(reply)
            if leave.is_set():
                break
        if isinstance(source, Generator):
            source.close()  # ends the workers

    pool = ThreadPoolExecutor(1, thread_name_prefix="medray-receipts")
    pumping = pool.submit(pump)
    stopped = StoppedWorkers(workers)
    try:
        while True:
            ended = pumping.done()  # asked before the look into the queue: then nothing is missed
            try:
                reply = arrived.get(timeout=0 if ended else TICK_SECONDS)
            except queue.Empty:
                if ended:
                    pumping.result()
                    return
                yield None
            else:
                stopped.note(reply)
                yield reply.receipt
            now = time.time()
            if now >= until and (stopped.all or now >= until + GRACE_SECONDS):
                return
    finally:
        leave.set()
        wait([pumping], timeout=max(1.0, until + GRACE_SECONDS - time.time()))  # so that its workers make room
        pool.shutdown(wait=False)
