"""Training of networks that Keras files describe, through the verbs; the bundle needs neither the file nor Keras."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keras_fixtures import changed, random_input, unpacked

from medray.config.runs import TrainRun
from medray.engines.local import LocalEngine
from medray.engines.ray.engine import RayEngine
from medray.engines.spec import RaySpec
from medray.errors import BundleError, RunFileError, UserError
from medray.learning import bundles
from medray.learning.keras.building import answer
from medray.learning.predictor import Predictor, build_network
from medray.modalities.registry import open_modality
from medray.verbs.evaluate import evaluate
from medray.verbs.inspect import inspect
from medray.verbs.train import train

CLASSES = 10


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Pictures of 28 x 28 with a bright bar whose row is the class, as a MedMNIST file; and Keras's reference network."""
    folder = tmp_path_factory.mktemp("digits")
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 100), ("val", 30), ("test", 20)):
        labels = np.arange(count) % CLASSES
        images = random.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 : 2 * label + 6, 5:23] += 150
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None]}
    np.savez(folder / "digits.npz", **arrays)
    unpacked("mnist_cnn.keras", folder)
    return folder


def digits_run(digits: Path, folder: Path, file: str | Path = "mnist_cnn.keras", **changes: Any) -> TrainRun:
    training = {"epochs": 3, "batch_size": 10, "learning_rate": 0.002} | changes.pop("training", {})
    whole = {
        "name": "digits",
        "archive": str(digits / "digits.npz"),
        "bundle": str(folder / "bundle"),
        "work": str(folder / "work"),
        "engine": {"kind": "local"},
        "modality": {"kind": "imaging", "size": [28, 28], "normalise": "none"},
        "model": {"kind": "keras", "file": str(digits / file)},
        "objective": {"kind": "multiclass"},
        "training": training,
        "floor": False,
    }
    return TrainRun.model_validate(whole | changes)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory) -> TrainRun:
    """The run of a bundle whose Keras file is no more."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(digits / "mnist_cnn.keras", folder / "copy.keras")
    run = digits_run(digits, folder, folder / "copy.keras")
    assert train(run, LocalEngine()).metrics["accuracy"] > 0.9
    (folder / "copy.keras").unlink()
    return run


def test_the_reference_network_of_keras_learns_from_its_untrained_file(trained: TrainRun) -> None:
    result = evaluate(trained, LocalEngine())
    assert result.metrics["accuracy"] > 0.8
    facts = inspect(trained.bundle_uri).facts
    assert facts["graph"]  # onnxruntime can score it
    assert facts["pretrained"]["file"] == "copy.keras" and len(facts["pretrained"]["sha256"]) == 64
    card = (Path(trained.bundle) / "README.md").read_text()
    assert "model: keras" in card and "Weights began as those of `copy.keras`" in card


def test_the_bundle_holds_the_network_and_its_id_covers_it(trained: TrainRun, tmp_path: Path) -> None:
    bundle = bundles.load(trained.bundle)
    assert bundle.recipe.model.file is None and len(bundle.recipe.model.described.nodes) == 8
    shutil.copytree(trained.bundle, tmp_path / "bundle")
    spec = json.loads((tmp_path / "bundle" / "spec.json").read_text())
    assert spec["model"]["network"]["nodes"][1]["layer"]["largest"]
    spec["model"]["network"]["nodes"][1]["layer"]["largest"] = False
    (tmp_path / "bundle" / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(BundleError, match="altered"):
        bundles.load(str(tmp_path / "bundle"))


def test_the_last_softmax_is_the_objectives(digits: Path, tmp_path: Path) -> None:
    """Before a step of training, probabilities are what the Keras file's network says."""
    from medray.learning.keras.building import KerasNetwork
    from medray.learning.keras.container import open_file

    opened = open_file(digits / "mnist_cnn.keras")
    run = digits_run(digits, tmp_path, training={"epochs": 1, "learning_rate": 1e-12})
    train(run, LocalEngine())
    bundle = bundles.load(run.bundle)
    network = build_network(bundle.recipe, bundle.weights)
    pixels = torch.from_numpy(random_input("pixels", 0, (1, 28, 28), "float32")[:8])
    whole = KerasNetwork(opened.model.network, {})
    state = opened.model.network.to_torch(opened.arrays)
    whole.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    [port] = opened.model.network.inputs
    with torch.inference_mode():
        logits = network(pixels=pixels)
    assert logits.shape == (8, 10) and float(logits.min()) < 0
    said = bundle.recipe.objective.activate(logits).numpy()
    assert said == pytest.approx(answer(whole, {port.name: pixels.movedim(1, -1)}).numpy(), abs=1e-6)


def test_scores_do_not_depend_on_the_batch(trained: TrainRun) -> None:
    bundle = bundles.load(trained.bundle)
    modality = open_modality(bundle.recipe.modality)
    from medray.datasets.samples import tensor_column

    pixels = np.random.default_rng(1).integers(0, 255, (9, 1, 28, 28)).astype(np.float32)
    import pyarrow as pa

    samples = pa.record_batch([tensor_column(pixels)], schema=modality.payload)
    predictor = Predictor(bundle, "cpu")
    together = predictor(samples)
    apart = np.concatenate([predictor(samples.slice(i, 1)) for i in range(9)])
    assert together == pytest.approx(apart, abs=1e-6)


def test_two_workers_train_the_same_network_as_one(digits: Path, tmp_path: Path, ray_session: None) -> None:
    found = []
    for workers, engine in ((1, LocalEngine()), (2, None)):
        folder = tmp_path / str(workers)
        run = digits_run(digits, folder, training={"epochs": 1, "batch_size": 20})
        train(run, engine or RayEngine(RaySpec(workers=2)))
        found.append(bundles.load(run.bundle).weights)
    assert found[0].keys() == found[1].keys()
    for name, array in found[0].items():
        assert found[1][name] == pytest.approx(array, abs=2e-4), name


def test_what_does_not_fit_is_refused(digits: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"objective": {"kind": "regression"}}, "ends with another activation"),
        ({"modality": {"kind": "imaging", "size": [24, 24], "normalise": "none"}}, "takes another shape"),
        ({"model": {"kind": "keras", "file": str(tmp_path / "none.keras")}}, "no such file"),
        (
            {"model": {"kind": "keras", "file": str(digits / "mnist_cnn.keras"), "inputs": {"other": "pixels"}}},
            "no such input",
        ),
    ):
        run = digits_run(digits, tmp_path, **changes)
        with pytest.raises(UserError, match=message):
            train(run, LocalEngine())
    with pytest.raises(ValueError, match="file is missing"):
        digits_run(digits, tmp_path, model={"kind": "keras"})
    run = digits_run(digits, tmp_path, changed("keras-vgg.keras", tmp_path))
    with pytest.raises(RunFileError, match="takes another shape"):
        train(run, LocalEngine())
    assert not (tmp_path / "bundle").exists()
