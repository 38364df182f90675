"""What the dose is spread over: body weight, or lean body mass by one of two formulas (PS3.3 C.8.9.1, SUV Type)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from medray.modalities.imaging.formats.dicom.elements import one_number
from medray.modalities.imaging.formats.dicom.frames import stated
from medray.modalities.imaging.formats.dicom.header import Header
from medray.modalities.imaging.formats.dicom.suv_fields import agreed, refused, text_of, within

Suv = Literal["suv_bw", "suv_lbm_james", "suv_lbm_janma"]
TYPES: dict[Suv, str] = {"suv_bw": "BW", "suv_lbm_james": "LBMJAMES128", "suv_lbm_janma": "LBMJANMA"}
"""SUV Type (0054,1006). LBM alone is a third formula, with 120 where James has 128: it is refused."""
WEIGHTS_KG = (0.005, 600.0)
"""A mouse to the heaviest of patients."""
HEIGHTS_M = (0.3, 2.5)
"""A height in cm lies above."""


def weight_kg(headers: Sequence[Header]) -> float:
    """Raises SampleError `no_quantity` where it is absent or not plausible."""
    weight = agreed(headers, "PatientWeight", lambda header: one_number(stated(header, "PatientWeight", header)))
    return within(weight, WEIGHTS_KG, "PatientWeight, in kg")


def mass_ratio(headers: Sequence[Header], kind: Suv) -> float:
    """Lean body mass as a part of body weight; 1 for SUV by weight. Raises SampleError `no_quantity` where sex, height or weight
    are absent or do not allow it."""
    if kind == "suv_bw":
        return 1.0
    weight = weight_kg(headers)
    height = agreed(headers, "PatientSize", lambda header: one_number(stated(header, "PatientSize", header)))
    within(height, HEIGHTS_M, "PatientSize, in m")
    sex = agreed(headers, "PatientSex", lambda header: text_of(header, header, "PatientSex"))
    if sex not in ("M", "F"):
        raise refused("PatientSex is neither M nor F: lean body mass has a formula for each of these")
    mass = (
        james_kg(sex == "M", weight, height)
        if kind == "suv_lbm_james"
        else janmahasatian_kg(sex == "M", weight, height)
    )
    return mass / weight


def james_kg(male: bool, weight: float, height: float) -> float:
    """Lean body mass, kg, of an adult of `weight` kg and `height` m: James 1976, "Research on Obesity" (HMSO), with 128 for men.

    Beyond the weight at which its parabola turns it gives less lean mass for more weight, and in the end a negative one
    (Tahari et al. 2014, doi 10.2967/jnumed.113.136986). Raises SampleError `no_quantity` there.
    """
    linear, square = (1.10, 128.0) if male else (1.07, 148.0)
    centimetres = 100 * height
    if weight > linear * centimetres**2 / (2 * square):
        raise refused("a PatientWeight beyond which the formula of James gives less lean body mass for more weight")
    return linear * weight - square * (weight / centimetres) ** 2


def janmahasatian_kg(male: bool, weight: float, height: float) -> float:
    """Lean body mass, kg, of an adult of `weight` kg and `height` m: Janmahasatian et al. 2005, Clin Pharmacokinet 44:1051."""
    index = weight / height**2
    return 9270 * weight / (6680 + 216 * index if male else 8780 + 244 * index)
