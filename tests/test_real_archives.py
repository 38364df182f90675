"""Real archives scored whole: what is read is scored, what is not is a failed row, and nothing is lost."""

import shutil
import tarfile

import pytest
import torch
import toy

from medray.engines.local import LocalEngine
from medray.engines.spec import RaySpec
from medray.learning import bundles
from medray.learning.models.cnn import CnnSpec
from medray.learning.objectives import BinaryObjective
from medray.learning.recipe import Recipe
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.registry import open_modality
from medray.verbs.score import score


def save_bundle(uri, **modality):
    """A bundle with seeded weights: scoring an archive needs no training."""
    spec = ImagingSpec.model_validate({"mean": (100.0,), "std": (200.0,)} | modality)
    model = CnnSpec(channels=(4, 4), dense=8, pooling="average")
    torch.manual_seed(0)
    network = model.build(open_modality(spec).inputs(), 1)
    recipe = Recipe(
        name="seeded", modality=spec, model=model, objective=BinaryObjective(), classes=("a", "b"), thresholds=(0.5,),
        outputs=("b",), data={}, training={}, metrics={}, versions={}, created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    bundles.save(bundles.make_bundle(recipe, weights), str(uri))


@pytest.mark.slow  # what is read of them, test_imaging_modality.py compares on every run
def test_ten_thousand_pngs_are_ten_thousand_scores(shared_data, tmp_path, ray_session):
    from medray.engines.ray.engine import RayEngine

    with tarfile.open(shared_data / "imaging" / "mnist" / "mnist_png_t10k.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    save_bundle(tmp_path / "bundle", size=(28, 28), dtype="uint8", mean=(0.13,), std=(0.31,))
    run = toy.score_run(tmp_path, archive=str(tmp_path / "test"), batch_size=64)
    result = score(run, RayEngine(RaySpec(workers=2)))
    assert (result.entries, result.scored, result.failed) == (10_000, 10_000, 0)
    assert len(toy.scores(tmp_path / "scores")) == 10_000


SLICES = {
    # set: (scored, failed by reason), each file an entry
    "ct_ge_tilt": (28, {}),
    "ct_philips_head5mm": (28, {}),
    "mr_transfer_syntaxes": (0, {"unsupported": 9}),  # mosaics
}


@pytest.mark.parametrize("name", SLICES)
def test_a_dicom_set_is_scored_slice_by_slice(shared_data, tmp_path, name):
    save_bundle(tmp_path / "bundle", size=(32, 32))
    shutil.copytree(shared_data / "imaging" / "dicom" / name, tmp_path / "archive")
    for path in (tmp_path / "archive").rglob("*"):
        path.chmod(0o755)
        if path.suffix in (".json", ".gz", ".nii", ".md") or path.name == "LICENSE":
            path.unlink()
    result = score(toy.score_run(tmp_path), LocalEngine())
    assert (result.scored, result.by_reason) == SLICES[name]
    assert result.entries == result.scored + result.failed


def test_all_dicom_sets_are_scored_as_volumes_or_say_why_not(shared_data, tmp_path):
    save_bundle(tmp_path / "bundle", size=(8, 32, 32), spacing_mm=(8.0, 8.0, 8.0))
    run = toy.score_run(tmp_path, archive=str(shared_data / "imaging" / "dicom"))
    result = score(run, LocalEngine())
    assert result.entries == result.scored + result.failed == result.pending
    # 12 time series, mosaics and double volumes of DICOM, 9 of NIfTI; 46 texts, licences and JSON files
    assert (result.scored, result.by_reason) == (17, {"unrecognised_format": 46, "unsupported": 21})
    assert len(toy.failures(tmp_path / "scores")) == result.failed
