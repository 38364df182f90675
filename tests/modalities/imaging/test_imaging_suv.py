"""SUV of PET and values by real world value maps: numbers that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import dicom_build as build
import numpy as np
import pytest
from pydicom.dataset import Dataset

from medray.errors import REASONS, SampleError
from medray.modalities.imaging.formats.decode import Chosen, decode
from medray.modalities.imaging.formats.dicom.quantity import Quantity
from medray.modalities.imaging.formats.dicom.times import day, moment, time_of_day
from medray.modalities.imaging.spec import ImagingSpec

SUV = Chosen(wanted=Quantity(pet="suv_bw"))
HALF_LIFE = 6586.2
"""Seconds, of 18F."""
STORED = np.array([[0, 1000], [2000, 5000]], np.uint16)
CORRECTED = ["DECY", "ATTN", "SCAT", "DTIM", "RAN", "NORM"]
# 370 MBq injected at 10:00:00 and one half-life before the scan (1:49:46.2): 185 MBq are left. 70 kg: 70,000 g.
# Stored 5000 with slope 0.5 is 2500 Bq/ml, so SUV = 2500 · 70000 / 185e6.
LEFT = 2500 * 70_000 / 185e6


def pet(
    k: int = 0,
    *,
    slope: str = "0.5",
    injected: Mapping[str, object] | None = None,
    change: Callable[[Dataset], object] | None = None,
    sop_class: str = build.PT,
    **elements,
) -> bytes:
    """A slice of a PET series; `injected` are elements of its radiopharmaceutical, None leaves one out."""
    item = {
        "RadiopharmaceuticalStartTime": "100000.000000",
        "RadionuclideTotalDose": "370000000",
        "RadionuclideHalfLife": str(HALF_LIFE),
    } | (injected or {})
    settings: dict[str, object] = {
        "SeriesDate": "20200102",
        "SeriesTime": "114946.200000",
        "AcquisitionDate": "20200102",
        "AcquisitionTime": "114946.200000",
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": CORRECTED,
        "PatientWeight": "70",
        "ActualFrameDuration": "120000",
        "RescaleSlope": slope,
        "RescaleIntercept": "0",
    } | elements
    settings = {keyword: value for keyword, value in settings.items() if value is not None}
    made = build.dataset(STORED, instance=k, modality="PT", sop_class=sop_class, **settings)
    build.placed(made, [0, 0, 4.0 * k], (4, 4))
    made.SliceThickness = 4.0
    made.RadiopharmaceuticalInformationSequence = [
        build.item(**{keyword: value for keyword, value in item.items() if value is not None})
    ]
    if change is not None:
        change(made)
    return build.encoded(made)


def suv(*files: bytes) -> list[float]:
    """Of the pixel with 5000 in each slice."""
    return decode(list(files), True, SUV).values[:, 1, 1].tolist()


def refused(*files: bytes) -> str:
    with pytest.raises(SampleError) as caught:
        decode(list(files), True, SUV)
    assert caught.value.reason == "no_quantity"
    assert not any(secret in caught.value.detail for secret in ("70", "370", "2020", "100000"))
    return caught.value.detail


def test_one_half_life_after_370_mbq_70_kg_have_the_suv_of_185_mbq():
    assert suv(pet()) == pytest.approx([LEFT], rel=1e-6)
    assert pytest.approx(0.945945946) == LEFT
    image = decode([pet()], False, SUV)  # in two dimensions
    assert image.values[1, 1] == pytest.approx(LEFT, rel=1e-6) and image.values.dtype == np.float32


def test_without_the_setting_values_stay_as_rescaled():
    assert decode([pet()], True).values[0, 1, 1] == 2500
    assert ImagingSpec(size=(4, 4)).pet == "stored"
    with pytest.raises(ValueError, match="give one of them"):
        ImagingSpec(size=(4, 4), pet="suv_bw", real_world_unit="Bq/ml")


def test_other_modalities_stay_as_they_are():
    ct = build.encoded(build.placed(build.dataset(STORED, RescaleSlope="1", RescaleIntercept="-1024"), [0, 0, 0]))
    assert np.array_equal(decode([ct], True, SUV).values, decode([ct], True).values)


def test_each_slice_has_its_own_slope():
    assert suv(pet(0), pet(1, slope="0.25"), pet(2, slope="1")) == pytest.approx([LEFT, LEFT / 2, LEFT * 2], rel=1e-6)


@pytest.mark.parametrize("syntax", ["implicit", "bare"])
def test_an_encoding_of_the_file_changes_nothing(syntax):
    import io

    import pydicom

    made = pydicom.dcmread(io.BytesIO(pet()))
    assert suv(build.encoded(made, syntax)) == pytest.approx([LEFT], rel=1e-6)


# --- the moment of the activity -------------------------------------------------------------------------------


def test_start_counts_to_the_time_of_the_series_and_not_of_the_bed():
    beds = [pet(k, AcquisitionTime=f"{115000 + 300 * k:06d}") for k in range(3)]
    assert suv(*beds) == pytest.approx([LEFT] * 3, rel=1e-6)


def test_a_series_made_after_the_scan_counts_to_its_first_acquisition():
    """A reconstruction of 15:00; the first bed was scanned one half-life after the injection, the second 5 minutes later."""
    times = ("114946.200000", "115446.200000")
    made = [pet(k, SeriesTime="150000", AcquisitionTime=time) for k, time in enumerate(times)]
    assert suv(*made) == pytest.approx([LEFT] * 2, rel=1e-6)
    with pytest.raises(SampleError, match="only the whole series"):
        decode([made[1]], False, SUV)  # one slice alone does not say when the first bed was


def test_a_later_series_of_ge_states_when_its_scan_began():
    def ge(made: Dataset) -> None:
        made.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20200102114946.20")

    made = pet(SeriesTime="150000", AcquisitionTime="120000", change=ge)
    assert suv(made) == pytest.approx([LEFT], rel=1e-6)
    assert decode([made], False, SUV).values[1, 1] == pytest.approx(LEFT, rel=1e-6)


def test_the_scan_that_ge_states_with_an_offset_from_utc_is_brought_to_the_clock_of_the_file():
    def ge(made: Dataset) -> None:
        made.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20200102104946.20+0000")

    late = {"SeriesTime": "150000", "AcquisitionTime": "120000", "change": ge}
    assert suv(pet(TimezoneOffsetFromUTC="+0100", **late)) == pytest.approx([LEFT], rel=1e-6)
    assert "offset" in refused(pet(**late))


def test_admin_is_corrected_to_the_injection():
    assert suv(pet(DecayCorrection="ADMIN", SeriesTime=None)) == pytest.approx([2500 * 70_000 / 370e6], rel=1e-6)


def test_none_counts_each_slice_to_the_mean_of_its_own_frame():
    """A frame that begins two half-lives after the injection. Of 2 half-lives its activity is, on average, (1 − 1/4) / ln 4 of
    that at its start."""
    later = pet(1, CorrectedImage=["ATTN"], DecayCorrection="NONE", AcquisitionTime="133932.400000",
                ActualFrameDuration="1")  # fmt: skip
    now = pet(0, CorrectedImage=["ATTN"], DecayCorrection="NONE", ActualFrameDuration="1")
    assert suv(now, later) == pytest.approx([LEFT, LEFT * 2], rel=1e-6)
    long = pet(CorrectedImage=["ATTN"], DecayCorrection="NONE", ActualFrameDuration=str(int(2000 * HALF_LIFE)))
    assert suv(long) == pytest.approx([LEFT / (0.75 / np.log(4))], rel=1e-6)
    assert "ActualFrameDuration" in refused(
        pet(CorrectedImage=["ATTN"], DecayCorrection="NONE", ActualFrameDuration=None)
    )


# --- the start of the injection -------------------------------------------------------------------------------


def test_a_date_and_time_goes_before_a_time():
    both = {"RadiopharmaceuticalStartDateTime": "20200102100000.000000"}
    assert suv(pet(injected=both)) == pytest.approx([LEFT], rel=1e-6)
    alone = both | {"RadiopharmaceuticalStartTime": None}
    assert suv(pet(injected=alone)) == pytest.approx([LEFT], rel=1e-6)
    assert "contradict" in refused(pet(injected={"RadiopharmaceuticalStartDateTime": "20200102103000"}))
    assert "half-lives" in refused(pet(injected={"RadiopharmaceuticalStartDateTime": "20191231100000"}))


def test_an_offset_from_utc_is_counted_where_the_file_states_its_own():
    there = {"RadiopharmaceuticalStartDateTime": "20200102090000+0000", "RadiopharmaceuticalStartTime": None}
    assert suv(pet(injected=there, TimezoneOffsetFromUTC="+0100")) == pytest.approx([LEFT], rel=1e-6)
    assert moment("20200102100000+0100", "-0500") - moment("20200102100000") == -6 * 3600


def test_an_offset_from_utc_alone_does_not_say_when_that_was_on_the_clock_of_the_scan():
    there = {"RadiopharmaceuticalStartDateTime": "20200102100000.000000+0000", "RadiopharmaceuticalStartTime": None}
    assert "offset" in refused(pet(injected=there))
    told_twice = there | {"RadiopharmaceuticalStartTime": "100000"}
    assert suv(pet(injected=told_twice)) == pytest.approx([LEFT], rel=1e-6)


def test_an_injection_before_midnight_is_of_the_day_before():
    late = {"RadiopharmaceuticalStartTime": "230000"}
    scan = {
        "SeriesDate": "20200103",
        "SeriesTime": "004946.2",
        "AcquisitionDate": "20200103",
        "AcquisitionTime": "004946.2",
    }
    assert suv(pet(injected=late, **scan)) == pytest.approx([LEFT], rel=1e-6)


def test_an_injection_minutes_after_the_scan_is_no_injection_of_yesterday():
    assert "10 half-lives" in refused(pet(injected={"RadiopharmaceuticalStartTime": "115500"}))
    exact = {"RadiopharmaceuticalStartDateTime": "20200102115500", "RadiopharmaceuticalStartTime": None}
    assert "after the moment" in refused(pet(injected=exact))


def test_zirconium_needs_the_date_of_its_injection():
    days = {"RadionuclideHalfLife": "282276", "RadiopharmaceuticalStartTime": "100000"}
    assert "days before" in refused(pet(injected=days))
    dated = days | {"RadiopharmaceuticalStartDateTime": "20191228100000"}
    wait = 5 * 86400 + 6586.2
    wanted = 2500 * 70_000 / (370e6 * 0.5 ** (wait / 282276))
    assert suv(pet(injected=dated)) == pytest.approx([wanted], rel=1e-6)


# --- units ----------------------------------------------------------------------------------------------------


def philips(suv_factor: str | None, activity_factor: str | None) -> Callable[[Dataset], None]:
    def change(made: Dataset) -> None:
        block = made.private_block(0x7053, "Philips PET Private Group", create=True)
        for place, value in ((0x00, suv_factor), (0x09, activity_factor)):
            if value is not None:
                block.add_new(place, "DS", value)

    return change


def test_counts_of_philips_have_a_factor_to_suv_or_one_to_activity():
    assert suv(pet(Units="CNTS", change=philips("0.0004", "3.5"))) == pytest.approx([2500 * 0.0004], rel=1e-6)
    for none in (None, "0"):
        assert suv(pet(Units="CNTS", change=philips(none, "3.5"))) == pytest.approx([LEFT * 3.5], rel=1e-6)


def test_counts_without_a_factor_and_other_units_are_refused():
    assert "CNTS" in refused(pet(Units="CNTS"))
    assert "CNTS" in refused(pet(Units="CNTS", change=philips("0", "0")))
    assert "BQML" in refused(pet(Units="PROPCPS"))
    assert "no Units" in refused(pet(Units=None))


def test_grams_per_millilitre_are_suv_already_unless_of_another_kind():
    assert suv(pet(Units="GML", PatientWeight=None)) == [2500]
    assert suv(pet(Units="GML", SUVType="BW")) == [2500]
    assert "SUVType" in refused(pet(Units="GML", SUVType="LBM"))


# --- what is absent, not plausible, or contradicts itself -----------------------------------------------------


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # of pydicom, which writes them
@pytest.mark.parametrize("changes, what", [
    ({"PatientWeight": None}, "no PatientWeight"),
    ({"PatientWeight": "0"}, "PatientWeight, in kg"),
    ({"PatientWeight": "70000"}, "PatientWeight, in kg"),
    ({"injected": {"RadionuclideTotalDose": None}}, "no RadionuclideTotalDose"),
    ({"injected": {"RadionuclideTotalDose": "0"}}, "RadionuclideTotalDose, in Bq"),
    ({"injected": {"RadionuclideTotalDose": "370"}}, "RadionuclideTotalDose, in Bq"),  # MBq
    ({"injected": {"RadionuclideTotalDose": "370000"}}, "RadionuclideTotalDose, in Bq"),  # kBq
    ({"injected": {"RadionuclideHalfLife": None}}, "no RadionuclideHalfLife"),
    ({"injected": {"RadionuclideHalfLife": "0"}}, "RadionuclideHalfLife"),
    ({"injected": {"RadionuclideHalfLife": "109.77"}}, "half-lives"),  # minutes
    ({"injected": {"RadiopharmaceuticalStartTime": None}}, "no start of injection"),
    ({"injected": {"RadiopharmaceuticalStartTime": "2500"}}, "cannot be understood"),
    ({"CorrectedImage": ["DECY"]}, "lacks ATTN"),
    ({"CorrectedImage": ["ATTN"]}, "contradict"),
    ({"CorrectedImage": None}, "no CorrectedImage"),
    ({"DecayCorrection": None}, "no DecayCorrection"),
    ({"DecayCorrection": "MAYBE"}, "none of START"),
    ({"DecayCorrection": "NONE"}, "contradict"),
    ({"SeriesTime": None}, "no SeriesTime"),
    ({"SeriesDate": "20201301"}, "cannot be understood"),
    ({"AcquisitionTime": None}, "no AcquisitionTime"),
    ({"change": lambda made: made.RadiopharmaceuticalInformationSequence.append(build.item())}, "of 2 items"),
    ({"change": lambda made: delattr(made, "RadiopharmaceuticalInformationSequence")}, "of 0 items"),
])  # fmt: skip
def test_a_field_that_is_absent_or_not_plausible_refuses_the_image(changes, what):
    assert what in refused(pet(**changes))


@pytest.mark.parametrize("changes", [
    {"PatientWeight": "71"},
    {"injected": {"RadionuclideTotalDose": "380000000"}},
    {"injected": {"RadiopharmaceuticalStartTime": "100500"}},
    {"SeriesTime": "114900"},
    {"DecayCorrection": "ADMIN"},
])  # fmt: skip
def test_slices_that_differ_about_the_patient_or_the_injection_are_refused(changes):
    assert "more than one" in refused(pet(0), pet(1, **changes))


def test_times_of_dicom():
    assert time_of_day("10") == 36000 and time_of_day("101530.25") == 36930.25 and time_of_day("10:15:30") == 36930
    assert day("20200102") - day("2020.01.01") == 86400 and moment("2020010210") - day("20200102") == 36000
    for wrong in ("", "1", "2400", "106000", "noon"):
        with pytest.raises(ValueError):
            time_of_day(wrong)
    for wrong in ("", "20200230", "202001", "20200102"):
        with pytest.raises(ValueError):
            moment(wrong)


# --- real world value maps ------------------------------------------------------------------------------------


def in_unit(code: str) -> Chosen:
    return Chosen(wanted=Quantity(unit=code))


def unit(code: str) -> Dataset:
    keyword = "CodeValue" if len(code) <= 16 else "LongCodeValue"  # PS3.3 8.1
    return build.item(**{keyword: code}, CodingSchemeDesignator="UCUM", CodeMeaning=code)


def value_map(code: str, first: int, last: int, **how: object) -> Dataset:
    made = Dataset()
    made.add_new("RealWorldValueFirstValueMapped", "SS" if first < 0 else "US", first)
    made.add_new("RealWorldValueLastValueMapped", "SS" if first < 0 else "US", last)
    made.MeasurementUnitsCodeSequence = [unit(code)]
    for keyword, value in how.items():
        setattr(made, keyword, value)
    return made


def mapped(maps: list[Dataset], wanted: str, stored: np.ndarray = STORED, **elements) -> list[list[float]]:
    made = build.dataset(stored, modality="MR", sop_class=build.MR, RescaleSlope="7", RescaleIntercept="3", **elements)
    made.RealWorldValueMappingSequence = maps
    return decode([build.encoded(made)], False, in_unit(wanted)).values.tolist()


def test_a_map_gives_stored_values_its_unit_and_the_rescale_does_not_count():
    diffusion = value_map("um2/s", 0, 4095, RealWorldValueSlope=2.0, RealWorldValueIntercept=-1.0)
    coarse = value_map("mm2/s", 0, 65535, RealWorldValueSlope=2e-6, RealWorldValueIntercept=0.0)
    assert mapped([diffusion, coarse], "um2/s", STORED // 2) == [[-1, 999], [1999, 4999]]
    assert mapped([diffusion, coarse], "mm2/s") == pytest.approx(np.array([[0, 0.002], [0.004, 0.01]]), rel=1e-6)


def test_a_table_and_maps_of_several_ranges():
    table = value_map("HU", 0, 2, RealWorldValueLUTData=[5.0, 50.0, 500.0])
    rest = value_map("HU", 3, 100, RealWorldValueSlope=1.0, RealWorldValueIntercept=1000.0)
    assert mapped([table, rest], "HU", np.array([[0, 1], [2, 3]], np.uint16)) == [[5, 50], [500, 1003]]
    signed = value_map("HU", -5, 5, RealWorldValueSlope=1.0, RealWorldValueIntercept=0.0)
    assert mapped([signed], "HU", np.array([[-5, 5]], np.int16)) == [[-5, 5]]


def test_values_outside_of_a_map_are_refused_and_padding_is_not_asked():
    narrow = value_map("HU", 1, 5000, RealWorldValueSlope=2.0, RealWorldValueIntercept=0.0)
    with pytest.raises(SampleError, match="outside of the range") as caught:
        mapped([narrow], "HU")
    assert caught.value.reason == "no_quantity"
    made = build.dataset(STORED, modality="MR", sop_class=build.MR)
    made.add_new("PixelPaddingValue", "US", 0)
    made.RealWorldValueMappingSequence = [narrow]
    assert decode([build.encoded(made)], False, in_unit("HU")).values.tolist() == [[2000, 2000], [4000, 10000]]


def test_an_image_without_a_map_to_the_unit_is_refused():
    for maps in ([], [value_map("ms", 0, 9999, RealWorldValueSlope=1.0, RealWorldValueIntercept=0.0)]):
        with pytest.raises(SampleError, match="no map to mm2/s") as caught:
            mapped(maps, "mm2/s")
        assert caught.value.reason == "no_quantity"
    with pytest.raises(SampleError, match="neither a table"):
        mapped([value_map("HU", 0, 9999)], "HU")
    with pytest.raises(SampleError, match="states no unit"):
        decode([b"\x89PNG\r\n\x1a\n"], False, in_unit("HU"))


def test_each_frame_of_an_enhanced_file_has_its_own_map():
    stored = np.stack([STORED, STORED])
    frames = [
        build.frame([0, 0, 2.0 * k], RealWorldValueMappingSequence=value_map(
            "{SUVbw}g/ml", 0, 9999, RealWorldValueSlope=slope, RealWorldValueIntercept=0.0))
        for k, slope in enumerate((0.001, 0.002))
    ]  # fmt: skip
    made = build.enhanced(stored, frames, sop_class=build.ENHANCED_PET, modality="PT")
    found = decode([build.encoded(made)], True, in_unit("{SUVbw}g/ml")).values
    assert found[:, 1, 1].tolist() == pytest.approx([5, 10], rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_header_gives_values_or_a_reason(seed):
    """Bytes of the header, lengths and all, replaced by chance: 60 files for each seed."""
    slope = value_map("HU", 0, 9999, RealWorldValueSlope=0.5, RealWorldValueIntercept=1.0)
    files = [pet(), pet(change=lambda made: setattr(made, "RealWorldValueMappingSequence", [slope]))]
    rng = np.random.default_rng(seed)
    for number in range(60):
        raw = bytearray(files[number % 2])
        for at in rng.integers(300, len(raw) - 8, rng.integers(1, 4)):
            raw[at] = rng.choice([rng.integers(256), 0x5C, 0x20, raw[at] ^ 1])
        try:
            found = decode([bytes(raw)], bool(number % 3), (SUV, in_unit("HU"))[number % 2])
            assert found.values.dtype.kind in "fu"
        except SampleError as error:
            assert error.reason in REASONS


def test_a_text_of_several_values_is_no_unit():
    assert "more than one value" in refused(pet(Units=["BQML", "CNTS"]))
