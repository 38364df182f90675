"""Scores of variants back into their VCF: the same lines, with INFO fields and header lines of medray's own.

    MEDRAY_<output>   Number=A, Type=Float: the score of each alternate allele, `.` where it has none
    MEDRAY_REASON     Number=A, Type=String: why an allele has no score, `.` where it has
    ##medray_bundle, ##medray_run, ##medray_version   what the scores are of

Records are found again by their number in the file, which is in the sample ids; the fingerprints of the entries tell
whether the records are still those that were scored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa
import xxhash

import medray
from medray.errors import SampleError, UserError
from medray.files import absolute, new_file
from medray.modalities.genomics import text, vcf
from medray.modalities.genomics.variants import record_of
from medray.scores import ScoreStore

BLOCK_ID = r"^(.*)#[0-9]{8,}$"
"""Entry ids of blocks of variants: the path in the archive, then the number of the block."""
PREFIX = "MEDRAY_"
REASON = PREFIX + "REASON"
NOT_SCORED = "not_scored"
"""The reason of an allele of which the store holds nothing."""


def export_vcf(store: ScoreStore, bundle_id: str, source: str, out: str) -> dict[str, Any]:
    """Write the VCF `source` to `out`, bgzip where that ends with .gz or .bgz, with this bundle's scores of it.

    Streams: one block of records is in memory. Raises UserError where the store has no scores of the file, where its
    records have changed since, and where it cannot be read; then nothing is left at `out`.
    """
    source, out = absolute(source), absolute(out)
    if source == out or not re.search(r"\.vcf(\.b?gz)?$", out):
        raise UserError("this cannot be the new file", where=out, expected="a new name that ends with .vcf or .vcf.gz")
    path, scored = _match(store, bundle_id, source)
    names = {output: _info_id(output) for output in scored["outputs"] if output is not None}
    facts = {"bundle": bundle_id, "run": ",".join(scored["run_ids"]), "version": medray.__version__}
    counts: Counter[str] = Counter()
    try:
        header, pieces = vcf.split_header(text.blocks(source))
        lines = (line for _, line in text.lines(pieces))
        with _written(out) as write:
            write(_header(header.text, names, facts))
            for line in _annotated(lines, _blocks(store.stream(bundle_id, f"{path}#")), names, counts, source):
                write(line)
    except SampleError as error:
        raise UserError("the VCF cannot be read", where=source, found=str(error)) from None
    return {"out": out, **{name: counts[name] for name in ("records", "alleles", "scored", "failed", NOT_SCORED)}}


def _match(store: ScoreStore, bundle_id: str, source: str) -> tuple[str, dict[str, Any]]:
    """The path in the archive, as entry ids have it, of the scored file that `source` is, and what is scored of it."""
    known = {row["group"]: row for row in store.outline(bundle_id, BLOCK_ID)}
    found = [path for path in known if source == path or source.endswith("/" + path)]
    found = sorted(found, key=len)[-1:] or [p for p in known if p.rsplit("/", 1)[-1] == source.rsplit("/", 1)[-1]]
    if len(found) != 1:
        raise UserError(
            "the store has no scores of this file" if not found else "several scored files have this name",
            where=source,
            found=", ".join(sorted(found or known)[:5]) or "no scores of variants",
            expected="a VCF under its path in the scored archive",
            do="score it first (medray score), or name the bundle (--bundle)",
        )
    return found[0], known[found[0]]


@contextmanager
def _written(out: str) -> Iterator[Callable[[bytes], object]]:
    """A function that appends bytes to the new file; what was written is removed when the block raises."""
    with new_file(out) as stream:
        if out.endswith(".vcf"):
            yield stream.write
            return
        from Bio.bgzf import BgzfWriter

        writer = BgzfWriter(fileobj=stream)
        yield writer.write
        writer.flush()  # then the empty member that ends a bgzip file; the stream is closed by its owner
        stream.write(_BGZIP_END)


_BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


# --- the header -------------------------------------------------------------------------------------------------


def _info_id(output: str) -> str:
    """A key of the INFO column: letters, digits, _ and . (VCF 4.3, 1.6.1)."""
    return PREFIX + re.sub(r"[^0-9A-Za-z_.]", "_", output)


def _header(text: bytes, names: dict[str, str], facts: dict[str, str]) -> bytes:
    """The header with medray's lines before #CHROM; those of an earlier export are replaced."""
    if len(set(names.values())) < len(names):
        raise UserError("two outputs have one name in VCF", found=", ".join(names))
    *lines, columns = text.decode().splitlines(keepends=True)
    end = "\r\n" if columns.endswith("\r\n") else "\n"
    kept = [line for line in lines if not re.match(rf"##medray_|##INFO=<ID={PREFIX}", line)]
    own = [f"##medray_{name}={value}" for name, value in facts.items()]
    own += [
        f'##INFO=<ID={key},Number=A,Type=Float,Description="Score {_quoted(output)} of medray, by alternate allele">'
        for output, key in names.items()
    ]
    own.append(f'##INFO=<ID={REASON},Number=A,Type=String,Description="Why an alternate allele has no score">')
    columns = columns if columns.endswith("\n") else columns + end
    return "".join([*kept, *(line + end for line in own), columns]).encode()


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


# --- the records ------------------------------------------------------------------------------------------------


@dataclass
class _Block:
    """What the store holds of one entry."""

    fingerprint: bytes
    alleles: dict[int, dict[int, dict[str, float] | str]] = field(default_factory=dict)
    """Record number to allele index to scores by output, or the reason of a failure."""


def _blocks(batches: Iterator[pa.RecordBatch]) -> Iterator[_Block]:
    """Rows of the store, ordered by entry, to entries with at least one record."""
    entry_id, block = None, _Block(b"")
    for batch in batches:
        for entry, sample_id, fingerprint, output, value, reason in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        ):
            if entry != entry_id:
                if block.alleles:
                    yield block
                entry_id, block = entry, _Block(fingerprint)
            if not sample_id:
                continue  # the whole entry failed: which records it has, the store does not know
            record, allele = record_of(sample_id)
            alleles = block.alleles.setdefault(record, {})
            if reason is not None:
                alleles[allele] = reason
            else:
                scores = alleles.setdefault(allele, {})
                if isinstance(scores, dict):
                    scores[output] = value
    if block.alleles:
        yield block


def _annotated(
    lines: Iterator[bytes], blocks: Iterator[_Block], names: dict[str, str], counts: Counter[str], source: str
) -> Iterator[bytes]:
    """Every record line with its INFO fields, in order. Raises UserError where a block's records have changed."""
    number = 0
    for block in blocks:
        first, last = min(block.alleles), max(block.alleles)
        if first < number:
            continue  # left from an index with other blocks; these records have newer scores
        content, ahead = xxhash.xxh3_64(), b""
        for ahead in lines:
            if number >= first:
                content.update(ahead)
            yield _with_info(ahead, block.alleles.get(number, {}), names, counts)
            number += 1
            if number > last:
                break
        blank = []
        for ahead in lines:  # blank lines at the end of a file belong to its last block
            if ahead.strip():
                lines = chain([ahead], lines)
                break
            blank.append(ahead)
            content.update(ahead)
        if content.digest() != block.fingerprint[:8]:
            raise UserError(
                "the records are not those that were scored",
                where=source,
                found=f"other content in records {first + 1} to {last + 1}",
                do="score the file again (medray score), then export",
            )
        yield from blank
        number += len(blank)
    for line in lines:
        yield _with_info(line, {}, names, counts) if line.strip() else line


def _with_info(
    line: bytes, alleles: dict[int, dict[str, float] | str], names: dict[str, str], counts: Counter[str]
) -> bytes:
    """One record line with its scores; a line without 8 columns, or without alternate alleles, stays as it is."""
    columns = line.split(b"\t", 8)
    counts["records"] += 1
    if len(columns) < 8:
        return line
    alts = columns[4].split(b",")
    if alts == [b"."]:
        return line
    found = [alleles.get(i, NOT_SCORED) for i in range(len(alts))]
    counts["alleles"] += len(found)
    counts.update("scored" if isinstance(f, dict) else NOT_SCORED if f == NOT_SCORED else "failed" for f in found)
    own: list[str] = []
    if any(isinstance(each, dict) for each in found):
        for output, key in names.items():
            own.append(f"{key}=" + ",".join(_number(f[output]) if isinstance(f, dict) else "." for f in found))
    if any(isinstance(each, str) for each in found):
        own.append(f"{REASON}=" + ",".join(each if isinstance(each, str) else "." for each in found))
    info = columns[7].rstrip(b"\r\n")
    end = columns[7][len(info) :]
    kept = [each for each in info.split(b";") if each not in (b".", b"") and not each.startswith(PREFIX.encode())]
    columns[7] = b";".join([*kept, *(each.encode() for each in own)]) + end
    return b"\t".join(columns)


def _number(value: float) -> str:
    """Six digits: what float32 holds, nearly."""
    return f"{value:.6g}"
