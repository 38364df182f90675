"""The listing of an archive, against that of the last index: which files came, went or changed. Columns, no objects."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.entries import hashed
from medray.archive.manifest import LISTING
from medray.storage import files
from medray.storage.archives import listed
from medray.storage.queries import query
from medray.storage.row_files import AT, RowFiles, RowWriter, new_rows
from medray.storage.walk import COLUMNS, Unlisted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FILES = list(COLUMNS)
PIECES_WAITING = 2
"""Pieces of a listing that wait to be written, at most."""


class Listed(NamedTuple):
    """A listing that has been written."""

    listing: RowFiles
    """Files of the archive, then lists."""
    first_list: int
    """How many come before the lists."""
    suspect: tuple[tuple[int, int], ...]
    """Ranges of files that may be of other content although size and time are as they were."""
    looked_into: pa.Array
    """URIs of the zip and tar files among whose members they are."""


class Watched(Protocol):
    """What a run says of how its archive is watched: `config.runs.ArchiveRun`."""

    @property
    def full_check_days(self) -> float: ...

    @property
    def watch_changes(self) -> bool: ...


def list_archive(
    folder: str,
    root: str,
    lists: list[files.File],
    linked: list[str],
    unlisted: list[Unlisted],
    old: RowFiles,
    run: Watched,
) -> Listed:
    """Files of the archive `root`, then `lists`, written to `folder`. Links to folders, which are not followed, join
    `linked`, folders that cannot be listed `unlisted`. What is as in the listing `old` need not be looked into again."""
    apart = pa.array([file.uri for file in lists], pa.string())
    suspect: list[tuple[int, int]] = []
    looked_into: dict[str, None] = {}
    with new_rows(folder, "files", LISTING) as writer, _ListingWriter(writer) as writing:
        earlier = (lambda: old.scan(FILES)) if old.places else None
        for piece, doubtful in listed(root, linked, earlier, run.full_check_days, unlisted):
            if lists:
                piece = piece.filter(pc.invert(pc.is_in(piece.column("uri"), apart)))
            if doubtful and len(piece):
                looked_into[files.file_holding(piece.column("uri")[0].as_py())] = None
                suspect.append((writing.rows, writing.rows + len(piece)))
            writing.add(piece if run.watch_changes else piece.select(FILES[:3]))
        before = writing.rows
        columns = [apart, *(pa.array([file[i] for file in lists], pa.int64()) for i in (1, 2))]
        writing.add(pa.record_batch(columns, FILES[:3]))
    return Listed(
        RowFiles(folder, (), LISTING).added(writer.file), before, tuple(suspect), pa.array(looked_into, pa.string())
    )


class _ListingWriter:
    """Writes pieces of a listing, keyed, in a thread of its own while the next is listed: at most PIECES_WAITING wait. What it
    raises is raised by the next `add`, or at the end of the block."""

    def __init__(self, writer: RowWriter) -> None:
        self._writer, self.rows = writer, 0
        self._thread = ThreadPoolExecutor(1, "medray-listing")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> _ListingWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(cancel_futures=kind is not None)
        while self._waiting and kind is None:
            self._waiting.popleft().result()

    def add(self, piece: pa.RecordBatch) -> None:
        self.rows += len(piece)
        self._waiting.append(self._thread.submit(self._write, piece))
        while len(self._waiting) > PIECES_WAITING:
            self._waiting.popleft().result()

    def _write(self, piece: pa.RecordBatch) -> None:
        self._writer.write(_keyed(piece))


def _keyed(piece: pa.RecordBatch) -> pa.RecordBatch:
    keys = hashed(piece.column("uri"))
    columns = dict(zip(piece.schema.names, piece.columns, strict=True))
    columns |= {"key_hi": pa.array(keys[:, 0]), "key_lo": pa.array(keys[:, 1])}
    columns.setdefault("changed_ns", pa.nulls(len(piece), pa.int64()))  # where storage has no such time
    return pa.RecordBatch.from_arrays([columns[name] for name in LISTING.names], schema=LISTING)


_DIFFERENT = f"""
select now.{AT} as now, old.{AT} as old from now full join old using (key_hi, key_lo)
where now.{AT} is null or old.{AT} is null or now.size <> old.size or now.modified_ns <> old.modified_ns
   or now.changed_ns <> old.changed_ns
"""


def compare(db: DuckDBPyConnection, old: RowFiles, now: RowFiles) -> tuple[np.ndarray, np.ndarray]:
    """(files of `now`,) bool: new, of another size or time, or changed since; (files of `old`,) bool: gone."""
    fresh, vanished = np.zeros(now.places, bool), np.zeros(old.places, bool)
    if old.places == 0:
        fresh[:] = True
        return fresh, vanished
    columns = ["key_hi", "key_lo", "size", "modified_ns", "changed_ns"]
    with query(db, _DIFFERENT, now=now.scan(columns, at=True), old=old.scan(columns, at=True)) as rows:
        for batch in rows:
            now_rows, old_rows = batch.column("now"), batch.column("old")
            fresh[now_rows.drop_null().to_numpy()] = True
            vanished[old_rows.filter(now_rows.is_null()).to_numpy()] = True
    return fresh, vanished


def named(listing: RowFiles, uris: pa.Array) -> np.ndarray:
    """(files,) bool: those with one of these URIs."""
    mask = np.zeros(listing.places, bool)
    if len(uris):
        for batch in listing.scan(["uri"], at=True):
            mask[batch.column(AT).filter(pc.is_in(batch.column("uri"), uris)).to_numpy()] = True
    return mask
