"""Compressed pixels: the fragments of an encapsulated element, its frames, and their decoders (PS3.5 8.2, A.4).

A frame's own header has to agree with that of the file: a decoder returns whatever the frame holds, so a picture of
another size or depth would pass for the one that the file describes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.codestream import STARTS, Codestream, read_codestream
from medray.modalities.imaging.formats.dicom.header import Header, fragments, reading, uid_name

JPEG_LOSSY = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
JPEG_LOSSLESS = {"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"}
JPEG_LS = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
JPEG_2000 = {
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201",  # HTJ2K
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",
}
RLE = "1.2.840.10008.1.2.5"
PROCESSES = {
    **dict.fromkeys(JPEG_LOSSY, "dct"),
    **dict.fromkeys(JPEG_LOSSLESS, "lossless"),
    **dict.fromkeys(JPEG_LS, "jpeg-ls"),
    **dict.fromkeys(JPEG_2000, "jpeg-2000"),
}
"""Transfer syntax to the process of its frames."""


@dataclass(frozen=True, slots=True)
class Cells:
    """One decoded frame: the cells of its samples; the file's header says how many of their bits count."""

    values: np.ndarray
    """(H, W) or (H, W, 3), unsigned; two's complement of `precision` bits where the header says signed."""
    precision: int
    """Bits of a cell that the frame fills; the others are 0."""
    process: str
    """A key of PROCESSES' values, or "rle"."""
    rgb: bool | None = None
    """The colours are R G B (True), or luma and chroma (False), whatever the header says; None: as it says."""


def decoded_frames(header: Header, numbers: Sequence[int]) -> Iterator[Cells]:
    """These frames of a compressed file, from 0. Raises SampleError: `truncated`, `corrupt`, `unsupported`."""
    if header.syntax != RLE and header.syntax not in PROCESSES:
        raise SampleError("unsupported", f"transfer syntax {uid_name(header.syntax)}")
    decode = _run_lengths if header.syntax == RLE else _decode
    encoded = encoded_frames(header)
    for number in numbers:
        yield decode(header, encoded[number])


# --- fragments to frames --------------------------------------------------------------------------------------


def encoded_frames(header: Header) -> list[bytes]:
    """The bytes of each of the NumberOfFrames frames (PS3.5 A.4). Raises SampleError `corrupt` where the element does
    not hold that many.
    """
    items = fragments(header)
    table, pieces = items[0], items[1:]
    parts = [header.raw[start : start + length] for start, length in pieces]
    offsets = _offsets(header, *table)
    if offsets and len(offsets) != header.frames:
        raise SampleError("corrupt", f"{header.frames} frames, but {len(offsets)} in the table of offsets")
    if len(parts) == header.frames:
        return parts
    starts = [start - pieces[0][0] for start, _ in pieces]
    if offsets:
        firsts = [starts.index(offset) if offset in starts else -1 for offset in offsets]
    else:
        firsts = [k for k, part in enumerate(parts) if k == 0 or part.startswith(STARTS)]
    if len(firsts) != header.frames or firsts[:1] != [0] or firsts != sorted(set(firsts)):
        raise SampleError("corrupt", f"{header.frames} frames cannot be told apart in {len(parts)} fragments")
    ends = [*firsts[1:], len(parts)]
    return [b"".join(parts[first:end]) for first, end in zip(firsts, ends, strict=True)]


def _offsets(header: Header, at: int, length: int) -> list[int]:
    """Where frames start after the first fragment's tag, by the extended table (PS3.3 C.7.6.3.1.8), else the basic one."""
    extended = header.get("ExtendedOffsetTable")
    if isinstance(extended, bytes) and extended:
        return np.frombuffer(extended, "<u8", len(extended) // 8).tolist()
    return np.frombuffer(memoryview(header.raw), "<u4", length // 4, at).tolist()


# --- frames to cells ------------------------------------------------------------------------------------------


def _decode(header: Header, frame: bytes) -> Cells:
    """imagecodecs decodes every syntax, JPEG Extended of 12 bits included."""
    import imagecodecs

    codestream = read_codestream(frame)
    _agree(codestream, header)
    color = header.samples == 3
    rgb = codestream.rgb if color else None
    with reading(uid_name(header.syntax)):
        if codestream.process == "dct":
            # components that the frame does not name are those of the header; libjpeg would guess YBR
            plain = codestream.rgb is None and header.photometric == "RGB"
            space = "RGB" if color and (codestream.rgb or plain) else None
            pixels = imagecodecs.jpeg_decode(frame, colorspace=space, outcolorspace="RGB" if color else None)
            rgb = True
        elif codestream.process == "lossless":
            space = "RGB" if color else None  # what was stored, no transform
            pixels = imagecodecs.jpeg_decode(frame, colorspace=space, outcolorspace=space)
        elif codestream.process == "jpeg-ls":
            pixels = imagecodecs.jpegls_decode(frame)
        else:
            pixels = imagecodecs.jpeg2k_decode(frame)
            rgb = True if header.photometric in ("YBR_RCT", "YBR_ICT") else None
        pixels = np.asarray(pixels)
    size = (header.rows, header.columns)
    if codestream.by_plane and pixels.shape == (3, *size):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.shape != ((*size, 3) if color else size):
        raise SampleError("corrupt", f"a frame of shape {list(pixels.shape)}; the header says {list(size)}")
    return Cells(_bits(pixels, codestream, header), codestream.precision, codestream.process, rgb)


def _bits(pixels: np.ndarray, codestream: Codestream, header: Header) -> np.ndarray:
    """Decoded samples as unsigned cells of the frame's own precision."""
    if codestream.signed and not header.signed and int(pixels.min()) < 0:
        raise SampleError("corrupt", "a signed frame with values below zero; the header says unsigned")
    cells = pixels.view(f"u{pixels.dtype.itemsize}")
    mask = (1 << codestream.precision) - 1
    if codestream.signed:
        return cells & cells.dtype.type(mask)
    if int(cells.max()) > mask:
        raise SampleError("corrupt", f"a frame of {codestream.precision} bits with larger values")
    return cells


def _agree(codestream: Codestream, header: Header) -> None:
    """Raises SampleError `corrupt` where a frame is not what the header describes (PS3.5 8.2)."""
    if codestream.process != PROCESSES[header.syntax]:
        raise SampleError("corrupt", f"a {codestream.process} frame under transfer syntax {uid_name(header.syntax)}")
    if (codestream.rows, codestream.columns) != (header.rows, header.columns):
        raise SampleError(
            "corrupt",
            f"a frame of {codestream.rows} x {codestream.columns} pixels; the header says {header.rows} x {header.columns}",
        )
    if codestream.components != header.samples:
        raise SampleError("corrupt", f"{codestream.components} components; the header says {header.samples}")
    allocated, bits = header.number("BitsAllocated", 8), header.number("BitsStored", 8)
    if codestream.precision > allocated or (codestream.process == "dct" and codestream.precision < bits):
        raise SampleError("corrupt", f"a frame of {codestream.precision} bits; the header says {bits} of {allocated}")
    if header.photometric in ("YBR_RCT", "YBR_ICT") and not codestream.transformed:
        raise SampleError("corrupt", f"{header.photometric}, but the frame's components were not transformed")
    if header.photometric in ("YBR_FULL", "YBR_FULL_422") and codestream.transformed:
        raise SampleError("corrupt", f"{header.photometric}, but the frame's components were transformed once more")


def _run_lengths(header: Header, frame: bytes) -> Cells:
    """RLE: a byte plane per segment, most significant first (PS3.5 G.2 and G.5)."""
    import imagecodecs

    size, width = header.rows * header.columns, header.number("BitsAllocated", 8) // 8
    planes = header.samples * width
    if width == 0:
        raise SampleError("unsupported", "run lengths of single bits")
    heads = np.frombuffer(frame[:64], "<u4", len(frame[:64]) // 4)
    if len(heads) < 16:
        raise SampleError("truncated", "a run-length frame that ends within its own header")
    if heads[0] != planes:
        raise SampleError("corrupt", f"{int(heads[0])} run-length segments; the header makes {planes}")
    bounds = [*(int(offset) for offset in heads[1 : 1 + planes]), len(frame)]
    values = np.empty((header.samples, size), f"u{width}")
    room = np.empty(size + 2, np.uint8)  # a run of two bytes may stand for 128
    for number, (start, end) in enumerate(pairwise(bounds)):
        with reading(uid_name(header.syntax)):
            plane = np.frombuffer(imagecodecs.packbits_decode(frame[start:end], out=room.data), np.uint8)
        if len(plane) < size:
            raise SampleError("truncated", f"a run-length segment of {len(plane)} bytes; expected {size}")
        if len(plane) > size + 1:  # a byte more: the segment's own padding to an even length
            raise SampleError("corrupt", f"a run-length segment of {len(plane)} bytes; expected {size}")
        sample, byte = divmod(number, width)
        if byte == 0:
            np.copyto(values[sample], plane[:size])
        else:  # two passes over whole values take half the time of writing every other byte
            values[sample] <<= 8
            values[sample] |= plane[:size]
    pixels = np.moveaxis(values.reshape(header.samples, header.rows, header.columns), 0, -1)
    return Cells(pixels if header.samples == 3 else pixels[..., 0], 8 * width, "rle")
