"""normalise = "medicalnet" and resize = "nearest": the preprocessing of published networks, by hand and by SciPy."""

from __future__ import annotations

import nibabel
import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from medray.archive.entries import Entry, PartRef
from medray.datasets.samples import tensor_column, tensor_view
from medray.errors import SampleError
from medray.modalities.imaging.encoding.normalise import by_itself, over_positive, seed_of
from medray.modalities.imaging.encoding.resample import resize_nearest
from medray.modalities.imaging.formats.image import Image
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec

MEDICALNET = {"resize": "nearest", "normalise": "medicalnet"}


def test_mean_and_deviation_are_those_of_values_above_zero():
    """2, 4 and 9 have mean 5 and deviation sqrt(26 / 3); -6 is scaled with them, 0 is drawn."""
    values = np.array([[2, 4, 9, -6, 0, 0]], np.float32)
    found = over_positive(values, np.array([1, 2, 3, 4], np.uint32))
    assert found.dtype == np.float32
    assert found[0, :4] == pytest.approx(np.array([-3, -1, 4, -11]) / np.sqrt(26 / 3))
    drawn = np.random.RandomState(np.array([1, 2, 3, 4])).standard_normal(6)[4:]
    assert found[0, 4:] == pytest.approx(drawn)


def test_noise_is_normal_and_the_images_own():
    image = np.zeros((20, 50, 50), np.int16)
    image[5:9] = np.arange(4)[:, None, None] + 1
    found = over_positive(image.astype(np.float32), seed_of(image))
    noise = found[image == 0]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    again = over_positive(image.astype(np.float32), seed_of(image.astype(">f8")))
    assert np.array_equal(found, again)
    other = image.copy()
    other[5, 0, 0] += 1
    assert not np.array_equal(seed_of(image), seed_of(other))
    assert not np.array_equal(seed_of(image), seed_of(image.reshape(50, 20, 50)))


def test_the_stream_of_noise_is_the_one_that_bundles_were_trained_with():
    seed = seed_of(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    assert seed.tolist() == [131569962, 177320396, 1757938648, 4095135450]
    assert np.random.RandomState(seed).standard_normal(2) == pytest.approx([-0.9121852389332781, 0.008633928630756536])


@pytest.mark.parametrize("values", [[0, 0, 0], [-1, 0, -2], [0, 5, -2], [3, 3, 0]])
def test_an_image_without_a_deviation_above_zero_is_refused(values):
    with pytest.raises(SampleError) as refused:
        over_positive(np.array(values, np.float32), np.zeros(4, np.uint32))
    assert refused.value.reason == "bad_values"


@pytest.mark.parametrize(
    ("old", "new"), [(5, 5), (2, 5), (5, 2), (1, 4), (4, 1), (20, 56), (140, 56), (512, 448), (256, 448)]
)
def test_nearest_voxels_are_those_of_scipy(old, new):
    from scipy import ndimage

    values = np.arange(old * 2, dtype=np.float32).reshape(1, old, 2)
    expected = ndimage.zoom(values[0], [new / old, 1], order=0)
    assert np.array_equal(resize_nearest(values, (new, 2))[0], expected)


def test_the_last_plane_is_there_where_scipys_rounding_loses_it():
    from scipy import ndimage

    values = np.arange(1, 257, dtype=np.float32)
    assert ndimage.zoom(values, 56 / 256, order=0)[-1] == 0
    assert resize_nearest(values[None], (56,))[0, -1] == 256


def test_a_volume_has_the_same_pixels_alone_among_others_and_under_another_name(tmp_path):
    paths = [tmp_path / "a.nii", tmp_path / "b.nii.gz", tmp_path / "again.nii"]
    for path, seed in zip(paths, (1, 2, 1), strict=True):
        values = np.random.default_rng(seed).integers(0, 3, (9, 8, 7)).astype(np.int16)
        nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0])).to_filename(path)
    entries = [Entry(p.name, "s", b"0" * 16, (PartRef(uri=str(p), locator=""),)) for p in paths]
    spec = ImagingSpec(size=(14, 16, 5), **MEDICALNET)
    together = tensor_view(Imaging(spec).read(entries).column("pixels"))
    alone = [tensor_view(Imaging(spec).read([each]).column("pixels"))[0] for each in reversed(entries)]
    assert all(np.array_equal(one, other) for one, other in zip(together, reversed(alone), strict=True))
    assert np.array_equal(together[0], together[2]) and not np.array_equal(together[0], together[1])
    assert np.unique(together[0]).size > 100  # two grey values, and noise


def test_a_window_comes_before_and_not_once_more_on_the_device():
    spec = ImagingSpec(size=(1, 2, 2), window=(50, 100), **MEDICALNET)
    hu = np.array([[[-1000, 25], [75, 300]]], np.int16)
    pixels = by_itself(hu[None].astype(np.float32), Image(hu), spec)
    shown = np.array([0.25, 0.75, 1.0])
    assert pixels[0, 0].ravel()[1:] == pytest.approx((shown - shown.mean()) / shown.std(), rel=1e-6)
    encoded = Imaging(spec).encode({"pixels": torch.from_numpy(pixels[None])})["pixels"]
    assert np.array_equal(encoded[0].numpy(), pixels)


def test_it_fits_no_statistics_and_wants_float32():
    spec = ImagingSpec(size=(2, 2, 2), **MEDICALNET)
    modality = Imaging(spec)
    batch = pa.record_batch([tensor_column(np.ones((1, 1, 2, 2, 2), np.float32))], schema=modality.payload)
    assert len(modality.summarise(batch)) == 0
    assert modality.fitted(modality.summarise(batch)) is spec
    with pytest.raises(ValidationError, match="dtype must be 'float32', found 'int16'"):
        ImagingSpec(size=(2, 2, 2), dtype="int16", **MEDICALNET)
