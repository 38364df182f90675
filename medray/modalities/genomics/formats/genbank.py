"""GenBank: the annotation by Biopython, the bases as a stream with offsets; the translation of a CDS."""

# Biopython gives some of its values no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from medray.errors import SampleError
from medray.modalities.genomics.codes import BLANKS
from medray.modalities.genomics.formats.features import ANYWHERE, LocationPart, features
from medray.modalities.genomics.formats.records import SequenceRecord, decode
from medray.modalities.genomics.formats.text import BLOCK, Chunk, LineReader

if TYPE_CHECKING:
    from Bio.Seq import MutableSeq, Seq
    from Bio.SeqFeature import CompoundLocation, SeqFeature, SimpleLocation
    from Bio.SeqRecord import SeqRecord

NUMBER = re.compile(rb"[ \t]*\d+(?=\s)")
"""The beginning of a line of bases: the number of its first base, from 1."""
AMINO_ACIDS = re.compile(rb"LOCUS +\S+ +\d+ +aa\b")
FEATURE = re.compile(rb" {5}(\S+) +(\S.*?)\s*$")
REMOTE = re.compile(r"([A-Za-z_][\w.]*):([^,):]*\d[^,):]*)")
"""A part of a location that lies in another record: its accession, and the location there."""
EXCEPTION = re.compile(r"\(pos:(.+),aa:(\w+)\)")
JOINED = BLOCK >> 4
"""Bytes of sequence lines that are joined to one piece."""


def genbank(chunks: Iterator[Chunk]) -> Iterator[SequenceRecord]:
    """Records of a GenBank flat file. Lines outside of records, except a release's header above the first, become a
    record with a problem. Raises SampleError where the text breaks off, `truncated` where the last record has no //.
    """
    feed = LineReader(chunks)
    bases: _Bases | None = None
    while True:
        stray = _stray(feed, first=bases is None)
        if stray is not None:
            yield stray
        head, ended = _head(feed)
        if not head:
            break
        bases = _Bases(feed, head, done=ended)
        yield _record(head, bases)
        for _ in bases:  # skip what the caller did not read
            pass
    if feed.broken is not None:
        raise feed.broken
    if bases is not None and not bases.done and not bases.cut_short:
        raise SampleError("truncated", "the last GenBank record does not end with //")


def _stray(feed: LineReader, first: bool) -> SequenceRecord | None:
    """A record that cannot be read, for the lines before the next LOCUS line; None where they hold nothing."""
    count, marks = 0, False
    while (line := feed.next_filled()) is not None and not line.text.startswith(b"LOCUS"):
        count += 1
        marks = marks or line.text.startswith((b"FEATURES", b"ORIGIN", b"//"))
    if line is not None:
        feed.put_back(line)
    if not count or (first and not marks):
        return None
    return SequenceRecord("", problem=SampleError("corrupt", f"{count} lines of a GenBank record without a LOCUS line"))


def _head(feed: LineReader) -> tuple[bytes, bool]:
    """(everything from LOCUS to before ORIGIN, // or the next LOCUS, whether there is no ORIGIN)"""
    head: list[bytes] = []
    while (line := feed.next()) is not None:
        if line.text.startswith(b"ORIGIN"):
            return b"".join(head), False
        if line.text.startswith(b"//"):
            return b"".join(head), True
        if head and line.text.startswith(b"LOCUS"):
            feed.put_back(line)
            return b"".join(head), True
        head.append(line.text)
    return b"".join(head), False


class _Bases:
    """The lines from ORIGIN to //, many lines to a piece, in upper case: in GenBank, lower case marks no repeat.

    Each line states the number of its first base. Where that does not follow the last base, a line is missing or doubled:
    the position of what follows is unknown, and it is left out.
    """

    def __init__(self, feed: LineReader, head: bytes, done: bool) -> None:
        self._feed, self.done = feed, done
        self.cut_short = False
        """The next record began before //."""
        locus = re.match(rb"LOCUS +\S+ +(\d+) +(?:bp|aa)", head)
        self._stated = int(locus[1]) if locus else None
        self._count = 0
        self._problem: SampleError | None = None

    def __iter__(self) -> Iterator[Chunk]:
        texts: list[bytes] = []
        start = size = 0
        while (chunk := self._line()) is not None:
            if not texts:
                start, size = chunk.offset, 0
            texts.append(chunk.text)
            size += len(chunk.text)
            if size >= JOINED:
                yield Chunk(start, b"".join(texts).upper())
                texts = []
        if texts:
            yield Chunk(start, b"".join(texts).upper())

    def _line(self) -> Chunk | None:
        """The next line, its number replaced by blanks; None after the last line whose position is known."""
        while not self.done and not self.cut_short:
            chunk = self._feed.next()
            if chunk is None:
                if self._feed.broken is not None:
                    raise self._feed.broken
                break
            if chunk.text.startswith(b"//"):
                self.done = True
            elif chunk.text.startswith(b"LOCUS"):
                self._feed.put_back(chunk)
                self.cut_short = True
            elif self._problem is None:
                text = self._numbered(chunk.text)
                if self._problem is None:
                    return Chunk(chunk.offset, text)
        return None

    def _numbered(self, line: bytes) -> bytes:
        number = NUMBER.match(line)
        if number is not None and int(number[0]) != self._count + 1:
            detail = f"the line of base {int(number[0])} comes after {self._count} bases"
            self._problem = SampleError("corrupt", detail)
            return b""
        at = number.end() if number else 0
        text = b" " * at + line[at:]
        self._count += len(text) - sum(text.count(blank) for blank in (b" ", b"\t", b"\r", b"\n"))
        return text

    def lost(self) -> SampleError | None:
        """The problem that shows once all lines are read: a gap in the numbers, or other than as many bases as LOCUS says."""
        if self._problem is not None or self._count == self._stated:
            return self._problem
        if self._stated is not None and self._count:
            reason = "truncated" if self._count < self._stated and not self.done else "corrupt"
            return SampleError(reason, f"LOCUS says {self._stated} bases, {self._count} are there")
        return SampleError("truncated", "the record has no // at its end") if self.cut_short else None


def _record(head: bytes, bases: _Bases) -> SequenceRecord:
    try:
        if AMINO_ACIDS.match(head):
            raise SampleError("not_dna", "a record of amino acids")
        parsed = annotation(decode(head))
    except SampleError as problem:
        return SequenceRecord("", bases, problem=problem)
    return SequenceRecord(
        (parsed.id if parsed.id not in ("", ".", "<unknown id>") else parsed.name) or "",
        bases,
        f"{parsed.id} {parsed.description}",
        features=features(parsed, len(parsed)),
        build=next((each.partition(":")[2] for each in parsed.dbxrefs if each.startswith("Assembly:")), None),
        problem=SampleError("empty_sequence", "a GenBank record without ORIGIN") if bases.done else None,
        lost=bases.lost,
    )


def annotation(head: str) -> SeqRecord:
    """The part of a GenBank record before ORIGIN as a Biopython record without bases. Raises SampleError `corrupt`."""
    from Bio import BiopythonParserWarning, SeqIO

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", BiopythonParserWarning
        )  # about odd LOCUS lines and locations, which are read as they are
        try:
            return SeqIO.read(io.StringIO(f"{head}\nORIGIN\n//\n"), "genbank")
        except (
            ValueError,
            AssertionError,
            IndexError,
            KeyError,
            AttributeError,
            TypeError,
        ) as error:  # raised for damaged text
            raise SampleError("corrupt", f"Biopython's GenBank parser: {type(error).__name__}") from None


def remote_parts(chunks: Iterator[Chunk], kind: str) -> dict[str, list[LocationPart]]:
    """Accession → parts of it that features of type `kind` in other records of the file claim: join(1..9,J00194.1:5..8).

    Covers the file as far as it can be read; where it breaks off is reported by the reader of its records.
    """
    claims: dict[str, list[LocationPart]] = {}
    location: list[bytes] | None = None
    feed = LineReader(chunks)
    while (line := feed.next_filled()) is not None:
        key = FEATURE.match(line.text)
        if key is not None:
            location = [key[2]] if key[1] == kind.encode() else None
        elif location is not None and line.text.startswith(b" " * 21) and line.text[21:22] != b"/":
            location.append(line.text.strip())
        elif location is not None:
            _add_remote(claims, b"".join(location).decode("ascii", "replace"))
            location = None
    return claims


def _add_remote(claims: dict[str, list[LocationPart]], location: str) -> None:
    for accession, extent in REMOTE.findall(location):
        bases = [int(number) for number in re.findall(r"\d+", extent)]
        interval = (max(0, min(bases) - 1), max(bases))
        exact = re.fullmatch(r"\d+(\.\.\d+)?", extent) is not None
        claims.setdefault(accession, []).append(
            LocationPart(interval if exact else (0, 0), interval if exact else (0, ANYWHERE))
        )


def annotated(chunks: Iterator[Chunk]) -> Iterator[SeqRecord]:
    """Whole Biopython records, bases included; what cannot be read is left out."""
    from Bio.Seq import Seq

    feed = LineReader(chunks)
    while True:
        _stray(feed, first=False)
        head, ended = _head(feed)
        if not head:
            return
        pieces = _Bases(feed, head, done=ended)
        try:
            bases = b"".join(piece.text for piece in pieces).translate(None, BLANKS)
            record = annotation(decode(head))
        except SampleError:
            continue
        record.seq = Seq(bases)
        yield record


def translate(feature: SeqFeature, sequence: Seq | MutableSeq) -> str:
    """Protein letters of a CDS, up to its first stop codon, from `codon_start`; bases past the last codon are left out.

    The genetic code is the feature's transl_table (default 1). A complete 5' end that begins with a start codon of
    that code gives M; a fuzzy one is translated as it stands; codons of transl_except are what it says (INSDC feature
    table, /codon_start, /transl_table, /transl_except). Raises SampleError for a CDS that cannot be translated.
    """
    from Bio.Data.CodonTable import TranslationError

    if feature.location is None:
        raise SampleError("corrupt", "the location of the CDS cannot be read")
    if any(part.ref for part in feature.location.parts):
        raise SampleError("unsupported", "a part of the CDS lies in another record")
    spans = [(int(part.start), int(part.end)) for part in feature.location.parts]  # pyright: ignore[reportArgumentType]  # positions are integers
    # Biopython cuts it off at the end; going over its positions would take for ever where it ends at 10^13
    if sum(end - start for start, end in spans) <= 0 or any(start < 0 or end > len(sequence) for start, end in spans):
        raise SampleError("corrupt", "the CDS reaches beyond the bases of its record")
    try:
        return _translated(feature, feature.location, sequence)
    except TranslationError:
        raise SampleError("not_dna", "a codon with letters that are not nucleotide codes") from None
    except (ValueError, KeyError):
        raise SampleError("corrupt", "codon_start, transl_table or transl_except of the CDS cannot be read") from None


def _translated(feature: SeqFeature, location: SimpleLocation | CompoundLocation, sequence: Seq | MutableSeq) -> str:
    """Raises ValueError, KeyError and TranslationError."""
    from Bio.Data import CodonTable
    from Bio.SeqFeature import ExactPosition

    skipped = int(feature.qualifiers.get("codon_start", ["1"])[0]) - 1
    number = int(feature.qualifiers.get("transl_table", ["1"])[0])
    if not 0 <= skipped <= 2:
        raise ValueError("codon_start is 1, 2 or 3")
    coding = feature.extract(sequence)[skipped:]
    coding = coding[: len(coding) // 3 * 3]
    letters = list(str(coding.translate(str(number))))
    first = location.parts[0]
    begin = first.end if first.strand == -1 else first.start
    starts = CodonTable.unambiguous_dna_by_id[number].start_codons
    if letters and skipped == 0 and isinstance(begin, ExactPosition) and str(coding[:3]).upper() in starts:
        letters[0] = "M"
    for codon, letter in _exceptions(feature, location, skipped):
        if codon < len(letters):
            letters[codon] = letter
    return "".join(letters).partition("*")[0]


def _exceptions(
    feature: SeqFeature, location: SimpleLocation | CompoundLocation, skipped: int
) -> Iterator[tuple[int, str]]:
    """(number of the codon, letter) of each transl_except, such as (pos:complement(4..6),aa:Sec). Raises ValueError."""
    from Bio.SeqUtils import seq1

    letters = {"TERM": "*", "OTHER": "X", "Sec": "U", "Pyl": "O"}
    positions = list(location)
    for text in feature.qualifiers.get("transl_except", []):
        match = EXCEPTION.fullmatch(text.replace(" ", ""))
        if match is None:
            raise ValueError("no transl_except")
        bases = [int(number) - 1 for number in re.findall(r"\d+", match[1])]
        codon = (min(positions.index(base) for base in bases) - skipped) // 3
        yield codon, letters.get(match[2]) or seq1(match[2], undef_code="X")
