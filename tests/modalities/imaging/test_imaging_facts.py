"""Facts of entries, and what rules and a training archive make of them."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from pathlib import Path

import mixed_archive
import nibabel
import numpy as np
import pytest
from dicom_build import CT, ENHANCED_CT, ENHANCED_MR, LEGACY_CT, SC, dataset, encoded, enhanced, frame, item, placed
from PIL import Image
from pydantic import ValidationError
from pydicom.sr.codedict import codes

from medray.archive.eligibility import Refused, learnt, refused
from medray.modalities.imaging import descriptors
from medray.modalities.imaging import facts as imaging_facts
from medray.modalities.imaging.formats.decode import decode
from medray.modalities.imaging.formats.dicom.frames import described
from medray.modalities.imaging.formats.dicom.header import parse
from medray.modalities.imaging.formats.dicom.keywords import CODED, DICOM_FACTS, GEOMETRY
from medray.modalities.imaging.formats.dicom.series import volume
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.registry import open_modality
from medray.storage.files import File, list_files

GREY = np.zeros((4, 6), np.int16)
FLAT, DEEP = ImagingSpec(size=(4, 6)), ImagingSpec(size=(2, 4, 6))


def described_entries(spec: ImagingSpec, root: Path) -> dict[str, tuple[dict, str | None]]:
    """Entry id to (facts, reason), as an index makes them of the parts of an archive."""
    modality, parts = open_modality(spec), defaultdict(list)
    for file in list_files(str(root)):
        for part in modality.scan(file, str(root)):
            parts[part.entry_id].append(part)
    found = {}
    for entry, of_entry in parts.items():
        of_entry.sort(key=lambda part: part.locator)
        stated = [part.facts for part in of_entry if part.facts]
        json.dumps(stated)
        reason = next((part.reason for part in of_entry if part.reason), None)
        found[entry] = (dict(modality.describe(stated)) if stated else {}, reason)
    return found


def facts_of(spec: ImagingSpec, tmp_path: Path, *made) -> dict:
    tmp_path.mkdir(exist_ok=True)
    for k, each in enumerate(made):
        (tmp_path / f"{k}.dcm").write_bytes(each if isinstance(each, bytes) else encoded(each))
    ((found, reason),) = described_entries(spec, tmp_path).values()
    assert reason is None
    return found


def refusal(spec: ImagingSpec, facts: dict, trained: dict | None = None) -> Refused | None:
    return refused(facts, spec.select, trained or {}, where_stated=spec.where_stated, shown=spec.coded)


def heads(count: int = 3, **settings) -> list:
    return [
        placed(
            dataset(GREY, instance=k, **settings),
            (0, 0, 2.5 * k),
            (0.5, 0.25),
            BodyPartExamined="HEAD",
            SliceThickness=2.5,
        )
        for k in range(count)
    ]


# --- what an entry is -----------------------------------------------------------------------------------------


def test_an_image_states_what_its_header_says_and_nobody_s_name(tmp_path):
    made = heads(1, KVP=120, Manufacturer="ACME", ManufacturerModelName="Scan 1", PatientBirthDate="19500101")[0]
    found = facts_of(FLAT, tmp_path, made)
    assert found == {
        "format": "dicom",
        "Modality": "CT",
        "SOPClassUID": CT,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "BodyPartExamined": "HEAD",
        "PhotometricInterpretation": "MONOCHROME2",
        "Manufacturer": "ACME",
        "ManufacturerModelName": "Scan 1",
        "SliceThickness": 2.5,
        "KVP": 120.0,
        "rows": 4,
        "columns": 6,
        "spacing_mm": [0.5, 0.25],
        "extent_mm": [2.0, 1.5],
        "orientation": "axial",
        "obliquity_degrees": 0.0,
        "contrast": False,
    }
    assert "Planted" not in json.dumps(found) and "1950" not in json.dumps(found)


def test_a_series_has_a_geometry(tmp_path):
    found = facts_of(DEEP, tmp_path, *heads(4))
    assert {name: found[name] for name in (*GEOMETRY, "SliceThickness")} == {
        "slices": 4,
        "rows": 4,
        "columns": 6,
        "spacing_mm": [2.5, 0.5, 0.25],
        "extent_mm": [10.0, 2.0, 1.5],
        "tilt_degrees": 0.0,
        "gap_median_mm": 2.5,
        "gap_min_mm": 2.5,
        "gap_max_mm": 2.5,
        "largest_hole_mm": 0.0,
        "residual_mm": 0.0,
        "SliceThickness": 2.5,
    }


def test_a_hole_and_a_tilt_stand_in_the_facts(tmp_path):
    made = [placed(dataset(GREY, instance=k), (0, 3.0 * z, 4.0 * z)) for k, z in enumerate((0, 1, 2, 5))]
    found = facts_of(DEEP, tmp_path, *made)
    assert found["tilt_degrees"] == 36.87  # arctan(3 / 4)
    assert (found["gap_min_mm"], found["gap_max_mm"], found["largest_hole_mm"]) == (4.0, 12.0, 12.0)
    assert found["residual_mm"] == 6.667  # slices at 0, 5, 10, 25 mm along the line; evenly the third were at 16.667


def test_facts_of_real_series_are_those_of_their_stack(shared_data, tmp_path):
    folder = shared_data / "imaging" / "dicom"
    for name in ("ct_ge_tilt/GE", "mr_philips_classic_vs_enhanced/enhanced_1901"):
        entries = described_entries(DEEP, folder / name)
        ((found, _),) = entries.values()
        slices, stacked = volume([path.read_bytes() for path in sorted((folder / name).iterdir())])
        assert found["slices"] == len(slices)
        assert found["spacing_mm"] == pytest.approx(stacked.spacing_mm, abs=1e-3)
        assert found["residual_mm"] == pytest.approx(stacked.residual_mm, abs=2e-3)
        assert found["tilt_degrees"] == pytest.approx(stacked.tilt_degrees, abs=0.01)
        assert found["largest_hole_mm"] == stacked.largest_hole_mm == 0


@pytest.mark.parametrize("step", [(0, 0, 2.5), (0.3, -1.2, 2.5), (0, 0, -1.7777777)])
def test_frames_on_a_line_are_kept_as_a_line_and_give_the_same_geometry(tmp_path, step):
    own = [frame([10.0 + k * s for s in step], (1.0, 0.0)) for k in range(300)]
    raw = encoded(enhanced(np.zeros((300, 4, 6), np.int16), own))
    part = imaging_facts.of_file(parse(raw), (), volumes=True)
    assert len(json.dumps(part)) < 700 and "positions" not in part
    found = facts_of(DEEP, tmp_path, raw)
    true = imaging_facts.geometry(volume([raw])[1], (4, 6))
    assert {name: found[name] for name in true} == true and found["slices"] == 300


def test_facts_of_parts_are_small(tmp_path):
    assert len(json.dumps(imaging_facts.of_file(parse(encoded(heads(1)[0])), (), volumes=True))) < 500


def test_slices_that_differ_give_sorted_lists_and_image_types_go_place_by_place(tmp_path):
    made = heads(3)
    made[0].ImageType, made[1].ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "ADD"], ["DERIVED", "PRIMARY", "AXIAL"]
    made[0].Manufacturer, made[1].Manufacturer = "B", "A"
    made[2].SliceThickness = 5.0
    found = facts_of(DEEP, tmp_path, *made)
    assert found["ImageType"] == [["DERIVED", "ORIGINAL"], "PRIMARY", "AXIAL", "ADD"]
    assert found["Manufacturer"] == ["A", "B"] and found["SliceThickness"] == [2.5, 5.0]


def test_pictures_and_arrays_state_their_format(tmp_path):
    Image.fromarray(GREY.astype(np.uint8)).save(tmp_path / "a.png")
    np.savez(tmp_path / "b.npz", train_images=GREY.astype(np.uint8)[None], train_labels=np.array([[1]]))
    (tmp_path / "c.nii").write_bytes(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4)).to_bytes())
    found = {entry: facts for entry, (facts, _) in described_entries(FLAT, tmp_path).items()}
    assert found == {"a.png": {"format": "picture"}, "b.npz#train/0": {"format": "npz"}, "c.nii": {"format": "nifti"}}


def test_the_grid_of_a_nifti_file_is_a_fact_and_that_of_its_reading(tmp_path):
    """Axes in any order and direction, sheared by arctan(1 / 2.5), in a compressed file."""
    affine = np.array([[0, -2.0, 0, 5], [0, 0, 2.5, 6], [1.5, 0, 1.0, 7], [0, 0, 0, 1]])
    for name, matrix in (("a.nii.gz", affine), ("b.nii.gz", np.diag([2.0, 3.0, 4.0, 1.0]))):
        image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), matrix)
        image.header.set_xyzt_units("mm")
        (tmp_path / name).write_bytes(gzip.compress(image.to_bytes()))
    found = {entry: facts for entry, (facts, _) in described_entries(DEEP, tmp_path).items()}
    assert found["b.nii.gz"] == {
        "format": "nifti", "slices": 5, "rows": 4, "columns": 3, "spacing_mm": [4.0, 3.0, 2.0],
        "extent_mm": [20.0, 12.0, 6.0], "tilt_degrees": 0.0,
        "orientation": "axial", "obliquity_degrees": 0.0,
        "affine_ras": [-2, 0, 0, 4, 0, -3, 0, 9, 0, 0, 4, 0, 0, 0, 0, 1],  # of the axes to the left, the back and the head
    }  # fmt: skip
    for entry, facts in found.items():
        read = decode([(tmp_path / entry).read_bytes()], volumes=True)
        assert (facts["slices"], facts["rows"], facts["columns"]) == read.shape
        assert facts["spacing_mm"] == pytest.approx(read.spacing_mm, abs=1e-3)
    assert found["a.nii.gz"]["tilt_degrees"] == pytest.approx(np.degrees(np.arctan2(1.0, 2.5)), abs=0.01)
    assert described_entries(FLAT, tmp_path)["a.nii.gz"][0] == {"format": "nifti"}


def test_an_enhanced_file_states_what_its_frames_do(tmp_path):
    """FrameType where the file's own type is MIXED (PS3.3 C.8.16.1), kV of the X-ray details, the coded region."""
    groups = {
        "CTXRayDetailsSequence": item(KVP=100.0),
        "CTReconstructionSequence": item(ConvolutionKernel="H30"),
        "FrameAnatomySequence": item(
            AnatomicRegionSequence=[item(CodeValue="69536005", CodingSchemeDesignator="SCT", CodeMeaning="Head")]
        ),
    }
    kinds = [["ORIGINAL", "PRIMARY", "AXIAL", "NONE"], ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]]
    own = [frame((0, 0, k), (1.0, 0.0), CTImageFrameTypeSequence=item(FrameType=kinds[k]), **groups) for k in range(2)]
    mixed = enhanced(np.zeros((2, 4, 6), np.int16), own, image_type=("ORIGINAL", "PRIMARY", "MIXED", "NONE"))
    spec = ImagingSpec(size=(2, 4, 6), select={"ConvolutionKernel": "H30"})
    found = facts_of(spec, tmp_path, mixed)
    assert found["ImageType"] == ["ORIGINAL", "PRIMARY", ["AXIAL", "LOCALIZER"], "NONE"]
    assert (found["BodyPartExamined"], found["KVP"], found["ConvolutionKernel"]) == ("HEAD", 100.0, "H30")
    assert refusal(spec, found) is None
    assert refusal(spec, found, {"ImageType[3]": ("AXIAL",)}) is not None


def test_codes_of_body_regions_are_those_of_the_standard():
    """PS3.16 annex L against pydicom's copy of SNOMED."""
    named = {
        "HEAD": codes.SCT.Head,
        "NECK": codes.SCT.Neck,
        "BRAIN": codes.SCT.Brain,
        "HEART": codes.SCT.Heart,
        "LIVER": codes.SCT.Liver,
        "KIDNEY": codes.SCT.Kidney,
        "PROSTATE": codes.SCT.Prostate,
        "BREAST": codes.SCT.Breast,
        "HAND": codes.SCT.Hand,
        "FOOT": codes.SCT.Foot,
    }
    for part, code in named.items():
        assert imaging_facts.BODY_PARTS[code.value] == part


def test_what_is_malformed_is_not_stated(tmp_path):
    raw = encoded(heads(1, KVP="120")[0]).replace(b"120 ", b"many")
    found = facts_of(FLAT, tmp_path, raw)
    assert "KVP" not in found and found["Modality"] == "CT"


@pytest.mark.parametrize("seed", range(4))
def test_damaged_headers_give_facts_that_a_table_can_hold(tmp_path, seed):
    """Bytes changed at random in headers of four kinds: nothing is raised, and no fact is NaN or endless."""
    rng = np.random.default_rng(seed)
    own = [frame((0, 0, 2.0 * k), (1.0, 0.0), CTXRayDetailsSequence=item(KVP=100.0)) for k in range(4)]
    made = [
        encoded(enhanced(np.zeros((4, 4, 6), np.int16), own, SpiralPitchFactor=1.5)),
        encoded(heads(1, SpiralPitchFactor=1.5)[0], "implicit"),
        encoded(heads(1, SpiralPitchFactor=1.5)[0], "big"),
        encoded(heads(1, SpiralPitchFactor=1.5)[0], "bare"),
    ]
    spec = open_modality(
        ImagingSpec(size=(2, 4, 6), select={"SpiralPitchFactor": {"min": 0}, "SeriesDescription": "x"})
    )
    path = tmp_path / "x.dcm"
    for _ in range(150):
        raw = bytearray(made[rng.integers(len(made))])
        for at in rng.integers(132 if raw[128:132] == b"DICM" else 0, len(raw) - 200, 4):
            raw[at] = rng.integers(256)
        path.write_bytes(raw)
        for part in spec.scan(File(str(path), len(raw), 1), str(tmp_path)):
            if part.facts is not None:
                assert len(json.dumps(part.facts, allow_nan=False)) < 3000
                json.dumps(spec.describe([part.facts]), allow_nan=False)


def test_numbers_that_are_none_and_frames_that_cannot_be_are_not_stated(tmp_path):
    spec = ImagingSpec(size=(4, 6), select={"SpiralPitchFactor": {"min": 0}})
    assert "SpiralPitchFactor" not in facts_of(spec, tmp_path, heads(1, SpiralPitchFactor=float("nan"))[0])
    made = enhanced(np.zeros((1, 4, 6), np.int16), [frame((0, 0, 0), (1.0, 0.0))], NumberOfFrames=2_000_000_000)
    del made.PerFrameFunctionalGroupsSequence
    assert "slices" not in imaging_facts.of_file(parse(encoded(made)), (), volumes=True)


def test_an_age_is_in_years_and_names_nobody(tmp_path):
    assert [descriptors.years(age) for age in ("045Y", "018M", "052W", "730D", "089Y", "101Y")] == [
        45.0, 1.5, 1.0, 2.0, 89.0, 90.0,
    ]  # fmt: skip
    assert [descriptors.years(age) for age in ("", None, "45", "abcY")] == [None] * 4
    spec = ImagingSpec(size=(4, 6), select={"PatientAge": {"min": 18}})
    assert facts_of(spec, tmp_path / "a", heads(1, PatientAge="045Y")[0])["PatientAge"] == 45.0
    assert refusal(spec, facts_of(spec, tmp_path / "b", heads(1, PatientAge="017Y")[0])) is not None


# --- rules ----------------------------------------------------------------------------------------------------


def test_any_keyword_of_the_standard_is_a_fact_once_a_rule_names_it(tmp_path):
    spec = ImagingSpec(
        size=(4, 6),
        select={
            "Modality": ["CT", "MR"],
            "ImageType[3]": "AXIAL",
            "SeriesDescription": {"pattern": "(?i)kopf|schädel"},
            "ConvolutionKernel": {"pattern": "^H"},
            "ReconstructionDiameter": {"min": 100, "max": 300},
            "Exposure": {"max": 500},
            "SliceThickness": {"max": 3},
            "rows": {"min": 4},
        },
    )
    told = {"SpecificCharacterSet": "ISO_IR 100", "SeriesDescription": "CT SCHÄDEL nativ", "ConvolutionKernel": "H30s"}
    found = facts_of(spec, tmp_path / "a", heads(1, ReconstructionDiameter=220, Exposure=300, **told)[0])
    assert found["SeriesDescription"] == "CT SCHÄDEL nativ" and found["ReconstructionDiameter"] == 220.0
    assert refusal(spec, found) is None
    answer = refusal(spec, found | {"SeriesDescription": "Meier^Anna Thorax"})
    assert answer is not None and answer.rule == "SeriesDescription" and "Meier" not in answer.detail
    answer = refusal(spec, found | {"Modality": "US"})
    assert answer is not None and answer.detail == "Modality: US; [modality.select] asks for CT or MR"


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big", "bare"])
def test_binary_numbers_and_texts_are_facts_in_every_encoding(tmp_path, syntax):
    names = {
        "Rows": 4,
        "SingleCollimationWidth": 0.625,
        "SpiralPitchFactor": 1.5,
        "ProtocolName": "head",
        "InstanceNumber": 1,
    }
    spec = ImagingSpec(size=(4, 6), select={name: value for name, value in names.items() if name != "Rows"})
    made = heads(1, SingleCollimationWidth=0.625, SpiralPitchFactor=1.5, ProtocolName="head")[0]
    found = facts_of(spec, tmp_path, encoded(made, syntax))
    assert {name: found.get(name) for name in names if name != "Rows"} == {
        k: v for k, v in names.items() if k != "Rows"
    }
    assert refusal(spec, found) is None


@pytest.mark.parametrize(
    "name, said",
    [
        ("Modalty", "did you mean Modality?"),
        ("BodyPart", "is neither a DICOM keyword nor a fact of an image"),
        ("largest_hole", "did you mean largest_hole_mm?"),
        ("PatientName", "may say who the patient is"),
        ("PatientID", "may say who the patient is"),
        ("PatientBirthDate", "may say who the patient is"),
        ("OtherPatientIDs", "may say who the patient is"),
        ("StudyDate", "or when"),
        ("AcquisitionTime", "or when"),
        ("AccessionNumber", "may say who the patient is"),
        ("StudyInstanceUID", "may say who the patient is"),
        ("ReferringPhysicianName", "may say who the patient is"),
        ("PatientComments", "may say who the patient is"),
        ("ImageComments", "may say who the patient is"),
        ("StudyID", "may say who the patient is"),
        ("DeviceSerialNumber", "may say who the patient is"),
        ("AnatomicRegionSequence", "is not text or a number"),
        ("PixelData", "is not text or a number"),
    ],
)
def test_a_rule_about_no_keyword_or_about_who_it_is_is_refused(name, said):
    with pytest.raises(ValidationError) as caught:
        ImagingSpec(size=(4, 6), select={name: "x"})
    assert said in str(caught.value)


def test_no_coded_fact_is_free_text():
    for name in DICOM_FACTS:
        assert (described(name)[1] in ("CS", "UI")) == (name in CODED)


# --- what the training archive held ---------------------------------------------------------------------------


def trained_on(*entries: dict) -> dict:
    return learnt(entries, ImagingSpec.learnt, ImagingSpec.where_stated)


CT_HEAD = {
    "Modality": "CT",
    "SOPClassUID": CT,
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "BodyPartExamined": "HEAD",
}


@pytest.mark.parametrize(
    "changes, rule",
    [
        ({}, None),
        ({"BodyPartExamined": None}, None),  # where it is stated
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "ADD"]}, None),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}, None),  # the third value counts
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "ImageType[3]"),
        ({"ImageType": ["ORIGINAL", "PRIMARY"]}, "ImageType[3]"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", ["AXIAL", "LOCALIZER"]]}, "ImageType[3]"),
        ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}, "ImageType[3]"),
        ({"BodyPartExamined": "ABDOMEN"}, "BodyPartExamined"),
        ({"BodyPartExamined": "head"}, None),
        ({"Modality": "MR"}, "Modality"),
        ({"Modality": None}, "Modality"),
        ({"SOPClassUID": ENHANCED_CT}, "SOPClassUID"),
        ({"SOPClassUID": LEGACY_CT}, "SOPClassUID"),
        ({"SOPClassUID": SC}, "SOPClassUID"),
    ],
)
def test_what_a_ct_head_archive_lacked_is_not_eligible(changes, rule):
    answer = refusal(FLAT, CT_HEAD | changes, trained_on(CT_HEAD))
    assert (answer and answer.rule) == rule
    if answer is not None:
        assert "the training archive held" in answer.detail


def test_two_values_of_an_image_type_are_learnt_beside_three_and_say_nothing_alone():
    radiograph = {"Modality": "CR", "SOPClassUID": "1", "ImageType": ["ORIGINAL", "PRIMARY"]}
    alone = trained_on(radiograph)
    assert set(alone) == {"Modality", "SOPClassUID"}  # nothing stated a third value, or a body part
    assert refusal(FLAT, radiograph | {"BodyPartExamined": "CHEST"}, alone) is None
    both = trained_on(radiograph, radiograph | {"ImageType": ["DERIVED", "PRIMARY", "ENHANCED"]})
    assert both["ImageType[3]"] == ("", "ENHANCED")
    assert refusal(FLAT, radiograph, both) is None
    assert refusal(FLAT, radiograph | {"ImageType": ["ORIGINAL", "PRIMARY", ""]}, both) is None
    answer = refusal(FLAT, radiograph | {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, both)
    assert answer is not None and answer.detail == "ImageType[3]: AXIAL; the training archive held none or ENHANCED"


def test_an_archive_of_classic_and_enhanced_files_takes_both():
    both = trained_on(
        CT_HEAD, CT_HEAD | {"SOPClassUID": ENHANCED_CT, "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]}
    )
    for sop_class in (CT, ENHANCED_CT):
        assert refusal(FLAT, CT_HEAD | {"SOPClassUID": sop_class}, both) is None
    assert refusal(FLAT, CT_HEAD | {"SOPClassUID": ENHANCED_MR}, both) is not None


def test_pictures_know_no_dicom_and_a_dicom_model_no_pictures():
    assert trained_on({"format": "picture"}) == {}
    assert refusal(FLAT, {"format": "nifti"}, trained_on(CT_HEAD)) is not None


@pytest.mark.parametrize("size", [(8, 8), (4, 8, 8)])
def test_of_a_mixed_archive_a_ct_head_model_is_asked_about_ct_heads_and_nothing_else(tmp_path, size):
    """500 series of twelve kinds, at the level of scan, describe and rules."""
    spec = ImagingSpec(size=size)
    mixed_archive.write(tmp_path / "train", 12, seed=1, kinds=mixed_archive.TRAINED)
    trained = trained_on(
        *(facts for facts, reason in described_entries(spec, tmp_path / "train").values() if not reason)
    )
    assert trained == {
        "Modality": ("CT",),
        "SOPClassUID": (CT,),
        "ImageType[3]": ("AXIAL",),
        "BodyPartExamined": ("HEAD",),
        "orientation": ("AXIAL",),
    }
    archive = mixed_archive.write(tmp_path / "archive", 500, seed=2)
    archive += mixed_archive.write(tmp_path / "archive", 5, seed=3, kinds=mixed_archive.BESIDE)
    entries = described_entries(spec, tmp_path / "archive")
    asked = {
        entry for entry, (facts, reason) in entries.items() if not reason and refusal(spec, facts, trained) is None
    }
    right = {
        each for series in archive if series.right for each in ((series.uid,) if len(size) == 3 else series.images)
    }
    assert asked == right and len({series.kind for series in archive}) >= 12
    reasons = Counter(reason for _, reason in entries.values() if reason)
    counts = Counter(series.kind for series in archive)
    assert reasons == {
        "segmentation": counts["segmentation"],
        "report": counts["structured report"],
    }


def test_a_mixed_archive_is_the_same_for_the_same_seed(tmp_path):
    for name in ("a", "b"):
        mixed_archive.write(tmp_path / name, 30, seed=5)
    a, b = ({p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.dcm")} for n in ("a", "b"))
    assert a == b and len(a) > 40


def test_a_text_whose_damaged_length_takes_in_the_patients_name_is_no_fact(tmp_path):
    """The length of Modality (CS, 2 bytes) becomes one that goes on behind PatientName."""
    made = bytearray(encoded(dataset(GREY, PatientName="Müller^Anna", PatientID="R1234")))
    at = made.index(b"\x08\x00\x60\x00CS")
    end = made.index(b"LO", made.index(b"R1234") - 8) - 4  # where the element of PatientID begins
    made[at + 6 : at + 8] = (end - at - 8).to_bytes(2, "little")
    (tmp_path / "a.dcm").write_bytes(made)
    assert b"ller^Anna" in parse(bytes(made)).values[0x00080060]
    ((facts, _),) = described_entries(FLAT, tmp_path).values()
    assert "Modality" not in facts and "ller" not in str(facts)
