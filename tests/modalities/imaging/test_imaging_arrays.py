from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medray.errors import SampleError
from medray.modalities.imaging.encoding.conform import conform
from medray.modalities.imaging.formats import arrays
from medray.modalities.imaging.formats.arrays import ArrayCache
from medray.modalities.imaging.formats.decode import sniff
from medray.modalities.imaging.formats.pictures import read_picture
from medray.modalities.imaging.spec import ImagingSpec

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4)


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_pictures_come_back_exactly(kind):
    image = read_picture(encoded(Image.fromarray(GREY), kind))
    assert not image.color and np.array_equal(image.values, GREY)


def test_a_16_bit_png_keeps_its_16_bits():
    deep = GREY.astype(np.uint16) * 5000
    image = read_picture(encoded(Image.fromarray(deep)))
    assert image.values.max() == 55_000 and np.array_equal(image.values, deep)


def test_a_palette_becomes_colour_and_transparency_black():
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert read_picture(encoded(palette)).values.tolist() == [[[255, 0, 0], [0, 0, 255]]]
    clear = Image.fromarray(np.array([[[200, 100, 50, 255], [200, 100, 50, 0]]], np.uint8), "RGBA")
    assert read_picture(encoded(clear)).values.tolist() == [[[200, 100, 50], [0, 0, 0]]]
    grey = Image.fromarray(np.array([[[200, 255], [200, 0]]], np.uint8), "LA")
    assert read_picture(encoded(grey)).values.tolist() == [[200, 0]]


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise to view
    image = read_picture(encoded(Image.fromarray(GREY), "PNG", exif=exif))
    assert np.array_equal(image.values, np.rot90(GREY, -1))


def test_bilevel_pictures_are_0_and_255():
    assert read_picture(encoded(Image.fromarray(GREY > 5))).values.max() == 255


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_cut_pictures_are_truncated(kind):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    raw = encoded(Image.fromarray(noise), kind)
    with pytest.raises(SampleError) as caught:
        read_picture(raw[: len(raw) // 2])
    assert caught.value.reason == "truncated"


def test_garbage_behind_a_good_signature_is_corrupt():
    with pytest.raises(SampleError) as caught:
        read_picture(b"\x89PNG\r\n\x1a\n" + b"junk" * 20)
    assert caught.value.reason == "corrupt"


def test_a_picture_of_several_pages_is_unsupported():
    pages = encoded(Image.fromarray(GREY), "TIFF", save_all=True, append_images=[Image.fromarray(GREY)])
    with pytest.raises(SampleError, match="2 pages"):
        read_picture(pages)


def test_a_file_of_many_rows_is_loaded_once_and_again_when_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.stack([GREY, GREY]))
    loads = []
    monkeypatch.setattr(arrays, "read_bytes", lambda uri: loads.append(uri) or Path(uri).read_bytes())
    cache = ArrayCache()
    for row in range(100):
        assert np.array_equal(cache.rows(str(path))[""].images[row % 2], GREY)
    assert len(loads) == 1
    np.savez(path, images=np.stack([GREY + 1, GREY]))
    os.utime(path, ns=(1, 1))
    assert np.array_equal(cache.rows(str(path))[""].images[0], GREY + 1)
    assert len(loads) == 2


def test_the_cache_holds_only_the_last_files(tmp_path):
    cache = ArrayCache(files=2)
    for name in "abc":
        np.savez(tmp_path / f"{name}.npz", images=GREY[None])
        cache.rows(str(tmp_path / f"{name}.npz"))
    assert len(cache._cached) == 2


# --- rows of arrays -------------------------------------------------------------------------------------------


def row_of(path: Path, values: np.ndarray, volumes: bool) -> np.ndarray:
    """(C, …) of row 0 of an .npz archive, as a run reads it."""
    np.savez(path, images=values)
    spec = ImagingSpec(size=(28, 28, 28) if volumes else (28, 28), channels=3, normalise="none")
    return conform(arrays.read_row(ArrayCache().rows(str(path))[""], 0, volumes), spec)


@pytest.mark.parametrize("shape", [(2, 28, 28, 3), (2, 28, 28, 1), (2, 28, 28, 4), (2, 3, 28, 28), (2, 1, 28, 28)])
def test_pictures_with_channels_are_no_volumes(tmp_path, shape):
    with pytest.raises(SampleError) as caught:
        row_of(tmp_path / "a.npz", np.zeros(shape, np.uint8), volumes=True)
    assert caught.value.reason == "bad_shape"


@pytest.mark.parametrize("shape", [(2, 28, 28, 28), (2, 28, 28, 28, 3), (2, 20, 8, 12), (2, 4, 5, 6), (2, 3, 3, 3)])
def test_volumes_of_grey_or_colour_are_volumes(tmp_path, shape):
    assert row_of(tmp_path / "a.npz", np.zeros(shape, np.uint8), volumes=True).shape == (3, 28, 28, 28)


@pytest.mark.parametrize("shape", [(2, 28, 28, 28), (2, 28, 28, 4), (2, 3, 28, 28), (2, 28, 28, 28, 3)])
def test_volumes_and_other_channels_are_no_pictures(tmp_path, shape):
    with pytest.raises(SampleError) as caught:
        row_of(tmp_path / "a.npz", np.zeros(shape, np.uint8), volumes=False)
    assert caught.value.reason == "bad_shape"


def test_an_idx_file_of_colour_pictures_has_no_volumes(tmp_path):
    path = tmp_path / "images-idx4-ubyte"
    path.write_bytes(bytes([0, 0, 8, 4, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28, 0, 0, 0, 3]) + bytes(28 * 28 * 3))
    rows = ArrayCache().rows(str(path))[""]
    assert arrays.read_row(rows, 0, volumes=False).color
    with pytest.raises(SampleError) as caught:
        arrays.read_row(rows, 0, volumes=True)
    assert caught.value.reason == "bad_shape"


@pytest.mark.parametrize("dtype, largest, fits", [
    (np.int64, 1 << 24, True), (np.int64, (1 << 24) + 1, False), (np.uint32, (1 << 32) - 1, False), (np.uint32, 1 << 31, True),
    (np.float64, 1e39, False), (np.float64, 1e38, True), (np.uint64, (1 << 64) - 1, False), (np.int64, -(1 << 62) - 1, False),
])  # fmt: skip
def test_a_number_that_float32_cannot_hold_is_refused_and_never_rounded(tmp_path, dtype, largest, fits):
    values = np.zeros((1, 28, 28), dtype)
    values[0, 0, 0] = largest
    if fits:
        assert row_of(tmp_path / "a.npz", values, volumes=False)[0, 0, 0] == pytest.approx(largest)
        return
    with pytest.raises(SampleError) as caught:
        row_of(tmp_path / "a.npz", values, volumes=False)
    assert caught.value.reason == "bad_values"


@pytest.mark.parametrize("length", range(9))
def test_a_file_that_ends_within_an_idx_header_is_of_no_known_format(length):
    whole = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 4])
    assert sniff(whole) == "idx" and sniff(whole[: 7 + length]) == ""


def test_values_beyond_the_lengths_of_an_idx_file_are_a_contradiction():
    whole = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 4])
    assert arrays.idx_array(whole + bytes(20)).shape == (1, 4, 4)
    with pytest.raises(SampleError) as caught:
        arrays.idx_array(whole + bytes(range(20)))
    assert caught.value.reason == "corrupt"
