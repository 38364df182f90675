"""DICOM files whose content is deflated, by their transfer syntax or as .dcm.gz: unpacked as far as their headers account for.

Deflate shrinks by up to 1,032 times, so a small file can fill memory. What a header describes is known from its beginning.
"""

# pydicom gives some of its values no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import io
from contextlib import suppress

import pydicom
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import _read_file_meta_info  # pyright: ignore[reportPrivateUsage]  # its public ones read on
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.transfer_syntaxes import DEFLATED, EXPLICIT
from medray.modalities.imaging.formats.image import decoding
from medray.storage.inflating import DEFLATE_STREAM, unpacked
from medray.storage.pages import Content, whole

PER_FRAME = 2**14
"""Bytes of header for each frame: functional groups are of some thousand bytes."""
BESIDE, TIMES = 2**23, 20
"""Beside its pixels, frames and overlays a file may hold so many bytes, or so many times what it was packed to: text and
numbers shrink by less."""
_DIMENSIONS = ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated")


def from_gzip(raw: bytes) -> bytes:
    """The content of a .dcm.gz. Raises SampleError: `truncated`, `corrupt`, also for more than its header accounts for."""
    return unpacked(raw, most=lambda head: _most(head, len(raw)))


def inflated(raw: Content) -> Content:
    """A file of the deflated transfer syntax (PS3.5 A.5) as the same file in Explicit VR Little Endian; any other as it is.

    Raises SampleError: `truncated`, `corrupt`, also for more than its header accounts for.
    """
    if raw[128:132] != b"DICM":
        return raw
    stream = io.BytesIO(raw[: 2**16])  # group 2 stands first, and is short
    stream.seek(132)
    try:
        with decoding("DICOM header", Exception):
            meta = _read_file_meta_info(stream)
            syntax = str(meta.get("TransferSyntaxUID") or "")
    except SampleError:  # whatever is wrong with it, the reader of the whole header says
        return raw
    if syntax != DEFLATED:
        return raw
    start = stream.tell()
    head = DicomBytesIO(raw[:132])
    head.seek(132)
    head.is_little_endian, head.is_implicit_VR = True, False
    with decoding("DICOM header"):
        meta.TransferSyntaxUID = UID(EXPLICIT)
        write_file_meta_info(head, meta, enforce_standard=False)
    first = head.getvalue()
    packed = whole(raw)
    content = unpacked(packed, start, DEFLATE_STREAM, most=lambda begun: _most(first + begun, len(packed)))
    return first + content


def _most(head: bytes, packed: int) -> int:
    """Bytes of a file that begins so, at the most: pixels, 16 overlays of a bit, headers of frames, and what is beside them."""
    rows, columns, samples, frames, bits = _dimensions(head)
    frames = max(1, frames)
    pixels = rows * columns * frames * (max(1, samples) * -(-bits // 8) + 2)
    return pixels + frames * PER_FRAME + max(BESIDE, TIMES * packed)


def _dimensions(head: bytes) -> list[int]:
    """Those of _DIMENSIONS that the beginning of a file states; 0 where it does not."""
    stated = dict.fromkeys(_DIMENSIONS, 0)
    with (
        suppress(SampleError),
        decoding("DICOM header", Exception),
    ):  # it may break off within an element, or state no number
        dataset = pydicom.dcmread(io.BytesIO(head), stop_before_pixels=True, force=True, specific_tags=[*_DIMENSIONS])
        for name in _DIMENSIONS:
            stated[name] = max(0, int(dataset.get(name) or 0))
    return list(stated.values())
