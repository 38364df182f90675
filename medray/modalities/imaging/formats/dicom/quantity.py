"""Which quantity the values of a frame shall be: as rescaled, SUV of PET, or in a unit by the file's own real world value map
(PS3.3 C.7.6.16.2.11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.dose import Doses, gray, is_dose
from medray.modalities.imaging.formats.dicom.elements import Item, numbers, one_number
from medray.modalities.imaging.formats.dicom.frames import Frame, described, items, stated
from medray.modalities.imaging.formats.dicom.header import Header
from medray.modalities.imaging.formats.dicom.suv import suv_factors
from medray.modalities.imaging.formats.dicom.transform import padding_of, real_world


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a run asks values to be; by default what the rescale of each frame makes of them."""

    pet: Literal["stored", "suv_bw"] = "stored"
    """suv_bw: PET in g/ml by body weight; other modalities stay as they are."""
    unit: str | None = None
    """UCUM code: by the map of each frame that has this unit."""
    dose: Doses = "apart"
    """Doses of radiotherapy in Gy; apart: they are no images. Other modalities stay as they are."""

    def refuse(self, of: str, modality: str | None = None) -> None:
        """Raises SampleError `no_quantity` where values that state no unit are asked for in one; `of`: what they are of.

        `modality`: Modality of a DICOM file, of which SUV is asked for PET alone; None: the file states none.
        """
        suv = self.pet == "suv_bw" and modality in (None, "PT")
        if self.unit is not None or suv:
            raise SampleError("no_quantity", f"{of}; the run asks for {self.unit or 'SUV'}")


AS_RESCALED = Quantity()


def factors(frames: Sequence[Frame], wanted: Quantity, whole: bool) -> list[float]:
    """What rescaled values of each frame are multiplied by; 1 where nothing is asked of them.

    `whole`: the frames are those of a whole series. Raises SampleError `no_quantity`.
    """
    if wanted.pet == "stored" or frames[0].header.get("Modality") != "PT":
        return [1.0] * len(frames)
    return suv_factors(frames, whole)


def frame_values(
    frame: Frame, pixels: np.ndarray, wanted: Quantity, factor: float, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W) stored values of a frame, or (N, H, W) of its tiles, to (values, padding), as `real_world`; float32 where a
    quantity is asked for.

    `out`: float32 of that shape that may be filled and returned: it spares a copy.
    Raises SampleError as `real_world` does, and `no_quantity`.
    """
    if is_dose(frame.header):
        return gray(frame.header, pixels, wanted.dose), None
    if wanted.unit is not None:
        padding = padding_of(pixels, frame.header)
        return _mapped(frame, pixels, padding, wanted.unit), padding
    values, padding = real_world(pixels, frame.header, frame.scaling, out)
    if factor == 1:
        return values, padding
    with np.errstate(over="ignore"):  # infinite values are refused later, by `conform`
        return (values * np.float64(factor)).astype(np.float32), padding


def _mapped(frame: Frame, pixels: np.ndarray, padding: np.ndarray | None, unit: str) -> np.ndarray:
    """Values by those maps of a frame that have the unit, each over its own range of stored values; padding as it is."""
    header = frame.header
    maps = [each for each in _maps(frame) if _unit(each, header) == unit]
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


def _maps(frame: Frame) -> list[Item]:
    """The items of a frame's own sequence of maps, else the shared one, else that of the file."""
    tag = described("RealWorldValueMappingSequence")[0]
    for groups in (frame.own, frame.shared):
        group = groups.get(tag)
        if isinstance(group, list):
            return group
    return items(frame.header, "RealWorldValueMappingSequence")


def _unit(item: Item, header: Header) -> str | None:
    codes = item.get(described("MeasurementUnitsCodeSequence")[0])
    value = stated(codes[0], "CodeValue", header) if isinstance(codes, list) and codes else None
    return value if isinstance(value, str) else None


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
