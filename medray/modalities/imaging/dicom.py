"""DICOM pixels: what a file stores and what that means (PS3.3 C.7.6.3, C.7.5.1.1.2, C.11.1; PS3.5 A).

parse(raw) → Header ── stored(header) → (F, H, W[, 3]) stored values ── real_world(frame) → values, padding
"""

from __future__ import annotations

import numpy as np
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, convert_color_space

from medray.errors import SampleError
from medray.modalities.imaging.elements import UNDEFINED
from medray.modalities.imaging.frames import Frame, Group, frames
from medray.modalities.imaging.header import Header, check, native_bytes, parse, reading, uid_name
from medray.modalities.imaging.image import Image
from medray.modalities.imaging.mixture import rescale
from medray.modalities.imaging.objects import refuse_mosaic, refuse_other_objects

JPEG_LOSSY = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
JPEG_LOSSLESS = {"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"}
JPEG_LS = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
JPEG_2000 = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}
HTJ2K = {"1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"}
RLE = {"1.2.840.10008.1.2.5"}


# --- stored pixels --------------------------------------------------------------------------------------------


def stored(header: Header) -> np.ndarray:
    """(F, H, W) stored values or (F, H, W, 3) RGB, as the file holds them: before rescale and inversion.

    Integers of BitsStored bits, sign extended where signed; palette and YBR images become RGB.
    Raises SampleError: `no_pixels`, `truncated`, `corrupt`, `unsupported`.
    """
    check(header)
    rows, columns = header.rows, header.columns
    if rows * columns == 0:
        raise SampleError("corrupt", f"an image of {rows} x {columns} pixels")
    if header.samples not in (1, 3):
        raise SampleError("unsupported", f"{header.samples} samples per pixel; expected 1 or 3")
    if header.length != UNDEFINED:
        pixels = _native(header, rows, columns)
        decoded_rgb = False
    else:
        frames = [_decompress(header, frame, rows, columns) for frame in _encoded_frames(header)]
        pixels = np.stack(frames) if len(frames) > 1 else frames[0][None]
        decoded_rgb = header.syntax in JPEG_LOSSY
    if pixels.dtype.kind == "f":
        return pixels
    if header.samples == 1:
        pixels = _stored_bits(pixels, header)
        return _palette(header, pixels) if header.photometric == "PALETTE COLOR" else pixels
    if header.photometric in ("YBR_FULL", "YBR_FULL_422") and not decoded_rgb:
        with reading("colour conversion"):
            pixels = convert_color_space(pixels, "YBR_FULL", "RGB")
    return pixels


def _native(header: Header, rows: int, columns: int) -> np.ndarray:
    bits = header.number("BitsAllocated", 8)
    shape = (header.frames, rows, columns)
    size = native_bytes(header)
    order = "<" if header.little else ">"
    if header.float_type:
        return np.frombuffer(header.raw, order + header.float_type, int(np.prod(shape)), header.start).reshape(shape)
    if bits == 1:
        packed = np.frombuffer(header.raw, np.uint8, size, header.start)
        return np.unpackbits(packed, count=int(np.prod(shape)), bitorder="little").reshape(shape)
    if bits not in (8, 16, 32):
        raise SampleError("unsupported", f"{bits} bits allocated; expected 1, 8, 16 or 32")
    kind = "i" if header.signed and header.samples == 1 else "u"
    if bits == 8 and not header.little and header.words:  # bytes of 8-bit pixels travel in swapped pairs, PS3.5 A.3
        pairs = np.frombuffer(header.raw, np.uint16, (size + 1) // 2, header.start)
        flat = pairs.byteswap().view(np.uint8)[:size].view(kind + "1")
    else:
        flat = np.frombuffer(header.raw, f"{order}{kind}{bits // 8}", size // (bits // 8), header.start)
        flat = flat if flat.dtype.isnative else flat.astype(flat.dtype.newbyteorder("="))
    if header.samples == 1:
        return flat.reshape(shape)
    if header.photometric == "YBR_FULL_422":  # Y1 Y2 Cb Cr for two pixels, PS3.3 C.7.6.3.1.2
        pairs = flat.reshape(*shape[:2], columns // 2, 4)
        full = np.empty((*shape, 3), flat.dtype)
        full[..., 0] = pairs[..., :2].reshape(shape)
        full[..., 1:] = np.repeat(pairs[..., 2:], 2, axis=2)
        return full
    if header.number("PlanarConfiguration", 0) == 1:
        return np.moveaxis(flat.reshape(header.frames, 3, rows, columns), 1, -1)
    return flat.reshape(*shape, 3)


def _encoded_frames(header: Header) -> list[bytes]:
    from pydicom.encaps import generate_frames

    with reading("encapsulated pixels"):
        return list(generate_frames(header.raw[header.start :], number_of_frames=header.frames))


def _decompress(header: Header, frame: bytes, rows: int, columns: int) -> np.ndarray:
    """One frame, (H, W) or (H, W, 3). imagecodecs decodes every syntax, JPEG Extended 12 bit included."""
    import imagecodecs

    syntax, color = header.syntax, header.samples == 3
    with reading(uid_name(syntax)):
        if syntax in JPEG_LOSSY:
            bare_rgb = (
                color and header.photometric == "RGB" and b"JFIF" not in frame[:64] and b"Adobe" not in frame[:512]
            )
            space = "RGB" if bare_rgb else None
            pixels = imagecodecs.jpeg_decode(frame, colorspace=space, outcolorspace="RGB" if color else None)
        elif syntax in JPEG_LOSSLESS:
            space = "RGB" if color else None  # lossless: what was stored, no colour transform
            pixels = imagecodecs.jpeg_decode(frame, colorspace=space, outcolorspace=space)
        elif syntax in JPEG_LS:
            pixels = imagecodecs.jpegls_decode(frame)
        elif syntax in JPEG_2000 or syntax in HTJ2K:
            pixels = imagecodecs.jpeg2k_decode(frame)
        elif syntax in RLE:
            word = np.dtype(f"u{header.number('BitsAllocated', 8) // 8}")
            flat = np.frombuffer(imagecodecs.dicomrle_decode(frame, word), word)
            pixels = flat.reshape(header.samples, rows, columns)
            pixels = np.moveaxis(pixels, 0, -1) if color else pixels[0]
        else:
            raise SampleError("unsupported", f"transfer syntax {uid_name(syntax)}")
        pixels = np.asarray(pixels)
        if color and pixels.shape == (3, rows, columns):
            pixels = np.moveaxis(pixels, 0, -1)
        return pixels.reshape((rows, columns, 3) if color else (rows, columns))


def _stored_bits(pixels: np.ndarray, header: Header) -> np.ndarray:
    """The BitsStored bits below HighBit of each value, sign extended: what lies above them may be old overlays."""
    container = pixels.dtype.itemsize * 8
    bits = header.number("BitsStored", container)
    high = header.number("HighBit", bits - 1)
    kind = np.dtype(f"{'i' if header.signed else 'u'}{pixels.dtype.itemsize}")
    pixels = pixels.view(kind)
    if not 0 < bits < container or high >= container or header.number("BitsAllocated", 8) == 1:
        return pixels
    low, top = (-(1 << bits - 1), (1 << bits - 1) - 1) if header.signed else (0, (1 << bits) - 1)
    if high == bits - 1 and low <= pixels.min() and pixels.max() <= top:
        return pixels
    if header.signed:
        return (pixels << (container - 1 - high)) >> (container - bits)
    if high != bits - 1:
        pixels = pixels >> (high - bits + 1)
    return pixels & kind.type((1 << bits) - 1)


def _palette(header: Header, pixels: np.ndarray) -> np.ndarray:
    with reading("palette"):
        colors = apply_color_lut(pixels, header.dataset)[..., :3]
        deep = colors.dtype.itemsize == 2
        return (colors >> 8).astype(np.uint8) if deep else colors  # PS3.3 C.7.6.3.1.6: 16-bit entries span 0..65535


# --- what stored pixels mean ----------------------------------------------------------------------------------


def real_world(
    pixels: np.ndarray, header: Header, scaling: Group | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """One frame (H, W) of stored values to (values, padding).

    Values: MONOCHROME1 mirrored within the stored range, then the modality transform (PS3.3 C.11.1) of `scaling`
    (default: the file itself): float32, or the stored integers where it is the identity.
    Padding: (H, W) bool of pixels that are outside the image (PS3.3 C.7.5.1.1.2), or None.
    """
    padding = _padding(pixels, header)
    if header.photometric == "MONOCHROME1" and pixels.dtype.kind != "f":
        bits = header.number("BitsStored", pixels.dtype.itemsize * 8)
        total = -1 if header.signed else (1 << bits) - 1
        pixels = pixels.dtype.type(total) - pixels
    if scaling is None and header.get("ModalityLUTSequence"):
        with reading("modality LUT"):
            return np.asarray(apply_modality_lut(pixels, header.dataset), np.float32), padding
    source = header if scaling is None else scaling
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    a, b = 1.0 if slope in (None, "") else float(slope), 0.0 if intercept in (None, "") else float(intercept)
    if (a, b) == (1.0, 0.0):
        return pixels, padding
    values = pixels.astype(np.float32)
    if a != 1.0:
        values *= np.float32(a)
    if b != 0.0:
        values += np.float32(b)
    return values, padding


def _padding(pixels: np.ndarray, header: Header) -> np.ndarray | None:
    value = _maybe_signed(header, "PixelPaddingValue")
    if value is None or pixels.dtype.kind == "f":
        return None
    limit = _maybe_signed(header, "PixelPaddingRangeLimit")
    if limit is None or limit == value:
        padding = pixels == value
    else:
        padding = (pixels >= min(value, limit)) & (pixels <= max(value, limit))
    return padding if padding.any() else None


def _maybe_signed(header: Header, keyword: str) -> int | None:
    """A value of VR "US or SS": it has the sign of the pixels."""
    value = header.get(keyword)
    return value - (1 << 16) if value is not None and header.signed and value >= 1 << 15 else value


def cover(values: np.ndarray, padding: np.ndarray | None) -> np.ndarray:
    """Padding replaced by the least real value: it is no measurement and must not stretch the statistics."""
    if padding is None or padding.all():
        return values
    return np.where(padding, values[~padding].min(), values)


def read_image(raw: bytes) -> Image:
    """One single-frame file as an image. Raises SampleError.

    Rescale and spacing of an enhanced file stand in its functional groups (PS3.3 C.7.6.16).
    """
    header = parse(raw)
    refuse_other_objects(header)
    refuse_mosaic(header)
    if header.frames > 1:
        raise SampleError("unsupported", f"{header.frames} frames in one file; expected one image")
    frame = frames(header)[0]
    pixels = stored(header)[0]
    if pixels.ndim == 3:
        return Image(pixels, color=True, spacing_mm=frame_spacing(frame))
    rescale(frame)
    values, padding = real_world(pixels, header, frame.scaling)
    return Image(cover(values, padding), spacing_mm=frame_spacing(frame))


def frame_spacing(frame: Frame) -> tuple[float, float] | None:
    """(between rows, between columns) in mm of a frame: in the patient (PS3.3 C.7.6.16.2.1), else at the detector
    (C.8.19.6.4), else by the file.
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
        value = source.get(keyword)
        if value:
            if len(value) != 2:
                raise SampleError("corrupt", f"{keyword} of {len(value)} numbers; expected 2")
            rows, columns = (float(v) for v in value)
            if rows > 0 and columns > 0:
                return rows, columns
    return None
