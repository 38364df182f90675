"""Flow: a plan of shards, stages that turn batches into batches, and a sink. The one way work is done in bulk.

    plan ── shard ──> stage ──> stage ──> Sink.write ──> Receipt ──> Sink.commit
            (rows)    (in a worker, built once)          (on the driver)

`lane.py` has what a worker does with one shard, `driver.py` what the driver does. Engines differ in where lanes run, in
nothing else.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, Protocol, Self, TypedDict

import numpy as np
import pyarrow as pa

Apply = Callable[[pa.RecordBatch], pa.RecordBatch | Iterable[pa.RecordBatch]]
"""Batch to batch, or to several where the result may be much larger (the parts of one file)."""


TAKERS = "takers"
"""Column (uint64) of a plan whose rows are for several takers, such as bundles that read alike: bit t of a row says that
taker t wants it. A first stage hands it on with what it makes of the row."""
TAKER = "taker"
"""Column (int8) of what a sink gets of such a plan: whom a batch is for, all of it for one."""
MOST_TAKERS = 64


def wanted(rows: pa.Table | pa.RecordBatch) -> np.ndarray:
    """(T, N) bool: which taker wants which of these rows of a plan, up to the last that wants any; without TAKERS one wants all."""
    if TAKERS not in rows.schema.names:
        return np.ones((1, len(rows)), bool)
    bits = rows.column(TAKERS).to_numpy()
    count = int(np.bitwise_or.reduce(bits, initial=0)).bit_length()
    return (bits[None] >> np.arange(count, dtype=np.uint64)[:, None] & np.uint64(1)).astype(bool)


class Stage(NamedTuple):
    make: Callable[[], Apply]
    """Built once per worker; must be picklable."""
    batch_size: int
    """Rows given to one call."""
    gpus: float = 0.0
    """More than none: it runs on a GPU where there is one. How much of one its worker has is the engine's affair."""
    name: str = "work"
    """The name under which its time is counted, in words."""
    row_bytes: int = 0
    """About what one row given to it becomes; 0 where that is not known."""


class SlowBatch(TypedDict):
    """A batch of the first stage that took long."""

    seconds: float
    """Per entry."""
    together: int
    """Entries in it."""
    entry_id: str
    """The id of its first entry."""


@dataclass(frozen=True)
class Outcome:
    """What became of the entries of one shard: of all of them, or of those that one taker wants."""

    entries: int
    failed: int
    """Entries of which nothing came because something is wrong: no row of theirs is good, and one failed."""
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    """How many samples failed for which reason; an entry that cannot be read is one."""
    samples: int = 0
    """Rows of work inside the entries: samples, or failed rows."""
    left: int = 0
    """Entries of the shard that were not begun because the flow's deadline came."""
    not_eligible: int = 0
    """Entries of which nothing came, and nothing failed: the model is not asked about them (errors.NOT_ELIGIBLE)."""
    passed_over: dict[str, int] = field(default_factory=dict[str, int])
    """How many samples are not eligible, and by which reason."""
    faults: dict[str, int] = field(default_factory=dict[str, int])
    """How many samples failed as nobody had foreseen, by kind and place in the code (`faults.as_sample_error`)."""
    outside: dict[str, int] = field(default_factory=dict[str, int])
    """How many good samples lie outside of what was trained on, by the number that does (`archive.ranges`)."""

    @staticmethod
    def together(outcomes: Sequence[Outcome]) -> Outcome:
        """Their sums."""
        total: dict[str, Any] = {}
        for name, nothing in asdict(Outcome(0, 0)).items():
            counts = [getattr(each, name) for each in outcomes]
            total[name] = sum(counts) if nothing == 0 else dict(sum(map(Counter[str], counts), Counter[str]()))
        return Outcome(**total)


@dataclass(frozen=True)
class Receipt(Outcome):
    """What a worker says about one shard: how much it did and what it wrote. Small; the data stays in files.

    Of a plan for several takers the counts are sums over them.
    """

    payload: dict[str, object] = field(default_factory=dict[str, object])
    """JSON-ready facts that the sink needs for its commit (path, size, statistics …)."""
    takers: tuple[Outcome, ...] = ()
    """What became of the entries that each taker wants; none where the plan names no takers."""
    seconds: dict[str, float] = field(default_factory=dict[str, float], compare=False)
    """Seconds of this worker, by stage and for "write"."""
    slowest: list[SlowBatch] = field(default_factory=list[SlowBatch], compare=False)
    """The slowest batches of the first stage, slowest first."""

    @classmethod
    def of_counts(
        cls,
        outcome: Outcome,
        payload: Mapping[str, object],
        seconds: dict[str, float],
        slowest: list[SlowBatch],
        takers: tuple[Outcome, ...] = (),
    ) -> Self:
        """The receipt with the counts of an outcome."""
        counts: dict[str, Any] = {each.name: getattr(outcome, each.name) for each in fields(Outcome)}
        return cls(**counts, payload=dict(payload), takers=takers, seconds=seconds, slowest=slowest)

    def of(self, taker: int, payload: dict[str, object]) -> Receipt:
        """The receipt of what one taker wants; its seconds, and the slowest batches, are those of all."""
        outcome = self.takers[taker] if taker < len(self.takers) else Outcome(0, 0)
        return Receipt.of_counts(outcome, payload, self.seconds, self.slowest)

    @classmethod
    def of_json(cls, facts: dict[str, Any]) -> Self:
        """The receipt that `dataclasses.asdict` made these of, on their way through JSON."""
        whole: dict[str, Any] = {**facts, "takers": tuple(Outcome(**each) for each in facts["takers"])}
        return cls(**whole)


class Sink(Protocol):
    def write(self, batches: Iterator[pa.RecordBatch]) -> Mapping[str, object]:
        """Write files nobody sees yet, in the worker. May run twice for one shard. Returns the receipt's payload."""
        ...

    def commit(self, receipts: Sequence[Receipt]) -> None:
        """Make them visible, on the driver. Called with every receipt once, some at a time."""
        ...


class Advance(Protocol):
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
    progress: Advance = lambda done, failed: None
    small: bool = False
    """Too little work to be worth starting workers: an engine may do it in the driver, with the same result."""
    sooner: bool = False
    """Its stages import little and read from one machine's storage: of an engine whose workers take seconds to start, processes
    of the driver's machine may do it, when the engine has no other machine."""
    next_imports: tuple[str, ...] = ()
    """Modules that the flow after this one is likely to need: an engine whose workers stay may let them import these when they
    have nothing else to do."""
    commit_seconds: float | None = None
    """Commit what has come in at least this often; None: once, at the end."""
    commit_receipts: int | None = None
    """Commit as soon as so many shards have come in."""
    until: float | None = None
    """Deadline, seconds since the epoch: from then on no entry is begun; what was begun is finished and committed."""
    failable: bool = False
    """A row of the plan may be given with a `reason`: the first stage then makes a failed row of it, and does not touch
    what it names. Such a flow outlives a row that kills its worker (`engines/ray/careful.py`)."""
    may_split: bool = False
    """What comes before the GPU costs more than handing it on: an engine may do it in workers without a GPU, and may cut
    the plan's shards for that. Its rows are entries."""

    @property
    def halves(self) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
        """The stages before the first that wants a GPU, and the rest; nothing and all where none does."""
        first = next((first for first, stage in enumerate(self.stages) if stage.gpus), 0)
        return self.stages[:first], self.stages[first:]

    @property
    def on_gpu(self) -> bool:
        """A stage wants a GPU."""
        return any(stage.gpus for stage in self.stages)

    @property
    def over(self) -> bool:
        """The deadline has come."""
        return self.until is not None and time.time() >= self.until

    def due(self, receipts: int, seconds: float) -> bool:
        """So many receipts, held for so long, should be committed."""
        return (self.commit_seconds is not None and seconds >= self.commit_seconds) or (
            self.commit_receipts is not None and receipts >= self.commit_receipts
        )
