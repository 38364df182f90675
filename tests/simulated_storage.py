"""What a simulated score store stands on: processes that a scheduler lets run, a storage in memory, and a log that decides as
delta-rs does.

`Storage` is a file system of pyarrow's, whose files are Arrow IPC instead of Parquet. An actor runs in a greenlet of its own,
which hands over to the scheduler at calls to log or storage: a switch takes a microsecond, one between threads fifty. There it
may be killed, stopped for hours, or be answered wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import greenlet
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as fs
from deltalake.exceptions import CommitFailedError
from pyarrow.fs import FileInfo, FileSelector, FileType

from medray.errors import MedrayError
from medray.scores.table import SCORES

if TYPE_CHECKING:
    from simulated_store import World

STORE = "sim://store"


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
        self._scheduler = greenlet.getcurrent()
        self._process = greenlet.greenlet(self._run)

    @property
    def is_running_here(self) -> bool:
        """Not where one of its threads asks."""
        return greenlet.getcurrent() is self._process

    def _run(self) -> None:
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

    def resume(self) -> None:
        self._process.switch()

    def hand_over(self) -> None:
        if not self.killed:
            self._scheduler.switch()
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
        self.world.hand_over()
        if self.world.random.random() < self.world.fault_rate:
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
        self.world.hand_over()
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        self.world.hand_over()
        prefix = f"{selector.base_dir.rstrip('/')}/"
        below = [path for path in self.files if path.startswith(prefix)]
        if selector.recursive:
            return [self._info(path) for path in below]
        names = {prefix + path[len(prefix) :].partition("/")[0] for path in below}
        return [self._info(path) for path in sorted(names)]

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.world.hand_over()
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
        self.world.hand_over()
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
        self.log.world.hand_over()
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
    world.hand_over()
    lost = world.random.random() if world.faulty else 1.0
    if lost < world.fault_rate / 2:
        raise OSError("the request was lost")
    table.log.commit(table.read, actions, counters or {}, facts["medray.kind"])
    if lost < world.fault_rate:
        raise OSError("the answer was lost")
    world.hand_over()


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
