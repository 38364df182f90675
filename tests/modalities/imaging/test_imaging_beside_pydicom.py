"""medray beside pydicom on real files: those that pydicom brings along, and the shared sets."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom import pixels as dicom
from medray.modalities.imaging.formats.dicom import transform
from medray.modalities.imaging.formats.dicom.header import parse

BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
REFUSED = {
    "MR_truncated.dcm": "truncated",
    "badVR.dcm": "corrupt",  # NumberOfFrames is no number
    "JPEG2000-embedded-sequence-delimiter.dcm": "corrupt",  # its code stream says 3,722,445,056 columns
    "SC_rgb_jpeg.dcm": "corrupt",  # implicit VR under an explicit transfer syntax, so its length is no length
}
"""Files with pixels that medray refuses; of these pydicom reads the last, by guessing the VR."""


def pixels_of_pydicom(path: Path) -> tuple[pydicom.Dataset, np.ndarray] | None:
    """The data set and its stored values or R G B; None where pydicom cannot say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
        if not any(keyword in dataset for keyword in PIXELS):
            return None
        try:
            pixels = dataset.pixel_array
        except (RuntimeError, NotImplementedError, ValueError, AttributeError):
            return None
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, dataset)[..., :3]
        return dataset, pixels


def compare(path: Path) -> str:
    """ "equal", "mirrored", "pydicom cannot" or "refused". A file that differs fails the test."""
    found = pixels_of_pydicom(path)
    header = parse(path.read_bytes())
    if path.name in REFUSED:
        with pytest.raises(SampleError) as caught:
            dicom.stored(header)
        assert caught.value.reason == REFUSED[path.name]
        return "refused"
    if found is None:
        return "pydicom cannot"
    dataset, theirs = found
    pixels = dicom.stored(header)
    assert np.array_equal(pixels if header.frames > 1 else pixels[0], theirs), path.name
    if header.frames > 1 or pixels.ndim == 4:
        return "equal"
    values, wanted = transform.real_world(pixels[0], header)[0], apply_modality_lut(theirs, dataset)
    if header.photometric == "MONOCHROME1":
        return "mirrored"
    assert np.allclose(values, wanted, rtol=1e-6, atol=1e-3), path.name
    return "equal"


def test_files_that_pydicom_brings_along_have_the_values_that_pydicom_reads():
    paths = [path for path in sorted(BUNDLED.rglob("*")) if path.suffix == ".dcm" and not path.name.startswith("meta_")]
    found = Counter(compare(path) for path in paths if b"\xe0\x7f" in path.read_bytes())
    assert found["refused"] == len(REFUSED) and found["equal"] >= 40


def is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def test_every_file_of_the_shared_sets_has_the_values_that_pydicom_reads(shared_data):
    paths = sorted(path for path in (shared_data / "imaging" / "dicom").rglob("*") if path.is_file())
    found = Counter(compare(path) for path in paths if is_dicom(path))
    assert found["equal"] > 700 and found.keys() <= {"equal", "pydicom cannot"}
