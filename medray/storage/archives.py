"""Archives: the files that an archive gives, wherever they lie: in folders, in zip and tar, named by a DICOMDIR, on a server.

`walk.py` lists what storage has; this is what the verbs read as data.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, product
from typing import TYPE_CHECKING

from medray.errors import ArchiveError, SampleError
from medray.storage.uris import (
    CONTAINERS,
    INSIDE,
    INSIDE_PATTERN,
    container_of,
    is_container,
    is_dicomweb,
    is_local,
    is_media_directory,
    local_path,
    places,
    top_folder,
)
from medray.storage.walk import COLUMNS, File, list_pieces

if TYPE_CHECKING:
    import pyarrow as pa

Earlier = Callable[[], Iterable["pa.RecordBatch"]]
"""The last listing, as often as it is asked for."""

_LAST_FOUR = sorted(
    {
        "".join(letters).encode()
        for end in CONTAINERS
        for letters in product(*zip(end[-4:], end[-4:].upper(), strict=True))
    }
)
"""How the names of containers end, in either case: a look at millions of names has to be quick."""
READERS = 8
"""Directories of containers that are read at once: most of it is waiting, or unpacking, which needs no lock of Python."""
_PASSING_BY = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ELOOP, errno.EISDIR)
"""Errors of one container, that say nothing of the storage."""


def archive_files(root: str) -> Iterator[File]:
    """The files of `archive_pieces`, one by one, without containers whose members are files themselves."""
    from medray.storage.containers import is_broken

    for piece in archive_pieces(root):
        for file in map(File, *(piece.column(name).to_pylist() for name in File._fields)):
            if not is_container(file.uri) or container_of(file.uri) is not None or is_broken(file.uri):
                yield file


def archive_pieces(root: str) -> Iterator[pa.RecordBatch]:
    """All files of an archive: those of `walk.list_pieces`, and the members of zip and tar among them; where `root` is a
    DICOMDIR, the files that it names; where it is a DICOMweb server, its instances. Raises ArchiveError."""
    for piece, _ in listed(root):
        yield piece


def listed(
    root: str, linked: list[str] | None = None, earlier: Earlier | None = None, full_check_days: float = 30.0
) -> Iterator[tuple[pa.RecordBatch, bool]]:
    """(files, whether they may be of other content although size and time are as they were) of an archive, in pieces.

    A zip or tar is listed, then its members, with its time. One that is as in the `earlier` listing is not opened: its
    members are taken from there. For a DICOMweb server see `server_listing.py`. Raises ArchiveError; of an archive in several
    places also where one of them holds nothing, as a mount that has gone does.
    """
    every = places(root)
    for place in every:
        empty = True
        for piece, doubtful in _of_place(place, linked, earlier, full_check_days):
            empty = empty and not len(piece)
            yield piece, doubtful
        if empty and len(every) > 1:
            raise ArchiveError("one of the archives holds no files", where=place, do="leave it out, or mount it")


def _of_place(
    root: str, linked: list[str] | None, earlier: Earlier | None, full_check_days: float
) -> Iterator[tuple[pa.RecordBatch, bool]]:
    if is_dicomweb(root):
        from medray.storage import server_listing

        yield from server_listing.listed(root, earlier, full_check_days)
        return
    stamps: dict[str, _Times] = {}
    for piece in _at_top(root, linked):
        stamps |= _containers(piece)
        yield piece, False
    if not stamps:
        return
    for piece in _as_before(stamps, earlier) if earlier else ():
        yield piece, False
    for piece in _members(stamps):
        yield piece, True


def _at_top(root: str, linked: list[str] | None) -> Iterator[pa.RecordBatch]:
    """The files that `root` names, without members of containers that are files."""
    if is_media_directory(root):
        from medray.storage.media import named_files

        top = top_folder(root)
        inside = top.endswith(INSIDE[0]) and is_container(top[:-1])
        medium = _inside(top[:-1], "") if inside else _at_top(top, None)
        yield named_files(root, _content(root), medium)
    elif (inside := container_of(root)) is not None:
        yield from _inside(*inside)
    else:
        yield from list_pieces(root, linked)


def _content(uri: str) -> bytes:
    from medray.storage.systems import file_system

    try:
        if is_local(uri):
            return local_path(uri).read_bytes()
        system, path = file_system(uri)
        with system.open_input_file(path) as stream:
            return stream.read()
    except FileNotFoundError:
        raise ArchiveError(
            "the archive does not exist", where=uri, do="check the `archive` key of the run file"
        ) from None
    except (OSError, SampleError) as error:
        raise ArchiveError("the DICOMDIR cannot be read", where=uri, found=type(error).__name__) from None


def _inside(container: str, path: str) -> Iterator[pa.RecordBatch]:
    """The file or the files of the folder at `path` in a container. Raises ArchiveError where there are none."""
    import pyarrow.compute as pc

    piece = _of_container(container)
    uris, wanted = piece.column("uri"), f"{container}{INSIDE}{path}".rstrip("/")
    below = piece.filter(pc.or_(pc.equal(uris, wanted), pc.starts_with(uris, f"{wanted}/" if path else wanted)))
    if not len(below):
        raise ArchiveError(
            "the archive does not exist", where=wanted, do="check the `archive` key of the run file"
        ) from None
    yield below


_Times = tuple[int, int, int | None]
"""size, modified_ns, changed_ns"""


def _containers(piece: pa.RecordBatch) -> dict[str, _Times]:
    """Size and times by URI of the zip and tar files of a listing; not of what is empty or no file."""
    import pyarrow as pa
    import pyarrow.compute as pc

    last = pc.binary_slice(piece.column("uri").cast(pa.binary()), -4)
    mask = pc.is_in(last, pa.array(_LAST_FOUR))
    rows = piece.filter(mask) if pc.any(mask).as_py() else piece.slice(0, 0)
    columns = [rows.column(name).to_pylist() if name in rows.schema.names else [None] * len(rows) for name in COLUMNS]
    return {
        uri: (size, modified_ns, changed_ns)
        for uri, size, modified_ns, changed_ns in zip(*columns, strict=True)
        if size > 0 and is_container(uri) and container_of(uri) is None
    }


def _as_before(stamps: dict[str, _Times], earlier: Earlier) -> Iterator[pa.RecordBatch]:
    """Members that the earlier listing has of containers that are as they were; these leave `stamps`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(sorted(stamps))
    same: set[str] = set()
    for batch in earlier():
        rows = batch.filter(pc.is_in(batch.column("uri"), wanted))
        columns = (rows.column(name).to_pylist() for name in COLUMNS)
        same.update(uri for uri, *times in zip(*columns, strict=True) if _is_as_before(stamps[uri], *times))
    unchanged = pa.array(sorted(same), pa.string())
    for batch in earlier() if same else ():
        rows = batch.filter(pc.match_substring(batch.column("uri"), INSIDE))
        if not len(rows):
            continue
        holders = pc.struct_field(pc.extract_regex(rows.column("uri"), pattern=INSIDE_PATTERN), "container")
        mask = pc.is_in(holders, unchanged)
        for holder in pc.unique(holders.filter(mask)).to_pylist():
            stamps.pop(holder, None)
        yield rows.filter(mask).select(["uri", "size", "modified_ns"])


def _is_as_before(now: _Times, size: int, modified_ns: int, changed_ns: int | None) -> bool:
    return now[:2] == (size, modified_ns) and (None in (now[2], changed_ns) or now[2] == changed_ns)


def _members(found: dict[str, _Times]) -> Iterator[pa.RecordBatch]:
    """Members of these containers."""
    waiting = iter(sorted(found))
    with ThreadPoolExecutor(READERS) as readers:
        while some := list(islice(waiting, 4 * READERS)):
            yield from (piece for piece in readers.map(_of_container, some) if len(piece))


def _of_container(uri: str) -> pa.RecordBatch:
    """The members of a container that could be read. Raises ArchiveError where the storage fails."""
    import pyarrow as pa

    from medray.storage import containers

    members: dict[str, containers.Member] = {}
    modified_ns = 0
    try:
        modified_ns = containers.size_and_time(uri)[1]
        members = containers.directory(uri).members
    except OSError as error:
        if error.errno not in _PASSING_BY and "ACCESS_DENIED" not in str(error):
            raise ArchiveError("a zip or tar cannot be listed", where=uri, found=error.strerror or str(error)) from None
    columns = [
        pa.array([f"{uri}{INSIDE}{path}" for path in members], pa.string()),
        pa.array([member.size for member in members.values()], pa.int64()),
        pa.array([modified_ns] * len(members), pa.int64()),
    ]
    return pa.record_batch(columns, ["uri", "size", "modified_ns"])
