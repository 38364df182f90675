"""Listings of all files below a folder, in an order that does not depend on the machine."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from medray.errors import ArchiveAway, ArchiveError, ArchiveGone
from medray.storage.uris import file_system, is_local, local_path

if TYPE_CHECKING:
    import pyarrow as pa


PIECE_FILES = 65_536
"""A listing is taken in pieces of about so many files."""


COLUMNS = ("uri", "size", "modified_ns", "changed_ns")
"""Columns of a listing. The last is null where storage has no such time: when the file was written to, renamed, or given
other rights or another modification time, which no program can set."""


class File(NamedTuple):
    """One listed file: `uri`, `size` in bytes, `modified_ns` since the epoch (UTC)."""

    uri: str
    size: int
    modified_ns: int


class FileStamp(NamedTuple):
    """What differs when other content stands in a local file's place: also where its size and time were kept, its inode or
    the time at which that was changed, which nobody can set, is another."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int


class Unlisted(NamedTuple):
    """A folder of which nobody knows what it holds now."""

    folder: str
    away: bool
    """Its storage fails; else it may not be opened."""


def stamp(facts: os.stat_result) -> FileStamp:
    return FileStamp(facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)


def list_files(root: str, unlisted: list[Unlisted] | None = None) -> Iterator[File]:
    """The files of `list_pieces`, one by one."""
    for piece in list_pieces(root, unlisted=unlisted):
        yield from map(File, *(piece.column(name).to_pylist() for name in File._fields))


def list_pieces(
    root: str, linked: list[str] | None = None, unlisted: list[Unlisted] | None = None
) -> Iterator[pa.RecordBatch]:
    """Every regular file below `root` (or `root` itself) as batches of COLUMNS: uri (string), the others int64.

    The order does not depend on the machine: the files of a folder by name, then its folders by name. Memory is bounded
    by the largest folder. Symbolic links to files are followed; links to folders are not, so a loop cannot hang a run:
    they join `linked`. What is there and cannot be read as a file (a link that leads nowhere or to itself, a pipe, a
    socket, a device, a folder that may not be opened, a name that is not UTF-8, with its bytes escaped) is listed with
    size and time 0, so that it is one entry that fails. Folders of which nobody knows what they hold now, since they may
    not be opened or their storage fails (a mount that has gone), join `unlisted`. Raises ArchiveError when `root` does not
    exist or may not be opened, and ArchiveAway when its storage fails: nothing is taken for gone then.
    """
    yield from _local_pieces(root, linked, unlisted) if is_local(root) else _remote_pieces(root)


@dataclass(slots=True)
class _Columns:
    """Columns of files."""

    paths: list[str] = field(default_factory=list[str])
    sizes: list[int] = field(default_factory=list[int])
    times: list[int] = field(default_factory=list[int])
    changes: list[int | None] = field(default_factory=list[int | None])

    def add(self, path: str, size: int, modified_ns: int, changed_ns: int | None = None) -> None:
        self.paths.append(path)
        self.sizes.append(size)
        self.times.append(modified_ns)
        self.changes.append(changed_ns)

    def add_all(self, found: list[tuple[str, os.stat_result]]) -> None:
        """Files with their facts: as `add`, for many at once."""
        self.paths += [path for path, _ in found]
        self.sizes += [facts.st_size for _, facts in found]
        self.times += [facts.st_mtime_ns for _, facts in found]
        self.changes += [facts.st_ctime_ns for _, facts in found]

    def take(self) -> pa.RecordBatch:
        """All of them; none are left."""
        import pyarrow as pa

        try:
            uri = pa.array(self.paths, pa.string())
        except UnicodeEncodeError:
            self._escape()
            uri = pa.array(self.paths, pa.string())
        columns = [uri, *(pa.array(each, pa.int64()) for each in (self.sizes, self.times, self.changes))]
        self.paths, self.sizes, self.times, self.changes = [], [], [], []
        return pa.record_batch(columns, list(COLUMNS))

    def _escape(self) -> None:
        """Names that are not UTF-8 to text that no file has."""
        for i, path in enumerate(self.paths):
            escaped = os.fsencode(path).decode("utf-8", "backslashreplace")
            if escaped != path:
                self.paths[i], self.sizes[i], self.times[i], self.changes[i] = escaped, 0, 0, None


def _remote_pieces(root: str) -> Iterator[pa.RecordBatch]:
    """The files of `root`, then those below each of its folders: what storage lists at once is held in memory."""
    try:
        yield from _listed_remotely(root)
    except OSError as error:
        raise ArchiveAway("the archive cannot be listed", where=root, found=type(error).__name__, do=AWAY) from error


def _listed_remotely(root: str) -> Iterator[pa.RecordBatch]:
    from pyarrow import fs

    system, path = file_system(root)
    info = system.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise ArchiveGone("the archive does not exist", where=root, do="check the `archive` key of the run file")
    prefix = root[: len(root) - len(path)] if root.endswith(path) else f"{urlsplit(root).scheme}://"
    top = [info] if info.type == fs.FileType.File else system.get_file_info(fs.FileSelector(path))
    folders = sorted(each.path for each in top if each.type == fs.FileType.Directory)
    below = (
        # a folder that went while the archive was listed: its files have gone
        system.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=True))
        for folder in folders
    )
    columns = _Columns()
    for listed in chain([top], below):
        for each in sorted((f for f in listed if f.type == fs.FileType.File), key=lambda f: f.path):
            columns.add(prefix + each.path, each.size, each.mtime_ns or 0)
        if len(columns.paths) >= PIECE_FILES:
            yield columns.take()
    if columns.paths:
        yield columns.take()


_REFUSED = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)
"""Errors of one place, that say nothing of the storage: those of a mount that fails are others."""


AWAY = "see whether the storage is there; the next run goes on"


def _local_pieces(root: str, linked: list[str] | None, unlisted: list[Unlisted] | None) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    top = str(local_path(root))
    columns = _Columns()
    if os.path.isfile(top):
        facts = os.stat(top)
        columns.add(top, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    folders = [] if columns.paths else [top]
    while folders:
        folder = folders.pop()
        below: list[str] = []
        large: list[pa.RecordBatch] = []
        try:
            with os.scandir(folder) as listing:
                while children := sorted(islice(listing, PIECE_FILES), key=attrgetter("name")):
                    if len(children) == PIECE_FILES and columns.paths and not large:
                        yield columns.take()  # the folder may be large: it is put into order by itself
                    _add(children, columns, below, linked)
                    if len(children) == PIECE_FILES:
                        large.append(columns.take())
        except FileNotFoundError:
            if folder != top:  # went while the archive was listed, as its files may
                continue
            raise ArchiveGone(
                "the archive does not exist", where=folder, do="check the `archive` key of the run file"
            ) from None
        except OSError as error:
            place = folder if error.errno in _REFUSED else _highest_away(folder, top)
            found = error.strerror or str(error)
            if place == top and error.errno in _REFUSED:
                raise ArchiveError("the folder cannot be listed", where=folder, found=found) from None
            if place == top:
                raise ArchiveAway("the archive cannot be listed", where=folder, found=found, do=AWAY) from None
            columns.add(place, 0, 0)
            if unlisted is not None:
                is_away = error.errno not in _REFUSED
                below_place = (each for each in folders if each.startswith(f"{place}/"))
                unlisted += [Unlisted(each, is_away) for each in (folder, *below_place)]
            folders = [each for each in folders if not each.startswith(f"{place}/")]
            continue
        if large:
            yield from pa.Table.from_batches([*large, columns.take()]).sort_by("uri").to_batches(PIECE_FILES)
        elif len(columns.paths) >= PIECE_FILES:
            yield columns.take()
        folders.extend(sorted(below, reverse=True))
    if columns.paths:
        yield columns.take()


def _highest_away(folder: str, top: str) -> str:
    """The topmost folder above `folder`, or that itself, that cannot be listed now: where its storage is mounted. `top` where
    that is at or above it."""
    place = folder
    while place != top:
        above = os.path.dirname(place)
        if _can_be_listed(above):
            return place
        place = above
    return top


def _can_be_listed(folder: str) -> bool:
    try:
        with os.scandir(folder) as listing:
            next(listing, None)
    except OSError:
        return False
    return True


def _add(children: list[os.DirEntry[str]], columns: _Columns, below: list[str], linked: list[str] | None) -> None:
    """Files, and what is no file and no folder, to `columns`, folders to `below`, links to folders to `linked`."""
    try:
        found = [(child.path, child.stat()) for child in children if child.is_file()]
        folders = [] if len(found) == len(children) else [c.path for c in children if c.is_dir(follow_symlinks=False)]
    except OSError:  # one of them went, or cannot be looked at
        found, folders = [], []
    if len(found) + len(folders) == len(children):
        columns.add_all(found)
        below += folders
        return
    for child in children:
        _add_one(child, columns, below, linked)


def _add_one(child: os.DirEntry[str], columns: _Columns, below: list[str], linked: list[str] | None) -> None:
    try:
        if child.is_file():
            facts = child.stat()
            columns.add(child.path, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        elif child.is_dir(follow_symlinks=False):
            below.append(child.path)
        elif child.is_dir():
            if linked is not None:
                linked.append(child.path)
        elif child.is_symlink() or os.path.lexists(child.path):  # not what went while the archive was listed
            columns.add(child.path, 0, 0)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in _REFUSED and not _can_be_listed(os.path.dirname(child.path)):
            raise
        columns.add(child.path, 0, 0)  # that one alone
