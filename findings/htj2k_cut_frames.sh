#!/usr/bin/env bash
# imagecodecs 2026.3.6 (OpenJPH 0.26.3): htj2k_decode, of frames that end early or are damaged within.
#
# Expected before the run: an exception, as jpeg2k_decode of the same package (OpenJPEG 2.5.4) raises one.
# Seen: of a frame that is cut in half, or 20 bytes before its end, an image comes back, without an exception and without a
# warning: what was not decoded is whatever it is. Where OpenJPH itself raises while lines are fetched, the exception is printed
# as "Exception ignored in _copy_from_codestream", and the image comes back, too. It takes half of OpenJPEG's time; medray
# stays with OpenJPEG.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'numpy==2.4.6' 'imagecodecs==2026.3.6'
"$folder/venv/bin/python" - <<'PY'
import sys

import imagecodecs
import numpy as np

print("imagecodecs", imagecodecs.__version__)
swallowed = []
sys.unraisablehook = lambda unraisable: swallowed.append(str(unraisable.exc_value))
image = (np.hypot(*np.mgrid[:128, :128]) * 20).astype(np.uint16)
frame = imagecodecs.htj2k_encode(image, reversible=True)
assert np.array_equal(imagecodecs.htj2k_decode(frame), image)
assert np.array_equal(imagecodecs.jpeg2k_decode(frame), image)

for length in (len(frame) // 2, len(frame) - 20):
    found = imagecodecs.htj2k_decode(frame[:length])
    print(f"{length} of {len(frame)} bytes: {(found != image).mean():.0%} of the pixels are others, and no exception")
    assert found.shape == image.shape and not np.array_equal(found, image)
    try:
        imagecodecs.jpeg2k_decode(frame[:length])
    except imagecodecs.Jpeg2kError:
        continue
    raise AssertionError("OpenJPEG takes it")

silent = refused = 0
for at in range(120, len(frame), 40):
    damaged = bytearray(frame)
    damaged[at : at + 8] = bytes(8)
    try:
        silent += not np.array_equal(imagecodecs.htj2k_decode(bytes(damaged)), image)
    except imagecodecs.Htj2kError:
        pass
    try:
        imagecodecs.jpeg2k_decode(bytes(damaged))
    except imagecodecs.Jpeg2kError:
        refused += 1
print(f"of 76 damaged frames {silent} come back as other pixels; {len(swallowed)} exceptions were swallowed")
print(f"OpenJPEG refuses {refused} of them")
assert swallowed and silent > 70 and refused > 40
PY
echo "as described"
