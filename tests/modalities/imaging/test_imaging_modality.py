from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from medray.archive.entries import Entry, PartRef
from medray.datasets.samples import tensor_column, tensor_view
from medray.errors import SampleError, UserError
from medray.modalities.imaging.encoding import resample
from medray.modalities.imaging.encoding.conform import conform
from medray.modalities.imaging.formats.image import Image as Decoded
from medray.modalities.imaging.spec import AugmentSpec, ImagingSpec
from medray.modalities.inputs import Input
from medray.modalities.registry import open_modality

GREY = (np.arange(64, dtype=np.uint8) * 4).reshape(8, 8)


def batch(spec: ImagingSpec, pixels: np.ndarray) -> pa.RecordBatch:
    return pa.record_batch([tensor_column(pixels)], schema=open_modality(spec).payload)


def read(spec: ImagingSpec, *paths: Path) -> np.ndarray:
    entry = Entry("e", "s", b"0" * 16, tuple(PartRef(uri=str(p), locator="") for p in paths))
    return tensor_view(open_modality(spec).read_one(entry).column("pixels"))[0]


def refusal(spec: ImagingSpec, *paths: Path) -> SampleError:
    with pytest.raises(SampleError) as caught:
        read(spec, *paths)
    return caught.value


# --- spec -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings, said", [
    ({"size": [8]}, "height, width"),
    ({"size": [8, 8], "spacing_mm": [1.0]}, "2 numbers"),
    ({"size": [8, 8], "mean": [0.1]}, "belong together"),
    ({"size": [8, 8], "channels": 3, "mean": [0.1], "std": [1.0]}, "per channel"),
    ({"size": [8, 8], "augment": {"flip": ["depth"]}}, "depth"),
    ({"size": [8, 8], "subject_pattern": "no group"}, "one group"),
    ({"size": [8, 8], "subject_pattern": "("}, "regular expression"),
    ({"size": [8, 8], "window": [40, 0]}, "greater than 0"),
    ({"size": [8, 8], "colour": 3}, "Extra inputs"),
])  # fmt: skip
def test_a_setting_that_cannot_work_is_refused_in_words(settings, said):
    with pytest.raises(ValidationError, match=said):
        ImagingSpec(**settings)


def test_a_spec_survives_json_and_opens():
    spec = ImagingSpec(size=(8, 8), mean=(0.5,), std=(0.25,), window=(40, 400))
    assert ImagingSpec.model_validate_json(spec.model_dump_json()) == spec
    assert open_modality(spec).inputs() == {"pixels": Input((1, 8, 8))}


def test_the_spec_imports_nothing_heavy():
    code = (
        "import sys, medray.modalities; "
        "print([m for m in ('torch', 'pydicom', 'PIL', 'nibabel', 'imagecodecs', 'ray') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# --- read -----------------------------------------------------------------------------------------------------


def test_a_dicom_of_the_asked_size_is_read_unchanged(tmp_path, dicom_bytes):
    (tmp_path / "a").write_bytes(dicom_bytes(GREY))
    for dtype in ("uint8", "int16", "float32"):
        pixels = read(ImagingSpec(size=(8, 8), dtype=dtype), tmp_path / "a")
        assert pixels.dtype == dtype and pixels.shape == (1, 8, 8) and np.array_equal(pixels[0], GREY)


def test_png_dicom_npz_and_nifti_of_one_image_give_equal_pixels(tmp_path, dicom_bytes, entries_of):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    (tmp_path / "b.dcm").write_bytes(dicom_bytes(GREY))
    np.savez(tmp_path / "c.npz", images=GREY[None])
    modality = open_modality(ImagingSpec(size=(4, 4), dtype="uint8"))
    found = [tensor_view(modality.read_one(e).column("pixels")) for e in entries_of(modality, tmp_path)]
    assert len(found) == 3 and all(np.array_equal(found[0], each) for each in found)


def test_ten_thousand_pngs_in_class_folders_equal_the_idx_file(tmp_path, shared_data, entries_of, index):
    mnist = shared_data / "imaging" / "mnist"
    with tarfile.open(mnist / "mnist_png_t10k.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    modality = open_modality(ImagingSpec(size=(28, 28), dtype="uint8"))
    manifest = index(modality, tmp_path)
    reasons = manifest["reason"].to_pylist()
    assert len(manifest) == 10_002 and reasons.count("unrecognised_format") == 2 and reasons.count(None) == 10_000
    assert set(manifest.filter(manifest["reason"].is_null())["split"].to_pylist()) == {"test"}
    by_path = {e.entry_id: e for e in entries_of(modality, tmp_path)}
    rows = {f"#{n}": e for n, e in enumerate(entries_of(modality, mnist / "t10k-images-idx3-ubyte.gz")[:1])}
    first = tensor_view(modality.read_one(rows["#0"]).column("pixels"))
    digits = [e for path, e in by_path.items() if path.startswith("test/7/")]
    assert any(np.array_equal(first, tensor_view(modality.read_one(e).column("pixels"))) for e in digits)


def test_volumes_of_an_npz_are_read(shared_data, entries_of):
    modality = open_modality(ImagingSpec(size=(28, 28, 28), dtype="uint8"))
    found = entries_of(modality, shared_data / "imaging" / "medmnist" / "adrenalmnist3d.npz")
    assert len(found) == 1584
    sample = modality.read_one(found[0])
    assert sample.column("sample_id").to_pylist() == ["0"]
    assert tensor_view(sample.column("pixels")).shape == (1, 1, 28, 28, 28)
    assert modality.payload.field("pixels").metadata[b"dims"] == b"C D H W"


def test_colour_becomes_luma_and_grey_is_repeated(tmp_path):
    Image.fromarray(np.full((2, 2, 3), (100, 50, 200), np.uint8)).save(tmp_path / "c.png")
    Image.fromarray(np.full((2, 2), 7, np.uint8)).save(tmp_path / "g.png")
    luma = read(ImagingSpec(size=(2, 2)), tmp_path / "c.png")
    assert luma[0, 0, 0] == pytest.approx(0.299 * 100 + 0.587 * 50 + 0.114 * 200)
    assert read(ImagingSpec(size=(2, 2), channels=3), tmp_path / "c.png")[:, 0, 0].tolist() == [100, 50, 200]
    assert read(ImagingSpec(size=(2, 2), channels=3), tmp_path / "g.png")[:, 0, 0].tolist() == [7, 7, 7]


def test_values_outside_the_storage_dtype_fail_instead_of_wrapping(tmp_path, dicom_bytes):
    (tmp_path / "ct").write_bytes(dicom_bytes(np.array([[0, 4095]], np.uint16), rescale=(1.0, -1024.0)))
    error = refusal(ImagingSpec(size=(1, 2), dtype="uint8"), tmp_path / "ct")
    assert error.reason == "bad_values" and "-1024 to 3071" in error.detail
    assert read(ImagingSpec(size=(1, 2), dtype="int16"), tmp_path / "ct").tolist() == [[[-1024, 3071]]]
    windowed = read(ImagingSpec(size=(1, 2), dtype="uint8", window=(40, 400)), tmp_path / "ct")
    assert windowed.tolist() == [[[0, 255]]]


def test_missing_nan_and_wrongly_shaped_entries_have_reasons(tmp_path, dicom_bytes):
    assert refusal(ImagingSpec(size=(2, 2)), tmp_path / "gone").reason == "missing_file"
    np.savez(tmp_path / "a.npz", images=np.array([[[1.0, np.nan]]], np.float32))
    modality = open_modality(ImagingSpec(size=(1, 2)))
    row = Entry("a.npz#0", "s", b"0" * 16, (PartRef(uri=str(tmp_path / "a.npz"), locator="0"),))
    with pytest.raises(SampleError, match="1 values are NaN"):
        modality.read_one(row)
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert refusal(ImagingSpec(size=(2, 2, 2)), tmp_path / "a.png").reason == "bad_shape"
    error = refusal(ImagingSpec(size=(2, 2), spacing_mm=(1, 1)), tmp_path / "a.png")
    assert error.reason == "bad_geometry"


# --- geometry -------------------------------------------------------------------------------------------------


def test_halving_an_image_averages_it():
    ramp = np.tile(np.arange(16, dtype=np.float32), (16, 1))[None]
    half = resample.resize(ramp, (8, 8))
    assert half[0, 4, 1:-1] == pytest.approx(np.arange(1, 7) * 2 + 0.5, abs=1e-5)
    cube = resample.resize(np.broadcast_to(ramp[:, None], (1, 6, 16, 16)), (3, 8, 8))
    assert cube.shape == (1, 3, 8, 8) and np.allclose(cube, half[:, None], atol=1e-5)


def test_a_constant_stays_constant_and_an_equal_size_stays_the_same_object():
    flat = np.full((1, 5, 7, 9), 3.0, np.float32)
    assert np.allclose(resample.resize(flat, (4, 11, 2)), 3.0)
    assert resample.resize(flat, (5, 7, 9)) is flat


def test_padding_keeps_the_proportions():
    wide = np.full((1, 4, 8), 5.0, np.float32)
    padded = resample.resize_and_pad(wide, (8, 8), -1.0)
    assert padded[0, :, 0].tolist() == [-1, -1, 5, 5, 5, 5, -1, -1]


def test_resampling_to_a_spacing_crops_and_pads_around_the_centre():
    row = np.arange(8, dtype=np.float32)[None, None].repeat(8, 1)
    same = resample.resample(row, (1.0, 1.0), None, to_mm=(1.0, 1.0), size=(4, 4), background=-9.0)
    assert same[0, 0].tolist() == [2, 3, 4, 5]
    finer = resample.resample(row, (1.0, 1.0), None, to_mm=(1.0, 0.5), size=(2, 4), background=-9.0)
    assert finer[0, 0] == pytest.approx([2.75, 3.25, 3.75, 4.25])
    wider = resample.resample(row, (1.0, 1.0), None, to_mm=(1.0, 1.0), size=(8, 12), background=-9.0)
    assert wider[0, 0].tolist() == [-9, -9, 0, 1, 2, 3, 4, 5, 6, 7, -9, -9]
    coarser = resample.resample(row, (1.0, 1.0), None, to_mm=(1.0, 2.0), size=(1, 2), background=-9.0)
    assert coarser[0, 0] == pytest.approx([2.5, 4.5])


def test_the_spacing_of_a_dicom_image_is_used(tmp_path, dicom_bytes):
    (tmp_path / "a").write_bytes(dicom_bytes(GREY, spacing_mm=(2.0, 2.0)))
    pixels = read(ImagingSpec(size=(16, 16), spacing_mm=(1.0, 1.0)), tmp_path / "a")
    assert pixels[0, 7:9, 7:9].mean() == pytest.approx(GREY[3:5, 3:5].mean())
    assert pixels.min() >= GREY.min() and pixels.max() <= GREY.max()


def test_the_background_is_the_least_value_or_what_was_set():
    image = Decoded(np.full((2, 4), 7, np.uint8))
    assert conform(image, ImagingSpec(size=(4, 4), resize="pad"))[0, 0, 0] == 7
    assert conform(image, ImagingSpec(size=(4, 4), resize="pad", background=-5.0))[0, 0, 0] == -5


# --- statistics and encoding ----------------------------------------------------------------------------------


def test_statistics_do_not_depend_on_batches_or_their_order():
    spec = ImagingSpec(size=(5, 7), channels=3, dtype="uint8")
    modality = open_modality(spec)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 3, 5, 7), np.uint8)
    whole = modality.fitted(modality.summarise(batch(spec, pixels)))
    parts = [modality.summarise(batch(spec, pixels[at])) for at in (slice(20, 30), slice(0, 1), slice(1, 20))]
    assert modality.fitted(pa.concat_tables(parts)) == whole
    values = pixels / 255.0
    assert whole.mean == pytest.approx(values.mean((0, 2, 3)))
    assert whole.std == pytest.approx(values.std((0, 2, 3)))


def test_statistics_that_a_run_file_gives_are_used_as_they_are():
    spec = ImagingSpec(size=(1, 4), mean=(2.0,), std=(4.0,))
    modality = open_modality(spec)
    fitted = modality.fitted(modality.summarise(batch(spec, np.array([[[[0, 1, 2, 3]]]], np.float32))))
    assert (fitted.mean, fitted.std) == ((2.0,), (4.0,)) and fitted.trained_ranges


def test_statistics_are_taken_after_the_window():
    spec = ImagingSpec(size=(1, 4), dtype="int16", window=(0, 100))
    modality = open_modality(spec)
    fitted = modality.fitted(modality.summarise(batch(spec, np.array([[[[-500, -50, 50, 500]]]], np.int16))))
    assert fitted.mean == (0.5,) and fitted.std == (0.5,)
    encoded = open_modality(fitted).encode({"pixels": torch.tensor([[[[-500, 0, 25, 500]]]], dtype=torch.int16)})
    assert encoded["pixels"].flatten().tolist() == [-1.0, 0.0, 0.5, 1.0]


def test_constant_images_get_a_deviation_of_one():
    spec = ImagingSpec(size=(2, 2), dtype="uint8")
    modality = open_modality(spec)
    fitted = modality.fitted(modality.summarise(batch(spec, np.full((3, 1, 2, 2), 51, np.uint8))))
    assert fitted.std == (1.0,) and fitted.mean == pytest.approx((0.2,))


def test_tiny_numbers_are_no_constant():
    """As those of a diffusivity in m²/s: mean 2e-9, deviation 1e-9."""
    spec = ImagingSpec(size=(1, 2))
    modality = open_modality(spec)
    fitted = modality.fitted(modality.summarise(batch(spec, np.array([[[[1e-9, 3e-9]]]], np.float32))))
    assert fitted.mean == pytest.approx((2e-9,)) and fitted.std == pytest.approx((1e-9,))
    encoded = open_modality(fitted).encode({"pixels": torch.tensor([[[[1e-9, 3e-9]]]])})
    assert encoded["pixels"].flatten().tolist() == pytest.approx([-1, 1], rel=1e-5)


def test_encoding_before_fitting_is_refused():
    modality = open_modality(ImagingSpec(size=(2, 2)))
    with pytest.raises(UserError, match="cannot be normalised"):
        modality.encode({"pixels": torch.zeros(1, 1, 2, 2)})
    with pytest.raises(UserError, match="no training image"):
        modality.fitted(modality.summarise(batch(modality.spec, np.zeros((0, 1, 2, 2), np.float32))))


def test_a_window_stored_in_8_bits_encodes_like_one_on_the_device(tmp_path, dicom_bytes):
    (tmp_path / "ct").write_bytes(dicom_bytes(GREY.astype(np.uint16) * 8, rescale=(1.0, -1024.0)))
    wide = ImagingSpec(size=(8, 8), window=(0, 2000), normalise="none", dtype="float32")
    small = wide.model_copy(update={"dtype": "uint8"})
    encoded = [
        open_modality(spec).encode({"pixels": torch.from_numpy(read(spec, tmp_path / "ct")[None].copy())})["pixels"]
        for spec in (wide, small)
    ]
    assert torch.allclose(*encoded, atol=0.5 / 255 + 1e-6)
    assert encoded[0].min() == 0.0 and 0.9 < encoded[0].max() <= 1.0


def test_collating_copies_nothing():
    spec = ImagingSpec(size=(4, 4), dtype="uint8")
    samples = batch(spec, np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4))
    pixels = open_modality(spec).collate(samples)["pixels"]
    assert pixels.dtype == np.uint8 and not pixels.flags.owndata and pixels.shape == (2, 1, 4, 4)


def test_scores_of_a_sample_do_not_depend_on_its_batch():
    spec = ImagingSpec(size=(6, 6), mean=(0.3,), std=(0.2,), dtype="uint8")
    pixels = torch.randint(0, 256, (7, 1, 6, 6), dtype=torch.uint8)
    modality = open_modality(spec)
    whole = modality.encode({"pixels": pixels})["pixels"]
    assert all(
        torch.equal(whole[i : i + 1], modality.encode({"pixels": pixels[i : i + 1]})["pixels"]) for i in range(7)
    )


# --- augmentation ---------------------------------------------------------------------------------------------

EVERYTHING = AugmentSpec(
    flip=("width", "height"), rotate_degrees=20, shift=0.1, scale=0.1, brightness=0.2, contrast=0.2, noise=0.05
)


def augmented(augment: AugmentSpec, pixels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    spec = ImagingSpec(size=tuple(pixels.shape[2:]), normalise="none", augment=augment)
    return open_modality(spec).encode({"pixels": pixels}, torch.Generator().manual_seed(seed))["pixels"]


@pytest.mark.parametrize("shape", [(6, 1, 9, 12), (4, 1, 5, 9, 12)])
def test_augmentation_is_seeded_and_differs_per_sample(shape):
    pixels = torch.rand(shape[1:]).expand(shape).contiguous()
    first, again, other = (augmented(EVERYTHING, pixels, seed) for seed in (1, 1, 2))
    assert first.shape == shape and torch.equal(first, again) and not torch.equal(first, other)
    assert len({tuple(sample.flatten().tolist()) for sample in first}) == shape[0]


def test_no_augmentation_without_a_generator_or_settings():
    pixels = torch.rand(3, 1, 8, 8)
    spec = ImagingSpec(size=(8, 8), normalise="none", augment=EVERYTHING)
    assert torch.equal(open_modality(spec).encode({"pixels": pixels})["pixels"], pixels)
    assert torch.equal(augmented(AugmentSpec(), pixels), pixels)


def test_mirroring_is_exact_and_about_half():
    pixels = torch.rand(400, 1, 4, 6)
    out = augmented(AugmentSpec(flip=("width",)), pixels)
    mirrored = sum(torch.equal(a, b.flip(-1)) for a, b in zip(out, pixels, strict=True))
    kept = sum(torch.equal(a, b) for a, b in zip(out, pixels, strict=True))
    assert mirrored + kept == 400 and 150 < mirrored < 250


def test_a_rotation_off_the_square_keeps_a_disc_a_disc():
    y, x = torch.meshgrid(torch.arange(40.0) - 19.5, torch.arange(80.0) - 39.5, indexing="ij")
    disc = ((x**2 + y**2).sqrt() < 15).float()[None, None].repeat(8, 1, 1, 1)
    turned = augmented(AugmentSpec(rotate_degrees=90), disc)
    assert (turned - disc).abs().mean() < 0.01


def test_what_comes_from_outside_is_background_not_zero():
    pixels = torch.full((16, 1, 8, 8), -1.5)
    pixels[:, :, 3:5, 3:5] = 2.0
    moved = augmented(AugmentSpec(shift=0.4), pixels)
    assert moved.min() == pytest.approx(-1.5) and moved.max() <= 2.0 + 1e-5
    assert moved[:, :, 0].max() > -1.5 or moved[:, :, -1].max() > -1.5


def test_a_shift_moves_by_a_fraction_of_the_size():
    pixels = torch.zeros(64, 1, 1, 11)
    pixels[..., 5] = 1.0
    columns = augmented(AugmentSpec(shift=0.2), pixels)[:, 0].sum(1)
    places = (columns * torch.arange(11.0)).sum(1) / columns.sum(1)
    assert places.min() < 4 and places.max() > 6 and (places - 5).abs().max() <= 0.2 * 11 + 1e-4
