"""Descriptors: what the elements of a DICOM file add up to, for rules: its plane, contrast medium, the patient's age."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date

import numpy as np

from medray.archive.eligibility import Fact
from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.elements import numbers
from medray.modalities.imaging.formats.dicom.frames import Frame, Group, described, frames, items, stated
from medray.modalities.imaging.formats.dicom.header import Header
from medray.modalities.imaging.formats.dicom.keywords import AGE

OBLIQUE = 0.8
"""Cosine of the angle between a plane's normal and an axis of the patient (37°) below which the plane is oblique, as dcm4che
and PixelMed have it."""
CONTRAST = (
    "ContrastBolusAgent",
    "ContrastBolusAgentSequence",
    "ContrastBolusVolume",
    "ContrastBolusTotalDose",
    "ContrastBolusIngredient",
)
"""Elements that say that a contrast medium was given (PS3.3 C.7.6.4); the texts are not kept."""
NO_AGENT = frozenset(("", "0", "-", "N", "NO", "NONE", "NON", "NO CONTRAST", "NON CONTRAST", "NON-CONTRAST", "WITHOUT"))
"""Texts in the place of an agent that say that there was none."""
OF_AGE = ("PatientAge", "PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate")
OLDEST = 90
"""Ages above 89 become this, so that they identify nobody."""


def tags(ruled: Sequence[str]) -> frozenset[int]:
    """Tags of the elements that descriptors read; those of the age only where a rule asks for it."""
    keywords = (*CONTRAST, *(OF_AGE if AGE in ruled else ()))
    return frozenset(described(keyword)[0] for keyword in keywords)


def of_header(header: Header, ruled: Sequence[str], volumes: bool) -> dict[str, Fact]:
    """`contrast` of a file with an image, `age_years` where a rule asks for it, and in 2D its plane; that of a volume comes from
    its slices."""
    facts: dict[str, Fact] = {"contrast": contrast(header)}
    if not volumes:
        facts |= of_directions(directions(header))
    if AGE in ruled and (years := age_years(header)) is not None:
        facts[AGE] = years
    return facts


def contrast(header: Header) -> bool:
    """Whether the headers name a contrast medium. An image with one has to say so; one that says nothing has none."""
    agent = _text(header, "ContrastBolusAgent").upper().rstrip(".")
    if agent not in NO_AGENT or _text(header, "ContrastBolusIngredient"):
        return True
    try:
        if items(header, "ContrastBolusAgentSequence"):
            return True
    except SampleError:  # there is something that cannot be read
        return True
    return any(_positive(header, keyword) for keyword in ("ContrastBolusVolume", "ContrastBolusTotalDose"))


def age_years(header: Header) -> float | None:
    """The patient's age at the examination: as it is stated, else from the date of birth; OLDEST at most. None: not stated."""
    stated = years(_text(header, "PatientAge"))
    if stated is not None:
        return stated
    born = _date(_text(header, "PatientBirthDate"))
    dates = (_date(_text(header, keyword)) for keyword in OF_AGE[2:])
    examined = next((each for each in dates if each is not None), None)
    if born is None or examined is None or examined < born:
        return None
    lived = (examined - born).days / 365.25
    # no finer than an Age String: with the date of the study, days would give the date of birth away
    return float(OLDEST) if lived >= OLDEST else float(int(lived)) if lived >= 2 else round(int(lived * 12) / 12, 2)


def years(age: object) -> float | None:
    """An Age String (PS3.5 6.2: nnnD, nnnW, nnnM, nnnY) in years; ages above 89 become OLDEST."""
    text = str(age or "").strip()
    if len(text) < 2 or not text[:-1].isdigit() or text[-1] not in "DWMY":
        return None
    number = int(text[:-1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[text[-1]]
    return float(OLDEST) if number > OLDEST - 1 else round(number, 2)


def directions(header: Header, among: Iterable[Frame] | None = None) -> list[list[float]]:
    """The different directions (along and down, six numbers) that the frames of a file, or these of it, state."""
    try:
        top = Group(header, header)
        chosen = frames(header) if among is None else among
        groups = [frame.group("PlaneOrientationSequence") or top for frame in chosen]
        stated_by = [numbers(group.get("ImageOrientationPatient")) for group in groups]
    except SampleError:  # reading the image says what is wrong
        return []
    return [list(each) for each in dict.fromkeys(tuple(each) for each in stated_by if each and len(each) == 6)]


def of_directions(several: Iterable[Sequence[float]]) -> dict[str, Fact]:
    """`orientation` and `obliquity_degrees` of planes by their directions; of several planes sorted lists."""
    planes = [plane(each[:3], each[3:]) for each in several]
    return {
        name: values[0] if len(values) == 1 else [*values]
        for name in ("orientation", "obliquity_degrees")
        if (values := sorted({each[name] for each in planes if name in each}))
    }


def plane(along: Sequence[float] | np.ndarray, down: Sequence[float] | np.ndarray) -> dict[str, str | float]:
    """`orientation` and `obliquity_degrees` of a plane from its direction cosines (3,) each, LPS: which axis of the patient its
    normal is nearest to, and how far from it."""
    normal = np.abs(np.cross(np.asarray(along, float), np.asarray(down, float)))
    length = float(np.linalg.norm(normal))
    if not np.isfinite(length) or length < 0.5:
        return {}
    cosine = min(1.0, float(normal.max()) / length)
    name = ("sagittal", "coronal", "axial")[int(normal.argmax())] if cosine > OBLIQUE else "oblique"
    return {"orientation": name, "obliquity_degrees": round(float(np.degrees(np.arccos(cosine))), 1)}


def _text(header: Header, keyword: str) -> str:
    try:
        value = stated(header, keyword, header)
    except SampleError:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value or "").strip()


def _positive(header: Header, keyword: str) -> bool:
    try:
        value = stated(header, keyword, header)
    except SampleError:
        return False
    return isinstance(value, int | float) and value > 0


def _date(text: str) -> date | None:
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:8])) if len(text) == 8 and text.isdigit() else None
    except ValueError:
        return None
