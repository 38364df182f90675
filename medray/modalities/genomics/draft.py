"""What `medray init` proposes for an archive of sequences: records or windows, their length, columns of tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from medray.errors import SampleError
from medray.modalities.drafts import FEW_CLASSES, Draft, counted, left_over, spread
from medray.modalities.genomics.codes import to_codes
from medray.modalities.genomics.formats.records import SequenceRecord
from medray.modalities.genomics.formats.text import blocks
from medray.modalities.genomics.inspection import TITLES, guess_columns
from medray.modalities.genomics.scan import open_records, sniff
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.patterns import matches_glob
from medray.storage import files as storage
from medray.storage.files import File, relative

RECORDS = 100_000
"""Records of a file that are looked at: tables are often sorted by their label."""
BASES = 20_000_000
"""Bases of all files together that are looked at."""
LONGEST = 5000
"""A record of more bases is tiled into windows."""
WINDOW = 1000
FASTA = (".fa", ".fasta", ".fna", ".fa.gz", ".fasta.gz", ".fna.gz", ".fa.bgz", ".fasta.bgz")
BESIDE = 2000
"""Files beside the archive among which a reference is looked for."""


def draft(files: Sequence[File], root: str) -> Draft | None:
    """The proposal; None where no file of the sample holds sequences or variants."""
    files = [file for file in files if not matches_glob(relative(file.uri, root), GenomicsSpec().ignore)]
    sample = spread(files)
    formats: dict[str, list[tuple[File, GenomicsSpec]]] = {}
    for file in sample:
        kind, spec = _format(file.uri)
        if kind:
            formats.setdefault(kind, []).append((file, spec))
    if not formats:
        return None
    names = ", ".join(f"{len(members)} {TITLES[kind]}" for kind, members in sorted(formats.items()))
    head = f"{counted(len(files), len(sample))}: {names}"
    if "vcf" in formats:
        return _variants(head, root)
    kind = max(formats, key=lambda kind: len(formats[kind]))
    spec = formats[kind][0][1]
    lengths, labels = _measured(formats[kind])
    if not lengths:
        return None
    span = f"{min(lengths):,}" if min(lengths) == max(lengths) else f"{min(lengths):,} to {max(lengths):,}"
    others = left_over(len(sample) - sum(map(len, formats.values())), "sequences")
    windows = max(lengths) > LONGEST
    settings, notes = _windows(kind, span) if windows else _records(span, max(lengths))
    if kind == "table":
        settings |= {
            name: value
            for name in ("sequence_column", "label_column", "header")
            if (value := getattr(spec, name)) is not None
        }
        notes |= {f"modality.{name}": "Counted from 1." for name in ("sequence_column", "label_column")}
    coding = kind == "genbank" and windows
    classes = tuple(sorted(labels)) if 2 <= len(labels) <= FEW_CLASSES else ()
    return Draft(
        seen=(f"{head}. Records of {span} bases.", *others),
        modality=settings,
        model={"kind": "cnn1d"},
        notes=notes,
        classes=("coding", "noncoding") if coding else classes,
        positive="coding" if coding else None,
        labelled=coding or bool(classes),
    )


def _measured(members: Sequence[tuple[File, GenomicsSpec]]) -> tuple[list[int], Counter[str]]:
    """(bases of each record, how often each label stands there) of the records that are looked at."""
    lengths: list[int] = []
    labels: Counter[str] = Counter()
    bases = 0
    for file, spec in members:
        for record in _readable(spec, file.uri):
            lengths.append(sum(len(to_codes(piece.text, "channel")) for piece in record.pieces))
            bases += lengths[-1]
            if record.label is not None and len(labels) <= FEW_CLASSES:
                labels[record.label] += 1
            if bases > BASES:
                return lengths, labels
    return lengths, labels


def _format(uri: str) -> tuple[str, GenomicsSpec]:
    """(what `sniff` says, the columns of a table); ("", …) for what holds no sequences."""
    try:
        first = next(blocks(uri), None)
        kind = sniff(first.text) if first else ""
        spec = guess_columns(first.text) if first and kind == "table" else GenomicsSpec()
    except (SampleError, OSError):
        return "", GenomicsSpec()
    return (kind if kind in TITLES else ""), spec


def _readable(spec: GenomicsSpec, uri: str) -> Iterator[SequenceRecord]:
    """The first records of a file that can be read."""
    try:
        for record in islice(open_records(spec, uri)[1], RECORDS):
            if record.problem is None:
                yield record
    except (SampleError, OSError):
        return


def _records(span: str, longest: int) -> tuple[dict[str, Any], dict[str, str]]:
    notes = {
        "modality.length": f"Found: {span}.",
        "modality.subject": "Equal sequences are never divided by a split.",
    }
    return {"entries": "records", "length": longest, "subject": "sequence"}, notes


def _windows(kind: str, span: str) -> tuple[dict[str, Any], dict[str, str]]:
    settings: dict[str, Any] = {"entries": "windows", "length": WINDOW}
    notes = {"modality.entries": f"Found: records of {span} bases."}
    if kind == "genbank":
        settings |= {"label_feature": "CDS", "subject": "segment"}
    return settings, notes


def _variants(head: str, root: str) -> Draft:
    references = [file.uri for folder in _folders(root) for file in _listed(folder) if file.uri.endswith(FASTA)]
    seen = [f"{head}."]
    if len(references := sorted(set(references))) == 1:
        reference = references[0]
        seen.append("One FASTA file lies there: it is taken for the reference.")
    else:
        reference = "TODO: the FASTA file that the positions of the variants mean"
        seen.append(f"{len(references) or 'No'} FASTA files lie there: which is the reference has to be said.")
    return Draft(seen=tuple(seen), site={"entries": "variants", "reference": reference}, for_training=False)


def _folders(root: str) -> list[str]:
    """The archive, and where it is local the folder that it stands in."""
    return [root, root.rpartition("/")[0] or "/"] if storage.is_local(root) else [root]


def _listed(folder: str) -> Iterator[File]:
    """Files of the folder and those below it, as far as they are looked at."""
    return islice(storage.list_files(folder), BESIDE)
