#!/usr/bin/env bash
# SciPy 1.17.1: scipy.ndimage.zoom, the resampling of many medical networks' preprocessing (order 0 for masks, and for the images
# of MedicalNet; order 1 or 3 elsewhere), of volumes to usual sizes.
#
# Expected before the run: a volume of 7 everywhere stays 7 everywhere.
# Seen: for some pairs of sizes (256 slices to 56 or 32, 224 to 96, 320 to 160, 384 to 192, 512 to 224, and 4 % of all pairs
# tried) the whole last plane becomes 0, at any order: the place of the last plane, (new - 1) * ((old - 1) / (new - 1)), is
# rounded to a little more than old - 1, which counts as outside, where the default mode = "constant" puts 0. Of a CT in HU that
# is a plane of water, and a mask loses what reaches the border. mode = "nearest" does not have it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'numpy==2.4.6' 'scipy==1.17.1'
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import scipy
from scipy import ndimage

print("scipy", scipy.__version__)
for old, new in ((256, 56), (256, 32), (224, 96), (320, 160), (384, 192), (512, 224), (255, 56)):
    volume = np.full((3, 4, old), 7.0)
    last = []
    for order in (0, 1, 3):
        whole = ndimage.zoom(volume, (1, 1, new / old), order=order)
        assert whole.shape == (3, 4, new) and np.allclose(whole[..., :-1], 7)
        last.append(float(whole[..., -1].max()))
        assert np.allclose(ndimage.zoom(volume, (1, 1, new / old), order=order, mode="nearest"), 7)
    print(f"{old} to {new}: last plane at order 0, 1, 3: {last}")
    assert np.allclose(last, 7) if old == 255 else last == [0, 0, 0]

sizes = [(old, new) for old in range(2, 601) for new in (28, 32, 56, 64, 96, 112, 128, 160, 192, 224, 256, 384, 448, 512)]
lost = [pair for pair in sizes if ndimage.zoom(np.ones(pair[0]), pair[1] / pair[0], order=0)[-1] == 0]
print(f"{len(lost)} of {len(sizes)} pairs lose the last plane")
assert len(lost) == 323
PY
echo "as described"
