"""Upkeep of the score table: merge small files, remove those that nobody needs, forget a subject.

Files are rewritten by one path for all: read, keep some rows, write a new file, and put it in the place of the old
ones in one commit, under the claim of upkeep. delta-rs has commands for this, and they are not used: its compaction
rounds the newest time of a file down to milliseconds, so that readers skip rows, and writes the least and the greatest
subject of each file into the log; its delete writes the condition there, which would name the subject for ever.
"""

from __future__ import annotations

import math
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from medray.errors import MachineError
from medray.scores import artefacts, audit
from medray.scores.audit import recorded
from medray.scores.file import ScoreFile, added, write_file
from medray.scores.log import Claims, LiveFile, Replaced, ScoreLog, bundle_of
from medray.scores.table import IN_FILE, UPKEEP, Claim
from medray.storage import delta, files
from medray.storage.files import File

if TYPE_CHECKING:
    from deltalake.transaction import RemoveAction

KEPT = timedelta(days=7)
"""How long a file stays that a commit has replaced: readers of an earlier version may still be at it."""
LIVE = timedelta(hours=1)
"""A file younger than this may belong to a run that has not committed it yet."""
FILE_BYTES = 2**27
LIKE = 32
"""So many files of like size are merged while a run scores; sizes are like within a factor of 8."""
_ROUNDS = 5


class Compacted(TypedDict):
    """What a compaction did."""

    files_merged: int
    files_made: int


class Vacuumed(TypedDict):
    """What a vacuum removed."""

    files_removed: int
    bytes_freed: int


class Forgotten(TypedDict):
    """What was removed of subjects; 0 where nothing was."""

    rows: int
    """Those that readers saw."""
    files: int
    unreadable: int
    """Those of the files that a kill had cut short: they may have held anyone."""


# --- compact --------------------------------------------------------------------------------------------------


def compact(store: ScoreLog) -> Compacted:
    """Merge small files of each bundle; see ScoreStore.compact."""
    with delta.storing(store.uri):
        groups = small_groups(store.live_files())
    done: Compacted = {"files_merged": 0, "files_made": 0}
    if not groups:
        return done
    claim = store.claim_upkeep()
    with recorded(store.uri, "compact", claim.run_id) as counts:
        for group in groups:
            with suppress(Replaced):  # by a run that scores meanwhile, and merges its own
                done["files_made"] += _replace(store, claim, group, "compact") is not None
                done["files_merged"] += len(group)
        with delta.storing(store.uri):
            store.checkpoint()
        counts["files"] = done["files_merged"]
    return done


def merge(store: ScoreLog, claim: Claim) -> int:
    """Merge files of like size of the claim's bundle; see ScoreStore.merge."""
    with delta.storing(store.uri):
        live = [file for file in store.live_files() if file.bundle_id == claim.bundle_id]
    tiers: dict[int, list[LiveFile]] = defaultdict(list)
    for file in live:
        if file.size < FILE_BYTES // 2:
            tiers[file.size.bit_length() // 3].append(file)
    merged = 0
    for like in tiers.values():
        if len(like) >= LIKE:
            with suppress(Replaced):  # by a compaction at work
                _replace(store, claim, like, "merge")
                merged += len(like)
    return merged


def small_groups(live: Iterable[LiveFile]) -> list[list[LiveFile]]:
    """Files of less than half the aim, of one bundle, as many as make the aim; in order. A file alone stays as it is."""
    by_bundle: dict[str, list[list[LiveFile]]] = defaultdict(lambda: [[]])
    for each in live:
        if each.size < FILE_BYTES // 2:
            groups = by_bundle[each.bundle_id]
            if sum(file.size for file in groups[-1]) >= FILE_BYTES:
                groups.append([])
            groups[-1].append(each)
    return [group for groups in by_bundle.values() for group in groups if len(group) > 1]


def _replace(
    store: ScoreLog, claim: Claim, old: list[LiveFile], what: str, without: Collection[str] = ()
) -> ScoreFile | None:
    """Put one new file in the place of `old`, without the rows of these subjects, in one commit; None: no row is left."""
    bundle_id = old[0].bundle_id
    new = write_file(store.uri, bundle_id, claim, _rows(store.uri, old, without), modified=datetime.now(UTC))
    if new is not None:
        store.refuse_absent([new])
    data_change = bool(without)
    made = [] if new is None else [added(new, bundle_id, new_rows=data_change)]
    actions = [*made, *(_removed(each, data_change) for each in old)]
    store.commit(claim, actions, {"medray.kind": what}, [each.path for each in old])
    return new


def _removed(each: LiveFile, data_change: bool) -> RemoveAction:
    from deltalake.transaction import RemoveAction

    now = int(datetime.now(UTC).timestamp() * 1000)
    return RemoveAction(each.path, data_change, now, each.size, {"bundle_id": each.bundle_id})


def _rows(uri: str, old: Iterable[LiveFile], without: Collection[str]) -> Iterator[pa.RecordBatch]:
    """The rows of these files in their order, as IN_FILE, but those of these subjects."""
    import pyarrow.parquet as pq

    hidden = pa.array(sorted(without), pa.string())
    for each in old:
        with delta.storing(uri, "a file of scores cannot be read"):
            source = files.open_input(files.join(uri, each.path))
        with (
            source,
            files.whole("a file of scores cannot be read", files.join(uri, each.path), "put it back from a backup"),
        ):
            for batch in pq.ParquetFile(source).iter_batches():
                columns = [
                    batch.column(f.name).cast(f.type) if f.name in batch.schema.names else pa.nulls(len(batch), f.type)
                    for f in IN_FILE  # of a file that an earlier version wrote: what it lacks is null
                ]
                rows = pa.RecordBatch.from_arrays(columns, schema=IN_FILE)
                yield rows.filter(pc.invert(pc.is_in(rows.column("subject_id"), hidden))) if without else rows


# --- vacuum ---------------------------------------------------------------------------------------------------


def vacuum(store: ScoreLog, older_than: timedelta) -> Vacuumed:
    """Remove files that nobody needs; see ScoreStore.vacuum."""
    run_id = store.new_run_id()
    with recorded(store.uri, "vacuum", run_id) as counts, delta.storing(store.uri):
        old, stray = _unneeded(store, older_than)
        if old or len(stray):
            claims, removed = _fence(store, run_id, old, stray), store.removed_files()
            old, stray = _unneeded(store, older_than)  # once more: what was committed up to the fence stays
            old = [f for f in old if (path := files.relative(f.uri, store.uri)) in removed or claims.void(path)]
            stray = stray.filter(pa.array(map(claims.void, stray.column("path").to_pylist()), pa.bool_()))
        _remove(file.uri for file in old)
        artefacts.remove(store.uri, stray.column("path").to_pylist())
        counts["files"] = len(old) + len(stray)
    freed = sum(f.size for f in old) + sum(stray.column("size").to_pylist())
    return {"files_removed": len(old) + len(stray), "bytes_freed": freed}


def _unneeded(store: ScoreLog, older_than: timedelta) -> tuple[list[files.File], pa.Table]:
    """Files of scores and artefacts (path, size) that the newest version does not name, and nobody has written to for LIVE."""
    written = _written(store.uri)
    if not written and not files.exists(files.join(store.uri, artefacts.FOLDER)):
        return [], pa.table({"path": pa.array([], pa.string()), "size": pa.array([], pa.int64())})
    moment = _storage_time(store.uri)
    stray = _artefacts_without_row(store, moment - max(older_than, LIVE))
    unnamed = set(store.unnamed_files(math.ceil(older_than / timedelta(hours=1))))
    until = (moment - LIVE).timestamp() * 1e9
    old = [
        file
        for file in written
        if file.uri.endswith(".parquet") and file.modified_ns < until and files.relative(file.uri, store.uri) in unnamed
    ]
    return old, stray


def _storage_time(uri: str) -> datetime:
    """This moment by the clock that the storage stamps files with, UTC: this machine's may be another."""
    probe = files.join(uri, f"_medray/clock-{uuid.uuid4()}")
    files.write_bytes(probe, b"")
    modified_ns = files.modified_ns(probe)
    files.remove_file(probe)
    return datetime.fromtimestamp((modified_ns or 0) / 1e9, UTC)


def _fence(store: ScoreLog, run_id: str, old: Iterable[files.File], stray: pa.Table) -> Claims:
    """Void the claims by which one of these files could be committed after it is removed: of a run or an upkeep that was
    stopped for so long, or whose machine was. The newest claims are then these."""
    removed = store.removed_files()
    paths = [path for file in old if (path := files.relative(file.uri, store.uri)) not in removed]
    paths += stray.column("path").to_pylist()
    bundles = sorted({bundle_of(path) for path in paths})
    claims = Claims({bundle_id: store.claims(bundle_id) for bundle_id in bundles})
    committable = sorted({bundle_of(path) for path in paths if not claims.void(path)} - {UPKEEP})
    fences = {bundle_id: store.fence(bundle_id, run_id) for bundle_id in [UPKEEP, *committable]}
    return Claims({**claims.newest, **fences}, fenced=committable)


def _artefacts_without_row(store: ScoreLog, until: datetime) -> pa.Table:
    """(path, size) of artefacts that no row of the newest version names, in folders where nothing was written after `until`:
    a worker may be at a shard for long."""
    listed = artefacts.listed(store.uri)  # before the log is read: what is committed from then on is not among them
    if len(listed) == 0:
        return listed.select(["path", "size"])
    columns = {"path": ds.field("artefact")}
    named = (
        store.ask("select distinct path from scores where path is not null", columns) if store.has_artefacts else None
    )
    sql = f"""select path, size from (from listed qualify max(modified_ns) over (partition by folder)
                                                          < {int(until.timestamp() * 1e9):d})
              anti join named using (path) order by path"""
    return store.ask(sql, listed=listed, named=listed.slice(0, 0).select(["path"]) if named is None else named)


def parquet_files(uri: str) -> list[files.File]:
    """Every file of scores below the store, named by its log or not."""
    return [file for file in _written(uri) if file.uri.endswith(".parquet")]


def _remove(uris: Iterable[str]) -> None:
    """Remove files for good: their names do not come back after a power cut."""
    folders = set[Path]()
    for uri in uris:
        files.remove_file(uri)
        if files.is_local(uri):
            folders.add(files.local_path(uri).parent)
    for folder in folders:
        files.sync_folder(folder)


# --- forget ---------------------------------------------------------------------------------------------------


def forget(store: ScoreLog, subjects: Collection[str]) -> Forgotten:
    """Remove subjects from every file below the store; see ScoreStore.forget."""
    names = set(subjects)
    done: Forgotten = {"rows": 0, "files": 0, "unreadable": 0}
    with delta.storing(store.uri):
        known = any(_holds(file.uri, names) != 0 for file in _written(store.uri))
        if not known and not artefacts.of_subjects(store.uri, names):
            return done
    claim = store.claim_upkeep()
    with recorded(store.uri, "forget", claim.run_id) as counts:
        claims = store.fence_all(claim.run_id)
        for _ in range(_ROUNDS):
            done["rows"] += _rewrite_without(store, claim, names)
            removed, unreadable = _remove_dead(store, claims, names)
            if not removed:
                break
            done["files"] += removed
            done["unreadable"] += unreadable
        else:
            raise MachineError(
                "files with this subject keep coming",
                where=store.uri,
                found="a scoring run at work",
                do="stop it, then run this again",
            )
        done["files"] += _remove_artefacts(store, claims, names)
        counts |= {"rows": done["rows"], "files": done["files"]}
    return done


def _rewrite_without(store: ScoreLog, claim: Claim, names: Collection[str]) -> int:
    """How many rows of these subjects were in files of the newest version: no longer there."""
    rows = 0
    for each in store.live_files():
        count = _holds(files.join(store.uri, each.path), names)
        if count is None:
            raise MachineError(
                "a file of scores cannot be read, so nobody knows whether the subject is in it: not all is forgotten",
                where=files.join(store.uri, each.path),
                expected="a whole Parquet file",
                do="put it back from a backup, and run this again",
            )
        if count:
            with suppress(Replaced):  # then its rows are in another file: the next round finds them
                _replace(store, claim, [each], "forget", names)
                rows += count
    return rows


def _remove_dead(store: ScoreLog, claims: Claims, names: Collection[str]) -> tuple[int, int]:
    """Remove the files that hold these subjects, none of which the newest version names: replaced, or never committed.
    Returns how many, and how many of them could not be read.

    One that cannot be read was cut short by a kill, and may hold anything. Of files that were never committed, those of
    claims that are void: a run that has begun since commits its own, whatever is known here.
    """
    written = _written(store.uri)
    live, replaced = {each.path for each in store.live_files()}, store.removed_files()
    paths = {file.uri: files.relative(file.uri, store.uri) for file in written}
    dead = [
        uri
        for uri, path in paths.items()
        if path not in live and (path in replaced or not path.startswith("bundle_id=") or claims.void(path))
    ]
    counts = {uri: count for uri in dead if (count := _holds(uri, names)) != 0}
    for uri in counts:
        if not _is_own(files.relative(uri, store.uri)):
            raise _not_looked_into(
                uri, "a file that is not of the store's own, which holds the subject or cannot be read"
            )
    with delta.storing(store.uri):
        _remove(counts)
    return len(counts), sum(count is None for count in counts.values())


def _remove_artefacts(store: ScoreLog, claims: Claims, names: Collection[str]) -> int:
    """Remove the artefacts of these subjects: their rows named them, or a run was killed before its rows did. Returns how many.

    What a row names by now, or may name later, is of a run that began meanwhile.
    """
    with delta.storing(store.uri):
        paths = set(filter(claims.void, artefacts.of_subjects(store.uri, names)))
        if paths and store.has_artefacts:
            theirs = ds.field("subject_id").isin(pa.array(sorted(names), pa.string()))
            rows = store.query("from scores", {"path": ds.field("artefact")}, None, where=theirs)
            paths -= set(rows.column("path").to_pylist())
        artefacts.remove(store.uri, paths)
    return len(paths)


def _written(uri: str) -> list[files.File]:
    """Every file that may hold rows: all in the folders of scores, whatever their names (of runs at work, ended and killed), and
    Parquet files in any other folder, such as a temporary one. Raises MachineError for a folder that is a link: what lies
    there is not listed."""
    linked: list[str] = []
    listed = [
        File(*row)
        for piece in files.list_pieces(uri, linked)
        for row in zip(*(piece.column(name).to_pylist() for name in File._fields), strict=True)
    ]
    for folder in linked:
        raise _not_looked_into(folder, "a link to another folder")
    own = ("_delta_log/", f"{audit.FOLDER}/", f"{artefacts.FOLDER}/")
    return [
        file
        for file in listed
        if (name := files.relative(file.uri, uri)).startswith("bundle_id=")
        or (".parquet" in name.rpartition("/")[2] and not name.startswith(own))
        or (file.modified_ns == 0 and files.is_local(uri))  # what may not be opened, or leads nowhere
    ]


def _is_own(name: str) -> bool:
    """Whether a file below a store, by its path there, is medray's or of a writer that was killed: not what a person keeps there."""
    return name.startswith("bundle_id=") or any(part.startswith((".", "_")) for part in name.split("/"))


def _not_looked_into(place: str, why: str) -> MachineError:
    return MachineError(
        "not all of the store could be looked into, so nobody knows whether the subject is in it: nothing is called forgotten",
        where=place,
        found=why,
        do="let this user read what is there, or move it out of the store, and run this again",
    )


def _holds(uri: str, names: Collection[str]) -> int | None:
    """How many rows of a file are of these subjects; None where it cannot be read."""
    import pyarrow.parquet as pq

    rows, wanted = 0, pa.array(sorted(names), pa.string())
    try:
        with files.open_input(uri) as source:
            parquet = pq.ParquetFile(source)
            if "subject_id" not in parquet.schema_arrow.names:
                return None if "/bundle_id=" in uri else 0
            for batch in parquet.iter_batches(columns=["subject_id"]):
                rows += pc.sum(pc.is_in(batch.column(0).cast(pa.string()), wanted)).as_py() or 0
    except FileNotFoundError:
        if files.is_local(uri) and files.local_path(uri).is_symlink():
            raise _not_looked_into(uri, "a link that leads nowhere") from None
        return 0  # removed by a vacuum meanwhile
    except (pa.ArrowInvalid, OSError) as error:
        if files.is_broken_parquet(error, uri):
            return None
        raise _not_looked_into(
            uri, error.strerror or str(error) if isinstance(error, OSError) else str(error)
        ) from None
    return rows
