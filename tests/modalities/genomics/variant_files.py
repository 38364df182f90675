"""Small references, VCF files and their readings for the variant tests."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pyarrow as pa
from Bio import bgzf

from medray.files import list_files
from medray.manifests import Entry, Part, PartRef
from medray.modalities.genomics.codes import to_text
from medray.modalities.genomics.variant_reader import VariantReader

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


def parts(reader: VariantReader, path: str) -> list[Part]:
    (file,) = list_files(path)
    return list(reader.scan(file, str(Path(path).parent)))


def entries(found: list[Part]) -> list[Entry]:
    return [
        Entry(p.entry_id, "s", p.digest, (PartRef(uri=p.uri, locator=p.locator),), reason=p.reason, detail=p.detail)
        for p in found
    ]


def table(reader: VariantReader, path: str) -> pa.RecordBatch:
    """All samples of a file."""
    return reader.read(entries(parts(reader, path)))


def rows(batch: pa.RecordBatch) -> list[tuple]:
    """(sample_id, reason, ref, alt) of each sample, windows as letters; None where it failed."""
    shown = {
        name: [None if codes is None else to_text(bytes(codes)) for codes in batch.column(name).storage.to_pylist()]
        for name in ("ref", "alt")
    }
    columns = [batch.column(name).to_pylist() for name in ("sample_id", "reason")]
    return list(zip(*columns, shown["ref"], shown["alt"], strict=True))
