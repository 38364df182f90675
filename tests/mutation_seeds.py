"""Small valid files of every format that medray reads, and what reads them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

sys.path.insert(0, str(Path(__file__).parent / "modalities" / "imaging"))
import dicom_build as build  # pyright: ignore[reportMissingImports]

from medray.datasets.label_table import LabelSettings
from medray.modalities.ehr.convert.settings import CsvSource, FhirSource, SourceBase
from medray.modalities.ehr.spec import EhrSpec, TaskSpec
from medray.modalities.genomics.spec import GenomicsSpec
from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.registry import ModalitySpec

SIDE = 24
FLAT = ImagingSpec(size=(16, 16))
DEEP = ImagingSpec(size=(3, 16, 16))
EACH = ImagingSpec(size=(3, 16, 16), volumes="each")
RECORDS = GenomicsSpec(length=24)
FHIR = FhirSource()
CSV = CsvSource.model_validate(
    {
        "kind": "csv",
        "tables": [
            {
                "name": "labs", "files": "*.csv*", "subject_column": "patient", "time_column": "when",
                "code_column": "analyte", "value_column": "value", "time_format": "iso",
            }
        ],
    }
)  # fmt: skip

GERMAN_CSV = CsvSource.model_validate(
    {
        "kind": "csv",
        "tables": [
            {
                "name": "labs", "delimiter": ";", "encoding": "latin-1", "decimal": ",", "thousands": ".",
                "subject_column": "Fall", "time_column": "Zeit", "code_column": "Größe", "value_column": "Wert",
                "unit_column": "Einheit", "time_format": "%d.%m.%Y %H:%M", "time_zone": "Europe/Berlin",
            }
        ],
    }
)  # fmt: skip


Reads = ModalitySpec | SourceBase | LabelSettings


class Seed(NamedTuple):
    files: dict[str, bytes]
    """Path in the archive to content; the first is mutated."""
    reads: Reads
    beside: Mapping[str, bytes] = MappingProxyType({})
    """Files outside the archive, as a reference."""
    named: bool = False
    """The run file names the mutated file: it may be refused as a whole, with a sentence."""
    root: str = ""
    """The archive, below the folder of the files."""


def pixels(seed: int, *shape: int, high: int = 256) -> np.ndarray:
    return (
        np.random.default_rng(seed)
        .integers(0, high, shape or (SIDE, SIDE))
        .astype(np.uint8 if high <= 256 else np.uint16)
    )


# --- DICOM ----------------------------------------------------------------------------------------------------

ENCODERS: dict[str, tuple[str, Callable[[np.ndarray], bytes | bytearray]]] = {
    "dicom jpeg": ("1.2.840.10008.1.2.4.50", lambda cells: imagecodecs.jpeg_encode((cells >> 4).astype(np.uint8))),
    "dicom jpeg lossless": ("1.2.840.10008.1.2.4.70", lambda cells: imagecodecs.ljpeg_encode(cells, bitspersample=12)),
    "dicom jpeg-ls": ("1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode),
    "dicom jpeg 2000": (
        "1.2.840.10008.1.2.4.90",
        lambda cells: imagecodecs.jpeg2k_encode(cells, level=0, codecformat="J2K", bitspersample=12, reversible=True),
    ),
    "dicom htj2k": ("1.2.840.10008.1.2.4.201", imagecodecs.htj2k_encode),
    "dicom jpeg 12": ("1.2.840.10008.1.2.4.51", lambda cells: imagecodecs.jpeg_encode(cells, bitspersample=12)),
    "dicom jpeg lossless any": (
        "1.2.840.10008.1.2.4.57",
        lambda cells: imagecodecs.ljpeg_encode(cells, bitspersample=12),
    ),
    "dicom jpeg-ls near": ("1.2.840.10008.1.2.4.81", lambda cells: imagecodecs.jpegls_encode(cells, level=2)),
    "dicom jpeg 2000 lossy": (
        "1.2.840.10008.1.2.4.91",
        lambda cells: imagecodecs.jpeg2k_encode(cells, level=40, codecformat="J2K", bitspersample=12),
    ),
    "dicom htj2k rpcl": ("1.2.840.10008.1.2.4.202", imagecodecs.htj2k_encode),
    "dicom htj2k lossy": (
        "1.2.840.10008.1.2.4.203",
        lambda cells: imagecodecs.htj2k_encode(cells, level=40, reversible=False),
    ),
}


def image(instance: int = 1, *, position: float | None = None, deep: bool = True, **changes: object) -> Dataset:
    cells = pixels(instance, high=4096) if deep else pixels(instance)
    raw = write_dicom(
        cells,
        patient_id="P1",
        study_uid=uid("study"),
        series_uid=uid("series"),
        instance_uid=uid("image", instance),
        instance_number=instance,
        modality="CT",
        bits_stored=12 if deep else None,
        rescale=(1.0, -1024.0),
        spacing_mm=(0.5, 0.5),
        position_mm=None if position is None else (0.0, 0.0, position),
    )
    dataset = dcmread(io.BytesIO(raw))
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def saved(dataset: Dataset, syntax: str = "1.2.840.10008.1.2.1") -> bytes:
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def compressed(name: str) -> bytes:
    syntax, encode = ENCODERS[name]
    dataset = image()
    cells = np.frombuffer(dataset.PixelData, np.uint16).reshape(SIDE, SIDE)
    if name == "dicom jpeg":
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
    dataset.PixelData = encapsulate([bytes(encode(np.ascontiguousarray(cells)))])
    dataset["PixelData"].VR = "OB"
    return saved(dataset, syntax)


def dicoms() -> dict[str, Seed]:
    flat = {
        "dicom explicit": saved(image()),
        "dicom implicit": saved(image(), "1.2.840.10008.1.2"),
        "dicom deflated": saved(image(), "1.2.840.10008.1.2.1.99"),
        "dicom bare": saved(image())[132:],
        **{name: compressed(name) for name in ENCODERS},
    }
    big = build.dataset(pixels(1, high=4096), PixelSpacing=[0.5, 0.5])
    flat["dicom big endian"] = build.encoded(big, "big")
    run_length = image(deep=False)
    run_length.compress("1.2.840.10008.1.2.5")
    flat["dicom rle"] = saved(run_length, "1.2.840.10008.1.2.5")
    palette = image(deep=False, PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        palette.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        palette.add_new(f"{colour}PaletteColorLookupTableData", "OW", pixels(7, 256, high=60000).tobytes())
    del palette.RescaleSlope, palette.RescaleIntercept
    flat["dicom palette"] = saved(palette)
    colour = image(deep=False, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    cells = pixels(9, SIDE, SIDE, 3)
    colour.PixelData = cells.tobytes()
    del colour.RescaleSlope, colour.RescaleIntercept
    flat["dicom colour"] = saved(colour)
    colour.PixelData = encapsulate([bytes(imagecodecs.jpeg_encode(cells))])
    colour.PhotometricInterpretation = "YBR_FULL_422"
    flat["dicom colour jpeg"] = saved(colour, "1.2.840.10008.1.2.4.50")
    seeds = {name: Seed({"a.dcm": raw}, FLAT) for name, raw in flat.items()}
    slices = {f"{k}.dcm": saved(image(k, position=float(k))) for k in (2, 1, 3)}
    frames = [build.frame([0.0, 0.0, 2.0 * k], [1.0, -1024.0]) for k in range(4)]
    many = build.enhanced(pixels(3, 4, SIDE, SIDE, high=4096), frames)
    raw, one = build.encoded(many), saved(image())
    moving = {
        f"{t}{k}.dcm": saved(image(10 * t + k, position=float(k), TemporalPositionIdentifier=t, AcquisitionNumber=t))
        for t in (1, 2)
        for k in (2, 1, 3)
    }
    packed = build.enhanced(pixels(3, 4, SIDE, SIDE, high=4096), frames)
    packed.PixelData = encapsulate(
        [bytes(imagecodecs.jpegls_encode(each)) for each in pixels(3, 4, SIDE, SIDE, high=4096)]
    )
    packed["PixelData"].VR = "OB"
    return seeds | {
        "dicom enhanced packed": Seed({"e.dcm": saved(packed, "1.2.840.10008.1.2.4.80")}, DEEP),
        "dicom mosaic": Seed({"m.dcm": mosaic()}, DEEP),
        "dicom pet": Seed({f"{k}.dcm": pet(k) for k in (1, 2, 3)}, DEEP.model_copy(update={"pet": "suv_bw"})),
        "dicom series": Seed(slices, DEEP),
        "dicom series in time": Seed(moving, EACH),
        "dicom enhanced": Seed({"e.dcm": raw}, DEEP),
        "dicom frames": Seed({"e.dcm": raw}, FLAT.model_copy(update={"frames": "each"})),
        "dicom gz": Seed({"a.dcm.gz": gzip.compress(one, mtime=0)}, FLAT),
        "dicom zip": Seed({"a.zip": zipped({"in/1.dcm": one, "2.dcm": flat["dicom rle"]})}, FLAT),
        "dicom tar": Seed({"a.tar": tarred({"in/1.dcm": one, "2.dcm": flat["dicom rle"]}, "w")}, FLAT),
        "dicom tar gz": Seed({"a.tar.gz": tarred({"1.dcm": one}, "w:gz")}, FLAT),
        "dicom directory": Seed(directory(one), FLAT, named=True, root="DICOMDIR"),
    }


def mosaic() -> bytes:
    """Four tiles as Siemens writes them."""
    made = build.dataset(
        pixels(10, 2 * SIDE, 2 * SIDE, high=4096),
        sop_class=build.MR,
        modality="MR",
        image_type=("ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"),
        Manufacturer="SIEMENS",
    )
    build.placed(made, (0, 0, 0), SpacingBetweenSlices=2.0)
    made.private_block(0x19, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 4)
    header = b"SV10\4\3\2\1" + struct.pack("<II", 2, 77)
    for name, texts in (("NumberOfImagesInMosaic", ["4"]), ("SliceNormalVector", ["0.0", "0.0", "1.0"])):
        values = [text.encode() + b"\0" for text in texts] + [b""] * (6 - len(texts))
        header += struct.pack("<64si4siii", name.encode(), len(texts), b"FD\0\0", 4, 6, 77)
        for value in values:
            header += struct.pack("<4i", len(value), len(value), 77, len(value)) + value + b"\0" * (-len(value) % 4)
    header += b"\0" * (len(header) % 2)
    made.private_block(0x29, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", header)
    return build.encoded(made)


def pet(instance: int) -> bytes:
    """A slice whose header gives an SUV by body weight."""
    drug = build.item(
        RadionuclideTotalDose=3e8, RadionuclideHalfLife=6586.2, RadiopharmaceuticalStartDateTime="20200101110000"
    )
    made = build.dataset(
        pixels(instance, high=4096),
        sop_class=build.PT,
        modality="PT",
        instance=instance,
        image_type=("ORIGINAL", "PRIMARY"),
        Units="BQML",
        RescaleSlope=2.0,
        RescaleIntercept=0,
        DecayCorrection="START",
        CorrectedImage=["DECY", "ATTN"],
        PatientWeight=70,
        SeriesDate="20200101",
        SeriesTime="120000",
        AcquisitionDate="20200101",
        AcquisitionTime="120000",
        RadiopharmaceuticalInformationSequence=[drug],
    )
    return build.encoded(build.placed(made, (0, 0, 2.0 * instance)))


def directory(raw: bytes) -> dict[str, bytes]:
    """A DICOMDIR, and the file that it names."""
    import tempfile

    from pydicom.fileset import FileSet

    dataset = dcmread(io.BytesIO(raw))
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20200101", "120000", "1"
    files = FileSet()
    files.UID = UID(uid("fileset"))
    files.add(dataset)
    with tempfile.TemporaryDirectory() as folder:
        files.write(folder)
        files._stage["t"].cleanup()  # its finalizer would warn
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in members.items():
            archive.writestr(zipfile.ZipInfo(name), raw, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def tarred(members: dict[str, bytes], mode: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return stream.getvalue()


# --- other images ---------------------------------------------------------------------------------------------


def pictures() -> dict[str, Seed]:
    import PIL.Image

    def drawn(format: str, cells: np.ndarray, mode: str | None = None, **options: object) -> bytes:
        stream = io.BytesIO()
        picture = PIL.Image.fromarray(cells)
        (picture.convert(mode) if mode else picture).save(stream, format, **options)
        return stream.getvalue()

    grey, colour, deep = pixels(1), pixels(2, SIDE, SIDE, 3), pixels(3, high=65536)
    files = {
        "png": ("a.png", drawn("png", grey)),
        "png 16": ("a.png", imagecodecs.png_encode(deep)),
        "png palette": ("a.png", drawn("png", colour, "P")),
        "jpeg": ("a.jpg", drawn("jpeg", colour, quality=80)),
        "jpeg progressive": ("a.jpg", drawn("jpeg", grey, progressive=True)),
        "tiff": ("a.tif", drawn("tiff", deep)),
        "tiff lzw": ("a.tif", drawn("tiff", colour, compression="tiff_lzw")),
        "bmp": ("a.bmp", drawn("bmp", colour)),
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, train_images=pixels(4, 5, SIDE, SIDE), train_labels=np.arange(5).reshape(5, 1))
    idx = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (5, SIDE, SIDE)) + pixels(5, 5, SIDE, SIDE).tobytes()
    files |= {
        "npz": ("a.npz", stream.getvalue()),
        "idx": ("train-images-idx3-ubyte", idx),
        "idx gz": ("train-images-idx3-ubyte.gz", gzip.compress(idx, mtime=0)),
    }
    seeds = {name: Seed({path: raw}, FLAT) for name, (path, raw) in files.items()}
    labels = b"\0\0\x08\x01" + (5).to_bytes(4, "big") + bytes(range(5))
    seeds["idx labels"] = Seed({"train-labels-idx1-ubyte": labels, "train-images-idx3-ubyte": idx}, FLAT)
    seeds["pictures zip"] = Seed({"a.zip": zipped({"in/a.png": drawn("png", grey), "b.jpg": files["jpeg"][1]})}, FLAT)
    volumes = {name: Seed({path: raw}, DEEP) for name, (path, raw) in niftis().items()}
    return seeds | volumes | {"nifti film": Seed({"f.nii.gz": film()}, EACH)}


def film() -> bytes:
    import nibabel

    cells = pixels(8, SIDE, SIDE, 4, 3, high=4096).astype(np.int16)
    return gzip.compress(nibabel.Nifti1Image(cells, np.diag([0.5, 0.5, 2.0, 1.0])).to_bytes(), mtime=0)


def niftis() -> dict[str, tuple[str, bytes]]:
    import nibabel

    cells = pixels(6, SIDE, SIDE, 4, high=4096).astype(np.int16)
    one = nibabel.Nifti1Image(cells, np.diag([0.5, 0.5, 2.0, 1.0])).to_bytes()
    two = nibabel.Nifti2Image(cells, np.diag([0.5, 0.5, 2.0, 1.0])).to_bytes()
    return {
        "nifti": ("a.nii", one),
        "nifti gz": ("a.nii.gz", gzip.compress(one, mtime=0)),
        "nifti 2": ("a.nii", two),
    }


# --- sequences ------------------------------------------------------------------------------------------------


def bgzip(raw: bytes) -> bytes:
    from Bio.bgzf import BgzfWriter

    stream = io.BytesIO()
    writer = BgzfWriter(fileobj=stream)
    writer.write(raw)
    writer.flush()
    return stream.getvalue() + bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def sequences() -> dict[str, Seed]:
    letters = np.random.default_rng(1).choice(list("ACGT"), (6, 60))
    rows = ["".join(row) for row in letters]
    fasta = "".join(f">r{i} label\n{row[:40]}\n{row[40:]}\n" for i, row in enumerate(rows)).encode()
    fastq = "".join(f"@r{i}\n{row}\n+\n{'I' * 60}\n" for i, row in enumerate(rows)).encode()
    table = pa.table({"id": [f"r{i}" for i in range(6)], "sequence": rows, "label": list("ababab")})
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    lines = "id,sequence,label\n" + "".join(f"r{i},{row},{'ab'[i % 2]}\n" for i, row in enumerate(rows))
    bases = "ACGT" * 50
    head = "##fileformat=VCFv4.2\n##contig=<ID=c,length=200>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    vcf = (head + "".join(f"c\t{4 * i + 1}\trs{i}\tA\tC,AG\t50\tPASS\tDP={i}\n" for i in range(1, 20))).encode()
    variants = over("reference.fa")
    beside = {"reference.fa": f">c\n{bases}\n".encode()}
    return {
        "fasta": Seed({"a.fa": fasta}, RECORDS),
        "fasta gz": Seed({"a.fa.gz": gzip.compress(fasta, mtime=0)}, RECORDS),
        "fasta bgzip": Seed({"a.fa.bgz": bgzip(fasta)}, RECORDS),
        "fasta windows": Seed({"a.fa": fasta}, GenomicsSpec(length=24, entries="windows", stride=12)),
        "fastq": Seed({"a.fastq": fastq}, RECORDS),
        "fastq gz": Seed({"a.fastq.gz": gzip.compress(fastq, mtime=0)}, RECORDS),
        "genbank": Seed({"a.gb": genbank(rows[0])}, RECORDS),
        "sequences csv": Seed({"a.csv": lines.encode()}, RECORDS),
        "sequences tsv": Seed({"a.tsv": lines.replace(",", "\t").encode()}, RECORDS),
        "sequences parquet": Seed({"a.parquet": parquet.getvalue()}, RECORDS),
        "fastq bgzip": Seed({"a.fastq.bgz": bgzip(fastq)}, RECORDS),
        "genbank several": Seed({"a.gb": genbank(*rows[:3])}, GenomicsSpec(length=24, entries="windows", stride=12)),
        "genbank gz": Seed({"a.gb.gz": gzip.compress(genbank(*rows[:2]), mtime=0)}, RECORDS),
        "sequences two columns": Seed(
            {"a.tsv": "".join(f"{'ab'[i % 2]}\t{row}\n" for i, row in enumerate(rows)).encode()},
            GenomicsSpec(length=24, header=False, label_column=1, sequence_column=2),
        ),
        "fasta tar": Seed({"a.tar": tarred({"1.fa": fasta, "2.fa.gz": gzip.compress(fasta, mtime=0)}, "w")}, RECORDS),
        "reference": Seed({"r.fa": beside["reference.fa"], "in/a.vcf": vcf}, over("r.fa"), named=True, root="in"),
        "reference bgzip": Seed(
            {"r.fa.gz": bgzip(beside["reference.fa"]), "in/a.vcf": vcf}, over("r.fa.gz"), named=True, root="in"
        ),
        "reference index": Seed(
            {"r.fa.fai": b"c\t200\t3\t200\t201\n", "r.fa": beside["reference.fa"], "in/a.vcf": vcf},
            over("r.fa"),
            named=True,
            root="in",
        ),
        "vcf": Seed({"a.vcf": vcf}, variants, beside),
        "vcf bgzip": Seed({"a.vcf.gz": bgzip(vcf)}, variants, beside),
    }


def over(reference: str) -> GenomicsSpec:
    return GenomicsSpec(length=24, entries="variants", reference=reference)


def genbank(*sequences: str) -> bytes:
    from Bio.Seq import Seq
    from Bio.SeqFeature import FeatureLocation, SeqFeature
    from Bio.SeqIO import write
    from Bio.SeqRecord import SeqRecord

    records: list[SeqRecord] = []
    for number, bases in enumerate(sequences, 1):
        name = f"R{number}"
        record = SeqRecord(Seq(bases), name, name, "a record", annotations={"molecule_type": "DNA"})
        record.features.append(SeqFeature(FeatureLocation(3, 30, 1), type="CDS", qualifiers={"gene": ["x"]}))
        records.append(record)
    stream = io.StringIO()
    write(records, stream, "genbank")
    return stream.getvalue().encode()


# --- health records -------------------------------------------------------------------------------------------


def records() -> dict[str, Seed]:
    from meds import CodeMetadataSchema, DataSchema, LabelSchema

    when = [datetime(2000, 1, day) for day in range(1, 7)]  # noqa: DTZ001  MEDS times have no zone
    events = {
        "subject_id": [1, 1, 1, 2, 2, 2], "time": when, "code": list("ABABAB"),
        "numeric_value": [0.5, 1.5, None, 2.5, 3.5, None],
    }  # fmt: skip
    labels = {"subject_id": [1, 2], "prediction_time": [when[3], when[5]], "boolean_value": [True, False]}

    def parquet(schema: pa.Schema, columns: dict[str, list[object]]) -> bytes:
        stream = io.BytesIO()
        pq.write_table(pa.table({n: pa.array(held, schema.field(n).type) for n, held in columns.items()}), stream)
        return stream.getvalue()

    data, label = parquet(DataSchema.schema(), events), parquet(LabelSchema.schema(), labels)
    task = EhrSpec.model_validate({"kind": "ehr", "task": {"labels": "labels/0.parquet"}, "window": "2000d"})
    resources: list[dict[str, object]] = [
        {"resourceType": "Patient", "id": "p1", "birthDate": "1970-01-02", "gender": "female"}
    ]
    resources += [
        {
            "resourceType": "Observation", "id": f"o{i}", "status": "final", "subject": {"reference": "Patient/p1"},
            "code": {"coding": [{"system": "http://loinc.org", "code": "2160-0", "display": "Creatinine"}]},
            "effectiveDateTime": f"2020-01-0{i}T08:00:00Z", "valueQuantity": {"value": 1.5 + i, "unit": "mg/dL"},
        }
        for i in range(1, 6)
    ]  # fmt: skip
    ndjson = "".join(json.dumps(each) + "\n" for each in resources).encode()
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": each} for each in resources]}
    csv = b"patient,when,analyte,value\n" + b"".join(
        b"p%d,2020-01-0%dT08:00:00,K,4.%d\n" % (i % 2, i, i) for i in range(1, 9)
    )
    member = {"Observation.ndjson": ndjson}
    described = {"code": ["A", "B"], "description": ["a", "b"], "parent_codes": [[], ["A"]]}
    german = "Fall;Zeit;Größe;Wert;Einheit\n" + "".join(
        f"p{i % 2};0{i}.01.2020 08:00;K;{i}.00{i},5;mmol/l\n" for i in range(1, 9)
    )
    table = b"path,label\n" + b"".join(b"in/%d.png,%d\n" % (i, i % 2) for i in range(8))
    stream = io.BytesIO()
    pq.write_table(pa.table({"path": [f"{i}.png" for i in range(8)], "label": [1.0, 0.0] * 4}), stream)
    cells = stream.getvalue()
    return {
        "meds events": Seed({"data/0.parquet": data, "labels/0.parquet": label}, task),
        "meds labels": Seed({"labels/0.parquet": label, "data/0.parquet": data}, task, named=True),
        "fhir ndjson": Seed({"Observation.ndjson": ndjson}, FHIR),
        "fhir gz": Seed({"Observation.ndjson.gz": gzip.compress(ndjson, mtime=0)}, FHIR),
        "fhir bundle": Seed({"bundle.json": json.dumps(bundle).encode()}, FHIR),
        "fhir tar": Seed({"all.tar.gz": tarred(member, "w:gz")}, FHIR),
        "fhir zip": Seed({"all.zip": zipped(member)}, FHIR),
        "fhir array": Seed({"all.json": json.dumps(resources).encode()}, FHIR),
        "fhir resource": Seed({"Patient.json": json.dumps(resources[0], indent=1).encode()}, FHIR),
        "fhir bundle zip": Seed({"all.zip": zipped({"b.json": json.dumps(bundle).encode()})}, FHIR),
        "meds tuned": Seed(
            {"metadata/codes.parquet": parquet(CodeMetadataSchema.schema(), described), "data/0.parquet": data},
            EhrSpec(window="2000d", representation="events", task=TaskSpec(at="first of A + 48h")),
            named=True,
        ),
        "long csv zip": Seed({"all.zip": zipped({"labs.csv": csv, "more.csv.gz": gzip.compress(csv, mtime=0)})}, CSV),
        "long csv strict": Seed({"labs.csv": german.encode("latin-1")}, GERMAN_CSV),
        "label table": Seed({"labels.csv": table}, LabelSettings(table="labels.csv"), named=True),
        "label table gz": Seed(
            {"labels.csv.gz": gzip.compress(table, mtime=0)}, LabelSettings(table="labels.csv.gz"), named=True
        ),
        "label table parquet": Seed({"labels.parquet": cells}, LabelSettings(table="labels.parquet"), named=True),
        "long csv": Seed({"labs.csv": csv}, CSV),
        "long csv gz": Seed({"labs.csv.gz": gzip.compress(csv, mtime=0)}, CSV),
    }


@cache
def all_seeds() -> dict[str, Seed]:
    """Name to seed; the same bytes each time."""
    return dicoms() | pictures() | sequences() | records()
