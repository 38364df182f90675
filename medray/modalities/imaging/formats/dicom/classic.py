"""Classic uncompressed grey images: one frame, described as other files before it were, which need not be found out again.

Most files of an archive are described by the same bytes. What the general reader finds in these bytes alone (that they do not
contradict each other, that the file is an image and no mosaic, what its values mean) is found once for each description.
What depends on more than these bytes is looked at in every file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.elements import TAGS, UNDEFINED
from medray.modalities.imaging.formats.dicom.encapsulated import Cells
from medray.modalities.imaging.formats.dicom.header import Header, native_bytes
from medray.modalities.imaging.formats.dicom.objects import DESCRIBED_ELSEWHERE, is_mosaic, refuse_other_objects
from medray.modalities.imaging.formats.dicom.pixel_description import refuse_contradictions
from medray.modalities.imaging.formats.dicom.transfer_syntaxes import NATIVE

DESCRIBED = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "ImageType",
)  # fmt: skip
_TAGS = tuple(TAGS[keyword][0] for keyword in DESCRIBED)
MOST = 1024
"""Descriptions that are remembered."""


class Described(NamedTuple):
    """What a description says."""

    shape: tuple[int, int]
    dtype: np.dtype
    """Of the cells, as the file holds them."""
    size: int
    """Bytes of pixels."""
    bits: int
    """BitsAllocated"""


_known: dict[tuple[object, ...], Described | None] = {}


def described(header: Header) -> Described | None:
    """What the header of one uncompressed little-endian grey frame says; None for any other, and where it contradicts itself."""
    if not header.walked or not header.little or header.float_type or header.syntax not in NATIVE:
        return None
    if header.start < 0 or header.length == UNDEFINED:
        return None
    values = header.values
    if not values.keys().isdisjoint(DESCRIBED_ELSEWHERE):
        return None
    key = (header.syntax, header.sop_class, *map(values.get, _TAGS))
    try:
        return _known[key]
    except KeyError:
        if len(_known) >= MOST:
            _known.clear()
        found = _known[key] = _found(header)
        return found


def _found(header: Header) -> Described | None:
    """By the elements of DESCRIBED alone: nothing else of the file is seen here."""
    values = {tag: header.values[tag] for tag in _TAGS if tag in header.values}
    alone = Header(b"", values, header.syntax, header.sop_class, True, 0, 0, "", header.words)
    try:
        refuse_other_objects(alone)
        refuse_contradictions(alone)
        bits = alone.number("BitsAllocated", 8)
        if is_mosaic(alone) or alone.frames != 1 or not alone.photometric.startswith("MONOCHROME") or bits < 8:
            return None
        return Described((alone.rows, alone.columns), np.dtype(f"<u{bits // 8}"), native_bytes(alone), bits)
    except SampleError:
        return None  # the general reader says why


def cells(header: Header, of: Described) -> Cells | None:
    """The cells of the frame, (H, W); None where the file does not hold as many as it says, and nothing but zeros behind."""
    raw, start, need = header.raw, header.start, of.size
    have = min(header.length, len(raw) - start)
    if have < need or (have > need + need % 2 and any(raw[start + need + need % 2 : start + have])):
        return None
    values = np.frombuffer(memoryview(raw), of.dtype, need // of.dtype.itemsize, start).reshape(of.shape)
    return Cells(values, of.bits, "native")
