"""PNG, JPEG and TIFF keep every bit that they hold, on one scale, or are refused."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from medray.errors import SampleError
from medray.modalities.imaging.formats.decode import sniff
from medray.modalities.imaging.formats.pictures import read_picture

rng = np.random.default_rng(2)
DEEP = rng.integers(0, 65536, (9, 8, 4)).astype(np.uint16)


def png(values: np.ndarray, color_type: int, *, depth: int = 16, chunks: bytes = b"") -> bytes:
    """(H, W, C) as a PNG without filters: 0 grey, 2 R G B, 3 palette, 4 grey and alpha, 6 R G B and alpha."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def tiff(values: np.ndarray, photometric: int, *, extra: tuple[int, ...] = (), planar: int = 1, order: str = "<",
         orientation: int = 1, bits: int | None = None) -> bytes:  # fmt: skip
    """(H, W, C) as an uncompressed TIFF of one strip (or one a plane)."""
    height, width, samples = values.shape
    planes = [values] if planar == 1 else [values[..., k] for k in range(samples)]
    strips = [np.ascontiguousarray(plane, plane.dtype.newbyteorder(order)).tobytes() for plane in planes]
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags: list[tuple[int, int, tuple[int, ...]]] = [
        (256, 4, (width,)), (257, 4, (height,)), (258, 3, (bits or values.dtype.itemsize * 8,) * samples), (259, 3, (1,)),
        (262, 3, (photometric,)), (273, 4, (0,) * len(strips)), (274, 3, (orientation,)), (277, 3, (samples,)),
        (278, 4, (height,)), (279, 4, tuple(map(len, strips))), (284, 3, (planar,)), (338, 3, extra),
        (339, 3, (form,) * samples),
    ]  # fmt: skip
    tags = [tag for tag in tags if tag[2]]
    after = 8 + 2 + 12 * len(tags) + 4
    where, at = {}, after
    for number, kind, numbers in tags:
        if len(numbers) * (2 if kind == 3 else 4) > 4:
            where[number] = at
            at += len(numbers) * (2 if kind == 3 else 4)
    starts = [at + sum(map(len, strips[:k])) for k in range(len(strips))]
    head, tail = struct.pack(order + "2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags)), b""
    for number, kind, numbers in tags:
        numbers = tuple(starts) if number == 273 else numbers
        packed = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        place = struct.pack(order + "I", where[number]) if number in where else packed.ljust(4, b"\0")
        head += struct.pack(order + "HHI", number, kind, len(numbers)) + place
        tail += packed if number in where else b""
    return head + b"\0\0\0\0" + tail + b"".join(strips)


def saved(image: Image.Image, kind: str = "TIFF", **settings) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def values(raw: bytes) -> np.ndarray:
    return read_picture(raw).values


def reason(raw: bytes) -> str:
    with pytest.raises(SampleError) as caught:
        read_picture(raw)
    return caught.value.reason


def test_png_of_16_bits_is_of_16_bits_in_grey_and_in_colour():
    opaque = np.concatenate([DEEP[..., :1], np.full_like(DEEP[..., :1], 65535)], -1)
    assert np.array_equal(values(png(DEEP[..., :1], 0)), DEEP[..., 0])
    assert np.array_equal(values(png(opaque, 4)), DEEP[..., 0])
    color = read_picture(png(DEEP[..., :3], 2))
    assert color.color and np.array_equal(color.values, DEEP[..., :3])
    clear = np.concatenate([DEEP[..., :3], np.full_like(DEEP[..., :1], 65535)], -1)
    assert np.array_equal(values(png(clear, 6)), DEEP[..., :3])


def test_alpha_of_16_bits_lies_over_black():
    half = np.array([[[60000, 30000, 0, 32768], [60000, 1, 2, 0]]], np.uint16)
    assert values(png(half, 6)).tolist() == [[[30000, 15000, 0], [0, 0, 0]]]
    assert values(png(half[..., [0, 3]], 4)).tolist() == [[30000, 0]]


def test_grey_with_alpha_of_8_bits_stays_grey():
    image = read_picture(png(np.array([[[200, 255], [200, 128], [200, 0]]], np.uint8), 4, depth=8))
    assert not image.color and image.values.tolist() == [[200, 100, 0]]


@pytest.mark.parametrize("depth, packed, found", [
    (1, b"\x80", [255, 0]), (2, b"\x60", [85, 170]), (4, b"\x1f", [17, 255]),
])  # fmt: skip
def test_grey_png_of_few_bits_is_spread_over_0_to_255(depth, packed, found):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    assert values(b"\x89PNG\r\n\x1a\n" + head + body).tolist() == [found]


@pytest.mark.parametrize("depth, color_type, key, shape", [
    (8, 0, b"\0\x07", 1), (8, 2, b"\0\x07\0\x07\0\x07", 3), (16, 2, b"\0\x07\0\x07\0\x07", 3), (16, 0, b"\0\x07", 1),
])  # fmt: skip
def test_the_colour_that_a_png_declares_transparent_is_black(depth, color_type, key, shape):
    pixels = np.array([[[7] * shape, [8] * shape]], np.uint16)
    found = values(png(pixels, color_type, depth=depth, chunks=chunk(b"tRNS", key)))
    assert found.reshape(2, -1)[:, 0].tolist() == [0, 8]


def test_png_of_16_bits_is_turned_as_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = png(DEEP[..., :3], 2, chunks=chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    assert np.array_equal(values(raw), np.rot90(DEEP[..., :3], -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_png_of_8_and_of_16_bits_are_turned_alike(orientation):
    """Pillow turns the one, medray the other."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    piece = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    small = (DEEP[..., :3] >> 8).astype(np.uint8)
    assert np.array_equal(
        values(png(small.astype(np.uint16), 2, chunks=piece)), values(png(small, 2, depth=8, chunks=piece))
    )
    assert np.array_equal(values(tiff(small, 2, orientation=orientation)), values(png(small, 2, depth=8, chunks=piece)))


def test_a_png_of_16_bits_cut_short_is_refused():
    raw = png(DEEP[..., :3], 2)
    assert reason(raw[: len(raw) // 2]) in ("truncated", "corrupt")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8"])
def test_grey_tiff_is_read_in_its_own_type(dtype, order):
    kind = np.dtype(dtype)
    limits = np.iinfo(kind) if kind.kind in "iu" else None
    low, high = (limits.min, limits.max) if limits else (-1e6, 1e6)
    pixels = rng.uniform(low, high, (9, 8, 1)).astype(kind)
    found = values(tiff(pixels, 1, order=order))
    assert found.dtype == kind and np.array_equal(found, pixels[..., 0])


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
def test_white_is_zero_tiff_is_bright_where_it_is_white(dtype):
    pixels = np.array([[[0], [1], [np.iinfo(dtype).max]]], dtype)
    assert values(tiff(pixels, 0)).tolist() == [[np.iinfo(dtype).max, np.iinfo(dtype).max - 1, 0]]


def test_white_is_zero_of_one_bit_is_bright_where_it_is_white():
    image = Image.fromarray(np.array([[True, False] * 8] * 4))
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = 0
    assert values(saved(image, tiffinfo=info)).tolist() == values(saved(image)).tolist() == [[255, 0] * 8] * 4


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_colour_tiff_keeps_its_bits_by_pixel_and_by_plane(dtype, planar):
    pixels = (DEEP[..., :3] >> (8 if dtype == "u1" else 0)).astype(dtype)
    found = read_picture(tiff(pixels, 2, planar=planar))
    assert found.color and np.array_equal(found.values, pixels)


def test_alpha_of_a_tiff_lies_over_black_unless_it_is_multiplied_in_already():
    half = np.array([[[60000, 30000, 0, 32768]]], np.uint16)
    assert values(tiff(half, 2, extra=(2,))).tolist() == [[[30000, 15000, 0]]]
    assert values(tiff(half, 2, extra=(1,))).tolist() == [[[60000, 30000, 0]]]
    assert values(tiff(half[..., [0, 3]], 1, extra=(2,))).tolist() == [[30000]]
    assert reason(tiff(half, 2, extra=(0,))) == "unsupported"


@pytest.mark.parametrize("raw", [
    saved(Image.new("CMYK", (4, 4))),
    saved(Image.new("CMYK", (8, 8)), "JPEG"),
    saved(Image.new("LAB", (4, 4))),
    tiff(DEEP[..., :3], 2, extra=(2,), bits=12),
    tiff(DEEP[..., :1].astype(np.int16), 0),
    tiff(DEEP[..., :1], 32803),
    tiff(DEEP[..., :3].astype(np.uint8), 6),
])  # fmt: skip
def test_colours_that_are_no_r_g_b_are_unsupported(raw):
    assert reason(raw) == "unsupported"


def test_a_compressed_tiff_and_one_in_tiles_are_read():
    for settings in ({"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "packbits"}):
        raw = saved(Image.fromarray(DEEP[..., 0]), **settings)
        assert np.array_equal(values(raw), DEEP[..., 0])
    raw = imagecodecs.tiff_encode(DEEP[..., :3]) if hasattr(imagecodecs, "tiff_encode") else tiff(DEEP[..., :3], 2)
    assert np.array_equal(values(raw), DEEP[..., :3])


def test_a_big_tiff_is_read():
    raw = saved(Image.fromarray(DEEP[..., 0]), big_tiff=True)
    assert raw[:4] == b"II+\0" and sniff(raw) == "picture" and np.array_equal(values(raw), DEEP[..., 0])


def test_a_jpeg_in_a_tiff_and_a_palette_are_read_as_pillow_has_them():
    smooth = np.stack([np.tile(np.linspace(0, 250, 32), (32, 1)).astype(np.uint8)] * 3, -1)
    raw = saved(Image.fromarray(smooth), compression="jpeg", quality=95)
    assert np.array_equal(values(raw), np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")))
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert values(saved(palette)).tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_a_tiff_cut_short_is_refused():
    raw = tiff(DEEP[..., :3], 2)
    assert reason(raw[:-40]) in ("corrupt", "truncated")
    assert reason(raw[:60]) in ("corrupt", "truncated")


@pytest.mark.parametrize("seed", range(4))
def test_damaged_pictures_are_read_or_refused_with_a_reason_and_raise_nothing_else(seed):
    local = np.random.default_rng(seed)
    whole = [
        png(DEEP[..., :3], 2),
        tiff(DEEP, 2, extra=(2,)),
        tiff(DEEP[..., :1], 0, order=">"),
        saved(Image.fromarray(DEEP[..., 0])),
    ]
    for raw in whole * 20:
        hurt = bytearray(raw)
        for at in local.integers(8, min(len(raw), 300), 3):
            hurt[at] = local.integers(256)
        with contextlib.suppress(SampleError):
            assert read_picture(bytes(hurt)).values.ndim in (2, 3)
