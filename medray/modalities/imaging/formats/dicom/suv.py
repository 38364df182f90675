"""Standardized uptake values by body weight of PET images (PS3.3 C.8.9; QIBA's "SUV vendor-neutral pseudo-code").

SUVbw in g/ml = activity in Bq/ml · weight in g / (dose in Bq, decayed to the moment that the activity is corrected to)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.elements import Item, one_number, texts
from medray.modalities.imaging.formats.dicom.frames import Frame, has_groups, items, private, stated
from medray.modalities.imaging.formats.dicom.header import Header
from medray.modalities.imaging.formats.dicom.times import DAY, day, moment, time_of_day

WEIGHTS_KG = (0.005, 600.0)
"""A mouse to the heaviest of patients."""
DOSES_BQ = (1e6, 1e11)
"""1 MBq to 100 GBq: a dose that is stated in MBq, kBq or mCi lies below."""
HALF_LIVES = 10.0
"""Half-lives after which too little is left for an image: a longer wait means that two of the times do not belong together."""
DATELESS_S = 4 * 3600.0
"""Half-life up to which a start of injection without its date is of the same day, or of the evening before."""
SAME_TIME_S = 60.0
Known = TypeVar("Known")


def suv_factors(frames: Sequence[Frame], whole: bool) -> list[float]:
    """The factor of each PET frame of one volume from rescaled values to SUVbw (g/ml). `whole`: the frames are a whole series.

    Raises SampleError `no_quantity` where a needed field is absent, not plausible, or contradicts another.
    """
    headers = list({id(frame.header): frame.header for frame in frames}.values())
    if any(has_groups(header) for header in headers):
        raise _refused("an enhanced PET file has no SUV here: set real_world_unit to a unit that its value maps state")
    units = _agreed(headers, "Units", lambda header: _text(header, header, "Units"))
    corrected = _agreed(
        headers, "CorrectedImage", lambda header: tuple(texts(stated(header, "CorrectedImage", header)) or ()) or None
    )
    decay = _agreed(headers, "DecayCorrection", lambda header: _text(header, header, "DecayCorrection"))
    if "ATTN" not in corrected:
        raise _refused("CorrectedImage lacks ATTN: activity without attenuation correction has no SUV")
    if decay not in ("START", "ADMIN", "NONE"):
        raise _refused("DecayCorrection is none of START, ADMIN and NONE")
    if ("DECY" in corrected) != (decay != "NONE"):
        raise _refused("CorrectedImage and DecayCorrection contradict each other about decay")
    if units == "GML":
        kind = {_text(header, header, "SUVType") or "BW" for header in headers}
        if kind != {"BW"}:
            raise _refused("Units GML with an SUVType other than BW")
        return [1.0] * len(frames)
    scale = dict.fromkeys(map(id, headers), 1.0)
    if units == "CNTS":
        direct = {id(header): _philips(header, "PhilipsSUVFactor") for header in headers}
        if all(direct.values()):
            return [direct[id(frame.header)] for frame in frames]
        scale = {id(header): _philips(header, "PhilipsActivityFactor") for header in headers}
    if units not in ("BQML", "CNTS") or not all(scale.values()):
        raise _refused("Units are not BQML or GML, nor CNTS with the factor that Philips states")
    grams = 1000 * _within(_agreed(headers, "PatientWeight", _weight), WEIGHTS_KG, "PatientWeight, in kg")
    doses = _decayed(frames, headers, decay, whole)
    return [scale[id(frame.header)] * grams / dose for frame, dose in zip(frames, doses, strict=True)]


def _decayed(frames: Sequence[Frame], headers: Sequence[Header], decay: str, whole: bool) -> list[float]:
    """The dose in Bq that each frame's activity is measured against."""
    dose = _within(
        _agreed(headers, "RadionuclideTotalDose", lambda header: _number(header, "RadionuclideTotalDose")),
        DOSES_BQ,
        "RadionuclideTotalDose, in Bq",
    )
    if decay == "ADMIN":
        return [dose] * len(frames)
    half_life = _agreed(headers, "RadionuclideHalfLife", lambda header: _number(header, "RadionuclideHalfLife"))
    if half_life <= 0:
        raise _refused("RadionuclideHalfLife is not a positive number of seconds")
    if decay == "START":
        reference = _scan_start(headers, whole)
        references = dict.fromkeys(map(id, headers), reference)
    else:
        references = {id(header): _acquired(header) + _mean_moment(header, half_life) for header in headers}
    first = min(references.values())
    injected = _agreed(headers, "the start of injection", lambda header: _injected(header, first, half_life))
    waits = {key: reference - injected for key, reference in references.items()}
    if min(waits.values()) < 0:
        raise _refused("the injection begins after the moment that the activity is corrected to")
    if max(waits.values()) > HALF_LIVES * half_life:
        raise _refused(
            f"the injection begins more than {HALF_LIVES:g} half-lives before the image: times of two clocks"
        )
    return [dose * 2 ** (-waits[id(frame.header)] / half_life) for frame in frames]


def _scan_start(headers: Sequence[Header], whole: bool) -> float:
    """The moment that START means: that of the series, unless the series was made after the scan, as a later
    reconstruction is. Then it is GE's own statement, or the first acquisition of the series.
    """
    series = _agreed(headers, "SeriesDate and SeriesTime", lambda header: _moment(header, "SeriesDate", "SeriesTime"))
    first = min(_acquired(header) for header in headers)
    if series <= first:
        return series
    stated_by_ge = {_ge_scan(header) for header in headers}
    if len(stated_by_ge) == 1 and None not in stated_by_ge:
        return max(each for each in stated_by_ge if each is not None)
    if not whole:
        raise _refused("SeriesTime is after the acquisition, and only the whole series says when its scan began")
    return first


def _injected(header: Header, reference: float, half_life: float) -> float:
    """When the injection began; of a time without its date the last such time before `reference`."""
    item = _radiopharmaceutical(header)
    exact = _text(header, item, "RadiopharmaceuticalStartDateTime")
    time = _text(header, item, "RadiopharmaceuticalStartTime")
    of_day = None if time is None else _parsed("RadiopharmaceuticalStartTime", lambda: time_of_day(time))
    if exact is not None:
        start = _exact(header, "RadiopharmaceuticalStartDateTime", exact, sure=of_day is not None)
        apart = abs((start - (of_day or 0) + DAY / 2) % DAY - DAY / 2)
        if of_day is not None and apart > SAME_TIME_S:
            raise _refused("RadiopharmaceuticalStartDateTime and RadiopharmaceuticalStartTime contradict each other")
        return start
    if of_day is None:
        raise _refused(
            "no start of injection: neither RadiopharmaceuticalStartDateTime nor RadiopharmaceuticalStartTime"
        )
    if half_life > DATELESS_S:
        raise _refused("no RadiopharmaceuticalStartDateTime: the injection may have been days before")
    start = reference // DAY * DAY + of_day
    return start if start <= reference else start - DAY


def _mean_moment(header: Header, half_life: float) -> float:
    """Seconds into a frame after which its activity is the mean of its duration: ln(λT / (1 − exp(−λT))) / λ."""
    milliseconds = one_number(stated(header, "ActualFrameDuration", header))
    if milliseconds is None or milliseconds <= 0:
        raise _refused("no ActualFrameDuration")
    rate = math.log(2) / half_life
    decays = rate * milliseconds / 1000
    return math.log(decays / -math.expm1(-decays)) / rate


# --- fields ---------------------------------------------------------------------------------------------------


def _acquired(header: Header) -> float:
    exact = _text(header, header, "AcquisitionDateTime")
    if exact is not None and stated(header, "AcquisitionTime", header) is None:
        return _exact(header, "AcquisitionDateTime", exact)
    return _moment(header, "AcquisitionDate", "AcquisitionTime")


def _exact(header: Header, name: str, text: str, *, sure: bool = False) -> float:
    """A DT on the clock of the file's times; `sure`: another element says which time of the day that is."""
    offset = _text(header, header, "TimezoneOffsetFromUTC")
    if offset is None and not sure and re.fullmatch(r"\d+(?:\.\d+)?[+-]\d{4}", text.strip()):
        raise _refused(
            f"{name} has an offset from UTC, and no TimezoneOffsetFromUTC says which one the times of the scan have"
        )
    return _parsed(name, lambda: moment(text, offset))


def _moment(header: Header, date_keyword: str, time_keyword: str) -> float:
    date, time = _text(header, header, date_keyword), _text(header, header, time_keyword)
    if date is None or time is None:
        raise _refused(f"no {date_keyword if date is None else time_keyword}")
    return _parsed(f"{date_keyword} or {time_keyword}", lambda: day(date) + time_of_day(time))


def _ge_scan(header: Header) -> float | None:
    """When the scan began that decay is corrected to, in GE's own element (a DT)."""
    value = private(header, "GEScanDateTime", "GEMS_PETD_01")
    if value is None:
        return None
    return _exact(header, "GE's time of the scan", value.decode("ascii", "replace").strip(" \0"))


def _philips(header: Header, name: str) -> float:
    """A factor of Philips' own (a DS); 0 where there is none."""
    value = private(header, name, "Philips PET Private Group")
    if value is None:
        return 0.0
    number = _parsed("a factor of Philips", lambda: float(value.decode("ascii", "replace").strip(" \0")))
    return number if math.isfinite(number) and number > 0 else 0.0


def _radiopharmaceutical(header: Header) -> Item:
    injected = items(header, "RadiopharmaceuticalInformationSequence")
    if len(injected) != 1:
        raise _refused(f"RadiopharmaceuticalInformationSequence of {len(injected)} items; expected one")
    return injected[0]


def _text(header: Header, source: Header | Item, keyword: str) -> str | None:
    """A keyword of one text, in the file or an item. Raises SampleError for several."""
    value = stated(source, keyword, header)
    if value is None or isinstance(value, str):
        return value
    raise _refused(f"{keyword} of more than one value")


def _number(header: Header, keyword: str) -> float | None:
    return one_number(stated(_radiopharmaceutical(header), keyword, header))


def _weight(header: Header) -> float | None:
    return one_number(stated(header, "PatientWeight", header))


def _agreed(headers: Sequence[Header], name: str, of: Callable[[Header], Known | None]) -> Known:
    """The one value of all files. Raises SampleError where one lacks it or two differ."""
    values = [of(header) for header in headers]
    first = values[0]
    if first is None or None in values:
        raise _refused(f"no {name}")
    if any(value != first for value in values):
        raise _refused(f"slices with more than one {name}")
    return first


def _within(number: float, limits: tuple[float, float], name: str) -> float:
    low, high = limits
    if not low <= number <= high:  # the number itself is the patient's
        raise _refused(f"a {name}, that is not within {low:g} to {high:g}")
    return number


def _parsed(name: str, parse: Callable[[], float]) -> float:
    try:
        return parse()
    except (ValueError, OverflowError):
        raise _refused(f"{name} cannot be understood") from None


def _refused(why: str) -> SampleError:
    return SampleError("no_quantity", f"SUV: {why}")
