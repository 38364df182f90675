"""A score store as it is at one moment, copied to another place: for a backup, a move, or to put a backup back.

Runs may score into the store meanwhile. What is copied is one version of the table: the files of scores that it names,
artefacts, the audit table, and the log up to it. The file without which a log is none comes last, so a copy that was cut
short is no store. Claims are in the log, and go along.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from medray.errors import MachineError, StoreError
from medray.scores import artefacts, audit
from medray.scores.log import ScoreLog
from medray.storage import delta, files

if TYPE_CHECKING:
    from deltalake import DeltaTable

AT_ONCE = 8
"""Files that are copied at the same time."""
PIECE = 2**24
"""Bytes read at once of each."""
_OF_VERSION = re.compile(r"_delta_log/(\d{20})\.(json|checkpoint\.parquet)")


class Copied(NamedTuple):
    """What was copied."""

    version: int
    """Of the table of scores."""
    files: int
    bytes: int


def copy(store: ScoreLog, to: str, readers: files.Readers = "owner") -> Copied:
    """Copy a store to the new or empty place `to`, a URI; earlier versions of the table cannot be read there.

    Raises StoreError where something is at `to`; MachineError where a file cannot be read or written, or is another at its end
    than at its beginning.
    """
    from deltalake import DeltaTable

    refuse_place(store.uri, to)
    with delta.storing(to, "the copy cannot be written"):
        files.make_closed_folder(to, readers)
        live = [each.path for each in store.live_files()]
        version = store.version
        beside = [path for path in artefacts.listed(store.uri).column("path").to_pylist() if not _is_draft(path)]
        done = [_copy_all(store.uri, to, [*live, *beside])]
        runs = files.join(store.uri, audit.FOLDER)
        if delta.is_table(runs):
            table = DeltaTable(delta.location(runs))
            done.append(_copy_table(runs, files.join(to, audit.FOLDER), table))
        done.append(_copy_log(store.uri, to, version))
    copied = ScoreLog.open(to)
    if copied.version != version or [each.path for each in copied.live_files()] != live:
        raise MachineError("the copy is not what was copied", where=to, do="remove it, and copy once more")
    if version:
        with delta.storing(to, "the log of the copy cannot be summed up"):
            copied.checkpoint()
    counts, sizes = zip(*done, strict=True)
    return Copied(version, sum(counts), sum(sizes))


def refuse_place(uri: str, to: str) -> None:
    """Raises StoreError where a store cannot be copied from `uri` to `to`: something is there, or one lies in the other."""
    if files.is_below(to, uri) or files.is_below(uri, to):
        raise StoreError(
            "a copy of a store lies neither in the store nor around it", where=to, found=f"the store {uri}"
        )
    if files.exists(to) and next(iter(files.list_files(to)), None) is not None:
        raise StoreError(
            "this place holds something, so nothing is copied there",
            where=to,
            expected="an empty or a new folder",
            do="give another folder; a copy that was cut short is removed first",
        )


def _is_draft(path: str) -> bool:
    return path.rsplit("/", 1)[-1].startswith(".")


def _copy_table(uri: str, to: str, table: DeltaTable) -> tuple[int, int]:
    """(files, bytes) of one version of a Delta table that keeps its files beside its log."""
    names = [path.rsplit("/", 1)[-1] for path in table.file_uris()]
    counts, sizes = zip(_copy_all(uri, to, names), _copy_log(uri, to, table.version()), strict=True)
    return sum(counts), sum(sizes)


def _copy_log(uri: str, to: str, version: int) -> tuple[int, int]:
    """(files, bytes) of a log up to a version; what it needs to be one comes last."""
    listed = [files.relative(file.uri, uri) for file in files.list_files(files.join(uri, "_delta_log"))]
    *commits, last = ordered(listed, version)
    counts, sizes = zip(_copy_all(uri, to, commits), _copy_all(uri, to, [last]), strict=True)
    return sum(counts), sum(sizes)


def ordered(listed: Iterable[str], version: int) -> list[str]:
    """Files of a log up to `version`, in an order in which nothing but all of them is a log: its commits, the newest first, down to
    the first one; or, where the first ones are no longer there, the newest checkpoint after them.

    Raises StoreError where commits are missing.
    """
    commits, checkpoints = dict[int, str](), dict[int, str]()
    for path in listed:
        match = _OF_VERSION.fullmatch(path)
        if match is not None and int(match[1]) <= version:
            (commits if match[2] == "json" else checkpoints)[int(match[1])] = path
    newest_first = [commits[number] for number in sorted(commits, reverse=True)]
    if len(commits) == version + 1:
        return newest_first
    newest = max(checkpoints, default=-1)
    if newest < 0 or any(number not in commits for number in range(newest + 1, version + 1)):
        raise StoreError("the log of this table has a gap", where="_delta_log", do="put it back from a backup")
    return [path for path in newest_first if path is not commits.get(0)] + [checkpoints[newest]]


def _copy_all(uri: str, to: str, paths: Sequence[str]) -> tuple[int, int]:
    """(files, bytes) copied, by several threads."""

    def one(path: str) -> int:
        return copy_file(files.join(uri, path), files.join(to, path))

    with ThreadPoolExecutor(AT_ONCE) as threads:
        sizes = list(threads.map(one, paths))
    return len(sizes), sum(sizes)


def copy_file(source: str, to: str) -> int:
    """Its bytes. Raises OSError; MachineError where not all of it was read."""
    with files.open_input(source) as stream, files.new_file(to) as written:
        size = stream.size()
        copied = 0
        for piece in _pieces(stream):
            written.write(piece)
            copied += len(piece)
    if copied != size or files.sizes([to]) != [size]:
        raise MachineError(
            "a file was not copied whole", where=source, found=f"{copied:,} bytes", expected=f"{size:,} bytes"
        )
    return size


def _pieces(stream: pa.NativeFile) -> Iterator[bytes]:
    while piece := stream.read(PIECE):
        yield piece
