"""Enhanced objects: what stands in functional groups is used in 2D exactly as in 3D (PS3.3 C.7.6.16)."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from dicom_build import (
    ENHANCED_CT,
    ENHANCED_MR,
    ENHANCED_PET,
    ENHANCED_US,
    ENHANCED_XA,
    LEGACY_CT,
    LEGACY_MR,
    LEGACY_PET,
    dataset,
    encoded,
    enhanced,
    frame,
    item,
)
from pydicom.dataset import Dataset

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom import pixels as dicom
from medray.modalities.imaging.formats.dicom import series
from medray.modalities.imaging.formats.dicom.frames import frames
from medray.modalities.imaging.formats.dicom.header import parse

STORED = np.arange(1, 13, dtype=np.int16).reshape(1, 3, 4)


def one(**settings) -> Dataset:
    return enhanced(STORED, [frame((0, 0, 0), (2.0, -1024.0))], **settings)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big", "bare"])
@pytest.mark.parametrize("undefined", [False, True])
def test_a_single_enhanced_frame_has_its_own_rescale_and_spacing_in_every_encoding(syntax, undefined):
    raw = encoded(one(), syntax, undefined)
    flat, deep = dicom.read_image(raw), series.read_series([raw])
    assert flat.values.tolist() == (2.0 * STORED[0] - 1024).tolist()
    assert flat.spacing_mm == (0.5, 0.25)
    assert np.array_equal(deep.values[0], flat.values) and deep.spacing_mm == (2.0, 0.5, 0.25)


@pytest.mark.parametrize(
    "sop_class", [ENHANCED_CT, ENHANCED_MR, ENHANCED_PET, LEGACY_CT, LEGACY_MR, LEGACY_PET, ENHANCED_XA]
)
def test_the_groups_are_read_whatever_the_class(sop_class):
    image = dicom.read_image(encoded(one(sop_class=sop_class)))
    assert image.values[0, 0] == -1022 and image.spacing_mm == (0.5, 0.25)


def test_a_shared_rescale_holds_for_all_frames_and_a_frame_s_own_wins():
    pixels = np.full((3, 2, 2), 10, np.int16)
    shared = frame(rescale=(2.0, 0.0))
    own = [frame((0, 0, 0)), frame((0, 0, 1), (3.0, 1.0)), frame((0, 0, 2))]
    image = series.read_series([encoded(enhanced(pixels, own, shared=shared, sop_class=ENHANCED_MR, modality="MR"))])
    assert image.values[:, 0, 0].tolist() == [20, 31, 20]


def test_shared_groups_hold_without_groups_of_each_frame():
    made = one()
    made.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [
        item(RescaleSlope=2, RescaleIntercept=-1024, RescaleType="HU")
    ]
    del made.PerFrameFunctionalGroupsSequence
    image = dicom.read_image(encoded(made))
    assert image.values[0, 0] == -1022 and image.spacing_mm == (0.5, 0.25)


def test_a_rescale_at_the_top_holds_where_no_group_has_one():
    made = enhanced(STORED, [frame((0, 0, 0))], RescaleSlope=2, RescaleIntercept=-1024)
    raw = encoded(made)
    assert dicom.read_image(raw).values[0, 0] == series.read_series([raw]).values[0, 0, 0] == -1022


def test_padding_of_an_enhanced_frame_is_covered_by_the_least_real_value():
    raw = encoded(enhanced(STORED, [frame((0, 0, 0), (2.0, -1024.0))], PixelPaddingValue=1))
    for values in (dicom.read_image(raw).values, series.read_series([raw]).values[0]):
        assert values[0].tolist() == [-1020, -1020, -1018, -1016]


def test_an_ultrasound_volume_lies_in_the_frame_of_its_own(dicom_bytes):
    """PS3.3 C.8.24.3.4: positions of an enhanced ultrasound volume stand in macros of its own."""
    pixels = np.stack([np.full((2, 2), k, np.uint8) for k in range(3)])
    own = [frame(PlanePositionVolumeSequence=item(ImagePositionVolume=[0, 0, 3.0 * k])) for k in (2, 0, 1)]
    shared = frame(PlaneOrientationVolumeSequence=item(ImageOrientationVolume=[1, 0, 0, 0, 1, 0]))
    made = enhanced(pixels, own, shared=shared, sop_class=ENHANCED_US, modality="US")
    del made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    image = series.read_series([encoded(made)])
    assert image.values[:, 0, 0].tolist() == [1, 2, 0] and image.spacing_mm == (3.0, 0.5, 0.25)


def test_an_angiogram_s_spacing_at_the_detector_stands_in_its_frame():
    """PS3.3 C.8.19.6.4, XA/XRF Frame Pixel Data Properties."""
    shared = frame(FramePixelDataPropertiesSequence=item(ImagerPixelSpacing=[0.2, 0.3]))
    made = enhanced(STORED, [Dataset()], shared=shared, sop_class=ENHANCED_XA, modality="XA")
    del made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert dicom.read_image(encoded(made)).spacing_mm == (0.2, 0.3)
    film = enhanced(np.repeat(STORED, 3, 0), [Dataset()] * 3, sop_class=ENHANCED_XA, modality="XA")
    with pytest.raises(SampleError, match="3 frames in one file"):
        dicom.read_image(encoded(film))


def test_a_classic_file_is_read_from_its_top_level():
    raw = encoded(dataset(STORED[0], RescaleSlope=2, RescaleIntercept=-1024, PixelSpacing=[0.5, 0.25]))
    image = dicom.read_image(raw)
    assert image.values[0, 0] == -1022 and image.spacing_mm == (0.5, 0.25)


def test_frame_descriptions_of_another_number_are_corrupt():
    made = enhanced(np.repeat(STORED, 2, 0), [frame((0, 0, 0), (1.0, 0.0))])
    with pytest.raises(SampleError, match="2 frames, but 1 frame descriptions") as caught:
        series.read_series([encoded(made)])
    assert caught.value.reason == "corrupt"


def test_a_damaged_sequence_is_corrupt_and_nothing_worse():
    raw = bytearray(encoded(one()))
    start = raw.index(b"\xfe\xff\x00\xe0")
    for at in range(start, len(raw) - 40):
        broken = bytearray(raw)
        broken[at] ^= 0xFF
        try:
            dicom.read_image(bytes(broken))
        except SampleError as error:
            assert error.reason in ("corrupt", "truncated", "unsupported", "bad_rescale", "not_an_image")


@pytest.mark.parametrize(("levels", "read"), [(3, True), (20, False)])
def test_sequences_of_a_file_that_pydicom_parses_are_read_to_a_depth(levels, read):
    innermost = item(FrameAcquisitionNumber=7)
    for _ in range(levels):
        innermost = item(FrameContentSequence=[innermost])
    made = one()
    made.PerFrameFunctionalGroupsSequence[0].FrameContentSequence = [innermost]
    header = parse(encoded(made, "bare"))
    assert not header.walked
    if read:
        assert frames(header)[0].own
    else:
        with pytest.raises(SampleError, match="nested more than 16 deep") as raised:
            frames(header)
        assert raised.value.reason == "corrupt"


def test_every_frame_says_what_pydicom_says_of_it(shared_data):
    """Real enhanced files of Philips and Siemens against pydicom's own view of shared and per-frame groups."""
    checked = 0
    for path in sorted((shared_data / "imaging" / "dicom").rglob("*")):
        if not path.is_file() or path.stat().st_size < 1000 or path.read_bytes()[128:132] != b"DICM":
            continue
        truth = pydicom.dcmread(path, stop_before_pixels=True)
        own = truth.get("PerFrameFunctionalGroupsSequence")
        if not own:
            continue
        shared = truth.SharedFunctionalGroupsSequence[0]
        for mine, theirs in zip(frames(parse(path.read_bytes())), own, strict=True):
            for macro, keyword in (
                ("PlanePositionSequence", "ImagePositionPatient"),
                ("PlaneOrientationSequence", "ImageOrientationPatient"),
                ("PixelMeasuresSequence", "PixelSpacing"),
                ("PixelValueTransformationSequence", "RescaleSlope"),
                ("PixelValueTransformationSequence", "RescaleType"),
                ("FrameContentSequence", "TemporalPositionIndex"),
                ("MRImageFrameTypeSequence", "FrameType"),
                ("MREchoSequence", "EffectiveEchoTime"),
            ):
                groups = theirs.get(macro) or shared.get(macro)
                group = mine.group(macro)
                assert (group is None) == (not groups), macro
                wanted = groups[0].get(keyword) if groups else None
                found = group.get(keyword) if group else None
                assert found == (list(wanted) if isinstance(wanted, pydicom.multival.MultiValue) else wanted), keyword
                checked += 1
    assert checked == 8 * (64 + 40 + 4 * 6)
