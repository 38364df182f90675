from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medray.errors import SampleError
from medray.modalities.imaging.encoding.conform import conform
from medray.modalities.imaging.formats import nifti
from medray.modalities.imaging.formats.decode import decode
from medray.modalities.imaging.formats.dicom import pixels as dicom
from medray.modalities.imaging.formats.dicom import series
from medray.modalities.imaging.formats.dicom.header import parse
from medray.modalities.imaging.inspection import inspect
from medray.modalities.imaging.spec import ImagingSpec

REGULAR = ("ct_philips_head5mm/S2010", "mr_philips_classic_vs_enhanced/classic_1901")
ALL = ("ct_ge_tilt/GE", *REGULAR)


def files(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "DIRFILE"]


@pytest.fixture(scope="module")
def dicoms(shared_data) -> Path:
    return shared_data / "imaging" / "dicom"


@pytest.fixture(scope="module")
def facts(dicoms) -> dict:
    return json.loads((dicoms / "series_facts.json").read_text())


def refusal(raws: list[bytes]) -> SampleError:
    with pytest.raises(SampleError) as caught:
        series.read_series(raws)
    return caught.value


def slices(dicom_bytes, positions, **settings) -> list[bytes]:
    return [
        dicom_bytes(
            np.full((4, 6), k, np.uint16), instance=k, modality="CT", position_mm=at, spacing_mm=(2.0, 1.0), **settings
        )
        for k, at in enumerate(positions)
    ]


@pytest.mark.parametrize("name", ALL)
def test_stored_volumes_and_affines_equal_the_reference(dicoms, facts, name):
    want = facts[name]
    slices, stack = series.volume(files(dicoms / name))
    stored = np.stack([dicom.stored(slices[i].header)[0] for i in stack.order])
    assert list(stored.shape) == want["shape_zyx"]
    assert int(stored.sum(dtype=np.int64)) == want["stored_sum"]
    assert hashlib.sha256(stored.astype("<i4").tobytes()).hexdigest() == want["sha256_stored_int32_le_zyx"]
    assert np.abs(stack.affine_ras - np.array(want["affine_ras"])).max() < 1e-5
    assert stack.gaps_mm.min() == pytest.approx(want["dz_min"], abs=1e-5)
    assert stack.gaps_mm.max() == pytest.approx(want["dz_max"], abs=1e-5)


@pytest.mark.parametrize("name", REGULAR)
def test_the_affine_of_a_regular_series_meets_every_slice(dicoms, facts, name):
    _, stack = series.volume(files(dicoms / name))
    assert stack.residual_mm < 0.01 and stack.flags == [] and not stack.irregular
    image = series.read_series(files(dicoms / name))
    assert float(image.values.min()) == pytest.approx(facts[name]["rescaled_min"])
    assert float(image.values.max()) == pytest.approx(facts[name]["rescaled_max"])


def test_a_tilted_uneven_series_carries_its_flags_and_residual(dicoms):
    _, stack = series.volume(files(dicoms / "ct_ge_tilt/GE"))
    assert stack.flags == ["gantry_tilt", "irregular_gaps"]
    assert stack.tilt_degrees == pytest.approx(18.5, abs=0.01)
    assert stack.residual_mm == pytest.approx(22.784, abs=0.001)


def test_a_series_equals_its_nifti_reference_voxel_for_voxel(dicoms):
    folder = dicoms / "ct_philips_head5mm"
    image = series.read_series(files(folder / "S2010"))
    reference = nifti.read_nifti((folder / "ref.nii.gz").read_bytes())
    assert np.array_equal(image.values, reference.values)
    assert image.spacing_mm == pytest.approx(reference.spacing_mm)


def test_the_order_of_files_does_not_matter(dicoms):
    raws = files(dicoms / "mr_philips_classic_vs_enhanced/classic_1901")
    shuffled = [raws[i] for i in np.random.default_rng(0).permutation(len(raws))]
    assert np.array_equal(series.read_series(raws).values, series.read_series(shuffled).values)


def test_an_enhanced_file_equals_its_classic_series(dicoms):
    folder = dicoms / "mr_philips_classic_vs_enhanced"
    classic, enhanced = (series.read_series(files(folder / name)) for name in ("classic_1901", "enhanced_1901"))
    assert enhanced.values.shape == (40, 96, 96)
    assert np.allclose(classic.values, enhanced.values, rtol=1e-5)
    assert classic.spacing_mm == pytest.approx(enhanced.spacing_mm, abs=1e-4)


def test_what_is_no_single_volume_is_refused_with_what_was_found(dicoms):
    times = refusal(files(dicoms / "mr_ge_siemens_nih/In/20180918GE/mr_0004")[1:])
    assert times.reason == "unsupported" and "150 slices at 15 positions" in times.detail
    mosaic = refusal(
        [raw for raw in files(dicoms / "mr_ge_siemens_nih/In/20180918Si/mr_0003") if raw[128:132] == b"DICM"]
    )
    assert mosaic.reason == "unsupported" and "10 slices at 5 positions" in mosaic.detail
    assert refusal(files(dicoms / "mr_enhanced/In/Philips")).detail.startswith("64 slices at 32 positions")


def test_slices_are_sorted_along_their_normal_and_rescaled_each(dicom_bytes):
    raws = slices(dicom_bytes, [(0, 0, 9), (0, 0, 3), (0, 0, 6)])
    image = series.read_series(raws)
    assert image.values[:, 0, 0].tolist() == [1, 2, 0]
    assert image.spacing_mm == (3.0, 2.0, 1.0) and image.slices_mm is None
    mixed = [
        dicom_bytes(
            np.full((4, 6), 10, np.uint16),
            modality="MR",
            instance=k,
            position_mm=(0, 0, k),
            spacing_mm=(1, 1),
            rescale=(k + 1.0, 0),
        )
        for k in range(3)
    ]
    assert series.read_series(mixed).values[:, 0, 0].tolist() == [10, 20, 30]


def test_a_sagittal_series_is_sorted_along_its_own_normal(dicom_bytes):
    raws = slices(dicom_bytes, [(4, 0, 0), (8, 0, 0)], orientation=(0, 1, 0, 0, 0, -1))  # normal = -x
    assert series.read_series(raws).values[:, 0, 0].tolist() == [1, 0]


def test_mixed_shapes_orientations_spacings_and_missing_positions_are_bad_geometry(dicom_bytes):
    good = slices(dicom_bytes, [(0, 0, 0), (0, 0, 1)])
    other_shape = dicom_bytes(np.zeros((5, 6), np.uint16), instance=7, position_mm=(0, 0, 2), spacing_mm=(2.0, 1.0))
    turned = slices(dicom_bytes, [(0, 0, 2)], orientation=(1, 0, 0, 0, 0, -1))
    wider = dicom_bytes(np.zeros((4, 6), np.uint16), instance=8, position_mm=(0, 0, 2), spacing_mm=(2.5, 1.0))
    nowhere = dicom_bytes(np.zeros((4, 6), np.uint16), instance=9)
    for extra in (other_shape, turned[0], wider, nowhere):
        assert refusal([*good, extra]).reason == "bad_geometry"
    assert "position, orientation, pixel spacing" in refusal([nowhere]).detail


def test_uneven_gaps_are_refused_without_a_spacing_and_interpolated_with_one(dicom_bytes):
    raws = slices(dicom_bytes, [(0, 0, 0), (0, 0, 1), (0, 0, 4)])  # value k at 0, 1 and 4 mm
    with pytest.raises(SampleError, match=r"gaps from 1\.00 to 3\.00 mm") as caught:
        conform(decode(raws, volumes=True), ImagingSpec(size=(3, 4, 6)))
    assert caught.value.reason == "bad_geometry"
    spec = ImagingSpec(size=(5, 4, 6), spacing_mm=(1, 2, 1))
    pixels = conform(decode(raws, volumes=True), spec)
    assert pixels[0, :, 1, 1] == pytest.approx([0, 1, 4 / 3, 5 / 3, 2], abs=1e-6)


def test_a_tilted_stack_is_straightened_by_its_true_positions(dicom_bytes):
    """A column at a fixed place in the patient stays one column although each slice starts 2 mm further along H."""
    raws = []
    for k in range(4):
        pixels = np.zeros((16, 6), np.uint16)
        pixels[8 - k] = 100  # H spacing 2 mm, slice k starts at 2 k mm: always at 16 mm
        raws.append(dicom_bytes(pixels, instance=k, position_mm=(0, 2.0 * k, 3.0 * k), spacing_mm=(2.0, 1.0)))
    image = series.read_series(raws)
    assert image.slices_mm is not None and image.slices_mm[:, 1].tolist() == [0, 2, 4, 6]
    pixels = conform(image, ImagingSpec(size=(4, 19, 6), spacing_mm=(3, 2, 1)))[0]
    assert [int(plane[:, 3].argmax()) for plane in pixels] == [8, 8, 8, 8]
    assert pixels[:, 8].min() == pytest.approx(100)


def test_a_real_tilted_series_is_sampled_where_its_slices_are(dicoms):
    """Tilted, uneven GE CT: voxels of the resampled volume against interpolation by hand between two slices."""
    image = series.read_series(files(dicoms / "ct_ge_tilt/GE"))
    size, step = (200, 200, 200), (0.7, 0.4, 0.4)  # finer than slices and pixels: linear, no averaging
    pixels = conform(image, ImagingSpec(size=size, spacing_mm=step))[0]
    depth, drift = image.slices_mm[:, 0], image.slices_mm[:, 1]
    assert np.abs(image.slices_mm[:, 2]).max() < 1e-6
    pixel = image.spacing_mm[1]
    middle = (depth[-1] / 2, (drift.min() + drift.max() + 511 * pixel) / 2, 511 * pixel / 2)
    for d, h, w in np.random.default_rng(0).integers(20, 180, (50, 3)):
        z, y, x = (c + (i - (n - 1) / 2) * s for c, i, n, s in zip(middle, (d, h, w), size, step, strict=True))
        k = int(np.searchsorted(depth, z) - 1)
        planes = []
        for plane in (k, k + 1):
            row, column = (y - drift[plane]) / pixel, x / pixel
            r, c = int(row), int(column)
            four = image.values[plane, r : r + 2, c : c + 2].astype(float)
            planes.append(np.array([1 - (row - r), row - r]) @ four @ np.array([1 - (column - c), column - c]))
        share = (z - depth[k]) / (depth[k + 1] - depth[k])
        assert pixels[d, h, w] == pytest.approx((1 - share) * planes[0] + share * planes[1], abs=0.05)


def test_inspect_shows_geometry_and_no_patient(dicoms, facts):
    shown = inspect(str(dicoms / "ct_ge_tilt/GE")).facts
    assert shown["shape"] == [28, 512, 512] and shown["flags"] == ["gantry_tilt", "irregular_gaps"]
    assert shown["gap_mm"]["min"] == pytest.approx(1.081, abs=1e-3)
    assert shown["residual_mm"] == pytest.approx(22.784, abs=1e-3)
    assert shown["largest_hole_mm"] == 0 and shown["extent_mm"] == [148.09, 250.0, 250.0]
    assert np.allclose(shown["affine_ras"], facts["ct_ge_tilt/GE"]["affine_ras"], atol=1e-5)
    text = json.dumps(shown)
    header = parse(next((dicoms / "ct_ge_tilt/GE").iterdir()).read_bytes())
    assert str(header.dataset.get("PatientID") or "no id") not in text


def test_inspect_says_why_a_series_is_no_volume(dicoms):
    shown = inspect(str(dicoms / "mr_ge_siemens_nih/In/20180918GE/mr_0004")).facts
    assert shown["reason"] == "unsupported" and shown["flags"] == ["repeated_positions"]
    mosaic = inspect(str(dicoms / "mr_ge_siemens_nih/In/20180918Si/mr_0003")).facts
    assert mosaic["flags"] == ["mosaic", "repeated_positions"]


def test_nifti_scaling_orientation_and_refusals(tmp_path):
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)  # i to the right, j to the front, k to the head
    image = nibabel.Nifti1Image(voxels, np.diag([2.0, 3.0, 4.0, 1.0]))
    image.header.set_slope_inter(2.0, -1.0)
    read = nifti.read_nifti(image.to_bytes())
    assert read.values.shape == (4, 3, 2) and read.spacing_mm == (4.0, 3.0, 2.0)
    assert read.values[0, 0, 0] == 2.0 * voxels[1, 2, 0] - 1.0  # most left, most back, lowest
    assert read.values[3, 2, 1] == 2.0 * voxels[0, 0, 3] - 1.0
    for bad, reason in ((image.to_bytes()[:-1], "truncated"), (image.to_bytes()[:360], "truncated")):
        with pytest.raises(SampleError) as caught:
            nifti.read_nifti(bad)
        assert caught.value.reason == reason
    film = nibabel.Nifti1Image(np.zeros((2, 2, 2, 5), np.int16), np.eye(4))
    with pytest.raises(SampleError, match="expected one volume"):
        nifti.read_nifti(film.to_bytes())
