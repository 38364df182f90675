"""Doses of radiotherapy: a grid of planes in one object, a frame each (PS3.3 C.8.8.3, RT Dose Module)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.elements import numbers, one_number, one_text
from medray.modalities.imaging.formats.dicom.frames import stated
from medray.modalities.imaging.formats.dicom.header import Header

RT_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
Doses = Literal["apart", "gray", "gray_effective"]
"""What a run makes of doses: none of them is an image; physical ones, or those corrected for biological effect, in Gy."""
TYPES = {"gray": "PHYSICAL", "gray_effective": "EFFECTIVE"}
"""Dose Type (3004,0004) of each setting."""
SAME_PLACE_MM = 0.01
_OFFSETS, _POINTER = 0x3004000C, 0x00280009


def is_dose(header: Header) -> bool:
    return header.sop_class == RT_DOSE


def dose_positions(header: Header) -> np.ndarray:
    """(F, 3) LPS mm: where the first pixel of each plane lies (C.8.8.3.2). Raises SampleError `bad_geometry`.

    Offsets that begin with 0 count along the normal from Image Position (Patient); those that begin with its z are the z of
    each plane, which is defined for axial planes alone.
    """
    start = numbers(stated(header, "ImagePositionPatient", header))
    turned = numbers(stated(header, "ImageOrientationPatient", header))
    offsets = numbers(stated(header, "GridFrameOffsetVector", header))
    if start is None or turned is None or len(start) != 3 or len(turned) != 6:
        raise SampleError("bad_geometry", "a dose without position or orientation")
    if offsets is None and header.frames == 1:
        return np.array([start])
    if offsets is None or len(offsets) != header.frames:
        raise SampleError(
            "bad_geometry", f"a dose of {header.frames} planes, and {len(offsets or [])} in GridFrameOffsetVector"
        )
    pointer = header.values.get(_POINTER, b"")
    if header.frames > 1 and pointer and pointer != _tag(_OFFSETS, header.little):
        raise SampleError("bad_geometry", "a dose whose FrameIncrementPointer does not name GridFrameOffsetVector")
    normal = np.cross(turned[:3], turned[3:])
    if offsets[0] == 0:
        along = np.array(offsets)
    elif abs(offsets[0] - start[2]) <= SAME_PLACE_MM and np.allclose(turned, (1, 0, 0, 0, 1, 0), atol=1e-4):
        along = np.array(offsets) - offsets[0]
    else:
        raise SampleError(
            "bad_geometry",
            "a dose whose GridFrameOffsetVector begins neither with 0 nor, of axial planes, with the z of the first one",
        )
    return np.array(start) + along[:, None] * normal


def gray(header: Header, pixels: np.ndarray, wanted: Doses) -> np.ndarray:
    """Stored values, of any shape, to float32 Gy, rounded once. Raises SampleError `no_quantity`, and `dose` where no doses
    are asked for."""
    if wanted == "apart":
        raise SampleError("dose")
    scaling = _scaling(header, TYPES[wanted])
    with np.errstate(over="ignore"):  # infinite values are refused later, by `conform`
        return (pixels * np.float64(scaling)).astype(np.float32)


def _scaling(header: Header, dose_type: str) -> float:
    """Gy of a stored 1."""
    units, kind = (one_text(_one(header, keyword)) for keyword in ("DoseUnits", "DoseType"))
    if units != "GY":
        raise _refused("DoseUnits is not GY" if units else "no DoseUnits")
    if kind != dose_type:
        raise _refused(f"DoseType is not {dose_type}" if kind else "no DoseType")
    if header.photometric != "MONOCHROME2" or header.samples != 1:
        raise _refused("pixels that are not MONOCHROME2")
    if header.get("RescaleSlope") is not None or header.get("ModalityLUTSequence"):
        raise _refused("a rescale beside DoseGridScaling, which no dose has")
    scaling = one_number(stated(header, "DoseGridScaling", header))
    if scaling is None or scaling <= 0:
        raise _refused("no DoseGridScaling above 0")
    return scaling


def _one(header: Header, keyword: str) -> str | float | None:
    value = stated(header, keyword, header)
    if isinstance(value, list):
        raise _refused(f"{keyword} of more than one value")
    return value


def _tag(tag: int, little: bool) -> bytes:
    order = "little" if little else "big"
    return (tag >> 16).to_bytes(2, order) + (tag & 0xFFFF).to_bytes(2, order)


def _refused(why: str) -> SampleError:
    return SampleError("no_quantity", f"dose: {why}")
