"""Identity of a slice: what its header says of the volume that it belongs to, by short keys, ready for JSON.

A value that the header does not state is left out, and differs from any that is stated. Identifiers and free text are
kept as short digests: two values can be told apart by them, and nobody can be found.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import NamedTuple, TypeAlias

import xxhash

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.dose import is_dose
from medray.modalities.imaging.formats.dicom.elements import Stated, Value, numbers, one_number, texts
from medray.modalities.imaging.formats.dicom.frames import (
    Frame,
    described,
    frame_type,
    has_groups,
    items,
    private,
    stated,
)
from medray.modalities.imaging.formats.dicom.header import Header

Text: TypeAlias = "str | float | int"
Values: TypeAlias = "Mapping[str, Text]"
"""What a slice states, by the keys of attributes."""
GE_ADDS = 1e9
"""What GE adds to b-values of some sequences in its own element."""
CODE_STRING = re.compile(r"[A-Z0-9_ ]{0,16}")
"""PS3.5 6.2"""
CODE = re.compile(r"[A-Za-z0-9._+\\ -]{0,48}")


class Attribute(NamedTuple):
    key: str
    """The name in facts and entry ids."""
    name: str
    """The name that messages show."""
    of: Callable[[Frame], Text | None]
    """The value of a frame; None where it is not stated."""
    of_file: bool = False
    """Every frame of a file has the same."""
    tag: int | None = None
    """The element that a file without functional groups has to hold; None: any of several."""


def digest(text: str) -> str:
    """Eight hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(text.encode())[:8]


def _value(value: Value) -> Text | None:
    """A plain value; several of them as one text, as DICOM writes them."""
    if isinstance(value, bytes):
        return value.strip(b" \0").decode("ascii", "replace")
    if not isinstance(value, list):
        return value
    return (
        value[0] if len(value) == 1 else "\\".join(each if isinstance(each, str) else f"{each:.10g}" for each in value)
    )


def _code(value: Value) -> Text | None:
    """A code as it is; a text that is none as its digest."""
    plain = _value(value)
    return plain if not isinstance(plain, str) or CODE.fullmatch(plain) else digest(plain)


def _hidden(value: Value) -> Text | None:
    plain = _value(value)
    return None if plain is None else digest(str(plain))


def _plain(key: str, keyword: str, *macros: str, show: Callable[[Value], Text | None] = _code) -> Attribute:
    def of_frame(frame: Frame) -> Text | None:
        return show(frame.get(keyword, *macros))

    return Attribute(key, keyword, of_frame, tag=described(keyword)[0])


def _file(key: str, name: str, value: Callable[[Header], Value], hide: bool = False) -> Attribute:
    show = _hidden if hide else _code

    def of_frame(frame: Frame) -> Text | None:
        return show(value(frame.header))

    return Attribute(key, name, of_frame, of_file=True)


def _stated(key: str, keyword: str, *, hide: bool = False) -> Attribute:
    """An element of the file alone."""
    return _file(key, keyword, lambda header: stated(header, keyword, header), hide)


def _types(frame: Frame) -> list[str]:
    return [text.strip().upper() for text in frame_type(frame) or texts(frame.header.get("ImageType")) or []]


def _image_type(frame: Frame) -> Text | None:
    """All values of the image type (the frame's own, if it has one); for CT the first three: later ones may differ between
    slices that were acquired together (GE marks added slices)."""
    types = _types(frame)
    deciding = types[:3] if frame.header.get("Modality") == "CT" else types
    if deciding and all(map(CODE_STRING.fullmatch, deciding)):
        return "\\".join(deciding)  # also where that is long: whether an image is an original is looked for in it
    return _code(deciding) if deciding else None


def _image_type_end(frame: Frame) -> Text | None:
    """The values of the image type after the third."""
    return _code(_types(frame)[3:] or None)


def _acquisition(frame: Frame) -> Text | None:
    own = frame.get("FrameAcquisitionNumber", "FrameContentSequence")
    return one_number(frame.get("AcquisitionNumber") if own is None else own)


def _echo_time(frame: Frame) -> Text | None:
    """Milliseconds to three digits, so that an echo stays one where scanners round differently."""
    milliseconds = one_number(frame.get("EffectiveEchoTime", "MREchoSequence"))
    milliseconds = one_number(frame.get("EchoTime")) if milliseconds is None else milliseconds
    return None if milliseconds is None else float(f"{milliseconds:.3g}")


def _b_value(frame: Frame) -> Text | None:
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
            return _private_b_value(value, frame.header.little)
    return None


def _private_b_value(value: bytes, little: bool) -> Text:
    """s/mm² of a vendor's own element: text of a whole number (Siemens; GE, with 10⁹ added to it and other numbers behind it),
    or a float of four bytes (Philips); of anything else its bytes."""
    text = value.split(b"\\")[0].strip(b" \0")
    if text.isdigit():
        return float(text) % GE_ADDS
    number = struct.unpack("<f" if little else ">f", value)[0] if len(value) == 4 else math.nan
    return float(f"{number:.6g}") if 0 <= number < GE_ADDS else value.hex()


def _gradient(frame: Frame) -> Text | None:
    direction = frame.nested(
        "DiffusionGradientOrientation", "MRDiffusionSequence", "DiffusionGradientDirectionSequence"
    )
    direction = numbers(frame.get("DiffusionGradientOrientation") if direction is None else direction)
    if direction is None:
        own = private(frame.header, "SiemensGradient", "SIEMENS MR HEADER")
        direction = struct.unpack(f"{'<' if frame.header.little else '>'}3d", own) if own and len(own) == 24 else None
    return None if direction is None else "\\".join(f"{round(number, 4) + 0.0:.4f}" for number in direction)


def _dimensions(frame: Frame) -> Text | None:
    """The dimension indices of an enhanced frame (PS3.3 C.7.6.17), but those of its place within a stack."""
    group = frame.group("FrameContentSequence")
    indices = group.get("DimensionIndexValues") if group else None
    if indices is None:
        return None
    pointers, values = (
        _pointers(frame.header),
        numbers(indices if isinstance(indices, list) else [float(indices)]) or [],
    )
    if len(pointers) != len(values):
        return None
    return "\\".join(f"{value:g}" for value, place in zip(values, pointers, strict=True) if not place) or None


_PLACES = frozenset(
    described(keyword)[0]
    for keyword in ("InStackPositionNumber", "StackID", "ImagePositionPatient", "SliceLocation", "ImagePositionVolume")
)


def _pointers(header: Header) -> list[bool]:
    """Whether each dimension of a file is one of place."""
    tag = described("DimensionIndexPointer")[0]
    order = "little" if header.little else "big"
    pointers: list[bool] = []
    for each in items(header, "DimensionIndexSequence"):
        value = each.get(tag)
        if not isinstance(value, bytes) or len(value) < 4:
            return []
        pointers.append(int.from_bytes(value[:2], order) << 16 | int.from_bytes(value[2:4], order) in _PLACES)
    return pointers


def _seconds(value: Stated) -> float | None:
    """A time (TM), or the time of a date and time (DT), as seconds of the day; None where it is malformed (PS3.5 6.2)."""
    text = str(value or "").strip()
    clock = text[8:].partition("+")[0].partition("-")[0] if len(text.partition(".")[0]) > 8 else text
    match = re.fullmatch(r"(\d\d)(\d\d)(\d\d(?:\.\d{1,6})?)?", clock)
    return None if match is None else int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3] or 0)


def _time(*keywords: str) -> Callable[[Frame], Text | None]:
    def of(frame: Frame) -> Text | None:
        for keyword in keywords:
            seconds = _seconds(frame.get(keyword, "FrameContentSequence"))
            if seconds is not None:
                return seconds
        return None

    return of


def _dose_grid(header: Header) -> Value:
    """Which object a plane is of: a grid of planes is one dose, and another grid at its place another one."""
    return header.get("SOPInstanceUID") if is_dose(header) and header.frames > 1 else None


COMMON_SPACE = (
    _stated("study", "StudyInstanceUID", hide=True),
    _stated("frame-of-reference", "FrameOfReferenceUID", hide=True),
)
"""Positions can be compared only where these are equal (PS3.3 C.7.4.1.1.1)."""

UNIFORM = (
    _file("sop-class", "SOPClassUID", lambda header: header.sop_class, hide=True),
    _file("modality", "Modality", lambda header: header.get("Modality")),
    _stated("series", "SeriesNumber"),
    _plain("echo", "EchoNumbers"),
    Attribute("echo-time", "EchoTime", _echo_time),
    _plain("t", "TemporalPositionIdentifier"),
    _plain("t-index", "TemporalPositionIndex", "FrameContentSequence"),
    Attribute("b", "DiffusionBValue", _b_value),
    Attribute("gradient", "DiffusionGradientOrientation", _gradient),
    _plain("phase", "NominalPercentageOfCardiacPhase", "CardiacSynchronizationSequence"),
    _plain("delay", "NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence"),
    Attribute("type", "ImageType", _image_type),
    _plain("component", "ComplexImageComponent", "MRImageFrameTypeSequence"),
    _file(
        "kind", "the kind of image that GE states", lambda header: private(header, "GEImageKind", "GEMS_PARM_01"), True
    ),
    _plain("stack", "StackID", "FrameContentSequence"),
    _file("photometric", "PhotometricInterpretation", lambda header: header.photometric),
    _plain("corrected", "CorrectedImage"),
    _stated("dose-type", "DoseType"),
    _stated("dose-units", "DoseUnits"),
    _stated("summation", "DoseSummationType"),
    _file("dose", "the dose that they are of", lambda header: _dose_grid(header), hide=True),
)
"""Attributes with one value in all slices of a volume."""

BLOCKWISE = (
    Attribute("acquisition", "AcquisitionNumber", _acquisition),
    Attribute("type-end", "ImageType", _image_type_end),
    _plain("kvp", "KVP", "CTXRayDetailsSequence"),
    _plain("kernel", "ConvolutionKernel", "CTReconstructionSequence"),
    _plain("flip", "FlipAngle", "MRTimingAndRelatedParametersSequence"),
    _plain("inversion", "InversionTime"),
    _plain("sequence", "SequenceName", show=_hidden),
    _plain("contrast", "ContrastBolusAgent", show=_hidden),
)
"""Attributes that may change along a volume, from one block of slices to the next (a head CT is acquired in steps, its
base in thicker slices with a harder kernel), but not back again: that would be two scans, interleaved."""

FURTHER = (
    _plain("trigger", "TriggerTime"),
    _plain("frame-time", "FrameReferenceTime"),
    Attribute("dimensions", "DimensionIndexValues", _dimensions, tag=described("DimensionIndexSequence")[0]),
)
"""Attributes that say nothing by themselves, and tell apart what lies at one place."""

TIMES = (
    _plain("trigger", "TriggerTime"),
    _plain("frame-time", "FrameReferenceTime"),
    Attribute(
        "acquired", "AcquisitionTime", _time("FrameAcquisitionDateTime", "AcquisitionDateTime", "AcquisitionTime")
    ),
    Attribute("content", "ContentTime", _time("ContentTime"), of_file=True),
    _stated("instance", "InstanceNumber"),
)
"""What may differ from slice to slice, and puts repetitions of the same places in order: each repetition has an interval
of its own. Seconds of the day, so that no date is kept."""

REPEATING = (*BLOCKWISE, *FURTHER)
"""What tells slices at one place apart, in the order in which it is tried."""
ALL: tuple[Attribute, ...] = tuple({each.key: each for each in (*COMMON_SPACE, *UNIFORM, *REPEATING, *TIMES)}.values())
NAMES = {each.key: each.name for each in ALL}
"""Key to the name that messages show."""


def identity(frame: Frame, of_file: Values) -> dict[str, Text]:
    """What a frame states; `of_file` is what its file does (`file_identity`)."""
    values, stated_tags = dict(of_file), frame.header.values
    grouped = has_groups(frame.header)
    for each in _own_attributes():
        if not grouped and each.tag is not None and each.tag not in stated_tags:
            continue
        value = _safely(each, frame)
        if value is not None:
            values[each.key] = value
    return values


def file_identity(frame: Frame) -> dict[str, Text]:
    """What every frame of a file states alike."""
    known = ((each.key, _safely(each, frame)) for each in ALL if each.of_file)
    return {key: value for key, value in known if value is not None}


@cache
def _own_attributes() -> tuple[Attribute, ...]:
    return tuple(each for each in ALL if not each.of_file)


def _safely(attribute: Attribute, frame: Frame) -> Text | None:
    try:
        value = attribute.of(frame)
    except (SampleError, TypeError):  # not a reason to refuse by itself: no pixel depends on it
        return "malformed"
    return int(value) if isinstance(value, float) and value.is_integer() else value


def names_of(keys: Iterable[str]) -> list[str]:
    """The names of attributes that messages show, each once."""
    return list(dict.fromkeys(NAMES.get(key, key) for key in keys))
