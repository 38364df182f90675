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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
    """Entries of which nothing came: every row of theirs is a failed one."""
    reasons: dict[str, int] = field(default_factory=dict)
    """How many samples failed for which reason; an entry that cannot be read is one."""
    samples: int = 0
    """Rows of work inside the entries: samples, or failed rows."""
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
        tally = _Tally()
        flow: Iterable[pa.RecordBatch] = shard.to_batches()
        for apply, rows in steps:
            flow = _applied(apply, rebatch(flow, rows))
        payload = sink.write(tally.counted(flow))
        return Receipt(len(shard), len(tally.lost), dict(tally.reasons), tally.samples, payload)

    return run


def _applied(apply: Apply, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        made = apply(batch)
        if isinstance(made, pa.RecordBatch):
            yield made
        else:
            yield from made


class _Tally:
    """Counts what passes: samples, failed ones by reason, and the entries of which nothing came.

    The rows of a sample, and of an entry, follow each other.
    """

    def __init__(self) -> None:
        self.samples, self.reasons, self.lost = 0, Counter[str](), set[str]()
        self.last: tuple[str, str] | None = None
        self.good = ""
        """The last entry that has a good row."""

    def counted(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if len(batch) and "reason" in batch.schema.names:
                self._count(batch)
            yield batch

    def _count(self, batch: pa.RecordBatch) -> None:
        entry = batch.column("entry_id")
        sample = batch.column("sample_id").fill_null("") if "sample_id" in batch.schema.names else entry
        new = np.ones(len(batch), bool)
        same = pc.and_(pc.equal(entry[1:], entry[:-1]), pc.equal(sample[1:], sample[:-1]))
        new[1:] = ~same.to_numpy(zero_copy_only=False)
        new[0] = (entry[0].as_py(), sample[0].as_py()) != self.last
        self.last = (entry[-1].as_py(), sample[-1].as_py())
        self.samples += int(new.sum())
        reason = batch.column("reason")
        bad = reason.is_valid().to_numpy(zero_copy_only=False)
        if bad.any():
            self.reasons.update(reason.filter(pa.array(bad & new)).to_pylist())
            with_good = {*entry.filter(pa.array(~bad)).unique().to_pylist(), self.good}
            self.lost |= set(entry.filter(pa.array(bad)).unique().to_pylist()) - with_good
        if not bad.all():
            if self.lost:
                self.lost -= set(entry.filter(pa.array(~bad)).unique().to_pylist())
            self.good = entry[int(np.flatnonzero(~bad)[-1])].as_py()


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
