"""Mixtures: attributes in which the slices of one volume have to agree. An equal SeriesInstanceUID is not enough."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.elements import Value, numbers, one_number, texts
from medray.modalities.imaging.formats.dicom.frames import Frame, frame_type, private
from medray.modalities.imaging.formats.dicom.header import Header

SCALED_BY_SLICE = frozenset(("PT", "NM", "MR"))
"""Modalities whose slices may each have a slope of their own (PS3.3 C.8.9.4 for PET; Philips MR)."""


class Attribute(NamedTuple):
    name: str
    """The name that messages show."""
    of: Callable[[Frame], Hashable]
    """The value of a frame, hashable; None where it is not stated, which is a value of its own."""

    def value(self, frame: Frame) -> Hashable:
        try:
            return self.of(frame)
        except SampleError:  # not a reason to refuse by itself: no pixel depends on it
            return "malformed"


def _hashable(value: Value) -> Hashable:
    return tuple(value) if isinstance(value, list) else value


def _plain(keyword: str, *macros: str) -> Attribute:
    def value(frame: Frame) -> Hashable:
        return _hashable(frame.get(keyword, *macros))

    return Attribute(keyword, value)


def _image_type(frame: Frame) -> Hashable:
    """All values of the image type (the frame's own, if it has one); for CT the first three: later ones may differ between
    slices that were acquired together (GE marks added slices)."""
    types = frame_type(frame) or texts(frame.header.get("ImageType")) or []
    modality = frame.header.get("Modality")
    return tuple(text.strip().upper() for text in (types[:3] if modality == "CT" else types)) or None


def _image_type_end(frame: Frame) -> Hashable:
    """The values of the image type after the third."""
    types = frame_type(frame) or texts(frame.header.get("ImageType")) or []
    return tuple(text.strip().upper() for text in types[3:]) or None


def _acquisition(frame: Frame) -> Hashable:
    return one_number(frame.get("FrameAcquisitionNumber", "FrameContentSequence") or frame.get("AcquisitionNumber"))


def _echo_time(frame: Frame) -> Hashable:
    """Milliseconds to three digits, so that an echo stays one where scanners round differently."""
    milliseconds = one_number(frame.get("EffectiveEchoTime", "MREchoSequence"))
    milliseconds = one_number(frame.get("EchoTime")) if milliseconds is None else milliseconds
    return None if milliseconds is None else float(f"{milliseconds:.3g}")


def _b_value(frame: Frame) -> Hashable:
    b_value = one_number(frame.get("DiffusionBValue", "MRDiffusionSequence"))
    if b_value is not None:
        return float(b_value)
    for name, creator in (
        ("SiemensBValue", "SIEMENS MR HEADER"),
        ("PhilipsBValue", "Philips Imaging"),
        ("GEBValue", "GEMS_PARM_01"),
    ):
        value = private(frame.header, name, creator)
        if value is not None:
            return value.split(b"\\")[0].strip(b" \0")
    return None


def _gradient(frame: Frame) -> Hashable:
    direction = frame.nested(
        "DiffusionGradientOrientation", "MRDiffusionSequence", "DiffusionGradientDirectionSequence"
    )
    direction = numbers(frame.get("DiffusionGradientOrientation") if direction is None else direction)
    return None if direction is None else tuple(round(number, 4) for number in direction)


def _file(name: str, value: Callable[[Header], Value]) -> Attribute:
    def of_frame(frame: Frame) -> Hashable:
        return _hashable(value(frame.header))

    return Attribute(name, of_frame)


COMMON_SPACE = (
    _plain("StudyInstanceUID"),
    _plain("FrameOfReferenceUID"),
)
"""Positions can be compared only where these are equal (PS3.3 C.7.4.1.1.1)."""

UNIFORM = (
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
"""Attributes with one value in all slices of a volume."""

BLOCKWISE = (
    Attribute("AcquisitionNumber", _acquisition),
    Attribute("ImageType", _image_type_end),
    _plain("KVP", "CTXRayDetailsSequence"),
    _plain("ConvolutionKernel", "CTReconstructionSequence"),
    _plain("FlipAngle", "MRTimingAndRelatedParametersSequence"),
    _plain("InversionTime"),
    _plain("SequenceName"),
    _plain("ContrastBolusAgent"),
)
"""Attributes that may change along a volume, from one block of slices to the next (a head CT is acquired in steps, its
base in thicker slices with a harder kernel), but not back again: that would be two scans, interleaved."""


def differing(frames: Sequence[Frame], attributes: Iterable[Attribute]) -> list[str]:
    """Names of the attributes that have more than one value, in order."""
    return list(dict.fromkeys(each.name for each in attributes if len({each.value(frame) for frame in frames}) > 1))


def interleaved(frames: Sequence[Frame], attributes: Iterable[Attribute]) -> list[str]:
    """Names of the attributes that return to an earlier value along `frames`, which are in spatial order."""
    names: list[str] = []
    for each in attributes:
        values = [value for value in map(each.value, frames) if value is not None]
        if sum(1 for _ in groupby(values)) > len(set(values)):
            names.append(each.name)
    return list(dict.fromkeys(names))


def refuse_places(frames: Sequence[Frame]) -> None:
    """Raises SampleError `bad_geometry` for slices whose positions cannot be compared."""
    names = differing(frames, COMMON_SPACE)
    if names:
        raise SampleError("bad_geometry", f"{len(frames)} slices that differ in {', '.join(names)}: not one volume")


def refuse_mixture(frames: Sequence[Frame], order: np.ndarray) -> None:
    """Raises SampleError `bad_geometry` for slices of several volumes; `order` is the spatial one."""
    names = differing(frames, UNIFORM)
    if names:
        raise SampleError("bad_geometry", f"{len(frames)} slices that differ in {', '.join(names)}: not one volume")
    names = interleaved([frames[int(k)] for k in order], BLOCKWISE)
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
