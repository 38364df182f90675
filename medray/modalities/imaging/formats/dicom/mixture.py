"""Mixtures: attributes in which the slices of one volume have to agree. An equal SeriesInstanceUID is not enough."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.elements import Value, one_number
from medray.modalities.imaging.formats.dicom.frames import Frame
from medray.modalities.imaging.formats.dicom.identity import (
    BLOCKWISE,
    COMMON_SPACE,
    UNIFORM,
    Attribute,
    Values,
    names_of,
)

SCALED_BY_SLICE = frozenset(("PT", "NM", "MR"))
"""Modalities whose slices may each have a slope of their own (PS3.3 C.8.9.4 for PET; Philips MR)."""


def differing(slices: Sequence[Values], attributes: Iterable[Attribute]) -> list[str]:
    """Names of the attributes that have more than one value, in order."""
    slices = [*{id(values): values for values in slices}.values()]
    if len(slices) == 1:
        return []
    return names_of(each.key for each in attributes if len({values.get(each.key) for values in slices}) > 1)


def interleaved(slices: Sequence[Values], attributes: Iterable[Attribute]) -> list[str]:
    """Keys of the attributes that return to an earlier value along `slices`, which are in spatial order."""
    keys: list[str] = []
    if len({id(values) for values in slices}) == 1:
        return keys
    for each in attributes:
        values = [values[each.key] for values in slices if each.key in values]
        if sum(1 for _ in groupby(values)) > len(set(values)):
            keys.append(each.key)
    return keys


def refuse_places(slices: Sequence[Values]) -> None:
    """Raises SampleError `bad_geometry` for slices whose positions cannot be compared."""
    names = differing(slices, COMMON_SPACE)
    if names:
        raise SampleError("bad_geometry", f"{len(slices)} slices that differ in {', '.join(names)}: not one volume")


def refuse_mixture(slices: Sequence[Values], order: np.ndarray) -> None:
    """Raises SampleError `bad_geometry` for slices of several volumes; `order` is the spatial one."""
    names = differing(slices, UNIFORM)
    if names:
        raise SampleError("bad_geometry", f"{len(slices)} slices that differ in {', '.join(names)}: not one volume")
    names = names_of(interleaved([slices[int(k)] for k in order], BLOCKWISE))
    if names:
        raise SampleError(
            "bad_geometry", f"{len(slices)} slices of scans that lie between each other: {', '.join(names)} to and fro"
        )


# --- rescale --------------------------------------------------------------------------------------------------


def _hashable(value: Value) -> Hashable:
    return tuple(value) if isinstance(value, list) else value


class Rescale(NamedTuple):
    """How stored values of a frame become real ones (PS3.3 C.11.1, C.7.6.16.2.9)."""

    slope: float | None
    intercept: float | None
    table: bool
    """Whether a modality LUT does it."""

    @property
    def stated(self) -> bool:
        return self.table or self.slope is not None or self.intercept is not None

    @property
    def effective(self) -> tuple[float, float, bool]:
        return (1.0 if self.slope is None else self.slope, self.intercept or 0.0, self.table)


def rescale(frame: Frame) -> Rescale:
    """The rescale that a frame states."""
    source = frame.scaling
    get = frame.header.get if source is None else source.get
    table = source is None and bool(frame.header.get("ModalityLUTSequence"))
    return Rescale(one_number(get("RescaleSlope")), one_number(get("RescaleIntercept")), table)


def refuse_rescales(frames: Sequence[Frame]) -> None:
    """Raises SampleError `bad_rescale` where slices of one volume would be on different scales."""
    if all(frame is frames[0] for frame in frames):  # tiles of a mosaic
        return
    rescales = [rescale(frame) for frame in frames]
    without = sum(not each.stated for each in rescales)
    values = {each.effective for each in rescales}
    mirrored = (
        frames[0].header.photometric == "MONOCHROME1"
    )  # mirroring depends on whether there is a rescale, and on its unit
    if 0 < without < len(rescales) and (mirrored or len(values) > 1):
        raise SampleError(
            "bad_rescale", f"{without} of {len(rescales)} slices without the rescale that the others have"
        )
    if len({each.table for each in rescales}) > 1:
        raise SampleError("bad_rescale", "some slices have a modality LUT, others a slope and an intercept")
    if len(values) > 1 and frames[0].header.get("Modality") not in SCALED_BY_SLICE:
        wide = [
            name
            for name, index in (("RescaleSlope", 0), ("RescaleIntercept", 1))
            if len({v[index] for v in values}) > 1
        ]
        raise SampleError("bad_rescale", f"{len(rescales)} slices with more than one {' and '.join(wide)}")
    for keyword, macro in (("RescaleType", "PixelValueTransformationSequence"), ("Units", "")):
        units = {_hashable(frame.get(keyword, *filter(None, [macro]))) for frame in frames} - (
            set() if mirrored else {None}
        )
        if len(units) > 1:
            raise SampleError("bad_rescale", f"{len(rescales)} slices with more than one {keyword}")
    mapped = {_real_world_map(frame) for frame, each in zip(frames, rescales, strict=True) if not each.stated}
    if len(mapped) > 1:
        raise SampleError(
            "bad_rescale", f"{len(rescales)} slices without a rescale, whose real world values map differently"
        )


def _real_world_map(frame: Frame) -> tuple[float | None, float | None] | None:
    """(slope, intercept) of the first mapping to real world values of an enhanced frame (PS3.3 C.7.6.16.2.11)."""
    group = frame.group("RealWorldValueMappingSequence")
    if group is None:
        return None
    return one_number(group.get("RealWorldValueSlope")), one_number(group.get("RealWorldValueIntercept"))
