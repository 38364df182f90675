"""Files by URI, local or remote: list, read, write. One place for storage (pyarrow.fs underneath).

Other packages import all of it from here; `uris.py` has what concerns names alone, `walk.py` makes listings. A URI is a
local path or anything `pyarrow.fs.FileSystem.from_uri` knows (s3://, gs://, file://).
Credentials come from the environment, never from a run file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from medray.errors import ArchiveAway, ArchiveError, MachineError, SampleError
from medray.storage import modes
from medray.storage.archives import archive_files as archive_files
from medray.storage.archives import archive_pieces as archive_pieces
from medray.storage.modes import Readers as Readers
from medray.storage.uris import INSIDE as INSIDE
from medray.storage.uris import INSIDE_PATTERN as INSIDE_PATTERN
from medray.storage.uris import PLACES as PLACES
from medray.storage.uris import absolute as absolute
from medray.storage.uris import below as below
from medray.storage.uris import container_of as container_of
from medray.storage.uris import file_holding as file_holding
from medray.storage.uris import is_below as is_below
from medray.storage.uris import is_container as is_container
from medray.storage.uris import is_dicomweb as is_dicomweb
from medray.storage.uris import is_local as is_local
from medray.storage.uris import join as join
from medray.storage.uris import local_path as local_path
from medray.storage.uris import place_names as place_names
from medray.storage.uris import place_of as place_of
from medray.storage.uris import places as places
from medray.storage.uris import relative as relative
from medray.storage.uris import top_folder as top_folder
from medray.storage.walk import File as File
from medray.storage.walk import FileStamp as FileStamp
from medray.storage.walk import Unlisted as Unlisted
from medray.storage.walk import list_files as list_files
from medray.storage.walk import list_pieces as list_pieces
from medray.storage.walk import stamp as stamp

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileSystem


def file_system(uri: str) -> tuple[FileSystem, str]:
    """The file system of a URI that is not local, which waits for passing faults, and the path in it."""
    from medray.storage import systems

    return systems.file_system(uri)


def holds_data(uri: str) -> bool:
    """False for a zip or tar that could be read to its end, whose members are files of their own, and for what a listing
    remembers of a DICOMweb server. True for any other file.

    Raises SampleError for a zip or tar that could not be read, for a member that is not read, and for instances of a server that
    are counted and not listed; OSError.
    """
    if is_dicomweb(uri):
        if "/studies/" in uri and "/instances/" not in uri:
            raise SampleError("missing_file", "the server counts more instances of a study than it lists")
        return "/instances/" in uri
    if not is_container(uri) and container_of(uri) is None:
        return True
    from medray.storage import containers

    return containers.holds_data(uri)


def exists(uri: str) -> bool:
    if is_local(uri):
        return local_path(uri).exists()
    from pyarrow import fs

    system, path = file_system(uri)
    return system.get_file_info(path).type != fs.FileType.NotFound


def sizes(uris: Sequence[str]) -> list[int | None]:
    """Bytes of each file, None where it is not there; of remote storage several are asked for at once. Raises OSError."""
    if len(uris) < 2 or is_local(uris[0]):
        return [_size(uri) for uri in uris]
    with ThreadPoolExecutor(min(AT_ONCE, len(uris)), "medray-sizes") as pool:
        return list(pool.map(_size, uris))


AT_ONCE = 16
"""Requests for facts of remote files that are under way together."""


def _size(uri: str) -> int | None:
    from medray.storage.containers import size_and_time

    with suppress(FileNotFoundError):
        return size_and_time(uri)[0]
    return None


def is_away(root: str) -> bool:
    """Whether an archive that was there, or one of its places, holds nothing now, or its storage does not answer: a mount that
    has gone."""
    every = places(root)
    if len(every) > 1:
        return any(map(is_away, every))
    try:
        if is_dicomweb(root):
            from medray.storage import dicomweb

            return next(dicomweb.studies(dicomweb.place_of(root)), None) is None
        return next(archive_pieces(root), None) is None
    except (ArchiveError, ArchiveAway, OSError):
        return True


def modified_ns(uri: str) -> int | None:
    """When the file was modified, ns since the epoch (UTC); of remote storage in whole seconds. None where it is not there, and
    where nobody knows, as on a DICOMweb server.

    A file inside a zip or tar has the time of that. Raises OSError where the storage does not say.
    """
    if is_dicomweb(uri):
        return None
    uri = file_holding(uri)
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


def stamp_of(uri: str) -> FileStamp | None:
    """What tells whether a local file, or the local zip or tar that holds it, is still as it was; None of a remote one. Raises
    OSError."""
    holder = file_holding(uri)
    return stamp(os.stat(local_path(holder))) if is_local(holder) else None


def stamp_if_there(uri: str) -> FileStamp | None:
    """`stamp_of`, and None of what is not there or cannot be looked at: reading says so."""
    with suppress(OSError):
        return stamp_of(uri)
    return None


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises OSError (FileNotFoundError and its siblings), also for what is no regular file, and SampleError
    for a member of a zip or tar that is not read."""
    if is_local(uri):
        # a pipe without a writer would be waited for, and a device has no end
        with open(local_path(uri), "rb", opener=open_regular) as stream:
            return stream.read()
    system, path = file_system(uri)
    with system.open_input_stream(
        path, compression=None
    ) as stream:  # else pyarrow unpacks by the name: .gz, .bz2, .zst
        return stream.read()


def open_regular(path: str, flags: int) -> int:
    """For `open`: a handle of a regular file. Raises OSError for a folder, a pipe, a socket or a device."""
    handle = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return handle


def open_input(uri: str) -> pa.NativeFile:
    """A seekable pyarrow NativeFile for reading. Raises OSError, also for what is no regular file."""
    if is_local(uri):
        import pyarrow as pa

        os.close(open_regular(str(local_path(uri)), os.O_RDONLY))
        return pa.OSFile(str(local_path(uri)), "rb")
    system, path = file_system(uri)
    return system.open_input_file(path)


def is_broken_parquet(error: Exception, uri: str) -> bool:
    """Whether an error of pyarrow is of a Parquet file cut short or overwritten, not of the storage that `uri` is on.

    Without its last bytes a file is invalid; with a footer or a page of garbage the error is an OSError without a number. A
    local disk's errors have one; those of remote storage do not, so there the words decide.
    """
    if not isinstance(error, OSError):
        return True
    if is_local(file_holding(uri)):
        return error.errno is None
    return any(word in str(error) for word in ("thrift", "orrupt", "flatbuffers"))


@contextmanager
def whole(what: str, where: str, do: str) -> Generator[None]:
    """A file of medray's own that is cut short or spoilt, met inside the block, as a MachineError: what, where, what to do."""
    import zlib

    import duckdb
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowInvalid, duckdb.Error, zlib.error, OSError) as error:
        if isinstance(error, OSError) and not is_broken_parquet(error, where):
            raise
        raise MachineError(what, where=where, found=str(error).strip().splitlines()[0][:500], do=do) from error


def write_bytes(uri: str, data: bytes, readers: Readers | None = None) -> None:
    """Write a whole file: readers see the old content or the new, never a part. Local files are fsynced.

    It is as open as its folder; with `readers`, for these alone: a file in a folder that is not medray's.
    """
    if not is_local(uri):
        from medray.storage.remote import patiently

        system, path = file_system(uri)

        def write() -> None:
            with system.open_output_stream(path, compression=None) as stream:  # else it packs by the name
                stream.write(data)

        patiently(write)  # the whole file once more: the same bytes
        return
    path = local_path(uri)
    modes.make_below(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with modes.opened_new(draft, None if readers is None else modes.FOLDER_OF[readers] & 0o660) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, path)
    sync_folder(path.parent)


@contextmanager
def new_file(uri: str, mode: int | None = None) -> Generator[pa.NativeFile]:
    """A stream for a file under a name never used before. After the block it is whole, and fsynced where local.

    Nothing may point to the name before that. When the block raises, what was written is removed. It is as open as its
    folder, or has this `mode`.
    """
    import pyarrow as pa

    if not is_local(uri):
        system, path = file_system(uri)
        stream = system.open_output_stream(path, compression=None)
        try:
            yield stream
        except BaseException:  # Ctrl-C, too: half a file does not stay; it is raised again
            with suppress(OSError):  # what went wrong first is raised, and nothing points to what is left of the file
                stream.close()
            with suppress(OSError):
                system.delete_file(path)
            raise
        stream.close()
        return
    path = local_path(uri)
    modes.make_below(path.parent)
    try:
        modes.opened_new(path, mode).close()
        with pa.OSFile(str(path), "wb") as stream:
            yield stream
        sync_file(path)
    except BaseException:  # Ctrl-C, too: half a file does not stay; it is raised again
        path.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


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
    """A folder as open as the one that it lies in, unless it is there."""
    if is_local(uri):
        modes.make_below(local_path(uri))


def make_closed_folder(uri: str, readers: Readers | None = None) -> None:
    """A folder for what is of patients, unless it is there: `readers` alone enter it, with none named those of the folder that
    it lies in, but never users of no group of it."""
    if is_local(uri) and readers is not None:
        modes.make_closed(local_path(uri), readers)
    elif is_local(uri):
        modes.make_below(local_path(uri), closed=True)


def file_mode_like(uri: str) -> int:
    """Mode of a file outside of a folder that is as open as what lies in it; of remote storage: its user's alone."""
    return modes.file_in(local_path(uri)) if is_local(uri) else 0o600


def own_folder(parent: Path, name: str) -> Path:
    """A folder below `parent`, a place of all users such as /tmp, that this user alone can enter: `name`, or `name.1` and
    so on where another user was there first. Raises MachineError."""
    for number in range(100):
        folder = parent / (f"{name}.{number}" if number else name)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        facts = folder.lstat()  # not what a link leads to
        if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid():
            if stat.S_IMODE(facts.st_mode) != 0o700:
                folder.chmod(0o700)
            return folder
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
