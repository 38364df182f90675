#!/usr/bin/env bash
# rt-utils 1.2.7 (with OpenCV 5.0.0.93): a mask written as an RTSTRUCT, and the area of the contours in it.
#
# Expected before the run: contours go around the voxels of the mask, so that their area is that of the mask.
# Seen: they go through the centres of the outermost voxels, so a structure loses half a voxel on every side for every reader
# that takes a contour for a polygon (volumes, dose-volume histograms): 6 x 6 voxels of 1 mm have 25 mm2 instead of 36, a row
# of seven voxels has two points and no area, and one voxel is a single point that is called CLOSED_PLANAR, for which
# PS3.3 C.8.8.6.3 has the type POINT. rt-utils itself gives the same mask back, so a round trip does not show it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    'numpy==2.4.6' 'opencv-python-headless==5.0.0.93' 'pydicom==3.0.2'
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps 'rt-utils==1.2.7'
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from rt_utils import RTStructBuilder

print("rt-utils", version("rt-utils"), "opencv", version("opencv-python-headless"))
Path("ct").mkdir()
study, series, frame = generate_uid(), generate_uid(), generate_uid()
for number in range(3):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    slice_.SOPClassUID, slice_.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
    slice_.Modality, slice_.PatientID, slice_.StudyID, slice_.SeriesNumber = "CT", "1", "1", "1"
    slice_.StudyDate, slice_.StudyTime, slice_.InstanceNumber = "20200101", "000000", number + 1
    for name in ("PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight",
                 "StudyDescription", "SeriesDescription", "AccessionNumber", "ReferringPhysicianName"):
        setattr(slice_, name, "")
    slice_.Rows = slice_.Columns = 16
    slice_.PixelSpacing, slice_.SliceThickness = [1, 1], 2
    slice_.ImageOrientationPatient, slice_.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * number]
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated = slice_.BitsStored = 16
    slice_.HighBit, slice_.PixelRepresentation, slice_.RescaleSlope, slice_.RescaleIntercept = 15, 0, 1, 0
    slice_.PixelData = bytes(2 * 16 * 16)
    slice_.save_as(f"ct/{number}.dcm", enforce_file_format=True)

masks = {name: np.zeros((16, 16, 3), bool) for name in ("square", "row", "voxel")}
masks["square"][4:10, 4:10, 1] = masks["row"][7, 3:10, 1] = masks["voxel"][7, 7, 1] = True
structures = RTStructBuilder.create_new(dicom_series_path="ct")
for name, mask in masks.items():
    structures.add_roi(mask=mask, name=name)
structures.save("structures.dcm")

again = RTStructBuilder.create_from(dicom_series_path="ct", rt_struct_path="structures.dcm")
assert all(np.array_equal(again.get_roi_mask_by_name(name), mask) for name, mask in masks.items())

expected = {"square": (36, 4, 25.0), "row": (7, 2, 0.0), "voxel": (1, 1, 0.0)}
written = pydicom.dcmread("structures.dcm")
for named, contours in zip(written.StructureSetROISequence, written.ROIContourSequence):
    (contour,) = contours.ContourSequence
    x, y, _ = np.array(contour.ContourData, float).reshape(-1, 3).T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    voxels = int(masks[named.ROIName].sum())
    print(f"{named.ROIName}: {voxels} voxels of 1 mm2, {contour.ContourGeometricType} of {len(x)} points, {area} mm2")
    assert (voxels, len(x), area) == expected[named.ROIName] and contour.ContourGeometricType == "CLOSED_PLANAR"
PY
echo "as described"
