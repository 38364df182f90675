"""Names that [modality.select] may hold for images: facts of ours, and keywords of the DICOM dictionary. Light to import."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache

from medray.archive.eligibility import INDEXED

DICOM_FACTS = (
    "Modality",
    "SOPClassUID",
    "ImageType",
    "BodyPartExamined",
    "PhotometricInterpretation",
    "Manufacturer",
    "ManufacturerModelName",
    "SliceThickness",
    "KVP",
)
"""Facts of every DICOM entry, by their keywords."""
GEOMETRY = (
    "slices",
    "rows",
    "columns",
    "spacing_mm",
    "extent_mm",
    "tilt_degrees",
    "gap_median_mm",
    "gap_min_mm",
    "gap_max_mm",
    "largest_hole_mm",
    "residual_mm",
)
"""Facts of a DICOM image or volume that are computed; lengths in mm, in the order of `size`."""
COMPUTED = ("orientation", "obliquity_degrees", "contrast")
"""Facts that elements add up to (`imaging/descriptors.py`): axial, sagittal, coronal or oblique; degrees between the plane and
that one; whether a contrast medium was given."""
AGE = "age_years"
"""The age at the examination, from PatientAge or the dates; a fact only where a rule asks for it."""
NIFTI_FACTS = ("intent",)
"""Facts of NIfTI entries: the code of what their numbers are, where the file states one (nifti1.h: 3 a t statistic)."""
FACTS = ("format", *DICOM_FACTS, *GEOMETRY, *COMPUTED, AGE, *NIFTI_FACTS)

CODED = frozenset(
    (
        "format",
        "Modality",
        "SOPClassUID",
        "ImageType",
        "BodyPartExamined",
        "PhotometricInterpretation",
        *GEOMETRY,
        *COMPUTED,
        AGE,
        *NIFTI_FACTS,
    )
)
"""Facts that are codes or measures, not text: messages may quote their values."""

_OF_A_PERSON = frozenset(
    ("PatientSex", "PatientAge", "PatientSize", "PatientWeight", "PregnancyStatus", "SmokingStatus")
)
"""Keywords of the patient module (group 0010) that may be asked for: all others there may identify the patient."""
_COMPARABLE = frozenset(["AS", "CS", "DS", "FD", "FL", "IS", "LO", "SH", "SL", "SS", "SV", "UI", "UL", "US", "UV"])
_IDENTITY = re.compile(
    r"(IDs?|Identifiers?|Identification|Address|Telephone.*|SerialNumber|AccessionNumber|Comments?|Residence)$"
)


def check_select(names: Iterable[str]) -> None:
    """Raises ValueError for a name that is neither a fact nor a DICOM keyword that may be asked for."""
    for name in names:
        indexed = INDEXED.fullmatch(name)
        base = indexed[1] if indexed else name
        if base not in FACTS:
            _check_keyword(base)


def _check_keyword(keyword: str) -> None:
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword} is neither a DICOM keyword nor a fact of an image{_nearest(keyword)}")
    vr = dictionary_VR(tag).split(" or ")[0]
    if (
        vr in ("PN", "DA", "TM", "DT", "ST", "LT", "UT", "UR", "UC", "AE")
        or vr == "UI"
        or _identifies(keyword, tag >> 16, vr)
    ):
        raise ValueError(f"{keyword} may say who the patient is, or when: it cannot be a rule (PS3.15 annex E)")
    if vr not in _COMPARABLE or tag >> 16 == 0x0002:
        raise ValueError(f"{keyword} is not text or a number of the data set (VR {vr}): it cannot be a rule")


def _identifies(keyword: str, group: int, vr: str) -> bool:
    """Whether it may identify a person: most of the patient module, and identifiers or free text in text elements (PS3.15
    E.1.1).
    """
    if group == 0x0010:
        return keyword not in _OF_A_PERSON
    return vr in ("LO", "SH", "CS") and _IDENTITY.search(keyword) is not None


def _nearest(keyword: str) -> str:
    from pydicom._dicom_dict import DicomDictionary

    names = {entry[4].lower(): entry[4] for entry in DicomDictionary.values() if entry[4]} | {
        f.lower(): f for f in FACTS
    }
    near = difflib.get_close_matches(keyword.lower(), names, 1)
    return f"; did you mean {names[near[0]]}?" if near else ""


@lru_cache(maxsize=64)
def asked(names: tuple[str, ...]) -> tuple[str, ...]:
    """The DICOM keywords among names of rules that are not facts of every file anyway, sorted."""
    bases = {indexed[1] if (indexed := INDEXED.fullmatch(name)) else name for name in names}
    return tuple(sorted(bases - {*FACTS}))
