"""Facts that elements add up to: the plane of an image, contrast medium, the age at the examination."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel
import numpy as np
import pytest
from dicom_build import dataset, encoded, enhanced, frame, item, placed
from pydicom.dataset import Dataset

from medray.modalities.imaging import descriptors
from medray.modalities.imaging.facts import of_entry, of_file
from medray.modalities.imaging.formats.dicom.header import parse
from medray.modalities.imaging.spec import ImagingSpec

PLANES = {
    "axial": [1, 0, 0, 0, 1, 0],
    "coronal": [1, 0, 0, 0, 0, -1],
    "sagittal": [0, 1, 0, 0, 0, -1],
}


def facts(*made: Dataset, ruled: Sequence[str] = (), volumes: bool = True, syntax: str = "explicit"):
    """Facts of an entry of these files."""
    headers = [parse(encoded(each, syntax), descriptors.tags(ruled)) for each in made]
    return of_entry([of_file(header, ruled, volumes) for header in headers], volumes)


def image(**elements) -> Dataset:
    return placed(dataset(np.zeros((4, 4), np.int16)), (0, 0, 0), **elements)


def turned(degrees: float) -> list[float]:
    """The axial plane, turned by so much about the left-right axis, as a gantry tilts it."""
    angle = np.radians(degrees)
    return [1, 0, 0, 0, float(np.cos(angle)), float(np.sin(angle))]


@pytest.mark.parametrize("volumes", [True, False])
@pytest.mark.parametrize("name", PLANES)
def test_the_plane_of_an_image_is_named_after_the_axis_that_its_normal_is_nearest_to(name: str, volumes: bool):
    found = facts(image(ImageOrientationPatient=PLANES[name]), volumes=volumes)
    assert (found["orientation"], found["obliquity_degrees"]) == (name, 0.0)


@pytest.mark.parametrize(
    ("degrees", "name"),
    [(20, "axial"), (36, "axial"), (38, "oblique"), (45, "oblique"), (52, "oblique"), (54, "coronal")],
)
def test_a_plane_is_oblique_between_the_axes(degrees: float, name: str):
    found = facts(image(ImageOrientationPatient=turned(degrees)))
    assert found["orientation"] == name
    assert found["obliquity_degrees"] == pytest.approx(min(degrees, 90 - degrees), abs=0.05)


def test_the_plane_agrees_with_nibabels_closest_axis_over_random_directions():
    rng = np.random.default_rng(3)
    names = {"L": "sagittal", "R": "sagittal", "A": "coronal", "P": "coronal", "S": "axial", "I": "axial"}
    for _ in range(200):
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        found = descriptors.plane(rotation[:, 0], rotation[:, 1])
        normal = np.cross(rotation[:, 0], rotation[:, 1])
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.pad(np.stack([*rotation.T[:2], normal], 1), (0, 1))
        closest = names[nibabel.aff2axcodes(affine)[2]]
        cosine = np.cos(np.radians(float(str(found["obliquity_degrees"]))))
        assert found["orientation"] == (closest if cosine > 0.8005 else "oblique") or abs(cosine - 0.8) < 0.002


def test_slices_of_several_planes_have_them_all():
    several = [image(ImageOrientationPatient=PLANES[name]) for name in ("sagittal", "coronal", "coronal")]
    assert facts(*several)["orientation"] == ["coronal", "sagittal"]
    assert facts(*several)["obliquity_degrees"] == 0.0


def test_the_planes_of_an_enhanced_images_frames_are_those_of_their_groups():
    own = [
        frame((0, 0, k), PlaneOrientationSequence=item(ImageOrientationPatient=PLANES["sagittal"])) for k in range(3)
    ]
    made = enhanced(np.zeros((3, 4, 4), np.int16), own)
    assert [facts(made, volumes=volumes)["orientation"] for volumes in (True, False)] == ["sagittal"] * 2


@pytest.mark.parametrize("orientation", [[1, 0, 0, 1, 0, 0], [0] * 6, None])
def test_a_plane_that_is_none_is_not_stated(orientation: Sequence[float] | None):
    made = image()
    del made.ImageOrientationPatient
    if orientation is not None:
        made.ImageOrientationPatient = list(orientation)
    assert "orientation" not in facts(made)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big", "bare"])
@pytest.mark.parametrize(
    ("elements", "given"),
    [
        ({}, False),
        ({"ContrastBolusAgent": ""}, False),
        ({"ContrastBolusAgent": "None"}, False),
        ({"ContrastBolusAgent": "ULTRAVIST 370"}, True),
        ({"ContrastBolusVolume": 0}, False),
        ({"ContrastBolusVolume": 80}, True),
        ({"ContrastBolusIngredient": "IODINE"}, True),
        ({"ContrastBolusAgentSequence": [item(CodeMeaning="Diatrizoate")]}, True),
    ],
)
def test_contrast_is_yes_where_an_agent_is_named_and_its_name_is_not_kept(elements, given: bool, syntax: str):
    found = facts(image(**elements), syntax=syntax)
    assert found["contrast"] is given
    assert "ULTRAVIST" not in str(found) and "Diatrizoate" not in str(found)


def test_a_series_of_which_some_slices_have_contrast_has_it():
    assert facts(image(), image(ContrastBolusAgent="OMNIPAQUE"))["contrast"] is True
    assert facts(image(), image())["contrast"] is False


@pytest.mark.parametrize(
    ("elements", "years"),
    [
        ({"PatientAge": "045Y", "PatientBirthDate": "19000101", "StudyDate": "20200101"}, 45.0),
        ({"PatientBirthDate": "19700615", "StudyDate": "20200614"}, 49.0),
        ({"PatientBirthDate": "19700615", "StudyDate": "20200616"}, 50.0),
        ({"PatientBirthDate": "19100101", "AcquisitionDate": "20200101"}, 90.0),
        ({"PatientBirthDate": "20190801", "SeriesDate": "20200202"}, 0.5),
        ({"PatientBirthDate": "20210101", "StudyDate": "20200101"}, None),
        ({}, None),
    ],
)
def test_the_age_is_stated_or_between_two_dates_and_a_fact_only_where_a_rule_asks(elements, years):
    assert facts(image(**elements), ruled=["age_years"]).get("age_years") == years
    assert "age_years" not in facts(image(**elements))


@pytest.mark.parametrize("born", [b"1970", b"19700231", b"x       "])
def test_a_date_that_is_none_gives_no_age(born: bytes):
    made = encoded(image(PatientBirthDate="19700101", StudyDate="20200101")).replace(b"19700101", born.ljust(8))
    assert "age_years" not in of_file(parse(made, descriptors.tags(("age_years",))), ("age_years",), True)


def test_objects_that_are_no_images_have_no_contrast():
    made = dataset(None, sop_class="1.2.840.10008.5.1.4.1.1.88.33", modality="SR")
    assert "contrast" not in facts(made)


def test_rules_may_name_them_and_a_model_learns_the_plane():
    spec = ImagingSpec.model_validate({"size": [2, 4, 4], "select": {"contrast": False, "age_years": {"min": 18}}})
    taught = spec.taught(['{"orientation":"axial","Modality":"CT"}'])
    assert taught.trained == {"Modality": ("CT",), "orientation": ("AXIAL",)}
    yes, no = '{"Modality":"CT","contrast":false,"age_years":30,"orientation":"%s"}', ["axial", "sagittal"]
    assert [taught.refused(yes % plane) is None for plane in no] == [True, False]
    assert taught.kinds == ("Modality", "SOPClassUID", "ImageType[3]", "BodyPartExamined")
