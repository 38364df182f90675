"""Files of every format that medray reads in two contents of one size, and the ways in which a file may change."""

from __future__ import annotations

import gzip
import io
import os
import random
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from packed import packed

from medray.modalities.ehr.spec import EhrSpec
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.registry import ModalitySpec

Files = Mapping[str, bytes]
"""Path below the archive to content."""


@dataclass(frozen=True)
class Format:
    """A format of files."""

    files: Callable[[int], Files]
    """The files in content 0 or 1, of the same sizes."""
    spec: Callable[[Path], ModalitySpec]
    """How they are read; the folder holds `reference.fa` where `beside` has it."""
    beside: Files = field(default_factory=dict[str, bytes])
    """Files outside of the archive that are needed."""


# --- images ---------------------------------------------------------------------------------------------------------


def picture(turn: int) -> bytes:
    import PIL.Image

    stream = io.BytesIO()
    PIL.Image.fromarray(np.full((8, 8), 10 + turn, np.uint8)).save(stream, "bmp")
    return stream.getvalue()


def one_slice(turn: int, place: int = 0) -> bytes:
    return write_dicom(
        np.full((8, 8), 20 + turn, np.uint8),
        patient_id="P1",
        study_uid=uid("s"),
        series_uid=uid("r"),
        instance_uid=uid("i", place),
        instance_number=place + 1,
        modality="CT",
        spacing_mm=(1.0, 1.0),
        position_mm=(0.0, 0.0, float(place)),
    )


def frames(turn: int) -> bytes:
    """A multi-frame secondary capture of three frames."""
    import pydicom

    dataset = pydicom.dcmread(io.BytesIO(one_slice(turn)))
    dataset.NumberOfFrames = 3
    dataset.PixelData = np.full((3, 8, 8), 20 + turn, np.uint8).tobytes()
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


def nifti(turn: int, volumes: int = 1) -> bytes:
    import nibabel

    values = np.full((8, 8, 8, volumes) if volumes > 1 else (8, 8, 8), 5 + turn, np.int16)
    image: Any = nibabel.Nifti1Image(values, np.eye(4))  # type: ignore[attr-defined]
    return image.to_bytes()


def zipped(raw: bytes) -> bytes:
    return gzip.compress(raw, 0, mtime=0)  # stored, so that both contents are of one size


def npz(turn: int) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, images=np.full((3, 8, 8), turn, np.uint8), labels=np.zeros((3, 1), np.uint8))
    return stream.getvalue()


def idx(turn: int) -> bytes:
    return _idx_head(3, 8, 8) + np.full((3, 8, 8), turn, np.uint8).tobytes()


def idx_labels(turn: int) -> bytes:
    return _idx_head(3) + np.full(3, turn, np.uint8).tobytes()


def _idx_head(*lengths: int) -> bytes:
    return bytes([0, 0, 8, len(lengths)]) + b"".join(n.to_bytes(4, "big") for n in lengths)


def container(name: str, members: Files) -> bytes:
    with TemporaryDirectory() as folder:
        return packed(Path(folder) / name, members, zipfile.ZIP_STORED).read_bytes()


# --- sequences and variants -------------------------------------------------------------------------------------------


BASES = "ACGT"


def fasta(turn: int) -> bytes:
    return f">one\n{BASES[turn] * 12}\n>two\n{BASES[turn] * 12}\n".encode()


def fastq(turn: int) -> bytes:
    return "".join(f"@{name}\n{BASES[turn] * 12}\n+\n{'I' * 12}\n" for name in ("one", "two")).encode()


def genbank(turn: int) -> bytes:
    record = (
        "LOCUS       {name}                      12 bp    DNA     linear   SYN 01-JAN-2000\nDEFINITION  .\n"
        "ACCESSION   {name}\nORIGIN\n        1 {bases}\n//\n"
    )
    return "".join(record.format(name=name, bases=BASES[turn].lower() * 10 + "gt") for name in ("one", "two")).encode()


def table(turn: int) -> bytes:
    return f"id,sequence\none,{BASES[turn] * 12}\ntwo,{BASES[turn] * 12}\n".encode()


def parquet(turn: int) -> bytes:
    sink = pa.BufferOutputStream()
    rows = pa.table({"id": ["one", "two"], "sequence": [BASES[turn] * 12] * 2})
    pq.write_table(rows, sink, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


def bgzip(raw: bytes) -> bytes:
    """Two blocks without compression, and the empty last one (SAM specification 4.1)."""
    from Bio import bgzf

    with TemporaryDirectory() as folder:
        path = f"{folder}/x.gz"
        writer = bgzf.BgzfWriter(path, "wb", compresslevel=0)
        half = len(raw) // 2
        writer.write(raw[:half])
        writer.flush()
        writer.write(raw[half:])
        writer.close()
        return Path(path).read_bytes()


def vcf(turn: int) -> bytes:
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    return (head + f"c\t5\t.\tA\t{'CG'[turn]}\t.\t.\t.\nc\t9\t.\tA\t{'CG'[turn]}\t.\t.\t.\n").encode()


REFERENCE = b">c\n" + b"ACGT" * 25 + b"\n"


# --- records --------------------------------------------------------------------------------------------------------


WHEN = datetime(2000, 1, 1)  # noqa: DTZ001  MEDS times have no zone


def shard(turn: int, subjects: tuple[int, ...] = (1, 2)) -> bytes:
    from meds import DataSchema

    rows = len(subjects)
    values = [20.0 + turn] * rows
    events = {"subject_id": list(subjects), "time": [WHEN] * rows, "code": ["A"] * rows, "numeric_value": values}
    return _plain(events, DataSchema.schema())


def labels(subjects: tuple[int, ...] = (1, 2)) -> bytes:
    from meds import LabelSchema

    times = [datetime(2000, 1, 2)] * len(subjects)  # noqa: DTZ001
    rows = {"subject_id": list(subjects), "prediction_time": times, "boolean_value": [True] * len(subjects)}
    return _plain(rows, LabelSchema.schema())


def _plain(columns: Mapping[str, list[Any]], schema: pa.Schema) -> bytes:
    rows = pa.table({name: pa.array(values, schema.field(name).type) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


# --- all of them ----------------------------------------------------------------------------------------------------


def _image(**settings: Any) -> Callable[[Path], ModalitySpec]:
    return lambda _: ImagingSpec.model_validate({"kind": "imaging", "size": (8, 8)} | settings)


def _sequences(**settings: Any) -> Callable[[Path], ModalitySpec]:
    return lambda _: GenomicsSpec.model_validate({"kind": "genomics", "length": 12} | settings)


def _variants(at: Path) -> ModalitySpec:
    return GenomicsSpec(length=12, entries="variants", reference=str(at / "reference.fa"))


def _records(**settings: Any) -> Callable[[Path], ModalitySpec]:
    task = {"labels": "labels/0.parquet"}
    return lambda _: EhrSpec.model_validate({"kind": "ehr", "task": task, "window": "48h"} | settings)


VOLUME = {"size": (8, 8, 8)}
BESIDE = {"reference.fa": REFERENCE}
FORMATS: dict[str, Format] = {
    "picture": Format(lambda turn: {"a.bmp": picture(turn)}, _image()),
    "picture in zip": Format(lambda turn: {"a.zip": container("a.zip", {"a.bmp": picture(turn)})}, _image()),
    "picture in tar": Format(lambda turn: {"a.tar": container("a.tar", {"a.bmp": picture(turn)})}, _image()),
    "picture in tar.gz": Format(
        lambda turn: {"a.tar.gz": zipped(container("a.tar", {"a.bmp": picture(turn)}))}, _image()
    ),
    "nifti": Format(lambda turn: {"a.nii": nifti(turn)}, _image(**VOLUME)),
    "nifti.gz": Format(lambda turn: {"a.nii.gz": zipped(nifti(turn))}, _image(**VOLUME)),
    "film": Format(lambda turn: {"a.nii.gz": zipped(nifti(turn, 3))}, _image(volumes="each", **VOLUME)),
    "npz": Format(lambda turn: {"a.npz": npz(turn)}, _image()),
    "idx": Format(lambda turn: {"train-images-idx3-ubyte": idx(turn)}, _image()),
    "idx beside its labels": Format(
        lambda turn: {"train-images-idx3-ubyte": idx(turn), "train-labels-idx1-ubyte": idx_labels(0)}, _image()
    ),
    "idx.gz": Format(lambda turn: {"train-images-idx3-ubyte.gz": zipped(idx(turn))}, _image()),
    "dicom": Format(lambda turn: {"a.dcm": one_slice(turn)}, _image()),
    "dicom.gz": Format(lambda turn: {"a.dcm.gz": zipped(one_slice(turn))}, _image()),
    "frames": Format(lambda turn: {"a.dcm": frames(turn)}, _image(frames="each")),
    "series": Format(
        lambda turn: {f"{place}.dcm": one_slice(turn if place == 2 else 0, place) for place in range(3)},
        _image(size=(3, 8, 8)),
    ),
    "series in zip": Format(
        lambda turn: {"a.zip": container("a.zip", {f"{n}.dcm": one_slice(turn if n == 2 else 0, n) for n in range(3)})},
        _image(size=(3, 8, 8)),
    ),
    "fasta": Format(lambda turn: {"a.fa": fasta(turn)}, _sequences()),
    "fasta.gz": Format(lambda turn: {"a.fa.gz": zipped(fasta(turn))}, _sequences()),
    "fasta in bgzip": Format(lambda turn: {"a.fa.gz": bgzip(fasta(turn))}, _sequences()),
    "windows": Format(lambda turn: {"a.fa": fasta(turn)}, _sequences(length=6, entries="windows")),
    "fastq": Format(lambda turn: {"a.fastq": fastq(turn)}, _sequences()),
    "genbank": Format(lambda turn: {"a.gb": genbank(turn)}, _sequences()),
    "table": Format(lambda turn: {"a.csv": table(turn)}, _sequences()),
    "parquet": Format(lambda turn: {"a.parquet": parquet(turn)}, _sequences()),
    "vcf": Format(lambda turn: {"a.vcf": vcf(turn)}, _variants, BESIDE),
    "vcf.gz": Format(lambda turn: {"a.vcf.gz": zipped(vcf(turn))}, _variants, BESIDE),
    "vcf in bgzip": Format(lambda turn: {"a.vcf.gz": bgzip(vcf(turn))}, _variants, BESIDE),
    "meds": Format(lambda turn: {"data/0.parquet": shard(turn), "labels/0.parquet": labels()}, _records()),
    "meds by a rule": Format(lambda turn: {"data/0.parquet": shard(turn)}, _records(task={"at": "first + 24h"})),
}


def write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def spoil(raw: bytes) -> bytes:
    """The second half as noise."""
    return cut(raw) + random.Random(0).randbytes(len(raw) - len(cut(raw)))


EDITS: dict[str, Callable[[bytes, bytes], bytes | None]] = {
    "replaced": lambda _, other: other,
    "cut": lambda _, other: cut(other),
    "emptied": lambda _, other: b"",
    "spoilt": lambda _, other: spoil(other),
    "grown": lambda _, other: other + b"\0" * 700,
    "half old, half new": lambda old, other: cut(old) + other[len(cut(old)) :],
    "text": lambda _, other: b"no data\n" * 9,
    "gone": lambda _, other: None,
}
"""(content before, another content of the same size) to what then lies there; None: nothing."""


def change(folder: Path, before: Files, after: Files, how: str, *, keep_time: bool, rename: bool = False) -> None:
    """Have the files that differ between two contents change as EDITS has it, in place or by a rename; `keep_time`: with
    the modification time that they had, else a second later."""
    for name in before:
        if before[name] == after[name]:
            continue
        path = folder / name
        modified_ns = path.stat().st_mtime_ns
        content = EDITS[how](before[name], after[name])
        if content is None:
            path.unlink()
            continue
        target = path.with_name(path.name + ".new") if rename else path
        target.write_bytes(content)
        later = 0 if keep_time else 10**9
        os.utime(target, ns=(modified_ns + later, modified_ns + later))
        if rename:
            target.rename(path)
