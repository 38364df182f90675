"""A DICOM file's header: the elements before the pixels, and where the pixels are."""

# pydicom gives some of its values no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import io
import math
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import pydicom
from pydicom.config import IGNORE
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.uid import UID

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.elements import (
    PIXEL_TAGS,
    TAGS,
    UNDEFINED,
    WANTED,
    Elements,
    Item,
    Value,
    one_number,
    one_text,
    walk,
)
from medray.modalities.imaging.formats.dicom.inflated import inflated
from medray.modalities.imaging.formats.dicom.transfer_syntaxes import EXPLICIT, IMPLICIT, NATIVE
from medray.modalities.imaging.formats.image import decoding
from medray.storage.pages import Content, give_back

GIVEN_BACK_BYTES = 2**22
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


def reading(what: str) -> AbstractContextManager[None]:
    """`decoding` with pydicom's own exceptions."""
    return decoding(what, BytesLengthException, InvalidDicomError)


@dataclass(slots=True)
class Header:
    """The elements before the pixels of a file, and where the pixels are in `raw`."""

    raw: Content
    values: dict[int, bytes]
    """Raw values of elements.TAGS."""
    syntax: str
    sop_class: str
    little: bool
    start: int
    """First byte of the pixel element's value; -1 without pixels."""
    length: int
    """Bytes of that value; UNDEFINED when it is encapsulated."""
    float_type: str
    """"f4" or "f8" for float pixels, else empty."""
    words: bool
    """The element's VR is OW, which big endian swaps by 2 bytes."""
    _dataset: Dataset | None = field(default=None, repr=False)
    walked: bool = True
    """`values` come from the quick walk, which keeps the bytes of a sequence's items. Else pydicom read the file."""
    parsed: dict[str, list[Item]] = field(default_factory=dict, repr=False)
    """Items of sequences that `frames.items` has parsed, by keyword."""
    decoded: dict[str, Value] = field(default_factory=dict[str, "Value"], repr=False)
    """Values that `get` has given, by keyword."""
    given_back: int = field(default=0, repr=False)
    """Byte at which the pixels begin that are still in memory; 0: all are."""

    def give_back(self, stop: int) -> None:
        """Give back the memory of the pixels up to byte `stop` of the file, which nobody reads again; some megabytes at a time."""
        start = max(self.start, self.given_back)
        if not isinstance(self.raw, bytes) and stop - start >= GIVEN_BACK_BYTES:
            give_back(self.raw, start, stop)
            self.given_back = stop

    @property
    def dataset(self) -> Dataset:
        """Everything before the pixels, parsed by pydicom when first asked for (sequences, palettes)."""
        if self._dataset is None:
            self._dataset = _parse_whole(self.raw)[0]
        return self._dataset

    def get(self, keyword: str) -> Value:
        """A value of elements.TAGS: int, float, str, bytes or a list of them; None where absent or empty; True for a
        sequence. Raises SampleError `corrupt`.
        """
        try:
            return self.decoded[keyword]
        except KeyError:
            value = self.decoded[keyword] = self._value(keyword)
            return value

    def _value(self, keyword: str) -> Value:
        tag, form = TAGS[keyword]
        value = self.values.get(tag)
        if form == "sequence":
            return None if value is None else True
        if not value or form == "bytes":
            return value or None
        try:
            if form == "short":
                if len(value) != 2:
                    raise SampleError("corrupt", f"{keyword} of {len(value)} bytes; expected 2")
                return int.from_bytes(value[:2], "little" if self.little else "big")
            text = value.decode("ascii").strip(" \0")
            if form == "text":
                return text or None
            parts = text.split("\\")
            if form == "texts":
                return parts
            numbers = [float(part) for part in parts]
            if not all(map(math.isfinite, numbers)):
                raise ValueError
            if form == "decimal" and len(numbers) > 1:
                raise SampleError("corrupt", f"{keyword} of {len(numbers)} numbers; expected one")
            return numbers if form == "decimals" else numbers[0]
        except UnicodeDecodeError:
            if keyword != "PatientID":  # the only one of TAGS that may be in another character set
                raise SampleError("corrupt", f"{keyword} is not plain text") from None
            with reading(keyword):
                return str(self.dataset.get(keyword) or "").strip() or None
        except ValueError:
            raise SampleError("corrupt", f"{keyword} is not a number") from None

    def number(self, keyword: str, default: int) -> int:
        """A whole number, `default` where it is not stated. Raises SampleError `corrupt` for a fraction."""
        stated = self.get(keyword)
        if type(stated) is int:
            return stated
        value = one_number(stated)
        if value is not None and value != int(value):
            raise SampleError("corrupt", f"{keyword} is not a whole number")
        return default if value is None else int(value)

    @property
    def encapsulated(self) -> bool:
        """Whether the pixels are a sequence of items. Some writers give it a length, though that should be undefined."""
        item = self.raw[self.start : self.start + 4] == b"\xfe\xff\x00\xe0"
        return self.length == UNDEFINED or (self.syntax not in NATIVE and item)

    @property
    def rows(self) -> int:
        return self.number("Rows", 0)

    @property
    def columns(self) -> int:
        return self.number("Columns", 0)

    @property
    def frames(self) -> int:
        return max(1, self.number("NumberOfFrames", 1))

    @property
    def samples(self) -> int:
        return self.number("SamplesPerPixel", 1)

    @property
    def signed(self) -> bool:
        return self.number("PixelRepresentation", 0) == 1

    @property
    def photometric(self) -> str:
        return one_text(self.get("PhotometricInterpretation")) or "MONOCHROME2"


def parse(raw: Content, also: frozenset[int] = frozenset()) -> Header:
    """The header of a DICOM file, with or without its preamble; pixels stay in `raw`, uncopied.

    `also`: further tags to keep the bytes of. Raises SampleError: `truncated` when not even the header is whole, `corrupt`.
    """
    elements = walk(raw, also)
    dataset: Dataset | None = None
    if elements is None:
        dataset, elements, raw = parse_by_pydicom(raw, also)
    walked = dataset is None
    sop_class = elements.values.get(0x00080016, b"").decode("ascii", "replace").strip(" \0") or elements.media_class
    order = "little" if elements.little else "big"
    head = raw[elements.at : elements.at + 12]
    tag = (int.from_bytes(head[:2], order) << 16) | int.from_bytes(head[2:4], order)
    if tag not in PIXEL_TAGS or len(head) < 12:
        return Header(
            raw, elements.values, elements.syntax, sop_class, elements.little, -1, 0, "", False, dataset, walked
        )
    start = elements.at + (8 if elements.implicit else 12)
    length = int.from_bytes(raw[start - 4 : start], order)
    words = head[4:6] == b"OW" or elements.implicit
    return Header(
        raw,
        elements.values,
        elements.syntax,
        sop_class,
        elements.little,
        start,
        length,
        PIXEL_TAGS[tag],
        words,
        dataset,
        walked,
    )


def _parse_whole(raw: Content) -> tuple[Dataset, int]:
    """(every element before the pixels, where the pixels start)"""
    with reading("DICOM header"):
        stream = io.BytesIO(raw)
        return pydicom.dcmread(stream, stop_before_pixels=True, force=raw[128:132] != b"DICM"), stream.tell()


def parse_by_pydicom(raw: Content, also: frozenset[int] = frozenset()) -> tuple[Dataset, Elements, Content]:
    """Parse what `walk` could not read (no preamble, deflated, irregular); also returns the bytes that offsets refer to."""
    raw = inflated(raw)
    dataset, at = _parse_whole(raw)
    with reading("DICOM header"):
        meta = getattr(dataset, "file_meta", None) or {}
        implicit, little = dataset.original_encoding
        syntax = str(meta.get("TransferSyntaxUID") or (IMPLICIT if implicit else EXPLICIT))
        if len(dataset) == 0:
            raise SampleError("truncated", f"the file ends after {len(raw)} bytes, before the first data element")
        values: dict[int, bytes] = {}
        for tag in (WANTED | also) & {int(each) for each in dataset.keys()}:  # noqa: SIM118  a Dataset iterates elements
            value = dataset.get_item(tag).value
            value = (
                "\\".join(value) if isinstance(value, MultiValue) and all(isinstance(v, str) for v in value) else value
            )
            value = value.encode("ascii", "replace") if isinstance(value, str) else value  # read early: character sets
            values[tag] = value if isinstance(value, bytes) else b""
        media_class = str(meta.get("MediaStorageSOPClassUID") or "")
        return dataset, Elements(values, syntax, media_class, bool(implicit), bool(little), at), raw


def fragments(header: Header) -> list[tuple[int, int]]:
    """(start, length) of each item of an encapsulated element, the table of offsets first (PS3.5 A.4).

    Raises SampleError `truncated` or `corrupt`.
    """
    has_length = header.length != UNDEFINED
    end, at = header.start + header.length if has_length else len(header.raw), header.start
    items: list[tuple[int, int]] = []
    while at + 8 <= min(end, len(header.raw)):
        item, length = header.raw[at : at + 4], int.from_bytes(header.raw[at + 4 : at + 8], "little")
        if item == b"\xfe\xff\xdd\xe0":
            return _with_pixels(items)
        if item != b"\xfe\xff\x00\xe0" or length == UNDEFINED:
            raise SampleError("corrupt", "the encapsulated pixels are not a sequence of items")
        items.append((at + 8, length))
        at += 8 + length
    if has_length and at == end <= len(header.raw):
        return _with_pixels(items)
    raise SampleError("truncated", "the file ends in the middle of an encapsulated frame")


def _with_pixels(items: list[tuple[int, int]]) -> list[tuple[int, int]]:
    if len(items) < 2:
        raise SampleError("corrupt", "encapsulated pixels without a fragment")
    return items


def native_bytes(header: Header) -> int:
    """The number of bytes that uncompressed pixels must have."""
    samples = 2 if header.photometric == "YBR_FULL_422" else header.samples
    pixels = header.rows * header.columns * header.frames * samples
    bits = {"f4": 32, "f8": 64}.get(header.float_type) or header.number("BitsAllocated", 8)
    return (pixels * bits + 7) // 8


def uid_name(text: str) -> str:
    """A registered UID's name; another UID as it is; never text that is not a UID."""
    name = UID(text, validation_mode=IGNORE).name
    return name if name != text or re.fullmatch(r"[0-9.]{1,64}", text) else "an invalid UID"
