"""Flow: a plan of shards, stages that turn batches into batches, and a sink. The one way work is done in bulk.

    plan ── shard ──> stage ──> stage ──> Sink.write ──> Receipt ──> Sink.commit
            (rows)    (in a worker, built once)          (on the driver)

`lane` is what a worker does with one shard; `opening` and `closing` are its halves, for two workers. Engines differ in
where lanes run, in nothing else.
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

from medray.errors import NOT_ELIGIBLE
from medray.stopping import held
from medray.storage.arrow import among, rebatch

Apply = Callable[[pa.RecordBatch], pa.RecordBatch | Iterable[pa.RecordBatch]]
"""Batch to batch, or to several where the result may be much larger (the parts of one file)."""


class Stage(NamedTuple):
    make: Callable[[], Apply]
    """Built once per worker; must be picklable."""
    batch_size: int
    """Rows given to one call."""
    gpus: float = 0.0
    """More than none: it runs on a GPU where there is one. How much of one its worker has is the engine's affair."""
    name: str = "work"
    """In words: its time is counted under this name."""
    row_bytes: int = 0
    """About what one row given to it becomes; 0 where that is not known."""


@dataclass(frozen=True)
class Receipt:
    """What a worker says about one shard: how much it did and what it wrote. Small; the data stays in files."""

    entries: int
    failed: int
    """Entries of which nothing came because something is wrong: no row of theirs is good, and one failed."""
    reasons: dict[str, int] = field(default_factory=dict)
    """How many samples failed for which reason; an entry that cannot be read is one."""
    samples: int = 0
    """Rows of work inside the entries: samples, or failed rows."""
    payload: dict[str, Any] = field(default_factory=dict)
    """JSON-ready facts that the sink needs for its commit (path, size, statistics …)."""
    left: int = 0
    """Entries of the shard that were not begun because the flow's deadline came."""
    not_eligible: int = 0
    """Entries of which nothing came, and nothing failed: the model is not asked about them (errors.NOT_ELIGIBLE)."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """How many samples are not eligible, and by which reason."""
    seconds: dict[str, float] = field(default_factory=dict, compare=False)
    """Of this worker's time, by stage and for "write"."""
    slowest: list[dict[str, Any]] = field(default_factory=list, compare=False)
    """The slowest batches of the first stage: {seconds (per entry), together (entries in it), entry_id (its first)}."""


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
    commit_receipts: int | None = None
    """Commit as soon as so many shards have come in."""
    until: float | None = None
    """Deadline, seconds since the epoch: from then on no entry is begun; what was begun is finished and committed."""
    failable: bool = False
    """A row of the plan may be given with a `reason`: the first stage then makes a failed row of it, and does not touch
    what it names. Such a flow outlives a row that kills its worker (`engines/ray/careful.py`)."""
    apart: bool = False
    """What comes before the GPU costs more than handing it on: an engine may do it in workers without a GPU, and may cut
    the plan's shards for that. Its rows are entries."""

    @property
    def halves(self) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
        """The stages before the first that wants a GPU, and the rest; nothing and all where none does."""
        place = next((place for place, stage in enumerate(self.stages) if stage.gpus), 0)
        return self.stages[:place], self.stages[place:]

    @property
    def on_gpu(self) -> bool:
        """A stage wants a GPU."""
        return any(stage.gpus for stage in self.stages)

    @property
    def over(self) -> bool:
        """The deadline has come."""
        return self.until is not None and time.time() >= self.until

    def due(self, held: int, seconds: float) -> bool:
        """So many receipts, held for so long, should be committed."""
        return (self.commit_seconds is not None and seconds >= self.commit_seconds) or (
            self.commit_receipts is not None and held >= self.commit_receipts
        )


PIECE_SECONDS = 2.0
"""Before a deadline a worker takes on so much at once, by the pace it has seen, and looks at the clock again."""

SLOWEST = 5
"""Batches that a receipt tells of."""


def lane(
    stages: Sequence[Stage],
    sink: Sink,
    until: float | None = None,
    begin: Callable[[int], None] = lambda rows: None,
) -> Callable[[pa.Table], Receipt]:
    """A worker's work: one shard through all stages into the sink, in batches, in bounded memory.

    With a deadline (seconds since the epoch, by this machine's clock) the shard goes through in pieces, and a piece
    is begun only before it: the receipt says how many entries are left. One entry is never cut. `begin` is told how
    many rows the first stage is about to get, before each batch.
    """
    steps, pace = _made(stages), _Pace()

    def run(shard: pa.Table) -> Receipt:
        began = time.monotonic()
        tally, watch, begun = _Tally(), _Watch(), 0

        def work() -> Iterator[pa.RecordBatch]:
            nonlocal begun
            for piece in (shard,) if until is None else pace.pieces(shard, steps[0].batch_size, until):
                begun += len(piece)
                yield from _through(steps, piece.to_batches(), watch, begin)

        payload = sink.write(tally.counted(work()))
        seconds = watch.seconds | {"write": time.monotonic() - began - sum(watch.seconds.values())}
        return tally.receipt(begun, len(shard) - begun, payload, seconds, watch.slowest)

    return run


@dataclass(frozen=True)
class Opened:
    """What the first stages of a flow made of one shard, for the worker that has the rest."""

    pieces: list[tuple[int, list[pa.RecordBatch]]]
    """(entries, what became of them), as they were begun."""
    left: int
    seconds: dict[str, float]
    slowest: list[dict[str, Any]]


def opening(stages: Sequence[Stage], until: float | None, most: int) -> Callable[[pa.Table], Opened | None]:
    """The first half of a lane: one shard through these stages, held in memory. None where that is more than `most`
    bytes. `until` is as in `lane`."""
    steps, pace = _made(stages), _Pace()

    def run(shard: pa.Table) -> Opened | None:
        watch, held, begun = _Watch(), 0, 0
        pieces: list[tuple[int, list[pa.RecordBatch]]] = []
        for piece in (shard,) if until is None else pace.pieces(shard, steps[0].batch_size, until):
            begun += len(piece)
            pieces.append((len(piece), []))
            for batch in _through(steps, piece.to_batches(), watch, lambda rows: None):
                held += batch.nbytes
                if held > most:
                    return None
                pieces[-1][1].append(batch)
        return Opened(pieces, len(shard) - begun, watch.seconds, watch.slowest)

    return run


FINISH_SECONDS = 4.0
"""After a deadline, what was opened before it is finished for so long; the rest is done again next time."""


def closing(stages: Sequence[Stage], sink: Sink, until: float | None = None) -> Callable[[Opened], Receipt]:
    """The second half of a lane: what was opened through these stages into the sink. The receipt is of both halves."""
    steps = _made(stages)

    def run(opened: Opened) -> Receipt:
        began = time.monotonic()
        tally, watch, done = _Tally(), _Watch(), 0

        def work() -> Iterator[pa.RecordBatch]:
            nonlocal done
            for entries, batches in opened.pieces:
                if until is not None and time.time() >= until + FINISH_SECONDS:
                    return
                done += entries
                yield from _through(steps, batches, watch)

        payload = sink.write(tally.counted(work()))
        seconds = watch.seconds | {"write": time.monotonic() - began - sum(watch.seconds.values())}
        for name, spent in opened.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + spent
        left = opened.left + sum(entries for entries, _ in opened.pieces) - done
        return tally.receipt(done, left, payload, seconds, opened.slowest)

    return run


class _Step(NamedTuple):
    """A stage, made."""

    name: str
    apply: Apply
    batch_size: int


def _made(stages: Sequence[Stage]) -> list[_Step]:
    return [_Step(stage.name, stage.make(), stage.batch_size) for stage in stages]


def _through(
    steps: Sequence[_Step],
    batches: Iterable[pa.RecordBatch],
    watch: _Watch,
    begin: Callable[[int], None] | None = None,
) -> Iterable[pa.RecordBatch]:
    """The batches through all steps. `begin`: these are entries, and it is told of the first step's rows."""
    for place, step in enumerate(steps):
        batches = rebatch(batches, step.batch_size)
        if place == 0 and begin is not None:
            batches = _announced(batches, begin)
        batches = watch.applied(step.name, step.apply, batches, noted=place == 0 and begin is not None)
    return batches


def _announced(batches: Iterable[pa.RecordBatch], begin: Callable[[int], None]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        begin(len(batch))
        yield batch


class _Pace:
    """How many entries make about PIECE_SECONDS of work, from what this worker has seen so far."""

    size = 1

    def pieces(self, shard: pa.Table, most: int, until: float) -> Iterator[pa.Table]:
        start = 0
        while start < len(shard) and time.time() < until:
            piece = shard.slice(start, self.size)
            began = time.monotonic()
            yield piece
            spent = max(time.monotonic() - began, 1e-6)
            start += len(piece)
            self.size = max(1, min(most, 2 * self.size, int(len(piece) * PIECE_SECONDS / spent)))


class _Watch:
    """Applies stages, and counts their time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.slowest: list[dict[str, Any]] = []

    def applied(
        self, name: str, apply: Apply, batches: Iterable[pa.RecordBatch], *, noted: bool
    ) -> Iterator[pa.RecordBatch]:
        """What `apply` makes of the batches; `noted`: the slowest of them are kept."""
        for batch in batches:
            began = time.monotonic()
            made = apply(batch)
            spent = time.monotonic() - began
            for each in (made,) if isinstance(made, pa.RecordBatch) else _timed(made):
                if isinstance(each, float):
                    spent += each
                else:
                    yield each
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            if noted and "entry_id" in batch.schema.names:
                self._note(spent, batch)

    def _note(self, spent: float, batch: pa.RecordBatch) -> None:
        each = spent / len(batch)
        if len(self.slowest) == SLOWEST and each <= self.slowest[-1]["seconds"]:
            return
        row = {"seconds": each, "together": len(batch), "entry_id": batch.column("entry_id")[0].as_py()}
        self.slowest = sorted([*self.slowest, row], key=lambda row: -row["seconds"])[:SLOWEST]


def _timed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch | float]:
    """Each batch, and after it the seconds that making it took."""
    source = iter(batches)
    while True:
        began = time.monotonic()
        batch = next(source, None)
        spent = time.monotonic() - began
        if batch is None:
            return
        yield batch
        yield spent


class _Tally:
    """Counts what passes: samples, those without a score by reason, and the entries of which nothing came.

    The rows of a sample, and of an entry, follow each other.
    """

    def __init__(self) -> None:
        self.samples, self.reasons, self.lost = 0, Counter[str](), set[str]()
        self.faulty: set[str] = set()
        """Of the lost ones, those with a failed row."""
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
            failed = bad & ~among(reason, NOT_ELIGIBLE).to_numpy(zero_copy_only=False)
            self.faulty |= set(entry.filter(pa.array(failed)).unique().to_pylist()) & self.lost
        if not bad.all():
            if self.lost:
                self.lost -= set(entry.filter(pa.array(~bad)).unique().to_pylist())
            self.good = entry[int(np.flatnonzero(~bad)[-1])].as_py()

    def receipt(
        self,
        entries: int,
        left: int,
        payload: dict[str, Any],
        seconds: dict[str, float],
        slowest: list[dict[str, Any]],
    ) -> Receipt:
        failed = len(self.lost & self.faulty)
        return Receipt(
            entries,
            failed,
            {reason: count for reason, count in self.reasons.items() if reason not in NOT_ELIGIBLE},
            self.samples,
            payload,
            left=left,
            not_eligible=len(self.lost) - failed,
            passed_over={reason: count for reason, count in self.reasons.items() if reason in NOT_ELIGIBLE},
            seconds=seconds,
            slowest=slowest,
        )


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
        with held():
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
    found, start = [], 0
    while start < len(rows):
        stop = start + size
        if edges is not None and stop < len(rows):
            last = int(np.searchsorted(edges, stop, side="right")) - 1
            if last >= 0 and edges[last] - start > size // 2:
                stop = int(edges[last])
        found.append(rows.slice(start, stop - start))
        start = stop
    return found
