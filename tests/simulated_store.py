"""A score store whose log, storage and clocks are simulated, and actors that work on it in an order that a seed decides.

The protocol is medray's own: `ScoreLog`, `ScoreSink`, `upkeep`, `standing` and the queries of `Readings` run as they are.
Simulated is what they stand on (simulated_storage.py; test_simulated_store.py holds its log beside delta-rs), and time.
"""

from __future__ import annotations

import atexit
import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
from simulated_storage import (
    CUT,
    STORE,
    Actor,
    IpcFile,
    IpcWriter,
    Log,
    Row,
    Storage,
    Table,
    Version,
    Violation,
    dataset,
    table_of,
    transact,
)
from store_rows import Receipt, content, rows
from store_rows import manifest as manifest_of

from medray.flows import flow
from medray.scores import ScoreStore, audit, log, readings, scan, sink, standing, upkeep
from medray.scores.table import RETIRED
from medray.storage import delta, remote
from medray.verbs.tally import ScoreTally, SharedSink

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
BUNDLES = ("b1", "b2")


# --- a schedule -----------------------------------------------------------------------------------------------


@dataclass
class World:
    """One schedule: an archive that changes, drivers, upkeep and forgetting, in the order that `seed` decides."""

    seed: int
    queries: bool = True
    """Whether medray's own queries are asked, and compared with `Plain`; else `Plain` answers, in a fiftieth of the time."""
    fault_rate: float = 0.04
    together: bool = False
    """Whether each driver scores with all bundles in one pass."""
    random: random.Random = field(init=False)
    time: datetime = BEGAN
    """True time; the clock of the storage."""
    actors: list[Actor] = field(default_factory=list)
    running: Actor | None = None
    faulty: bool = True
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.storage, self.log = Storage(self), Log(self)
        self.archive = {name: 1 for name in "abcd"[: self.random.randint(2, 4)]}
        self.rows_of: dict[str, list[Row]] = {}
        self.latest: dict[tuple[str, str], datetime] = {}
        self.expected: Counter[Row] = Counter()
        self.forgotten_before: dict[str, int] = {}

    def hand_over(self) -> None:
        """Called where log and storage are asked: the running actor lets others run, and may not live on."""
        actor = self.running
        if actor is not None and actor.is_running_here:  # not one of the threads in which it looks at several files
            actor.hand_over()

    # -- what is promised, at every commit

    def check_commit(self, before: Version, after: Version, kind: str) -> None:
        self.counts[kind] += 1
        self._check_claim(after, kind)
        added = [path for path in after.live if path not in before.live]
        for path in after.live:
            if f"store/{path}" not in self.storage.files:
                raise Violation(f"{kind}: version {after.number} names {path}, which is not there")
        rows_added = [row for path in added for row in self._rows(path, after.live[path])]
        rows_taken = [row for path in after.took for row in self._rows(path, before.live[path])]
        if kind == "scores":
            for row in rows_added:
                stamp = self.latest.get(row[:2])
                if stamp is not None and row[6] < stamp:
                    raise Violation(f"a row of {row[:2]} is committed later, and is stamped earlier")
            self.latest |= {row[:2]: row[6] for row in rows_added}
            self.expected.update(rows_added)
        else:
            gone = Counter(rows_taken)
            gone.subtract(rows_added)
            wrong = [row for row, count in gone.items() if count < 0 or (count > 0 and kind != "forget")]
            if wrong:
                raise Violation(f"{kind}: rows are lost or doubled: {wrong}")
            self.expected.subtract(gone)
            for pair in {row[:2] for row, count in gone.items() if count}:
                left = [row[6] for row, count in self.expected.items() if count and row[:2] == pair]
                self.latest |= {pair: max(left)} if left else {}
                if not left:
                    self.latest.pop(pair, None)
        doubled = [row for row, count in self.expected.items() if count > 1]
        if doubled:
            raise Violation(f"{kind}: rows are there twice: {doubled}")

    def _check_claim(self, after: Version, kind: str) -> None:
        """The newest claim alone commits, and each claim has a number of its own."""
        for app in after.changed:
            if app.startswith("medray.run/"):
                continue
            most = max(version.counters.get(app, 0) for version in self.log.versions[:-1])
            new = app == "medray.replaced" or kind in ("claim", "upkeep", "fence")
            if after.counters[app] != most + new:
                raise Violation(f"{kind}: {app} is {after.counters[app]} after {most}")

    def _rows(self, path: str, add: Any) -> list[Row]:
        if path not in self.rows_of:
            bundle = add.partition_values["bundle_id"]
            names = ("entry_id", "subject_id", "output", "value", "run_id", "scored_at", "status", "fingerprint")
            columns = table_of(self.storage.files[f"store/{path}"][0]).select(names).to_pydict().values()
            self.rows_of[path] = [(bundle, *row) for row in zip(*columns, strict=True)]
        return self.rows_of[path]

    # -- who acts

    def begin(self, name: str, work: Callable[[], None], skew: timedelta | None = None) -> None:
        if skew is None:
            skew = timedelta(hours=self.random.choice((0, 0, 0, -30, 5, 20_000)))
        actor = Actor(name, work, skew)
        self.actors.append(actor)

    def store(self) -> ScoreStore:
        return ScoreStore(STORE, Table(self.log))  # type: ignore[arg-type]

    def now(self) -> datetime:
        """By the clock of whoever runs."""
        return self.time + (self.running.skew if self.running else timedelta(0))

    def drive(self, bundle: str) -> None:
        """What `verbs.score.score` does with a store, with workers whose clocks are wrong in their own ways."""
        indexed = dict(self.archive)
        wanted = manifest_of(indexed)
        store = self.store()
        claim = store.claim(bundle)
        pending = self._pending(store, wanted, indexed, bundle)
        self._retire(store, claim, wanted, indexed)
        scored_by = store.sink(claim)
        receipts: list[Receipt] = []
        while pending:
            shard, pending = pending[:2], pending[2:]
            for _ in range(1 + (self.faulty and self.random.random() < 0.15)):  # an answer is lost: done again
                receipt = self._work(scored_by, {name: indexed[name] for name in shard})
            receipts.append(receipt)
            if self.random.random() < 0.6 or not pending:
                doubled = self.faulty and self.random.random() < 0.1
                scored_by.commit(receipts)
                if doubled:
                    scored_by.commit(receipts)
                receipts = []

    def drive_together(self, _: str) -> None:
        """`drive` for all bundles, whose entries are read once; a claim that is overtaken ends its bundle alone."""
        indexed = dict(self.archive)
        wanted = manifest_of(indexed)
        store = self.store()
        claims = [store.claim(bundle) for bundle in BUNDLES]
        pending = [self._pending(store, wanted, indexed, bundle) for bundle in BUNDLES]
        for claim in claims:
            self._retire(store, claim, wanted, indexed)
        scored_by = SharedSink([ScoreTally(store.sink(claim), {}) for claim in claims], "")
        receipts: list[flow.Receipt] = []
        names = [name for name in indexed if any(name in each for each in pending)]
        while names:
            shard, names = names[:2], names[2:]
            asked = [{name: indexed[name] for name in shard if name in each} for each in pending]
            for _ in range(1 + (self.faulty and self.random.random() < 0.15)):
                receipt = self._work_together(scored_by, asked)
            receipts.append(receipt)
            if self.random.random() < 0.6 or not names:
                scored_by.commit(receipts)
                if self.faulty and self.random.random() < 0.1:
                    scored_by.commit(receipts)
                receipts = []
        if scored_by.ended:
            self.counts["ended alone"] += 1

    def _work_together(self, scored_by: SharedSink, asked: list[dict[str, int]]) -> flow.Receipt:
        skew = timedelta(seconds=self.random.choice((0, 0, -40_000, 7_000)))
        sinks = [replace(each, store=None, clock=lambda: self.now() + skew) for each in scored_by.sinks]
        at_worker = SharedSink([ScoreTally(each, {}) for each in sinks], "")
        same = {name for of in asked for name, version in of.items() if self.archive.get(name) == version}
        batches = [
            each.append_column(flow.TAKER, pa.repeat(pa.scalar(taker, pa.int8()), len(each)))
            for taker, of in enumerate(asked)
            for each in (
                rows({name: version for name, version in of.items() if name in same}),
                rows({name: version for name, version in of.items() if name not in same}, reason="changed"),
            )
        ]
        takers = tuple(flow.Outcome(len(of), 0) for of in asked)
        return flow.Receipt(0, 0, payload=dict(at_worker.write(iter(batches))), takers=takers)

    def _work(self, scored_by: sink.ScoreSink, shard: dict[str, int]) -> Receipt:
        """What a worker does: read the entries of a shard as they are now, score, write."""
        skew = timedelta(seconds=self.random.choice((0, 0, -40_000, 7_000)))
        at_worker = replace(scored_by, store=None, clock=lambda: self.now() + skew)
        same = {name: version for name, version in shard.items() if self.archive.get(name) == version}
        other = {name: version for name, version in shard.items() if name not in same}
        batches = [rows(same), rows(other, reason="changed")]
        return Receipt(at_worker.write(batch for batch in batches if len(batch)))

    def _retire(self, store: ScoreStore, claim: Any, wanted: pa.Table, indexed: dict[str, int]) -> None:
        """`standing.absent` of an archive whose files are all there."""
        other = self._asked(store, lambda: standing.of_other_content(store, wanted, claim.bundle_id, "2GB").to_pylist())
        plain = Plain(self, store, claim.bundle_id)
        names = sorted(set(plain.latest) - indexed.keys() - plain.retired)
        if other is not None:
            absent = [row for row in other if row["entry_id"] not in indexed and row["status"] != RETIRED]
            if sorted(row["entry_id"] for row in absent) != names:
                raise Violation(f"retired are {absent} instead of {names}")
        gone = [
            {"entry_id": name, "subject_id": f"s-{name}", "at": 0, "status": "scored", "run_id": ""} for name in names
        ]
        standing.retire(store, claim, pa.Table.from_pylist(gone, schema=standing.OTHER))

    def _pending(self, store: ScoreStore, wanted: pa.Table, indexed: dict[str, int], bundle: str) -> list[str]:
        now = self.now()
        asked = self._asked(store, lambda: store.pending(wanted, bundle, now=now).column("entry_id").to_pylist())
        names = Plain(self, store, bundle).pending(indexed, now)
        if asked is not None and asked != names:
            raise Violation(f"pending are {asked} instead of {names}")
        return names

    def _asked(self, store: ScoreStore, ask: Callable[[], list[Any]]) -> list[Any] | None:
        """An answer of medray's own queries; None where they are not asked, or others have committed between them."""
        store._table.update_incremental()
        version = store.version
        answer = ask() if self.queries else None
        return answer if store.version == version else None

    def tidy(self) -> None:
        store = self.store()
        for _ in range(self.random.randint(1, 2)):
            if self.random.random() < 0.5:
                store.compact()
            else:
                store.vacuum(timedelta(0))

    def forget(self) -> None:
        name = self.random.choice("abcd")
        subject = f"s-{name}"
        self.archive.pop(name, None)
        before = set(self.storage.files)
        self.store().forget([subject])
        left = [path for path in before & set(self.storage.files) if self._holds(path, subject)]
        if left:
            raise Violation(f"{subject} is forgotten, and is in {left}")

    def _holds(self, path: str, subject: str) -> bool:
        if not path.startswith("store/bundle_id="):
            return False
        try:
            return subject in table_of(self.storage.files[path][0]).column("subject_id").to_pylist()
        except pa.ArrowInvalid:
            return True

    # -- what happens

    def happen(self) -> None:
        """One event: somebody goes on, is killed or stopped, comes new, or the archive changes."""
        self.time += timedelta(seconds=self.random.expovariate(1 / 20))
        chance = self.random.random()
        if chance < 0.02:
            self.time += timedelta(hours=self.random.choice((1, 2, 30)))
        elif chance < 0.06:
            name = self.random.choice("abcd")
            self.archive.pop(name, None)
            if self.random.random() < 0.8:
                self.archive[name] = self.random.randint(1, 3)
        awake = [actor for actor in self.actors if not actor.ended and actor.stopped_until <= self.steps]
        if not awake:
            self.steps += 10
            return
        actor = self.random.choice(awake)
        if chance > 0.985:
            actor.killed = True
            self._cut_short(actor)
            self.counts["killed"] += 1
        elif chance > 0.97:
            actor.stopped_until = self.steps + self.random.randint(5, 60)
            self.counts["stopped"] += 1
        self.go_on(actor)

    def _cut_short(self, actor: Actor) -> None:
        """A kill may leave half a file."""
        bundle = actor.name.removeprefix("driver ")
        claims = self.log.newest.counters.get(f"medray.score/{bundle}", 0)
        if claims and self.random.random() < 0.5:
            path = f"store/bundle_id={bundle}/part-claim{claims}-{self.random.getrandbits(64):x}.parquet"
            self.storage.files[path] = CUT, self.time

    def go_on(self, actor: Actor) -> None:
        self.steps += 1
        self.running = actor
        try:
            actor.resume()
        finally:
            self.running = None
        if actor.fault is not None:
            raise actor.fault

    steps: int = 0

    def run(self) -> Counter[str]:
        """Raises Violation, with the seed that repeats it."""
        try:
            self._run()
        except BaseException as error:
            error.add_note(f"simulated_store.World({self.seed}).run() repeats it")
            raise
        finally:
            for actor in self.actors:
                actor.killed = True
                while not actor.ended:
                    actor.resume()
        return self.counts

    def _run(self) -> None:
        coming = [
            ("together", "") if self.together else ("driver", self.random.choice(self.bundles))
            for _ in range(self.random.randint(2, 3))
        ]
        coming += [("tidy", "")] * self.random.randint(0, 2) + [("forget", "")] * (self.random.random() < 0.4)
        self.random.shuffle(coming)
        while coming or not all(actor.ended for actor in self.actors):
            if coming and (self.random.random() < 0.08 or all(actor.ended for actor in self.actors)):
                kind, bundle = coming.pop()
                drive = self.drive_together if self.together else self.drive
                work = {"tidy": self.tidy, "forget": self.forget}.get(kind, partial(drive, bundle))
                self.begin(f"{kind} {bundle}", work)
            self.happen()
            if self.steps > 5_000:
                raise Violation("a schedule without end")
        self.faulty, self.fault_rate = False, 0.0
        for bundle in self.bundles:
            self._check_end(bundle)

    @property
    def bundles(self) -> tuple[str, ...]:
        return BUNDLES if self.together else BUNDLES[: 1 + (self.seed % 4 == 0)]

    def _check_end(self, bundle: str) -> None:
        """After an undisturbed run the current rows are what a dict says, by medray's query and by the documented recipe."""
        self.begin(f"driver {bundle}", lambda: self.drive(bundle), timedelta(0))
        while not self.actors[-1].ended:
            self.go_on(self.actors[-1])
        store = self.store()
        if pending := self._pending(store, manifest_of(self.archive), self.archive, bundle):
            raise Violation(f"after an undisturbed run {pending} are pending")
        expected = {name: version / 8 for name, version in self.archive.items()}
        if self.queries:
            current = store.scores(bundle)
            values = dict(zip(current.column("entry_id").to_pylist(), current.column("value").to_pylist(), strict=True))
            if values != expected or len(current) != len(expected):
                raise Violation(f"current are {values}, and the archive says {expected}")
        latest = defaultdict[str, list[Row]](list)
        for row in (row for row, count in self.expected.items() if count and row[0] == bundle):
            kept = latest[row[1]]
            if not kept or row[6] >= kept[0][6]:
                latest[row[1]] = [row] if not kept or row[6] > kept[0][6] else [*kept, row]
        by_recipe = {name: of[0][4] for name, of in latest.items() if of[0][7] != RETIRED}
        if by_recipe != expected or any(len(of) > 1 for of in latest.values()):
            raise Violation(f"by the recipe current are {by_recipe}, and the archive says {expected}")


class Plain:
    """What the rows of a bundle say in the version that a store has read, without queries: `Readings.pending_rows` and
    `standing.of_other_content` once more, in the words of their docstrings."""

    def __init__(self, world: World, store: ScoreStore, bundle: str) -> None:
        self.attempts: dict[tuple[str, bytes], dict[datetime, str]] = defaultdict(dict)
        """Entry and fingerprint to the status of each attempt by its time."""
        table: Any = store._table
        for path, add in table.read.live.items():
            for row in world._rows(path, add):
                if row[0] == bundle:
                    self.attempts[row[1], row[8]][row[6]] = row[7]
        self.latest: dict[str, datetime] = {}
        for (entry, _), times in self.attempts.items():
            self.latest[entry] = max(self.latest.get(entry, BEGAN - timedelta(days=9_999)), *times)
        self.retired = {
            entry for (entry, _), times in self.attempts.items() if times.get(self.latest[entry]) == RETIRED
        }

    def pending(self, indexed: Mapping[str, int], now: datetime) -> list[str]:
        """Not there at this content, overtaken by another, or failed by circumstance (here: changed), and not too often in
        this night."""
        names: list[str] = []
        for entry, version in indexed.items():
            times = self.attempts.get((entry, content(version)), {})
            overtaken = not times or max(times) < self.latest[entry]
            tries = [at for at, status in times.items() if status == "failed" and abs(at - now) < readings.NIGHT]
            if overtaken or (times[max(times)] == "failed" and len(tries) < readings.TRIES):
                names.append(entry)
        return names


# --- in the place of the real ones ----------------------------------------------------------------------------


_CONNECTION: list[duckdb.DuckDBPyConnection] = []


@contextmanager
def _database(memory: str = "") -> Generator[duckdb.DuckDBPyConnection]:
    """One connection for all: opening one takes longer than a schedule."""
    if not _CONNECTION:
        settings = {"disabled_optimizers": "build_side_probe_side,join_order", "threads": "1"}
        _CONNECTION.append(duckdb.connect(config=settings))  # type: ignore[arg-type]
        atexit.register(_CONNECTION.clear)
    yield _CONNECTION[0]


class _Clock(datetime):
    world: World | None = None

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        assert cls.world is not None
        return cls.world.now()


@contextmanager
def simulated(world: World, patch: Callable[[Any, str, Any], None]) -> Generator[World]:
    """`patch` as pytest.MonkeyPatch.setattr: the real seams lead into this world."""
    _Clock.world = world
    system = fs.PyFileSystem(world.storage)
    patch(remote, "file_system", lambda uri: (system, uri.removeprefix("sim://")))
    numbers = random.Random(world.seed)
    patch(uuid, "uuid4", lambda: uuid.UUID(int=numbers.getrandbits(128)))
    for module, names in _SEAMS:
        for name, own in names.items():
            patch(module, name, own)
    for module in (log, sink, standing):
        patch(module, "now", world.now)
    yield world


_SEAMS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (delta, {"transact": transact, "dataset": dataset}),
    (pq, {"ParquetWriter": IpcWriter, "ParquetFile": IpcFile}),
    (scan, {"database": _database}),
    (readings, {"database": _database}),
    (audit, {"_write": lambda store, row: None, "read": lambda store: [{"bundle_id": each} for each in BUNDLES]}),
    (upkeep, {"datetime": _Clock, "LIKE": 2}),
    (sink, {"MERGE_AFTER": 2}),
)
