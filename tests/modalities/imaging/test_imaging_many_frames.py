"""Files of many frames: their volumes in 3D, their images in 2D, and what is known of each."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from dicom_build import (
    ENHANCED_CT,
    ENHANCED_MR,
    LEGACY_MR,
    encoded,
    enhanced,
    frame,
    item,
)
from pydicom.dataset import Dataset
from test_imaging_suv import pet
from volume_archive import SERIES, SIZE, entries, first_values, image, manifest, refusal, volume

from medray.archive.entries import Entries
from medray.errors import SampleError
from medray.modalities.imaging import facts as imaging_facts
from medray.modalities.imaging.formats.decode import Chosen, decode
from medray.modalities.imaging.formats.dicom.header import parse
from medray.modalities.imaging.frames_text import chosen_frames, frames_of, frames_text
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec

# --- files of many frames -------------------------------------------------------------------------------------


def multi(times: int, slices: int, *, in_time_first: bool = False, sop_class: str = ENHANCED_MR, **elements) -> Dataset:
    """An enhanced file of `times` volumes, the value of a frame being 100 times its time, from 1, and its slice."""
    order = [(t, k) for t in range(1, times + 1) for k in range(slices)]
    if in_time_first:
        order.sort(key=lambda each: each[1])
    own = []
    for t, k in order:
        content = item(
            TemporalPositionIndex=t, DimensionIndexValues=[1, k + 1, t], InStackPositionNumber=k + 1, StackID="1"
        )
        content.FrameAcquisitionDateTime = f"20200101{10 + t // 60:02d}{t % 60:02d}{k / 100:05.2f}"
        own.append(frame((0, 0, 2.0 * k), (1.0, 0.0), FrameContentSequence=content))
    pixels = np.array([np.full((4, 6), 100 * t + k) for t, k in order], np.int16)
    return enhanced(pixels, own, sop_class=sop_class, modality="MR", **elements)


@pytest.mark.parametrize("in_time_first", [False, True])
def test_the_volumes_of_an_enhanced_file_are_frames_of_it(tmp_path, in_time_first):
    found = entries(tmp_path, [multi(3, 4, in_time_first=in_time_first)])
    assert first_values(found) == {f"#t=000{t}": [100 * t + k for k in range(4)] for t in (1, 2, 3)}
    expected = ["1-10:3", "2-11:3", "3-12:3"] if in_time_first else ["1-4", "5-8", "9-12"]
    assert [each.parts[0].locator.rpartition("#frames=")[2] for each in found.values()] == expected
    assert len({each.fingerprint for each in found.values()}) == 3
    spec = ImagingSpec(size=(4, 4, 6), volumes="channels", channels=3)
    (entry,) = entries(tmp_path, [multi(3, 4, in_time_first=in_time_first)], spec).values()
    assert image(entry, spec).values[:, 0, 0, 0].tolist() == [100, 200, 300]


def two_echoes() -> Dataset:
    """An enhanced file of two echoes of four slices, of 10 and of 100 ms."""
    own = []
    for k in range(8):
        content = item(DimensionIndexValues=[1, k % 4 + 1, k // 4 + 1], InStackPositionNumber=k % 4 + 1, StackID="1")
        echo = item(EffectiveEchoTime=100.0 if k >= 4 else 10.0)
        kind = item(FrameType=["ORIGINAL", "PRIMARY", "PHASE MAP" if k >= 4 else "T1", "NONE"])
        groups = {"FrameContentSequence": content, "MREchoSequence": echo, "MRImageFrameTypeSequence": kind}
        own.append(frame((0, 0, 2.0 * (k % 4)), (1.0, 0.0), **groups))
    pixels = np.array([np.full((4, 6), k) for k in range(8)], np.int16)
    made = enhanced(pixels, own, sop_class=ENHANCED_MR, modality="MR")
    made.ImageType = ["ORIGINAL", "PRIMARY", "MIXED", "NONE"]
    return made


@pytest.mark.parametrize("rule", [{"EffectiveEchoTime": {"max": 30}}, {"ImageType[3]": "T1"}])
def test_a_rule_is_about_the_frames_that_an_entry_takes(tmp_path, rule):
    spec = ImagingSpec.model_validate({"size": SIZE, "volumes": "each", "select": rule})
    found = entries(tmp_path / "volumes", [two_echoes()], spec)
    assert [(len(frames_of(each.parts[0].locator.rpartition("=")[2])), each.reason) for each in found.values()] == [
        (4, None),
        (4, "not_eligible"),
    ]
    spec = ImagingSpec.model_validate({"size": SIZE[1:], "frames": "each", "select": rule})
    found = entries(tmp_path / "frames", [two_echoes()], spec)
    assert [each.reason for each in found.values()] == [None] * 4 + ["not_eligible"] * 4
    spec = ImagingSpec.model_validate({"size": SIZE[1:], "frames": "middle", "select": rule})
    assert [each.reason for each in entries(tmp_path / "middle", [two_echoes()], spec).values()] == ["not_eligible"]


def test_b_values_of_vendors_are_numbers_and_in_their_order(tmp_path):
    def philips(label: str, value: int, b_value: float) -> list[Dataset]:
        made = volume(label, value)
        for each in made:
            each.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x03, "FL", b_value)
        return made

    def general_electric(label: str, value: int, text: list[int]) -> list[Dataset]:
        made = volume(label, value)
        for each in made:
            each.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x39, "IS", text)
        return made

    made = philips("a", 30, 1000.0) + philips("b", 20, 880.0) + philips("c", 10, 500.0) + philips("d", 0, 0.0)
    found = first_values(entries(tmp_path / "a", made))
    assert found == {
        f"#b={b}": [value + k for k in range(3)] for b, value in ((0, 0), (1000, 30), (500, 10), (880, 20))
    }
    spec = ImagingSpec(size=SIZE, volumes="channels", channels=4)
    (entry,) = entries(tmp_path / "b", made, spec).values()
    assert image(entry, spec).values[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    made = general_electric("a", 10, [1_000_000_800, 8, 0, 0]) + general_electric("b", 0, [0, 8, 0, 0])
    assert first_values(entries(tmp_path / "c", made)) == {"#b=0": [0, 1, 2], "#b=800": [10, 11, 12]}


@pytest.mark.parametrize("number", range(8))
def test_an_original_of_a_long_image_type_comes_before_what_was_computed(tmp_path, number):
    kind = ["ORIGINAL", "PRIMARY", "M", "ND", "NORM", "FM4_2", "FIL", "DIS3D", "MFSPLIT", f"ADDED{number}"]
    made = volume("b", 10, ImageType=["DERIVED", "SECONDARY", "MPR"]) + volume("a", 0, ImageType=kind)
    spec = ImagingSpec(size=SIZE, volumes="first")
    assert first_values(entries(tmp_path, made, spec), spec) == {"": [0, 1, 2]}


@pytest.mark.parametrize("volumes", ["first", "each"])
def test_some_of_a_series_does_not_say_when_its_scan_began(tmp_path, volumes):
    """START of a later reconstruction is the first acquisition of the whole series (`suv.py`)."""
    times, spaces = ("114946.2", "124946.2"), ("1.2.3", "1.2.4")
    late = {"SeriesTime": "150000"}
    made = [
        pet(k + 10 * i, **late, AcquisitionTime=times[i], FrameOfReferenceUID=spaces[i]) for i in (0, 1) for k in (0, 1)
    ]
    spec = ImagingSpec.model_validate({"size": (2, 2, 2), "volumes": volumes, "pet": "suv_bw"})
    for entry in entries(tmp_path / "two", made, spec).values():
        assert refusal(entry, spec).reason == "no_quantity"
    (entry,) = entries(tmp_path / "one", made[:2], spec).values()
    assert image(entry, spec).values[:, 1, 1] == pytest.approx(2500 * 70_000 / 185e6)


def test_what_is_set_apart_has_another_fingerprint_than_what_is_scored(tmp_path):
    scout = volume("b", 50, modality="CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    asked = ImagingSpec.model_validate({"size": SIZE, "select": {"ImageType[3]": "LOCALIZER"}})
    (read,), (apart,) = (entries(tmp_path / "a", scout, spec).values() for spec in (asked, ImagingSpec(size=SIZE)))
    assert (read.entry_id, read.reason, apart.entry_id, apart.reason) == (SERIES, None, SERIES, "localizer")
    assert read.fingerprint != apart.fingerprint
    early = volume("a", 0, TemporalPositionIdentifier=1)
    found = entries(tmp_path / "b", early + volume("b", 10, count=3, TemporalPositionIdentifier=2))
    later = entries(tmp_path / "c", early + volume("b", 10, count=4, TemporalPositionIdentifier=2))
    assert (found["#t=0001"].reason, later["#t=0001"].reason) == (None, "bad_geometry")
    assert found["#t=0001"].fingerprint != later["#t=0001"].fingerprint


def test_facts_of_a_volume_are_of_its_frames_alone(tmp_path):
    made = multi(2, 4)
    for k, groups in enumerate(made.PerFrameFunctionalGroupsSequence):
        kind = ["ORIGINAL", "PRIMARY", "T1", "NONE"] if k < 4 else ["DERIVED", "PRIMARY", "T1", "ADC"]
        groups.MRImageFrameTypeSequence = [item(FrameType=kind)]
    made.ImageType = ["MIXED", "PRIMARY", "T1", "MIXED"]
    found = [json.loads(each) for each in manifest(tmp_path, [made])["facts"].to_pylist()]
    assert [each["ImageType"] for each in found] == [
        ["ORIGINAL", "PRIMARY", "T1", "NONE"],
        ["DERIVED", "PRIMARY", "T1", "ADC"],
    ]
    for each in found:
        assert each["slices"] == 4 and each["spacing_mm"] == [2.0, 0.5, 0.25] and each["residual_mm"] == 0
        assert each["affine_ras"] == [-0.25, 0, 0, 0, 0, -0.5, 0, 0, 0, 0, 2.0, 0, 0, 0, 0, 1.0]
        assert not {"volume", "blocks", "positions", "line"} & set(each)


def test_facts_of_many_frames_are_small():
    """Each frame has a time of its own."""
    stated = imaging_facts.of_file(parse(encoded(multi(20, 10))), (), volumes=True)
    blocks = stated["blocks"]
    assert isinstance(blocks, list) and len(blocks) == 20 and len(json.dumps(stated)) < 600 + 20 * 130
    one = imaging_facts.of_file(parse(encoded(multi(1, 200))), (), volumes=True)
    assert len(json.dumps(one)) < 700 and "blocks" not in one


def test_a_legacy_converted_file_of_repetitions_goes_by_the_times_of_its_frames(tmp_path):
    made = multi(2, 3, sop_class=LEGACY_MR)
    for groups in made.PerFrameFunctionalGroupsSequence:
        content = groups.FrameContentSequence[0]
        del content.TemporalPositionIndex, content.DimensionIndexValues
    assert first_values(entries(tmp_path, [made])) == {"#t=0001": [100, 101, 102], "#t=0002": [200, 201, 202]}


def test_dimensions_tell_apart_what_no_attribute_does(tmp_path):
    made = multi(2, 3, sop_class=ENHANCED_CT)
    pointers = (0x00209056, 0x00209057, 0x00189073)
    made.DimensionIndexSequence = [item(DimensionIndexPointer=pointer) for pointer in pointers]
    for groups in made.PerFrameFunctionalGroupsSequence:
        del (
            groups.FrameContentSequence[0].TemporalPositionIndex,
            groups.FrameContentSequence[0].FrameAcquisitionDateTime,
        )
    assert first_values(entries(tmp_path, [made])) == {
        "#dimensions=1": [100, 101, 102],
        "#dimensions=2": [200, 201, 202],
    }


def test_frames_that_are_not_there_any_more_are_a_change():
    raw = encoded(multi(1, 3))
    with pytest.raises(SampleError) as caught:
        decode([raw], True, Chosen([[0, 1, 7]]))
    assert caught.value.reason == "changed"


def test_frames_are_written_as_ranges_and_read_back():
    for numbers, text in (
        ([0], "1"),
        ([0, 1, 2, 3], "1-4"),
        ([0, 2, 4, 6], "1-7:2"),
        ([0, 5], "1,6"),
        ([0, 1, 2, 9, 11, 13, 20], "1-3,10-14:2,21"),
    ):
        assert frames_text(numbers) == text and frames_of(text) == numbers
    rng = random.Random(0)
    for _ in range(200):
        numbers = sorted(rng.sample(range(60), rng.randint(1, 30)))
        assert frames_of(frames_text(numbers)) == numbers
    assert chosen_frames("1.2.3") is None and chosen_frames("1.2#3#frames=2-3") == [1, 2]


# --- in two dimensions ----------------------------------------------------------------------------------------


def test_frames_in_2d_are_refused_or_each_an_entry_or_the_middle_one(tmp_path):
    made = multi(1, 4)
    flat = {frames: ImagingSpec(size=(4, 6), frames=frames) for frames in ("refuse", "each", "middle")}
    sop = str(made.SOPInstanceUID)
    (entry,) = entries(tmp_path, [made], flat["refuse"]).values()
    error = refusal(entry, flat["refuse"])
    assert error.reason == "unsupported" and 'set frames = "each" or "middle"' in error.detail
    each = list(Entries(manifest(tmp_path, [made], flat["each"])))
    assert [one.entry_id for one in each] == [f"{sop}#frame=000{k}" for k in (1, 2, 3, 4)]
    assert [int(image(one, flat["each"]).values[0, 0]) for one in each] == [100, 101, 102, 103]
    assert image(each[0], flat["each"]).spacing_mm == (0.5, 0.25)
    (middle,) = Entries(manifest(tmp_path, [made], flat["middle"]))
    assert middle.entry_id == sop and int(image(middle, flat["middle"]).values[0, 0]) == 102


def test_a_single_frame_is_the_same_entry_under_every_setting(tmp_path):
    made = volume("a", 7, count=1)[0]
    marks = set()
    for frames in ("refuse", "each", "middle"):
        spec = ImagingSpec(size=(4, 6), frames=frames)
        (entry,) = Entries(manifest(tmp_path, [made], spec))
        marks.add((entry.entry_id, entry.fingerprint, float(image(entry, spec).values[0, 0])))
    assert len(marks) == 1


def test_tiles_of_a_mosaic_are_frames_in_2d_and_slices_in_3d(shared_data, index):
    folder = shared_data / "imaging" / "dicom" / "mr_transfer_syntaxes" / "In"
    (raw,) = [(folder / "1.dcm").read_bytes()]
    deep = decode([raw], True)
    flat = Imaging(ImagingSpec(size=(64, 64), frames="each"))
    found = [each for each in Entries(index(flat, folder)) if each.parts[0].uri.endswith("/1.dcm")]
    assert len(found) == 35
    tiles = [flat.image(each).values for each in found]
    assert np.array_equal(np.stack(tiles), deep.values)  # this scanner's tiles go the way of the normal
    middle = Imaging(ImagingSpec(size=(64, 64), frames="middle"))
    (one,) = [each for each in Entries(index(middle, folder)) if each.parts[0].uri.endswith("/1.dcm")]
    assert np.array_equal(middle.image(one).values, tiles[17])
