"""How fast compressed images are decoded on this machine: medray's reading of a whole file beside bare decoders of its content.

    measured(rounds) ── of each kind of content, an image that is made here ── by medray, by each decoder at hand, in turns

What medray uses is chosen by this table (docs/performance.md has it), among decoders that give the same pixels and refuse what
is damaged.
"""

# imagecodecs, and the plug-ins of pydicom, give their values no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import gzip
import io
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from pydantic import BaseModel
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from medray.modalities.imaging.formats.dicom.header import parse
from medray.modalities.imaging.formats.dicom.pixels import stored
from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom
from medray.modalities.imaging.formats.nifti import read_nifti

Decode = Callable[[], Any]
MEDRAY = "medray"
TIMES = 3
"""How often each decoder is called in a round: once would measure the caches that the one before it left."""


class Timed(BaseModel):
    """One decoder on one kind of content."""

    content: str
    decoder: str
    """`medray`: the whole file, header and checks included; else a bare decoder of its frame."""
    ms: float
    """Processor time, the median of all rounds."""
    least_ms: float
    most_ms: float
    times_fastest: float
    """Of the fastest bare decoder of the content whose pixels are right."""
    used: bool
    """Whether medray decodes by it."""
    right: bool
    """Whether it gives the pixels that were written."""


class _Candidate(NamedTuple):
    decoder: str
    decode: Decode
    used: bool = False


class _Content(NamedTuple):
    name: str
    pixels: np.ndarray
    candidates: tuple[_Candidate, ...]


def measured(rounds: int = 7, size: int = 512) -> list[Timed]:
    """Every decoder of every content in so many rounds, one after the other in each; images of `size` x `size`, 12 bit."""
    image = _image(size)
    return [each for content in _contents(image) for each in _timed(content, rounds)]


def _timed(content: _Content, rounds: int) -> list[Timed]:
    right = {each.decoder: _is_right(each.decode(), content.pixels) for each in content.candidates}  # and once before
    seconds: dict[str, list[float]] = {each.decoder: [] for each in content.candidates}
    for _ in range(rounds):
        for each in content.candidates:
            began = time.process_time()
            for _ in range(TIMES):
                each.decode()
            seconds[each.decoder].append((time.process_time() - began) / TIMES)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    fastest = min((medians[name] for name in medians if name != MEDRAY and right[name]), default=medians[MEDRAY])
    return [
        Timed(
            content=content.name,
            decoder=each.decoder,
            ms=round(1e3 * medians[each.decoder], 3),
            least_ms=round(1e3 * min(seconds[each.decoder]), 3),
            most_ms=round(1e3 * max(seconds[each.decoder]), 3),
            times_fastest=round(medians[each.decoder] / max(fastest, 1e-9), 2),
            used=each.used,
            right=right[each.decoder],
        )
        for each in content.candidates
    ]


def _is_right(decoded: Any, pixels: np.ndarray) -> bool:
    values = np.asarray(decoded) if isinstance(decoded, np.ndarray) else np.frombuffer(decoded, pixels.dtype)
    return bool(np.array_equal(values.view(pixels.dtype).ravel(), pixels.ravel()))


def _image(size: int) -> np.ndarray:
    """(H, W) uint16 of 12 bits: rings with the noise of a detector, the same each time."""
    down, along = np.mgrid[:size, :size] - size / 2
    radius = np.hypot(down, along)
    noise = np.random.default_rng(0).normal(0, 8, (size, size))
    return (1500 + 800 * np.sin(radius / 12) + noise).clip(0, 4095).astype(np.uint16)


def _contents(image: np.ndarray) -> Iterator[_Content]:
    from openjpeg.utils import decode as openjpeg_decode
    from rle.utils import decode_frame, encode_pixel_data

    shape: dict[str, Any] = {"rows": image.shape[0], "columns": image.shape[1], "samples_per_pixel": 1}
    bits: dict[str, Any] = {
        "bits_allocated": 16,
        "bits_stored": 16,
        "pixel_representation": 0,
        "photometric_interpretation": "MONOCHROME2",
    }
    frame = bytes(encode_pixel_data(image.tobytes(), **shape, **bits, number_of_frames=1, byteorder="<"))
    yield _of_frame(
        "RLE", "1.2.840.10008.1.2.5", image, frame,
        _Candidate("imagecodecs, dicomrle", lambda: imagecodecs.dicomrle_decode(frame, "<u2")),
        _Candidate("pylibjpeg-rle", lambda: decode_frame(frame, image.size, 16, "<")),
    )  # fmt: skip
    lossless = bytes(imagecodecs.jpeg8_encode(image, lossless=True, bitspersample=12))
    yield _of_frame(
        "JPEG lossless", "1.2.840.10008.1.2.4.70", image, lossless,
        _Candidate("imagecodecs, libjpeg-turbo", lambda: imagecodecs.jpeg_decode(lossless), used=True),
        _Candidate("imagecodecs, liblj92", lambda: imagecodecs.ljpeg_decode(lossless)),
        _Candidate("imagecodecs, jpegsof3", lambda: imagecodecs.jpegsof3_decode(lossless)),
    )  # fmt: skip
    ls = bytes(imagecodecs.jpegls_encode(image, level=0))
    yield _of_frame(
        "JPEG-LS", "1.2.840.10008.1.2.4.80", image, ls,
        _Candidate("imagecodecs, CharLS", lambda: imagecodecs.jpegls_decode(ls), used=True),
    )  # fmt: skip
    plain = bytes(imagecodecs.jpeg2k_encode(image, level=0, reversible=True, codecformat="j2k", bitspersample=12))
    yield _of_frame(
        "JPEG 2000", "1.2.840.10008.1.2.4.90", image, plain,
        _Candidate("imagecodecs, OpenJPEG", lambda: imagecodecs.jpeg2k_decode(plain), used=True),
        _Candidate("pylibjpeg-openjpeg", lambda: openjpeg_decode(plain)),
    )  # fmt: skip
    high = bytes(imagecodecs.htj2k_encode(image, reversible=True))
    yield _of_frame(
        "HTJ2K", "1.2.840.10008.1.2.4.201", image, high,
        _Candidate("imagecodecs, OpenJPEG", lambda: imagecodecs.jpeg2k_decode(high), used=True),
        _Candidate("pylibjpeg-openjpeg", lambda: openjpeg_decode(high)),
    )  # fmt: skip
    yield _nifti(image)


def _of_frame(name: str, syntax: str, image: np.ndarray, frame: bytes, *bare: _Candidate) -> _Content:
    names: dict[str, Any] = {
        "study_uid": uid("doctor"),
        "series_uid": uid("doctor", 1),
        "instance_uid": uid("doctor", 2),
    }
    made = dcmread(io.BytesIO(write_dicom(image, patient_id="doctor", **names)))
    made.file_meta.TransferSyntaxUID = UID(syntax)
    made.PixelData = encapsulate([frame])
    made["PixelData"].VR = "OB"
    whole = io.BytesIO()
    made.save_as(whole, enforce_file_format=True)
    raw = whole.getvalue()
    own = _Candidate(MEDRAY, lambda: stored(parse(raw)), used=not any(each.used for each in bare))
    return _Content(name, image, (own, *bare))


def _nifti(image: np.ndarray) -> _Content:
    """A volume of 16 such slices in gzip, as .nii.gz."""
    from nibabel.nifti1 import Nifti1Image

    volume = np.stack([image + k for k in range(16)]).astype(np.int16)
    raw = Nifti1Image(volume.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0])).to_bytes()
    packed = gzip.compress(raw, 6, mtime=0)
    start = len(raw) - volume.nbytes

    def by_medray() -> np.ndarray:
        return read_nifti(packed).values

    def bare(unpacked: bytes) -> np.ndarray:
        return np.frombuffer(unpacked, np.int16, offset=start)

    return _Content(
        "gzip (.nii.gz)",
        volume,
        (
            _Candidate(MEDRAY, by_medray),
            _Candidate("imagecodecs, libdeflate", lambda: bare(bytes(imagecodecs.gzip_decode(packed))), used=True),
            _Candidate("zlib", lambda: bare(zlib.decompress(packed, 31))),
            _Candidate("gzip", lambda: bare(gzip.decompress(packed))),
        ),
    )
