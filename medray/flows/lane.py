"""What a worker does with one shard (`lane`), and its two halves for two workers (`opening`, `closing`)."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import NOT_ELIGIBLE, OUTSIDE
from medray.faults import is_fault
from medray.flows.flow import TAKER, TAKERS, Apply, Outcome, Receipt, Sink, SlowBatch, Stage, wanted
from medray.storage.arrow import among, rebatch

PIECE_SECONDS = 2.0
"""Before a deadline a worker takes on so much at once, by the pace it has seen, and looks at the clock again."""
SLOWEST = 5
"""Number of batches that a receipt names."""


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
    head = _Head(stages, until, begin)

    def run(shard: pa.Table) -> Receipt:
        watch = _Watch()
        return _written(
            head.pieces(shard, watch), sink, watch, planned=_counts(shard), takers=TAKERS in shard.column_names
        )

    return run


@dataclass(frozen=True)
class Opened:
    """What the first stages of a flow made of one shard, for the worker that has the rest."""

    pieces: list[tuple[list[int], list[pa.RecordBatch]]]
    """(entries by taker, what became of them), as they were begun."""
    planned: list[int]
    """Entries of the shard, by taker."""
    takers: bool
    """Whether the plan names any."""
    seconds: dict[str, float]
    slowest: list[SlowBatch]


def opening(stages: Sequence[Stage], until: float | None, most: int) -> Callable[[pa.Table], Opened | None]:
    """The first half of a lane: one shard through these stages, kept in memory. None where that is more than `most`
    bytes. `until` is as in `lane`."""
    head = _Head(stages, until)

    def run(shard: pa.Table) -> Opened | None:
        watch, size = _Watch(), 0
        pieces: list[tuple[list[int], list[pa.RecordBatch]]] = []
        for entries, batches in head.pieces(shard, watch):
            pieces.append((entries, []))
            for batch in batches:
                size += batch.nbytes
                if size > most:
                    return None
                pieces[-1][1].append(batch)
        return Opened(pieces, _counts(shard), TAKERS in shard.column_names, watch.seconds, watch.slowest)

    return run


FINISH_SECONDS = 4.0
"""After a deadline, what was opened before it is finished for so long; the rest is done again next time."""


def closing(stages: Sequence[Stage], sink: Sink, until: float | None = None) -> Callable[[Opened], Receipt]:
    """The second half of a lane: what was opened through these stages into the sink. The receipt is of both halves."""
    steps = _made(stages)

    def run(opened: Opened) -> Receipt:
        watch = _Watch()

        def pieces() -> Iterator[Piece]:
            for entries, batches in opened.pieces:
                if until is not None and time.time() >= until + FINISH_SECONDS:
                    return
                yield entries, _through(steps, batches, watch)

        receipt = _written(pieces(), sink, watch, planned=opened.planned, takers=opened.takers)
        seconds = dict(receipt.seconds)
        for name, spent in opened.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + spent
        return replace(receipt, seconds=seconds, slowest=opened.slowest)

    return run


Piece = tuple[list[int], Iterable[pa.RecordBatch]]
"""(entries by taker, what becomes of them): they are worked on as the batches are asked for."""


def _counts(rows: pa.Table) -> list[int]:
    """How many of these rows of a plan each taker wants."""
    return wanted(rows).sum(axis=1).tolist()


class _Head:
    """The first stages of a flow, made once: shards go in, and come out in pieces that are begun before the deadline."""

    def __init__(
        self, stages: Sequence[Stage], until: float | None, begin: Callable[[int], None] = lambda rows: None
    ) -> None:
        self.steps, self.until, self.begin, self.pace = _made(stages), until, begin, _Pace()

    def pieces(self, shard: pa.Table, watch: _Watch) -> Iterator[Piece]:
        """One piece where there is no deadline. A piece is begun when the one before it is used up."""
        until, most = self.until, self.steps[0].batch_size
        for piece in (shard,) if until is None else self.pace.pieces(shard, most, until):
            yield _counts(piece), _through(self.steps, piece.to_batches(), watch, self.begin)


def _written(pieces: Iterable[Piece], sink: Sink, watch: _Watch, *, planned: list[int], takers: bool) -> Receipt:
    """The receipt of a shard of so many entries for each taker, once its pieces are in the sink."""
    began = time.monotonic()
    counters = [_EntryCounter() for _ in planned]

    def work() -> Iterator[pa.RecordBatch]:
        for counts, batches in pieces:
            for counter, count in zip(counters, counts, strict=False):
                counter.begun += count
            for batch in batches:
                if len(batch):
                    counters[batch.column(TAKER)[0].as_py() if takers else 0].count(batch)
                yield batch

    payload = dict(sink.write(work()))
    seconds = watch.seconds | {"write": time.monotonic() - began - sum(watch.seconds.values())}
    outcomes = tuple(counter.outcome(entries) for counter, entries in zip(counters, planned, strict=True))
    total = Outcome.together(outcomes)
    return Receipt.of_counts(total, payload, seconds, watch.slowest, outcomes if takers else ())


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
    for number, step in enumerate(steps):
        batches = rebatch(batches, step.batch_size)
        if number == 0 and begin is not None:
            batches = _announced(batches, begin)
        batches = watch.applied(step.name, step.apply, batches, noted=number == 0 and begin is not None)
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
        self.slowest: list[SlowBatch] = []

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
        row: SlowBatch = {"seconds": each, "together": len(batch), "entry_id": batch.column("entry_id")[0].as_py()}
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


class _EntryCounter:
    """Counts what passes: samples, those without a score by reason, and the entries of which nothing came.

    The rows of a sample, and of an entry, follow each other.
    """

    def __init__(self) -> None:
        self.begun = 0
        """Entries."""
        self.samples, self.reasons, self.lost = 0, Counter[str](), set[str]()
        self.faults: Counter[str] = Counter()
        self.outside: Counter[str] = Counter()
        self.faulty: set[str] = set()
        """The lost ones that have a failed row."""
        self.last: tuple[str, str] | None = None
        self.good = ""
        """The last entry that has a good row."""

    def count(self, batch: pa.RecordBatch) -> None:
        """Count the rows of a batch, which has some."""
        if "reason" not in batch.schema.names:
            return
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
            if "detail" in batch.schema.names:
                details = batch.column("detail").filter(pa.array(bad & new)).to_pylist()
                self.faults.update(detail for detail in details if is_fault(detail))
            with_good = {*entry.filter(pa.array(~bad)).unique().to_pylist(), self.good}
            self.lost |= set(entry.filter(pa.array(bad)).unique().to_pylist()) - with_good
            failed = bad & ~among(reason, NOT_ELIGIBLE).to_numpy(zero_copy_only=False)
            self.faulty |= set(entry.filter(pa.array(failed)).unique().to_pylist()) & self.lost
        if not bad.all():
            if "facts" in batch.schema.names:
                self.outside.update(_numbers_outside(batch.column("facts").filter(pa.array(~bad & new))))
            if self.lost:
                self.lost -= set(entry.filter(pa.array(~bad)).unique().to_pylist())
            self.good = entry[int(np.flatnonzero(~bad)[-1])].as_py()

    def outcome(self, entries: int) -> Outcome:
        """Of a shard of so many entries."""
        failed = len(self.lost & self.faulty)
        return Outcome(
            self.begun,
            failed,
            {reason: count for reason, count in self.reasons.items() if reason not in NOT_ELIGIBLE},
            self.samples,
            left=entries - self.begun,
            not_eligible=len(self.lost) - failed,
            passed_over={reason: count for reason, count in self.reasons.items() if reason in NOT_ELIGIBLE},
            faults=dict(self.faults),
            outside=dict(self.outside),
        )


def _numbers_outside(facts: pa.Array) -> Iterator[str]:
    """Names of the numbers of samples that lie outside of what was trained on, as their facts (JSON) tell."""
    for text in facts.filter(pc.match_substring(facts, f'"{OUTSIDE}"').fill_null(False)).to_pylist():
        yield from json.loads(text).get(OUTSIDE, ())
