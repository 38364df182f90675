"""Containers: what lies in a zip or tar, and where. Nothing is written to disk.

The directory of a zip is read from its end, that of a tar by its headers; a tar.gz is unpacked once, from start to end, by
each process that reads it, which then keeps marks to go on from (`inflating.py`).
"""

from __future__ import annotations

import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from stat import S_ISLNK
from typing import BinaryIO, cast

import pyarrow as pa

from medray.errors import SampleError
from medray.storage import remote
from medray.storage.compressed import refuse_beyond_measure, unpacking
from medray.storage.content import Content, Stream, as_file
from medray.storage.inflating import DEFLATE_STREAM, Inflated
from medray.storage.uris import container_of, is_container, is_local, local_path
from medray.storage.walk import FileStamp, stamp

IN_MEMORY = 2**26
"""A packed member of up to so many bytes is unpacked at once and compared with its checksum before anything of it is read."""
LARGEST_DIRECTORY, LARGEST_HEADER = 2**28, 2**24
"""Most bytes of the directory of a zip, and of a header in a tar."""
MOST_MEMBERS = 2**21
"""Members of one container at most: each process that reads of it holds their places, some hundred bytes each."""
_ENDLESS = 2**62
"""Length of a tar.gz as long as it is not known, which is before it is read."""

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Header of a zip's member: signature, lengths of the name and of what follows it (APPNOTE 4.3.7)."""

_END = struct.Struct("<4s12xIH")
"""End of the directory of a zip: signature, where the directory begins, length of the comment (APPNOTE 4.3.16)."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a container."""

    start: int
    """Where its content begins; in a zip where its header does."""
    size: int
    """Bytes of its content."""
    packed: int | None = None
    """Bytes that it takes in a zip; None in a tar."""
    deflated: bool = False
    crc: int | None = None
    problem: tuple[str, str] | None = None
    """Reason and detail, where it is not read."""


@dataclass(frozen=True)
class Directory:
    """What lies in a container. `problem`: reason and detail, where it could not be read to its end."""

    members: dict[str, Member] = field(default_factory=dict[str, Member])
    """Members by path, with / between names, in the order of the container."""
    problem: tuple[str, str] | None = None
    content: Inflated | None = None
    """Unpacked content of a tar.gz; None for any other."""

    @cached_property
    def folders(self) -> frozenset[str]:
        """Paths of the folders that members lie in."""
        return frozenset(path[:end] for path in self.members for end in range(len(path)) if path[end] == "/")


def size_and_time(uri: str) -> tuple[int, int]:
    """(bytes, ns since the epoch) of a file that storage has. Raises OSError."""
    if is_local(uri):
        facts = os.stat(local_path(uri))
        return facts.st_size, facts.st_mtime_ns
    system, path = remote.file_system(uri)
    info = system.get_file_info(path)
    if not info.is_file:
        raise FileNotFoundError(path)
    return info.size, info.mtime_ns or 0


def directory(uri: str) -> Directory:
    """The directory of a container as it is now; read once while it stays as it is. Raises OSError."""
    size, modified_ns = size_and_time(uri)
    return _directory(uri, size, stamp(os.stat(local_path(uri))) if is_local(uri) else modified_ns)


def holds_data(uri: str) -> bool:
    """False for a container that could be read to its end: its members are files of their own. True for any other file.

    Raises SampleError for a container that could not be read, a member that is not read, and OSError.
    """
    inside = container_of(uri)
    if inside is not None:
        member(*inside)
        return True
    if not is_container(uri):
        return True
    problem = directory(uri).problem
    if problem is not None:
        raise SampleError(*problem)
    return False


def is_broken(uri: str) -> bool:
    """Whether a container could not be read to its end."""
    try:
        return directory(uri).problem is not None
    except OSError:
        return True


def member(container: str, path: str) -> tuple[Directory, Member]:
    """A member with the directory that it stands in. Raises SampleError where it is not read, FileNotFoundError, OSError."""
    listed = directory(container)
    entry = listed.members.get(path)
    if entry is None:
        raise FileNotFoundError(2, "the container has no such member", container)
    if entry.problem is not None:
        raise SampleError(*entry.problem)
    return listed, entry


def open_member(container: str, path: str) -> pa.NativeFile:
    """A member as a seekable file. Raises SampleError, FileNotFoundError, OSError."""
    listed, entry = member(container, path)
    if entry.size == 0 and not entry.deflated:
        return pa.BufferReader(b"")
    if listed.content is not None:
        return as_file(_part(listed.content.read, entry))
    raw = _open(container)
    if entry.packed is None:
        return as_file(
            Content(lambda size, start: raw.read_at(size, entry.start + start), entry.size, raw, member=True)
        )
    start = _content_start(raw, entry)
    if entry.size <= IN_MEMORY:
        with raw:
            return pa.BufferReader(_whole(raw.read_at(entry.packed, start), entry))
    if not entry.deflated:
        return as_file(
            Content(lambda size, at: raw.read_at(size, start + at), entry.size, raw, crc=entry.crc, member=True)
        )
    stream = Inflated(lambda size, at: raw.read_at(size, at), start, entry.packed, DEFLATE_STREAM)
    return as_file(Content(stream.read, entry.size, raw, crc=entry.crc, member=True))


def _part(read_at: Callable[[int, int], bytes], entry: Member) -> Content:
    return Content(lambda size, start: read_at(size, entry.start + start), entry.size, member=True)


def _content_start(raw: pa.NativeFile, found: Member) -> int:
    header = raw.read_at(_LOCAL_HEADER.size, found.start)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise SampleError("corrupt", "a member of a zip is not where its directory says")
    _, name, extra = _LOCAL_HEADER.unpack(header)
    return found.start + _LOCAL_HEADER.size + name + extra


def _whole(packed: bytes, found: Member) -> bytes:
    """The content of a member of a zip. Raises SampleError `truncated` or `corrupt`."""
    if found.packed is not None and len(packed) < found.packed:
        raise SampleError("truncated", "a member of a zip ends early")
    content = packed
    if found.deflated:
        with unpacking("a member of a zip"):
            unpacker = zlib.decompressobj(DEFLATE_STREAM)
            content = unpacker.decompress(packed, found.size + 1)
    if len(content) != found.size or zlib.crc32(content) != found.crc:
        raise SampleError("corrupt", "a member of a zip is of another content than its checksum says")
    return content


def _open(uri: str) -> pa.NativeFile:
    if is_local(uri):
        return pa.OSFile(str(local_path(uri)), "rb")
    system, path = remote.file_system(uri)
    return system.open_input_file(path)


@lru_cache(maxsize=4)
def _directory(uri: str, size: int, version: FileStamp | int) -> Directory:
    raw = _open(uri)
    name = uri.lower()
    if size == 0:
        return Directory(problem=("empty_file", ""))
    if name.endswith(".zip"):
        with raw:
            return _of_zip(Content(lambda length, start: raw.read_at(length, start), size))
    if name.endswith(".tar"):
        with raw:
            return _of_tar(Content(lambda length, start: raw.read_at(length, start), size))
    content = Inflated(lambda length, start: raw.read_at(length, start), 0, size)  # it stays open
    return replace(unpacked_tar(content.read), content=content)


def unpacked_tar(read_at: Callable[[int, int], bytes]) -> Directory:
    """The directory of a compressed tar, of which `read_at(size, start)` gives the unpacked bytes. Raises OSError."""
    return _of_tar(Content(read_at, _ENDLESS))


def open_unpacked(listed: Directory, path: str, read_at: Callable[[int, int], bytes]) -> pa.NativeFile:
    """A member of a tar from `unpacked_tar`. Raises SampleError."""
    entry = listed.members[path]
    if entry.problem is not None:
        raise SampleError(*entry.problem)
    return as_file(_part(read_at, entry)) if entry.size else pa.BufferReader(b"")


# --- zip --------------------------------------------------------------------------------------------------------


def _of_zip(content: Content) -> Directory:
    try:
        stream = cast(BinaryIO, Stream(content, largest=LARGEST_DIRECTORY))
        with unpacking("the zip"), zipfile.ZipFile(stream) as found:
            listed, start = found.infolist(), found.start_dir
            if lacks_directory(found, content.length):
                return Directory(problem=NO_DIRECTORY)
    except (ValueError, NotImplementedError, struct.error):
        return Directory(problem=("corrupt", "no whole zip file"))
    except SampleError as error:
        return Directory(problem=(error.reason, error.detail))
    if len(listed) > MOST_MEMBERS:
        return Directory(problem=_TOO_MANY)
    if _is_of_a_member(content, start):
        return Directory(problem=("truncated", "the zip ends before its directory"))
    members: dict[str, Member] = {}
    for info in listed:
        if info.filename.endswith("/"):  # `is_dir` fails for a name of no characters
            continue
        path, problem = _named(_zip_name(info))
        problem = problem or _problem_of_zip(info, content.length) or _nested(path)
        if path in members:
            problem = ("duplicate_part", "the zip has two members of one name")
        size = info.file_size if info.file_size < _ENDLESS else 0
        members[path] = Member(
            info.header_offset, size, info.compress_size, info.compress_type != zipfile.ZIP_STORED, info.CRC, problem
        )
    return Directory(members)


NO_DIRECTORY = ("corrupt", "a zip of which the directory says that nothing is in it")


def lacks_directory(archive: zipfile.ZipFile, length: int) -> bool:
    """Whether a zip of so many bytes names no member, though there is more of it than the record at its end (APPNOTE
    4.3.16), which is 22 bytes and a comment."""
    return not archive.infolist() and length > 22 + len(archive.comment)


def _is_of_a_member(content: Content, start: int) -> bool:
    """Whether the directory at `start` is of a zip that is a member: it lies behind where it says, and what it does not
    count, at the front, is a member of the zip that was cut off (APPNOTE 4.3.7, 4.3.16). Python looks for the last
    directory that there is."""
    length = min(content.length, _END.size + 2**16)
    tail = content.read_at(length, content.length - length)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + _END.size:
        return False
    stated = _END.unpack_from(tail, end)[1]
    return stated < min(start, 2**32 - 1) and content.read_at(4, 0) == b"PK\x03\x04"


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The path of a member. Programs on Windows write \\ between names, which APPNOTE 4.4.17 forbids; on others it is part
    of a name."""
    return info.filename.replace("\\", "/") if info.create_system == 0 else info.filename


def _problem_of_zip(info: zipfile.ZipInfo, length: int) -> tuple[str, str] | None:
    """What is wrong with a member of a zip of so many bytes."""
    if info.flag_bits & 0x41:  # encrypted, also strongly (APPNOTE 4.4.4)
        return "refused_member", "encrypted"
    if info.create_system == 3 and S_ISLNK(info.external_attr >> 16):
        return "refused_member", "a symbolic link"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "unsupported", f"a member of a zip that is packed by method {info.compress_type}; 0 and 8 are read"
    beyond = info.header_offset < 0 or info.header_offset + info.compress_size > length
    if beyond or (info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size):
        return "corrupt", "a member of a zip is not where its directory says"
    try:
        refuse_beyond_measure(info.file_size, info.compress_size)
    except SampleError as error:
        return error.reason, error.detail
    return None


# --- tar --------------------------------------------------------------------------------------------------------


def _of_tar(content: Content) -> Directory:
    members: dict[str, Member] = {}
    try:
        with tarfile.open(fileobj=cast(BinaryIO, Stream(content, largest=LARGEST_HEADER)), mode="r:") as tar:
            problem = _add_members(tar, members)
            end = tar.offset
        problem = _after_last(content, end, problem)
    except tarfile.TarError as error:
        early = "unexpected end" in str(error) or "truncated" in str(error)
        problem = ("truncated", "the tar ends early") if early else ("corrupt", "no whole tar file")
    except (ValueError, OverflowError):
        problem = _BROKEN
    except SampleError as error:
        problem = (error.reason, error.detail)
        if (
            error.reason == "corrupt" and content.length == _ENDLESS
        ):  # a checksum of the whole: any member may be spoilt
            members = {path: replace(found, problem=problem) for path, found in members.items()}
    return Directory(members, problem)


_TOO_MANY = ("refused_member", f"a zip or tar of more than {MOST_MEMBERS:,} members")
_BROKEN = ("corrupt", "a header of the tar is broken, and what lies from there on is not read")


def _add_members(tar: tarfile.TarFile, members: dict[str, Member]) -> tuple[str, str] | None:
    """All of a tar to `members`; what is wrong."""
    before = -1
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep an object of each
        if not 0 <= info.size < _ENDLESS or tar.offset <= before:
            return _BROKEN
        before = tar.offset
        if info.isdir():
            continue
        path, entry = _of_tar_member(info, members)
        members.pop(path, None)  # the last of a name is the file, as every tar program has it
        members[path] = entry
        if len(members) > MOST_MEMBERS:
            members.clear()
            return _TOO_MANY
    return None


def _after_last(content: Content, end: int, problem: tuple[str, str] | None) -> tuple[str, str] | None:
    """What is wrong behind the last member: `problem`, or that tarfile takes a broken header for the end."""
    block = content.read_at(tarfile.BLOCKSIZE, end)
    if problem is None and len(block) < tarfile.BLOCKSIZE:
        return "truncated", "the tar ends without its last block"
    if problem is None and block.strip(b"\0"):
        problem = _BROKEN
    length = content.length
    if length == _ENDLESS:  # the checksum of a compressed file stands at its end
        length = end
        while block := content.read_at(2**20, length):
            length += len(block)
    return (_BROKEN[0], f"{_BROKEN[1]}: {length - end} bytes") if problem == _BROKEN else problem


def _of_tar_member(info: tarfile.TarInfo, members: dict[str, Member]) -> tuple[str, Member]:
    path, problem = _named(info.name)
    if info.islnk():
        target = members.get(_named(info.linkname)[0])
        if target is not None:
            return path, target
        problem = problem or ("refused_member", "a link to what the tar does not have")
    elif info.issym():
        problem = problem or ("refused_member", "a symbolic link")
    elif not info.isreg():
        problem = problem or ("refused_member", "no regular file")
    elif info.sparse is not None:
        problem = problem or ("unsupported", "a sparse file in a tar")
    return path, Member(info.offset_data, info.size, problem=problem or _nested(path))


# --- names ------------------------------------------------------------------------------------------------------


def _named(name: str) -> tuple[str, tuple[str, str] | None]:
    """(path, what is wrong with it). No file is ever written by it; it names the entry."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    names = [each for each in name.split("/") if each not in ("", ".")]
    outside = name.startswith("/") or ".." in names or re.match(r"[A-Za-z]:", name)
    return "/".join(names) or "?", ("refused_member", "its name leads out of the container") if outside else None


def _nested(path: str) -> tuple[str, str] | None:
    return ("refused_member", "a zip or tar inside a zip or tar") if is_container(path) else None
