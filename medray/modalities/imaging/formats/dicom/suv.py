"""Standardized uptake values of PET images by body weight or lean body mass (PS3.3 C.8.9; QIBA's "SUV vendor-neutral pseudo-code").

SUVbw in g/ml = activity in Bq/ml · weight in g / (dose in Bq, decayed to the moment that the activity is corrected to)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from medray.modalities.imaging.formats.dicom.elements import one_number, texts
from medray.modalities.imaging.formats.dicom.frames import Frame, has_groups, private, stated
from medray.modalities.imaging.formats.dicom.header import Header
from medray.modalities.imaging.formats.dicom.suv_body import TYPES, Suv, mass_ratio, weight_kg
from medray.modalities.imaging.formats.dicom.suv_enhanced import enhanced_factors
from medray.modalities.imaging.formats.dicom.suv_fields import (
    agreed,
    exact_moment,
    half_life,
    left,
    mean_moment,
    parsed,
    radiopharmaceutical,
    refused,
    text_of,
    total_dose,
)
from medray.modalities.imaging.formats.dicom.times import DAY, day, time_of_day

DATELESS_S = 4 * 3600.0
"""Half-life up to which a start of injection without its date is of the same day, or of the evening before."""
SAME_TIME_S = 60.0


def suv_factors(frames: Sequence[Frame], whole: bool, kind: Suv) -> list[float]:
    """The factor of each PET frame of one volume from rescaled values (of an enhanced file: those of its own map) to SUV in g/ml.
    `whole`: the frames are a whole series.

    Raises SampleError `no_quantity` where a needed field is absent, not plausible, or contradicts another.
    """
    headers = list({id(frame.header): frame.header for frame in frames}.values())
    if any(has_groups(header) for header in headers):
        return enhanced_factors(frames, headers, kind)
    units = agreed(headers, "Units", lambda header: text_of(header, header, "Units"))
    corrected = agreed(
        headers, "CorrectedImage", lambda header: tuple(texts(stated(header, "CorrectedImage", header)) or ()) or None
    )
    decay = agreed(headers, "DecayCorrection", lambda header: text_of(header, header, "DecayCorrection"))
    if "ATTN" not in corrected:
        raise refused("CorrectedImage lacks ATTN: activity without attenuation correction has no SUV")
    if decay not in ("START", "ADMIN", "NONE"):
        raise refused("DecayCorrection is none of START, ADMIN and NONE")
    if ("DECY" in corrected) != (decay != "NONE"):
        raise refused("CorrectedImage and DecayCorrection contradict each other about decay")
    if units == "GML":
        types = {text_of(header, header, "SUVType") or "BW" for header in headers}
        if types == {TYPES[kind]}:
            return [1.0] * len(frames)
        if types != {"BW"}:
            raise refused(f"Units GML with an SUVType other than {' and '.join(dict.fromkeys((TYPES[kind], 'BW')))}")
        return [mass_ratio(headers, kind)] * len(frames)
    scale = dict.fromkeys(map(id, headers), 1.0)
    if units == "CNTS":
        direct = {id(header): _philips(header, "PhilipsSUVFactor") for header in headers}
        if all(direct.values()):
            return [direct[id(frame.header)] * mass_ratio(headers, kind) for frame in frames]
        scale = {id(header): _philips(header, "PhilipsActivityFactor") for header in headers}
    if units not in ("BQML", "CNTS") or not all(scale.values()):
        raise refused("Units are not BQML or GML, nor CNTS with the factor that Philips states")
    grams = 1000 * weight_kg(headers) * mass_ratio(headers, kind)
    doses = _decayed(frames, headers, decay, whole)
    return [scale[id(frame.header)] * grams / dose for frame, dose in zip(frames, doses, strict=True)]


def _decayed(frames: Sequence[Frame], headers: Sequence[Header], decay: str, whole: bool) -> list[float]:
    """The dose in Bq that each frame's activity is measured against."""
    dose = total_dose(headers)
    if decay == "ADMIN":
        return [dose] * len(frames)
    seconds = half_life(headers)
    if decay == "START":
        reference = _scan_start(headers, whole)
        references = dict.fromkeys(map(id, headers), reference)
    else:
        references = {id(header): _acquired(header) + _mean_moment(header, seconds) for header in headers}
    first = min(references.values())
    injected = agreed(headers, "the start of injection", lambda header: _injected(header, first, seconds))
    return left(dose, [references[id(frame.header)] - injected for frame in frames], seconds)


def _scan_start(headers: Sequence[Header], whole: bool) -> float:
    """The moment that START means: that of the series, unless the series was made after the scan, as a later
    reconstruction is. Then it is GE's own statement, or the first acquisition of the series.
    """
    series = agreed(headers, "SeriesDate and SeriesTime", lambda header: _moment(header, "SeriesDate", "SeriesTime"))
    first = min(_acquired(header) for header in headers)
    if series <= first:
        return series
    stated_by_ge = {_ge_scan(header) for header in headers}
    if len(stated_by_ge) == 1 and None not in stated_by_ge:
        return max(each for each in stated_by_ge if each is not None)
    if not whole:
        raise refused("SeriesTime is after the acquisition, and only the whole series says when its scan began")
    return first


def _injected(header: Header, reference: float, seconds: float) -> float:
    """When the injection began; of a time without its date the last such time before `reference`."""
    item = radiopharmaceutical(header)
    exact = text_of(header, item, "RadiopharmaceuticalStartDateTime")
    time = text_of(header, item, "RadiopharmaceuticalStartTime")
    of_day = None if time is None else parsed("RadiopharmaceuticalStartTime", lambda: time_of_day(time))
    if exact is not None:
        start = exact_moment(header, "RadiopharmaceuticalStartDateTime", exact, sure=of_day is not None)
        apart = abs((start - (of_day or 0) + DAY / 2) % DAY - DAY / 2)
        if of_day is not None and apart > SAME_TIME_S:
            raise refused("RadiopharmaceuticalStartDateTime and RadiopharmaceuticalStartTime contradict each other")
        return start
    if of_day is None:
        raise refused(
            "no start of injection: neither RadiopharmaceuticalStartDateTime nor RadiopharmaceuticalStartTime"
        )
    if seconds > DATELESS_S:
        raise refused("no RadiopharmaceuticalStartDateTime: the injection may have been days before")
    start = reference // DAY * DAY + of_day
    return start if start <= reference else start - DAY


def _mean_moment(header: Header, seconds: float) -> float:
    name = "ActualFrameDuration"
    return mean_moment(one_number(stated(header, name, header)), name, seconds)


# --- fields ------------------------------------------------------------------------------------------------------


def _acquired(header: Header) -> float:
    exact = text_of(header, header, "AcquisitionDateTime")
    if exact is not None and stated(header, "AcquisitionTime", header) is None:
        return exact_moment(header, "AcquisitionDateTime", exact)
    return _moment(header, "AcquisitionDate", "AcquisitionTime")


def _moment(header: Header, date_keyword: str, time_keyword: str) -> float:
    date, time = text_of(header, header, date_keyword), text_of(header, header, time_keyword)
    if date is None or time is None:
        raise refused(f"no {date_keyword if date is None else time_keyword}")
    return parsed(f"{date_keyword} or {time_keyword}", lambda: day(date) + time_of_day(time))


def _ge_scan(header: Header) -> float | None:
    """When the scan began that decay is corrected to, in GE's own element (a DT)."""
    value = private(header, "GEScanDateTime", "GEMS_PETD_01")
    if value is None:
        return None
    return exact_moment(header, "GE's time of the scan", value.decode("ascii", "replace").strip(" \0"))


def _philips(header: Header, name: str) -> float:
    """A factor of Philips' own (a DS); 0 where there is none."""
    value = private(header, name, "Philips PET Private Group")
    if value is None:
        return 0.0
    number = parsed("a factor of Philips", lambda: float(value.decode("ascii", "replace").strip(" \0")))
    return number if math.isfinite(number) and number > 0 else 0.0
