"""Compressed pixels: the fragments of an encapsulated element, its frames, and their decoders (PS3.5 8.2, A.4).

What a frame says of itself has to agree with the header: a decoder gives whatever the frame holds, so a picture of
another size or depth would pass for the one that the header describes.
"""

from __future__ import annotations

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
"""Transfer syntax to what its frames are."""


@dataclass(frozen=True, slots=True)
class Cells:
    """One decoded frame: what stands in each sample, of which the header says how many bits count."""

    values: np.ndarray
    """(H, W) or (H, W, 3), unsigned; two's complement of `precision` bits where the header says signed."""
    precision: int
    """Bits of a cell that the frame has; the rest is 0."""
    process: str
    """A key of PROCESSES' values, or "rle"."""
    rgb: bool | None = None
    """The colours are R G B (True), or luma and chroma (False), whatever the header says; None: as it says."""


def decoded_frames(header: Header) -> list[Cells]:
    """Every frame of a compressed file. Raises SampleError: `truncated`, `corrupt`, `unsupported`."""
    if header.syntax == RLE:
        return [_run_lengths(header, frame) for frame in encoded_frames(header)]
    if header.syntax not in PROCESSES:
        raise SampleError("unsupported", f"transfer syntax {uid_name(header.syntax)}")
    return [_decode(header, frame) for frame in encoded_frames(header)]


# --- fragments to frames --------------------------------------------------------------------------------------


def encoded_frames(header: Header) -> list[bytes]:
    """The bytes of each of the NumberOfFrames frames (PS3.5 A.4). Raises SampleError `corrupt` where that is not
    what the element holds.
    """
    places = fragments(header)
    table, pieces = places[0], places[1:]
    parts = [header.raw[at : at + length] for at, length in pieces]
    offsets = _offsets(header, *table)
    if offsets and len(offsets) != header.frames:
        raise SampleError("corrupt", f"{header.frames} frames, but {len(offsets)} in the table of offsets")
    if len(parts) == header.frames:
        return parts
    starts = [at - pieces[0][0] for at, _ in pieces]
    if offsets:
        firsts = [starts.index(offset) if offset in starts else -1 for offset in offsets]
    else:
        firsts = [k for k, part in enumerate(parts) if k == 0 or part.startswith(STARTS)]
    if len(firsts) != header.frames or firsts[:1] != [0] or firsts != sorted(set(firsts)):
        raise SampleError("corrupt", f"{header.frames} frames cannot be told from {len(parts)} fragments")
    ends = [*firsts[1:], len(parts)]
    return [b"".join(parts[first:end]) for first, end in zip(firsts, ends, strict=True)]


def _offsets(header: Header, at: int, length: int) -> list[int]:
    """Where frames start behind the first fragment's tag: of the extended table (PS3.3 C.7.6.3.1.8), else the basic."""
    extended = header.get("ExtendedOffsetTable")
    if extended:
        return np.frombuffer(extended, "<u8", len(extended) // 8).tolist()
    return np.frombuffer(header.raw, "<u4", length // 4, at).tolist()


# --- frames to cells ------------------------------------------------------------------------------------------


def _decode(header: Header, frame: bytes) -> Cells:
    """imagecodecs decodes every syntax, JPEG Extended of 12 bits included."""
    import imagecodecs

    found = read_codestream(frame)
    _agree(found, header)
    color = header.samples == 3
    rgb = found.rgb if color else None
    with reading(uid_name(header.syntax)):
        if found.process == "dct":
            # a frame that does not say what its components are is what the header says; libjpeg would guess YBR
            plain = found.rgb is None and header.photometric == "RGB"
            space = "RGB" if color and (found.rgb or plain) else None
            pixels = imagecodecs.jpeg_decode(frame, colorspace=space, outcolorspace="RGB" if color else None)
            rgb = True
        elif found.process == "lossless":
            space = "RGB" if color else None  # what was stored, no transform
            pixels = imagecodecs.jpeg_decode(frame, colorspace=space, outcolorspace=space)
        elif found.process == "jpeg-ls":
            pixels = imagecodecs.jpegls_decode(frame)
        else:
            pixels = imagecodecs.jpeg2k_decode(frame)
            rgb = True if header.photometric in ("YBR_RCT", "YBR_ICT") else None
        pixels = np.asarray(pixels)
    size = (header.rows, header.columns)
    if found.by_plane and pixels.shape == (3, *size):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.shape != ((*size, 3) if color else size):
        raise SampleError("corrupt", f"a frame of shape {list(pixels.shape)}; the header says {list(size)}")
    return Cells(_bits(pixels, found, header), found.precision, found.process, rgb)


def _bits(pixels: np.ndarray, found: Codestream, header: Header) -> np.ndarray:
    """Decoded samples as unsigned cells of the frame's own precision."""
    if found.signed and not header.signed and int(pixels.min()) < 0:
        raise SampleError("corrupt", "a signed frame with values below zero; the header says unsigned")
    cells = pixels.view(f"u{pixels.dtype.itemsize}")
    mask = (1 << found.precision) - 1
    if found.signed:
        return cells & cells.dtype.type(mask)
    if int(cells.max()) > mask:
        raise SampleError("corrupt", f"a frame of {found.precision} bits with larger values")
    return cells


def _agree(found: Codestream, header: Header) -> None:
    """Raises SampleError `corrupt` where a frame is not what the header describes (PS3.5 8.2)."""
    if found.process != PROCESSES[header.syntax]:
        raise SampleError("corrupt", f"a {found.process} frame under transfer syntax {uid_name(header.syntax)}")
    if (found.rows, found.columns) != (header.rows, header.columns):
        raise SampleError(
            "corrupt",
            f"a frame of {found.rows} x {found.columns} pixels; the header says {header.rows} x {header.columns}",
        )
    if found.components != header.samples:
        raise SampleError("corrupt", f"{found.components} components; the header says {header.samples}")
    allocated, bits = header.number("BitsAllocated", 8), header.number("BitsStored", 8)
    if found.precision > allocated or (found.process == "dct" and found.precision < bits):
        raise SampleError("corrupt", f"a frame of {found.precision} bits; the header says {bits} of {allocated}")
    if header.photometric in ("YBR_RCT", "YBR_ICT") and not found.transformed:
        raise SampleError("corrupt", f"{header.photometric}, but the frame's components were not transformed")
    if header.photometric in ("YBR_FULL", "YBR_FULL_422") and found.transformed:
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
    target = values.view(np.uint8).reshape(header.samples, size, width)
    for number, (start, end) in enumerate(pairwise(bounds)):
        with reading(uid_name(header.syntax)):
            plane = np.frombuffer(imagecodecs.packbits_decode(frame[start:end]), np.uint8)
        if len(plane) < size:
            raise SampleError("truncated", f"a run-length segment of {len(plane)} bytes; expected {size}")
        if len(plane) > size + 1:  # a byte more: the segment's own padding to an even length
            raise SampleError("corrupt", f"a run-length segment of {len(plane)} bytes; expected {size}")
        sample, byte = divmod(number, width)
        target[sample, :, width - 1 - byte] = plane[:size]
    pixels = np.moveaxis(values.reshape(header.samples, header.rows, header.columns), 0, -1)
    return Cells(pixels if header.samples == 3 else pixels[..., 0], 8 * width, "rle")
