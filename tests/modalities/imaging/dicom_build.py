"""DICOM datasets of all kinds for tests, classic and enhanced, made by pydicom."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medray.modalities.imaging.formats.dicom.writer import uid

ROOT = "1.2.840.10008.5.1.4.1.1."
CT, MR, PT, CR, DX, US, SC = (ROOT + place for place in ("2", "4", "128", "1", "1.1", "6.1", "7"))
ENHANCED_CT, ENHANCED_MR, ENHANCED_PET = ROOT + "2.1", ROOT + "4.1", ROOT + "130"
LEGACY_CT, LEGACY_MR, LEGACY_PET = ROOT + "2.2", ROOT + "4.4", ROOT + "128.1"
ENHANCED_US, ENHANCED_XA = ROOT + "6.2", ROOT + "12.1.1"
SEG, DOSE, SR, GSPS, PDF = (ROOT + place for place in ("66.4", "481.2", "88.33", "11.1", "104.1"))

Change = Callable[[Dataset], object]


def dataset(
    pixels: np.ndarray | None,
    *,
    sop_class: str = CT,
    modality: str = "CT",
    series: str = "series",
    instance: str | int = 1,
    patient: str = "P1",
    image_type: Sequence[str] = ("ORIGINAL", "PRIMARY", "AXIAL"),
    **elements: object,
) -> Dataset:
    """(H, W) or (F, H, W) integers as one object; `elements` are further keywords."""
    meta = FileMetaDataset()
    made = Dataset()
    made.file_meta = meta
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = meta.MediaStorageSOPClassUID = UID(sop_class)
    made.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = UID(uid(series, instance))
    made.StudyInstanceUID, made.SeriesInstanceUID = uid("study", patient), uid(series)
    made.PatientID, made.PatientName, made.Modality = patient, "Planted^Name", modality
    made.ImageType = list(image_type)
    made.InstanceNumber = 1
    if pixels is not None:
        made.Rows, made.Columns = pixels.shape[-2:]
        if pixels.ndim == 3:
            made.NumberOfFrames = len(pixels)
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
        made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
        content = pixels.tobytes()
        made.PixelData = content + b"\0" * (len(content) % 2)
        made["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def placed(made: Dataset, at: Sequence[float], spacing: Sequence[float] = (1.0, 1.0), **elements: object) -> Dataset:
    """A classic slice at a position (LPS, mm), axial unless `ImageOrientationPatient` is given."""
    made.ImagePositionPatient, made.ImageOrientationPatient = list(at), [1, 0, 0, 0, 1, 0]
    made.PixelSpacing = list(spacing)
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def encoded(made: Dataset, syntax: str = "explicit", undefined: bool = False) -> bytes:
    """The file's bytes; `syntax`: explicit, implicit, big, bare (without preamble); `undefined`: lengths of sequences."""
    if undefined:
        _undefine(made)
    meta = {"implicit": ImplicitVRLittleEndian, "big": ExplicitVRBigEndian}.get(syntax, ExplicitVRLittleEndian)
    if syntax == "big" and "PixelData" in made and made.BitsAllocated == 16:
        made.PixelData = np.frombuffer(made.PixelData, "<u2").astype(">u2").tobytes()
    made.file_meta.TransferSyntaxUID = meta
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    raw = stream.getvalue()
    return raw[132:] if syntax == "bare" else raw


def _undefine(made: Dataset) -> None:
    for element in made:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                _undefine(item)


def item(**elements: object) -> Dataset:
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def frame(at: Sequence[float] | None = None, rescale: Sequence[float] | None = None, **groups: Dataset) -> Dataset:
    """The functional groups of one frame: its position, its (slope, intercept), and any other macro by its keyword."""
    made = Dataset()
    if at is not None:
        made.PlanePositionSequence = [item(ImagePositionPatient=list(at))]
    if rescale is not None:
        made.PixelValueTransformationSequence = [
            item(RescaleSlope=rescale[0], RescaleIntercept=rescale[1], RescaleType="HU")
        ]
    for keyword, group in groups.items():
        setattr(made, keyword, [group])
    return made


def enhanced(
    pixels: np.ndarray,
    frames: Iterable[Dataset],
    *,
    spacing: Sequence[float] = (0.5, 0.25),
    thickness: float = 2.0,
    shared: Dataset | None = None,
    sop_class: str = ENHANCED_CT,
    **elements,
) -> Dataset:
    """(F, H, W) integers as an enhanced object; spacing and orientation stand in the shared groups."""
    made = dataset(pixels, sop_class=sop_class, **elements)
    common = shared or Dataset()
    if "PixelMeasuresSequence" not in common:
        common.PixelMeasuresSequence = [item(PixelSpacing=list(spacing), SliceThickness=thickness)]
    if "PlaneOrientationSequence" not in common:
        common.PlaneOrientationSequence = [item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    made.SharedFunctionalGroupsSequence = [common]
    made.PerFrameFunctionalGroupsSequence = list(frames)
    return made


def mosaic_file(tiles: np.ndarray, time: int = 1, **elements: object) -> bytes:
    """(N, H, H) tiles as one file of Siemens: row by row from the upper left, 3 mm apart, and a CSA header that says so; values
    are 2 · stored - 4096."""
    count, size = len(tiles), tiles.shape[-1]
    across = int(np.ceil(np.sqrt(count)))
    places = np.zeros((across * across, size, size), tiles.dtype)
    places[:count] = tiles
    whole = places.reshape(across, across, size, size).swapaxes(1, 2).reshape(across * size, across * size)
    csa = b"SV10\4\3\2\1" + struct.pack("<II", 1, 77)
    csa += struct.pack("<64si4siii", b"SliceNormalVector", 3, b"FD\0\0", 4, 6, 77)
    for text in (b"0.0\0", b"0.0\0", b"1.0\0"):
        csa += struct.pack("<4i", 4, 4, 77, 4) + text
    kind = ("ORIGINAL", "PRIMARY", "P", "ND", "MOSAIC")
    made = dataset(np.ascontiguousarray(whole), sop_class=MR, modality="MR", instance=time, image_type=kind)
    placed(made, (0, 0, 0), AcquisitionNumber=time, SpacingBetweenSlices=3.0, FrameOfReferenceUID="1.2.3", **elements)
    made.InstanceNumber, made.RescaleSlope, made.RescaleIntercept = time, 2, -4096
    made.private_block(0x19, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", count)
    made.private_block(0x29, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", csa)
    return encoded(made)
