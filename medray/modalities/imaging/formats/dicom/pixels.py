"""DICOM pixels: the stored values of a file (PS3.3 C.7.6.3; PS3.5 8.1, 8.2, A).

parse(raw) → Header ── stored(header) → (F, H, W[, 3]) stored values ── frame_values(frame) → values, padding
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from pydicom.pixels.processing import convert_color_space

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.classic import cells, described
from medray.modalities.imaging.formats.dicom.elements import numbers
from medray.modalities.imaging.formats.dicom.encapsulated import Cells, decoded_frames
from medray.modalities.imaging.formats.dicom.frames import Frame, Group, frames
from medray.modalities.imaging.formats.dicom.header import Header, native_bytes, parse, reading
from medray.modalities.imaging.formats.dicom.lookup import palette
from medray.modalities.imaging.formats.dicom.mosaic import mosaic
from medray.modalities.imaging.formats.dicom.objects import is_mosaic, refuse_other_objects
from medray.modalities.imaging.formats.dicom.pixel_description import check
from medray.modalities.imaging.formats.dicom.quantity import AS_RESCALED, Quantity, factors, frame_values
from medray.modalities.imaging.formats.dicom.transform import cover
from medray.modalities.imaging.formats.image import Image
from medray.storage.pages import Content

MASKED = frozenset({"native", "rle", "lossless"})
"""Processes whose cells may hold more than BitsStored bits; those above are not part of the image (PS3.5 8.1.1)."""


def stored(header: Header) -> np.ndarray:
    """(F, H, W) stored values or (F, H, W, 3) RGB, as the file holds them: before rescale and inversion.

    Integers of BitsStored bits, sign extended where signed; palette and YBR images become RGB.
    Raises SampleError: `no_pixels`, `truncated`, `corrupt`, `unsupported`.
    """
    check(header)
    if header.encapsulated:
        each = list(stored_frames(header, range(header.frames)))
        return np.stack(each) if len(each) > 1 else each[0][None]
    return _uncompressed(_native(header), header)


def stored_frames(header: Header, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """(H, W) or (H, W, 3) stored values of these frames, from 0, as `stored` has them; no other frame is decoded.

    A frame is valid until the next one is asked for: then the memory of the file behind it may be given back. The header has
    passed `check`.
    """
    if header.encapsulated:
        for cells in decoded_frames(header, numbers):
            yield _colors(stored_bits(cells, header), cells.rgb, header)
        return
    whole, size = _native(header), native_bytes(header) // header.frames
    ascending = all(number < following for number, following in pairwise(numbers))
    for number in numbers:
        yield _uncompressed(whole[number : number + 1], header)[0]
        if ascending:
            header.give_back(header.start + (number + 1) * size)


def _uncompressed(pixels: np.ndarray, header: Header) -> np.ndarray:
    if pixels.dtype.kind == "f":
        return pixels
    cells = Cells(pixels, header.number("BitsAllocated", 8), "native")
    return _colors(stored_bits(cells, header), None, header)


def _colors(pixels: np.ndarray, rgb: bool | None, header: Header) -> np.ndarray:
    """Stored values to colours: a palette's, YBR as R G B; grey stays as it is."""
    if header.photometric == "PALETTE COLOR":
        return palette(header, pixels)
    if header.samples == 1:
        return pixels
    if header.signed and int(pixels.min()) < 0:
        raise SampleError("corrupt", "colours with a sign")
    if rgb is False or (rgb is None and header.photometric in ("YBR_FULL", "YBR_FULL_422")):
        return ybr_to_rgb(pixels, header.number("BitsStored", 8))
    return pixels


def _native(header: Header) -> np.ndarray:
    """(F, H, W[, 3]) uncompressed values with all BitsAllocated bits of each; float as float, else unsigned."""
    if header.given_back:
        raise AssertionError("pixels whose memory has been given back are asked for again")
    bits = header.number("BitsAllocated", 8)
    shape = (header.frames, header.rows, header.columns)
    count = math.prod(shape)
    size = native_bytes(header)
    order = "<" if header.little else ">"
    if header.float_type:
        values = np.frombuffer(memoryview(header.raw), order + header.float_type, count, header.start).reshape(shape)
        return values if header.little else values.astype(header.float_type)
    if bits == 1:
        packed = np.frombuffer(memoryview(header.raw), np.uint8, size, header.start)
        return np.unpackbits(packed, count=count, bitorder="little").reshape(shape)
    if bits == 8 and not header.little and header.words:  # bytes of 8-bit pixels travel in swapped pairs, PS3.5 A.3
        pairs = np.frombuffer(memoryview(header.raw), np.uint16, (size + 1) // 2, header.start)
        flat = pairs.byteswap().view(np.uint8)[:size]
    else:
        flat = np.frombuffer(memoryview(header.raw), f"{order}u{bits // 8}", size // (bits // 8), header.start)
        flat = flat if flat.dtype.isnative else flat.astype(flat.dtype.newbyteorder("="))
    if header.samples == 1:
        return flat.reshape(shape)
    if header.photometric == "YBR_FULL_422":  # Y1 Y2 Cb Cr for two pixels, PS3.3 C.7.6.3.1.2
        pairs = flat.reshape(*shape[:2], header.columns // 2, 4)
        full = np.empty((*shape, 3), flat.dtype)
        full[..., 0] = pairs[..., :2].reshape(shape)
        full[..., 1:] = np.repeat(pairs[..., 2:], 2, axis=2)
        return full
    if header.number("PlanarConfiguration", 0) == 1:
        return np.moveaxis(flat.reshape(header.frames, 3, header.rows, header.columns), 1, -1)
    return flat.reshape(*shape, 3)


def stored_bits(frame: Cells, header: Header) -> np.ndarray:
    """The values that cells hold: BitsStored bits below HighBit, sign extended (PS3.5 8.1.1). Raises SampleError.

    A compressed frame has a precision of its own. Where it is less than BitsStored, the sign is the frame's highest
    bit in JPEG 2000 and JPEG-LS (as in pydicom). In JPEG lossless nothing says so, and a cell with that bit is refused.
    """
    cells, precision = frame.values, frame.precision
    bits = header.number("BitsStored", precision)
    high = header.number("HighBit", bits - 1)
    if precision <= bits:
        if precision < bits and header.signed and frame.process == "lossless" and _top(cells) >= 1 << precision - 1:
            raise SampleError("corrupt", f"signed values of {bits} bits in a frame of {precision}")
        return _signed(cells, precision, header)
    if frame.process not in MASKED:
        values = _signed(cells, precision, header)
        low, top = (-(1 << bits - 1), (1 << bits - 1) - 1) if header.signed else (0, (1 << bits) - 1)
        if int(values.min()) < low or int(values.max()) > top:
            raise SampleError("corrupt", f"a frame of {precision} bits with values that {bits} bits cannot hold")
        return values
    if high >= bits and high < precision:
        below = high - bits + 1
        if (cells & cells.dtype.type((1 << below) - 1)).any() and _top(cells) < 1 << bits:
            raise SampleError("corrupt", f"HighBit {high} with BitsStored {bits}, but values in the lowest {bits} bits")
        cells = cells >> below
    if header.signed:
        return _signed(cells, bits, header)
    return cells if _top(cells) < 1 << bits else cells & cells.dtype.type((1 << bits) - 1)


def _top(cells: np.ndarray) -> int:
    return int(cells.max())


def _signed(cells: np.ndarray, bits: int, header: Header) -> np.ndarray:
    """Cells of `bits` bits, read as two's complement where the header says signed."""
    if not header.signed:
        return cells
    container = cells.dtype.itemsize * 8
    values = cells.view(f"i{cells.dtype.itemsize}")
    if bits == container or (-(1 << bits - 1) <= values.min() and values.max() < 1 << bits - 1):
        return values
    return (values << (container - bits)) >> (container - bits)


def ybr_to_rgb(pixels: np.ndarray, bits: int) -> np.ndarray:
    """YBR_FULL (…, 3) of so many bits to R G B of the same dtype, rounded (PS3.3 C.7.6.3.1.2, BT.601 full range).

    8 bits are converted by pydicom; others, which it refuses, by the same formula with chroma's middle at 2^(bits−1).
    """
    if bits == 8 and pixels.dtype == np.uint8:
        with reading("colour conversion"):
            return convert_color_space(pixels, "YBR_FULL", "RGB")
    middle, top = 1 << bits - 1, (1 << bits) - 1
    values = pixels.astype(np.float64)
    luma, blue, red = values[..., 0], values[..., 1] - middle, values[..., 2] - middle
    green = luma - 0.114 * 1.772 / 0.587 * blue - 0.299 * 1.402 / 0.587 * red
    rgb = np.stack([luma + 1.402 * red, green, luma + 1.772 * blue], axis=-1)
    return np.clip(np.floor(rgb + 0.5), 0, top).astype(pixels.dtype)


def read_image(raw: Content, number: int | None = None, wanted: Quantity = AS_RESCALED) -> Image:
    """One file as an image: its only frame or tile, or the one of this number, from 0; its values the quantity that is asked
    for. Raises SampleError.

    Rescale and spacing of an enhanced file are read from its functional groups (PS3.3 C.7.6.16).
    """
    header = parse(raw)
    frame, pixels = (_classic(header) if number is None else None) or _one(header, number)
    if pixels.ndim == 3:
        wanted.refuse("colours", str(header.get("Modality") or ""))
        return Image(pixels, color=True, spacing_mm=frame_spacing(frame))
    factor = factors([frame], wanted, whole=False)[0]
    values, padding = frame_values(frame, pixels, wanted.of_shape(pixels.shape), factor)
    return Image(cover(values, padding), spacing_mm=frame_spacing(frame))


def _classic(header: Header) -> tuple[Frame, np.ndarray] | None:
    """The frame of a classic uncompressed grey file and its stored values; None for any other, and where something is wrong."""
    of = described(header)
    held = None if of is None else cells(header, of)
    return None if held is None else (Frame(header, {}, {}), stored_bits(held, header))


def _one(header: Header, number: int | None) -> tuple[Frame, np.ndarray]:
    """The only frame or tile of a file, or the one of this number, and its stored values. Raises SampleError."""
    refuse_other_objects(header)
    check(header)
    tiled = is_mosaic(header)
    if number is None and (tiled or header.frames > 1):
        what = "a mosaic: many slices tiled into one image" if tiled else f"{header.frames} frames in one file"
        raise SampleError("unsupported", f'{what}; expected one image: set frames = "each" or "middle" to take them')
    layout = mosaic(header) if tiled else None
    if number is not None and number >= (header.frames if layout is None else layout.count):
        raise SampleError("changed", f"frame {number + 1} is not there any more")
    frame = frames(header)[0 if tiled else number or 0]
    pixels = next(stored_frames(header, [0 if tiled else number or 0]))
    if layout is not None:
        pixels = layout.tile(pixels, number or 0)
    return frame, pixels


def frame_spacing(frame: Frame) -> tuple[float, float] | None:
    """(between rows, between columns) in mm of a frame: in the patient (PS3.3 C.7.6.16.2.1), else at the detector
    (C.8.19.6.4), else as the file's top level states it.
    """
    for macro in ("PixelMeasuresSequence", "FramePixelDataPropertiesSequence"):
        group = frame.group(macro)
        spacing = plane_spacing(group) if group else None
        if spacing is not None:
            return spacing
    return plane_spacing(frame.header)


def plane_spacing(source: Header | Group) -> tuple[float, float] | None:
    """(between rows, between columns) in mm, in the patient, else at the detector; None where the file does not say."""
    for keyword in ("PixelSpacing", "NominalScannedPixelSpacing", "ImagerPixelSpacing"):
        value = numbers(source.get(keyword))
        if value:
            if len(value) != 2:
                raise SampleError("corrupt", f"{keyword} of {len(value)} numbers; expected 2")
            rows, columns = (float(v) for v in value)
            if rows > 0 and columns > 0:
                return rows, columns
    return None
