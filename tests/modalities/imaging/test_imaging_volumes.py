"""A series of several volumes: what tells them apart, what they are called, and what a run makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from dicom_build import (
    ROOT,
    SC,
    dataset,
    encoded,
)
from pydicom.dataset import Dataset
from pydicom.uid import UID
from volume_archive import EACH, SERIES, SIZE, entries, first_values, image, manifest, refusal, volume

from medray.errors import NOT_ELIGIBLE
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec

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
    (entry,) = entries(tmp_path, volume("a", 0) + volume("b", 5)).values()
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
