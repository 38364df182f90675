"""Fields of PET images that SUV is computed from: parsed, plausible, and the same in all files; else refused by their names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.elements import Item, one_number
from medray.modalities.imaging.formats.dicom.frames import items, stated
from medray.modalities.imaging.formats.dicom.header import Header
from medray.modalities.imaging.formats.dicom.times import moment

DOSES_BQ = (1e6, 1e11)
"""1 MBq to 100 GBq: a dose that is stated in MBq, kBq or mCi lies below."""
HALF_LIVES = 10.0
"""Half-lives after which too little is left for an image: a longer wait means that two of the times do not belong together."""
Known = TypeVar("Known")


def mean_moment(milliseconds: float | None, name: str, half_life: float) -> float:
    """Seconds into a frame after which its activity is the mean of its duration: ln(λT / (1 − exp(−λT))) / λ."""
    if milliseconds is None or milliseconds <= 0:
        raise refused(f"no {name}")
    rate = math.log(2) / half_life
    decays = rate * milliseconds / 1000
    return math.log(decays / -math.expm1(-decays)) / rate


def exact_moment(header: Header, name: str, text: str, *, sure: bool = False) -> float:
    """A DT on the clock of the file's times; `sure`: another element says which time of the day that is."""
    offset = text_of(header, header, "TimezoneOffsetFromUTC")
    if offset is None and not sure and re.fullmatch(r"\d+(?:\.\d+)?[+-]\d{4}", text.strip()):
        raise refused(
            f"{name} has an offset from UTC, and no TimezoneOffsetFromUTC says which one the times of the scan have"
        )
    return parsed(name, lambda: moment(text, offset))


def radiopharmaceutical(header: Header) -> Item:
    injected = items(header, "RadiopharmaceuticalInformationSequence")
    if len(injected) != 1:
        raise refused(f"RadiopharmaceuticalInformationSequence of {len(injected)} items; expected one")
    return injected[0]


def text_of(header: Header, source: Header | Item, keyword: str) -> str | None:
    """A keyword of one text, in the file or an item. Raises SampleError for several."""
    value = stated(source, keyword, header)
    if value is None or isinstance(value, str):
        return value
    raise refused(f"{keyword} of more than one value")


def number(header: Header, keyword: str) -> float | None:
    return one_number(stated(radiopharmaceutical(header), keyword, header))


def agreed(headers: Sequence[Header], name: str, of: Callable[[Header], Known | None]) -> Known:
    """The one value of all files. Raises SampleError where one lacks it or two differ."""
    values = [of(header) for header in headers]
    first = values[0]
    if first is None or None in values:
        raise refused(f"no {name}")
    if any(value != first for value in values):
        raise refused(f"slices with more than one {name}")
    return first


def within(number: float, limits: tuple[float, float], name: str) -> float:
    low, high = limits
    if not low <= number <= high:  # the number itself is the patient's
        raise refused(f"a {name}, that is not within {low:g} to {high:g}")
    return number


def parsed(name: str, parse: Callable[[], float]) -> float:
    try:
        return parse()
    except (ValueError, OverflowError):
        raise refused(f"{name} cannot be understood") from None


def refused(why: str) -> SampleError:
    return SampleError("no_quantity", f"SUV: {why}")


def total_dose(headers: Sequence[Header]) -> float:
    """Bq at the injection."""
    return within(
        agreed(headers, "RadionuclideTotalDose", lambda header: number(header, "RadionuclideTotalDose")),
        DOSES_BQ,
        "RadionuclideTotalDose, in Bq",
    )


def half_life(headers: Sequence[Header]) -> float:
    """Seconds."""
    seconds = agreed(headers, "RadionuclideHalfLife", lambda header: number(header, "RadionuclideHalfLife"))
    if seconds <= 0:
        raise refused("RadionuclideHalfLife is not a positive number of seconds")
    return seconds


def left(dose: float, waits: Sequence[float], half_life: float) -> list[float]:
    """The dose in Bq after each wait, in seconds. Raises SampleError for waits that cannot be."""
    if min(waits) < 0:
        raise refused("the injection begins after the moment that the activity is corrected to")
    if max(waits) > HALF_LIVES * half_life:
        raise refused(f"the injection begins more than {HALF_LIVES:g} half-lives before the image: times of two clocks")
    return [dose * 2 ** (-wait / half_life) for wait in waits]
