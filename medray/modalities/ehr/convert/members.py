"""Member: a file, or a file inside a tar or zip, as a stream: plain, gz, tar (gz, bz2, xz) and zip, in bounded memory.

What is packed is unpacked twice: first to its end, to compare it with its checksums. A flipped bit makes another number more
often than an error, so what a failed checksum covers is not read, nor what follows; what lies before it is.
"""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import pyarrow as pa

from medray.errors import SampleError
from medray.storage import containers, files
from medray.storage.compressed import GZIP, refuse_beyond_measure, unpacked_head, unpacking

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ONLY_FORWARD = {".tar.bz2": bz2.BZ2File, ".tar.xz": lzma.LZMAFile}
"""Compressed tars that are not a container of an archive; going back in one starts over."""
BUFFER = 2**20


class Unit(NamedTuple):
    """A file, or the lines that begin in a range of its bytes: what a worker reads in one piece."""

    unit: int
    """Position of the file (and range) in the order of names."""
    uri: str
    size: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Member:
    number: int
    """Position in the tar or zip; -1: the file itself."""
    name: str
    """The path as the archive or the file's URI has it. May name a patient: never shown."""
    _open: Callable[[], BinaryIO]

    def open(self) -> BinaryIO:
        """The content as a stream, unpacked where its first bytes are those of gz (RFC 1952), whatever its name says.

        Raises SampleError for a member that is not read, and so does the stream where it is cut off or broken.
        """
        with broken_files():
            return _plain(self._open)

    @property
    def stream(self) -> BinaryIO:
        """`open`, by the name that it has in plug-ins of earlier versions; each time from the start."""
        return self.open()

    def head(self, size: int) -> bytes:
        """The first bytes of the content, not compared with a checksum; fewer where it is broken. Raises SampleError."""
        with broken_files():
            raw = self._open().read(size)
            return unpacked_head(raw, size) if raw.startswith(GZIP) else raw


def units(listed: list[files.File], cut: tuple[str, ...], piece: int) -> list[Unit]:
    """Units of the files in the order of their names; files that end with one of `cut` in pieces of about `piece` bytes."""
    cut_files: list[Unit] = []
    for file in sorted(listed, key=lambda file: file.uri):
        pieces = max(1, round(file.size / piece)) if file.uri.lower().endswith(cut) and cut else 1
        bounds = [file.size * i // pieces for i in range(pieces + 1)]
        for start, end in pairwise(bounds):
            cut_files.append(Unit(len(cut_files), file.uri, file.size, start, end))
    return cut_files


def members(uri: str) -> Iterator[Member]:
    """The file, or the files inside a tar or zip, one after another: open and read each before taking the next.

    Raises SampleError for an empty file, and after the last known member of a tar or zip that is not whole.
    """
    name = uri.lower()
    with broken_files(), files.open_input(uri) as raw:
        if raw.size() == 0:
            raise SampleError("empty_file")
        if name.endswith(tuple(ONLY_FORWARD)):
            yield from _forward(uri, raw)
        elif name.endswith(TARS):
            listed = containers.directory(uri)
            yield from _listed(listed, lambda path: containers.open_member(uri, path))
        elif name.endswith(".zip"):
            with _zip(_buffered(raw), raw.size()) as archive:
                infos = (info for info in archive.infolist() if not info.filename.endswith("/"))
                for number, info in enumerate(infos):
                    yield Member(number, info.filename, lambda info=info: _of_zip(archive, info))
        else:
            yield Member(-1, uri, lambda: _buffered(files.open_input(uri)))


def _buffered(raw: pa.NativeFile) -> BinaryIO:
    return io.BufferedReader(cast(io.RawIOBase, raw), BUFFER)


# --- tar and zip ------------------------------------------------------------------------------------------------


def _listed(listed: containers.Directory, open_member: Callable[[str], pa.NativeFile]) -> Iterator[Member]:
    """Raises SampleError after the last member where the tar is not whole."""
    for number, path in enumerate(listed.members):
        yield Member(number, path, lambda path=path: _buffered(open_member(path)))
    if listed.problem is not None:
        raise SampleError(*listed.problem)


def _forward(uri: str, raw: pa.NativeFile) -> Iterator[Member]:
    """Raises as `_listed`."""
    unpacker = next(kind for suffix, kind in ONLY_FORWARD.items() if uri.lower().endswith(suffix))
    with unpacker(_buffered(raw)) as stream:

        def read_at(size: int, start: int) -> bytes:
            with unpacking("the compressed archive"):
                try:
                    stream.seek(start)
                    return stream.read(size)
                except OSError as error:
                    if error.errno is None:  # bz2's own, of the content
                        raise zlib.error from None
                    raise

        listed = containers.unpacked_tar(read_at)
        yield from _listed(listed, lambda path: containers.open_unpacked(listed, path, read_at))


def _zip(stream: BinaryIO, length: int) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(stream)
    except (pa.ArrowInvalid, ValueError, NotImplementedError, struct.error):  # such as a seek before the start
        raise SampleError("corrupt", "no whole zip file") from None
    if containers.lacks_directory(archive, length):
        raise SampleError(*containers.NO_DIRECTORY)
    return archive


def _of_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    """A member, compared with its checksum. Raises SampleError, `unsupported` for one that is encrypted, or packed in a way
    that Python does not know."""
    refuse_beyond_measure(info.file_size, info.compress_size)
    try:
        with unpacking("a member of the zip"), archive.open(info) as content:
            while content.read(BUFFER):
                pass
        return cast(BinaryIO, archive.open(info))
    except (NotImplementedError, RuntimeError):
        raise SampleError("unsupported", "a member of a zip that is encrypted or packed in a rare way") from None


# --- gz ---------------------------------------------------------------------------------------------------------


def _plain(opened: Callable[[], BinaryIO]) -> BinaryIO:
    """What `opened` gives, unpacked where it is gz as far as it is certain. Raises SampleError, OSError."""
    stream = opened()
    buffered = cast(
        io.BufferedReader, stream if hasattr(stream, "peek") else io.BufferedReader(cast(io.RawIOBase, stream), BUFFER)
    )
    if buffered.peek(2)[:2] != GZIP:
        return buffered
    with buffered:
        certain, damage = _certain(buffered)
    return io.BufferedReader(_Gunzip(opened(), certain, damage), BUFFER)


def _certain(packed: BinaryIO) -> tuple[int, SampleError | None]:
    """How many bytes of what a gz unpacks to are certain, and why no more: up to where it is cut off, or up to the end of
    the last whole member (RFC 1952, 2.2) before the damage."""
    stream = _Gunzip(packed)
    try:
        while stream.read(BUFFER):
            refuse_beyond_measure(stream.position, stream.taken)
    except EOFError:
        return stream.position, SampleError("truncated", "the compressed data ends early")
    except zlib.error as error:
        total = stream.taken
        while piece := packed.read(BUFFER):
            total += len(piece)
        lost = total - stream.whole[1]
        detail = (
            f"the compressed data is broken (zlib.{type(error).__name__}): {lost} of {total} packed bytes are not read"
        )
        return stream.whole[0], SampleError("corrupt", detail)
    return stream.position, None


class _Gunzip(io.RawIOBase):
    """gz, of one member or many (bgzip). Gives all there is, or up to `certain` bytes, before it raises what is wrong;
    Python's own drops a buffer."""

    def __init__(self, packed: BinaryIO, certain: int = 0, damage: SampleError | None = None) -> None:
        self.packed, self.unpacker, self.input = packed, zlib.decompressobj(wbits=31), b""
        self.certain, self.damage = certain, damage
        self.position = self.taken = 0
        """Bytes given, and packed bytes read."""
        self.whole = (0, 0)
        """(position, packed bytes) at the end of the last whole member."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        if self.damage is not None:
            if self.position >= self.certain:
                raise self.damage
            target = target[: self.certain - self.position]
        while True:
            if self.unpacker.eof:
                self.whole = (self.position, self.taken - len(self.unpacker.unused_data))
                self.input = (self.unpacker.unused_data or self._next()).lstrip(b"\0")  # padding is legal
                if not self.input:
                    return 0
                self.unpacker = zlib.decompressobj(wbits=31)
            self.input = self.input or self._next()
            if not self.input:
                raise EOFError
            data = self.unpacker.decompress(self.input, len(target))
            self.input = self.unpacker.unconsumed_tail
            if data:
                target[: len(data)] = data
                self.position += len(data)
                return len(data)

    def _next(self) -> bytes:
        piece = self.packed.read(BUFFER)
        self.taken += len(piece)
        return piece


@contextmanager
def broken_files() -> Generator[None]:
    """Turns what Python's readers raise for a broken file into SampleError with a reason. Messages hold no content."""
    try:
        with unpacking():
            yield
    except pa.ArrowInvalid as error:
        if "position" not in str(error):
            raise
        # a zip whose directory points before the beginning of the file
        raise SampleError("corrupt", "no whole zip file") from None
    except UnicodeDecodeError as error:
        raise SampleError("corrupt", f"no {error.encoding} text") from None
    except FileNotFoundError:
        raise SampleError("missing_file") from None
    except OSError as error:
        if "Invalid data stream" in str(error):  # of bz2, about its data
            raise SampleError("corrupt", "broken bzip2 data") from None
        raise SampleError("unreadable", error.strerror or type(error).__name__) from None
