"""Flow: a plan of shards, stages that turn batches into batches, and a sink. The one way work is done in bulk.

    plan ── shard ──> stage ──> stage ──> Sink.write ──> Receipt ──> Sink.commit
            (rows)    (in a worker, built once)          (on the driver)

`lane` is what a worker does with one shard. Engines differ in where lanes run, in nothing else.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from medray.samples import rebatch

Apply = Callable[[pa.RecordBatch], pa.RecordBatch | Iterable[pa.RecordBatch]]
"""Batch to batch, or to several where the result may be much larger (the parts of one file)."""


class Stage(NamedTuple):
    make: Callable[[], Apply]
    """Built once per worker; must be picklable."""
    batch_size: int
    """Rows given to one call."""
    gpus: float = 0.0


@dataclass(frozen=True)
class Receipt:
    """What a worker says about one shard: how much it did and what it wrote. Small; the data stays in files."""

    entries: int
    failed: int
    """Entries with a failed row."""
    reasons: dict[str, int] = field(default_factory=dict)
    """How many entries failed for which reason."""
    payload: dict[str, Any] = field(default_factory=dict)
    """JSON-ready facts that the sink needs for its commit (path, size, statistics …)."""


class Sink(Protocol):
    def write(self, batches: Iterator[pa.RecordBatch]) -> dict[str, Any]:
        """Write files nobody sees yet, in the worker. May run twice for one shard. Returns the receipt's payload."""
        ...

    def commit(self, receipts: Sequence[Receipt]) -> None:
        """Make them visible, on the driver. Called with every receipt once, some at a time."""
        ...


class Progress(Protocol):
    def __call__(self, done: int, failed: int) -> None:
        """Entries finished since the last call, and how many of them failed."""
        ...


@dataclass(frozen=True)
class Flow:
    name: str
    plan: Sequence[pa.Table]
    """One small table of rows (entries, files; no data) per shard."""
    stages: tuple[Stage, ...]
    sink: Sink
    progress: Progress = lambda done, failed: None
    small: bool = False
    """Too little work to be worth starting workers: an engine may do it in the driver, with the same result."""
    commit_seconds: float | None = None
    """Commit what has come in at least this often; None: once, at the end."""


def lane(stages: Sequence[Stage], sink: Sink) -> Callable[[pa.Table], Receipt]:
    """A worker's work: one shard through all stages into the sink, in batches, in bounded memory."""
    steps = [(stage.make(), stage.batch_size) for stage in stages]

    def run(shard: pa.Table) -> Receipt:
        failed: dict[str, str] = {}

        def counted(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                if "reason" in batch.schema.names and batch.column("reason").null_count < len(batch):
                    bad = batch.filter(batch.column("reason").is_valid())
                    failed.update(zip(bad["entry_id"].to_pylist(), bad["reason"].to_pylist(), strict=True))
                yield batch

        flow: Iterable[pa.RecordBatch] = shard.to_batches()
        for apply, rows in steps:
            flow = _applied(apply, rebatch(flow, rows))
        payload = sink.write(counted(flow))
        return Receipt(len(shard), len(failed), dict(Counter(failed.values())), payload)

    return run


def _applied(apply: Apply, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        made = apply(batch)
        if isinstance(made, pa.RecordBatch):
            yield made
        else:
            yield from made


def collect(flow: Flow, receipts: Iterable[Receipt]) -> None:
    """The driver's work: show progress and commit receipts as they come."""
    held: list[Receipt] = []
    last = time.monotonic()
    for receipt in receipts:
        held.append(receipt)
        flow.progress(receipt.entries, receipt.failed)
        if flow.commit_seconds is not None and time.monotonic() - last >= flow.commit_seconds:
            flow.sink.commit(held)
            held, last = [], time.monotonic()
    if held:
        flow.sink.commit(held)


def shards(rows: pa.Table, *, workers: int, rows_per_shard: int = 256) -> list[pa.Table]:
    """`rows` in order, at most `rows_per_shard` in a shard, and several shards per worker where there are enough."""
    if len(rows) == 0:
        return []
    size = max(1, min(rows_per_shard, -(-len(rows) // (4 * max(1, workers)))))
    return [rows.slice(start, size) for start in range(0, len(rows), size)]
