"""What `medray inspect` shows of sequences: records, lengths, composition, features; never a header's free text."""

# Biopython gives some of its values no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from medray.errors import SampleError
from medray.modalities.base import Inspection
from medray.modalities.genomics.codes import BAD, LETTERS, SOFT, N, to_codes
from medray.modalities.genomics.formats.genbank import annotated, translate
from medray.modalities.genomics.formats.records import SequenceRecord
from medray.modalities.genomics.formats.table import cells, delimiter
from medray.modalities.genomics.formats.text import BGZF_HEADER, blocks, compression
from medray.modalities.genomics.scan import open_records, sniff
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.genomics.variants.inspection import inspect_vcf
from medray.storage.files import archive_files, open_input, relative

if TYPE_CHECKING:
    from Bio.Seq import MutableSeq, Seq
    from Bio.SeqFeature import SeqFeature

SHOWN = 20
"""Records that stand in a table one by one."""
FEW = 20
"""A column of more different values is no label, and its values are not shown."""
TITLES = {
    "fasta": "FASTA file", "fastq": "FASTQ file", "genbank": "GenBank file", "parquet": "sequence table",
    "table": "sequence table", "vcf": "VCF",
}  # fmt: skip


def inspect(uri: str) -> Inspection:
    """One file: records, lengths in bases, composition, features, labels. A folder: its files by format.

    Raises SampleError where nothing can be seen.
    """
    files = list(archive_files(uri))
    if len(files) == 1 and files[0].uri == uri:
        return _one_file(uri)
    formats = {relative(file.uri, uri): _format(file.uri) for file in files}
    known = {name: kind for name, kind in formats.items() if kind in TITLES}
    if not known:
        raise SampleError("unrecognised_format", "no file of sequences in the folder")
    facts = {"files": len(files), "formats": dict(sorted(Counter(known.values()).items()))}
    rows = [{"file": name, "format": kind} for name, kind in islice(known.items(), SHOWN)]
    return Inspection(title="folder of sequences", facts=facts, tables={"files": rows})


def _format(uri: str) -> str:
    """What `sniff` says; "" for a table in which no column holds sequences, and for what cannot be read."""
    try:
        first = next(blocks(uri), None)
        kind = sniff(first.text) if first else ""
        if kind == "table" and first:
            guess_columns(first.text)
    except (SampleError, OSError):
        return ""
    return kind


def _one_file(uri: str) -> Inspection:
    first = next(blocks(uri), None)
    if first is None:
        raise SampleError("empty_file")
    kind = sniff(first.text)
    if kind == "vcf":
        return inspect_vcf(uri)
    if kind not in TITLES:
        raise SampleError("unrecognised_format")
    spec = GenomicsSpec() if kind != "table" else guess_columns(first.text)
    with open_input(uri) as stream:
        facts: dict[str, object] = {"format": kind, "compression": compression(stream.read(BGZF_HEADER)) or "none"}
    counted, tables = _count(open_records(spec, uri)[1])
    facts |= counted
    if kind == "table":
        facts["sequence_column"] = spec.sequence_column
    if kind == "genbank":
        more, shown = _annotation(uri)
        facts, tables = facts | more, {**tables, **shown}
    return Inspection(title=TITLES[kind], facts=facts, tables=tables)


def _count(records: Iterator[SequenceRecord]) -> tuple[dict[str, object], Mapping[str, Sequence[Mapping[str, object]]]]:
    """Facts and tables of all records, streamed."""
    lengths: list[int] = []
    whole = np.zeros(256, np.int64)
    labels: Counter[str] = Counter()
    rows: list[dict[str, object]] = []
    problems: Counter[str] = Counter()
    try:
        for record in records:
            if record.problem is not None:
                problems[record.problem.reason] += 1
                continue
            counts = np.zeros(256, np.int64)
            for piece in record.pieces:
                codes = np.frombuffer(to_codes(piece.text, "channel"), np.uint8)
                counts += np.bincount(codes, minlength=256)
            lengths.append(int(counts.sum()))
            whole += counts
            if record.label is not None and len(labels) <= FEW:
                labels[record.label] += 1
            if len(rows) < SHOWN:
                rows.append({"record": record.name, "bases": lengths[-1], "gc": _gc(counts)})
    except SampleError as error:  # what stands before the damage is shown
        problems[error.reason] += 1
    sizes = np.array(lengths or [0])
    facts: dict[str, object] = {
        "records": len(lengths),
        "bases": int(sizes.sum()),
        "length_bases": {"min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max())},
        "composition": composition(whole),
        "gc": _gc(whole),
        "soft_masked": round(int(whole[SOFT:].sum()) / max(1, int(whole.sum())), 4),
    }
    tables = {"records": rows}
    if labels and len(labels) <= FEW:
        tables["labels"] = [{"label": label, "records": count} for label, count in sorted(labels.items())]
    if problems:
        tables["failed"] = [{"reason": reason, "records": count} for reason, count in sorted(problems.items())]
    return facts, tables


def composition(counts: np.ndarray) -> dict[str, int]:
    """Letters by number, of code counts (256,); those that do not occur are left out, no nucleotides are "other"."""
    folded = counts[:SOFT] + counts[SOFT:]
    letters = {letter: int(folded[code]) for code, letter in enumerate(LETTERS) if folded[code]}
    return letters | ({"other": int(folded[BAD])} if folded[BAD] else {})


def _gc(counts: np.ndarray) -> float | None:
    """G and C among A, C, G and T."""
    folded = counts[:SOFT] + counts[SOFT:]
    known = int(folded[:N].sum())
    return round(int(folded[1] + folded[2]) / known, 4) if known else None


def guess_columns(text: bytes) -> GenomicsSpec:
    """The columns of a table of sequences, by its header or by what its cells hold. Raises SampleError."""
    rows = [line for line in text.split(b"\n")[:100] if line.strip()]
    between = delimiter(rows[0])
    table = [[cell.text for cell in cells(row, between)] for row in rows]
    width = min(len(row) for row in table)
    likely = [column for column in range(width) if all(_like_dna(row[column]) for row in table[1:] or table)]
    if not likely:
        raise SampleError("unrecognised_format", "a table without a column of sequences")
    best = max(likely, key=lambda column: sum(len(row[column]) for row in table))
    header = not _like_dna(table[0][best])
    distinct = {column: len({row[column] for row in table[1:]}) for column in range(width) if column != best}
    label = min(distinct, key=lambda column: distinct[column]) + 1 if distinct else None
    return GenomicsSpec(sequence_column=best + 1, label_column=label, header=header)


def _like_dna(cell: bytes) -> bool:
    return len(cell) >= 8 and BAD not in to_codes(cell, blanks=b" ")


def _annotation(uri: str) -> tuple[dict[str, object], Mapping[str, Sequence[Mapping[str, object]]]]:
    """Features by type, and whether each CDS translates to the protein that its record states."""
    types: Counter[str] = Counter()
    proteins: list[dict[str, object]] = []
    topology: Counter[str] = Counter()
    for record in annotated(blocks(uri)):
        types.update(feature.type for feature in record.features)
        topology[str(record.annotations.get("topology", "linear"))] += 1
        proteins += [_protein(record.seq, each) for each in record.features if each.type == "CDS"]
    stated = [row["as stated"] for row in proteins if row["as stated"] is not None]
    facts: dict[str, object] = {
        "features": sum(types.values()),
        "topology": dict(topology),
        "cds": len(proteins),
        "cds_as_stated": sum(flag is True for flag in stated),
        "cds_with_translation": len(stated),
    }
    tables = {"features": [{"type": kind, "count": count} for kind, count in types.most_common()]}
    return facts, tables | ({"CDS": proteins[:SHOWN]} if proteins else {})


def _protein(sequence: Seq | MutableSeq | None, feature: SeqFeature) -> dict[str, object]:
    gene = (feature.qualifiers.get("gene") or feature.qualifiers.get("locus_tag") or [""])[0]
    try:
        if not sequence:
            raise SampleError("empty_sequence")
        protein = translate(feature, sequence)
    except SampleError as error:
        return {"gene": gene, "amino acids": 0, "protein": "", "as stated": None, "reason": error.reason}
    stated = feature.qualifiers.get("translation", [None])[0]
    shown = protein if len(protein) <= 60 else f"{protein[:57]}…"
    return {
        "gene": gene,
        "amino acids": len(protein),
        "protein": shown,
        "as stated": None if stated is None else stated == protein,
    }
