"""Scan: the format of one file of the archive, by its content, and the records or windows that it holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import xxhash

from medray.archive.eligibility import Fact
from medray.archive.entries import Part, digest
from medray.errors import SampleError
from medray.modalities.genomics.codes import BAD, SOFT, N, reverse_complement, to_codes
from medray.modalities.genomics.facts import record_facts, window_facts
from medray.modalities.genomics.formats.fasta import fasta
from medray.modalities.genomics.formats.fastq import fastq
from medray.modalities.genomics.formats.features import LocationPart, Overlap, cuts, groups
from medray.modalities.genomics.formats.genbank import genbank, remote_parts
from medray.modalities.genomics.formats.records import Reader, SequenceRecord
from medray.modalities.genomics.formats.table import delimiter, parquet_rows, text_table
from medray.modalities.genomics.formats.text import Chunk, blocks
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.genomics.windows import Stretch, tile
from medray.modalities.patterns import matches_glob
from medray.storage.files import File, relative

DIGITS = 19
"""Digits of an offset in a locator, so that text order is file order up to 2^63."""


def sniff(head: bytes) -> str:
    """ "fasta", "fastq", "genbank", "vcf", "sam", "gff", "parquet", "table" or "" by the first block of the text."""
    text = head.lstrip()
    if text.startswith(b">"):
        return "fasta"
    if re.match(rb"@(HD|SQ|RG|PG|CO)\t", text):
        return "sam"
    if text.startswith(b"@"):
        return "fastq"
    if re.search(rb"^LOCUS {3,}", head[:65536], re.MULTILINE):
        return "genbank"
    if text.startswith(b"##fileformat=VCF"):
        return "vcf"
    if text.startswith(b"##gff-version"):
        return "gff"
    if text.startswith(b"PAR1"):
        return "parquet"
    return "table" if text and b"\0" not in head and delimiter(text.split(b"\n", 1)[0]) else ""


def locator(start: int, end: int) -> str:
    return f"{start:0{DIGITS}d}-{end:0{DIGITS}d}"


def span(locator: str) -> tuple[int, int]:
    """(start, end) of a locator. Raises ValueError."""
    start, _, end = locator.partition("-")
    return int(start), int(end)


def scan(spec: GenomicsSpec, file: File, root: str) -> Iterator[Part]:
    """The parts of one file, one per record or window, as they are met; what cannot be read is a part with a reason.

    A file that breaks off gives the parts before the break, and one part under the bare path for what is lost.
    Raises OSError.
    """
    path = relative(file.uri, root)
    if matches_glob(path, spec.ignore):
        return
    stamp = digest(f"{file.size}:{file.modified_ns}".encode())  # changes when the file does
    whole = Part(path, file.uri, digest=stamp, size=file.size, modified_ns=file.modified_ns)
    names, has_record = _EntryIds(path), False
    try:
        kind, records = open_records(spec, file.uri)
        claimed = remote_parts(blocks(file.uri), spec.label_feature) if kind == "genbank" and spec.label_feature else {}
        for record in records:
            has_record = True
            record = _with_claims(record, spec.label_feature, claimed)
            entry_id = names.of(record.name)
            failed = Part(entry_id, file.uri, digest=stamp, modified_ns=file.modified_ns, subject=record.subject)
            if record.problem is not None:
                yield _refused(failed, record.problem)
            elif spec.entries == "windows":
                yield from _windows(
                    spec, record, replace(failed, facts=window_facts(kind, record, bool(spec.subject_pattern)))
                )
            else:
                yield _whole_record(spec, record, replace(failed, facts=record_facts(kind)))
        if not has_record:
            raise SampleError("empty_sequence", "a header, and no record after it")
    except SampleError as error:
        yield _refused(whole, error)


def _with_claims(record: SequenceRecord, kind: str | None, claimed: dict[str, list[LocationPart]]) -> SequenceRecord:
    """The record with the parts of it that features of other records of its file claim."""
    added = claimed.get(record.name, []) + claimed.get(record.name.partition(".")[0], [])
    if not added or kind is None:
        return record
    parts = record.features.parts
    parts = {**parts, kind: [*parts.get(kind, []), *added]}
    return replace(record, features=replace(record.features, parts=parts))


def _refused(part: Part, problem: SampleError) -> Part:
    return replace(part, reason=problem.reason, detail=problem.detail or None)


def open_records(spec: GenomicsSpec, uri: str) -> tuple[str, Iterator[SequenceRecord]]:
    """(what `sniff` says, the records) of a file of any format. Raises SampleError and OSError, and so do the records."""
    feed = blocks(uri)
    first = next(feed, Chunk(0, b""))
    if not first.text:
        raise SampleError("empty_file")
    kind = sniff(first.text)
    readers: dict[str, Reader] = {"fasta": fasta, "fastq": fastq, "genbank": genbank, "table": text_table(spec)}
    if kind == "parquet":
        return kind, parquet_rows(spec, uri)
    if kind in readers:
        return kind, readers[kind](chain([first], feed))
    if kind:
        raise SampleError("unsupported", f"{kind} holds no sequences to read as records or windows")
    raise SampleError("unrecognised_format", "binary content" if b"\0" in first.text else "text")


@dataclass
class _EntryIds:
    """Entry ids of one file: path#record, and path#record~2 for the second record of that name."""

    path: str
    _seen: set[int] = field(default_factory=set[int])
    _again: dict[str, int] = field(default_factory=dict[str, int])
    _count: int = 0

    def of(self, name: str) -> str:
        self._count += 1
        base = unique = name or f"record {self._count}"
        while (key := xxhash.xxh3_64_intdigest(unique.encode())) in self._seen:
            self._again[base] = self._again.get(base, 1) + 1
            unique = f"{base}~{self._again[base]}"
        self._seen.add(key)
        return f"{self.path}#{unique}"


# --- records ----------------------------------------------------------------------------------------------------


def _whole_record(spec: GenomicsSpec, record: SequenceRecord, part: Part) -> Part:
    """A record as one part, its bases digested as they stream by."""
    content, letters = xxhash.xxh3_128(), Letters()
    kept_codes: list[bytes] = []
    start, end = None, 0
    for piece in record.pieces:
        codes = to_codes(piece.text, spec.soft_mask)
        content.update(codes)
        letters.add(codes)
        start, end = piece.offset if start is None else start, piece.offset + len(piece.text)
        if spec.subject == "sequence":
            kept_codes.append(codes)
    start = start or 0
    part = replace(part, digest=content.digest(), size=end - start, facts=_with_alphabets(part.facts)[letters.alphabet])
    problem = record.lost() or letters.problem()
    if problem:
        return _refused(part, problem)
    subject, person = _subject(spec, record, b"".join(kept_codes), None)
    part = replace(part, locator=locator(start, end), split=record.split, subject=subject, person=person)
    try:
        return replace(part, label=_label(spec, record, _overlap(spec, record), 0, letters.total))
    except SampleError as unclear:
        return _refused(part, unclear)


_USUAL = bytes([*range(N + 1), *range(SOFT, SOFT + N + 1)])


ALPHABETS = ("acgt", "acgtn", "iupac")
"""Bases alone, with N, with other ambiguity codes."""


def _with_alphabets(facts: Mapping[str, Fact] | None) -> dict[str, dict[str, Fact]]:
    """The facts of an entry, by alphabet: the windows of a record share them."""
    return {alphabet: {**(facts or {}), "alphabet": alphabet} for alphabet in ALPHABETS}


class Letters:
    """Counts of the kinds of letters, to tell DNA from other text."""

    def __init__(self) -> None:
        self.total = self.unusual = self.bad = self.unknown = 0

    def add(self, codes: bytes) -> Letters:
        rest = codes.translate(None, _USUAL)
        self.total += len(codes)
        self.unusual += len(rest)
        self.bad += rest.count(BAD)
        self.unknown += codes.count(N) + codes.count(SOFT + N)
        return self

    @property
    def alphabet(self) -> str:
        """Which of ALPHABETS these letters are of."""
        return ALPHABETS[2 if self.unusual else 1 if self.unknown else 0]

    def problem(self) -> SampleError | None:
        """Why this is not DNA; None where it may be."""
        if self.total == 0:
            return SampleError("empty_sequence")
        if self.bad:
            return SampleError("not_dna", f"{self.bad} of {self.total} letters are not nucleotide codes")
        if self.unusual * 2 > self.total:  # every letter of a protein can be a nucleotide code; DNA is never mostly so
            return SampleError("not_dna", f"{self.unusual} of {self.total} letters are ambiguity codes other than N")
        return None


def _subject(
    spec: GenomicsSpec, record: SequenceRecord, codes: bytes, otherwise: str | None
) -> tuple[str | None, bool]:
    """`subject` and `person` of a Part: who the entry is from; None where it is its own subject."""
    if record.subject is not None:
        return record.subject, True
    if spec.subject_pattern and (match := re.search(spec.subject_pattern, record.header)):
        return match.group(1), True
    if spec.subject == "sequence":
        plain = to_plain(codes)
        return f"sequence {min(digest(plain), digest(reverse_complement(plain))).hex()}", False
    return otherwise, False


def _overlap(spec: GenomicsSpec, record: SequenceRecord) -> Overlap | None:
    """Where the record's labelled features lie; None where labels come from elsewhere."""
    return Overlap(record.features.parts.get(spec.label_feature, [])) if spec.label_feature else None


def _label(
    spec: GenomicsSpec, record: SequenceRecord, covered: Overlap | None, start: int, end: int
) -> tuple[str, ...]:
    """Raises SampleError `unclear_label` where a feature of vague place decides it."""
    if record.label is not None:
        return (record.label,)
    if spec.label_pattern and (match := re.search(spec.label_pattern, record.header)):
        return (match.group(1),) if match.group(1) else ()
    if covered is None:
        return ()
    least, most = covered.bases(start, end)
    needed = spec.label_fraction * (end - start)
    if least < needed <= most:
        raise SampleError(
            "unclear_label",
            f"{least} to {most} of {end - start} bases lie in {spec.label_feature}, {needed:g} are needed to call it coding",
        )
    return ("coding" if least >= needed else "noncoding",)


# --- windows ----------------------------------------------------------------------------------------------------


def _windows(spec: GenomicsSpec, record: SequenceRecord, part: Part) -> Iterator[Part]:
    """The windows of a record, named by their bases from 1, both ends included, as samtools names regions.

    Where a record breaks off, the window that reaches the break is left out, and one failed part stands for the record.
    """
    # a FASTA record has no annotation, so nothing says where it may be cut: it is one segment
    positions = cuts(record.features, spec.segment_bases) if spec.subject == "segment" else []
    group = groups(record.features, positions) if positions else [0]
    covered = _overlap(spec, record)
    facts = _with_alphabets(part.facts)
    last: Stretch | None = None
    for each in tile(record.pieces, spec.length, spec.step, positions, spec.soft_mask):
        if last is not None:
            yield _window(spec, record, part, last, group, covered, facts)
        last = each
    problem = record.lost() or (SampleError("empty_sequence") if last is None else None)
    if last is not None and (problem is None or last.end - last.start == spec.length):
        yield _window(spec, record, part, last, group, covered, facts)
    if problem is not None:
        yield _refused(part, problem)


def _window(
    spec: GenomicsSpec,
    record: SequenceRecord,
    part: Part,
    each: Stretch,
    group: list[int],
    covered: Overlap | None,
    facts: Mapping[str, Mapping[str, Fact]],
) -> Part:
    window = Part(
        f"{part.entry_id}:{each.start + 1}-{each.end}",
        part.uri,
        locator=locator(each.text_start, each.text_end),
        digest=digest(each.codes),
        size=each.text_end - each.text_start,
        modified_ns=part.modified_ns,
        subject=record.subject,
    )
    letters = Letters().add(each.codes)
    window = replace(window, facts=facts[letters.alphabet])
    problem = letters.problem()
    if problem:
        return _refused(window, problem)
    unit = f"{part.entry_id} segment {group[each.segment]}" if spec.subject == "segment" else part.entry_id
    subject, person = _subject(spec, record, each.codes, unit)
    window = replace(window, split=record.split, subject=subject, person=person)
    try:
        return replace(window, label=_label(spec, record, covered, each.start, each.end))
    except SampleError as unclear:
        return _refused(window, unclear)


_PLAIN = bytes(code & 127 for code in range(256))


def to_plain(codes: bytes) -> bytes:
    """Codes without their soft-mask mark."""
    return codes.translate(_PLAIN)
