"""Real world value maps of a frame (PS3.3 C.7.6.16.2.11): stored values to a unit, each map over its own range."""

from __future__ import annotations

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.elements import Item, numbers, one_number
from medray.modalities.imaging.formats.dicom.frames import Frame, described, items, stated
from medray.modalities.imaging.formats.dicom.header import Header


def mapped(frame: Frame, pixels: np.ndarray, padding: np.ndarray | None, unit: str) -> np.ndarray:
    """Values by those maps of a frame that have the unit, each over its own range of stored values; padding as it is.
    Raises SampleError `no_quantity`."""
    header = frame.header
    maps = [each for each in maps_of(frame) if unit_of(each, header) == unit]
    if not maps:
        raise _refused(f"no map to {unit}")
    values = pixels.astype(np.float64)
    open_ = np.ones(pixels.shape, bool) if padding is None else ~padding
    for each in maps:
        first, last = _range(each, header)
        inside = open_ & (pixels >= first) & (pixels <= last)
        if inside.any():
            values[inside] = _by_map(each, header, pixels[inside], first)
        open_ &= ~inside
    if open_.any():
        raise _refused(f"stored values outside of the range that the map to {unit} covers")
    with np.errstate(over="ignore"):  # infinite values are refused later, by `conform`
        return values.astype(np.float32)


def _by_map(item: Item, header: Header, pixels: np.ndarray, first: float) -> np.ndarray:
    """(N,) stored values by a table from the first value on, or by slope and intercept."""
    table = numbers(stated(item, "RealWorldValueLUTData", header))
    if table:
        index = pixels.astype(np.int64) - int(first)
        if index.max() >= len(table):
            raise _refused("a table that is shorter than the range it is for")
        return np.array(table)[index]
    slope, intercept = (
        one_number(stated(item, keyword, header)) for keyword in ("RealWorldValueSlope", "RealWorldValueIntercept")
    )
    if slope is None or intercept is None or slope == 0:
        raise _refused("a map with neither a table nor slope and intercept")
    with np.errstate(over="ignore", invalid="ignore"):
        return pixels * slope + intercept


def maps_of(frame: Frame) -> list[Item]:
    """The items of a frame's own sequence of maps, else the shared one, else that of the file."""
    tag = described("RealWorldValueMappingSequence")[0]
    for groups in (frame.own, frame.shared):
        group = groups.get(tag)
        if isinstance(group, list):
            return group
    return items(frame.header, "RealWorldValueMappingSequence")


def unit_of(item: Item, header: Header) -> str | None:
    """The UCUM code of a map's unit; None where it states none."""
    codes = item.get(described("MeasurementUnitsCodeSequence")[0])
    if not isinstance(codes, list) or not codes:
        return None
    short, long = (stated(codes[0], keyword, header) for keyword in ("CodeValue", "LongCodeValue"))
    return next((value for value in (short, long) if isinstance(value, str)), None)  # long: of more than 16 characters


def _range(item: Item, header: Header) -> tuple[float, float]:
    """First and last stored value that a map is for. Those of VR "US or SS" have the sign of the pixels."""
    ends: list[float] = []
    for end in ("First", "Last"):
        number = one_number(stated(item, f"DoubleFloatRealWorldValue{end}ValueMapped", header))
        if number is None:
            number = one_number(stated(item, f"RealWorldValue{end}ValueMapped", header))
            if number is not None and header.signed and number >= 1 << 15:
                number -= 1 << 16
        if number is None:
            raise _refused(f"a map without its {end.lower()} value")
        ends.append(number)
    return ends[0], ends[1]


def _refused(why: str) -> SampleError:
    return SampleError("no_quantity", f"real world values: {why}")
