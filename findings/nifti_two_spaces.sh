#!/usr/bin/env bash
# SimpleITK 2.5.7 and nibabel 5.4.2 on one NIfTI-1 file with qform and sform, each of a code of its own.
#
# A registered image keeps where it lay in the scanner (qform, code 1) and where it lies in the other image or in a template
# (sform, code 2, 3 or 4). The standard gives both as valid, in two spaces.
# Expected before the run: both readers take one and the same of the two, the sform.
# Seen: nibabel takes the sform whatever the codes. SimpleITK takes the sform only where its code is 1, or where there is no
# qform, and else the qform, even where both codes are 4. So one file lies in the template for one reader and in the scanner
# for the other, here 50 mm and 20 degrees apart. A mask that is drawn in one and laid over the image in the other is off, and
# neither reader says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'numpy==2.4.6' 'nibabel==5.4.2' 'SimpleITK==2.5.7'
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import nibabel
import numpy as np
import SimpleITK

print("nibabel", nibabel.__version__, "SimpleITK", SimpleITK.__version__)

angle = np.radians(20)
scanner, template = np.diag([2.0, 2.0, 2.0, 1.0]), np.diag([2.0, 2.0, 2.0, 1.0])
template[:2, :2] = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
template[:3, 3] = 30, 40, 0

cases = [(1, code, "sform") for code in (1, 2, 4)] + [(2, 0, "sform")]
cases += [(*codes, "qform") for codes in ((2, 1), (4, 1), (2, 2), (4, 2), (4, 4))]
for sform_code, qform_code, itk_takes in cases:
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.set_sform(template, sform_code)
    image.set_qform(scanner, qform_code)
    nibabel.save(image, "image.nii")
    one, two = SimpleITK.ReadImage("image.nii"), nibabel.load("image.nii")
    origin = np.array(one.GetOrigin()) * [-1, -1, 1]  # LPS to RAS
    first = np.array(one.GetDirection()).reshape(3, 3)[:, 0] * [-1, -1, 1]
    print("sform", sform_code, "qform", qform_code, "nibabel", two.affine[:3, 3].tolist(), "SimpleITK", origin.tolist())
    assert np.allclose(two.affine, template, atol=1e-4)
    wanted = template if itk_takes == "sform" else scanner
    assert np.allclose(origin, wanted[:3, 3], atol=1e-4) and np.allclose(first * 2, wanted[:3, 0], atol=1e-4)
print("as found")
PY
