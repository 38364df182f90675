"""Scoring where decoding is the work: DICOM files of one transfer syntax, a logistic model, medray beside a hand-written loop.

    python tests/benchmarks/decode_images.py --syntax j2k [--files 2000] [--quick] [--rounds 3] [--processes 2] [--only NAME …]

--syntax  none (uncompressed), rle, jpeg (lossless), jpegls, j2k, htj2k

fair      hand-written: one process per core, memory kept, hops over the header to the frame, the fastest bare decoder that may be
          used (`medray doctor`), forward, one Parquet file per 64 images
naive     the same with pydicom's pixel_array
medray    the score flow, with its index; `onnx` the same by onnxruntime

Files are 512 x 512, 12 bits in 16, with noise; the model averages squares of 16 x 16 pixels and weighs them. How it is
measured: side_by_side.py.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import score_images
import side_by_side
from score_images import SIZE
from side_by_side import Benchmark, Clock

SYNTAX = "BENCHMARK_SYNTAX"
"""Environment variable by which the processes of a run know it."""
UIDS = {
    "none": "1.2.840.10008.1.2.1",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg": "1.2.840.10008.1.2.4.70",
    "jpegls": "1.2.840.10008.1.2.4.80",
    "j2k": "1.2.840.10008.1.2.4.90",
    "htj2k": "1.2.840.10008.1.2.4.201",
}
BATCH, PIECE = 16, 64
DISTINCT = 64
"""Images of other content; the files repeat them under other names."""


def encoded(syntax: str, image: np.ndarray) -> bytes:
    """One frame."""
    import imagecodecs
    from rle.utils import encode_pixel_data

    if syntax == "rle":
        shape: dict[str, Any] = {"rows": SIZE, "columns": SIZE, "samples_per_pixel": 1, "number_of_frames": 1}
        bits: dict[str, Any] = {"bits_allocated": 16, "bits_stored": 16, "pixel_representation": 0}
        words = {"photometric_interpretation": "MONOCHROME2", "byteorder": "<"}
        return bytes(encode_pixel_data(image.tobytes(), **shape, **bits, **words))
    encode: dict[str, Callable[[], bytes]] = {
        "jpeg": lambda: imagecodecs.jpeg8_encode(image, lossless=True, bitspersample=12),
        "jpegls": lambda: imagecodecs.jpegls_encode(image, level=0),
        "j2k": lambda: imagecodecs.jpeg2k_encode(image, level=0, reversible=True, codecformat="j2k", bitspersample=12),
        "htj2k": lambda: imagecodecs.htj2k_encode(image, reversible=True),
    }
    return bytes(encode[syntax]())


def decoder(syntax: str) -> Callable[[bytes], Any]:
    import imagecodecs

    return {
        "rle": lambda frame: np.frombuffer(imagecodecs.dicomrle_decode(frame, "<u2"), np.uint16).reshape(SIZE, SIZE),
        "jpeg": imagecodecs.jpeg_decode,
        "jpegls": imagecodecs.jpegls_decode,
        "j2k": imagecodecs.jpeg2k_decode,
        "htj2k": imagecodecs.jpeg2k_decode,
    }[syntax]


def make(data: Path, count: int) -> None:
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    from medray.learning.models.logistic import LogisticSpec
    from medray.modalities.imaging.formats.dicom.writer import write_dicom
    from medray.modalities.imaging.spec import ImagingSpec

    syntax, folder = os.environ[SYNTAX], data / "archive"
    folder.mkdir(parents=True)
    made = []
    for number in range(min(DISTINCT, count)):
        image = _image(number)
        dataset = pydicom.dcmread(
            io.BytesIO(write_dicom(image, patient_id="B", study_uid="1.2", series_uid="1.2.1", instance_uid="1.2.3"))
        )
        if syntax != "none":
            dataset.file_meta.TransferSyntaxUID = UID(UIDS[syntax])
            dataset.PixelData = encapsulate([encoded(syntax, image)])
            dataset["PixelData"].VR = "OB"
        made.append(dataset)
    for number in range(count):
        dataset = made[number % DISTINCT]
        dataset.PatientID = f"B{number:06}"
        dataset.StudyInstanceUID = uid = f"1.2.826.0.1.3680043.8.498.{number + 1}"
        dataset.SeriesInstanceUID = uid + ".1"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid + ".2"
        dataset.save_as(folder / f"{number:06}.dcm", enforce_file_format=True)
    spec = ImagingSpec(size=(SIZE, SIZE), dtype="float32", mean=(2000.0,), std=(1000.0,))
    side_by_side.save_bundle(data / "bundle", modality=spec, model=LogisticSpec())


def _image(number: int) -> np.ndarray:
    """(512, 512) uint16 of 12 bits: rings with the noise of a detector."""
    down, along = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    noise = np.random.default_rng(number).normal(0, 8, (SIZE, SIZE))
    return (1500 + 800 * np.sin(np.hypot(down, along) / (8 + number % 16)) + noise).clip(0, 4095).astype(np.uint16)


def frame_of(raw: bytes) -> bytes:
    """The one frame of a file with its preamble, explicit VR, and sequences that state their lengths."""
    at = 132
    while raw[at : at + 4] != b"\xe0\x7f\x10\x00":
        long = raw[at + 4 : at + 6] in score_images.LONG
        length = int.from_bytes(raw[at + 8 : at + 12] if long else raw[at + 6 : at + 8], "little")
        at += (12 if long else 8) + length
    at += 12
    at += 8 + int.from_bytes(raw[at + 4 : at + 8], "little")  # the table of offsets
    return raw[at + 8 : at + 8 + int.from_bytes(raw[at + 4 : at + 8], "little")]


def _read_fair(files: list[str]) -> np.ndarray:
    pixels = np.empty((len(files), SIZE, SIZE), np.float32)
    syntax = os.environ[SYNTAX]
    if syntax == "none":
        for i, file in enumerate(files):
            pixels[i] = score_images.lean(Path(file).read_bytes())
    else:
        decode = decoder(syntax)
        for i, file in enumerate(files):
            pixels[i] = decode(frame_of(Path(file).read_bytes()))
    return pixels


def _loop(
    data: Path, bundle: str, out: Path, processes: int, clock: Clock, read: score_images.Read, keeps_memory: bool
) -> None:
    given = (bundle, str(out), BATCH, read, keeps_memory, PIECE)
    score_images.in_processes(score_images.loop, data, processes, clock, *given)


def fair(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    _loop(data, bundle, out, processes, clock, _read_fair, True)


def naive(data: Path, bundle: str, out: Path, processes: int, clock: Clock) -> None:
    _loop(data, bundle, out, processes, clock, score_images.read_with_pydicom, False)


SYSTEMS = {"fair": fair, "naive": naive, "medray": score_images.medray, "onnx": score_images.onnx}

if __name__ == "__main__":
    if "--syntax" in sys.argv:
        at = sys.argv.index("--syntax")
        os.environ[SYNTAX] = sys.argv[at + 1]
        del sys.argv[at : at + 2]
    if os.environ.get(SYNTAX) not in UIDS:
        raise SystemExit(f"--syntax: one of {', '.join(UIDS)}")
    side_by_side.main(Benchmark("files", 2000, 300, make, SYSTEMS, score_images.scores), __file__, __doc__ or "")
