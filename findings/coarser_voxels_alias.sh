#!/usr/bin/env bash
# nibabel 5.4.2 and SimpleITK 2.5.7: resampling a volume to coarser voxels.
#
# A volume of 1 mm voxels whose slices are 0 and 100 in turn (mean 50), resampled to 2 and 3 mm with each tool's resampling
# to a spacing, away from the borders.
# Expected before the run: nibabel.processing, which has "resample to voxel sizes" as its purpose, smooths before it shrinks,
# and gives about 50; SimpleITK's ResampleImageFilter, a general one, does not.
# Seen: none smooths, whatever the order of the spline. At 2 mm nibabel's resample_to_output gives 100 everywhere and its conform
# gives 0 everywhere, from the same voxels: which one is a matter of where the new grid begins. At 3 mm all give full
# stripes of another width. Scaling thin slices of CT to the 3 to 5 mm of a network so turns noise and fine structure into
# values of single voxels; nothing in either documentation's example says to smooth first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    'numpy==2.4.6' 'scipy==1.17.1' 'nibabel==5.4.2' 'SimpleITK==2.5.7'
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel
import nibabel.processing
import numpy as np
import SimpleITK

print("nibabel", nibabel.__version__, "SimpleITK", SimpleITK.__version__)

values = np.zeros((60, 12, 12), np.float32)
values[::2] = 100
image = nibabel.Nifti1Image(values, np.eye(4))


def inside(array):
    line = np.asarray(array)[2:-3, 6, 6]
    return round(float(line.min()), 3) + 0.0, round(float(line.max()), 3)


def found(step, order):
    count = int(60 / step)
    made = nibabel.processing.resample_to_output(image, (step, 1, 1), order=order)
    conformed = nibabel.processing.conform(image, (count, 12, 12), (step, 1, 1), order=order)
    itk = SimpleITK.Resample(
        SimpleITK.GetImageFromArray(values.transpose(2, 1, 0)),
        (count, 12, 12), SimpleITK.Transform(), SimpleITK.sitkLinear, (0, 0, 0), (step, 1, 1),
    )  # fmt: skip
    itk_values = SimpleITK.GetArrayFromImage(itk).transpose(2, 1, 0)
    return inside(made.dataobj), inside(conformed.dataobj), inside(itk_values)


for order in (1, 3):
    at_2, at_3 = found(2.0, order), found(3.0, order)
    print("order", order, "least and greatest at 2 mm", at_2, "at 3 mm", at_3)
    assert at_2 == ((100, 100), (0, 0), (100, 100))
    assert at_3 == ((0, 100), (0, 100), (0, 100))
print("as found")
PY
