"""Archives: the files that an archive gives, wherever they lie: in folders, in zip and tar, named by a DICOMDIR, on a server.

`walk.py` lists what storage has; this is what the verbs read as data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, product
from typing import TYPE_CHECKING

from medray.errors import ArchiveAway, ArchiveError, ArchiveGone, SampleError
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
from medray.storage.walk import COLUMNS, File, Unlisted, list_pieces

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
    root: str,
    linked: list[str] | None = None,
    earlier: Earlier | None = None,
    full_check_days: float = 30.0,
    unlisted: list[Unlisted] | None = None,
) -> Iterator[tuple[pa.RecordBatch, bool]]:
    """(files, whether they may be of other content although size and time are as they were) of an archive, in pieces.

    A zip or tar is listed, then its members, with its time. One that is as in the `earlier` listing is not opened: its
    members are taken from there. So is what lies in folders that cannot be listed, which join `unlisted`: nobody knows that
    it has gone. For a DICOMweb server see `server_listing.py`. Raises ArchiveError, ArchiveAway; of an archive in several
    places also where one of them holds nothing, as a mount that has gone does.
    """
    every = places(root)
    for place in every:
        empty = True
        for piece, doubtful in _of_place(place, linked, earlier, full_check_days, unlisted):
            empty = empty and not len(piece)
            yield piece, doubtful
        if empty and len(every) > 1:
            raise ArchiveGone("one of the archives holds no files", where=place, do="leave it out, or mount it")


def _of_place(
    root: str,
    linked: list[str] | None,
    earlier: Earlier | None,
    full_check_days: float,
    unlisted: list[Unlisted] | None,
) -> Iterator[tuple[pa.RecordBatch, bool]]:
    if is_dicomweb(root):
        from medray.storage import server_listing

        yield from server_listing.listed(root, earlier, full_check_days)
        return
    stamps: dict[str, _Times] = {}
    away: list[Unlisted] = []
    for piece in _at_top(root, linked, away):
        stamps |= _containers(piece)
        yield piece, False
    if unlisted is not None:
        unlisted += away
    for piece in _below([f"{each.folder}/" for each in away], earlier) if away and earlier else ():
        yield piece, False
    if not stamps:
        return
    for piece in _as_before(stamps, earlier) if earlier else ():
        yield piece, False
    away_containers: list[str] = []
    for piece in _members(stamps, away_containers):
        yield piece, True
    members = [f"{uri}{INSIDE}" for uri in away_containers]
    for piece in _below(members, earlier) if away_containers and earlier else ():
        yield piece, False


def _below(starts: list[str], earlier: Earlier) -> Iterator[pa.RecordBatch]:
    """What the earlier listing has of files whose URIs begin so."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for batch in earlier():
        mask = pa.repeat(False, len(batch))
        for start in starts:
            mask = pc.or_(mask, pc.starts_with(batch.column("uri"), start))
        if pc.any(mask).as_py():
            yield batch.filter(mask).select(list(COLUMNS))


def _at_top(root: str, linked: list[str] | None, unlisted: list[Unlisted] | None = None) -> Iterator[pa.RecordBatch]:
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
        yield from list_pieces(root, linked, unlisted)


def _content(uri: str) -> bytes:
    from medray.storage.systems import file_system

    try:
        if is_local(uri):
            return local_path(uri).read_bytes()
        system, path = file_system(uri)
        with system.open_input_file(path) as stream:
            return stream.read()
    except FileNotFoundError:
        raise ArchiveGone(
            "the archive does not exist", where=uri, do="check the `archive` key of the run file"
        ) from None
    except (OSError, SampleError) as error:
        raise ArchiveError("the DICOMDIR cannot be read", where=uri, found=type(error).__name__) from None


def _inside(container: str, path: str) -> Iterator[pa.RecordBatch]:
    """The file or the files of the folder at `path` in a container. Raises ArchiveError where there are none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        piece = _of_container(container)
    except FileNotFoundError:
        piece = pa.record_batch([pa.array([], pa.string())], ["uri"])
    except OSError as error:
        kind = ArchiveError if isinstance(error, PermissionError) else ArchiveAway
        raise kind("a zip or tar cannot be read", where=container, found=error.strerror or str(error)) from None
    uris, wanted = piece.column("uri"), f"{container}{INSIDE}{path}".rstrip("/")
    below = piece.filter(pc.or_(pc.equal(uris, wanted), pc.starts_with(uris, f"{wanted}/" if path else wanted)))
    if not len(below):
        raise ArchiveGone(
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


def _members(found: dict[str, _Times], away: list[str]) -> Iterator[pa.RecordBatch]:
    """Members of these containers; those of which the storage fails join `away`."""

    def members(uri: str) -> pa.RecordBatch | None:
        try:
            return _of_container(uri)
        except OSError:
            return None

    waiting = iter(sorted(found))
    with ThreadPoolExecutor(READERS) as readers:
        while some := list(islice(waiting, 4 * READERS)):
            for uri, piece in zip(some, readers.map(members, some), strict=True):
                if piece is None:
                    away.append(uri)
                elif len(piece):
                    yield piece


def _of_container(uri: str) -> pa.RecordBatch:
    """The members of a container that could be read. Raises OSError."""
    import pyarrow as pa

    from medray.storage import containers

    modified_ns = containers.size_and_time(uri)[1]
    members = containers.directory(uri).members
    columns = [
        pa.array([f"{uri}{INSIDE}{path}" for path in members], pa.string()),
        pa.array([member.size for member in members.values()], pa.int64()),
        pa.array([modified_ns] * len(members), pa.int64()),
    ]
    return pa.record_batch(columns, ["uri", "size", "modified_ns"])
