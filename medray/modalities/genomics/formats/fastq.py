"""FASTQ: text to records, as Biopython's parser reads them; after damage, reading resumes at the next certain record.

Sequence and quality may span several lines, and @ and + are quality characters too (Cock et al. 2010, NAR 38:1767), so a
line that begins with @ need not begin a record. A record is whole when it has as many qualities as bases. After a damaged
one, reading resumes at the first whole record whose sequence lines hold nothing but nucleotide codes, and that is
followed by another record or the end of the file.
"""

from __future__ import annotations

from collections.abc import Iterator

from medray.errors import SampleError
from medray.modalities.genomics.codes import BAD, to_codes
from medray.modalities.genomics.formats.fasta import named
from medray.modalities.genomics.formats.records import SequenceRecord, first_word
from medray.modalities.genomics.formats.text import Chunk, LineReader


def fastq(chunks: Iterator[Chunk]) -> Iterator[SequenceRecord]:
    """Records of a FASTQ text. A damaged one carries its problem, which says how many lines after it were skipped.

    Raises SampleError where the text itself breaks off.
    """
    feed = LineReader(chunks)
    while (header := feed.next_filled()) is not None:
        try:
            bases = _whole(feed, header)
        except SampleError as problem:
            if feed.broken is None:
                yield _damaged(feed, header, problem)
        else:
            yield named(header.text[1:], iter(bases))
    if feed.broken is not None:
        raise feed.broken


def _whole(feed: LineReader, header: Chunk, strict: bool = False) -> list[Chunk]:
    """The sequence lines of the record that begins with `header`; `strict`: only where it certainly begins a record.

    Raises SampleError `corrupt` or `truncated` where no whole record begins there.
    """
    if not header.text.startswith(b"@"):
        raise SampleError("corrupt", "a FASTQ record that does not begin with @")
    bases: list[Chunk] = []
    while (line := feed.next()) is not None and not line.text.startswith(b"+"):
        if line.text.startswith(b"@"):
            raise SampleError("corrupt", "another @ before the + line")
        if strict and BAD in to_codes(line.text):
            raise SampleError("corrupt", "letters that are not nucleotide codes")
        bases.append(line)
    count = sum(len(line.text.strip()) for line in bases)
    if line is None:
        raise SampleError("truncated", "a FASTQ record ends early")
    repeated = line.text[1:].strip()
    if repeated and repeated != header.text[1:].strip():
        raise SampleError("corrupt", "the + line names another record than the @ line")
    qualities = _qualities(feed, count)
    if qualities < count:
        raise SampleError("truncated", "a FASTQ record ends early")
    if qualities > count:
        raise SampleError("corrupt", f"{count} bases, but {qualities} qualities")
    while (line := feed.next()) is not None and not line.text.strip():
        pass
    if line is not None:
        if strict and not line.text.startswith(b"@"):
            raise SampleError("corrupt", "what follows the qualities does not begin with @")
        feed.put_back(line)
    return bases


def _qualities(feed: LineReader, count: int) -> int:
    """Qualities read: lines until there are `count`, whatever they begin with, for @ and + are qualities too."""
    qualities = 0
    while (line := feed.next()) is not None:
        qualities += len(line.text.strip())
        if qualities >= count:
            break
    return qualities


def _damaged(feed: LineReader, header: Chunk, problem: SampleError) -> SequenceRecord:
    """The record with its problem; the lines up to the next whole record are skipped."""
    feed.rewind()
    skipped, ended = 0, False
    while True:
        line = feed.next_filled()
        if line is None:
            ended = True
            break
        if line.text.startswith(b"@"):
            try:
                _whole(feed, line, strict=True)
            except SampleError:
                feed.rewind()
            else:
                feed.rewind()
                feed.put_back(line)
                break
        skipped += 1
    rest = "the file has no whole record after it" if ended else "the next record is whole"
    detail = f"{problem.detail}; {skipped} more lines not read, {rest}"
    name = first_word(header.text[1:].decode("utf-8", "replace")) if header.text.startswith(b"@") else ""
    return SequenceRecord(name, problem=SampleError(problem.reason, detail))
