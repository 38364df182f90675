#!/usr/bin/env bash
# One enhanced MR object of four frames, read by SimpleITK 2.5.7, dcm2niix 1.0.20260724 and highdicom 0.28.2.
#
# Expected before the run: SimpleITK applies the first frame's rescale to all; frames are put in the order of their
# positions by all three, and a slice that is absent is refused or warned of.
# Seen: SimpleITK applies no rescale of a functional group at all. Where the frames do not lie in the order of their
# positions, or one slice is absent, it keeps the order of the file and says spacing 1, 1, 1: the pixel spacing is lost,
# too. dcm2niix orders and rescales, but with a slice absent it writes an even spacing of 2.667 mm for slices at 0, 2, 4
# and 8 mm, and its only warning is about the manufacturer. highdicom orders and rescales, refuses the absent slice, and
# returns the slices from the far end (its first axis points against the normal).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'numpy==2.4.6' 'nibabel==5.4.2' 'SimpleITK==2.5.7' \
    'pydicom==3.0.2' 'highdicom==0.28.2' 'dcm2niix==1.0.20260724'
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import subprocess
import warnings
from pathlib import Path

import dcm2niix
import highdicom
import nibabel
import numpy as np
import SimpleITK
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

warnings.simplefilter("ignore")
SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)


def items(**attributes):
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return [item]


def enhanced(path, positions_mm, slopes):
    """A stack of 4 x 6 pixels; the stored value of each frame is 100 + 10 times its position in mm."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = EnhancedMRImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid()
    image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = EnhancedMRImageStorage, meta.MediaStorageSOPInstanceUID
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(image, keyword, generate_uid())
    image.Modality, image.ImageType, image.PatientPosition = "MR", ["ORIGINAL", "PRIMARY", "M", "NONE"], "HFS"
    image.InstanceNumber = image.SeriesNumber = image.AcquisitionNumber = 1
    image.PatientID, image.PatientName, image.Manufacturer = "1", "", "none"
    image.StudyDate, image.StudyTime = "20200101", "120000"
    image.ContentDate, image.ContentTime = image.StudyDate, image.StudyTime
    image.NumberOfFrames, image.Rows, image.Columns = len(positions_mm), 4, 6
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    organization = generate_uid()
    image.DimensionOrganizationSequence = items(DimensionOrganizationUID=organization)
    image.DimensionIndexSequence = [
        items(
            DimensionOrganizationUID=organization,
            DimensionIndexPointer=Tag(keyword),
            FunctionalGroupPointer=Tag("FrameContentSequence"),
        )[0]
        for keyword in ("StackID", "InStackPositionNumber")
    ]
    image.SharedFunctionalGroupsSequence = items(
        PixelMeasuresSequence=items(PixelSpacing=[0.5, 0.5], SliceThickness=2.0),
        PlaneOrientationSequence=items(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        MRImageFrameTypeSequence=items(FrameType=["ORIGINAL", "PRIMARY", "M", "NONE"]),
    )
    place = {position: number for number, position in enumerate(sorted(positions_mm), 1)}
    image.PerFrameFunctionalGroupsSequence = [
        items(
            PlanePositionSequence=items(ImagePositionPatient=[0, 0, position]),
            PixelValueTransformationSequence=items(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US"),
            FrameContentSequence=items(
                StackID="1", InStackPositionNumber=place[position], DimensionIndexValues=[1, place[position]]
            ),
        )[0]
        for position, slope in zip(positions_mm, slopes)
    ]
    values = np.array([100 + 10 * position for position in positions_mm], "<u2")
    image.PixelData = np.repeat(values, 24).tobytes()
    image.save_as(path, enforce_file_format=True)


def seen(name, positions_mm, slopes):
    """{reader: (spacing between slices and rows in mm, value of each slice)}"""
    folder = Path(name.replace(" ", "_"))
    (folder / "in").mkdir(parents=True)
    path = folder / "in" / "image.dcm"
    enhanced(path, positions_mm, slopes)
    found = {}
    image = SimpleITK.ReadImage(str(path))
    spacing = image.GetSpacing()
    found["SimpleITK"] = (spacing[2], spacing[1]), SimpleITK.GetArrayFromImage(image)[:, 0, 0].tolist()
    done = subprocess.run([dcm2niix.bin, "-f", "out", "-o", folder, folder / "in"], capture_output=True, text=True)
    told = [line for line in done.stdout.splitlines() if "arning" in line and "manufacturer" not in line]
    assert told == [], told
    nifti = nibabel.load(folder / "out.nii")
    zooms = [round(float(zoom), 3) for zoom in nifti.header.get_zooms()]
    found["dcm2niix"] = (zooms[2], zooms[1]), np.asarray(nifti.dataobj)[0, 0].tolist()
    try:
        volume = highdicom.imread(path).get_volume()
        found["highdicom"] = tuple(volume.spacing[:2]), volume.array[:, 0, 0].tolist()
    except RuntimeError as error:
        found["highdicom"] = str(error)
    print(name, found)
    return found


found = seen("in order", [0, 2, 4, 6], [1, 2, 3, 4])
assert found["SimpleITK"] == ((2.0, 0.5), [100, 120, 140, 160])
assert found["dcm2niix"] == ((2.0, 0.5), [100.0, 240.0, 420.0, 640.0])
assert found["highdicom"] == ((2.0, 0.5), [640.0, 420.0, 240.0, 100.0])
found = seen("not in order", [0, 6, 2, 4], [1, 1, 1, 1])
assert found["SimpleITK"] == ((1.0, 1.0), [100, 160, 120, 140])
assert found["dcm2niix"] == ((2.0, 0.5), [100, 120, 140, 160])
assert found["highdicom"] == ((2.0, 0.5), [160.0, 140.0, 120.0, 100.0])
found = seen("one slice absent", [0, 2, 4, 8], [1, 1, 1, 1])
assert found["SimpleITK"] == ((1.0, 1.0), [100, 120, 140, 180])
assert found["dcm2niix"] == ((2.667, 0.5), [100, 120, 140, 180])
assert found["highdicom"] == "Frame positions do not form a regularly-spaced volume."
print("as found")
PY
