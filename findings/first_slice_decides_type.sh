#!/usr/bin/env bash
# A PET series whose slices have rescale slopes of their own, read by SimpleITK 2.5.7's ImageSeriesReader.
#
# PET is stored so by design: each slice is scaled to use its 16 bits (PS3.3 C.8.9.4).
# Expected before the run: real values in floating point, whatever the slopes are.
# Seen: the slope of the first slice alone decides the pixel type of the volume. Where it is a whole number, the type is
# an integer, and the values of later slices are cut to it: with slopes 1, 100 and 70.5 a stored 1000 becomes 1000,
# 34464 and 4964, since 100000 and 70500 do not fit into 16 bits and wrap; with slopes 2, 100 and 0.0005 the last
# slice, of 0.5 Bq/ml, becomes 0. With 1.5 first, all are right. Nothing is said. dcm2niix 1.0.20260724 is right each
# time. So a reader's unit test with a fractional slope tells nothing of a series whose first slope happens to be whole.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'numpy==2.4.6' 'nibabel==5.4.2' 'SimpleITK==2.5.7' \
    'pydicom==3.0.2' 'dcm2niix==1.0.20260724'
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import subprocess
from pathlib import Path

import dcm2niix
import nibabel
import numpy as np
import SimpleITK
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid


def series(folder, slopes):
    """One slice of 4 x 6 stored pixels of 1000 for each slope, 2 mm apart."""
    folder.mkdir(parents=True)
    study, series, frame = (generate_uid() for _ in range(3))
    for number, slope in enumerate(slopes):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage
        meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(), ExplicitVRLittleEndian
        image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.Modality, image.Units, image.DecayCorrection = "PT", "BQML", "START"
        image.CorrectedImage, image.ImageType = ["DECY"], ["ORIGINAL", "PRIMARY"]
        image.PatientID, image.PatientName, image.PatientPosition, image.Manufacturer = "1", "", "HFS", "none"
        image.StudyDate = image.SeriesDate = "20200101"
        image.StudyTime = image.SeriesTime = "120000"
        image.InstanceNumber, image.SeriesNumber, image.AcquisitionNumber = number + 1, 1, 1
        image.Rows, image.Columns, image.SamplesPerPixel, image.PixelRepresentation = 4, 6, 1, 0
        image.PhotometricInterpretation, image.BitsAllocated = "MONOCHROME2", 16
        image.BitsStored, image.HighBit = 16, 15
        image.PixelSpacing, image.SliceThickness = [0.5, 0.5], 2
        image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * number]
        image.RescaleSlope, image.RescaleIntercept = slope, 0
        image.PixelData = np.full(24, 1000, "<u2").tobytes()
        image.save_as(folder / f"{number}.dcm", enforce_file_format=True)


print("SimpleITK", SimpleITK.__version__)
cases = {
    (1, 100, 70.5): ("16-bit unsigned integer", [1000, 34464, 4964], [1000, 100000, 70500]),
    (2, 100, 0.0005): ("32-bit unsigned integer", [2000, 100000, 0], [2000, 100000, 0.5]),
    (1.5, 100, 70.5): ("64-bit float", [1500, 100000, 70500], [1500, 100000, 70500]),
}
for number, (slopes, (kind, wrong, right)) in enumerate(cases.items()):
    folder = Path(str(number))
    series(folder / "in", slopes)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "in")))
    volume = reader.Execute()
    read = SimpleITK.GetArrayFromImage(volume)[:, 0, 0].tolist()
    subprocess.run([dcm2niix.bin, "-f", "out", "-o", folder, folder / "in"], capture_output=True, check=True)
    other = np.asarray(nibabel.load(folder / "out.nii").dataobj)[0, 0].tolist()
    print("slopes", slopes, "SimpleITK", volume.GetPixelIDTypeAsString(), read, "dcm2niix", other)
    assert (volume.GetPixelIDTypeAsString(), read) == (kind, wrong)
    assert np.allclose(other, right)
print("as found")
PY
