"""Doses of radiotherapy as volumes in Gy (PS3.3 C.8.8.3): numbers that can be worked out by hand, and pydicom's own."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import dicom_build as build
import numpy as np
import pydicom
import pytest

from medray.archive.entries import Entries
from medray.errors import SampleError
from medray.modalities.imaging.encoding.conform import conform
from medray.modalities.imaging.formats.decode import Chosen, decode
from medray.modalities.imaging.formats.dicom.quantity import Quantity
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec

GRAY = Chosen(wanted=Quantity(dose="gray"))
EFFECTIVE = Chosen(wanted=Quantity(dose="gray_effective"))
STORED = np.arange(3 * 2 * 4, dtype=np.uint32).reshape(3, 2, 4) * 100_000
SCALING = 2.5e-5
# stored 2,300,000 · 2.5e-5 Gy = 57.5 Gy in the last pixel, 100,000 · 2.5e-5 Gy = 2.5 Gy in the second


def dose(
    offsets: Sequence[float] | None = (0, 3, 6),
    stored: np.ndarray = STORED,
    *,
    syntax: str = "explicit",
    at: Sequence[float] = (-10, -20, 50),
    turned: Sequence[float] = (1, 0, 0, 0, 1, 0),
    **elements: object,
) -> bytes:
    settings: dict[str, object] = {
        "DoseUnits": "GY",
        "DoseType": "PHYSICAL",
        "DoseSummationType": "PLAN",
        "DoseGridScaling": str(SCALING),
        "FrameIncrementPointer": 0x3004000C,
        "FrameOfReferenceUID": "1.2.3",
    } | elements
    made = build.dataset(
        stored,
        sop_class=build.DOSE,
        modality="RTDOSE",
        **{keyword: value for keyword, value in settings.items() if value is not None},
    )
    del made.ImageType
    build.placed(made, at, (2.5, 2.0), SliceThickness=None, ImageOrientationPatient=list(turned))
    if offsets is not None:
        made.GridFrameOffsetVector = list(offsets)
    return build.encoded(made, syntax)


def refused(raw: bytes, chosen: Chosen = GRAY) -> tuple[str, str]:
    with pytest.raises(SampleError) as caught:
        decode([raw], True, chosen)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "bare"])
@pytest.mark.parametrize("offsets", [(0, 3, 6), (50, 53, 56)])
def test_a_dose_in_gray_is_the_stored_number_times_its_scaling_with_offsets_of_either_form(offsets, syntax):
    """C.8.8.3.2: from the first plane on, or the z of each plane."""
    image = decode([dose(offsets, syntax=syntax)], True, GRAY)
    assert image.values.dtype == np.float32 and image.values.shape == (3, 2, 4)
    assert (image.values[2, 1, 3], image.values[0, 0, 1]) == (57.5, 2.5)
    theirs = pydicom.dcmread(io.BytesIO(dose(offsets)))
    assert np.allclose(image.values, theirs.pixel_array * float(theirs.DoseGridScaling), rtol=1e-7)
    assert image.spacing_mm == (3.0, 2.5, 2.0) and not image.irregular
    # first pixel at LPS (-10, -20, 50), that of the third plane 6 mm above
    assert np.allclose(image.affine_ras @ (0, 0, 0, 1), (10, 20, 50, 1))
    assert np.allclose(image.affine_ras @ (3, 1, 2, 1), (10 - 3 * 2.0, 20 - 2.5, 56, 1))


def test_planes_that_go_down_are_put_in_the_order_of_their_places():
    image = decode([dose((0, -3, -6))], True, GRAY)
    assert np.array_equal(image.values, decode([dose()], True, GRAY).values[::-1])
    assert np.allclose(image.affine_ras[:3, 3], (10, 20, 44))


def test_offsets_of_a_coronal_dose_go_along_its_own_normal():
    """Rows to the left, columns to the feet: (1 0 0) x (0 0 -1) = (0 1 0), so planes follow each other to the back."""
    image = decode([dose((0, 3, 6), turned=(1, 0, 0, 0, 0, -1))], True, GRAY)
    assert np.allclose(image.affine_ras @ (0, 0, 2, 1), (10, 20 - 6, 50, 1))


def test_uneven_planes_are_no_even_grid():
    assert decode([dose((0, 3, 9))], True, GRAY).irregular
    spec = ImagingSpec(size=(3, 2, 4), dose="gray")
    with pytest.raises(SampleError, match="bad_geometry"):
        conform(decode([dose((0, 3, 9))], True, GRAY), spec)


@pytest.mark.parametrize("stored", [STORED.astype(np.uint16), np.array([[[0, 1], [65535, 4]]] * 3, np.uint16)])
def test_a_dose_of_16_bits_is_read_likewise(stored):
    image = decode([dose(stored=stored)], True, GRAY)
    assert np.array_equal(image.values, (stored * np.float64(SCALING)).astype(np.float32))


@pytest.mark.parametrize(
    "elements, why",
    [
        ({"DoseUnits": "RELATIVE"}, "DoseUnits is not GY"),
        ({"DoseUnits": None}, "no DoseUnits"),
        ({"DoseType": "EFFECTIVE"}, "DoseType is not PHYSICAL"),
        ({"DoseType": "ERROR"}, "DoseType is not PHYSICAL"),
        ({"DoseType": None}, "no DoseType"),
        ({"DoseGridScaling": None}, "no DoseGridScaling"),
        ({"DoseGridScaling": "0"}, "no DoseGridScaling"),
        ({"DoseGridScaling": "-1"}, "no DoseGridScaling"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "not MONOCHROME2"),
        ({"RescaleSlope": "2", "RescaleIntercept": "0"}, "a rescale beside DoseGridScaling"),
    ],
)
def test_a_dose_that_is_not_gray_is_refused_by_the_name_of_the_field(elements, why):
    reason, detail = refused(dose(**elements))
    assert reason == "no_quantity" and why in detail


def test_a_dose_corrected_for_biological_effect_is_a_setting_of_its_own():
    raw = dose(DoseType="EFFECTIVE")
    assert decode([raw], True, EFFECTIVE).values[2, 1, 3] == 57.5
    assert refused(dose(), EFFECTIVE)[0] == "no_quantity"


@pytest.mark.parametrize(
    "settings, why",
    [
        ({"offsets": None}, "0 in GridFrameOffsetVector"),
        ({"offsets": (0, 3)}, "2 in GridFrameOffsetVector"),
        ({"offsets": (7, 10, 13)}, "begins neither with 0"),
        ({"offsets": (50, 53, 56), "turned": (-1, 0, 0, 0, -1, 0)}, "begins neither with 0"),
        ({"FrameIncrementPointer": 0x00181063}, "FrameIncrementPointer"),
        ({"offsets": (0, 0, 3)}, "several volumes"),
    ],
)
def test_planes_whose_places_are_not_certain_are_refused(settings, why):
    reason, detail = refused(dose(**settings))
    assert reason in ("bad_geometry", "unsupported") and why in detail


def test_by_default_a_dose_is_no_image_and_other_images_stay_as_they_are():
    assert refused(dose(), Chosen())[0] == "dose"
    with pytest.raises(SampleError, match="dose"):
        decode([dose()], False, Chosen())
    ct = build.encoded(build.placed(build.dataset(STORED[0].astype(np.uint16)), [0, 0, 0]))
    assert np.array_equal(decode([ct], True, GRAY).values, decode([ct], True).values)


def test_settings_that_would_give_other_numbers_are_refused():
    for settings in ({"dtype": "int16"}, {"real_world_unit": "Gy"}, {"size": (4, 4)}):
        with pytest.raises(ValueError, match="dose"):
            ImagingSpec(**({"size": (3, 2, 4), "dose": "gray"} | settings))


def test_the_doses_of_two_beams_in_one_series_are_two_volumes(tmp_path, index):
    for name, beam in (("a", 1), ("b", 2)):
        made = pydicom.dcmread(io.BytesIO(dose(stored=STORED * beam, DoseSummationType="BEAM")))
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = build.uid("beam", beam)
        made.save_as(tmp_path / name)

    def read(volumes: str) -> list[float]:
        modality = Imaging(ImagingSpec(size=(3, 2, 4), dose="gray", volumes=volumes))
        return [float(modality.image(entry).values.max()) for entry in Entries(index(modality, tmp_path))]

    assert sorted(read("each")) == [57.5, 115.0]
    with pytest.raises(SampleError, match="2 volumes by"):
        read("refuse")
    table = index(Imaging(ImagingSpec(size=(3, 2, 4), dose="gray", volumes="each")), tmp_path)
    for facts in map(json.loads, table.column("facts").to_pylist()):
        assert (facts["slices"], facts["spacing_mm"], facts["Modality"]) == (3, [3.0, 2.5, 2.0], "RTDOSE")
    apart = index(Imaging(ImagingSpec(size=(3, 2, 4))), tmp_path)
    assert set(apart.column("reason").to_pylist()) == {"dose"}
