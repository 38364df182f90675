"""Small references, VCF files and their readings for the variant tests."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pyarrow as pa
from Bio import bgzf

from medray.archive.entries import Entry, Part, PartRef
from medray.datasets.samples import tensor_view
from medray.modalities.genomics.codes import to_text
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.genomics.variants.reader import Variants
from medray.storage.files import list_files

COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"


def vcf_text(*records: str, header: str = "##fileformat=VCFv4.2\n") -> bytes:
    """Records as "CONTIG POS REF ALT", or whole lines with tabs."""
    lines = [record if "\t" in record else _line(*record.split(" ")) for record in records]
    return (header + "\n".join([COLUMNS, *lines]) + "\n").encode()


def _line(contig: str, position: str, ref: str, alt: str) -> str:
    return f"{contig}\t{position}\t.\t{ref}\t{alt}\t.\t.\t."


def write(path: Path, content: bytes) -> str:
    """Plain, .gz by gzip, .bgz by bgzip; the path as text."""
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".bgz":
        with bgzf.BgzfWriter(str(path)) as writer:
            writer.write(content)
    else:
        path.write_bytes(content)
    return str(path)


def untar(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def parts(reader: Variants, path: str) -> list[Part]:
    (file,) = list_files(path)
    return list(reader.scan(file, str(Path(path).parent)))


def entries(found: list[Part]) -> list[Entry]:
    return [
        Entry(p.entry_id, "s", p.digest, (PartRef(uri=p.uri, locator=p.locator),), reason=p.reason, detail=p.detail)
        for p in found
    ]


def table(reader: Variants, path: str) -> pa.RecordBatch:
    """All samples of a file."""
    return reader.read(entries(parts(reader, path)))


def rows(batch: pa.RecordBatch) -> list[tuple]:
    """(sample_id, reason, ref, alt) of each sample, windows as letters; None where it failed."""
    ids, reasons = (batch.column(name).to_pylist() for name in ("sample_id", "reason"))
    bases = tensor_view(batch.column("bases"))
    shown = [
        (None, None) if reason else tuple(to_text(window.tobytes()) for window in pair)
        for reason, pair in zip(reasons, bases, strict=True)
    ]
    return [(name, reason, *pair) for name, reason, pair in zip(ids, reasons, shown, strict=True)]


def opened(reference: str, length: int, **settings) -> Variants:
    return Variants(GenomicsSpec(entries="variants", reference=reference, length=length, **settings))
