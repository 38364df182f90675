"""Orientation, resampling in world coordinates and masks: one object, stored in every way, is in one place."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import nibabel.processing
import numpy as np
import phantom
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from medray.errors import SampleError
from medray.modalities.imaging.encoding.conform import conform, conform_labels
from medray.modalities.imaging.encoding.orientation import CODES, directions
from medray.modalities.imaging.formats.decode import Chosen, decode, sniff
from medray.modalities.imaging.formats.dicom.series import read_series
from medray.modalities.imaging.formats.image import Image
from medray.modalities.imaging.formats.nifti import read_nifti
from medray.modalities.imaging.spec import ImagingSpec

SPACING = (2.0, 1.75, 1.5)


def spec(size=(48, 54, 64), spacing=SPACING, orientation="RAS", grid="volume", **more) -> ImagingSpec:
    return ImagingSpec(
        size=size, spacing_mm=spacing, orientation=orientation, grid=grid, background=0, normalise="none", **more
    )


def middle(image: Image) -> np.ndarray:
    """RAS mm of the middle of an even volume."""
    assert image.affine_ras is not None
    depth, height, width = image.shape
    return image.affine_ras[:3, :3] @ ((np.array([width, height, depth]) - 1) / 2) + image.affine_ras[:3, 3]


# --- axes -----------------------------------------------------------------------------------------------------


def test_there_are_48_codes_and_each_is_a_setting():
    assert len(set(CODES)) == 48 and {"RAS", "LPS", "ASR", "PIR"} <= set(CODES)
    for code in CODES:
        assert ImagingSpec(size=(4, 4, 4), orientation=code).orientation == code
    for wrong in ("RAP", "RRS", "ras", "RA", "RASS", ""):
        with pytest.raises(ValueError, match="orientation is 'stored', or one of L R"):
            ImagingSpec(size=(4, 4, 4), orientation=wrong)


@pytest.mark.parametrize("settings", [
    {"size": (4, 4), "orientation": "RAS"},
    {"size": (4, 4, 4), "grid": "patient"},
    {"size": (4, 4, 4), "grid": "patient", "orientation": "RAS"},
    {"size": (4, 4, 4), "grid": "patient", "spacing_mm": (1, 1, 1)},
])  # fmt: skip
def test_an_orientation_is_of_volumes_and_the_patients_grid_needs_one_and_a_spacing(settings):
    with pytest.raises(ValueError):
        ImagingSpec(**settings)


@pytest.mark.parametrize("code", ["RAS", "LPS", "LAS", "ASR", "PIR", "SAL", "IPR", "SRP"])
def test_axes_of_an_oblique_volume_are_those_that_nibabel_gives(code):
    """W, H, D of ours are i, j, k of nibabel's, whatever the file's own axes."""
    rng = np.random.default_rng(3)
    for axes in phantom.ALL_AXES:
        affine = phantom.centred(phantom.rotation(rng.uniform(-25, 25, 3)) @ axes, (1.0, 2.0, 3.0), (4, 5, 6))
        stored = nibabel.Nifti1Image(rng.integers(0, 999, (4, 5, 6)).astype(np.int16), affine)
        wanted = stored.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(tuple(code))))
        voxels = np.asarray(wanted.dataobj).transpose(2, 1, 0)
        asked = ImagingSpec(size=voxels.shape, orientation=code, normalise="none")
        found = conform(read_nifti(stored.to_bytes()), asked)
        assert np.array_equal(found[0], voxels) and found.flags.c_contiguous


def test_ras_runs_to_the_right_the_front_and_the_head_and_lps_is_how_an_axial_series_lies():
    """The blob at right, back and head (14, −9, 21) lies in the upper half of D and W, and in the lower half of H, of RAS."""
    image = read_series(phantom.series())
    ras = conform(image, spec())[0]
    d, h, w = np.unravel_index(ras.argmax(), ras.shape)
    assert d > 24 and h < 27 and w > 32
    assert np.array_equal(conform(image, spec(orientation="LPS")), conform(image, spec(orientation="stored")))
    assert np.allclose(ras[:, ::-1, ::-1], conform(image, spec(orientation="LPS"))[0], atol=1e-3)


def test_a_file_that_does_not_say_how_its_axes_lie_cannot_be_turned():
    with pytest.raises(SampleError, match="how its axes lie") as caught:
        conform(Image(np.zeros((4, 5, 6), np.int16)), ImagingSpec(size=(4, 5, 6), orientation="RAS"))
    assert caught.value.reason == "bad_geometry"


@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_without_a_spacing_axes_are_turned_first_so_that_padding_falls_the_same_way(resize):
    asked = ImagingSpec(size=(9, 12, 11), orientation="RAS", resize=resize, normalise="none", background=-1)
    arrays = []
    for axes in phantom.ALL_AXES:
        shape = tuple(int(n) for n in np.abs(axes).T @ [10, 8, 6])
        affine = phantom.centred(axes, np.abs(axes).T @ [5.0, 6.0, 8.0], shape)
        arrays.append(conform(read_nifti(phantom.nifti(affine, shape)), asked)[0])
    assert max(np.abs(array - arrays[0]).max() for array in arrays) < 1e-2


# --- places ---------------------------------------------------------------------------------------------------


def test_one_object_stored_in_all_48_ways_gives_one_array():
    arrays = []
    for axes in phantom.ALL_AXES:
        shape = tuple(int(n) for n in np.abs(axes).T @ [60, 52, 36])
        affine = phantom.centred(axes, np.abs(axes).T @ [1.6, 1.8, 2.6], shape)
        arrays.append(conform(read_nifti(phantom.nifti(affine, shape)), spec(size=(30, 30, 40), spacing=(3, 3, 2)))[0])
    assert max(np.abs(array - arrays[0]).max() for array in arrays) < 1e-2  # of 1,000


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
@pytest.mark.parametrize("grid", ["volume", "patient"])
def test_an_object_is_at_its_place_in_every_plane(plane, grid):
    image = read_series(phantom.series(plane))
    found = phantom.centroid(conform(image, spec(grid=grid))[0], SPACING, directions("RAS"), middle(image))
    assert np.abs(found - phantom.CENTROID).max() < 0.02  # mm


UNEVEN = np.cumsum([2, 2.5, 3, 1.5] * 9) - 42


@pytest.mark.parametrize("orientation, spacing, settings", [
    ("RAS", SPACING, {"turned": (12, -20, 8)}),
    ("LPS", (3.5, 3.5, 3.5), {"turned": (12, -20, 8), "plane": "sagittal"}),
    ("PIR", (1.5, 2.0, 3.0), {"turned": (-15, 9, 30), "plane": "coronal"}),
    ("RAS", (3.0, 2.0, 1.5), {"tilt_degrees": 18}),
    ("LPS", SPACING, {"tilt_degrees": -14, "turned": (14, 0, 0)}),
    ("PIR", (2.0, 2.0, 3.0), {"depths": UNEVEN}),
    ("RAS", (3.5, 3.5, 3.5), {"depths": UNEVEN, "tilt_degrees": 12, "turned": (0, 10, 0)}),
], ids=["oblique", "sagittal", "coronal", "tilted", "upright by tilt", "uneven", "all of it"])  # fmt: skip
def test_on_the_patients_grid_an_oblique_tilted_or_uneven_volume_is_upright_and_in_its_place(
    orientation, spacing, settings
):
    """The middle of the slices' extent is 0 by construction, up to uneven gaps, of which the outer two are looked at."""
    image = read_series(phantom.series(**settings))
    extent = np.array([110, 110, 110])
    size = tuple(int(n) for n in extent // np.array(spacing))
    asked = spec(size, spacing, orientation, "patient")
    depths = settings.get("depths", [0.0])
    along, down = (phantom.rotation(settings.get("turned", (0, 0, 0))) @ np.array(axis, float)
                   for axis in phantom.AXES[settings.get("plane", "axial")])  # fmt: skip
    shift = (np.cross(along, down) + down * np.tan(np.radians(settings.get("tilt_degrees", 0)))) * (
        depths[0] + depths[-1]) / 2  # fmt: skip
    centre = shift * [-1, -1, 1]
    found = phantom.centroid(conform(image, asked)[0], spacing, directions(orientation), centre)
    assert np.abs(found - phantom.CENTROID).max() < (0.1 if "depths" in settings else 0.05)  # mm


def test_a_tilted_series_and_its_nifti_file_are_one_volume():
    image = read_series(phantom.series(tilt_degrees=15))
    assert image.affine_ras is not None and image.slices_mm is not None
    stored = nibabel.Nifti1Image(image.values.transpose(2, 1, 0), image.affine_ras)
    stored.set_qform(None, 0)
    read = read_nifti(stored.to_bytes())
    for asked in (spec(), spec(grid="patient"), spec(orientation="stored")):
        assert np.allclose(conform(read, asked), conform(image, asked), atol=0.05)


# --- interpolation beside other tools -------------------------------------------------------------------------


def in_nibabel(raw: bytes, size, spacing) -> np.ndarray:
    """(D, H, W) by nibabel.processing.resample_from_to, linear, on the patient's RAS grid around 0."""
    affine = phantom.centred(np.eye(3), spacing[::-1], size[::-1])
    stored = nibabel.Nifti1Image.from_bytes(raw)
    made = nibabel.processing.resample_from_to(stored, (size[::-1], affine), order=1, mode="nearest")
    return np.asarray(made.dataobj).transpose(2, 1, 0)


@pytest.mark.parametrize("turned", [(0, 0, 0), (10, -20, 5), (40, 3, -7)])
def test_finer_voxels_are_those_that_nibabel_interpolates(turned):
    shape, steps = (40, 36, 30), (2.5, 3.0, 3.5)
    raw = phantom.nifti(phantom.centred(phantom.rotation(turned), steps, shape), shape)
    size, fine = (40, 44, 36), (1.1, 1.0, 0.9)  # within the volume, however it is turned
    found = conform(read_nifti(raw), spec(size, fine, grid="patient"))[0]
    assert np.abs(found - in_nibabel(raw, size, fine)).max() < 2e-3  # of 1,000, in float32
    if turned == (0, 0, 0):
        assert np.abs(conform(read_nifti(raw), spec(size, fine))[0] - found).max() < 2e-3


def ramp(shape=(40, 40, 40), slope=(1.0, -2.0, 3.0)) -> Image:
    values = sum(s * index for s, index in zip(slope, np.indices(shape), strict=True)).astype(np.float32)
    return Image(values, spacing_mm=(1.0, 1.0, 1.0), affine_ras=phantom.centred(np.eye(3), (1, 1, 1), shape[::-1]))


@pytest.mark.parametrize("grid", ["volume", "patient"])
@pytest.mark.parametrize("to", [0.7, 1.0, 2.0, 3.0, 1.3, 2.6])
def test_a_constant_is_kept_and_a_ramp_within_6_hundredths_of_a_voxel(grid, to):
    """Exactly so on the patient's grid, and where voxels become finer, or coarser by a whole factor. By another factor the
    triangle meets voxels unevenly."""
    size = (int(24 // to),) * 3
    even = Image(np.full((40, 40, 40), 37.0, np.float32), spacing_mm=(1.0, 1.0, 1.0), affine_ras=ramp().affine_ras)
    assert np.allclose(conform(even, spec(size, (to,) * 3, grid=grid)), 37.0, atol=1e-4)
    found = conform(ramp(), spec(size, (to,) * 3, grid=grid))[0]
    exact = 19.5 * 2 + sum(
        s * (np.moveaxis(np.indices(size), 0, -1)[..., k] - (size[0] - 1) / 2) * to
        for k, s in enumerate((1.0, -2.0, 3.0))
    )
    within = 1e-4 if to in (0.7, 1.0, 2.0, 3.0) or grid == "patient" else 0.06 * 6
    assert np.abs(found - exact).max() < within


@pytest.mark.parametrize("grid", ["volume", "patient"])
def test_stripes_finer_than_the_new_voxels_become_their_mean_and_not_a_pattern(grid):
    stripes = Image(np.zeros((60, 60, 60), np.float32), spacing_mm=(1.0,) * 3, affine_ras=ramp((60,) * 3).affine_ras)
    stripes.values[:, :, ::2] = 100.0  # linear interpolation without a filter would give 0 and 100, or a beat
    found = conform(stripes, spec((12, 12, 12), (2.9, 2.9, 2.9), grid=grid))[0]
    assert np.abs(found - 50).max() < 6
    kept = conform(stripes, spec((12, 12, 60), (1.0, 1.0, 1.0), grid=grid))[0]
    assert np.ptp(kept) == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_coarser_voxels_are_those_of_torch_antialiased(factor):
    """The triangle of torch's interpolate has the same width; at whole factors both grids have the same places."""
    import torch

    rng = np.random.default_rng(1)
    values = rng.normal(size=(6 * factor, 7 * factor)).astype(np.float32)
    asked = ImagingSpec(size=(6, 7), spacing_mm=(float(factor),) * 2, background=0, normalise="none")
    found = conform(Image(values, spacing_mm=(1.0, 1.0)), asked)[0]
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], (6, 7), mode="bilinear", antialias=True
    )[0, 0].numpy()
    assert np.abs(found - wanted).max() < 1e-5


def test_what_is_kept_is_size_times_spacing_about_the_middle():
    """8 voxels of 5 mm are 40 mm: 20 to each side of the middle of a volume of 100 mm, and 30 mm of background beyond 20."""
    values = np.arange(100, dtype=np.float32)[:, None, None] * np.ones((1, 20, 100), np.float32)
    image = Image(values, spacing_mm=(1.0, 1.0, 1.0), affine_ras=phantom.centred(np.eye(3), (1, 1, 1), (100, 20, 100)))
    found = conform(image, spec((8, 10, 4), (5.0, 5.0, 5.0)))[0]
    assert found[:, 5, 0].tolist() == pytest.approx([32, 37, 42, 47, 52, 57, 62, 67], abs=1e-3)
    assert (found[:, :3] == 0).all() and (found[:, 7:] == 0).all() and (found[:, 3:7] > 0).all()


# --- masks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    spec(),
    spec(grid="patient"),
    spec(spacing=(3.1, 2.9, 3.3), size=(30, 34, 30), grid="patient", orientation="PIR"),
    spec(orientation="stored"),
    ImagingSpec(size=(30, 61, 47), orientation="SAR", normalise="none"),
    ImagingSpec(size=(30, 61, 47), orientation="RAS", resize="pad", normalise="none", background=0),
])  # fmt: skip
def test_a_mask_lands_on_the_grid_of_its_image_and_has_no_new_labels(settings):
    """A body of label 7 within one of 200, as an image and as a mask: both are of one size and in one place."""
    files = phantom.series(turned=(8, -12, 5), tilt_degrees=10)
    image = read_series(files)
    labels = np.where(image.values > 150, 7, np.where(image.values > 20, 200, 0)).astype(np.uint8)
    mask = Image(labels, False, image.spacing_mm, image.slices_mm, affine_ras=image.affine_ras)
    found = conform_labels(mask, settings)
    assert found.dtype == np.uint8 and found.shape == settings.size and set(np.unique(found)) == {0, 7, 200}
    for label in (7, 200):
        body = Image((labels == label).astype(np.float32), False, image.spacing_mm, image.slices_mm,
                     affine_ras=image.affine_ras)  # fmt: skip
        soft, hard = conform(body, settings)[0], found == label
        shared = ((soft > 0.5) & hard).sum()
        assert 2 * shared / ((soft > 0.5).sum() + hard.sum()) > 0.87
        assert soft.sum() == pytest.approx(hard.sum(), rel=0.06)


@pytest.mark.parametrize(
    "turned, to", [((0, 0, 0), (2.2, 1.9, 2.4)), ((10, -20, 5), (1.1, 1.0, 0.9)), ((31, 5, 9), (4, 5, 3))]
)
def test_labels_are_those_that_nibabel_takes_from_the_nearest_voxel(turned, to):
    shape = (40, 36, 30)
    affine = phantom.centred(phantom.rotation(turned), (2.5, 3.0, 3.5), shape)
    labels = np.random.default_rng(0).integers(0, 9, shape).astype(np.uint8)
    size = tuple(int(n) for n in 40 // np.array(to))
    raw = nibabel.Nifti1Image(labels, affine).to_bytes()
    found = conform_labels(read_nifti(raw), spec(size, to, grid="patient"))
    made = nibabel.processing.resample_from_to(
        nibabel.Nifti1Image(labels, affine), (size[::-1], phantom.centred(np.eye(3), to[::-1], size[::-1])), order=0
    )
    assert np.array_equal(found, np.asarray(made.dataobj).transpose(2, 1, 0))
    if turned == (0, 0, 0):
        assert np.array_equal(found, conform_labels(read_nifti(raw), spec(size, to)))


def test_labels_are_whole_numbers_and_halfway_between_two_voxels_the_lower_one_counts():
    asked = ImagingSpec(size=(2, 2), spacing_mm=(2.0, 2.0), normalise="none")
    mask = Image(np.arange(16, dtype=np.int16).reshape(4, 4), spacing_mm=(1.0, 1.0))
    assert conform_labels(mask, asked).tolist() == [[0, 2], [8, 10]]
    with pytest.raises(SampleError, match="whole numbers"):
        conform_labels(Image(np.full((4, 4), 0.5), spacing_mm=(1.0, 1.0)), asked)
    with pytest.raises(SampleError, match="a mask of shape"):
        conform_labels(Image(np.zeros((4, 4, 3)), color=True), asked)


# --- real series ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder, reference", [
    ("ct_philips_head5mm/S2010", "ct_philips_head5mm/ref.nii.gz"),
    ("mr_ge_siemens_nih/In/20180918GE/mr_0004", "mr_ge_siemens_nih/Ref/DCM2NIIX_regression_test_4.nii"),
    ("mr_ge_siemens_nih/In/20180918Si/mr_0003", "mr_ge_siemens_nih/Ref/EPI_PE=AP_3.nii"),
])  # fmt: skip
def test_real_series_and_the_nifti_files_that_dcm2niix_made_of_them_become_one_array(shared_data, folder, reference):
    """dcm2niix mirrors rows and slices; the first volume where there are several."""
    dicoms = shared_data / "imaging" / "dicom"
    raws = [raw for path in sorted((dicoms / folder).glob("[!D]*")) if sniff(raw := path.read_bytes()) == "dicom"]
    both = [
        decode(raws, True, Chosen(channels=True)),
        decode([(dicoms / reference).read_bytes()], True, Chosen(channels=True)),
    ]
    first = [replace(each, values=each.values[0], channels=False) if each.channels else each for each in both]
    for asked in (
        spec((40, 48, 40), (4.0, 4.0, 4.0)),
        spec((40, 48, 40), (4.0, 4.0, 4.0), orientation="PIR", grid="patient"),
        ImagingSpec(size=(30, 64, 60), orientation="RAS", resize="pad", normalise="none"),
    ):
        ours, theirs = (conform(each, asked) for each in first)
        assert np.abs(ours - theirs).max() < 2e-3 * np.ptp(ours)
