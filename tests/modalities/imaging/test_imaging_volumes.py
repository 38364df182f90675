"""A series of several volumes: what tells them apart, what they are called, and what a run makes of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from dicom_build import (
    CT,
    ENHANCED_CT,
    ENHANCED_MR,
    LEGACY_MR,
    MR,
    ROOT,
    SC,
    dataset,
    encoded,
    enhanced,
    frame,
    item,
    placed,
)
from pydantic import ValidationError
from pydicom.dataset import Dataset
from pydicom.uid import UID
from test_imaging_suv import pet

from medray.archive.entries import Entries, Entry, parts_table
from medray.archive.grouping import group_parts
from medray.errors import NOT_ELIGIBLE, SampleError
from medray.modalities.base import assembler, describer
from medray.modalities.imaging import facts as imaging_facts
from medray.modalities.imaging.formats.decode import Chosen, decode
from medray.modalities.imaging.formats.dicom.header import parse
from medray.modalities.imaging.formats.dicom.writer import uid
from medray.modalities.imaging.formats.image import Image
from medray.modalities.imaging.frames_text import chosen_frames, frames_of, frames_text
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.spec import judge
from medray.storage.files import list_files

SERIES = uid("series")
SIZE = (3, 4, 6)
EACH = ImagingSpec(size=SIZE, volumes="each")


def volume(
    label: str, value: int, count: int = 3, modality: str = "MR", start: float = 0.0, **elements
) -> list[Dataset]:
    """Slices at 0, 2, 4 … mm, all pixels of slice k being `value` + k."""
    made = []
    for k in range(count):
        each = dataset(
            np.full((4, 6), value + k, np.int16),
            sop_class=MR if modality == "MR" else CT,
            modality=modality,
            instance=f"{label} {k}",
        )
        each.InstanceNumber = 1
        made.append(placed(each, (0, 0, start + 2.0 * k), **elements))
    return made


def manifest(folder: Path, made: Sequence[Dataset | bytes], spec: ImagingSpec = EACH, seed: int = 0):
    """The manifest of these files under names, and in an order, that say nothing."""
    folder.mkdir(exist_ok=True)
    names = random.Random(seed).sample(range(1000), len(made))
    for name, each in zip(names, made, strict=True):
        (folder / f"{name}").write_bytes(each if isinstance(each, bytes) else encoded(each))
    modality = Imaging(spec)
    parts = [part for file in list_files(str(folder)) for part in modality.scan(file, str(folder))]
    random.Random(seed).shuffle(parts)
    table = parts_table(parts, b"k" * 32)
    return group_parts(table, describer(modality), judge(spec), assemble=assembler(modality))


def entries(folder: Path, made: Sequence[Dataset | bytes], spec: ImagingSpec = EACH, seed: int = 0) -> dict[str, Entry]:
    """Entry of what follows the series UID in its id."""
    found = Entries(manifest(folder, made, spec, seed))
    return {each.entry_id.removeprefix(SERIES): each for each in found}


def image(entry: Entry, spec: ImagingSpec = EACH) -> Image:
    return Imaging(spec).image(entry)


def first_values(found: dict[str, Entry], spec: ImagingSpec = EACH) -> dict[str, list[int]]:
    """The value of each slice of each entry."""
    return {key: image(entry, spec).values[:, 0, 0].astype(int).tolist() for key, entry in found.items()}


def refusal(entry: Entry, spec: ImagingSpec) -> SampleError:
    with pytest.raises(SampleError) as caught:
        Imaging(spec).read_one(entry)
    return caught.value


TOLD_APART: dict[str, tuple[Callable[[], list[Dataset]], dict[str, list[int]]]] = {
    "echo": (
        lambda: volume("a", 10, EchoNumbers=2, EchoTime=9.2) + volume("b", 0, EchoNumbers=1, EchoTime=4.6),
        {"#echo=1": [0, 1, 2], "#echo=2": [10, 11, 12]},
    ),
    "echo time alone": (
        lambda: volume("a", 10, EchoTime=9.2) + volume("b", 0, EchoTime=4.603),
        {"#echo-time=4.6": [0, 1, 2], "#echo-time=9.2": [10, 11, 12]},
    ),
    "time, also between the slices of another": (
        lambda: (
            volume("a", 10, start=1.0, TemporalPositionIdentifier=12) + volume("b", 0, TemporalPositionIdentifier=3)
        ),
        {"#t=0003": [0, 1, 2], "#t=0012": [10, 11, 12]},
    ),
    "b-value and direction": (
        lambda: (
            volume("a", 0, DiffusionBValue=0.0)
            + volume("b", 10, DiffusionBValue=1000.0, DiffusionGradientOrientation=[1.0, 0.0, 0.0])
            + volume("c", 20, DiffusionBValue=1000.0, DiffusionGradientOrientation=[0.0, 1.0, 0.0])
        ),
        {
            "#b=0,gradient=none": [0, 1, 2],
            "#b=1000,gradient=0.0000-1.0000-0.0000": [20, 21, 22],
            "#b=1000,gradient=1.0000-0.0000-0.0000": [10, 11, 12],
        },
    ),
    "magnitude and phase": (
        lambda: (
            volume("a", 0, ImageType=["ORIGINAL", "PRIMARY", "M"])
            + volume("b", 10, ImageType=["ORIGINAL", "PRIMARY", "P"])
        ),
        {"#type=ORIGINAL-PRIMARY-M": [0, 1, 2], "#type=ORIGINAL-PRIMARY-P": [10, 11, 12]},
    ),
    "cardiac phase": (
        lambda: (
            volume("a", 0, modality="CT", NominalPercentageOfCardiacPhase=40.0)
            + volume("b", 10, modality="CT", NominalPercentageOfCardiacPhase=75.0)
        ),
        {"#phase=40": [0, 1, 2], "#phase=75": [10, 11, 12]},
    ),
    "reconstruction": (
        lambda: (
            volume("a", 0, modality="CT", ConvolutionKernel="B30f")
            + volume("b", 10, modality="CT", ConvolutionKernel="B70f")
        ),
        {"#kernel=B30f": [0, 1, 2], "#kernel=B70f": [10, 11, 12]},
    ),
    "acquisition and reconstruction": (
        lambda: [
            each
            for acquisition in (1, 2)
            for kernel, value in (("B30f", 0), ("B70f", 10))
            for each in volume(
                f"{acquisition}{kernel}",
                value + 20 * acquisition,
                modality="CT",
                AcquisitionNumber=acquisition,
                ConvolutionKernel=kernel,
            )
        ],
        {
            "#acquisition=0001,kernel=B30f": [20, 21, 22],
            "#acquisition=0001,kernel=B70f": [30, 31, 32],
            "#acquisition=0002,kernel=B30f": [40, 41, 42],
            "#acquisition=0002,kernel=B70f": [50, 51, 52],
        },
    ),
    "scans between each other": (
        lambda: (
            volume("a", 0, modality="CT", AcquisitionNumber=1)
            + volume("b", 10, modality="CT", start=1.0, AcquisitionNumber=2)
        ),
        {"#acquisition=0001": [0, 1, 2], "#acquisition=0002": [10, 11, 12]},
    ),
}


@pytest.mark.parametrize("name", TOLD_APART)
def test_volumes_are_told_apart_and_named_by_what_they_differ_in(tmp_path, name):
    make, expected = TOLD_APART[name]
    assert first_values(entries(tmp_path / "a", make())) == expected
    again = entries(tmp_path / "b", make(), seed=7)  # under other names, in another order
    fingerprints = {key: each.fingerprint for key, each in entries(tmp_path / "a", make()).items()}
    assert {key: each.fingerprint for key, each in again.items()} == fingerprints
    (refused,) = entries(tmp_path / "c", make(), ImagingSpec(size=SIZE)).values()
    error = refusal(refused, ImagingSpec(size=SIZE))
    assert error.reason in ("bad_geometry", "unsupported")
    assert f"{len(expected)} volumes by" in error.detail and 'volumes = "each", "first" or "channels"' in error.detail


def test_a_series_of_one_volume_keeps_its_id_and_fingerprint_under_every_setting(tmp_path):
    made = volume("a", 0, EchoNumbers=1)
    marks = set()
    for k, volumes in enumerate(("refuse", "each", "first", "channels")):
        (entry,) = entries(tmp_path / str(k), made, ImagingSpec(size=SIZE, volumes=volumes)).values()
        assert entry.entry_id == SERIES
        marks.add(entry.fingerprint)
    assert len(marks) == 1


def test_the_first_volume_is_an_original_magnitude_of_the_least_echo_and_time(tmp_path):
    spec = ImagingSpec(size=SIZE, volumes="first")
    made = (
        volume("a", 0, EchoNumbers=2, TemporalPositionIdentifier=1)
        + volume("b", 10, EchoNumbers=1, TemporalPositionIdentifier=2)
        + volume("c", 20, EchoNumbers=1, TemporalPositionIdentifier=1)
        + volume("d", 30, EchoNumbers=0, ImageType=["DERIVED", "PRIMARY", "M"])
    )
    assert first_values(entries(tmp_path, made, spec), spec) == {"": [20, 21, 22]}


def test_volumes_as_channels_are_in_the_order_of_their_echoes(tmp_path):
    spec = ImagingSpec(size=SIZE, volumes="channels", channels=2, normalise="none")
    made = volume("a", 10, EchoNumbers=2) + volume("b", 0, EchoNumbers=1)
    (entry,) = entries(tmp_path, made, spec).values()
    assert entry.entry_id == SERIES and len(entry.parts) == 6
    pixels = np.array(Imaging(spec).read_one(entry)["pixels"].to_pylist()).reshape(2, *SIZE)
    assert pixels[:, :, 0, 0].tolist() == [[0, 1, 2], [10, 11, 12]]
    three = spec.model_copy(update={"channels": 3})
    assert refusal(entry, three).reason == "bad_shape" and "2 volumes" in refusal(entry, three).detail
    one = Imaging(spec.model_copy(update={"channels": 2}))
    (alone,) = entries(tmp_path / "one", volume("a", 0), spec).values()
    assert refusal(alone, one.spec).reason == "bad_shape"  # grey is not repeated where channels are volumes


def test_volumes_that_do_not_lie_on_one_grid_are_no_channels(tmp_path):
    spec = ImagingSpec(size=SIZE, volumes="channels", channels=2)
    for k, other in enumerate(
        (
            volume("b", 0, start=1.0, EchoNumbers=1),
            volume("b", 0, count=2, EchoNumbers=1),
            volume("b", 0, EchoNumbers=1, FrameOfReferenceUID="1.2.3"),
            volume("b", 0, EchoNumbers=1, PixelSpacing=[2.0, 2.0]),
        )
    ):
        (entry,) = entries(tmp_path / str(k), volume("a", 10, EchoNumbers=2) + other, spec).values()
        assert refusal(entry, spec).reason == "bad_geometry"


def test_repetitions_are_told_apart_by_a_time_with_an_interval_for_each(tmp_path):
    """Slices are acquired one after the other, so that each has a time of its own."""
    made = []
    for t in range(3):
        for k, each in enumerate(volume(f"{t}", 10 * t)):
            each.TriggerTime = 1000.0 * t + 300.0 * (k * 2 % 3)
            made.append(each)
    assert first_values(entries(tmp_path / "a", made)) == {
        "#t=0001": [0, 1, 2],
        "#t=0002": [10, 11, 12],
        "#t=0003": [20, 21, 22],
    }
    for k, each in enumerate(made):
        each.TriggerTime = float(k // 3 + 3 * (k % 3))  # now slice by slice
    (entry,) = entries(tmp_path / "b", made).values()
    assert entry.entry_id == SERIES and refusal(entry, EACH).reason == "unsupported"


def test_what_nothing_tells_apart_stays_together_and_is_refused(tmp_path):
    (entry,) = entries(tmp_path, volume("a", 0) + volume("b", 0)).values()
    assert entry.entry_id == SERIES
    assert refusal(entry, EACH).reason == "unsupported" and "6 slices at 3 positions" in refusal(entry, EACH).detail


def test_a_value_of_its_own_for_every_slice_makes_no_volumes_of_single_slices(tmp_path):
    made = volume("a", 0, count=5)
    for k, each in enumerate(made):
        each.EchoTime = 4.0 + k
    (entry,) = entries(tmp_path, made).values()
    assert entry.entry_id == SERIES
    error = refusal(entry, EACH)
    assert error.reason == "bad_geometry" and "EchoTime" in error.detail


def test_a_point_of_time_that_was_cut_short_is_no_volume(tmp_path):
    made = volume("a", 0, TemporalPositionIdentifier=1) + volume("b", 10, count=2, TemporalPositionIdentifier=2)
    found = entries(tmp_path, made)
    assert found["#t=0001"].reason is None
    assert found["#t=0002"].reason == "bad_geometry" and "lacks 1 of the 3 slices" in (found["#t=0002"].detail or "")


def test_planes_and_frames_of_reference_and_grids_are_volumes_of_their_own(tmp_path):
    sagittal = volume("b", 10)
    for k, each in enumerate(sagittal):
        each.ImageOrientationPatient, each.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [2.0 * k, 0, 0]
    found = entries(tmp_path / "a", volume("a", 0) + sagittal)
    assert [key.rpartition("-")[0] for key in found] == ["#plane=axial", "#plane=sagittal"]
    assert {tuple(values) for values in first_values(found).values()} == {(0, 1, 2), (12, 11, 10)}
    made = volume("a", 0, FrameOfReferenceUID="1.2.3") + volume("b", 10, FrameOfReferenceUID="1.2.4")
    found = entries(tmp_path / "b", made)
    assert len(found) == 2 and all(key.startswith("#frame-of-reference=") and "1.2." not in key for key in found)
    found = entries(tmp_path / "c", volume("a", 0) + volume("b", 10, PixelSpacing=[0.5, 0.5]))
    assert sorted(found) == ["#spacing=0.5x0.5", "#spacing=1x1"]


def test_ids_hold_codes_and_numbers_and_of_texts_a_digest(tmp_path):
    made = volume("a", 0, ContrastBolusAgent="Planted Name") + volume("b", 10, ContrastBolusAgent="Another")
    found = manifest(tmp_path, made)
    for text in map(json.dumps, found.drop_columns(["fingerprint", "parts"]).to_pylist()):
        assert "Planted" not in text and "Another" not in text
    assert all("#contrast=" in each for each in found["entry_id"].to_pylist())


def test_entries_of_one_series_are_of_one_subject_also_where_none_is_stated(tmp_path):
    made = volume("a", 0, EchoNumbers=2) + volume("b", 0, EchoNumbers=1)
    for each in made:
        del each.PatientID
    assert len({each.subject_id for each in entries(tmp_path, made).values()}) == 1


def test_one_damaged_slice_keeps_its_series_together(tmp_path):
    made = volume("a", 0, EchoNumbers=2) + volume("b", 0, EchoNumbers=1)
    raws = [encoded(each) for each in made]
    (entry,) = entries(tmp_path, [*raws[:5], raws[5][:-20]]).values()
    assert entry.entry_id == SERIES and entry.reason == "truncated"


# --- what is no slice -----------------------------------------------------------------------------------------


def test_a_localizer_beside_a_scan_is_set_apart_and_the_scan_keeps_its_id(tmp_path):
    scan = volume("a", 0, modality="CT")
    scout = volume("b", 50, count=1, modality="CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    scout[0].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    spec = ImagingSpec(size=SIZE)
    found = entries(tmp_path / "a", scan + scout, spec)
    assert first_values({"": found[""]}, spec) == {"": [0, 1, 2]}
    assert found["#localizer"].reason == "localizer" and "localizer" in NOT_ELIGIBLE
    (alone,) = entries(tmp_path / "b", scout, spec).values()
    assert (alone.entry_id, alone.reason) == (SERIES, "localizer")
    (whole,) = entries(tmp_path / "c", scan, spec).values()
    assert found[""].fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    "asks", [{"select": {"ImageType[3]": "LOCALIZER"}}, {"trained": {"ImageType[3]": ("AXIAL", "LOCALIZER")}}]
)
def test_a_run_that_asks_for_localizers_reads_them(tmp_path, asks):
    scout = volume("b", 50, modality="CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    spec = ImagingSpec.model_validate({"size": SIZE, **asks})
    (entry,) = entries(tmp_path, scout, spec).values()
    assert entry.reason is None and image(entry, spec).values[:, 0, 0].tolist() == [50, 51, 52]


def test_a_secondary_capture_without_a_place_is_set_apart_and_with_one_it_is_a_slice(tmp_path):
    capture = dataset(np.zeros((4, 6), np.int16), sop_class=SC, modality="CT", instance="sc")
    found = entries(tmp_path / "a", [*volume("a", 0, modality="CT"), capture], ImagingSpec(size=SIZE))
    assert found["#secondary-capture"].reason == "secondary_capture" and found[""].reason is None
    made = volume("a", 0, modality="CT")
    for each in made:
        each.SOPClassUID = each.file_meta.MediaStorageSOPClassUID = UID(ROOT + "7")
    (entry,) = entries(tmp_path / "b", made, ImagingSpec(size=SIZE)).values()
    assert entry.reason is None


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


# --- gaps -----------------------------------------------------------------------------------------------------


def uneven(*places: float) -> list[Dataset]:
    return [
        placed(dataset(np.full((4, 6), int(10 * z), np.int16), instance=k), (0, 0, z), SliceThickness=1.0)
        for k, z in enumerate(places)
    ]


def test_uneven_slices_are_refused_kept_or_resampled_to_an_even_grid(tmp_path):
    made = uneven(0, 1, 2, 3.5, 4.5, 5.5)
    (entry,) = entries(tmp_path, made).values()
    fail, keep, grid = (
        ImagingSpec(size=(6, 4, 6), gaps=gaps, max_gap_mm=2.0, normalise="none")
        for gaps in ("fail", "keep", "resample")
    )
    assert refusal(entry, fail).reason == "bad_geometry"
    rows = {
        spec.gaps: np.array(Imaging(spec).read_one(entry)["pixels"].to_pylist()).reshape(6, 4, 6)[:, 0, 0].tolist()
        for spec in (keep, grid)
    }
    assert rows["keep"] == [0, 10, 20, 35, 45, 55]  # as they stand
    assert rows["resample"] == [0, 10, 20, 30, 40, 50]  # values are ten times the place, at 0, 1, 2 …
    narrow = grid.model_copy(update={"max_gap_mm": 1.2})
    assert refusal(entry, narrow).reason == "bad_geometry" and "1.50 mm" in refusal(entry, narrow).detail
    (facts,) = [json.loads(each) for each in manifest(tmp_path, made)["facts"].to_pylist()]
    assert facts["flags"] == ["irregular_gaps"] and facts["residual_mm"] == pytest.approx(0.2)


def test_a_missing_slice_is_filled_up_to_the_stated_gap_and_the_affine_meets_the_even_grid(tmp_path):
    made = uneven(0, 1, 2, 4, 5)
    (entry,) = entries(tmp_path, made).values()
    spec = ImagingSpec(size=(6, 4, 6), gaps="resample", max_gap_mm=2.0)
    found = image(entry, spec)
    assert found.values[:, 0, 0].tolist() == [0, 10, 20, 30, 40, 50] and not found.irregular and found.hole_mm == 0
    assert found.affine_ras is not None and found.affine_ras[2, 2] == pytest.approx(1.0)
    assert found.spacing_mm == (1.0, 1.0, 1.0)


def test_a_sheared_stack_stays_sheared_when_its_gaps_are_made_even(tmp_path):
    made = uneven(0, 1, 2, 4, 5)
    for each in made:
        z = each.ImagePositionPatient[2]
        each.ImagePositionPatient = [0, 0.5 * z, z]
    (entry,) = entries(tmp_path, made).values()
    found = image(entry, ImagingSpec(size=(6, 4, 6), gaps="resample", max_gap_mm=2.0))
    assert found.slices_mm is not None and np.allclose(found.slices_mm[:, 1], 0.5 * np.arange(6))
    assert found.affine_ras is not None and np.allclose(found.affine_ras[:3, 2], [0, -0.5, 1.0])


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"size": (4, 6), "volumes": "each"}, "belong to size"),
        ({"size": (4, 6), "gaps": "keep"}, "belong to size"),
        ({"size": SIZE, "frames": "each"}, "frames are slices"),
        ({"size": SIZE, "gaps": "resample"}, "needs max_gap_mm"),
        ({"size": SIZE, "channels": 2}, "channels must be 1 or 3"),
        ({"size": SIZE, "volumes": "all"}, "volumes"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, word):
    with pytest.raises(ValidationError, match=word):
        ImagingSpec.model_validate(settings)
