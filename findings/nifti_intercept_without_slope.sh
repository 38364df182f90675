#!/usr/bin/env bash
# SimpleITK 2.5.7 and nibabel 5.4.2 on a NIfTI-1 file with scl_slope 0 and scl_inter -1024.
#
# nifti1.h: "If the scl_slope field is nonzero, then each voxel value in the dataset should be scaled." With a slope of 0 the
# intercept has no meaning.
# Expected before the run: both readers give the stored numbers.
# Seen: nibabel does. SimpleITK takes a slope of 0 as 1 and adds the intercept, so water, stored as 1024, is 1024 for one
# and 0 HU for the other. A slope of NaN is read in the same two ways.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'numpy==2.4.6' 'nibabel==5.4.2' 'SimpleITK==2.5.7'
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import struct

import nibabel
import numpy as np
import SimpleITK

print("nibabel", nibabel.__version__, "SimpleITK", SimpleITK.__version__)

plain = nibabel.Nifti1Image(np.full((4, 5, 6), 1024, np.int16), np.eye(4)).to_bytes()
for slope in (0.0, float("nan"), 1.0):
    raw = bytearray(plain)
    struct.pack_into("<2f", raw, 112, slope, -1024.0)  # scl_slope, scl_inter
    with open("image.nii", "wb") as file:
        file.write(raw)
    one, two = SimpleITK.ReadImage("image.nii")[0, 0, 0], float(nibabel.load("image.nii").get_fdata()[0, 0, 0])
    print("slope", slope, "SimpleITK", one, "nibabel", two)
    assert one == 0.0 and two == (0.0 if slope == 1.0 else 1024.0)
print("as found")
PY
