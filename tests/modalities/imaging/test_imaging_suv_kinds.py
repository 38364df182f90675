"""SUV of enhanced PET files (PS3.3 C.8.22) and SUV by lean body mass: numbers that can be worked out by hand.

The same numbers came out of MIRP 2.7.0 (enhanced files, both formulas) and of @cornerstonejs/calculate-suv 1.1.0 (both formulas
for women, Janmahasatian's for men: its James has 120 for men, which DICOM calls LBM).
"""

from __future__ import annotations

import dicom_build as build
import numpy as np
import pytest
from test_imaging_suv import HALF_LIFE, LEFT, STORED, pet, value_map

from medray.errors import SampleError
from medray.modalities.imaging.formats.decode import Chosen, decode
from medray.modalities.imaging.formats.dicom.quantity import Quantity
from medray.modalities.imaging.formats.dicom.suv_body import james_kg, janmahasatian_kg

BW, JAMES, JANMA = (Chosen(wanted=Quantity(pet=kind)) for kind in ("suv_bw", "suv_lbm_james", "suv_lbm_janma"))
MAN = {"PatientSex": "M", "PatientSize": "1.75"}
WOMAN = {"PatientSex": "F", "PatientSize": "1.75"}
# 70 kg and 175 cm: W/H = 0.4 kg/cm, its square 0.16; W/H² = 22.857 kg/m²
# James: man 1.10 · 70 − 128 · 0.16 = 56.52 kg, woman 1.07 · 70 − 148 · 0.16 = 51.22 kg
# Janmahasatian: man 9270 · 70 / (6680 + 216 · 22.857) = 55.857 kg, woman 9270 · 70 / (8780 + 244 · 22.857) = 45.197 kg
JAMES_KG = {"M": 56.52, "F": 51.22}
JANMA_KG = {"M": 55.8571, "F": 45.1970}


def of(raw: bytes | list[bytes], chosen: Chosen) -> list[float]:
    return decode([raw] if isinstance(raw, bytes) else raw, True, chosen).values[:, 1, 1].tolist()


def refused(raw: bytes, chosen: Chosen) -> str:
    with pytest.raises(SampleError) as caught:
        decode([raw], True, chosen)
    assert caught.value.reason == "no_quantity"
    assert not any(secret in caught.value.detail for secret in ("70", "1.75", "370", "2020"))
    return caught.value.detail


# --- lean body mass -------------------------------------------------------------------------------------------


def test_lean_body_mass_of_both_formulas_as_worked_out_by_hand():
    for sex in ("M", "F"):
        assert james_kg(sex == "M", 70, 1.75) == pytest.approx(JAMES_KG[sex], abs=1e-9)
        assert janmahasatian_kg(sex == "M", 70, 1.75) == pytest.approx(JANMA_KG[sex], abs=1e-3)


@pytest.mark.parametrize("person", [MAN, WOMAN])
def test_suv_by_lean_body_mass_is_that_by_weight_times_their_ratio(person):
    sex = person["PatientSex"]
    assert of(pet(**person), BW) == pytest.approx([LEFT], rel=1e-6)
    assert of(pet(**person), JAMES) == pytest.approx([LEFT * JAMES_KG[sex] / 70], rel=1e-6)
    assert of(pet(**person), JANMA) == pytest.approx([LEFT * JANMA_KG[sex] / 70], rel=1e-5)


@pytest.mark.parametrize(
    "elements, why",
    [
        ({"PatientSex": None}, "no PatientSex"),
        ({"PatientSex": "O"}, "PatientSex is neither M nor F"),
        ({"PatientSize": None}, "no PatientSize"),
        ({"PatientSize": "175"}, "PatientSize, in m"),
        ({"PatientWeight": None}, "no PatientWeight"),
    ],
)
def test_without_sex_height_or_weight_there_is_no_lean_body_mass(elements, why):
    for chosen in (JAMES, JANMA):
        assert why in refused(pet(**(MAN | elements)), chosen)
    if "PatientWeight" not in elements:
        assert of(pet(**(MAN | elements)), BW) == pytest.approx([LEFT], rel=1e-6)


def test_where_the_formula_of_james_turns_it_is_refused():
    """Of 160 cm a woman's parabola turns at 1.07 · 160² / (2 · 148) = 92.54 kg, a man's at 1.10 · 160² / (2 · 128) = 110 kg."""
    short = {"PatientSize": "1.60"}
    for sex, below, above in (("F", "92.5", "92.6"), ("M", "109.9", "110.1")):
        assert of(pet(PatientSex=sex, PatientWeight=below, **short), JAMES)
        heavy = pet(PatientSex=sex, PatientWeight=above, **short)
        assert "formula of James" in refused(heavy, JAMES)
        assert of(heavy, JANMA)


def test_a_file_that_is_in_suv_already_is_taken_by_its_own_type():
    lean = pet(Units="GML", SUVType="LBMJAMES128", **MAN)
    assert of(lean, JAMES) == [2500.0]
    assert "SUVType" in refused(lean, BW) and "SUVType" in refused(lean, JANMA)
    assert of(pet(Units="GML", SUVType="LBMJANMA", **MAN), JANMA) == [2500.0]
    for elements in ({"SUVType": "BW"}, {}):
        by_weight = pet(Units="GML", **elements, **MAN)
        assert of(by_weight, BW) == [2500.0]
        assert of(by_weight, JAMES) == pytest.approx([2500 * JAMES_KG["M"] / 70], rel=1e-6)
    for chosen in (BW, JAMES, JANMA):  # LBM alone: with 120 for men
        assert "SUVType" in refused(pet(Units="GML", SUVType="LBM", **MAN), chosen)


# --- enhanced -------------------------------------------------------------------------------------------------


def enhanced_pet(
    *, unit: str | None = "Bq/ml", slopes=(0.5, 0.25), injected=None, groups=None, **elements: object
) -> bytes:
    """Two frames; each maps its stored values by a slope of its own. 370 MBq, corrected to one half-life after the injection."""
    item = {
        "RadiopharmaceuticalStartDateTime": "20200102100000",
        "RadionuclideTotalDose": "370000000",
        "RadionuclideHalfLife": str(HALF_LIFE),
    } | (injected or {})
    settings = {
        "AttenuationCorrected": "YES",
        "DecayCorrected": "YES",
        "DecayCorrectionDateTime": "20200102114946.2",
        "PatientWeight": "70",
    } | elements
    frames = []
    for k, slope in enumerate(slopes):
        maps = {} if unit is None else {
            "RealWorldValueMappingSequence": value_map(
                unit, 0, 9999, RealWorldValueSlope=slope, RealWorldValueIntercept=0.0)
        }  # fmt: skip
        frames.append(build.frame((0, 0, 2.0 * k), **maps, **(groups or {})))
    made = build.enhanced(
        np.stack([STORED] * len(slopes)),
        frames,
        sop_class=build.ENHANCED_PET,
        modality="PT",
        **{keyword: value for keyword, value in settings.items() if value is not None},
    )
    made.RadiopharmaceuticalInformationSequence = [
        build.item(**{keyword: value for keyword, value in item.items() if value is not None})
    ]
    return build.encoded(made)


def test_an_enhanced_file_in_becquerel_has_the_suv_of_a_classic_one():
    """2500 Bq/ml in the first frame, 1250 in the second; 185 MBq are left of 370."""
    assert of(enhanced_pet(), BW) == pytest.approx([LEFT, LEFT / 2], rel=1e-6)
    classic = of([pet(0), pet(1, slope="0.25")], BW)
    assert of(enhanced_pet(), BW) == pytest.approx(classic, rel=1e-6)
    assert decode([enhanced_pet()], False, BW._replace(selections=[[1]])).values[1, 1] == pytest.approx(
        LEFT / 2, rel=1e-6
    )
    for chosen, mass in ((JAMES, JAMES_KG), (JANMA, JANMA_KG)):
        assert of(enhanced_pet(**WOMAN), chosen) == pytest.approx(
            [LEFT * mass["F"] / 70, LEFT / 2 * mass["F"] / 70], rel=1e-5
        )


def test_maps_to_suv_are_taken_as_they_are():
    for unit in ("g/ml{SUVbw}", "{SUVbw}g/ml"):
        raw = enhanced_pet(unit=unit, slopes=(0.001, 0.002), DecayCorrectionDateTime=None, PatientWeight=None)
        assert of(raw, BW) == pytest.approx([5, 10], rel=1e-6)
    raw = enhanced_pet(unit="g/ml{SUVlbm(James128)}", slopes=(0.001, 0.002))
    assert of(raw, JAMES) == pytest.approx([5, 10], rel=1e-6)
    assert "without a real world value map" in refused(raw, JANMA)
    raw = enhanced_pet(unit="g/ml{SUVbw}", slopes=(0.001, 0.002), **MAN)
    assert of(raw, JAMES) == pytest.approx([5 * JAMES_KG["M"] / 70, 10 * JAMES_KG["M"] / 70], rel=1e-6)
    for unit in ("g/ml{SUVlbm}", "cm2/ml{SUVbsa}", "{counts}/s"):
        assert "without a real world value map" in refused(enhanced_pet(unit=unit), BW)


def test_a_rescale_of_type_bqml_is_activity_and_any_other_is_not():
    scaled = build.item(RescaleSlope="0.5", RescaleIntercept="0", RescaleType="BQML")
    raw = enhanced_pet(unit=None, groups={"PixelValueTransformationSequence": scaled})
    assert of(raw, BW) == pytest.approx([LEFT, LEFT], rel=1e-6)
    scaled.RescaleType = "US"
    raw = enhanced_pet(unit=None, groups={"PixelValueTransformationSequence": scaled})
    assert "or a rescale of type BQML" in refused(raw, BW)


def test_frames_that_are_not_corrected_for_decay_count_each_from_its_own_time():
    """As long after the injection as one half-life; frames of a millisecond are their own mean."""
    content = build.item(FrameAcquisitionDateTime="20200102114946.2", FrameAcquisitionDuration=1.0)
    settings = {"DecayCorrected": "NO", "DecayCorrectionDateTime": None}
    raw = enhanced_pet(groups={"FrameContentSequence": content}, **settings)
    assert of(raw, BW) == pytest.approx([LEFT, LEFT / 2], rel=1e-5)
    del content.FrameAcquisitionDuration
    assert "FrameAcquisitionDuration" in refused(enhanced_pet(groups={"FrameContentSequence": content}, **settings), BW)
    assert "FrameAcquisitionDateTime" in refused(enhanced_pet(**settings), BW)


def test_times_with_offsets_from_utc_are_compared_on_one_clock():
    """10:00 in +0100 is 09:00 UTC; 10:49:46.2 UTC is one half-life later."""
    start = {"RadiopharmaceuticalStartDateTime": "20200102100000+0100"}
    assert of(enhanced_pet(injected=start, DecayCorrectionDateTime="20200102104946.2+0000"), BW)[0] == pytest.approx(
        LEFT, rel=1e-6
    )
    assert "has an offset from UTC" in refused(enhanced_pet(injected=start), BW)
    raw = enhanced_pet(injected=start, TimezoneOffsetFromUTC="+0100")
    assert of(raw, BW)[0] == pytest.approx(LEFT, rel=1e-6)


def test_a_dose_that_is_stated_for_the_moment_of_injection_does_not_decay():
    raw = enhanced_pet(DecayCorrectionDateTime="20200102100000")
    assert of(raw, BW)[0] == pytest.approx(LEFT / 2, rel=1e-6)


@pytest.mark.parametrize(
    "elements, why",
    [
        ({"AttenuationCorrected": "NO"}, "AttenuationCorrected is not YES"),
        ({"AttenuationCorrected": None}, "no AttenuationCorrected"),
        ({"DecayCorrected": None}, "no DecayCorrected"),
        ({"DecayCorrectionDateTime": None}, "no DecayCorrectionDateTime"),
        ({"DecayCorrectionDateTime": "20200102095959"}, "begins after"),
        ({"DecayCorrectionDateTime": "20200103100000"}, "half-lives before"),
        ({"injected": {"RadiopharmaceuticalStartDateTime": None}}, "no RadiopharmaceuticalStartDateTime"),
        ({"injected": {"RadionuclideTotalDose": None}}, "no RadionuclideTotalDose"),
        ({"injected": {"RadionuclideTotalDose": "370"}}, "RadionuclideTotalDose, in Bq"),
        ({"PatientWeight": None}, "no PatientWeight"),
    ],
)
def test_an_enhanced_file_that_lacks_a_field_is_refused_by_its_name(elements, why):
    assert why in refused(enhanced_pet(**elements), BW)
