"""Member: a file, or a file inside a tar or zip, as a stream: plain, gz, tar (gz, bz2, xz) and zip, in bounded memory."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import IO, TYPE_CHECKING, BinaryIO, NamedTuple, cast

import pyarrow as pa

from medray.errors import SampleError
from medray.storage import files
from medray.storage.compressed import unpacking

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
BUFFER = 2**20


class Unit(NamedTuple):
    """A file, or the lines that begin in a range of its bytes: what a worker reads in one piece."""

    unit: int
    """Position of the file (and range) in the order of names."""
    uri: str
    size: int
    start: int
    end: int


class Member(NamedTuple):
    number: int
    """Position in the tar or zip; -1: the file itself."""
    name: str
    """The path as the archive or the file's URI has it. May name a patient: never shown."""
    stream: BinaryIO


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
    """The file, or the regular files inside a tar or zip, one after another: read each before taking the next.

    Raises SampleError where the file ends early or is broken.
    """
    name = uri.lower()
    with broken_files(), files.open_input(uri) as raw:
        stream = io.BufferedReader(cast(io.RawIOBase, raw), BUFFER)
        if not stream.peek(1):
            raise SampleError("empty_file")
        if name.endswith(TARS):
            with tarfile.open(fileobj=stream, mode="r|*") as tar:
                index = 0
                for info in tar:
                    content = tar.extractfile(info) if info.isfile() else None
                    if content is not None:
                        yield Member(index, info.name, plain(cast(BinaryIO, content)))
                        index += 1
        elif name.endswith(".zip"):
            with _zip(stream) as archive:
                for index, info in enumerate(each for each in archive.infolist() if not each.is_dir()):
                    with _member(archive, info) as content:
                        yield Member(index, info.filename, plain(cast(BinaryIO, content)))
        else:
            yield Member(-1, uri, plain(stream))


def _zip(stream: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(stream)
    except pa.ArrowInvalid:  # shorter than a zip's last record: a seek before the start
        raise SampleError("corrupt", "no whole zip file") from None


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Raises SampleError `unsupported` for one that is encrypted, or packed in a way that Python does not know."""
    try:
        return archive.open(info)
    except (NotImplementedError, RuntimeError):
        raise SampleError("unsupported", "a zip with a member that is encrypted or packed in a rare way") from None


def plain(stream: BinaryIO) -> BinaryIO:
    """The stream, decompressed where its first bytes are those of gz (RFC 1952), whatever its name says."""
    buffered = cast(
        io.BufferedReader, stream if hasattr(stream, "peek") else io.BufferedReader(cast(io.RawIOBase, stream))
    )
    return io.BufferedReader(_Gunzip(buffered), BUFFER) if buffered.peek(2)[:2] == b"\x1f\x8b" else buffered


class _Gunzip(io.RawIOBase):
    """gz, of one member or many (bgzip). Gives all there is before it raises EOFError; Python's own drops a buffer."""

    def __init__(self, packed: BinaryIO) -> None:
        self.packed, self.unpacker, self.input = packed, zlib.decompressobj(wbits=31), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        while True:
            if self.unpacker.eof:
                self.input = (self.unpacker.unused_data or self.packed.read(BUFFER)).lstrip(b"\0")  # padding is legal
                if not self.input:
                    return 0
                self.unpacker = zlib.decompressobj(wbits=31)
            self.input = self.input or self.packed.read(BUFFER)
            if not self.input:
                raise EOFError
            data = self.unpacker.decompress(self.input, len(target))
            self.input = self.unpacker.unconsumed_tail
            if data:
                target[: len(data)] = data
                return len(data)


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
    except tarfile.ReadError as error:
        reason = "truncated" if "unexpected end" in str(error) else "corrupt"
        raise SampleError(reason, "no whole tar file") from None
    except UnicodeDecodeError as error:
        raise SampleError("corrupt", f"no {error.encoding} text") from None
    except FileNotFoundError:
        raise SampleError("missing_file") from None
    except OSError as error:
        if "Invalid data stream" in str(error):  # of bz2, about its data
            raise SampleError("corrupt", "broken bzip2 data") from None
        raise SampleError("unreadable", error.strerror or type(error).__name__) from None
