"""What the slices of one volume have to agree in: a SeriesInstanceUID alone does not make one volume of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.frames import Frame, frame_type, private
from medray.modalities.imaging.formats.dicom.header import Header

SCALED_BY_SLICE = frozenset(("PT", "NM", "MR"))
"""Modalities whose slices may each have a slope of their own (PS3.3 C.8.9.4 for PET; Philips MR)."""


class Attribute(NamedTuple):
    name: str
    """As a message has it."""
    of: Callable[[Frame], Any]
    """The value of a frame, hashable; None where it is not stated, which is a value of its own."""

    def value(self, frame: Frame) -> Any:
        try:
            return self.of(frame)
        except SampleError:  # a malformed value is no reason of its own here: no pixel depends on it
            return "malformed"


def _plain(keyword: str, *macros: str) -> Attribute:
    def value(frame: Frame) -> Any:
        found = frame.get(keyword, *macros)
        return tuple(found) if isinstance(found, list) else found

    return Attribute(keyword, value)


def _image_type(frame: Frame) -> Any:
    """All values of the image type (of the frame, where it has one); of CT the first three: what follows may differ
    between slices that were acquired together (GE marks added ones)."""
    found = frame_type(frame) or frame.header.get("ImageType") or []
    modality = frame.header.get("Modality")
    return tuple(text.strip().upper() for text in (found[:3] if modality == "CT" else found)) or None


def _image_type_end(frame: Frame) -> Any:
    found = frame_type(frame) or frame.header.get("ImageType") or []
    return tuple(text.strip().upper() for text in found[3:]) or None


def _echo_time(frame: Frame) -> Any:
    """Milliseconds to three digits: what scanners round differently is one echo."""
    found = frame.get("EffectiveEchoTime", "MREchoSequence")
    found = frame.get("EchoTime") if found is None else found
    return None if found is None else float(f"{found:.3g}")


def _b_value(frame: Frame) -> Any:
    found = frame.get("DiffusionBValue", "MRDiffusionSequence")
    if found is not None:
        return float(found)
    for name, creator in (
        ("SiemensBValue", "SIEMENS MR HEADER"),
        ("PhilipsBValue", "Philips Imaging"),
        ("GEBValue", "GEMS_PARM_01"),
    ):
        value = private(frame.header, name, creator)
        if value is not None:
            return value.split(b"\\")[0].strip(b" \0")
    return None


def _gradient(frame: Frame) -> Any:
    found = frame.nested("DiffusionGradientOrientation", "MRDiffusionSequence", "DiffusionGradientDirectionSequence")
    found = frame.get("DiffusionGradientOrientation") if found is None else found
    return None if found is None else tuple(round(number, 4) for number in found)


def _file(name: str, value: Callable[[Header], Any]) -> Attribute:
    return Attribute(name, lambda frame: value(frame.header))


PLACE = (
    _plain("StudyInstanceUID"),
    _plain("FrameOfReferenceUID"),
)
"""Without these in common, positions cannot be compared (PS3.3 C.7.4.1.1.1)."""

ONE = (
    _file("SOPClassUID", lambda header: header.sop_class),
    _file("Modality", lambda header: header.get("Modality")),
    _plain("SeriesNumber"),
    Attribute("ImageType", _image_type),
    _file("PhotometricInterpretation", lambda header: header.photometric),
    _plain("ComplexImageComponent", "MRImageFrameTypeSequence"),
    _plain("EchoNumbers"),
    Attribute("EchoTime", _echo_time),
    _plain("TemporalPositionIdentifier"),
    _plain("TemporalPositionIndex", "FrameContentSequence"),
    _plain("StackID", "FrameContentSequence"),
    Attribute("DiffusionBValue", _b_value),
    Attribute("DiffusionGradientOrientation", _gradient),
    _plain("NominalPercentageOfCardiacPhase", "CardiacSynchronizationSequence"),
    _plain("NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence"),
    _plain("CorrectedImage"),
    _file("the kind of image that GE states", lambda header: private(header, "GEImageKind", "GEMS_PARM_01")),
)
"""One value in all slices of a volume."""

BLOCKS = (
    Attribute(
        "AcquisitionNumber",
        lambda f: f.get("FrameAcquisitionNumber", "FrameContentSequence") or f.get("AcquisitionNumber"),
    ),
    Attribute("ImageType", _image_type_end),
    _plain("KVP", "CTXRayDetailsSequence"),
    _plain("ConvolutionKernel", "CTReconstructionSequence"),
    _plain("FlipAngle", "MRTimingAndRelatedParametersSequence"),
    _plain("InversionTime"),
    _plain("SequenceName"),
    _plain("ContrastBolusAgent"),
)
"""May change along a volume, from one block of slices to the next (a head CT is acquired in steps, its base thicker and
harder), but not to and fro: then two scans lie between each other."""


def differing(frames: Sequence[Frame], attributes: Iterable[Attribute]) -> list[str]:
    """Names of the attributes that have more than one value, in order."""
    return list(dict.fromkeys(each.name for each in attributes if len({each.value(frame) for frame in frames}) > 1))


def interleaved(frames: Sequence[Frame], attributes: Iterable[Attribute]) -> list[str]:
    """Names of the attributes of which a value comes back after another one, along `frames` in spatial order."""
    found = []
    for each in attributes:
        values = [value for value in map(each.value, frames) if value is not None]
        if sum(1 for _ in groupby(values)) > len(set(values)):
            found.append(each.name)
    return list(dict.fromkeys(found))


def refuse_places(frames: Sequence[Frame]) -> None:
    """Raises SampleError `bad_geometry` for slices whose positions cannot be compared."""
    names = differing(frames, PLACE)
    if names:
        raise SampleError("bad_geometry", f"{len(frames)} slices that differ in {', '.join(names)}: not one volume")


def refuse_mixture(frames: Sequence[Frame], order: np.ndarray) -> None:
    """Raises SampleError `bad_geometry` for slices of several volumes; `order` is the spatial one."""
    names = differing(frames, ONE)
    if names:
        raise SampleError("bad_geometry", f"{len(frames)} slices that differ in {', '.join(names)}: not one volume")
    names = interleaved([frames[k] for k in order], BLOCKS)
    if names:
        raise SampleError(
            "bad_geometry", f"{len(frames)} slices of scans that lie between each other: {', '.join(names)} to and fro"
        )


# --- rescale --------------------------------------------------------------------------------------------------


class Rescale(NamedTuple):
    """How stored values of a frame become real ones (PS3.3 C.11.1, C.7.6.16.2.9)."""

    slope: float | None
    intercept: float | None
    table: bool
    """By a modality LUT."""

    @property
    def stated(self) -> bool:
        return self.table or self.slope is not None or self.intercept is not None

    @property
    def effective(self) -> tuple[float, float, bool]:
        return (1.0 if self.slope is None else self.slope, self.intercept or 0.0, self.table)


def rescale(frame: Frame) -> Rescale:
    """A frame's rescale, as stated."""
    source = frame.scaling
    get = frame.header.get if source is None else source.get
    table = source is None and bool(frame.header.get("ModalityLUTSequence"))
    return Rescale(get("RescaleSlope"), get("RescaleIntercept"), table)


def refuse_rescales(frames: Sequence[Frame]) -> None:
    """Raises SampleError `bad_rescale` where slices of one volume would be on different scales."""
    found = [rescale(frame) for frame in frames]
    without = sum(not each.stated for each in found)
    values = {each.effective for each in found}
    mirrored = (
        frames[0].header.photometric == "MONOCHROME1"
    )  # which depends on whether there is a rescale, and its unit
    if 0 < without < len(found) and (mirrored or len(values) > 1):
        raise SampleError("bad_rescale", f"{without} of {len(found)} slices without the rescale that the others have")
    if len({each.table for each in found}) > 1:
        raise SampleError("bad_rescale", "some slices have a modality LUT, others a slope and an intercept")
    if len(values) > 1 and frames[0].header.get("Modality") not in SCALED_BY_SLICE:
        wide = [
            name
            for name, place in (("RescaleSlope", 0), ("RescaleIntercept", 1))
            if len({v[place] for v in values}) > 1
        ]
        raise SampleError("bad_rescale", f"{len(found)} slices with more than one {' and '.join(wide)}")
    for keyword, macro in (("RescaleType", "PixelValueTransformationSequence"), ("Units", "")):
        units = {frame.get(keyword, *filter(None, [macro])) for frame in frames} - (set() if mirrored else {None})
        if len(units) > 1:
            raise SampleError("bad_rescale", f"{len(found)} slices with more than one {keyword}")
    mapped = {_real_world_map(frame) for frame, each in zip(frames, found, strict=True) if not each.stated}
    if len(mapped) > 1:
        raise SampleError(
            "bad_rescale", f"{len(found)} slices without a rescale, whose real world values map differently"
        )


def _real_world_map(frame: Frame) -> tuple[float, float] | None:
    """(slope, intercept) of the first mapping to real world values of an enhanced frame (PS3.3 C.7.6.16.2.11)."""
    group = frame.group("RealWorldValueMappingSequence")
    if group is None:
        return None
    return group.get("RealWorldValueSlope"), group.get("RealWorldValueIntercept")
