"""The few top-level DICOM elements that images need, read in one quick walk over a file's bytes (PS3.5 7.1).

pydicom parses everything, which takes longer than reading the pixels; this walk hops from length to length and keeps
a few tags. Files that are not plain and well formed are left to pydicom: the walk then returns None.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

from pydicom.datadict import tag_for_keyword

from medray.storage.pages import Content

TAGS = {
    "SOPClassUID": (0x00080016, "text"),
    "SOPInstanceUID": (0x00080018, "text"),
    "ImageType": (0x00080008, "texts"),
    "Modality": (0x00080060, "text"),
    "PatientID": (0x00100020, "text"),
    "SliceThickness": (0x00180050, "decimal"),
    "ImagerPixelSpacing": (0x00181164, "decimals"),
    "NominalScannedPixelSpacing": (0x00182010, "decimals"),
    "SeriesInstanceUID": (0x0020000E, "text"),
    "ImagePositionPatient": (0x00200032, "decimals"),
    "ImageOrientationPatient": (0x00200037, "decimals"),
    "SamplesPerPixel": (0x00280002, "short"),
    "PhotometricInterpretation": (0x00280004, "text"),
    "PlanarConfiguration": (0x00280006, "short"),
    "NumberOfFrames": (0x00280008, "decimal"),
    "Rows": (0x00280010, "short"),
    "Columns": (0x00280011, "short"),
    "PixelSpacing": (0x00280030, "decimals"),
    "BitsAllocated": (0x00280100, "short"),
    "BitsStored": (0x00280101, "short"),
    "HighBit": (0x00280102, "short"),
    "PixelRepresentation": (0x00280103, "short"),
    "PixelPaddingValue": (0x00280120, "short"),
    "PixelPaddingRangeLimit": (0x00280121, "short"),
    "RescaleIntercept": (0x00281052, "decimal"),
    "RescaleSlope": (0x00281053, "decimal"),
    "RescaleType": (0x00281054, "text"),
    "ModalityLUTSequence": (0x00283000, "sequence"),
    "SharedFunctionalGroupsSequence": (0x52009229, "sequence"),
    "PerFrameFunctionalGroupsSequence": (0x52009230, "sequence"),
    "ExtendedOffsetTable": (0x7FE00001, "bytes"),
}
"""keyword: (tag, how its value is written). "short" is 2 bytes, unsigned; PixelPaddingValue takes the pixels' sign."""

PIXEL_TAGS = {0x7FE00008: "f4", 0x7FE00009: "f8", 0x7FE00010: ""}
"""Float, Double Float and (integer) Pixel Data."""
PRIVATE = {
    "NumberOfImagesInMosaic": (0x00190010, 0x0019100A),
    "SiemensBValue": (0x00190010, 0x0019100C),
    "SiemensGradient": (0x00190010, 0x0019100E),
    "CSAImageHeader": (0x00290010, 0x00291010),
    "PhilipsBValue": (0x20010010, 0x20011003),
    "GEBValue": (0x00430010, 0x00431039),
    "GEImageKind": (0x00430010, 0x0043102F),
    "GEScanDateTime": (0x00090010, 0x0009100D),
    "PhilipsSUVFactor": (0x70530010, 0x70531000),
    "PhilipsActivityFactor": (0x70530010, 0x70531009),
    "UIHImagesInGrid": (0x00650010, 0x00651050),
    "UIHFrames": (0x00650010, 0x00651051),
}
"""Vendors' own elements that describe a slice: (who reserved the block, the element), PS3.5 7.8.1."""
MORE = [
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "SeriesNumber",
    "AcquisitionNumber",
    "ComplexImageComponent",
    "EchoNumbers",
    "EchoTime",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "StackID",
    "NominalPercentageOfCardiacPhase",
    "NominalCardiacTriggerDelayTime",
    "CorrectedImage",
    "KVP",
    "ConvolutionKernel",
    "FlipAngle",
    "InversionTime",
    "SequenceName",
    "ContrastBolusAgent",
    "RescaleType",
    "Units",
    "SpacingBetweenSlices",
    "SpecificCharacterSet",
    "BodyPartExamined",
    "AnatomicRegionSequence",
    "TriggerTime",
    "FrameReferenceTime",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "ContentTime",
    "InstanceNumber",
    "DimensionIndexSequence",
    "Manufacturer",
    "ManufacturerModelName",
    "SeriesDate",
    "SeriesTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "TimezoneOffsetFromUTC",
    "PatientWeight",
    "PatientSize",
    "PatientSex",
    "DecayCorrected",
    "AttenuationCorrected",
    "DecayCorrectionDateTime",
    "ActualFrameDuration",
    "DecayCorrection",
    "SUVType",
    "RadiopharmaceuticalInformationSequence",
    "RealWorldValueMappingSequence",
    "ConcatenationUID",
    "InConcatenationNumber",
    "InConcatenationTotalNumber",
    "ConcatenationFrameOffsetNumber",
    "FrameIncrementPointer",
    "DoseUnits",
    "DoseType",
    "DoseSummationType",
    "DoseGridScaling",
    "GridFrameOffsetVector",
]
"""Keywords of elements that are read by their VR (`frames.stated`): they tell volumes apart, are facts of an entry, or say what
values measure."""
WANTED = frozenset(
    {tag for tag, _ in TAGS.values()}
    | {int(tag_for_keyword(keyword) or 0) for keyword in MORE}
    | {tag for pair in PRIVATE.values() for tag in pair}
)
UNDEFINED = 0xFFFFFFFF
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_ITEM_BYTES = {True: b"\xfe\xff\x00\xe0", False: b"\xff\xfe\xe0\x00"}
_ENCODINGS = {  # transfer syntax: (implicit, little)
    "1.2.840.10008.1.2": (True, True),
    "1.2.840.10008.1.2.2": (False, False),
}
_DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95")


Item: TypeAlias = "dict[int, bytes | list[Item]]"
"""An item of a sequence: tag to bytes, or to the items of a sequence within it."""
Stated: TypeAlias = "str | float | list[str] | list[float] | None"
"""The value of a keyword: one, or a list where the dictionary allows several; None where it is not stated."""
Value: TypeAlias = "Stated | bytes"
"""The same, or the bytes of an element that is neither text nor a number."""


def one_number(value: Value) -> float | None:
    """The value of a keyword that has one number. Raises TypeError for any other value."""
    if value is None or isinstance(value, (int, float)):
        return value
    raise TypeError("expected one number")


def numbers(value: Value) -> list[float] | None:
    """The value of a keyword that has several numbers. Raises TypeError for any other value."""
    if value is None:
        return None
    if isinstance(value, list):
        return [_as_number(each) for each in value]
    raise TypeError("expected several numbers")


def one_text(value: Value) -> str | None:
    """The value of a keyword that has one text. Raises TypeError for any other value."""
    if value is None or isinstance(value, str):
        return value
    raise TypeError("expected one text")


def texts(value: Value) -> list[str] | None:
    """The value of a keyword that has several texts. Raises TypeError for any other value."""
    if value is None:
        return None
    return [str(each) for each in value] if isinstance(value, list) else [one_text(value) or ""]


def _as_number(value: str | float) -> float:
    if isinstance(value, str):
        raise TypeError("expected a number")
    return value


class Elements(NamedTuple):
    values: dict[int, bytes]
    """WANTED tags to their raw bytes; of a sequence the bytes of its items."""
    syntax: str
    media_class: str
    """MediaStorageSOPClassUID"""
    implicit: bool
    little: bool
    at: int
    """Where the pixel element starts; the end of the file when there is none."""


def walk(raw: Content, also: frozenset[int] = frozenset()) -> Elements | None:
    """The elements of WANTED and `also` before the pixels of a file with preamble; None where only pydicom can tell."""
    if raw[128:132] != b"DICM":
        return None
    try:
        meta: dict[int, bytes] = {}
        at = _walk(raw, 132, False, True, meta, frozenset((0x00020002, 0x00020010)), last=0x0002FFFF)
        syntax = meta.get(0x00020010, b"").rstrip(b"\0 ").decode("ascii")
        if not syntax or syntax in _DEFLATED:
            return None
        implicit, little = _ENCODINGS.get(syntax, (False, True))
        values: dict[int, bytes] = {}
        at = _walk(raw, at, implicit, little, values, WANTED | also if also else WANTED, last=0x7FE00007)
    except (_Odd, struct.error, UnicodeDecodeError, RecursionError):
        return None
    media_class = meta.get(0x00020002, b"").rstrip(b"\0 ").decode("ascii", "replace")
    return Elements(values, syntax, media_class, implicit, little, at)


class _Odd(Exception):
    """Raised where the quick walk meets something that it does not handle."""


def _walk(
    raw: Content, at: int, implicit: bool, little: bool, into: dict[int, bytes], wanted: frozenset[int], last: int
) -> int:
    """Elements from `at` up to tag `last`; returns where the next one starts."""
    end = len(raw)
    order = "<" if little else ">"
    # group, element, then VR and a short length; a long length stands where those are, or behind them
    head_of, long_of = struct.Struct(order + "HH2sH").unpack_from, struct.Struct(order + "I").unpack_from
    while at + 8 <= end:
        group, element, vr, length = head_of(raw, at)
        tag = group << 16 | element
        if tag > last:
            return at
        if implicit or group == 0xFFFE:
            vr = b""
            length = long_of(raw, at + 4)[0]
            start = at + 8
        elif vr in _SHORT:
            start = at + 8
        elif vr in _LONG:
            length = long_of(raw, at + 8)[0]
            start = at + 12
        else:
            raise _Odd
        if length == UNDEFINED:
            at = _skip_sequence(raw, start, implicit or vr == b"UN", little)
            if tag in wanted:
                if vr == b"UN":  # its items are implicit, whatever the rest is (PS3.5 6.2.2)
                    raise _Odd
                into[tag] = raw[start : at - 8]
            continue
        at = start + length
        if at > end:
            raise _Odd
        if tag in wanted:
            into[tag] = raw[start:at]
    if at < end:  # no more than a tag
        group, element = struct.unpack_from(order + "HH", raw, at)
        if group << 16 | element <= last:
            raise _Odd
    return at


def _skip_sequence(raw: Content, at: int, implicit: bool, little: bool) -> int:
    """Skip from the first item of a sequence of undefined length to behind its delimiter (PS3.5 7.5)."""
    head = struct.Struct("<HHI" if little else ">HHI")
    while True:
        group, element, length = head.unpack_from(raw, at)
        tag = group << 16 | element
        at += 8
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise _Odd
        if length != UNDEFINED:
            at += length
        else:
            at = _walk(raw, at, implicit, little, {}, frozenset(), last=_ITEM_END - 1)
            if head.unpack_from(raw, at)[:2] != (_ITEM_END >> 16, _ITEM_END & 0xFFFF):
                raise _Odd
            at += 8


def sequence(raw: Content, implicit: bool, little: bool) -> list[Item]:
    """The items of a sequence's bytes, each tag to its bytes, or to the items of a sequence within; without
    vendors' elements. Raises ValueError.
    """
    try:
        return _items(raw, 0, len(raw), implicit, little)[0]
    except (_Odd, struct.error, RecursionError):
        raise ValueError("a sequence that is not made of items") from None


def _items(raw: Content, at: int, end: int, implicit: bool, little: bool) -> tuple[list[Item], int]:
    """The items from `at` to `end` or the sequence's delimiter, and where they stop (PS3.5 7.5)."""
    head = struct.Struct("<HHI" if little else ">HHI")
    items: list[Item] = []
    while at < end:
        group, element, length = head.unpack_from(raw, at)
        tag = group << 16 | element
        at += 8
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM:
            raise _Odd
        item, at = _item(raw, at, end if length == UNDEFINED else at + length, implicit, little)
        items.append(item)
    return items, at


def _item(raw: Content, at: int, end: int, implicit: bool, little: bool) -> tuple[Item, int]:
    order = "<" if little else ">"
    head, long_of, short_of = struct.Struct(order + "HHI"), struct.Struct(order + "I"), struct.Struct(order + "H")
    if end > len(raw):
        raise _Odd
    item: Item = {}
    while at < end:
        group, element, length = head.unpack_from(raw, at)
        tag = group << 16 | element
        if tag == _ITEM_END:
            return item, at + 8
        vr = b"" if implicit else raw[at + 4 : at + 6]
        if implicit:
            start = at + 8
        elif vr in _SHORT:
            length, start = short_of.unpack_from(raw, at + 6)[0], at + 8
        elif vr in _LONG:
            length, start = long_of.unpack_from(raw, at + 8)[0], at + 12
        else:
            raise _Odd
        if group % 2:  # vendors' own elements: none of these is needed
            at = _skip_sequence(raw, start, implicit or vr == b"UN", little) if length == UNDEFINED else start + length
            continue
        nested = vr == b"SQ" or (implicit and length and raw[start : start + 4] == _ITEM_BYTES[little])
        if length == UNDEFINED:
            item[tag], at = _items(raw, start, end, implicit or vr == b"UN", little)
            continue
        at = start + length
        if at > end:
            raise _Odd
        item[tag] = _items(raw, start, at, implicit, little)[0] if nested else raw[start:at]
    return item, at
