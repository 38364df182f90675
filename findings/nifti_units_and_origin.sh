#!/usr/bin/env bash
# SimpleITK 2.5.7 and nibabel 5.4.2 on one NIfTI-1 file.
#
# Expected before the run: both give positions in the file's own units, or both in millimetres; and without a form code
# both put the first voxel at the origin, as method 1 of the NIfTI-1 header has it.
# Seen: SimpleITK applies xyzt_units to spacing and origin (25 micrometres are 0.025 mm) and time units to the fourth
# axis (2000 ms are 2 s), but leaves 2000 Hz as 2000; nibabel applies none, and gives 25 and 2000 in every case.
# With both codes 0 SimpleITK puts the first voxel at (0, 0, 0) without turning an axis; nibabel puts the centre of the
# volume there and mirrors the first axis. So a pipeline that changes its reader scales micrometre data by 1,000 and
# mirrors code-less data, and nothing in either says so.
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


def both(image):
    nibabel.save(image, "image.nii")
    one, two = SimpleITK.ReadImage("image.nii"), nibabel.load("image.nii")
    return one.GetSpacing(), one.GetOrigin(), [float(zoom) for zoom in two.header.get_zooms()], two.affine


affine = np.diag([25.0, 25.0, 25.0, 1.0])
affine[:3, 3] = 1000, 2000, 3000
for units, factor in (("micron", 0.001), ("mm", 1.0), ("meter", 1000.0)):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), affine)
    image.header.set_xyzt_units(xyz=units)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    spacing, origin, zooms, read = both(image)
    print(units, "SimpleITK", spacing, origin, "nibabel", zooms, read[:3, 3].tolist())
    assert np.allclose(spacing, 25 * factor) and np.allclose(np.abs(origin), np.array([1000, 2000, 3000]) * factor)
    assert zooms == [25.0, 25.0, 25.0] and np.allclose(read, affine)

for units, seconds in (("sec", 2000.0), ("msec", 2.0), ("usec", 0.002), ("hz", 2000.0)):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6, 3), np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    image.header.set_xyzt_units(xyz="mm", t=units)
    image.header.set_zooms((2, 2, 2, 2000))
    spacing, _, zooms, _ = both(image)
    print(units, "SimpleITK", spacing[3], "nibabel", zooms[3])
    assert np.isclose(spacing[3], seconds) and zooms[3] == 2000.0

image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
image.header.set_zooms((2, 3, 4))
spacing, origin, _, read = both(image)
print("no codes: SimpleITK origin", origin, "nibabel", read.tolist())
assert origin == (0.0, 0.0, 0.0) and spacing == (2.0, 3.0, 4.0)
# the centre of 4 x 5 x 6 voxels of 2, 3, 4 mm is at 0, and the first axis is turned
assert read.tolist() == [[-2, 0, 0, 3], [0, 3, 0, -6], [0, 0, 4, -10], [0, 0, 0, 1]]
print("as found")
PY
