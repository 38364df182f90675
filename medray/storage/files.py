"""Files by URI, local or remote: list, read, write. One place for storage (pyarrow.fs underneath).

A URI is a local path or anything `pyarrow.fs.FileSystem.from_uri` knows (s3://, gs://, file://).
Credentials come from the environment, never from a run file.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from medray.errors import ArchiveError, MachineError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem


PIECE_FILES = 65_536
"""A listing is taken in pieces of about so many files."""


class File(NamedTuple):
    """One listed file: `uri`, `size` in bytes, `modified_ns` since the epoch (UTC)."""

    uri: str
    size: int
    modified_ns: int


def is_local(uri: str) -> bool:
    """False where a scheme and :// stand first; a colon alone is part of a file's name ("CT:1/slice.dcm")."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    return scheme is None or scheme[1] == "file"


def local_path(uri: str) -> Path:
    """The path of a local URI. Raises ValueError for a remote one."""
    if not is_local(uri):
        raise ValueError(f"{uri} is not a local path")
    return Path(unquote(urlsplit(uri).path)) if uri.startswith("file:") else Path(uri)


def file_system(uri: str) -> tuple[FileSystem, str]:
    """The file system of a remote URI, which waits for passing faults, and the path in it."""
    from medray.storage import remote

    return remote.file_system(uri)


def absolute(uri: str, base: Path | None = None) -> str:
    """A local path made absolute against `base` (default: the working directory); a remote URI as it is."""
    if not is_local(uri):
        return uri
    return os.path.realpath((base or Path.cwd()) / local_path(uri).expanduser())  # no error for a link to itself


def join(uri: str, *names: str) -> str:
    return "/".join([uri.rstrip("/"), *(name.strip("/") for name in names)])


def relative(uri: str, root: str) -> str:
    """`uri` below `root`, with `/` between names; the file's own name where `root` is that file."""
    if uri == root:
        return uri.rsplit("/", 1)[-1]
    prefix = root.rstrip("/") + "/"
    if not uri.startswith(prefix):
        raise ValueError(f"{uri} is not below {root}")
    return uri[len(prefix) :]


def exists(uri: str) -> bool:
    if is_local(uri):
        return local_path(uri).exists()
    from pyarrow import fs

    system, path = file_system(uri)
    return system.get_file_info(path).type != fs.FileType.NotFound


def is_away(root: str) -> bool:
    """Whether an archive that was there holds nothing now, or its storage does not answer: a mount that has gone."""
    try:
        return next(list_pieces(root), None) is None
    except (ArchiveError, OSError):
        return True


def modified_ns(uri: str) -> int | None:
    """When the file was modified, ns since the epoch (UTC); of remote storage in whole seconds. None where it is not there.

    Raises OSError where the storage does not say.
    """
    if is_local(uri):
        try:
            return os.stat(local_path(uri)).st_mtime_ns
        except FileNotFoundError:
            return None
    from pyarrow import fs

    system, path = file_system(uri)
    info = system.get_file_info(path)
    # S3 tells milliseconds in a listing, and seconds of one object
    return None if info.type == fs.FileType.NotFound else (info.mtime_ns or 0) // 10**9 * 10**9


def list_files(root: str) -> Iterator[File]:
    """The files of `list_pieces`, one by one."""
    for piece in list_pieces(root):
        yield from map(File, *(column.to_pylist() for column in piece.columns))


def list_pieces(root: str, linked: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Every regular file below `root` (or `root` itself) as batches of uri (string), size and modified_ns (int64).

    The order does not depend on the machine: the files of a folder by name, then its folders by name. Memory is bounded
    by the largest folder. Symbolic links to files are followed; links to folders are not, so a loop cannot hang a run:
    they join `linked`. What is there and cannot be read as a file (a link that leads nowhere or to itself, a pipe, a
    socket, a device, a folder that may not be opened, a name that is not UTF-8, with its bytes escaped) is listed with
    size and time 0, so that it is one entry that fails. Raises ArchiveError when `root` does not exist or cannot be
    listed, and when the storage fails below it (a mount that has gone): nothing is taken for gone then.
    """
    yield from _local_pieces(root, linked) if is_local(root) else _remote_pieces(root)


@dataclass(slots=True)
class _Found:
    """Columns of files."""

    paths: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)

    def add(self, path: str, size: int, modified_ns: int) -> None:
        self.paths.append(path)
        self.sizes.append(size)
        self.times.append(modified_ns)

    def take(self) -> pa.RecordBatch:
        """All of them; none are left."""
        import pyarrow as pa

        try:
            uri = pa.array(self.paths, pa.string())
        except UnicodeEncodeError:
            self._escape()
            uri = pa.array(self.paths, pa.string())
        columns = [uri, pa.array(self.sizes, pa.int64()), pa.array(self.times, pa.int64())]
        self.paths, self.sizes, self.times = [], [], []
        return pa.record_batch(columns, ["uri", "size", "modified_ns"])

    def _escape(self) -> None:
        """Names that are not UTF-8 to text that no file has."""
        for i, path in enumerate(self.paths):
            told = os.fsencode(path).decode("utf-8", "backslashreplace")
            if told != path:
                self.paths[i], self.sizes[i], self.times[i] = told, 0, 0


def _remote_pieces(root: str) -> Iterator[pa.RecordBatch]:
    """The files of `root`, then those below each of its folders: what storage lists at once is held in memory."""
    from pyarrow import fs

    system, path = file_system(root)
    info = system.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise ArchiveError("the archive does not exist", where=root, do="check the `archive` key of the run file")
    prefix = root[: len(root) - len(path)] if root.endswith(path) else f"{urlsplit(root).scheme}://"
    top = [info] if info.type == fs.FileType.File else system.get_file_info(fs.FileSelector(path))
    folders = sorted(each.path for each in top if each.type == fs.FileType.Directory)
    below = (system.get_file_info(fs.FileSelector(folder, recursive=True)) for folder in folders)
    found = _Found()
    for listed in chain([top], below):
        for each in sorted((f for f in listed if f.type == fs.FileType.File), key=lambda f: f.path):
            found.add(prefix + each.path, each.size, each.mtime_ns or 0)
        if len(found.paths) >= PIECE_FILES:
            yield found.take()
    if found.paths:
        yield found.take()


_REFUSED = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)
"""Errors of one place, that say nothing of the storage: those of a mount that fails are others."""


def _local_pieces(root: str, linked: list[str] | None) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    top = str(local_path(root))
    found = _Found()
    if os.path.isfile(top):
        facts = os.stat(top)
        found.add(top, facts.st_size, facts.st_mtime_ns)
    folders = [] if found.paths else [top]
    while folders:
        folder = folders.pop()
        below: list[str] = []
        large: list[pa.RecordBatch] = []
        try:
            with os.scandir(folder) as listing:
                while children := sorted(islice(listing, PIECE_FILES), key=attrgetter("name")):
                    if len(children) == PIECE_FILES and found.paths and not large:
                        yield found.take()  # the folder may be large: it is put into order by itself
                    _add(children, found, below, linked)
                    if len(children) == PIECE_FILES:
                        large.append(found.take())
        except FileNotFoundError:
            if folder != top:  # went while the archive was listed, as its files may
                continue
            raise ArchiveError(
                "the archive does not exist", where=folder, do="check the `archive` key of the run file"
            ) from None
        except OSError as error:
            if folder != top and error.errno in _REFUSED:
                found.add(folder, 0, 0)
                continue
            raise ArchiveError(
                "the folder cannot be listed", where=folder, found=error.strerror or str(error)
            ) from None
        if large:
            yield from pa.Table.from_batches([*large, found.take()]).sort_by("uri").to_batches(PIECE_FILES)
        elif len(found.paths) >= PIECE_FILES:
            yield found.take()
        folders.extend(sorted(below, reverse=True))
    if found.paths:
        yield found.take()


def _add(children: list[os.DirEntry[str]], found: _Found, below: list[str], linked: list[str] | None) -> None:
    """Files, and what is no file and no folder, to `found`, folders to `below`, links to folders to `linked`."""
    for child in children:
        try:
            if child.is_file():
                facts = child.stat()
                found.add(child.path, facts.st_size, facts.st_mtime_ns)
            elif child.is_dir(follow_symlinks=False):
                below.append(child.path)
            elif child.is_dir():
                if linked is not None:
                    linked.append(child.path)
            elif child.is_symlink() or os.path.lexists(child.path):  # not what went while the archive was listed
                found.add(child.path, 0, 0)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            found.add(child.path, 0, 0)


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises OSError (FileNotFoundError and its siblings), also for what is no regular file."""
    if is_local(uri):
        # a pipe without a writer would be waited for, and a device has no end
        with open(local_path(uri), "rb", opener=_without_waiting) as stream:
            return stream.read()
    system, path = file_system(uri)
    with system.open_input_stream(path) as stream:
        return stream.read()


def _without_waiting(path: str, flags: int) -> int:
    """For `open`: a handle of a regular file. Raises OSError for a folder, a pipe, a socket or a device."""
    handle = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return handle


def open_input(uri: str):
    """A seekable pyarrow NativeFile for reading. Raises OSError, also for what is no regular file."""
    if is_local(uri):
        import pyarrow as pa

        os.close(_without_waiting(str(local_path(uri)), os.O_RDONLY))
        return pa.OSFile(str(local_path(uri)), "rb")
    system, path = file_system(uri)
    return system.open_input_file(path)


def is_broken_parquet(error: Exception) -> bool:
    """Whether an error of pyarrow is of a Parquet file cut short or overwritten, not of the storage.

    Without its last bytes a file is invalid; with a footer or a page of garbage the error is an OSError without a number.
    """
    text = str(error)
    return not isinstance(error, OSError) or "thrift" in text or "orrupt" in text


@contextmanager
def whole(what: str, where: str, do: str) -> Iterator[None]:
    """A file of medray's own that is cut short or spoilt, met inside the block, as a MachineError: what, where, what to do."""
    import zlib

    import duckdb
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, duckdb.Error, zlib.error, OSError) as error:
        if isinstance(error, OSError) and not is_broken_parquet(error):
            raise
        raise MachineError(what, where=where, found=str(error).strip().splitlines()[0][:500], do=do) from error


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file: readers see the old content or the new, never a part. Local files are fsynced."""
    if not is_local(uri):
        from medray.storage.remote import patiently

        system, path = file_system(uri)

        def write() -> None:
            with system.open_output_stream(path) as stream:
                stream.write(data)

        patiently(write)  # the whole file once more: the same bytes
        return
    path = local_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(draft, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, path)
    sync_folder(path.parent)


@contextmanager
def new_file(uri: str) -> Iterator[NativeFile]:
    """A stream for a file under a name never used before. After the block it is whole, and fsynced where local.

    Nothing may point to the name before that. When the block raises, what was written is removed.
    """
    import pyarrow as pa

    if not is_local(uri):
        system, path = file_system(uri)
        stream = system.open_output_stream(path)
        try:
            yield stream
        except BaseException:  # Ctrl-C, too: half a file does not stay; it is raised again
            stream.close()
            system.delete_file(path)
            raise
        stream.close()
        return
    place = local_path(uri)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with pa.OSFile(str(place), "wb") as stream:
            yield stream
        sync_file(place)
    except BaseException:  # Ctrl-C, too: half a file does not stay; it is raised again
        place.unlink(missing_ok=True)
        raise
    sync_folder(place.parent)


def sync_file(path: Path) -> None:
    """Make the content of a file survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new name in `folder` survive a power cut."""
    sync_file(folder)


def make_folder(uri: str) -> None:
    if is_local(uri):
        local_path(uri).mkdir(parents=True, exist_ok=True)


def make_closed_folder(uri: str) -> None:
    """A folder for what is of patients: where it is new, no other user enters it, and the group as the umask has it."""
    if is_local(uri):
        place = local_path(uri)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(mode=0o770, exist_ok=True)


def own_folder(parent: Path, name: str) -> Path:
    """A folder below `parent`, a place of all users such as /tmp, that this user alone can enter: `name`, or `name.1` and
    so on where another user was there first. Raises MachineError."""
    for number in range(100):
        place = parent / (f"{name}.{number}" if number else name)
        with suppress(FileExistsError):
            place.mkdir(mode=0o700)
        facts = place.lstat()  # not what a link leads to
        if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid():
            if stat.S_IMODE(facts.st_mode) != 0o700:
                place.chmod(0o700)
            return place
    raise MachineError(
        "there is no folder that is this user's alone",
        where=str(parent / name),
        found="100 names that others hold",
        do="set TMPDIR to a folder of your own",
    )


def remove_file(uri: str) -> None:
    """Remove a file, if it is there."""
    if is_local(uri):
        local_path(uri).unlink(missing_ok=True)
        return
    if exists(uri):
        system, path = file_system(uri)
        system.delete_file(path)


def remove_tree(uri: str) -> None:
    """Remove a folder and all below it, if it is there."""
    if is_local(uri):
        import shutil

        if local_path(uri).exists():
            shutil.rmtree(local_path(uri))
        return
    system, path = file_system(uri)
    system.delete_dir_contents(path, missing_dir_ok=True)
