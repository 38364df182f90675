"""Files by URI, local or remote: list, read, write. One place for storage (pyarrow.fs underneath).

Other packages import all of it from here; `uris.py` has what concerns names alone, `walk.py` makes listings. A URI is a
local path or anything `pyarrow.fs.FileSystem.from_uri` knows (s3://, gs://, file://).
Credentials come from the environment, never from a run file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from medray.errors import ArchiveAway, ArchiveError, MachineError, SampleError
from medray.storage.archives import archive_files as archive_files
from medray.storage.archives import archive_pieces as archive_pieces
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


def is_broken_parquet(error: Exception) -> bool:
    """Whether an error of pyarrow is of a Parquet file cut short or overwritten, not of the storage.

    Without its last bytes a file is invalid; with a footer or a page of garbage the error is an OSError without a number.
    """
    text = str(error)
    return not isinstance(error, OSError) or "thrift" in text or "orrupt" in text


@contextmanager
def whole(what: str, where: str, do: str) -> Generator[None]:
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
            with system.open_output_stream(path, compression=None) as stream:  # else it packs by the name
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
def new_file(uri: str) -> Generator[pa.NativeFile]:
    """A stream for a file under a name never used before. After the block it is whole, and fsynced where local.

    Nothing may point to the name before that. When the block raises, what was written is removed.
    """
    import pyarrow as pa

    if not is_local(uri):
        system, path = file_system(uri)
        stream = system.open_output_stream(path, compression=None)
        try:
            yield stream
        except BaseException:  # Ctrl-C, too: half a file does not stay; it is raised again
            stream.close()
            system.delete_file(path)
            raise
        stream.close()
        return
    path = local_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
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
    if is_local(uri):
        local_path(uri).mkdir(parents=True, exist_ok=True)


def make_closed_folder(uri: str) -> None:
    """A folder for what is of patients: where it is new, no other user enters it, and the group as the umask has it."""
    if is_local(uri):
        folder = local_path(uri)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o770, exist_ok=True)


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
