"""Values of each frame of a DICOM file: from its functional groups first, then from the file itself (PS3.3 C.7.6.16).

A classic file has one frame, and states everything at its top level. An enhanced file has groups that all frames share
and groups of each single frame; what neither states is looked up at the top level.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_has_tag, dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.elements import PRIVATE, UNDEFINED, Item, Stated, sequence, texts
from medray.modalities.imaging.formats.dicom.header import IMPLICIT, Header, reading

_SHARED, _PER_FRAME = 0x52009229, 0x52009230
GROUPS = {_SHARED, _PER_FRAME}
"""Sequences of functional groups."""
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
_NUMBERS = frozenset(("DS", "IS"))
_FRAME_TYPES = (
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "USImageDescriptionSequence",
)


@lru_cache(maxsize=1024)
def described(keyword: str) -> tuple[int, str, bool]:
    """(tag, VR, whether it holds one value) of a keyword of the DICOM dictionary. Raises KeyError."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return int(tag), dictionary_VR(tag).split(" or ")[0], dictionary_VM(tag) == "1"


def decoded(value: bytes, vr: str, one: bool, little: bool, character_set: bytes = b"") -> Stated:
    """Bytes of an element by its VR: text, a number or a list of them; None for an empty one. Raises ValueError."""
    if not value:
        return None
    if vr in _BINARY:
        size = struct.calcsize("=" + _BINARY[vr])
        count = 1 if one else len(value) // size
        if len(value) < size:
            raise ValueError(f"{vr} of {len(value)} bytes")
        numbers = struct.unpack(f"{'<' if little else '>'}{count}{_BINARY[vr]}", value[: count * size])
        if not all(map(math.isfinite, numbers)):
            raise ValueError("not a finite number")
        return numbers[0] if one else list(numbers)
    parts = [part.strip(" \0") for part in _text(value, character_set).split("\\")]
    if not any(parts):
        return None
    if vr in _NUMBERS:
        numbers = [_number(part) for part in parts if part]
        return numbers[0] if one else numbers
    return parts[0] if one and len(parts) == 1 else parts


SHORT = 64
"""Bytes of a value that is kept in case the next slice states the same: most of a series' do."""
_decoded_before = lru_cache(maxsize=4096)(decoded)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _text(value: bytes, character_set: bytes) -> str:
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        names = [name.strip(b" \0").decode("ascii", "replace") for name in character_set.split(b"\\")]
        with reading("text"):
            return decode_bytes(value, convert_encodings(names or ["ISO_IR 6"]), {0x5C})


def stated(source: Header | Item, keyword: str, header: Header) -> Stated:
    """The value of a keyword at the top level of a file, or in an item of a sequence. Raises SampleError `corrupt`."""
    tag, vr, one = described(keyword)
    values = source.values if isinstance(source, Header) else source
    value = values.get(tag)
    if value is None or isinstance(value, list):
        return None
    read = _decoded_before if len(value) <= SHORT else decoded
    try:
        return read(value, vr, one, header.little, header.values.get(0x00080005, b""))
    except ValueError:
        raise SampleError("corrupt", f"{keyword} is not a value of VR {vr}") from None


def items(header: Header, keyword: str) -> list[Item]:
    """The items of a top-level sequence that the walk keeps. Raises SampleError `corrupt`."""
    if keyword not in header.parsed:
        header.parsed[keyword] = _parsed_items(header, keyword)
    return header.parsed[keyword]


def _parsed_items(header: Header, keyword: str) -> list[Item]:
    tag = described(keyword)[0]
    if tag not in header.values:
        return []
    if header.walked:
        value, implicit, little = header.values[tag], header.syntax == IMPLICIT, header.little
    else:
        with reading(keyword):
            value, implicit, little = _written(header.dataset, tag, header.little), True, header.little
    try:
        return sequence(value, implicit, little)
    except ValueError:
        raise SampleError("corrupt", f"{keyword} is not made of items") from None


DEEPEST = 16
"""Sequences within each other that are read: functional groups nest three or four."""


def _written(dataset: Dataset, tag: int, little: bool) -> bytes:
    """The bytes of a sequence's items, written with implicit VR. Raises SampleError `corrupt` where sequences lie within each
    other as in no real file: each level doubles the text of an error that pydicom raises at the innermost one.
    """
    level = [dataset[tag]]
    for _ in range(DEEPEST):
        level = [inner for outer in level for item in outer.value for inner in _sequences(item)]
    if level:
        raise SampleError("corrupt", f"sequences are nested more than {DEEPEST} deep")
    alone = Dataset()
    alone[tag] = dataset[tag]
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = True, little
    write_dataset(stream, alone)
    raw = stream.getvalue()
    start, length = 8, int.from_bytes(raw[4:8], "little" if little else "big")
    return raw[start:] if length == UNDEFINED else raw[start : start + length]


def _sequences(item: Dataset) -> list[DataElement]:
    """The sequences of an item; no other element is read, so that each is written as it stands in the file."""
    found: list[DataElement] = []
    for tag in list(item.keys()):
        vr = item.get_item(tag).VR or (dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")
        if vr == "SQ":
            found.append(item[tag])
    return found


def private(header: Header, name: str, creator: str) -> bytes | None:
    """The bytes of a vendor's own element, where that vendor reserved its block (PS3.5 7.8.1)."""
    block, tag = PRIVATE[name]
    reserved = header.values.get(block, b"").decode("ascii", "replace")
    return header.values.get(tag) or None if reserved.startswith(creator) else None


@dataclass(frozen=True, slots=True)
class Group:
    """One functional group (or the top level) of a frame, as `real_world` and `plane_spacing` read it."""

    header: Header
    source: Header | Item

    def get(self, keyword: str) -> Stated:
        """A value; a list where the keyword may have several, None where it is not stated. Raises SampleError."""
        return stated(self.source, keyword, self.header)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a file."""

    header: Header
    own: Item
    """Its own functional groups."""
    shared: Item

    def group(self, macro: str) -> Group | None:
        """A functional group, the frame's own before the shared one; None where there is none."""
        if not self.own and not self.shared:
            return None
        tag = described(macro)[0]
        group_items = self.own.get(tag) or self.shared.get(tag)
        return Group(self.header, group_items[0]) if isinstance(group_items, list) and group_items else None

    def get(self, keyword: str, *macros: str) -> Stated:
        """The value from the first of these groups that states it, else from the file."""
        for macro in macros if self.own or self.shared else ():
            group = self.group(macro)
            value = None if group is None else group.get(keyword)
            if value is not None:
                return value
        return stated(self.header, keyword, self.header)

    def nested(self, keyword: str, macro: str, within: str) -> Stated:
        """A value of the first item of a sequence within a functional group."""
        group = self.group(macro)
        inner = group.source.get(described(within)[0]) if group and isinstance(group.source, dict) else None
        return stated(inner[0], keyword, self.header) if isinstance(inner, list) and inner else None

    @property
    def scaling(self) -> Group | None:
        """The group with this frame's rescale, where the file itself does not hold it (PS3.3 C.7.6.16.2.9)."""
        return self.group("PixelValueTransformationSequence")


def has_groups(header: Header) -> bool:
    return _PER_FRAME in header.values or _SHARED in header.values


def frames(header: Header) -> list[Frame]:
    """The frames of a file, in its order. Raises SampleError `corrupt` where their number is not the stated one."""
    shared = items(header, "SharedFunctionalGroupsSequence")
    own = items(header, "PerFrameFunctionalGroupsSequence")
    if own and len(own) != header.frames:
        raise SampleError("corrupt", f"{header.frames} frames, but {len(own)} frame descriptions")
    if header.frames > len(header.raw):
        raise SampleError("corrupt", f"{header.frames} frames in {len(header.raw)} bytes")
    common = shared[0] if shared else {}
    return [Frame(header, each, common) for each in own] or [Frame(header, {}, common)] * header.frames


def frame_types(header: Header, among: Iterable[Frame] | None = None) -> Iterable[list[str]]:
    """The distinct frame types of an enhanced file, or of these frames of it, four or five texts each; none for a classic
    one."""
    if not has_groups(header):
        return []
    types = (frame_type(frame) for frame in (frames(header) if among is None else among))
    return [list(each) for each in dict.fromkeys(tuple(each) for each in types if each)]


def frame_type(frame: Frame) -> list[str] | None:
    """A frame's own image type (PS3.3 C.8.16.1); None where it has none."""
    for macro in _FRAME_TYPES:
        group = frame.group(macro)
        value = group.get("FrameType") if group else None
        if value:
            return texts(value)
    return None
