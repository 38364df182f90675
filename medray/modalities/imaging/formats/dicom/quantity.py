"""Which quantity the values of a frame shall be: as rescaled, SUV of PET, or in a unit by the file's own real world value map
(PS3.3 C.7.6.16.2.11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.dose import Doses, gray, is_dose
from medray.modalities.imaging.formats.dicom.frames import Frame, has_groups
from medray.modalities.imaging.formats.dicom.suv import suv_factors
from medray.modalities.imaging.formats.dicom.suv_body import Suv
from medray.modalities.imaging.formats.dicom.suv_enhanced import pet_unit
from medray.modalities.imaging.formats.dicom.transform import padding_of, real_world
from medray.modalities.imaging.formats.dicom.value_maps import mapped
from medray.modalities.imaging.formats.image import narrowed


class Kept(NamedTuple):
    """Of which dtype values may be from the start, since those of a sample are: no number is another one for that."""

    dtype: Literal["int16", "float32"]
    """int16: whole numbers of 16 bits are given in it where it holds them. float32: a volume is made of it."""
    size: tuple[int, ...]
    """Of images of this shape, in whatever order of axes: others are resized in float32."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a run asks values to be; by default what the rescale of each frame makes of them."""

    pet: Literal["stored"] | Suv = "stored"
    """PET in g/ml by body weight or lean body mass; other modalities stay as they are."""
    unit: str | None = None
    """UCUM code: by the map of each frame that has this unit."""
    dose: Doses = "apart"
    """Doses of radiotherapy in Gy; apart: they are no images. Other modalities stay as they are."""
    kept: Kept | None = None
    """None: float32 where a rescale is given, else as stored."""

    def of_shape(self, shape: tuple[int, ...]) -> Quantity:
        """The same for an image of this shape."""
        return self if self.kept is None or sorted(self.kept.size) == sorted(shape) else replace(self, kept=None)

    def refuse(self, of: str, modality: str | None = None) -> None:
        """Raises SampleError `no_quantity` where values that state no unit are asked for in one; `of`: what they are of.

        `modality`: Modality of a DICOM file, of which SUV is asked for PET alone; None: the file states none.
        """
        suv = self.pet != "stored" and modality in (None, "PT")
        if self.unit is not None or suv:
            raise SampleError("no_quantity", f"{of}; the run asks for {self.unit or 'SUV'}")


AS_RESCALED = Quantity()


def factors(frames: Sequence[Frame], wanted: Quantity, whole: bool) -> list[float]:
    """What rescaled values of each frame are multiplied by; 1 where nothing is asked of them.

    `whole`: the frames are those of a whole series. Raises SampleError `no_quantity`.
    """
    if wanted.pet == "stored" or frames[0].header.get("Modality") != "PT":
        return [1.0] * len(frames)
    return suv_factors(frames, whole, wanted.pet)


def map_unit(frame: Frame, wanted: Quantity) -> str | None:
    """The unit of the frame's own maps by which values are brought to what is asked for; None: the rescale does it. Raises
    SampleError `no_quantity`."""
    if (
        wanted.unit is None
        and wanted.pet != "stored"
        and frame.header.get("Modality") == "PT"
        and has_groups(frame.header)
    ):
        return pet_unit(frame, wanted.pet)
    return wanted.unit


def frame_values(
    frame: Frame, pixels: np.ndarray, wanted: Quantity, factor: float, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W) stored values of a frame, or (N, H, W) of its tiles, to (values, padding), as `real_world`; float32 where a
    quantity is asked for, int16 where that is to be kept (`Kept`) and holds them.

    `out`: of that shape and dtype, which may be filled and returned: it spares a copy.
    Raises SampleError as `real_world` does, and `no_quantity`.
    """
    if is_dose(frame.header):
        return gray(frame.header, pixels, wanted.dose), None
    unit = map_unit(frame, wanted)
    if unit is not None:
        padding = padding_of(pixels, frame.header)
        values = mapped(frame, pixels, padding, unit)
    else:
        whole = wanted.kept is not None and wanted.kept.dtype == "int16" and factor == 1
        values, padding = real_world(pixels, frame.header, frame.scaling, out, whole=whole)
        values = narrowed(values) if whole else values
    if factor == 1:
        return values, padding
    with np.errstate(over="ignore"):  # infinite values are refused later, by `conform`
        return (values * np.float64(factor)).astype(np.float32), padding
