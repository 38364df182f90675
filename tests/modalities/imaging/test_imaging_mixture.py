"""One SeriesInstanceUID is not one volume: what its slices have to agree in, and on which scale they are."""

from __future__ import annotations

import random

import numpy as np
import pytest
from dicom_build import CT, ENHANCED_CT, ENHANCED_MR, MR, PT, ROOT, dataset, encoded, enhanced, frame, item, placed
from pydicom.dataset import Dataset

from medray.errors import SampleError
from medray.modalities.imaging.encoding.conform import conform
from medray.modalities.imaging.formats.dicom import pixels as dicom
from medray.modalities.imaging.formats.dicom import series
from medray.modalities.imaging.spec import ImagingSpec

KINDS = {"CT": CT, "MR": MR, "PT": PT, "US": ROOT + "6.1"}


def slices(count: int = 6, modality: str = "CT", start: float = 0.0, gap: float = 2.0, **elements) -> list[Dataset]:
    return [
        placed(
            dataset(
                np.full((4, 6), k, np.int16),
                sop_class=KINDS[modality],
                modality=modality,
                instance=f"{start} {k}",
                **elements,
            ),
            (0, 0, start + gap * k),
        )
        for k in range(count)
    ]


def refusal(made: list[Dataset]) -> SampleError:
    with pytest.raises(SampleError) as caught:
        series.read_series([encoded(each) for each in made])
    return caught.value


def with_(made: list[Dataset], keyword: str, *values) -> list[Dataset]:
    """Slice k gets the k-th of the values, the last for all that follow; None: the element is left out."""
    for k, each in enumerate(made):
        value = values[min(k, len(values) - 1)]
        if value is None:
            if keyword in each:
                delattr(each, keyword)
        else:
            setattr(each, keyword, value)
    return made


def read(made: list[Dataset]) -> np.ndarray:
    return series.read_series([encoded(each) for each in made]).values[:, 0, 0]


STRICT = {
    # keyword: (modality, two values that one volume cannot have)
    "FrameOfReferenceUID": ("CT", "1.2.3.1", "1.2.3.2"),
    "StudyInstanceUID": ("CT", "1.2.3.1", "1.2.3.2"),
    "SeriesNumber": ("CT", 1, 2),
    "Modality": ("MR", "MR", "OT"),
    "SOPClassUID": ("CT", CT, ROOT + "7"),
    "EchoNumbers": ("MR", 1, 2),
    "EchoTime": ("MR", 4.6, 9.2),
    "TemporalPositionIdentifier": ("MR", 1, 2),
    "DiffusionBValue": ("MR", 0.0, 1000.0),
    "NominalPercentageOfCardiacPhase": ("CT", 40.0, 75.0),
    "CorrectedImage": ("PT", ["DECY", "ATTN"], ["DECY"]),
    "PhotometricInterpretation": ("CT", "MONOCHROME1", "MONOCHROME2"),
}


@pytest.mark.parametrize("keyword", STRICT)
@pytest.mark.parametrize("how", ["half a gap between", "behind each other", "one slice"])
def test_two_values_of_what_a_volume_has_one_of_are_refused_by_name(keyword, how):
    modality, first, second = STRICT[keyword]
    if how == "half a gap between":
        made = with_(slices(modality=modality), keyword, first) + with_(
            slices(modality=modality, start=1.0), keyword, second
        )
    elif how == "behind each other":
        made = with_(slices(modality=modality), keyword, *[first] * 3, second)
    else:
        made = with_(slices(modality=modality), keyword, first, first, first, second, first)
    random.Random(0).shuffle(made)
    error = refusal(made)
    assert error.reason == "bad_geometry"
    assert error.detail.startswith(
        f"{len(made)} slices that differ in {keyword}: not one volume; 2 volumes by {keyword}"
    )


@pytest.mark.parametrize(
    "keyword", ["FrameOfReferenceUID", "EchoNumbers", "DiffusionBValue", "TemporalPositionIdentifier"]
)
def test_one_slice_that_does_not_state_it_is_refused_too(keyword):
    modality, first, _ = STRICT[keyword]
    assert keyword in refusal(with_(slices(modality=modality), keyword, first, first, None, first)).detail
    assert len(read(with_(slices(modality=modality), keyword, None))) == len(
        read(with_(slices(modality=modality), keyword, first))
    )


IMAGE_TYPES = {
    "magnitude and phase": ("MR", ["ORIGINAL", "PRIMARY", "M", "ND"], ["ORIGINAL", "PRIMARY", "P", "ND"]),
    "magnitude and phase further behind": (
        "MR",
        ["ORIGINAL", "PRIMARY", "FFE", "M"],
        ["ORIGINAL", "PRIMARY", "FFE", "P"],
    ),
    "original and derived": ("CT", ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "AXIAL"]),
    "axial and localizer": ("CT", ["ORIGINAL", "PRIMARY", "AXIAL"], ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    "two values and three": ("CT", ["ORIGINAL", "PRIMARY"], ["ORIGINAL", "PRIMARY", "AXIAL"]),
    "water and fat": ("MR", ["DERIVED", "PRIMARY", "M", "DIXON", "WATER"], ["DERIVED", "PRIMARY", "M", "DIXON", "FAT"]),
}


@pytest.mark.parametrize("name", IMAGE_TYPES)
def test_two_image_types_are_refused(name):
    modality, first, second = IMAGE_TYPES[name]
    made = slices(modality=modality, image_type=first) + slices(modality=modality, start=1.0, image_type=second)
    error = refusal(made)
    assert error.reason == "bad_geometry" and "ImageType" in error.detail


def test_slices_at_equal_places_are_told_apart_by_name():
    made = with_(slices(modality="MR"), "EchoTime", 4.6) + with_(slices(modality="MR"), "EchoTime", 9.2)
    for k, each in enumerate(made):
        each.SOPInstanceUID = each.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 1}"
    error = refusal(made)
    assert error.reason == "unsupported" and "12 slices at 6 positions" in error.detail
    assert "they differ in EchoTime" in error.detail


def test_a_malformed_number_that_no_pixel_depends_on_is_a_value_like_another():
    made = [encoded(each) for each in with_(slices(modality="MR"), "EchoTime", 4.6)]
    at = made[0].index(b"\x18\x00\x81\x00DS") + 8
    broken = [raw[:at] + b"four" + raw[at + 4 :] for raw in made]
    assert len(series.read_series(broken).values) == 6
    with pytest.raises(SampleError, match="differ in EchoTime"):
        series.read_series([*made[:5], broken[5]])


def test_an_echo_time_that_is_rounded_is_one_echo():
    assert len(read(with_(slices(modality="MR"), "EchoTime", 4.603, 4.6, 4.601))) == 6


BLOCKS = {
    "AcquisitionNumber": ("CT", 1, 2),
    "KVP": ("CT", 120, 140),
    "ConvolutionKernel": ("CT", "B30f", "B70f"),
    "FlipAngle": ("MR", 5, 15),
    "InversionTime": ("MR", 200, 900),
    "SequenceName": ("MR", "a", "b"),
    "ContrastBolusAgent": ("CT", "agent", "another"),
}


@pytest.mark.parametrize("keyword", BLOCKS)
def test_two_scans_that_lie_between_each_other_are_refused_and_one_behind_the_other_are_a_volume(keyword):
    modality, first, second = BLOCKS[keyword]
    between = with_(slices(modality=modality), keyword, first) + with_(
        slices(modality=modality, start=1.0), keyword, second
    )
    error = refusal(between)
    assert error.reason == "bad_geometry" and f"{keyword} to and fro" in error.detail
    overlapping = with_(slices(modality=modality), keyword, first) + with_(
        slices(modality=modality, start=9.0), keyword, second
    )
    assert refusal(overlapping).reason == "bad_geometry"
    assert len(read(with_(slices(modality=modality), keyword, *[first] * 3, second))) == 6


def test_a_number_of_its_own_for_every_slice_says_nothing():
    assert len(read(with_(slices(), "AcquisitionNumber", *range(6)))) == 6


def test_a_b_value_that_only_the_vendor_states_tells_volumes_apart():
    for block, creator, element, vr, low, high in (
        (0x19, "SIEMENS MR HEADER", 0x0C, "IS", "0", "1000"),
        (0x43, "GEMS_PARM_01", 0x39, "IS", ["0", "8", "0"], ["1000", "8", "0"]),
        (0x2001, "Philips Imaging DD 001", 0x03, "FL", 0.0, 1000.0),
    ):
        made = slices(modality="MR")
        for k, each in enumerate(made):
            each.private_block(block, creator, create=True).add_new(element, vr, high if k % 2 else low)
        assert "DiffusionBValue" in refusal(made).detail


def test_ge_s_own_word_for_phase_images_tells_them_apart():
    made = slices(modality="MR")
    for k, each in enumerate(made):
        each.private_block(0x43, "GEMS_PARM_01", create=True).add_new(0x2F, "SS", k % 2)
    assert "the kind of image that GE states" in refusal(made).detail


FRAME_GROUPS = {
    "ImageType": (
        "MRImageFrameTypeSequence",
        "FrameType",
        ["ORIGINAL", "PRIMARY", "T1", "NONE"],
        ["DERIVED", "PRIMARY", "T1", "ADC"],
    ),
    "ComplexImageComponent": ("MRImageFrameTypeSequence", "ComplexImageComponent", "MAGNITUDE", "PHASE"),
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime", 4.6, 9.2),
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue", 0.0, 1000.0),
    "TemporalPositionIndex": ("FrameContentSequence", "TemporalPositionIndex", 1, 2),
    "StackID": ("FrameContentSequence", "StackID", "1", "2"),
    "NominalCardiacTriggerDelayTime": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", 40.0, 80.0),
}


@pytest.mark.parametrize("name", FRAME_GROUPS)
def test_frames_of_an_enhanced_file_are_told_apart_by_their_groups(name):
    macro, keyword, first, second = FRAME_GROUPS[name]
    pixels = np.zeros((6, 4, 6), np.int16)

    def made(values):
        own = [frame((0, 0, k), (1.0, 0.0), **{macro: item(**{keyword: value})}) for k, value in enumerate(values)]
        return enhanced(pixels, own, sop_class=ENHANCED_MR, modality="MR")

    error = refusal([made([first, second] * 3)])
    assert error.reason == "bad_geometry" and name in error.detail
    assert len(read([made([first] * 6)])) == 6


def test_two_enhanced_files_of_two_frames_of_reference_are_refused():
    pixels = np.zeros((3, 4, 6), np.int16)
    made = [
        enhanced(
            pixels,
            [frame((0, 0, start + 2 * k), (1.0, 0.0)) for k in range(3)],
            instance=start,
            FrameOfReferenceUID=place,
        )
        for start, place in ((0, "1.2.3.1"), (1, "1.2.3.2"))
    ]
    assert "FrameOfReferenceUID" in refusal(made).detail


def test_real_series_stay_the_volumes_that_they_are(shared_data):
    folder = shared_data / "imaging" / "dicom"
    for name, count in (
        ("ct_ge_tilt/GE", 28),  # 21 acquisitions one behind the other, two image types and thicknesses
        ("ct_philips_head5mm/S2010", 28),
        ("mr_philips_classic_vs_enhanced/classic_1901", 40),
        ("mr_philips_classic_vs_enhanced/enhanced_1901", 40),
    ):
        raws = [path.read_bytes() for path in sorted((folder / name).iterdir()) if path.name != "DIRFILE"]
        assert len(series.read_series(raws).values) == count


# --- rescale --------------------------------------------------------------------------------------------------


def scaled(modality: str, *values: tuple[float, float] | None, count: int = 6) -> list[Dataset]:
    made = slices(count, modality)
    for k, each in enumerate(made):
        value = values[min(k, len(values) - 1)]
        if value is not None:
            each.RescaleSlope, each.RescaleIntercept = value
    return made


@pytest.mark.parametrize("modality", ["CT", "MR", "PT", "US"])
def test_one_slice_without_the_rescale_of_the_others_is_refused(modality):
    error = refusal(scaled(modality, (2.0, -1024), None, (2.0, -1024)))
    assert error.reason == "bad_rescale" and error.detail == "1 of 6 slices without the rescale that the others have"


def test_a_slice_without_a_rescale_beside_identities_is_the_same():
    """PS3.3 C.11.1: without it stored values are output values, as with slope 1 and intercept 0."""
    assert read(scaled("MR", (1.0, 0.0), None, (1.0, 0.0))).tolist() == [0, 1, 2, 3, 4, 5]


def test_white_least_slices_have_all_a_rescale_or_none_and_one_unit():
    """MONOCHROME1 without a unit is mirrored and with one it is not: a volume of both would be half mirrored."""
    made = with_(scaled("MR", (1.0, 0.0), None, (1.0, 0.0)), "PhotometricInterpretation", "MONOCHROME1")
    assert refusal(made).detail == "1 of 6 slices without the rescale that the others have"
    made = with_(scaled("MR", (1.0, 0.0)), "PhotometricInterpretation", "MONOCHROME1")
    assert "RescaleType" in refusal(with_(made, "RescaleType", "US", None, "US")).detail


@pytest.mark.parametrize("other", [(1.0, 0.0), (2.0, -1024.0)])
def test_two_rescales_in_a_ct_are_refused(other):
    error = refusal(scaled("CT", (1.0, -1024), other, (1.0, -1024)))
    assert error.reason == "bad_rescale"
    assert ("RescaleSlope" in error.detail) == (other[0] == 2.0)
    assert ("RescaleIntercept" in error.detail) == (other[1] != -1024)


@pytest.mark.parametrize("modality", ["PT", "MR"])
def test_pet_and_mr_have_a_slope_for_each_slice(modality):
    """PS3.3 C.8.9.4 (PET Image); Philips MR."""
    assert read(scaled(modality, (1.0, 0), (2.0, 0), (3.0, 0))).tolist() == [0, 2, 6, 9, 12, 15]


def test_a_slope_of_nothing_is_refused_in_2d_and_3d_classic_and_enhanced():
    classic = encoded(dataset(np.ones((4, 6), np.int16), RescaleSlope=0, RescaleIntercept=0))
    own = encoded(enhanced(np.ones((1, 4, 6), np.int16), [frame((0, 0, 0), (0.0, 5.0))]))
    for raw in (classic, own):
        with pytest.raises(SampleError, match="slope 0") as caught:
            dicom.read_image(raw)
        assert caught.value.reason == "bad_values"
    assert refusal(scaled("PT", (1.0, 0), (0.0, 0), (1.0, 0))).reason == "bad_values"
    with pytest.raises(SampleError, match="slope 0"):
        series.read_series([own])


def test_two_units_are_refused_and_one_that_is_not_stated_says_nothing():
    assert "RescaleType" in refusal(with_(scaled("CT", (1.0, -1024)), "RescaleType", "HU", "US", "HU")).detail
    assert len(read(with_(scaled("CT", (1.0, -1024)), "RescaleType", "HU", None, "HU"))) == 6
    assert "Units" in refusal(with_(scaled("PT", (1.0, 0), (2.0, 0)), "Units", "BQML", "CNTS")).detail


def test_a_table_beside_a_slope_is_refused():
    made = scaled("CT", (1.0, -1024))
    del made[2].RescaleSlope, made[2].RescaleIntercept
    table = item(LUTDescriptor=[4, 0, 16], LUTData=[0, 1, 2, 3], ModalityLUTType="US")
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    made[2].ModalityLUTSequence = [table]
    assert "modality LUT" in refusal(made).detail


def test_frames_of_an_enhanced_ct_are_on_one_scale():
    own = [frame((0, 0, k), (1.0, -1024.0 if k else 0.0)) for k in range(3)]
    assert refusal([enhanced(np.zeros((3, 4, 6), np.int16), own, sop_class=ENHANCED_CT)]).reason == "bad_rescale"
    lost = [frame((0, 0, k), (1.0, -1024.0) if k else None) for k in range(3)]
    assert "1 of 3" in refusal([enhanced(np.zeros((3, 4, 6), np.int16), lost, sop_class=ENHANCED_CT)]).detail


def test_frames_whose_real_world_values_map_differently_are_not_stacked_as_stored():
    """PS3.3 C.7.6.16.2.11, in a file without a modality transform."""
    own = [
        frame((0, 0, k), RealWorldValueMappingSequence=item(RealWorldValueSlope=1.0 + k, RealWorldValueIntercept=0.0))
        for k in range(3)
    ]
    made = enhanced(np.zeros((3, 4, 6), np.int16), own, sop_class=ENHANCED_MR, modality="MR")
    assert refusal([made]).reason == "bad_rescale"


# --- holes ----------------------------------------------------------------------------------------------------


def at(positions, thickness=None, between=None, modality="CT", spacing=(1.0, 1.0)) -> list[bytes]:
    made = []
    for k, z in enumerate(positions):
        each = placed(
            dataset(np.full((4, 6), k, np.int16), instance=k, sop_class=KINDS[modality], modality=modality), (0, 0, z)
        )
        thick = thickness[k] if isinstance(thickness, list) else thickness
        for keyword, value in (("SliceThickness", thick), ("SpacingBetweenSlices", between)):
            if value is not None:
                setattr(each, keyword, value)
        made.append(encoded(each))
    return made


def resampled(raws: list[bytes], max_gap_mm: float | None = None, size=(40, 4, 6)) -> np.ndarray:
    spec = ImagingSpec(size=size, spacing_mm=(1.0, 1.0, 1.0), max_gap_mm=max_gap_mm)
    return conform(series.read_series(raws), spec)


def hole(raws: list[bytes], max_gap_mm: float | None = None) -> str:
    with pytest.raises(SampleError) as caught:
        resampled(raws, max_gap_mm)
    assert caught.value.reason == "bad_geometry"
    return caught.value.detail


def test_half_a_scan_that_is_missing_is_a_hole_in_mm():
    raws = at([z for z in range(40) if not 10 <= z < 30], thickness=1.0)
    assert hole(raws).startswith("a hole of 21.00 mm between two slices, more than 1.5 times the median gap")
    assert series.read_series(raws).hole_mm == 21.0
    assert resampled(raws, max_gap_mm=21.0).shape == (1, 40, 4, 6)
    assert "max_gap_mm = 20" in hole(raws, max_gap_mm=20.0)


def test_one_slice_that_is_missing_is_a_hole_and_a_gap_half_as_wide_again_is_none():
    assert hole(at([0, 1, 2, 3, 5, 6, 7])).startswith("a hole of 2.00 mm")
    assert resampled(at([0, 1, 2, 3, 4.5, 5.5, 6.5])).shape == (1, 40, 4, 6)
    assert hole(at([0, 1, 2, 3, 4.6, 5.6, 6.6])).startswith("a hole of 1.60 mm")


def test_overlapping_slices_do_not_hide_one_that_is_missing():
    assert hole(at([0, 2.5, 5.0, 7.5, 12.5, 15.0], thickness=5.0)).startswith("a hole of 5.00 mm")


def test_thick_slices_above_thin_ones_leave_no_hole_and_one_that_is_missing_among_them_does():
    thin, thick = [4.0 * k for k in range(8)], [33.0 + 7.0 * k for k in range(7)]
    thickness = [4.0] * 8 + [7.0] * 7
    assert resampled(at(thin + thick, thickness)).shape == (1, 40, 4, 6)
    assert hole(at(thin + thick[:3] + thick[4:], thickness[:-1])).startswith("a hole of 14.00 mm")
    assert hole(at(thin[:3] + thin[4:] + thick, thickness[1:])).startswith("a hole of 8.00 mm")


def test_two_slices_are_held_against_the_distance_or_thickness_that_they_state():
    assert hole(at([0, 20], thickness=1.0)).startswith("a hole of 20.00 mm")
    assert resampled(at([0, 7], thickness=5.0)).shape == (1, 40, 4, 6)
    assert resampled(at([0, 10], thickness=5.0, between=10.0)).shape == (1, 40, 4, 6)
    assert resampled(at([0, 20])).shape == (1, 40, 4, 6)  # nothing is stated that says otherwise
    assert hole(at([0, 20]), max_gap_mm=10.0).startswith("a hole of 20.00 mm")


def test_gaps_that_all_differ_are_held_against_their_median():
    assert resampled(at([0, 1.0, 2.1, 3.3, 4.6])).shape == (1, 40, 4, 6)  # gaps 1, 1.1, 1.2, 1.3
    assert hole(at([0, 1, 3, 6, 10])).startswith("a hole of 4.00 mm")  # median 2.5


def test_even_gaps_are_held_against_the_run_s_own_limit_only():
    assert resampled(at([0, 9, 18, 27])).shape == (1, 40, 4, 6)
    assert hole(at([0, 9, 18, 27]), max_gap_mm=5.0).startswith("a hole of 9.00 mm")
    with pytest.raises(SampleError, match=r"a hole of 9\.00 mm"):  # without spacing_mm, too
        conform(series.read_series(at([0, 9, 18, 27])), ImagingSpec(size=(4, 4, 6), max_gap_mm=5.0))


def test_a_tilted_scan_has_holes_along_its_normal():
    def tilted(steps):
        made = [
            placed(dataset(np.full((4, 6), k, np.int16), instance=k), (0, 2.0 * z, 3.0 * z))
            for k, z in enumerate(steps)
        ]
        return [encoded(each) for each in made]

    assert resampled(tilted([0, 1, 2, 3, 4])).shape == (1, 40, 4, 6)
    assert hole(tilted([0, 1, 2, 3, 5, 6])).startswith("a hole of 6.00 mm")


def test_a_picture_or_a_single_slice_has_no_hole():
    assert resampled(at([0], thickness=2.0), max_gap_mm=1.0).shape == (1, 40, 4, 6)
    spec = ImagingSpec(size=(4, 6), spacing_mm=(1.0, 1.0), max_gap_mm=0.5)
    assert conform(dicom.read_image(at([0])[0]), spec).shape == (1, 4, 6)


def test_the_real_tilted_scan_of_two_thicknesses_is_resampled_as_before(shared_data):
    folder = shared_data / "imaging" / "dicom" / "ct_ge_tilt" / "GE"
    raws = [path.read_bytes() for path in sorted(folder.iterdir())]
    assert series.read_series(raws).hole_mm == 0
    assert hole(raws[:20] + raws[21:]).startswith("a hole of 14.00 mm")
