"""A score store whose log, storage and clocks are simulated, and actors that work on it in an order that a seed decides.

The protocol is medray's own: `ScoreLog`, `ScoreSink`, `upkeep`, `standing` and the queries of `Readings` run as they are.
Simulated are what they stand on: the Delta log (`Log`, which decides as delta-rs does: test_simulated_store.py holds the two
side by side), the storage (`Storage`, a file system of pyarrow's in memory, whose files are Arrow IPC instead of Parquet) and
time. An actor runs in a thread of its own, one at a time, and hands over before and after each call to log or storage. There
it may be killed, stopped for hours, or be answered wrongly.
"""

from __future__ import annotations

import atexit
import json
import random
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pyarrow.parquet as pq
from deltalake.exceptions import CommitFailedError
from pyarrow.fs import FileInfo, FileSelector, FileType
from store_rows import Receipt, content, rows
from store_rows import manifest as manifest_of

from medray.errors import MedrayError
from medray.scores import ScoreStore, audit, log, readings, scan, sink, standing, upkeep
from medray.scores.table import RETIRED, SCORES
from medray.storage import delta, remote

STORE = "sim://store"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
BUNDLES = ("b1", "b2")


CHANGES = ("write", "remove", "commit", "committed")
"""Points at which something is changed, or has just been."""


class Killed(BaseException):
    """What a killed process does not live to see: nothing it does from then on has an effect."""


class Violation(AssertionError):
    """A promise of the protocol that a schedule has broken."""


# --- actors ---------------------------------------------------------------------------------------------------


class Actor:
    """One process. It runs when `resume` is called, until it hands over or ends."""

    def __init__(self, name: str, work: Callable[[], None], skew: timedelta) -> None:
        self.name, self.work, self.skew = name, work, skew
        """`skew`: how far its clock is ahead."""
        self.killed = self.ended = False
        self.stopped_until = 0
        self.fault: BaseException | None = None
        self._mine, self._theirs = threading.Lock(), threading.Lock()
        self._mine.acquire()
        self._theirs.acquire()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_this_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        self._mine.acquire()
        try:
            if not self.killed:
                self.work()
        except Killed:
            pass
        except MedrayError:
            pass  # fenced, or a fault of the storage: the run ends, and says so
        except BaseException as error:  # the scheduler raises it
            self.fault = error
        self.ended = True
        self._theirs.release()

    def resume(self) -> None:
        self._mine.release()
        self._theirs.acquire()
        if self.ended:
            self._thread.join()

    def hand_over(self) -> None:
        if self.killed:
            raise Killed
        self._theirs.release()
        self._mine.acquire()
        if self.killed:
            raise Killed


# --- the storage ----------------------------------------------------------------------------------------------


class Stream(pa.PythonFile):
    """A file that is there when it is closed."""


class Written:
    """What a stream writes to."""

    def __init__(self, storage: Storage, path: str) -> None:
        self.storage, self.path, self.data, self.closed = storage, path, bytearray(), False

    def write(self, data: Any) -> int:
        self.data += memoryview(data)
        return len(memoryview(data))

    def tell(self) -> int:
        return len(self.data)

    def flush(self) -> None:
        pass

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.storage.put(self.path, bytes(self.data))


class Storage(fs.FileSystemHandler):
    """Files in memory: path to content and time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.files: dict[str, tuple[bytes, datetime]] = {}

    def put(self, path: str, data: bytes) -> None:
        actor = self.world.at("write")
        if actor is not None and self.world.random.random() < self.world.fault_rate:
            raise OSError("the storage is busy")
        self.files[path] = data, self.world.time

    # pyarrow's names from here on

    def get_type_name(self) -> str:
        return "simulated"

    def normalize_path(self, path: str) -> str:
        return path

    def _info(self, path: str) -> FileInfo:
        if path in self.files:
            data, modified = self.files[path]
            return FileInfo(path, FileType.File, size=len(data), mtime=modified)
        below = any(each.startswith(f"{path}/") for each in self.files)
        return FileInfo(path, FileType.Directory if below else FileType.NotFound)

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        self.world.at("look")
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        self.world.at("list")
        prefix = f"{selector.base_dir.rstrip('/')}/"
        below = [path for path in self.files if path.startswith(prefix)]
        if selector.recursive:
            return [self._info(path) for path in below]
        names = {prefix + path[len(prefix) :].partition("/")[0] for path in below}
        return [self._info(path) for path in sorted(names)]

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.world.at("read")
        if path not in self.files:
            raise FileNotFoundError(path)
        return pa.BufferReader(self.files[path][0])

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Mapping[str, str]) -> pa.NativeFile:
        return pa.PythonFile(Written(self, path), mode="w")

    def open_append_stream(self, path: str, metadata: Mapping[str, str]) -> pa.NativeFile:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        self.world.at("remove")
        if path not in self.files:
            raise FileNotFoundError(path)
        if path.removeprefix("store/") in self.world.log.newest.live:
            raise Violation(f"{path} is removed, and the newest version names it")
        del self.files[path]

    def create_dir(self, path: str, recursive: bool) -> None:
        pass

    def delete_dir(self, path: str) -> None:
        raise NotImplementedError

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        raise NotImplementedError

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def move(self, src: str, dest: str) -> None:
        raise NotImplementedError

    def copy_file(self, src: str, dest: str) -> None:
        raise NotImplementedError


class IpcWriter:
    """pyarrow.parquet.ParquetWriter, as medray uses it, in a tenth of the time."""

    def __init__(self, stream: pa.NativeFile, schema: pa.Schema, **options: Any) -> None:
        self._writer = pa.ipc.new_stream(stream, schema)
        self._open = True

    def __enter__(self) -> IpcWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write_batch(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._writer.close()


class IpcFile:
    """pyarrow.parquet.ParquetFile, as medray uses it."""

    def __init__(self, source: pa.NativeFile) -> None:
        self._table = table_of(source.read())
        self.schema_arrow = self._table.schema

    def iter_batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        yield from (self._table if columns is None else self._table.select(columns)).to_batches()


def table_of(data: bytes) -> pa.Table:
    """Raises ArrowInvalid, as Parquet does, for a file that a kill cut short."""
    if data.endswith(CUT):
        raise pa.ArrowInvalid(
            "Parquet magic bytes not found in footer. Either the file is corrupted or this is not one."
        )
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


CUT = b"cut short"

Row = tuple[str, str, str, str | None, float | None, str, datetime, str, bytes]
"""bundle, entry, subject, output, value, run, scored_at, status, fingerprint"""


# --- the log --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """What one version of the table is made of."""

    number: int
    live: dict[str, Any]
    """Path to its AddAction."""
    counters: dict[str, int]
    removed: dict[str, datetime]
    """Paths that commits have removed, and when."""
    changed: frozenset[str] = frozenset()
    """Counters that its commit set."""
    took: frozenset[str] = frozenset()
    """Paths that its commit removed."""
    deleted: frozenset[str] = frozenset()
    """Those of them by a change of data: not in the place of which the same rows stand in another file."""


class Log:
    """Versions, one after another. `commit` decides as delta-rs does."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.versions = [Version(0, {}, {}, {})]

    @property
    def newest(self) -> Version:
        return self.versions[-1]

    def commit(self, read: Version, actions: Sequence[Any], counters: Mapping[str, int], kind: str) -> Version:
        """Raises CommitFailedError where a commit since the version that was read counted the same, or removed data that is
        in that version. Two that put other files in the place of the same one are both taken."""
        added = {each.path: each for each in actions if hasattr(each, "stats")}
        taken = frozenset(each.path for each in actions if not hasattr(each, "stats"))
        for later in self.versions[read.number + 1 :]:
            if later.changed & counters.keys() or later.deleted & read.live.keys():
                raise CommitFailedError("a concurrent transaction")
        before = self.newest
        version = Version(
            before.number + 1,
            {path: add for path, add in before.live.items() if path not in taken} | added,
            before.counters | dict(counters),
            before.removed | dict.fromkeys(taken, self.world.time),
            frozenset(counters),
            taken,
            frozenset(each.path for each in actions if not hasattr(each, "stats") and each.data_change),
        )
        self.versions.append(version)
        self.world.check_commit(before, version, kind)
        return version


class Table:
    """What medray takes of a deltalake.DeltaTable: one version, as one process has read it."""

    table_uri = STORE

    def __init__(self, log: Log) -> None:
        self.log, self.read = log, log.newest

    def version(self) -> int:
        return self.read.number

    def update_incremental(self) -> None:
        self.log.world.at("read the log")
        self.read = self.log.newest

    def transaction_version(self, app: str) -> int | None:
        return self.read.counters.get(app)

    def schema(self) -> pa.Schema:
        return SCORES

    def get_add_actions(self, flatten: bool = False) -> pa.Table:
        live = self.read.live.values()
        bounds = [json.loads(each.stats)["maxValues"]["scored_at"] for each in live]
        return pa.table(
            {
                "path": pa.array([each.path for each in live], pa.string()),
                "size_bytes": pa.array([each.size for each in live], pa.int64()),
                "partition.bundle_id": pa.array([each.partition_values["bundle_id"] for each in live], pa.string()),
                "max.scored_at": pa.array(map(datetime.fromisoformat, bounds), pa.timestamp("us", "UTC")),
            }
        )

    def create_checkpoint(self) -> None:
        pass

    def vacuum(self, hours: int, *, dry_run: bool, enforce_retention_duration: bool, full: bool) -> list[str]:
        assert dry_run
        until = self.log.world.time - timedelta(hours=hours)
        removed = [path for path, at in self.read.removed.items() if at <= until]
        if not full:
            return removed
        written = self.log.world.storage.files.items()
        stray = [
            path.removeprefix("store/")
            for path, (_, modified) in written
            if path.startswith("store/bundle_id=") and modified <= until
        ]
        return [path for path in stray if path not in self.read.live and path not in self.read.removed] + removed


def transact(table: Table, actions: Any, schema: Any, *, facts: Any, counters: Any = None, **options: Any) -> None:
    """`delta.transact` over the simulated log. Its answer may get lost, before or after the commit has landed. The table stays
    as it was read."""
    world = table.log.world
    world.at("commit")
    lost = world.random.random() if world.faulty else 1.0
    if lost < world.fault_rate / 2:
        raise OSError("the request was lost")
    table.log.commit(table.read, actions, counters or {}, facts["medray.kind"])
    if lost < world.fault_rate:
        raise OSError("the answer was lost")
    world.at("committed")


def dataset(table: Table, uri: str) -> ds.Dataset:
    """`delta.dataset`: the rows of the version that the table has read."""
    pieces = [SCORES.empty_table()]
    for path, add in table.read.live.items():
        data = table.log.world.storage.files.get(f"store/{path}")
        if data is None:  # a vacuum between opening and reading: a reader opens again
            raise FileNotFoundError(path)
        of_file = table_of(data[0])
        bundle = pa.repeat(add.partition_values["bundle_id"], len(of_file))
        pieces.append(of_file.append_column("bundle_id", bundle).select(SCORES.names).cast(SCORES))
    return ds.dataset(pa.concat_tables(pieces))


# --- a schedule -----------------------------------------------------------------------------------------------


@dataclass
class World:
    """One schedule: an archive that changes, drivers, upkeep and forgetting, in the order that `seed` decides."""

    seed: int
    queries: bool = True
    """Whether medray's own queries are asked, and compared with `Plain`; else `Plain` answers, in a fiftieth of the time."""
    fault_rate: float = 0.04
    random: random.Random = field(init=False)
    time: datetime = BEGAN
    """True time; the clock of the storage."""
    actors: list[Actor] = field(default_factory=list)
    running: Actor | None = None
    faulty: bool = True
    counts: Counter[str] = field(default_factory=Counter)
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.storage, self.log = Storage(self), Log(self)
        self.archive = {name: 1 for name in "abcd"[: self.random.randint(2, 4)]}
        self.rows_of: dict[str, list[Row]] = {}
        self.latest: dict[tuple[str, str], datetime] = {}
        self.expected: Counter[Row] = Counter()
        self.forgotten_before: dict[str, int] = {}

    def at(self, point: str) -> Actor | None:
        """Called where log and storage are asked: the running actor hands over, and may not live on. Every other time where
        nothing is changed: a hand-over takes longer than what lies between two of them."""
        actor = self.running
        if actor is not None and not actor.is_this_thread:  # several files are looked at side by side
            return actor
        if actor is not None and (point in CHANGES or actor.killed or self.random.random() < 0.5):
            actor.hand_over()
        return actor

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
            ("driver", self.random.choice(BUNDLES[: 1 + (self.seed % 4 == 0)]))
            for _ in range(self.random.randint(2, 3))
        ]
        coming += [("tidy", "")] * self.random.randint(0, 2) + [("forget", "")] * (self.random.random() < 0.4)
        self.random.shuffle(coming)
        while coming or not all(actor.ended for actor in self.actors):
            if coming and (self.random.random() < 0.08 or all(actor.ended for actor in self.actors)):
                kind, bundle = coming.pop()
                work = {"driver": lambda b=bundle: self.drive(b), "tidy": self.tidy, "forget": self.forget}[kind]
                self.begin(f"{kind} {bundle}", work)
            self.happen()
            if self.steps > 5_000:
                raise Violation("a schedule without end")
        self.faulty, self.fault_rate = False, 0.0
        for bundle in BUNDLES[: 1 + (self.seed % 4 == 0)]:
            self._check_end(bundle)

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
