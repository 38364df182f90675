"""Scores of variants back into their VCF: the same lines, with INFO fields and header lines of one bundle's own.

    MEDRAY_<bundle>_<output>   Number=A, Type=Float: the score of each alternate allele, `.` where it has none
    MEDRAY_<bundle>_REASON     Number=A, Type=String: why an allele has no score, `.` where it has
    ##medray_scores=<ID=<bundle>,Bundle=…,Run=…,Version=…>   what the scores are of

<bundle> is how the bundle's id begins, so that the scores of two bundles stand side by side. Whatever else a header or a
record has stays as it is. Records are found in the store by what they say, as an index names them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from itertools import groupby

import pyarrow as pa

import medray
from medray.errors import NOT_ELIGIBLE, SampleError, UserError
from medray.exports.base import Exported
from medray.modalities.genomics.formats import text, vcf
from medray.modalities.genomics.variants.alleles import allele_of
from medray.modalities.genomics.variants.names import RecordNames
from medray.scores import ScoreStore
from medray.scores.readings import OutlineRow
from medray.storage.files import absolute, file_mode_like, new_file

RECORD_ID = r"^(.*)#[^#]+:[0-9]+:[^#:]+:[^#]+$"
"""Entry ids of variants: the path in the archive, then what the record says."""
BLOCK_ID = r"^(.*)#[0-9]{8,}$"
"""Those of earlier versions, of blocks of records."""
PREFIX = "MEDRAY_"
BUNDLE_LETTERS = 8
NOT_SCORED = "not_scored"
"""The reason of an allele of which the store holds nothing."""
NAMES_AT_ONCE = 65_536

AlleleScores = dict[int, dict[str, float] | str]
"""Index of a record's allele to scores by output, or to the reason why there are none. -1: the whole record."""


def export_vcf(store: ScoreStore, bundle_id: str, source: str, out: str) -> Exported:
    """Write the VCF `source` to `out`, bgzip where that ends with .gz or .bgz, with this bundle's scores of it.

    In bounded memory. Raises UserError where the store has no scores of the file or of its records, and where it cannot
    be read; then nothing is left at `out`.
    """
    source, out = absolute(source), absolute(out)
    if source == out or not re.search(r"\.vcf(\.b?gz)?$", out):
        raise UserError("this cannot be the new file", where=out, expected="a new name that ends with .vcf or .vcf.gz")
    path, scored = _match(store, bundle_id, source)
    outputs = [output for output in scored["outputs"] if output is not None]
    counts: Counter[str] = Counter()
    try:
        header, pieces = vcf.split_header(text.blocks(source))
        keys = _Keys(bundle_id, outputs, header.text)
        lines = (line for _, line in text.lines(pieces))
        scores = _by_record(store.stream(bundle_id, f"{path}#", _names(source, path)))
        with _written(out, file_mode_like(store.uri)) as write:
            write(keys.header(header.text, scored["run_ids"]))
            for line in _annotated(lines, scores, keys, counts):
                write(line)
            if counts["alleles"] and counts["alleles"] == counts[NOT_SCORED]:
                raise UserError(
                    "the store has no scores of any record of this file",
                    where=source,
                    found=f"scores of other records under {path}",
                    do="score it first (medray score)",
                )
    except SampleError as error:
        raise UserError("the VCF cannot be read", where=source, found=str(error)) from None
    return Exported(
        out=out,
        records=counts["records"],
        alleles=counts["alleles"],
        scored=counts["scored"],
        failed=counts["failed"],
        not_eligible=counts["not_eligible"],
        not_scored=counts[NOT_SCORED],
    )


def _match(store: ScoreStore, bundle_id: str, source: str) -> tuple[str, OutlineRow]:
    """The path in the archive, as entry ids have it, of the scored file that `source` is, and what is scored of it."""
    known = {row["group"]: row for row in store.outline(bundle_id, RECORD_ID)}
    paths = _alike(source, known)
    if not paths and _alike(source, [row["group"] for row in store.outline(bundle_id, BLOCK_ID)]):
        raise UserError(
            "the scores of this file are of an earlier version of medray, under other ids",
            where=source,
            do="score it once more (medray score), then export",
        )
    if len(paths) != 1:
        raise UserError(
            "the store has no scores of this file" if not paths else "several scored files have this name",
            where=source,
            found=", ".join(sorted(paths or known)[:5]) or "no scores of variants",
            expected="a VCF under its path in the scored archive",
            do="score it first (medray score), or name the bundle (--bundle)",
        )
    return paths[0], known[paths[0]]


def _alike(source: str, known: Collection[str]) -> list[str]:
    """The longest path that `source` ends with, or else the paths of its name."""
    ends = [path for path in known if source == path or source.endswith("/" + path)]
    return sorted(ends, key=len)[-1:] or [p for p in known if p.rsplit("/", 1)[-1] == source.rsplit("/", 1)[-1]]


@contextmanager
def _written(out: str, mode: int) -> Generator[Callable[[bytes], object], None, None]:
    """A function that appends bytes to the new file; what was written is removed when the block raises."""
    with new_file(out, mode) as stream:
        if out.endswith(".vcf"):
            yield stream.write
            return
        from Bio.bgzf import BgzfWriter

        writer = BgzfWriter(fileobj=stream)
        yield writer.write  # pyright: ignore[reportUnknownMemberType]  # Biopython says no types here
        writer.flush()  # then the empty member that ends a bgzip file; the stream is closed by its owner
        stream.write(_BGZIP_END)


_BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


# --- keys and the header ----------------------------------------------------------------------------------------


class _Keys:
    """INFO keys of one bundle: letters, digits, _ and . (VCF 4.3, section 1.4.2), and which of a file are its own."""

    def __init__(self, bundle_id: str, outputs: list[str], header: bytes) -> None:
        self.bundle_id = bundle_id
        self.short = _letters(bundle_id[:BUNDLE_LETTERS])
        prefix = f"{PREFIX}{self.short}_"
        self.of = {output: prefix + _letters(output) for output in outputs}
        self.reason = f"{prefix}REASON"
        if len({*self.of.values(), self.reason}) <= len(self.of):
            raise UserError("two outputs have one name in VCF", found=", ".join(self.of))
        self._prefix = prefix.encode()
        self._earlier = _of_earlier_version(header) if _earlier_bundle(header) == bundle_id else set[bytes]()

    def own(self, key: bytes) -> bool:
        return key.startswith(self._prefix) or key in self._earlier

    def header(self, text: bytes, run_ids: list[str]) -> bytes:
        """The header with this bundle's lines before #CHROM; those of an earlier export of its scores are replaced."""
        *lines, columns, rest = text.split(b"\n") if text.endswith(b"\n") else [*text.split(b"\n"), b""]
        end = b"\r" if columns.endswith(b"\r") else b""
        others = [line for line in lines if not self._owns(line)]
        made = [
            f"##medray_scores=<ID={self.short},Bundle={_quoted(self.bundle_id)},Run={_quoted(','.join(run_ids))},"
            f"Version={_quoted(medray.__version__)}>"
        ]
        made += [
            f"##INFO=<ID={key},Number=A,Type=Float,Description="
            f"{_quoted(f'Score {output} of medray, by alternate allele')}>"
            for output, key in self.of.items()
        ]
        made.append(
            f'##INFO=<ID={self.reason},Number=A,Type=String,Description="Why an alternate allele has no score">'
        )
        return b"\n".join([*others, *(line.encode() + end for line in made), columns, rest])

    def _owns(self, line: bytes) -> bool:
        if line.startswith(f"##medray_scores=<ID={self.short},".encode()):
            return True
        if self._earlier and re.match(rb"##medray_(bundle|run|version)=", line):
            return True
        declared = re.match(rb"##INFO=<ID=([^,>]+)", line)
        return declared is not None and self.own(declared[1])


def _earlier_bundle(header: bytes) -> str | None:
    """The bundle of which versions before wrote scores, under keys without it."""
    match = re.search(rb"^##medray_bundle=([^<\r\n]+)", header, re.MULTILINE)
    return match and match[1].decode()


def _of_earlier_version(header: bytes) -> set[bytes]:
    """The keys that they wrote."""
    descriptions = rb'"(?:Score [^\r\n]* of medray, by alternate allele|Why an alternate allele has no score)">'
    keys = re.findall(
        rb"^##INFO=<ID=(MEDRAY_[^,>]+),Number=A,Type=(?:Float|String),Description=" + descriptions, header, re.M
    )
    bundles = re.findall(rb"^##medray_scores=<ID=([^,>]+)", header, re.MULTILINE)
    return {key for key in keys if not any(key.startswith(b"MEDRAY_" + short + b"_") for short in bundles)}


def _letters(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z_.]", "_", text)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# --- the records ------------------------------------------------------------------------------------------------


def _names(source: str, path: str) -> pa.RecordBatchReader:
    """(number, entry_id) of the records of the file, in order. What cannot be read is met again where lines are copied."""
    schema = pa.schema([("number", pa.int64()), ("entry_id", pa.string())])

    def batches() -> Iterator[pa.RecordBatch]:
        names, number = RecordNames(), 0
        _, pieces = vcf.split_header(text.blocks(source))
        try:
            for lines in vcf.record_lines(pieces, NAMES_AT_ONCE):
                ids = [f"{path}#{name}" for name in names.of([row for row in lines.rows if len(row) == 8])[1]]
                yield pa.record_batch([pa.array(range(number, number + len(ids)), pa.int64()), ids], schema=schema)
                number += len(ids)
        except SampleError:
            return

    return pa.RecordBatchReader.from_batches(schema, batches())


def _by_record(rows: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, AlleleScores]]:
    """Rows of the store, ordered by the number of their record, to the scores of each record that has any."""
    values = (row for batch in rows for row in zip(*(column.to_pylist() for column in batch.columns), strict=True))
    for number, group in groupby(values, key=lambda row: row[0]):
        alleles: AlleleScores = {}
        for _, sample_id, output, value, reason in group:
            allele = allele_of(sample_id) if sample_id else -1
            if reason is not None:
                alleles[allele] = reason
            else:
                scores = alleles.setdefault(allele, {})
                if isinstance(scores, dict):
                    scores[output] = value
        yield number, alleles


_NO_RECORD: tuple[int, AlleleScores] = (-1, {})


def _annotated(
    lines: Iterator[bytes], scores: Iterator[tuple[int, AlleleScores]], keys: _Keys, counts: Counter[str]
) -> Iterator[bytes]:
    """Every line, in order, records with their INFO fields."""
    at, of_record = next(scores, _NO_RECORD)
    number = 0
    for line in lines:
        columns = line.split(b"\t", 8)
        if not line.strip():
            yield line
            continue
        counts["records"] += 1
        if len(columns) < 8:  # no record
            yield line
            continue
        mine: AlleleScores = {}
        if at == number:
            mine, (at, of_record) = of_record, next(scores, _NO_RECORD)
        number += 1
        yield _with_info(columns, mine, keys, counts)


def _with_info(columns: list[bytes], alleles: AlleleScores, keys: _Keys, counts: Counter[str]) -> bytes:
    """A record line with its scores; one without alternate alleles stays as it is."""
    alts = columns[4].split(b",")
    if alts == [b"."]:
        return b"\t".join(columns)
    outcomes = [alleles.get(i, alleles.get(-1, NOT_SCORED)) for i in range(len(alts))]
    counts["alleles"] += len(outcomes)
    counts.update(map(_kind, outcomes))
    own: list[str] = []
    if any(isinstance(each, dict) for each in outcomes):
        for output, key in keys.of.items():
            own.append(f"{key}=" + ",".join(_number(f[output]) if isinstance(f, dict) else "." for f in outcomes))
    if any(isinstance(each, str) for each in outcomes):
        own.append(f"{keys.reason}=" + ",".join(each if isinstance(each, str) else "." for each in outcomes))
    info = columns[7].rstrip(b"\r\n")
    end = columns[7][len(info) :]
    fields = info.split(b";")
    others = [each for each in fields if not keys.own(each.partition(b"=")[0])]
    if len(others) < len(fields):
        info = b";".join(others)
    before = b"" if info in (b"", b".") else info if info.endswith(b";") else info + b";"
    columns[7] = before + ";".join(own).encode() + end
    return b"\t".join(columns)


def _kind(outcome: dict[str, float] | str) -> str:
    if isinstance(outcome, dict):
        return "scored"
    return NOT_SCORED if outcome == NOT_SCORED else "not_eligible" if outcome in NOT_ELIGIBLE else "failed"


def _number(value: float) -> str:
    """Six digits: what float32 holds, nearly."""
    return f"{value:.6g}"
