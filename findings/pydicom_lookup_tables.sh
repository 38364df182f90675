#!/usr/bin/env bash
# pydicom 3.0.2: lookup tables whose indices do not fit the type they are held in.
#
# Expected before the run: apply_color_lut and apply_modality_lut give the entry of the table that the standard names.
# Seen: apply_color_lut holds indices in the type of the table's entries: of a palette of 400 entries of 8 bits, pixel 300
# is looked up as 44. apply_modality_lut holds them in the type of the pixels: of signed 8-bit pixels and a table that
# begins at -128, all three pixels give its first entry. Nothing is said. Both are legal: 8-bit entries for 9-bit pixels
# (PS3.3 C.7.6.3.1.5), a first value of -128 for signed ones (PS3.3 C.11.1.1).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'numpy==2.4.6' 'pydicom==3.0.2'
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut

print("pydicom", pydicom.__version__)

palette = Dataset()
palette.PhotometricInterpretation, palette.BitsAllocated, palette.BitsStored = "PALETTE COLOR", 16, 9
entries = bytes(number // 2 for number in range(400))  # entry 300 is 150
for color in ("Red", "Green", "Blue"):
    setattr(palette, f"{color}PaletteColorLookupTableDescriptor", [400, 0, 8])
    setattr(palette, f"{color}PaletteColorLookupTableData", entries)
colors = apply_color_lut(np.array([[10, 300]], np.uint16), palette)[0, :, 0].tolist()
print("palette entries of pixels 10 and 300:", colors, "by the table:", [entries[10], entries[300]])
assert colors == [5, 22]

image = Dataset()
table = Dataset()
table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [256, -128, 16], list(range(1000, 1256)), "US"
table["LUTDescriptor"].VR, table["LUTData"].VR = "SS", "US"
image.PixelRepresentation, image.ModalityLUTSequence = 1, [table]
values = apply_modality_lut(np.array([-128, 0, 127], np.int8), image).tolist()
print("modality LUT of -128, 0, 127:", values, "by the table: [1000, 1128, 1255]")
assert values == [1000, 1000, 1000]

print("as found")
PY
