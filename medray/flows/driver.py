"""What the driver of a flow does: cut the plan into shards, work in turn, collect receipts and commit them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from medray.flows.flow import Flow, Receipt
from medray.flows.lane import lane
from medray.stopping import signals_deferred


def in_turn(flow: Flow) -> Iterator[Receipt]:
    """Receipts of the plan's shards, worked on one after the other in this process, until the deadline."""
    work = lane(flow.stages, flow.sink, flow.until)
    for shard in flow.plan:
        if flow.over:
            return
        yield work(shard)


def collect(flow: Flow, receipts: Iterable[Receipt | None]) -> None:
    """The driver's work: show progress and commit receipts as they come. None: nothing has come for a while.

    A flow that commits as it goes also commits what has come when the run is stopped (SIGTERM, Ctrl-C).
    """
    waiting: list[Receipt] = []
    last = time.monotonic()

    def commit() -> None:
        nonlocal waiting, last
        with signals_deferred():
            flow.sink.commit(waiting)
            waiting = []
        last = time.monotonic()

    try:
        for receipt in receipts:
            if receipt is not None:
                waiting.append(receipt)
                flow.progress(receipt.entries, receipt.failed)
            if waiting and flow.due(len(waiting), time.monotonic() - last):
                commit()
    except KeyboardInterrupt:
        if waiting and flow.commit_seconds is not None:
            commit()
        raise
    if waiting:
        commit()


def shards(
    rows: pa.Table, *, workers: int, rows_per_shard: int = 256, edges: np.ndarray | None = None
) -> list[pa.Table]:
    """`rows` in order, at most `rows_per_shard` in a shard, and several shards per worker where there are enough.

    `edges`: ascending places where a cut costs least (a file ends there): the last one in the second half of what a shard
    may hold is where it ends.
    """
    size = max(1, min(rows_per_shard, -(-len(rows) // (4 * max(1, workers)))))
    cuts: list[pa.Table] = []
    start = 0
    while start < len(rows):
        stop = start + size
        if edges is not None and stop < len(rows):
            last = int(np.searchsorted(edges, stop, side="right")) - 1
            if last >= 0 and edges[last] - start > size // 2:
                stop = int(edges[last])
        cuts.append(rows.slice(start, stop - start))
        start = stop
    return cuts
