"""Small valid DICOM files from arrays, the same bytes each time: for demonstrations, benchmarks and tests."""

# pydicom gives some of its values no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import io
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian

CLASSES = {
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
}
"""Storage SOP classes: ultrasound, CT, MR, secondary capture."""


def uid(*names: str | int) -> str:
    """A UID below 2.25 from any names: same names, same UID (PS3.5 B.2)."""
    text = "\0".join(str(name) for name in names)
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}"


def write_dicom(
    pixels: np.ndarray,
    *,
    patient_id: str,
    study_uid: str,
    series_uid: str,
    instance_uid: str,
    instance_number: int = 1,
    modality: Literal["US", "CT", "MR", "OT"] = "US",
    photometric: Literal["MONOCHROME1", "MONOCHROME2"] = "MONOCHROME2",
    bits_stored: int | None = None,
    rescale: tuple[float, float] | None = None,
    spacing_mm: tuple[float, float] | None = None,
    position_mm: tuple[float, float, float] | None = None,
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
) -> bytes:
    """(H, W) uint8, uint16 or int16 to the bytes of an uncompressed single-frame file with preamble.

    `rescale` is (slope, intercept); `spacing_mm` (between rows, between columns); `position_mm` ImagePositionPatient
    (LPS), written with `orientation`. Raises ValueError for another dtype or number of axes.
    """
    dtypes = (np.uint8, np.uint16, np.int16)
    if pixels.ndim != 2 or pixels.dtype not in dtypes:  # pyright: ignore[reportUnnecessaryContains]
        raise ValueError(f"pixels must be (H, W) uint8, uint16 or int16, found {pixels.dtype} {list(pixels.shape)}")
    container = pixels.dtype.itemsize * 8
    bits = bits_stored or container
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(CLASSES[modality])
    meta.MediaStorageSOPInstanceUID = UID(instance_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(uid("medray"))
    meta.ImplementationVersionName = "MEDRAY"

    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = CLASSES[modality]
    dataset.SOPInstanceUID = instance_uid
    dataset.StudyInstanceUID = study_uid
    dataset.SeriesInstanceUID = series_uid
    dataset.PatientID = patient_id
    dataset.PatientName = ""
    dataset.PatientBirthDate = ""
    dataset.PatientSex = ""
    dataset.StudyDate = ""
    dataset.StudyTime = ""
    dataset.StudyID = ""
    dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.Modality = modality
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = instance_number
    dataset.ConversionType = "WSD"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = container
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if rescale is not None:
        dataset.RescaleSlope, dataset.RescaleIntercept = rescale
    if spacing_mm is not None:
        dataset.PixelSpacing = list(spacing_mm)
    if position_mm is not None:
        dataset.ImagePositionPatient = list(position_mm)
        dataset.ImageOrientationPatient = list(orientation)
    content = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB" if container == 8 else "OW"

    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()
