"""What stored values mean: the modality transform, and which images are mirrored (PS3.3 C.11.1, C.7.6.3.1.2)."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut

from medray.errors import SampleError
from medray.modalities.imaging.encoding.conform import conform
from medray.modalities.imaging.formats.dicom import pixels as dicom
from medray.modalities.imaging.spec import ImagingSpec

STORED = np.array([[0, 1], [3483, 4095]], np.uint16)


def values(dicom_bytes, pixels=STORED, *, modality="CT", photometric="MONOCHROME1", **changes) -> list[list[float]]:
    def change(dataset: Dataset) -> None:
        dataset.Modality = modality
        for keyword, value in changes.items():
            if keyword == "PixelPaddingValue":  # of the VR that the pixels have
                dataset.add_new(keyword, "US", value)
            else:
                setattr(dataset, keyword, value)

    raw = dicom_bytes(pixels, photometric=photometric, bits_stored=12, change=change)
    return dicom.read_image(raw).values.tolist()


def test_hounsfield_units_of_a_monochrome1_ct_are_those_that_pydicom_gives(dicom_bytes):
    found = values(dicom_bytes, RescaleSlope=1, RescaleIntercept=-1024)
    assert found == [[-1024, -1023], [2459, 3071]]
    raw = dicom_bytes(STORED, photometric="MONOCHROME1", bits_stored=12, modality="CT", rescale=(1, -1024))
    dataset = pydicom.dcmread(io.BytesIO(raw))
    assert np.array_equal(dicom.read_image(raw).values, apply_modality_lut(dataset.pixel_array, dataset))


@pytest.mark.parametrize("modality, rescale, mirrored", [
    ("CT", {}, False),
    ("CT", {"RescaleSlope": 1, "RescaleIntercept": 0}, False),
    ("CT", {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "US"}, False),
    ("PT", {}, False),
    ("NM", {}, False),
    ("MR", {"RescaleSlope": 1, "RescaleIntercept": 0}, True),
    ("MR", {}, True),
    ("US", {}, True),
    ("OT", {}, True),
    ("CR", {}, True),
    ("CR", {"RescaleSlope": 1, "RescaleIntercept": 0}, True),
    ("DX", {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "US"}, True),
    ("MG", {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "us"}, True),
    ("CR", {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "OD"}, False),
    ("OT", {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "HU"}, False),
])  # fmt: skip
def test_only_a_picture_without_a_unit_is_mirrored(dicom_bytes, modality, rescale, mirrored):
    found = values(dicom_bytes, modality=modality, **rescale)
    assert found == ([[4095, 4094], [612, 0]] if mirrored else STORED.tolist())
    assert values(dicom_bytes, modality=modality, photometric="MONOCHROME2", **rescale) == STORED.tolist()


@pytest.mark.parametrize("modality, found", [("MR", [[3, 5], [6969, 8193]]), ("CR", [[8193, 8191], [1227, 3]])])
def test_a_rescale_of_no_stated_type_is_a_quantity_except_of_a_radiograph(dicom_bytes, modality, found):
    assert values(dicom_bytes, modality=modality, RescaleSlope=2, RescaleIntercept=3) == found


def test_a_radiograph_is_mirrored_after_its_rescale(dicom_bytes):
    found = values(dicom_bytes, modality="CR", RescaleSlope=0.5, RescaleIntercept=10)
    assert found == [[2057.5, 2057.0], [316.0, 10.0]]  # 10 … 2057.5 in the file, read backwards


def test_both_photometric_interpretations_of_one_radiograph_give_one_image(dicom_bytes):
    dense_white = values(dicom_bytes, 4095 - STORED, modality="DX", photometric="MONOCHROME2")
    assert values(dicom_bytes, modality="DX") == dense_white


def test_padding_of_a_monochrome1_radiograph_takes_the_darkest_real_value(dicom_bytes):
    """Padding is told by the stored value; the mirror does not move it (PS3.3 C.7.5.1.1.2)."""
    found = values(dicom_bytes, modality="DX", PixelPaddingValue=0)
    assert found == [[0, 4094], [612, 0]]
    assert values(dicom_bytes, modality="CT", PixelPaddingValue=4095) == [[0, 1], [3483, 0]]


def lut(entries: list[int], first: int, bits: int, kind: str) -> dict[str, list[Dataset]]:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.ModalityLUTType = kind
    item.add_new("LUTData", "US", entries)
    return {"ModalityLUTSequence": [item]}


def test_a_modality_lut_maps_from_its_first_value_and_holds_its_ends(dicom_bytes):
    table = lut([7, 70, 700], 1, 16, "HU")
    pixels = np.array([[0, 1], [2, 9]], np.uint16)
    assert values(dicom_bytes, pixels, modality="OT", **table) == [[7, 7], [70, 700]]


def test_a_modality_lut_without_a_unit_is_mirrored_within_what_its_entries_can_be(dicom_bytes):
    pixels = np.array([[0, 1], [2, 9]], np.uint16)
    assert values(dicom_bytes, pixels, modality="CR", **lut([7, 70, 700], 1, 10, "US")) == [[1016, 1016], [953, 323]]


@pytest.mark.parametrize("changes", [
    lut([7, 70, 700], 1, 8, "HU"),  # 700 is no number of 8 bits
    lut([7, 70, 700], 1, 16, "HU") | {"RescaleSlope": 2, "RescaleIntercept": 0},
    {"ModalityLUTSequence": lut([1], 0, 8, "HU")["ModalityLUTSequence"] * 2},
])  # fmt: skip
def test_a_modality_lut_that_contradicts_itself_or_a_rescale_is_corrupt(dicom_bytes, changes):
    with pytest.raises(SampleError) as caught:
        values(dicom_bytes, **changes)
    assert caught.value.reason == "corrupt"


def test_an_empty_modality_lut_is_none(dicom_bytes):
    assert values(dicom_bytes, ModalityLUTSequence=[], RescaleSlope=2, RescaleIntercept=1)[0] == [1, 3]


def test_a_rescale_is_rounded_once_as_by_pydicom(dicom_bytes):
    pixels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    raw = dicom_bytes(pixels, modality="MR", rescale=(0.123456789, -4000.5))
    dataset = pydicom.dcmread(io.BytesIO(raw))
    wanted = apply_modality_lut(dataset.pixel_array, dataset).astype(np.float32)
    assert np.array_equal(dicom.read_image(raw).values, wanted)


def test_a_palette_of_8_bit_entries_is_looked_up_beyond_its_256th(dicom_bytes):
    """pydicom 3.0.2 gives entry 44 for 300, since it holds indices in the dtype of the entries."""

    def change(dataset: Dataset) -> None:
        dataset.PhotometricInterpretation = "PALETTE COLOR"
        for name in ("Red", "Green", "Blue"):
            dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [400, 0, 8])
            table = (np.arange(400) // 2).astype(np.uint8).tobytes()
            dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", table)

    raw = dicom_bytes(np.array([[0, 300], [399, 4000]], np.uint16), bits_stored=12, change=change)
    assert dicom.read_image(raw).values[..., 0].tolist() == [[0, 150], [199, 199]]


def test_a_segmented_palette_is_expanded_as_by_pydicom(dicom_bytes):
    """Discrete 0, then linear over 3 entries to 300 (PS3.3 C.7.9.2)."""

    def change(dataset: Dataset) -> None:
        dataset.PhotometricInterpretation = "PALETTE COLOR"
        for name in ("Red", "Green", "Blue"):
            dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [4, 0, 16])
            segments = np.array([0, 1, 0, 1, 3, 300], "<u2").tobytes()
            dataset.add_new(f"Segmented{name}PaletteColorLookupTableData", "OW", segments)

    raw = dicom_bytes(np.array([[0, 1], [2, 3]], np.uint8), change=change)
    assert dicom.read_image(raw).values[..., 0].tolist() == [[0, 100], [200, 300]]


@pytest.mark.parametrize("padding", [-9.5, float("nan")])
def test_padding_of_float_pixels_takes_the_least_real_value(dicom_bytes, padding):
    def change(dataset: Dataset) -> None:
        del dataset.PixelData
        dataset.BitsAllocated = 32
        dataset.FloatPixelPaddingValue = padding
        dataset.FloatPixelData = np.array([[0.5, padding]], "<f4").tobytes()

    assert dicom.read_image(dicom_bytes(np.zeros((1, 2), np.uint8), change=change)).values.tolist() == [[0.5, 0.5]]


def test_a_transfer_syntax_that_is_not_of_dicom_is_unsupported(dicom_bytes):
    raw = dicom_bytes(STORED, bits_stored=12, modality="CT").replace(
        b"1.2.840.10008.1.2.1\0", b"1.2.840.113619.5.2\0\0"
    )
    with pytest.raises(SampleError) as caught:
        dicom.read_image(raw)
    assert caught.value.reason == "unsupported"


def test_a_rescale_beyond_the_range_of_float32_is_refused(dicom_bytes):
    for slope in ("1e39", "1e308"):
        raw = dicom_bytes(STORED, bits_stored=12, modality="CT", rescale=(float(slope), 0))
        with pytest.raises(SampleError) as caught:
            conform(dicom.read_image(raw), ImagingSpec(size=(2, 2), normalise="none"))
        assert caught.value.reason == "bad_values"
