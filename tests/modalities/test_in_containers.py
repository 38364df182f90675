"""Sequences, variants and health records in zip and tar: entries, facts and samples are those of the same files in a folder."""

from __future__ import annotations

import gzip
import random
import tarfile
import zipfile
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from Bio import bgzf
from meds import DataSchema

from medray.archive.entries import Entries, by_place
from medray.archive.grouping import group_parts
from medray.modalities.ehr.meds.task import TaskSpec
from medray.modalities.ehr.spec import EhrSpec
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.registry import ModalitySpec, open_modality
from medray.storage import files
from medray.verbs.stages import Scan

NAMES = ("x.zip", "x.tar", "x.tar.gz")


def packed(folder: Path, target: Path) -> Path:
    """The files of a folder in a zip or tar."""
    every = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
            for path in every:
                made.write(path, path.relative_to(folder))
    else:
        with tarfile.open(target, "w:gz" if target.suffix == ".gz" else "w") as made:
            for path in every:
                made.add(path, str(path.relative_to(folder)))
    return target


def seen(spec: ModalitySpec, root: str) -> tuple[dict[str, dict[str, object]], list[dict[str, object]]]:
    """(entries without where they lie, samples) of an archive, as the flow reads them."""
    listed = list(files.archive_files(root))
    batch = pa.RecordBatch.from_pylist([file._asdict() for file in listed])
    tables = [pa.Table.from_batches([batch]) for batch in Scan(spec, root, b"k" * 32)(batch)]
    manifest = by_place(group_parts(pa.concat_tables(tables)))
    usable = [entry for entry in Entries(manifest) if entry.reason is None]
    samples = open_modality(spec).read(usable)
    rows = [
        {"id": usable[row.pop("entry")].entry_id} | {name: value for name, value in row.items() if name != "detail"}
        for row in samples.to_pylist()
    ]
    columns = [name for name in manifest.schema.names if name not in ("parts", "fingerprint", "modified_ns", "bytes")]
    facts = {row["entry_id"]: row for row in manifest.select(columns).to_pylist()}
    return facts, sorted(rows, key=lambda row: (str(row["id"]), str(row["sample_id"])))


@pytest.fixture
def sequences(tmp_path: Path) -> Path:
    """FASTA, in plain, gzip and bgzip."""
    random_ = random.Random(0)
    folder = tmp_path / "plain"
    folder.mkdir()
    for name in ("a.fa", "b.fa.gz", "c.fa.bgz"):
        text = "".join(f">{name[0]}{i} x\n{''.join(random_.choices('ACGT', k=70))}\n" for i in range(20)).encode()
        if name.endswith(".bgz"):
            with bgzf.BgzfWriter(str(folder / name)) as writer:
                writer.write(text)
        else:
            (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_sequences_in_a_container_are_read_as_in_a_folder(sequences, tmp_path, name):
    spec = GenomicsSpec(length=70)
    facts, samples = seen(spec, str(sequences))
    assert len(facts) == len(samples) == 60 and all(row["reason"] is None for row in facts.values())
    assert seen(spec, str(packed(sequences, tmp_path / name))) == (facts, samples)


@pytest.mark.parametrize("name", NAMES)
def test_variants_in_a_container_are_read_as_in_a_folder(sequences, tmp_path, name):
    records = "".join(f"a{i % 20}\t{i + 2}\t.\tN\tA,C\t.\t.\t.\n" for i in range(40))
    text = f"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n{records}".encode()
    folder = tmp_path / "calls"
    folder.mkdir()
    (folder / "a.vcf").write_bytes(text)
    with bgzf.BgzfWriter(str(folder / "b.vcf.gz")) as writer:
        writer.write(text)
    spec = GenomicsSpec(entries="variants", reference=str(sequences / "a.fa"), length=16)
    facts, samples = seen(spec, str(folder))
    assert len(facts) == 80 and len(samples) == 160
    assert seen(spec, str(packed(folder, tmp_path / name))) == (facts, samples)


@pytest.mark.parametrize("name", NAMES)
def test_health_records_in_a_container_are_read_as_in_a_folder(tmp_path, name):
    schema = DataSchema.schema()
    start = datetime(2000, 1, 1)  # noqa: DTZ001  MEDS times have no zone
    folder = tmp_path / "plain"
    (folder / "data").mkdir(parents=True)
    for number in range(3):
        rows = [
            {
                "subject_id": subject,
                "time": start + timedelta(hours=hour),
                "code": f"c{hour % 3}",
                "numeric_value": hour,
            }
            for subject in range(10 * number, 10 * number + 10)
            for hour in range(6)
        ]
        columns = {column: pa.array([row[column] for row in rows], schema.field(column).type) for column in rows[0]}
        pq.write_table(pa.table(columns), folder / "data" / f"{number}.parquet")
    spec = EhrSpec(window="48h", task=TaskSpec())
    facts, samples = seen(spec, str(folder))
    assert len(facts) == 30 and all(row["reason"] is None for row in facts.values())
    assert seen(spec, str(packed(folder, tmp_path / name))) == (facts, samples)
