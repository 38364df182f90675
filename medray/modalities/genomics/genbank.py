"""GenBank: the annotation by Biopython, the bases as a stream with offsets; the translation of a CDS."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from medray.errors import SampleError
from medray.modalities.genomics.features import features
from medray.modalities.genomics.records import Record, decode
from medray.modalities.genomics.text import BLOCK, Chunk, lines

if TYPE_CHECKING:
    from Bio.Seq import MutableSeq, Seq
    from Bio.SeqFeature import SeqFeature
    from Bio.SeqRecord import SeqRecord

JOINED = BLOCK >> 4
"""Bytes of sequence lines that make one piece."""


def genbank(chunks: Iterator[Chunk]) -> Iterator[Record]:
    """Records of a GenBank flat file. Raises SampleError `truncated` where the last record does not end with //."""
    feed = lines(chunks)
    while True:
        head, ended = _head(feed)
        if not head:
            return
        state = _Bases(feed, done=ended)
        yield _record(head, state)
        for _ in state:  # what nobody asked for
            pass
        if not state.done:
            raise SampleError("truncated", "the last GenBank record does not end with //")


def _head(feed: Iterator[Chunk]) -> tuple[bytes, bool]:
    """(everything from LOCUS to before ORIGIN or //, whether // was met); what stands before LOCUS is left out."""
    head: list[bytes] = []
    for _, line in feed:
        if line.startswith(b"ORIGIN"):
            return b"".join(head), False
        if line.startswith(b"//"):
            return b"".join(head), True
        if head or line.startswith(b"LOCUS"):
            head.append(line)
    return b"".join(head), False


class _Bases:
    """The lines from ORIGIN to //, many lines to a piece, in upper case: in GenBank, lower case marks no repeat."""

    def __init__(self, feed: Iterator[Chunk], done: bool) -> None:
        self._feed, self.done = feed, done

    def __iter__(self) -> Iterator[Chunk]:
        held: list[bytes] = []
        start = size = 0
        while not self.done:
            chunk = next(self._feed, None)
            if chunk is None:
                break
            if chunk.text.startswith(b"//"):
                self.done = True
                break
            if not held:
                start, size = chunk.offset, 0
            held.append(chunk.text)
            size += len(chunk.text)
            if size >= JOINED:
                yield Chunk(start, b"".join(held).upper())
                held = []
        if held:
            yield Chunk(start, b"".join(held).upper())


def _record(head: bytes, pieces: _Bases) -> Record:
    try:
        parsed = annotation(decode(head))
    except SampleError as problem:
        return Record("", pieces, problem=problem)
    return Record(
        (parsed.id if parsed.id not in ("", ".", "<unknown id>") else parsed.name) or "",
        pieces,
        f"{parsed.id} {parsed.description}",
        features=features(parsed, len(parsed)),
        problem=SampleError("empty_sequence", "a GenBank record without ORIGIN") if pieces.done else None,
    )


def annotation(head: str) -> SeqRecord:
    """The part of a GenBank record before ORIGIN as a Biopython record without bases. Raises SampleError `corrupt`."""
    from Bio import BiopythonParserWarning, SeqIO

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiopythonParserWarning)  # of odd LOCUS lines and locations: read as they are
        try:
            return SeqIO.read(io.StringIO(f"{head}\nORIGIN\n//\n"), "genbank")
        except (ValueError, AssertionError, IndexError, KeyError) as error:  # what its parser raises for damage
            raise SampleError("corrupt", f"Biopython's GenBank parser: {type(error).__name__}") from None


def translate(feature: SeqFeature, sequence: Seq | MutableSeq) -> str:
    """Protein letters of a CDS, up to its first stop codon, from `codon_start`; bases past the last codon are left out.

    The genetic code is the feature's transl_table (default 1). A complete 5' end that begins with a start codon of
    that code gives M (INSDC feature table, /codon_start, /transl_table); a fuzzy one is translated as it stands.
    """
    from Bio.Data import CodonTable
    from Bio.SeqFeature import ExactPosition

    location = feature.location
    if location is None:
        raise SampleError("corrupt", "a CDS without a location")
    skipped = int(feature.qualifiers.get("codon_start", ["1"])[0]) - 1
    number = int(feature.qualifiers.get("transl_table", ["1"])[0])
    coding = feature.extract(sequence)[skipped:]
    coding = coding[: len(coding) // 3 * 3]
    protein = str(coding.translate(str(number), to_stop=True))
    first = location.parts[0]
    begin = first.end if first.strand == -1 else first.start
    complete = skipped == 0 and isinstance(begin, ExactPosition)
    starts = CodonTable.unambiguous_dna_by_id[number].start_codons
    return "M" + protein[1:] if complete and str(coding[:3]).upper() in starts and protein else protein
