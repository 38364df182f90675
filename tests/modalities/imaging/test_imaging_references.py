"""Every series of the shared data against its reference: shape, stored values, affine, flags, and NIfTI files.

The NIfTI files were made by dcm2niix and are checked in beside the series (see the README of each folder).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from nifti_places import at_our_places, volumes_of

from medray.archive.entries import Entries, Entry
from medray.errors import REASONS, SampleError
from medray.modalities.imaging.formats.dicom import pixels as dicom
from medray.modalities.imaging.formats.dicom import series
from medray.modalities.imaging.formats.dicom.header import parse
from medray.modalities.imaging.formats.dicom.slices import count_slices
from medray.modalities.imaging.formats.image import Image
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec

EACH = ImagingSpec(size=(8, 8, 8), volumes="each")

MR = "mr_ge_siemens_nih"
REFERENCES = {
    # series: (its reference NIfTIs in the order of our entries, whether theirs are scaled: Philips' own slopes)
    **{f"{MR}/In/20180918GE/mr_000{k}": ([f"{MR}/Ref/DCM2NIIX_regression_test_{k}.nii"], False) for k in (4, 5, 6, 7)},
    **{
        f"{MR}/In/20180918Si/mr_000{k}": ([f"{MR}/Ref/EPI_PE={name}.nii"], False)
        for k, name in ((3, "AP_3"), (4, "PA_4"), (5, "RL_5"), (6, "LR_6"))
    },
    "mr_transfer_syntaxes/In": ([f"mr_transfer_syntaxes/Ref/{k}.nii" for k in range(1, 10)], False),
    "mr_enhanced/In/Siemens/XA10": (["mr_enhanced/Ref/Siemens_REST1_w_SMS_PF7-8_6.nii"], False),
    "mr_enhanced/In/Philips": (
        [f"mr_enhanced/Ref/Philips_WIP_B0_NS_801_{name}.nii" for name in ("e2_fieldmaphz", "e1")],
        True,
    ),
    "mr_philips_classic_vs_enhanced/classic_1901": (
        ["mr_philips_classic_vs_enhanced/Ref/1901_WIP_3DpCASL_cl.nii.gz"],
        True,
    ),
    "mr_philips_classic_vs_enhanced/enhanced_1901": (
        ["mr_philips_classic_vs_enhanced/Ref/1901_WIP_3DpCASL_enh_real.nii.gz"],
        True,
    ),
    "ct_philips_head5mm/S2010": (["ct_philips_head5mm/ref.nii.gz"], False),
}


@pytest.fixture(scope="module")
def dicoms(shared_data) -> Path:
    return shared_data / "imaging" / "dicom"


def entries(index: Callable, folder: Path, spec: ImagingSpec = EACH) -> list[tuple[Entry, Image, dict]]:
    """Every entry of a folder that is read, with its image and its facts."""
    modality = Imaging(spec)
    manifest = index(modality, folder)
    return [
        (entry, modality.image(entry), json.loads(facts))
        for entry, facts, reason in zip(
            Entries(manifest), manifest["facts"].to_pylist(), manifest["reason"].to_pylist(), strict=True
        )
        if reason is None
    ]


@pytest.mark.parametrize("name", REFERENCES)
def test_every_volume_of_a_series_equals_its_nifti_voxel_for_voxel_at_its_places(dicoms, index, name):
    files, scaled = REFERENCES[name]
    theirs = [each for file in files for each in volumes_of(nibabel.load(dicoms / file))]
    ours = entries(index, dicoms / name)
    assert len(ours) == len(theirs)
    for (_, image, facts), reference in zip(ours, theirs, strict=True):
        assert image.affine_ras is not None
        values, apart = at_our_places(reference, image.affine_ras)
        assert apart < 1e-3
        if scaled:
            assert np.allclose(values / np.abs(values).max(), image.values / np.abs(image.values).max(), atol=1e-5)
        else:
            assert np.array_equal(values, image.values)
        assert np.abs(np.reshape(facts["affine_ras"], (4, 4)) - image.affine_ras).max() < 1e-3
        assert facts["slices"] == len(image.values) and "flags" not in facts and facts["residual_mm"] < 0.01


def test_series_of_the_list_of_facts_are_as_it_says(dicoms, index):
    """series_facts.json was made with pydicom and NumPy alone."""
    wanted = json.loads((dicoms / "series_facts.json").read_text())
    for name, want in wanted.items():
        ((entry, image, facts),) = entries(index, dicoms / name)
        raws = [Path(part.uri).read_bytes() for part in entry.parts]
        slices, stack = series.volume(raws)
        stored = np.stack([dicom.stored(slices[k].header)[0] for k in stack.order])
        assert list(image.values.shape) == want["shape_zyx"]
        assert hashlib.sha256(stored.astype("<i4").tobytes()).hexdigest() == want["sha256_stored_int32_le_zyx"]
        assert np.abs(np.reshape(facts["affine_ras"], (4, 4)) - want["affine_ras"]).max() < 1e-4
        positions = np.array([slices[k].get("ImagePositionPatient") for k in stack.order]) * (-1, -1, 1)
        met = (stack.affine_ras @ np.array([[0, 0, k, 1.0] for k in range(len(positions))]).T).T[:, :3]
        apart = np.linalg.norm(met - positions, axis=1).max()
        irregular = "irregular_gaps" in facts.get("flags", [])
        assert (apart >= 0.01) == irregular == (name == "ct_ge_tilt/GE")
        assert facts["residual_mm"] == pytest.approx(apart, abs=1e-3)


def test_the_nine_transfer_syntaxes_decode_to_equal_mosaics(dicoms, index):
    read = entries(index, dicoms / "mr_transfer_syntaxes" / "In")
    assert len(read) == 9 and len({parse(Path(each[0].parts[0].uri).read_bytes()).syntax for each in read}) == 7
    assert all(np.array_equal(image.values, read[0][1].values) for _, image, _ in read)
    assert read[0][1].values.shape == (35, 64, 64)


def test_an_enhanced_file_is_its_classic_series_voxel_for_voxel(dicoms, index):
    (classic,), (enhanced,) = (
        entries(index, dicoms / "mr_philips_classic_vs_enhanced" / name) for name in ("classic_1901", "enhanced_1901")
    )
    slope = 2.0**-20  # both state their slope with few digits
    assert np.allclose(classic[1].values, enhanced[1].values, rtol=slope)
    raws = [[Path(part.uri).read_bytes() for part in each[0].parts] for each in (classic, enhanced)]
    stored = [
        np.concatenate([dicom.stored(parse(raw)) for raw in files])[series.volume(files)[1].order] for files in raws
    ]
    assert stored[0].dtype.kind == stored[1].dtype.kind and np.array_equal(stored[0], stored[1])


def test_every_file_that_pydicom_bundles_is_read_in_2d_and_3d_or_fails_with_a_reason():
    """`test_imaging_beside_pydicom.py` compares the pixels of each. Every frame of those with several is theirs, too."""
    paths = sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))
    images = volumes = 0
    for path in paths:
        raw = path.read_bytes()
        try:
            count = count_slices(parse(raw))
            for number in range(min(count, 3)):
                one = dicom.read_image(raw, number if count > 1 else None)
                assert one.values.shape[:2] == dicom.stored(parse(raw)).shape[1:3], path.name
            images += 1
        except SampleError as error:
            assert error.reason in REASONS, path.name
        try:
            volume = series.read_series([raw])
            assert volume.affine_ras is not None and len(volume.shape) == 3, path.name
            volumes += 1
        except SampleError as error:
            assert error.reason in REASONS, path.name
    assert images > 40 and volumes > 10 and len(paths) > 60


def test_one_frame_is_decoded_as_all_are(dicoms):
    raw = (dicoms / "mr_enhanced" / "In" / "Philips" / "IM_0027_fMAP.dcm").read_bytes()
    header = parse(raw)
    whole = dicom.stored(header)
    for numbers in ([0], [63, 5], list(range(64))):
        assert np.array_equal(list(dicom.stored_frames(header, numbers)), whole[numbers])
