"""The audit table: who ran what on a score store, when, with which code, and how it ended.

It is a Delta table of its own at `<store>/_medray/runs`, one row when a run begins and one when it ends: the folder
moves with the store, and a leading underscore hides it from Delta's readers and from vacuum. Facts in the commits of
the score table would be lost for a run that commits nothing, and reading them back costs one file per commit.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypedDict, cast

import pyarrow as pa

import medray
from medray.errors import Fenced, MachineError
from medray.storage import delta, files, sent

FOLDER = "_medray/runs"
MANY_FILES = 64
NIGHTLY = "nightly"
"""`what` of a whole night; each of its bundles has a row of its own, too."""
STATES = ("running", "done", "stopped", "fenced", "failed")

RUNS = pa.schema(
    [
        pa.field("run_id", pa.string(), False, {"comment": "as in the score table"}),
        pa.field("what", pa.string(), False, {"comment": "score, nightly, compact, vacuum, forget"}),
        pa.field("state", pa.string(), False, {"comment": "running (or killed), done, stopped, fenced, failed"}),
        pa.field("who", pa.string(), False, {"comment": "user@host of the operating system"}),
        pa.field("began", pa.timestamp("us", "UTC"), False),
        pa.field("ended", pa.timestamp("us", "UTC"), True, {"comment": "null while running, or killed"}),
        pa.field("seconds", pa.float64()),
        pa.field("bundle_id", pa.string()),
        pa.field("version", pa.string(), False, {"comment": "of medray"}),
        pa.field("code", pa.string(), True, {"comment": "commit of medray's sources where known, +changes"}),
        pa.field("entries", pa.int64(), True, {"comment": "of the archive when the run began"}),
        pa.field("pending", pa.int64()),
        pa.field("scored", pa.int64()),
        pa.field("failed", pa.int64()),
        pa.field("reasons", pa.string(), True, {"comment": "JSON object: reason code to number of failed samples"}),
        pa.field("rows", pa.int64(), True, {"comment": "rows removed, by forget"}),
        pa.field("files", pa.int64(), True, {"comment": "files merged or removed, by upkeep"}),
        pa.field("error", pa.string(), True, {"comment": "type of the error that ended it"}),
        pa.field("not_eligible", pa.int64(), True, {"comment": "entries that the model was not asked about"}),
        pa.field("archive", pa.string(), True, {"comment": "URI of the archive that was scored; several: a line each"}),
        pa.field(
            "backend", pa.string(), True, {"comment": "what computed the scores, and why where another was asked for"}
        ),
        pa.field("key", pa.string(), True, {"comment": "tells which key made the pseudonyms, and nothing of it"}),
    ]
)

AUDIT = (
    "state", "who", "seconds", "version", "code", "entries", "pending", "scored", "failed", "not_eligible", "reasons", "error",
    "backend",
)  # fmt: skip
"""What the audit table adds to the history that the log of scores has."""


@dataclass(frozen=True)
class BegunRun:
    """What the audit table says of a run that has begun."""

    run_id: str
    what: str
    bundle_id: str | None
    who: str
    began: datetime
    version: str
    code: str | None
    archive: str | None = None
    backend: str | None = None
    key: str | None = None
    """`archive.pseudonyms.key_mark` of the key that made its pseudonyms."""


class RunCounts(TypedDict, total=False):
    """What a run did, as far as it applies to it; see RUNS."""

    entries: int
    pending: int
    scored: int
    failed: int
    not_eligible: int
    reasons: Mapping[str, int]
    rows: int
    files: int
    error: str


class RunOutcome(RunCounts, total=False):
    """And how it ended, where the run itself says so."""

    state: str


class RunRow(TypedDict):
    """A row of RUNS, JSON-ready."""

    run_id: str
    what: str
    state: str
    who: str
    began: str
    """ISO 8601, UTC."""
    ended: str | None
    seconds: float | None
    bundle_id: str | None
    version: str
    code: str | None
    entries: int | None
    pending: int | None
    scored: int | None
    failed: int | None
    reasons: dict[str, int]
    rows: int | None
    files: int | None
    error: str | None
    not_eligible: int | None
    archive: str | None
    backend: str | None
    """What computed the scores: "onnxruntime 1.32.0"; null of runs before this was kept."""
    key: str | None
    """As of BegunRun; null of runs before this was kept."""


def begin(
    store: str,
    what: str,
    run_id: str,
    bundle_id: str | None,
    archive: str | None = None,
    backend: str | None = None,
    key: str | None = None,
) -> BegunRun:
    """Note that a run begins. Raises MachineError where the storage cannot be written."""
    run = BegunRun(run_id, what, bundle_id, who(), datetime.now(UTC), medray.__version__, code(), archive, backend, key)
    _write(store, vars(run) | {"state": "running"})
    return run


def end(store: str, run: BegunRun, state: str, counts: RunCounts) -> None:
    """Note how it ended. Raises ValueError for a state that is none; MachineError where the storage cannot be written."""
    if state not in STATES[1:]:
        raise ValueError(f"state {state!r}: expected one of {STATES[1:]}")
    ended = datetime.now(UTC)
    facts = {"state": state, "ended": ended, "seconds": (ended - run.began).total_seconds()}
    reasons = counts.get("reasons")
    _write(store, vars(run) | {**counts} | {"reasons": json.dumps(dict(reasons)) if reasons else None} | facts)


@contextmanager
def recorded(
    store: str,
    what: str,
    run_id: str,
    bundle_id: str | None = None,
    archive: str | None = None,
    backend: str | None = None,
    key: str | None = None,
) -> Generator[RunOutcome]:
    """Note that a run begins and, after the block, how it ended; what the block puts into the dict is its counts."""
    run, outcome = begin(store, what, run_id, bundle_id, archive, backend, key), RunOutcome()
    try:
        yield outcome
    except BaseException as error:
        with suppress(MachineError):  # on a full disk this cannot be noted either; the error itself tells more
            end(store, run, state_of(error), outcome | {"error": type(error).__name__})
        raise
    end(store, run, outcome.get("state", "done"), outcome)


def state_of(error: BaseException) -> str:
    """What `end_run` says of a run that this ended."""
    return "fenced" if isinstance(error, Fenced) else "stopped" if isinstance(error, KeyboardInterrupt) else "failed"


def read(store: str) -> list[RunRow]:
    """One row per run, its latest; newest first. Raises MachineError where the table cannot be read."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    uri = files.join(store, FOLDER)
    if not delta.is_table(uri):
        return []
    latest: dict[str, dict[str, Any]] = {}
    try:
        table = DeltaTable(delta.location(uri))
        rows = table.to_pyarrow_table().sort_by([("began", "descending")]).to_pylist()  # pyright: ignore[reportUnknownMemberType]
    except (DeltaError, pa.ArrowInvalid, OSError) as error:
        raise MachineError(
            "the audit table of the store cannot be read",
            where=uri,
            found=str(error).strip().splitlines()[0],
            do="put it back from a backup, or move the folder away: a new one is begun, and the scores are not touched",
        ) from None
    for row in rows:
        if row["run_id"] not in latest or row["state"] != "running":
            latest[row["run_id"]] = row
    for row in latest.values():
        row["reasons"] = json.loads(row["reasons"] or "{}")
        for name in ("not_eligible", "archive", "backend", "key"):
            row.setdefault(name, None)  # a table of an earlier version has no such column yet
        for name in ("began", "ended"):
            row[name] = row[name] and row[name].isoformat(timespec="milliseconds")
    return cast("list[RunRow]", list(latest.values()))


def merge(store: str) -> None:
    """Merge the files of the audit table where there are many: each run leaves two, and each run reads them all.

    Raises MachineError where the storage cannot be written.
    """
    from deltalake import DeltaTable

    uri = files.join(store, FOLDER)
    with delta.storing(uri, "the audit table could not be merged"):
        if not delta.is_table(uri):
            return
        table = DeltaTable(delta.location(uri))
        if len(table.file_uris()) < MANY_FILES:
            return
        before = table.version()
        table.optimize.compact()
        table.vacuum(retention_hours=7 * 24, dry_run=False)
        table.update_incremental()
        delta.sync_log(uri, before, table.version())


def remove_before(store: str, until: datetime) -> int:
    """Remove runs that began before `until` from the table; returns how many. Not scoring runs that may have written rows: by these
    is known which archive the rows of the store are of.

    The files of the removed rows go with the first call a week later. Raises MachineError where the storage cannot be written.
    """
    from deltalake import DeltaTable

    old = [row for row in read(store) if datetime.fromisoformat(row["began"]) < until and not _may_have_rows(row)]
    uri = files.join(store, FOLDER)
    with delta.storing(uri, "rows of the audit table could not be removed"):
        if not delta.is_table(uri):
            return 0
        table = DeltaTable(delta.location(uri))
        before = table.version()
        for i in range(0, len(old), _REMOVED_AT_ONCE):
            ids = ", ".join(f"'{row['run_id']}'" for row in old[i : i + _REMOVED_AT_ONCE])
            table.delete(f"run_id in ({ids})")
        table.vacuum(retention_hours=7 * 24, dry_run=False)
        table.update_incremental()
        delta.sync_log(uri, before, table.version())
    return len(old)


_REMOVED_AT_ONCE = 500


def _may_have_rows(row: RunRow) -> bool:
    counts = (row["scored"], row["failed"], row["not_eligible"])
    return row["what"] == "score" and (row["state"] != "done" or any(counts))


def _write(store: str, row: Mapping[str, object]) -> None:
    """One row in a file of its own. Raises MachineError where the storage cannot be written."""
    import pyarrow.parquet as pq
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction

    uri, path = files.join(store, FOLDER), f"part-{uuid.uuid4()}.parquet"
    table = pa.Table.from_pylist([dict(row)], schema=RUNS)
    nulls = {name: table.column(name).null_count for name in RUNS.names}
    with delta.storing(uri, "the run could not be noted in the audit table"):
        if not delta.is_table(uri):
            files.make_folder(uri)
            delta.make(uri, RUNS, name="medray runs", description="One row when a run begins, one when it ends.")
        with files.new_file(files.join(uri, path)) as stream:
            pq.write_table(table, stream, store_schema=False)
            size = stream.tell()
        stats = json.dumps({"numRecords": 1, "minValues": {}, "maxValues": {}, "nullCount": nulls})
        log = DeltaTable(delta.location(uri))
        before = log.version()
        if missing := [column for column in RUNS if column.name not in pa.schema(log.schema()).names]:
            delta.add_columns(log, missing)
        now = int(datetime.now(UTC).timestamp() * 1000)
        delta.transact(log, [AddAction(path, size, {}, now, True, stats)], RUNS, facts={"medray.run_id": row["run_id"]})
        log.update_incremental()
        delta.sync_log(uri, before, log.version())


def who() -> str:
    """user@host of the operating system."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        user = str(os.getuid())
    return f"{user}@{platform.node()}"


@cache
def code() -> str | None:
    """The commit of the sources that run, with "+changes" where they differ from it; None where they are no checkout."""
    if (folder := sent.here()) is not None:
        return (folder / sent.CODE).read_text() if (folder / sent.CODE).exists() else None
    root = Path(medray.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = [
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", "medray"])
        ]
    except (OSError, subprocess.CalledProcessError):  # no git here, or it does not trust the folder
        return None
    return commit + ("+changes" if changes else "")
