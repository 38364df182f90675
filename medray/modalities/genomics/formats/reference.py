"""Reference genomes: random access to the contigs of a FASTA file, plain, bgzip or gz, in bounded memory.

Positions are 0-based and half-open. Windows reach past the ends of a contig: what lies outside is N.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from medray.errors import SampleError, UserError
from medray.modalities.genomics.codes import BLANKS, MEANINGS, N, SoftMask, to_codes
from medray.modalities.genomics.formats.text import BGZF_HEADER, Ranges, blocks, compression
from medray.storage.files import exists, is_local, local_path, open_input, open_regular, read_bytes

CHUNK = 1 << 24
COMMENTS = "comment lines (;), which some tools read as bases: remove them"
MEMORY_BYTES = 1 << 30
"""The largest FASTA file that is decoded into memory, where its format has no random access."""


def _concrete() -> bytes:
    table = bytearray(b"N" * 256)
    for letter, meaning in {**MEANINGS, "N": "N", "U": "T"}.items():
        table[ord(letter)] = table[ord(letter.lower())] = ord(meaning[0])
    return bytes(table)


CONCRETE = _concrete()
"""For bytes.translate: a letter to one of A C G T N; an ambiguity code to the base that is first in the alphabet (R is
A), as VCF 4.3 section 1.6.1 defines REF and as `bcftools norm` reads a reference. N stays N."""


class Contig(NamedTuple):
    """One line of a .fai: where the bases of a contig lie in the decoded file."""

    name: str
    length: int
    offset: int
    """Byte of the first base."""
    bases: int
    """Bases in a full line."""
    width: int
    """Bytes of a full line, line end included."""

    def byte(self, position: int) -> int:
        """Offset in the file of the base at `position`."""
        return self.offset + position // self.bases * self.width + position % self.bases if self.bases else self.offset


class RandomAccess(Protocol):
    """The decoded bytes of a file, by offset; fewer where the file ends before."""

    def read(self, start: int, end: int) -> bytes: ...


class ReferenceGenome:
    """An open FASTA file. Each worker opens it by itself, with `open`; only its URI is sent to workers."""

    def __init__(
        self, uri: str, source: RandomAccess, contigs: dict[str, Contig], soft_mask: SoftMask = "ignore"
    ) -> None:
        self.uri, self.contigs, self._source = uri, contigs, source
        self._soft_mask: SoftMask = soft_mask

    @classmethod
    def open(cls, uri: str, soft_mask: SoftMask = "ignore", memory_bytes: int = MEMORY_BYTES) -> ReferenceGenome:
        """Open the FASTA file at `uri`: by its .fai (and .gzi) where they fit it, else after one pass over it.

        gz without bgzip, and lines of unequal length, are held in memory up to `memory_bytes`. Raises UserError.
        """
        try:
            source, contigs = _opened(uri, memory_bytes)
        except OSError as error:
            raise _refusal(uri, error.strerror or type(error).__name__) from None
        except SampleError as error:
            raise _refusal(uri, str(error)) from None
        if not contigs:
            raise _refusal(uri, "no FASTA record")
        return cls(uri, source, contigs, soft_mask)

    @cached_property
    def digest(self) -> bytes:
        """xxh3_128 of the file as it lies in storage, 16 bytes."""
        whole = xxhash.xxh3_128()
        with open_input(self.uri) as stream:
            while chunk := stream.read(CHUNK):
                whole.update(chunk)
        return whole.digest()

    def letters(self, name: str, start: int, end: int) -> bytes:
        """The bases of [start, end) inside the contig, of A C G T N. Raises KeyError for an unknown contig."""
        return _as_many(self._raw(self.contigs[name], start, end).translate(CONCRETE, BLANKS), start, end)

    def codes(self, name: str, start: int, end: int) -> np.ndarray:
        """(end - start,) uint8 codes (codes.py), N past the ends. Raises KeyError for an unknown contig."""
        contig = self.contigs[name]
        first, last = max(start, 0), min(end, contig.length)
        if first >= last:
            return np.full(end - start, N, np.uint8)
        raw = self._raw(contig, first, last)
        inside = np.frombuffer(_as_many(to_codes(raw, self._soft_mask), first, last), np.uint8)
        if first == start and last == end:
            return inside
        return np.pad(inside, (first - start, end - last), constant_values=N)

    def windows(self, name: str, starts: np.ndarray, length: int) -> np.ndarray:
        """(B, length) uint8 codes of the windows that begin at `starts` (B,); N past the ends.

        Windows that lie close together are cut from one stretch that is decoded once.
        """
        out = np.empty((len(starts), length), np.uint8)
        order = np.argsort(starts, kind="stable")
        ascending = np.asarray(starts)[order]
        breaks = np.flatnonzero(np.diff(ascending) > 2 * length) + 1
        for rows in np.split(order, breaks):
            first, last = int(starts[rows[0]]), int(starts[rows[-1]]) + length
            stretch = self.codes(name, first, last)
            out[rows] = np.lib.stride_tricks.sliding_window_view(stretch, length)[np.asarray(starts)[rows] - first]
        return out

    def _raw(self, contig: Contig, start: int, end: int) -> bytes:
        """Bytes of [start, end), line ends included. Raises SampleError where a line does not end where it should."""
        if start >= end:
            return b""
        raw = self._source.read(contig.byte(start), contig.byte(end - 1) + 1)
        line_end = contig.bases - start % contig.bases  # of the first line
        if line_end < len(raw) and raw[line_end] not in BLANKS:
            raise SampleError(
                "corrupt", "the reference has a line of another length than its .fai says: remove the .fai"
            )
        return raw


def _as_many(bases: bytes, start: int, end: int) -> bytes:
    """The bases unchanged. Raises SampleError where a .fai that does not fit gave other than end - start bases."""
    if len(bases) != end - start:
        raise SampleError("corrupt", "the reference has blanks or line ends where its .fai has bases: remove the .fai")
    return bases


def _refusal(uri: str, problem: str) -> UserError:
    return UserError(
        "the reference cannot be used",
        where=uri,
        found=problem,
        expected="a FASTA file, plain or compressed with bgzip",
        do="check the `reference` key; a gzip file, or one with uneven lines, may decode to 1 GiB at most: use gunzip, "
        "seqkit seq -w 60, bgzip",
    )


# --- random access to the bytes ----------------------------------------------------------------------------------


class Local:
    """A local file, read by position. No map of it: one that is cut, or whose storage goes, would end the process."""

    def __init__(self, uri: str) -> None:
        self._handle = open_regular(str(local_path(uri)), os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def read(self, start: int, end: int) -> bytes:
        return os.pread(self._handle, end - start, start)


class Streamed:
    """A bgzip file, or one on other storage, read by ranges; the stretch last read is kept."""

    def __init__(self, uri: str) -> None:
        self._ranges = Ranges(uri)

    def read(self, start: int, end: int) -> bytes:
        end = min(end, self._ranges.size or 0)
        return self._ranges.read(start, end) if start < end else b""


class InMemory:
    """Bytes in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, start: int, end: int) -> bytes:
        return self._content[start:end]


def _opened(uri: str, memory_bytes: int) -> tuple[RandomAccess, dict[str, Contig]]:
    """The text of the FASTA file and where its contigs lie. Raises SampleError and OSError."""
    with open_input(uri) as stream:
        kind = compression(stream.read(BGZF_HEADER))
        if stream.size() == 0:
            raise SampleError("empty_file")
    if kind == "gzip":
        return _in_memory(uri, "a gzip file", memory_bytes)
    source = Streamed(uri) if kind or not is_local(uri) else Local(uri)
    contigs = _read_fai(uri, source) or build_index(_texts(uri))
    if contigs is None:
        return _in_memory(uri, "a file with lines of unequal length or with blanks", memory_bytes)
    return source, contigs


def _texts(uri: str) -> Iterator[bytes]:
    return (chunk.text for chunk in blocks(uri))


def _in_memory(uri: str, what: str, memory_bytes: int) -> tuple[RandomAccess, dict[str, Contig]]:
    """A file whose offsets cannot be computed, decoded into memory, one line per contig. Raises SampleError if too large."""
    pieces: list[bytes] = []
    size = 0
    for text in _texts(uri):
        pieces.append(text)
        size += len(text)
        if size > memory_bytes:
            raise SampleError("unsupported", f"{what} of more than {memory_bytes} bytes decoded")
    whole = b"\n" + b"".join(pieces)
    if b"\n;" in whole:
        raise SampleError("unsupported", COMMENTS)
    before, *records = whole.split(b"\n>")
    if before.strip():
        raise SampleError("unrecognised_format", "the file does not begin with >")
    lines: list[bytes] = []
    for record in records:
        header, _, bases = record.partition(b"\n")
        lines += [b">" + header.rstrip(), bases.translate(None, BLANKS)]
    content = b"\n".join(lines)
    return InMemory(content), build_index(iter([content])) or {}


# --- the index --------------------------------------------------------------------------------------------------


def _read_fai(uri: str, source: RandomAccess) -> dict[str, Contig] | None:
    """The contigs of the .fai beside the file; None where there is none, or it belongs to another file."""
    if not exists(uri + ".fai"):
        return None
    rows = [line.split("\t") for line in read_bytes(uri + ".fai").decode("utf-8", "replace").splitlines() if line]
    if not all(len(row) >= 5 and all(number.isdigit() for number in row[1:5]) for row in rows):
        return None
    contigs = {row[0]: Contig(row[0], *map(int, row[1:5])) for row in rows}
    return (
        contigs
        if contigs and len(contigs) == len(rows) and all(_fits(source, each) for each in contigs.values())
        else None
    )


LONGEST_LINE_END = 2**16
"""Blanks and all: an index that states more is of another file, and is not to decide how much is read."""


def _fits(source: RandomAccess, contig: Contig) -> bool:
    """Whether the file has the contig's header before its first base, nothing but a line end after its first line (in a line
    with blanks, samtools counts the letters and then reads others), and another header or nothing after its last base.
    """
    before = source.read(max(0, contig.offset - 8192), contig.offset)
    header = before[before.rfind(b"\n>") + 1 :] if b"\n>" in before else before
    named = header[1:].split(None, 1)[:1] == [contig.name.encode()] and header[:1] == b">"
    named = named and header.find(b"\n") == len(header) - 1
    whole_lines = contig.length <= contig.bases
    if not whole_lines and 0 <= contig.width - contig.bases <= LONGEST_LINE_END:
        after_line = source.read(contig.offset + contig.bases, contig.offset + contig.width)
        whole_lines = not after_line.strip(BLANKS)
    end = contig.byte(contig.length - 1) + 1 if contig.length else contig.offset
    return named and whole_lines and source.read(end, end + 64).lstrip(BLANKS)[:1] in (b"", b">")


class _Building:
    """A contig whose lines are being counted."""

    def __init__(self, name: str, offset: int) -> None:
        self.name, self.offset = name, offset
        self.length = self.bases = self.width = 0
        self.ended = False
        """A line shorter than the first was seen: no base may follow."""

    def add(self, bases: np.ndarray, widths: np.ndarray) -> bool:
        """Count lines. False where they are of unequal length, so that offsets cannot be computed."""
        filled = np.flatnonzero(bases)
        if len(filled) == 0:
            self.ended |= len(bases) > 0
            return True
        if self.ended or filled[-1] + 1 != len(filled):
            return False
        if not self.bases:
            self.bases, self.width = int(bases[0]), int(widths[0])
        full = (bases[filled] == self.bases) & (widths[filled] == self.width)
        self.length += int(bases[filled].sum())
        self.ended = len(bases) > len(filled) or not full[-1]
        return bool(full[:-1].all()) and int(bases[filled[-1]]) <= self.bases

    def contig(self) -> Contig:
        return Contig(self.name, self.length, self.offset, self.bases, self.width)


def build_index(chunks: Iterator[bytes]) -> dict[str, Contig] | None:
    """The contigs of a FASTA file in one pass, as samtools faidx counts them; None where lines are of unequal length or
    hold blanks.

    Raises SampleError: `unrecognised_format` where the file does not begin with >, `corrupt` for a repeated name.
    """
    contigs: dict[str, Contig] = {}
    current: _Building | None = None
    offset = 0
    for chunk in _whole_lines(chunks):
        text = np.frombuffer(chunk, np.uint8)
        ends = np.flatnonzero(text == 10)
        if len(ends) == 0 or ends[-1] != len(text) - 1:
            ends = np.append(ends, len(text))  # the last line of the file has no line end
        starts = np.append(0, ends[:-1] + 1)
        bases = ends - starts
        bases -= (bases > 0) & (text[np.maximum(ends - 1, 0)] == 13)
        widths = ends + 1 - starts
        headers = np.flatnonzero(text[starts] == ord(">"))
        if (text[starts] == ord(";")).any():
            raise SampleError("unsupported", COMMENTS)
        if _blanks_between_bases(chunk, text, starts, headers):
            return None
        for first, last in zip(np.append(-1, headers), np.append(headers, len(starts)), strict=True):
            if first >= 0:
                line = chunk[starts[first] + 1 : ends[first]]
                current = _next(contigs, current, line, offset + int(ends[first]) + 1)
            rows = slice(first + 1, last)
            if current is None and bases[rows].any():
                raise SampleError("unrecognised_format", "the file does not begin with >")
            if current is not None and not current.add(bases[rows], widths[rows]):
                return None
        offset += len(chunk)
    if current is not None:
        _keep(contigs, current)
    return contigs


def _blanks_between_bases(chunk: bytes, text: np.ndarray, starts: np.ndarray, headers: np.ndarray) -> bool:
    """Whether a line that is not a header holds a space or a tab."""
    if b" " not in chunk and b"\t" not in chunk:
        return False
    lines = np.searchsorted(starts, np.flatnonzero((text == 32) | (text == 9)), side="right") - 1
    return not np.isin(lines, headers).all()


def _whole_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, cut after line ends."""
    rest = b""
    for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if end == 0:
            rest += chunk
            continue
        yield rest + chunk[:end]
        rest = chunk[end:]
    if rest:
        yield rest


def _next(contigs: dict[str, Contig], current: _Building | None, header: bytes, offset: int) -> _Building:
    if current is not None:
        _keep(contigs, current)
    words = header.split(None, 1)
    return _Building(words[0].decode("utf-8", "replace") if words else "", offset)


def _keep(contigs: dict[str, Contig], built: _Building) -> None:
    if built.name in contigs:
        raise SampleError("corrupt", "two FASTA records have one name")
    contigs[built.name] = built.contig()
