"""Meaning of stored values: the modality transform, padding, and which images are mirrored (PS3.3 C.11.1, C.7.5.1.1.2).

MONOCHROME1 says how to show an image: the least value white, after all transformations (C.7.6.3.1.2, figure C.11.1-1 of
PS3.3). So a physical quantity keeps its values. Values without a unit are meant as a picture, which is mirrored after
the modality transform: dense tissue is bright in every radiograph, whichever way its detector stores it.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.elements import one_number
from medray.modalities.imaging.formats.dicom.frames import Group
from medray.modalities.imaging.formats.dicom.header import Header, reading
from medray.modalities.imaging.formats.dicom.lookup import modality_lut, modality_lut_top

QUANTITIES = frozenset({"CT", "PT", "NM"})
"""Modalities whose stored or rescaled values are a quantity by their IOD: HU, activity, counts."""
PROJECTIONS = frozenset({"CR", "DX", "MG", "IO", "PX", "XA", "RF", "RG"})
"""Modalities whose rescale has no unit unless its type says one (DX: type US, C.8.11.3)."""
UNSPECIFIED = "US"
"""Rescale Type of no unit (C.11.1.1.2)."""


def real_world(
    pixels: np.ndarray,
    header: Header,
    scaling: Group | None = None,
    out: np.ndarray | None = None,
    *,
    whole: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """One frame (H, W) of stored values, or several (N, H, W) that share its header, to (values, padding). `out`: of that
    shape, and float32 (or int16), which may be filled and returned.

    Values: the modality transform (PS3.3 C.11.1) of `scaling` (default: the file itself), then mirrored where
    `mirrored` says so: float32, or integers where there is no rescale. `whole`: int16 where the rescale gives nothing else.
    Padding: (H, W) bool of pixels that are outside the image (PS3.3 C.7.5.1.1.2), or None.
    Raises SampleError: `corrupt` for a rescale that is incomplete or contradictory, `bad_values` for a slope of nearly 0.
    """
    padding = padding_of(pixels, header)
    slope, intercept, unit = _rescale(header if scaling is None else scaling)
    a, b = (1.0, 0.0) if slope is None or intercept is None else (slope, intercept)
    transformed = (a, b) != (1.0, 0.0)
    low, high = _stored_range(header, pixels)
    if scaling is None and _has_modality_lut(header):
        if (a, b) != (1.0, 0.0):
            raise SampleError("corrupt", "a modality LUT and a rescale, which exclude each other")
        transformed = True
        pixels, unit = modality_lut(header, pixels)
        low, high = 0, modality_lut_top(header)
    mirror = header.photometric == "MONOCHROME1" and not quantity(header, unit, transformed)
    if (a, b) == (1.0, 0.0):
        return (_mirror(pixels, low, high) if mirror else pixels), padding
    if mirror:
        pixels = _mirror(pixels, low, high)  # for a line the same as mirroring its result
    line = _whole_line(pixels, a, b, out) if whole else None
    return (_line(pixels, a, b, out) if line is None else line), padding


def quantity(header: Header, unit: str | None, transformed: bool) -> bool:
    """Whether the values are a physical quantity, whose sign and order a display convention must not change."""
    modality = header.get("Modality")
    if unit not in (None, UNSPECIFIED) or header.float_type or modality in QUANTITIES:
        return True
    return transformed and unit is None and modality not in PROJECTIONS


def _rescale(source: Header | Group) -> tuple[float | None, float | None, str | None]:
    """(slope, intercept, type), all None where there is no rescale. Raises SampleError."""
    with nullcontext() if isinstance(source, Header) else reading("rescale"):  # a header's own are numbers or refused
        slope, intercept = (
            None if value is None else float(value)
            for value in (one_number(source.get("RescaleSlope")), one_number(source.get("RescaleIntercept")))
        )
        unit = str(source.get("RescaleType") or "").strip().upper() or None
    if slope is None and intercept is None:
        return None, None, unit
    if slope is None or intercept is None:
        if slope in (None, 1.0) and intercept in (None, 0.0):
            return 1.0, 0.0, unit
        missing = "slope" if slope is None else "intercept"
        raise SampleError("corrupt", f"a rescale without its {missing}")
    if not math.isfinite(slope) or not math.isfinite(intercept):
        raise SampleError("corrupt", "a rescale that is not finite")
    if abs(slope) < float(np.finfo(np.float32).tiny):
        raise SampleError("bad_values", f"a rescale with slope {slope:g}: every pixel has the same value")
    return slope, intercept, unit


def _has_modality_lut(header: Header) -> bool:
    if not header.get("ModalityLUTSequence"):
        return False
    with reading("modality LUT"):
        return bool(header.dataset.get("ModalityLUTSequence"))


def _stored_range(header: Header, pixels: np.ndarray) -> tuple[int, int]:
    """Least and largest value that BitsStored bits can hold."""
    bits = header.number("BitsStored", pixels.dtype.itemsize * 8)
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if header.signed else (0, (1 << bits) - 1)


def _mirror(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """low becomes high and the reverse, in the same dtype."""
    return values if values.dtype.kind == "f" else values.dtype.type(low + high) - values


def _line(pixels: np.ndarray, slope: float, intercept: float, out: np.ndarray | None = None) -> np.ndarray:
    """pixels · slope + intercept, float32, rounded once: in float64 unless every step is exact in float32."""
    out = None if out is None or out.dtype != np.float32 else out
    exact = _exact(pixels, slope, intercept)
    if exact:  # copied first: a ufunc that casts goes through small buffers, at half the speed
        values = np.empty(pixels.shape, np.float32) if out is None else out
        np.copyto(values, pixels)
    else:
        values = pixels.astype(np.float64)
    with np.errstate(over="ignore"):  # infinite values are refused later, by `conform`
        if slope != 1:
            values *= slope
        if intercept != 0:
            values += intercept
        if exact or out is None:
            return values.astype(np.float32, copy=False)
        np.copyto(out, values, casting="same_kind")
        return out


def _exact(pixels: np.ndarray, slope: float, intercept: float) -> bool:
    """Whether every step of the line is exact in float32, and gives whole numbers."""
    return (
        pixels.dtype.kind in "iu"
        and pixels.dtype.itemsize <= 2
        and slope == int(slope)
        and intercept == int(intercept)
        and abs(slope) * (1 << 16) + abs(intercept) < 1 << 24
    )


def _whole_line(pixels: np.ndarray, slope: float, intercept: float, out: np.ndarray | None) -> np.ndarray | None:
    """pixels · slope + intercept as int16; None where it does not hold all of them, or where float32 has a zero with a sign."""
    if not _exact(pixels, slope, intercept) or slope < 1:
        return None
    low, high = (int(edge) * int(slope) + int(intercept) for edge in (pixels.min(), pixels.max()))
    if low < -(1 << 15) or high >= 1 << 15:
        return None
    cells = pixels.view(np.int16) if pixels.dtype.itemsize == 2 else pixels.astype(np.int16)
    values = np.empty(pixels.shape, np.int16) if out is None or out.dtype != np.int16 else out
    # modulo 2^16, of which the result is the only number that int16 holds
    if slope != 1:
        cells = np.multiply(cells, _modulo(int(slope)), out=values)
    return np.add(cells, _modulo(int(intercept)), out=values)


def _modulo(number: int) -> np.int16:
    """What int16 holds of a number, modulo 2^16."""
    return np.int16((number + (1 << 15)) % (1 << 16) - (1 << 15))


def padding_of(pixels: np.ndarray, header: Header) -> np.ndarray | None:
    """(H, W) bool of stored values that are outside the image (PS3.3 C.7.5.1.1.2); None where there is none."""
    if header.float_type:
        value, limit = _float_padding(header)
    else:
        value, limit = _maybe_signed(header, "PixelPaddingValue"), _maybe_signed(header, "PixelPaddingRangeLimit")
    if value is None:
        return None
    if math.isnan(value):
        padding = np.isnan(pixels)
    elif limit is None or limit == value:
        padding = pixels == value
    else:
        padding = (pixels >= min(value, limit)) & (pixels <= max(value, limit))
    return padding if padding.any() else None


def _float_padding(header: Header) -> tuple[float | None, float | None]:
    """(value, limit of the range) of float pixels; NaN pads pixels that are NaN."""
    kind = "Float" if header.float_type == "f4" else "DoubleFloat"
    with reading("pixel padding"):
        value, limit = (header.dataset.get(f"{kind}PixelPadding{name}") for name in ("Value", "RangeLimit"))
        return None if value is None else float(value), None if limit is None else float(limit)


def _maybe_signed(header: Header, keyword: str) -> int | None:
    """A value of VR "US or SS": it has the sign of the pixels."""
    number = one_number(header.get(keyword))
    value = None if number is None else int(number)
    return value - (1 << 16) if value is not None and header.signed and value >= 1 << 15 else value


def cover(values: np.ndarray, padding: np.ndarray | None) -> np.ndarray:
    """Padding replaced by the least real value: it is not a measurement and must not stretch the statistics."""
    if padding is None or padding.all():
        return values
    return np.where(padding, values[~padding].min(), values)
