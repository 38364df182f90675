"""SUV of enhanced PET images: unit, corrections and times stand elsewhere than in classic ones (PS3.3 A.56, C.8.22)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medray.modalities.imaging.formats.dicom.elements import one_number, one_text
from medray.modalities.imaging.formats.dicom.frames import Frame
from medray.modalities.imaging.formats.dicom.header import Header
from medray.modalities.imaging.formats.dicom.suv_body import Suv, mass_ratio, weight_kg
from medray.modalities.imaging.formats.dicom.suv_fields import (
    agreed,
    half_life,
    left,
    mean_moment,
    parsed,
    radiopharmaceutical,
    refused,
    text_of,
    total_dose,
)
from medray.modalities.imaging.formats.dicom.times import moment
from medray.modalities.imaging.formats.dicom.value_maps import maps_of, unit_of

ACTIVITY = "Bq/ml"
UNITS: dict[Suv, tuple[str, str]] = {
    "suv_bw": ("g/ml{SUVbw}", "{SUVbw}g/ml"),
    "suv_lbm_james": ("g/ml{SUVlbm(James128)}", "{SUVlbm(James128)}g/ml"),
    "suv_lbm_janma": ("g/ml{SUVlbm(Janma)}", "{SUVlbm(Janma)}g/ml"),
}
"""UCUM codes of PS3.16 CID 85, and as earlier editions had them."""


def pet_unit(frame: Frame, kind: Suv) -> str | None:
    """The unit of the frame's map that its values are taken by: SUV as asked for, else by weight, else activity; None: it has
    no such map, and its rescale gives activity. Raises SampleError `no_quantity`."""
    units = {unit_of(item, frame.header) for item in maps_of(frame)}
    for unit in (*UNITS[kind], *UNITS["suv_bw"], ACTIVITY):
        if unit in units:
            return unit
    scaling = frame.scaling
    if scaling is not None and str(scaling.get("RescaleType") or "").upper() in ("BQML", ACTIVITY.upper()):
        return None
    raise refused("an enhanced PET frame without a real world value map to SUV or Bq/ml, or a rescale of type BQML")


def enhanced_factors(frames: Sequence[Frame], headers: Sequence[Header], kind: Suv) -> list[float]:
    """As `suv.suv_factors`, from the values of the map that `pet_unit` names. Raises SampleError `no_quantity`."""
    units = {pet_unit(frame, kind) for frame in frames}
    if len(units) > 1:
        raise refused("frames with maps to more than one unit")
    unit = units.pop()
    if agreed(headers, "AttenuationCorrected", lambda header: text_of(header, header, "AttenuationCorrected")) != "YES":
        raise refused("AttenuationCorrected is not YES: activity without attenuation correction has no SUV")
    if unit in UNITS[kind]:
        return [1.0] * len(frames)
    ratio = mass_ratio(headers, kind)
    if unit in UNITS["suv_bw"]:
        return [ratio] * len(frames)
    grams = 1000 * weight_kg(headers) * ratio
    return [grams / dose for dose in _decayed(frames, headers)]


def _decayed(frames: Sequence[Frame], headers: Sequence[Header]) -> list[float]:
    """The dose in Bq that each frame's activity is measured against (C.8.22.3: DecayCorrected, DecayCorrectionDateTime)."""
    corrected = agreed(headers, "DecayCorrected", lambda header: text_of(header, header, "DecayCorrected"))
    if corrected not in ("YES", "NO"):
        raise refused("DecayCorrected is neither YES nor NO")
    dose, seconds = total_dose(headers), half_life(headers)
    injected = agreed(
        headers,
        "RadiopharmaceuticalStartDateTime",
        lambda header: text_of(header, radiopharmaceutical(header), "RadiopharmaceuticalStartDateTime"),
    )
    if corrected == "YES":
        name = "DecayCorrectionDateTime"
        stamp = agreed(headers, name, lambda header: text_of(header, header, name))
        return left(dose, [_between(headers[0], injected, stamp, name)], seconds) * len(frames)
    waits: list[float] = []
    for frame in frames:
        stamp = one_text(frame.get("FrameAcquisitionDateTime", "FrameContentSequence"))
        if stamp is None:
            raise refused("no FrameAcquisitionDateTime of a frame that is not corrected for decay")
        duration = one_number(frame.get("FrameAcquisitionDuration", "FrameContentSequence"))
        start = _between(frame.header, injected, stamp, "FrameAcquisitionDateTime")
        waits.append(start + mean_moment(duration, "FrameAcquisitionDuration", seconds))
    return left(dose, waits, seconds)


def _between(header: Header, first: str, second: str, name: str) -> float:
    """Seconds from the injection to a DT, on the clock of the file or, where both have an offset from UTC, on that."""
    offset = text_of(header, header, "TimezoneOffsetFromUTC")
    with_offset = [re.search(r"[+-]\d{4}$", stamp.strip()) is not None for stamp in (first, second)]
    if offset is None and any(with_offset):
        if not all(with_offset):
            raise refused(
                f"one of RadiopharmaceuticalStartDateTime and {name} has an offset from UTC, and the other none"
            )
        offset = "+0000"
    names = ("RadiopharmaceuticalStartDateTime", name)
    start, end = (
        parsed(each, lambda stamp=stamp: moment(stamp, offset))
        for each, stamp in zip(names, (first, second), strict=True)
    )
    return end - start
