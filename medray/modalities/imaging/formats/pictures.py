"""PNG, JPEG, TIFF and BMP with every bit that they hold. Pillow cuts 16-bit colour to 8 bits, reads signed bytes and
32-bit words with the wrong sign, and inverts some 16-bit TIFF: these are read by libpng and libtiff.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, SupportsInt

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.image import Image, decoding

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF; with + it is BigTIFF, which has 64-bit offsets."""
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
"""PhotometricInterpretation (TIFF 6.0, section 8)."""
ASSOCIATED, UNASSOCIATED = 1, 2
"""ExtraSamples: alpha that is already multiplied into the colours, or is not."""
SAMPLE_FORMATS = {1: "u", 2: "i", 3: "f"}
JPEG_IN_TIFF = 7
TIFF_TAGS = (256, 257, 258, 259, 262, 274, 277, 284, 320, 322, 323, 338, 339)
"""Width, length, bits, compression, photometric interpretation, orientation, samples, planes, colours, tile width and length, extra,
formats."""
TILE_PIXELS, TILE_TIMES = 2**22, 16
"""A tile has at most so many pixels, or so many times those of the picture: a decoder takes memory for whole tiles."""
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda values: values,
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.swapaxes(0, 1),
    6: lambda values: np.rot90(values, -1),
    7: lambda values: values[::-1, ::-1].swapaxes(0, 1),
    8: lambda values: np.rot90(values),
}
"""Orientation of EXIF and TIFF to the turn that makes the picture upright."""


def read_picture(raw: bytes) -> Image:
    """PNG, JPEG, TIFF or BMP: (H, W) grey or (H, W, 3) R G B of the file's own bits, turned as its orientation says.

    Grey of 1, 2 and 4 bits is spread over 0..255. Transparent pixels are laid over black. Raises SampleError:
    `unsupported` for CMYK, Lab and other colours that are not R G B, and for several pages.
    """
    import PIL.Image

    try:
        if raw[:4] in TIFF:
            return _tiff(raw)
        if raw[:8] == b"\x89PNG\r\n\x1a\n" and raw[24:25] == b"\x10":
            return _deep_png(raw)
        return _by_pillow(raw)
    except PIL.Image.DecompressionBombError:
        raise SampleError(
            "unsupported", "a picture of more pixels than Pillow's limit against decompression bombs"
        ) from None


def _opened(raw: bytes) -> PillowImage:
    import PIL.Image

    picture = PIL.Image.open(io.BytesIO(raw))
    pages = getattr(picture, "n_frames", 1)
    if pages > 1:
        raise SampleError("unsupported", f"{pages} pages in one file; expected one image")
    return picture


def _by_pillow(raw: bytes) -> Image:
    import PIL.ImageOps

    with decoding("picture"):
        picture = _opened(raw)
        picture.load()
        key = picture.info.get("transparency") if picture.mode in ("1", "L", "RGB") else None
        picture = PIL.ImageOps.exif_transpose(picture)
        if picture.mode == "P":
            picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
        if picture.mode == "PA":
            picture = picture.convert("RGBA")
        if picture.mode == "1":
            picture = picture.convert("L")
        if picture.mode not in ("L", "LA", "RGB", "RGBA"):
            raise SampleError("unsupported", f"a picture of mode {picture.mode}; expected grey or R G B")
        values = np.asarray(picture)
    if picture.mode in ("LA", "RGBA"):
        return _image(over_black(values[..., :-1], values[..., -1:]))
    return _image(_without(values, key))


def _image(values: np.ndarray) -> Image:
    """(H, W), (H, W, 1) or (H, W, 3)."""
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return Image(np.ascontiguousarray(values), color=values.ndim == 3)


def over_black(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(H, W, C) and (H, W, 1) unsigned of one dtype: each value times its opacity, rounded."""
    top = int(np.iinfo(values.dtype).max)
    return ((values.astype(np.uint64) * alpha + top // 2) // top).astype(values.dtype)


def _without(values: np.ndarray, key: int | bytes | tuple[int, ...] | None) -> np.ndarray:
    """Pixels of the one colour that a PNG declares transparent become black (PNG 11.3.2.1)."""
    if key is None:
        return values
    clear = values == np.asarray(key, values.dtype)
    return np.where(clear.all(-1, keepdims=True) if values.ndim == 3 else clear, values.dtype.type(0), values)


# --- PNG of 16 bits -------------------------------------------------------------------------------------------


def _deep_png(raw: bytes) -> Image:
    """A PNG of 16 bits a sample, grey or colour, with or without alpha."""
    import imagecodecs

    with decoding("picture"):
        picture = _opened(raw)
        orientation = picture.getexif().get(0x0112, 1)
        values = imagecodecs.png_decode(raw)
    values = values[..., None] if values.ndim == 2 else values
    if values.dtype != np.uint16 or values.shape[-1] not in (1, 2, 3, 4):
        raise SampleError("unsupported", f"a PNG of 16 bits read as {values.dtype} {list(values.shape)}")
    if values.shape[-1] in (2, 4):
        values = over_black(values[..., :-1], values[..., -1:])
    return _image(_turned(values, orientation))


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    turn = TURNS.get(orientation)
    return values if turn is None else turn(values)


# --- TIFF -----------------------------------------------------------------------------------------------------


def _tiff(raw: bytes) -> Image:
    """Grey and R G B of whole bytes by libtiff; palettes, single bits and JPEG of 8 bits by Pillow."""
    import imagecodecs
    import PIL.Image

    tags = _tiff_tags(raw)
    bits, photometric = set(tags.get(258, (1,))), tags[262][0]
    tile, pixels = tags.get(322, (0,))[0] * tags.get(323, (0,))[0], tags[256][0] * tags[257][0]
    if tile > max(TILE_PIXELS, TILE_TIMES * pixels):
        raise SampleError("corrupt", f"a TIFF of {pixels:,} pixels in tiles of {tile:,}")
    if _for_pillow(tags, bits, photometric):
        return _by_pillow(raw)
    if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB) or not bits <= {8, 16, 32, 64} or len(bits) != 1:
        raise SampleError("unsupported", f"a TIFF of photometric interpretation {photometric}, {sorted(bits)} bits")
    samples, extra, formats = tags.get(277, (1,))[0], tags.get(338, ()), set(tags.get(339, (1,)))
    if len(formats) != 1 or not formats <= SAMPLE_FORMATS.keys():
        raise SampleError("unsupported", f"a TIFF with samples of formats {sorted(formats)}")
    colors = 3 if photometric == RGB else 1
    if samples != colors + len(extra) or len(extra) > 1 or not {*extra} <= {ASSOCIATED, UNASSOCIATED}:
        raise SampleError("unsupported", f"a TIFF of {samples} samples a pixel that are not only colour and alpha")
    size = (tags[257][0], tags[256][0])
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > 2 * limit:
        raise SampleError("unsupported", "a picture of more pixels than Pillow's limit against decompression bombs")
    with decoding("picture"):
        values = imagecodecs.tiff_decode(raw)
    if samples == 1:
        values = values[..., None]
    elif tags.get(284) == (2,):  # each sample is a plane of its own
        values = np.moveaxis(values, 0, -1)
    kind = f"{SAMPLE_FORMATS[formats.pop()]}{bits.pop() // 8}"
    if values.shape != (*size, samples) or values.dtype != np.dtype(kind):
        raise SampleError("corrupt", f"a TIFF read as {values.dtype} {list(values.shape)}; its tags say {kind} {size}")
    return _image(_turned(_tiff_colors(values, photometric, extra), tags.get(274, (1,))[0]))


def _for_pillow(tags: dict[int, tuple[int, ...]], bits: set[int], photometric: int) -> bool:
    """Whether Pillow reads this kind right. Raises SampleError `unsupported` for a palette that it would cut to 8 bits."""
    if photometric == PALETTE:
        colors = np.asarray(tags.get(320, ()), np.int64)
        if ((colors & 0xFF != 0) & (colors & 0xFF != colors >> 8)).any():
            raise SampleError("unsupported", "a TIFF palette with entries of more than 8 bits")
        return True
    if bits == {1}:
        return photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO)
    return photometric == YCBCR and tags.get(259) == (JPEG_IN_TIFF,) and bits == {8}


def _tiff_colors(values: np.ndarray, photometric: int, extra: tuple[int, ...]) -> np.ndarray:
    """(H, W, S) samples to (H, W, 1 or 3) with large values bright and transparent pixels black."""
    unsigned = values.dtype.kind == "u"
    if (photometric == WHITE_IS_ZERO or UNASSOCIATED in extra) and not unsigned:
        raise SampleError("unsupported", "a TIFF of signed or float samples with white as zero or alpha")
    if photometric == WHITE_IS_ZERO:
        if extra:
            raise SampleError("unsupported", "a TIFF with white as zero and alpha")
        return values.dtype.type(np.iinfo(values.dtype).max) - values
    if not extra:
        return values
    if extra[0] == ASSOCIATED:
        return values[..., :-1]
    if values.dtype.itemsize > 2:
        raise SampleError("unsupported", "a TIFF with alpha of more than 16 bits")
    return over_black(values[..., :-1], values[..., -1:])


def _tiff_tags(raw: bytes) -> dict[int, tuple[int, ...]]:
    """The whole numbers of those TIFF_TAGS that the only page has. Raises SampleError."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    with decoding("picture"):
        stream = io.BytesIO(raw)
        tags = ImageFileDirectory_v2(raw[:16] if raw[:4] in TIFF[2:] else raw[:8])
        first = tags.next
        stream.seek(first)
        tags.load(stream)
        if tags.next == first:
            raise SampleError("truncated", "a TIFF that ends within its tags")
        if tags.next:
            raise SampleError("unsupported", f"{_pages(raw, tags.next)} pages in one file; expected one image")
        values = {tag: _numbers(tags[tag]) for tag in TIFF_TAGS if tag in tags}
    missing = {256, 257, 262} - {tag for tag, numbers in values.items() if numbers}
    if missing:
        raise SampleError("corrupt", f"a TIFF without its tags {sorted(missing)}")
    return values


def _pages(raw: bytes, second: int) -> int:
    """How many pages a TIFF has whose second begins at `second`."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    head = raw[:16] if raw[:4] in TIFF[2:] else raw[:8]
    stream, offsets, offset = io.BytesIO(raw), {0}, second
    while offset and offset not in offsets:
        offsets.add(offset)
        page = ImageFileDirectory_v2(head)
        stream.seek(offset)
        page.load(stream)
        offset = page.next
    return len(offsets)


def _numbers(value: SupportsInt | tuple[SupportsInt, ...]) -> tuple[int, ...]:
    return tuple(int(each) for each in value) if isinstance(value, tuple) else (int(value),)
