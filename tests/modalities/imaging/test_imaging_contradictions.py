"""DICOM files that contradict themselves are failed rows with a reason, never a guess and never the end of a run."""

from __future__ import annotations

import contextlib
import copy
import io

import imagecodecs
import numpy as np
import pydicom
import pytest
import synthetic_dicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID
from synthetic_dicom import BASELINE, EXPLICIT, HT, J2K, LOSSLESS, LS, RLE, Recipe

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom import pixels as dicom
from medray.modalities.imaging.formats.dicom import transform
from medray.modalities.imaging.formats.dicom.header import parse
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.registry import open_modality
from medray.storage.files import File

DEEP = np.random.default_rng(1).integers(0, 4096, (16, 24)).astype(np.uint16)
FRAMES = {
    BASELINE: lambda cells: imagecodecs.jpeg_encode((cells >> 4).astype(np.uint8), level=95),
    LOSSLESS: lambda cells: imagecodecs.ljpeg_encode(cells, bitspersample=12),
    LS: imagecodecs.jpegls_encode,
    J2K: lambda cells: imagecodecs.jpeg2k_encode(cells, level=0, codecformat="J2K", bitspersample=12, reversible=True),
    HT: imagecodecs.htj2k_encode,
}


def written(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def plain(**changes: object) -> bytes:
    """A file of 12 bits in 16 with some attributes changed or, where None, left out."""
    return changed(synthetic_dicom.make(Recipe(stored=12)).raw, **changes)


def changed(raw: bytes, **changes: object) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(raw))
    for keyword, value in changes.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    return written(dataset)


def compressed(syntax: str, *frames: bytes, table: bool = True, **changes: object) -> bytes:
    """Frames under a transfer syntax, by default of 16 x 24 pixels and 12 bits in 16 (baseline JPEG: 8 in 8)."""
    dataset = pydicom.dcmread(io.BytesIO(synthetic_dicom.make(Recipe(stored=12)).raw))
    bits = (8, 8, 7) if syntax == BASELINE else (16, 12, 11)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits
    dataset.Rows, dataset.Columns = DEEP.shape
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate(list(frames), has_bot=table)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return written(dataset)


def reason(raw: bytes) -> str:
    with pytest.raises(SampleError) as caught:
        header = parse(raw)
        transform.real_world(dicom.stored(header)[0], header)
    return caught.value.reason


@pytest.mark.parametrize("changes, expected", [
    ({"HighBit": 7}, "corrupt"),  # PS3.3 C.7.6.3: HighBit is BitsStored - 1; below that it cannot be
    ({"HighBit": 16}, "corrupt"),
    ({"HighBit": 15}, "corrupt"),  # the values use the lowest 12 bits
    ({"BitsStored": 17}, "corrupt"),
    ({"BitsStored": 0}, "corrupt"),
    ({"BitsStored": None}, "corrupt"),
    ({"BitsAllocated": None}, "corrupt"),
    ({"BitsAllocated": 12}, "unsupported"),
    ({"BitsAllocated": 64, "BitsStored": 64}, "unsupported"),
    ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "corrupt"),  # half of the bytes would pass for the image
    ({"PixelRepresentation": 2}, "corrupt"),
    ({"PixelRepresentation": 65535}, "corrupt"),
    ({"PixelRepresentation": None}, "corrupt"),
    ({"Rows": 0}, "corrupt"),
    ({"Columns": 0}, "corrupt"),
    ({"Rows": None}, "corrupt"),
    ({"Rows": 8}, "corrupt"),  # more pixels than rows and columns make
    ({"Rows": 4000}, "truncated"),
    ({"NumberOfFrames": 50}, "truncated"),
    ({"NumberOfFrames": -1}, "corrupt"),
    ({"SamplesPerPixel": 2}, "unsupported"),
    ({"SamplesPerPixel": 4}, "unsupported"),
    ({"SamplesPerPixel": None}, "corrupt"),
    ({"SamplesPerPixel": 3, "PlanarConfiguration": 0}, "corrupt"),  # of MONOCHROME2
    ({"PhotometricInterpretation": "RGB"}, "corrupt"),  # of one sample
    ({"PhotometricInterpretation": "SECRET"}, "corrupt"),
    ({"PhotometricInterpretation": None}, "corrupt"),
    ({"PhotometricInterpretation": "PALETTE COLOR"}, "corrupt"),  # without a palette
    ({"RescaleSlope": 0, "RescaleIntercept": -1024}, "bad_values"),
    ({"RescaleSlope": "1e-60", "RescaleIntercept": "0"}, "bad_values"),
    ({"RescaleIntercept": -1024}, "corrupt"),
    ({"RescaleSlope": 2}, "corrupt"),
    ({"RescaleSlope": "", "RescaleIntercept": "-1024"}, "corrupt"),
    ({"RescaleSlope": 2, "RescaleIntercept": ""}, "corrupt"),
])  # fmt: skip
def test_a_header_that_contradicts_itself_or_its_pixels_is_refused(changes, expected):
    assert reason(plain(**changes)) == expected


def test_a_message_does_not_repeat_a_photometric_interpretation_that_there_is_not():
    with pytest.raises(SampleError) as caught:
        dicom.stored(parse(plain(PhotometricInterpretation="SECRET")))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("changes", [
    {},
    {"RescaleSlope": "", "RescaleIntercept": ""},
    {"RescaleSlope": 1},
    {"RescaleIntercept": 0},
    {"HighBit": None},
    {"NumberOfFrames": 1},
])  # fmt: skip
def test_what_leaves_no_doubt_is_read(changes):
    raw = plain(**changes)
    header = parse(raw)
    pixels = dicom.stored(header)
    assert np.array_equal(pixels, synthetic_dicom.make(Recipe(stored=12)).stored)
    assert np.array_equal(transform.real_world(pixels[0], header)[0], pixels[0])


@pytest.mark.parametrize("photometric", ["HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420"])
def test_retired_colours_are_unsupported(photometric):
    raw = synthetic_dicom.make(Recipe(EXPLICIT, "RGB", 8, 8)).raw
    assert reason(changed(raw, PhotometricInterpretation=photometric)) == "unsupported"


def test_colour_without_its_planar_configuration_or_with_a_sign_is_corrupt():
    raw = synthetic_dicom.make(Recipe(EXPLICIT, "RGB", 8, 8)).raw
    assert reason(changed(raw, PlanarConfiguration=None)) == "corrupt"
    assert reason(changed(raw, PlanarConfiguration=2)) == "corrupt"
    assert reason(changed(raw, PixelRepresentation=1)) == "corrupt"


def test_ybr_full_422_with_all_its_chroma_is_corrupt():
    raw = synthetic_dicom.make(Recipe(EXPLICIT, "YBR_FULL", 8, 8)).raw
    assert reason(changed(raw, PhotometricInterpretation="YBR_FULL_422")) == "corrupt"


def test_bytes_behind_the_pixels_are_padding_or_a_contradiction():
    made = synthetic_dicom.make(Recipe(stored=12))
    pixels = pydicom.dcmread(io.BytesIO(made.raw)).PixelData
    assert np.array_equal(dicom.stored(parse(changed(made.raw, PixelData=pixels + bytes(100)))), made.stored)
    assert reason(changed(made.raw, PixelData=pixels + bytes(98) + b"\1\0")) == "corrupt"


@pytest.mark.parametrize("syntax", FRAMES)
@pytest.mark.parametrize("changes", [{"Rows": 24, "Columns": 16}, {"Rows": 8}, {"Columns": 12}, {"Rows": 32}])
def test_a_frame_of_another_size_than_the_header_says_is_corrupt(syntax, changes):
    raw = compressed(syntax, FRAMES[syntax](DEEP), **changes)
    assert reason(raw) == "corrupt"


@pytest.mark.parametrize("syntax", FRAMES)
def test_a_frame_of_another_number_of_components_is_corrupt(syntax):
    raw = compressed(
        syntax, FRAMES[syntax](DEEP), SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0
    )
    assert reason(raw) == "corrupt"


@pytest.mark.parametrize("syntax", [LOSSLESS, LS, J2K, HT])
def test_a_frame_with_values_that_bits_stored_cannot_hold_is_corrupt_or_cut_as_overlays_are(syntax):
    wide = (DEEP.astype(int) * 13).astype(np.uint16)
    frame = {
        LOSSLESS: lambda: imagecodecs.ljpeg_encode(wide, bitspersample=16),
        J2K: lambda: imagecodecs.jpeg2k_encode(wide, level=0, codecformat="J2K", reversible=True),
    }.get(syntax, lambda: FRAMES[syntax](wide))()
    raw = compressed(syntax, frame)
    if syntax == LOSSLESS:  # as pydicom: bits above the stored ones are not the image's, PS3.5 8.1.1
        assert np.array_equal(dicom.stored(parse(raw))[0], wide & 0xFFF)
    else:
        assert reason(raw) == "corrupt"
    assert reason(compressed(syntax, frame, BitsAllocated=8, BitsStored=8, HighBit=7)) == "corrupt"


def test_a_baseline_frame_of_8_bits_is_no_image_of_12():
    raw = compressed(BASELINE, FRAMES[BASELINE](DEEP), BitsAllocated=16, BitsStored=12, HighBit=11)
    assert reason(raw) == "corrupt"


@pytest.mark.parametrize("syntax, other", [(J2K, LS), (LS, LOSSLESS), (LOSSLESS, BASELINE), (BASELINE, J2K), (HT, LS)])
def test_a_frame_of_another_process_than_the_transfer_syntax_says_is_corrupt(syntax, other):
    assert reason(compressed(syntax, FRAMES[other](DEEP))) == "corrupt"


SIGNED = np.random.default_rng(5).integers(-2048, 2048, (16, 24)).astype(np.int16)
CELLS = SIGNED.view(np.uint16) & np.uint16(0xFFF)


def test_the_sign_is_the_highest_bit_of_a_jpeg_2000_frame_as_in_pydicom():
    raw = compressed(J2K, FRAMES[J2K](CELLS), BitsStored=16, HighBit=15, PixelRepresentation=1)
    assert np.array_equal(dicom.stored(parse(raw))[0], SIGNED)
    assert np.array_equal(pydicom.dcmread(io.BytesIO(raw)).pixel_array, SIGNED)


def test_a_signed_jpeg_2000_frame_under_an_unsigned_header_is_read_while_nothing_is_below_zero():
    """pydicom gives 2747 for 699 with Pillow's decoder and 699 with OpenJPEG's, so neither is the right reading."""

    def file(values: np.ndarray, sign: int) -> bytes:
        frame = imagecodecs.jpeg2k_encode(values, level=0, codecformat="J2K", bitspersample=12, reversible=True)
        return compressed(J2K, frame, PixelRepresentation=sign)

    assert np.array_equal(dicom.stored(parse(file(SIGNED, 1)))[0], SIGNED)
    assert reason(file(SIGNED, 0)) == "corrupt"
    assert np.array_equal(dicom.stored(parse(file(np.abs(SIGNED >> 1), 0)))[0], np.abs(SIGNED >> 1))


def test_a_signed_lossless_jpeg_of_fewer_bits_is_read_where_no_sign_is_in_doubt():
    both = {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1}
    assert reason(compressed(LOSSLESS, FRAMES[LOSSLESS](CELLS), **both)) == "corrupt"
    low = CELLS & np.uint16(0x7FF)
    assert np.array_equal(dicom.stored(parse(compressed(LOSSLESS, FRAMES[LOSSLESS](low), **both)))[0], low)


@pytest.mark.parametrize("syntax", FRAMES)
def test_a_frame_cut_short_is_truncated_or_corrupt_and_never_filled_up(syntax):
    frame = FRAMES[syntax](DEEP)
    for share in (0.05, 0.3, 0.6, 0.9):
        assert reason(compressed(syntax, frame[: int(len(frame) * share)])) in ("truncated", "corrupt"), share


def test_run_lengths_of_another_size_are_refused():
    recipe = Recipe(RLE, stored=12)
    raw = synthetic_dicom.make(recipe).raw
    dataset = pydicom.dcmread(io.BytesIO(raw))
    for changes, expected in (
        ({"Rows": dataset.Rows // 2}, "corrupt"),
        ({"Rows": dataset.Rows * 2}, "truncated"),
        ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "corrupt"),
        ({"BitsAllocated": 32}, "corrupt"),
    ):
        assert reason(changed(raw, **changes)) == expected, changes


@pytest.mark.parametrize("table", [True, False])
def test_another_number_of_frames_than_the_header_says_is_corrupt(table):
    frame = FRAMES[LS](DEEP)
    assert reason(compressed(LS, frame, frame, table=table)) == "corrupt"
    assert reason(compressed(LS, frame, frame, table=table, NumberOfFrames=3)) == "corrupt"
    assert reason(compressed(LS, frame, table=table, NumberOfFrames=2)) == "corrupt"
    assert len(dicom.stored(parse(compressed(LS, frame, frame, table=table, NumberOfFrames=2)))) == 2


def test_a_table_of_offsets_that_points_beside_the_fragments_is_corrupt():
    dataset = pydicom.dcmread(io.BytesIO(synthetic_dicom.make(Recipe(LS, frames=2, pieces=2)).raw))
    good = written(dataset)
    assert len(dicom.stored(parse(good))) == 2
    at = parse(good).start + 12  # the second offset, behind the item's tag and length
    hurt = good[:at] + (int.from_bytes(good[at : at + 4], "little") + 2).to_bytes(4, "little") + good[at + 4 :]
    assert reason(hurt) == "corrupt"


def test_pixels_that_are_not_stored_as_their_transfer_syntax_has_it_are_corrupt():
    dataset = pydicom.dcmread(io.BytesIO(synthetic_dicom.make(Recipe(stored=12)).raw))
    raw = written(dataset)
    assert reason(raw.replace(EXPLICIT.encode() + b"\0", J2K.encode()[:19] + b"\0")) in ("corrupt", "unsupported")


@pytest.mark.parametrize("last", ["100", "110", "111", "112"])
def test_mpeg_and_jpeg_xl_are_unsupported(last):
    film = compressed("1.2.840.10008.1.2.4.100", b"\0" * 40)
    assert reason(film.replace(b"10008.1.2.4.100", b"10008.1.2.4." + last.encode())) == "unsupported"


def test_jpeg_2000_whose_component_transform_contradicts_the_header_is_corrupt():
    colors = np.random.default_rng(2).integers(0, 256, (16, 24, 3)).astype(np.uint8)

    def file(mct: bool, photometric: str) -> bytes:
        frame = imagecodecs.jpeg2k_encode(colors, level=0, codecformat="J2K", reversible=True, mct=mct)
        return compressed(
            J2K, frame, SamplesPerPixel=3, PhotometricInterpretation=photometric, PlanarConfiguration=0,
            BitsAllocated=8, BitsStored=8, HighBit=7,
        )  # fmt: skip

    assert np.array_equal(dicom.stored(parse(file(True, "YBR_RCT")))[0], colors)
    assert np.array_equal(dicom.stored(parse(file(True, "RGB")))[0], colors)  # the frame says what it is
    assert np.array_equal(dicom.stored(parse(file(False, "RGB")))[0], colors)
    assert reason(file(False, "YBR_RCT")) == "corrupt"
    assert reason(file(True, "YBR_FULL")) == "corrupt"


@pytest.mark.parametrize("keyword", ["Rows", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
                                     "SamplesPerPixel", "NumberOfFrames", "PlanarConfiguration"])  # fmt: skip
def test_no_value_of_the_pixel_description_raises_anything_but_a_sample_error(keyword, tmp_path):
    """As a folder is scanned: every file is a part, with a reason or without."""
    for recipe in (
        Recipe(stored=12),
        Recipe(J2K, stored=12),
        Recipe(RLE, "RGB", 8, 8),
        Recipe(EXPLICIT, "PALETTE COLOR", 8, 8),
    ):
        dataset = pydicom.dcmread(io.BytesIO(synthetic_dicom.make(recipe).raw))
        for value in (0, 1, 2, 3, 7, 12, 13, 31, 33, 255, 65535):
            hurt = copy.deepcopy(dataset)
            setattr(hurt, keyword, value)
            path = tmp_path / "a.dcm"
            path.write_bytes(written(hurt))
            modality = open_modality(ImagingSpec(size=(8, 8)))
            parts = list(modality.scan(File(str(path), path.stat().st_size, 0), str(tmp_path)))
            assert len(parts) == 1
            with contextlib.suppress(SampleError):
                assert dicom.read_image(path.read_bytes()).values.size


@pytest.mark.parametrize("seed", range(8))
def test_damaged_files_are_read_or_refused_with_a_reason_and_raise_nothing_else(seed):
    rng = np.random.default_rng(seed)
    recipes = list(synthetic_dicom.recipes())[seed::40]
    for raw in (synthetic_dicom.make(recipe).raw for recipe in recipes):
        start = parse(raw).start
        for first, last in ((132, start), (start - 100, start + 90), (start, len(raw))):
            hurt = bytearray(raw)
            for at in rng.integers(max(132, first), min(last, len(raw)), 3):
                hurt[at] = rng.integers(256)
            with contextlib.suppress(SampleError):
                assert dicom.read_image(bytes(hurt)).values.size
