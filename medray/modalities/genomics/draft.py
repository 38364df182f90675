"""What `medray init` proposes for an archive of sequences: records or windows, their length, columns of tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from medray.errors import SampleError
from medray.modalities.drafts import Draft, counted, left_over, spread
from medray.modalities.genomics.codes import to_codes
from medray.modalities.genomics.formats.records import Record
from medray.modalities.genomics.formats.text import blocks
from medray.modalities.genomics.inspection import TITLES, guess_columns
from medray.modalities.genomics.scan import ignored, open_records, sniff
from medray.modalities.genomics.spec import GenomicsSpec
from medray.storage import files as storage
from medray.storage.files import File, relative

RECORDS = 100_000
"""Records of a file that are looked at: tables are often sorted by their label."""
BASES = 20_000_000
"""And bases of all files together."""
LONGEST = 5000
"""A record of more bases is tiled into windows."""
FEW = 20
"""More different labels than this are none."""
FASTA = (".fa", ".fasta", ".fna", ".fa.gz", ".fasta.gz", ".fna.gz")


def draft(files: Sequence[File], root: str) -> Draft | None:
    """The proposal; None where no file of the sample holds sequences or variants."""
    plain = GenomicsSpec()
    files = [file for file in files if not ignored(relative(file.uri, root), plain.ignore)]
    sample = spread(files)
    kinds: dict[str, list[tuple[File, GenomicsSpec]]] = {}
    for file in sample:
        kind, spec = _kind(file.uri)
        if kind:
            kinds.setdefault(kind, []).append((file, spec))
    if not kinds:
        return None
    formats = ", ".join(f"{len(members)} {TITLES[kind]}" for kind, members in sorted(kinds.items()))
    head = f"{counted(len(files), len(sample))}: {formats}"
    others = left_over(len(sample) - sum(map(len, kinds.values())), "sequences")
    if "vcf" in kinds:
        return _variants(head, root)
    kind = max(kinds, key=lambda kind: len(kinds[kind]))
    spec = kinds[kind][0][1]
    bases, lengths = 0, list[int]()
    labels: Counter[str] = Counter()
    names: list[str] = []
    for file, _ in kinds[kind]:
        for record in _records(spec, file.uri):
            lengths.append(sum(len(to_codes(piece.text, "channel")) for piece in record.pieces))
            names.append(f"{relative(file.uri, root)}#{record.name}")
            if record.label is not None and len(labels) <= FEW:
                labels[record.label] += 1
            bases += lengths[-1]
            if bases > BASES:
                break
    if not lengths:
        return None
    span = f"{min(lengths)}" if min(lengths) == max(lengths) else f"{min(lengths):,} to {max(lengths):,}"
    windows = max(lengths) > LONGEST
    lines = _windows(kind) if windows else [f'entries   = "records"    # every record is an entry\nlength    = {max(lengths)}'
                                            "           # bases: a shorter record is padded, a longer one cut on both sides"]  # fmt: skip
    if kind in ("table", "parquet"):
        lines += _columns(spec)
    if not windows:
        lines.append(
            'subject   = "sequence"   # equal sequences are never divided by a split; "record": each for itself'
        )
    lines.append("both_strands = false     # true: the reverse complement is the same to the model")
    classes = tuple(sorted(labels)) if 2 <= len(labels) <= FEW else ()
    if kind == "genbank" and windows:
        classes = ("noncoding", "coding")
    return Draft(
        seen=(f"{head}. Records of {span} bases.", *others),
        modality=tuple(lines),
        model=('kind = "cnn1d"           # or "cnn_rnn", "rnn"',),
        classes=classes,
        entries=tuple(names),
    )


def _kind(uri: str) -> tuple[str, GenomicsSpec]:
    """(what `sniff` says, the columns of a table); ("", …) for what holds no sequences."""
    try:
        first = next(blocks(uri), None)
        kind = sniff(first.text) if first else ""
        spec = guess_columns(first.text) if first and kind == "table" else GenomicsSpec()
    except (SampleError, OSError):
        return "", GenomicsSpec()
    return (kind if kind in TITLES else ""), spec


def _records(spec: GenomicsSpec, uri: str) -> Iterator[Record]:
    """The first records of a file that can be read."""
    try:
        for record in islice(open_records(spec, uri)[1], RECORDS):
            if record.problem is None:
                yield record
    except (SampleError, OSError):
        return


def _windows(kind: str) -> list[str]:
    lines = ['entries = "windows"    # records are long: each is tiled', "length  = 1000         # bases of a window"]
    if kind == "genbank":
        lines.append('label_feature = "CDS"  # "coding" where at least half of a window lies in one, else "noncoding"')
        lines.append('subject = "segment"    # records are cut where no gene lies; a split divides no segment')
    return lines


def _columns(spec: GenomicsSpec) -> list[str]:
    names = ("sequence_column", "label_column")
    lines = [f"{name} = {getattr(spec, name)}    # counted from 1" for name in names if getattr(spec, name) is not None]
    return [*lines, f"header = {str(spec.header).lower()}            # whether the first row holds names"]


def _variants(head: str, root: str) -> Draft:
    folder = root.rpartition("/")[0] if not root.endswith("/") else root
    beside = [file.uri for file in islice(storage.list_files(folder), 2000) if file.uri.endswith(FASTA)]
    reference = beside[0] if beside else "reference.fa"
    where = "that positions mean" if beside else "that positions mean: none was seen beside the archive; give its path"
    site = ('entries   = "variants"', f'reference = "{reference}"    # the FASTA file {where}')
    return Draft(seen=(f"{head}.",), modality=site, site=site, for_training=False)
