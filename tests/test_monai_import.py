"""Bundles of MONAI by `medray import`, held against what MONAI itself makes of the same files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from medray.api import Bundle
from medray.config.runs import TrainRun
from medray.errors import MedrayError, RunFileError, UserError
from medray.learning import bundles
from medray.learning.models.monai import MonaiSpec
from medray.modalities.inputs import Input
from medray.verbs.import_ import import_model

NETWORK = {
    "_target_": "DenseNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 3, "init_features": 8, "growth_rate": 4,
    "block_config": [2, 2],
}  # fmt: skip
LOADING = [
    {"_target_": "LoadImaged", "keys": "@keys"},
    {"_target_": "EnsureChannelFirstd", "keys": "$@keys"},
]
TO_ONE = {
    "_target_": "ScaleIntensityRanged",
    "keys": "image",
    "a_min": 0,
    "a_max": 200,
    "b_min": 0.0,
    "b_max": 1.0,
    "clip": True,
}
BY_NUMBERS = {"_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": 0.25, "divisor": 0.5}
TO_RAS = {"_target_": "monai.transforms.Orientationd", "keys": "image", "axcodes": "RAS"}


def monai_bundle(folder: Path, network: dict[str, Any], transforms: list[dict[str, Any]]) -> torch.nn.Module:
    """A bundle in the layout of MONAI's specification, its network with seeded weights."""
    from monai.networks import nets

    config = {
        "keys": ["image"],
        "network_def": network,
        "preprocessing": {"_target_": "Compose", "transforms": transforms},
    }
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "configs/inference.json").write_text(json.dumps(config))
    (folder / "configs/metadata.json").write_text(json.dumps({"monai_version": "1.4.0"}))
    torch.manual_seed(0)
    made = nets.DenseNet(**{key: value for key, value in network.items() if key != "_target_"})
    made.train()(torch.randn(4, network["in_channels"], *[24] * network["spatial_dims"]))
    torch.save(made.state_dict(), folder / "models/model.pt")
    return made.eval()


def like(folder: Path, model: dict[str, Any] | None = None, **modality: Any) -> TrainRun:
    return TrainRun.model_validate(
        {
            "name": "imported",
            "archive": str(folder),
            "bundle": str(folder / "bundle"),
            "modality": {"kind": "imaging", "size": [24, 32], "window": [100, 200], "normalise": "none"} | modality,
            "model": {"kind": "monai"} | (model or {}),
            "objective": {"kind": "multiclass", "names": ["a", "b", "c"]},
        }
    )


def as_monai_says(network: torch.nn.Module, file: Path, transforms: list[dict[str, Any]]) -> np.ndarray:
    """Probabilities by MONAI's own reader and transforms."""
    from monai import transforms as own

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of readers for which nothing is installed
        steps = [
            getattr(own, each["_target_"].rpartition(".")[2])(
                **{key: "image" if key == "keys" else value for key, value in each.items() if key != "_target_"}
            )
            for each in transforms
        ]
        image = own.Compose(steps)({"image": str(file)})["image"]
    with torch.inference_mode():
        return network(torch.as_tensor(np.asarray(image))[None].float()).softmax(1).numpy()[0]


def by_medray(bundle: str, file: Path) -> np.ndarray:
    [row] = [row for row in Bundle.load(bundle).predict([file]).to_pylist()]
    return np.array([row[name] for name in "abc"])


def test_a_picture_gets_the_scores_that_monai_gives_it(tmp_path):
    transforms = [*LOADING, TO_ONE, BY_NUMBERS]
    network = monai_bundle(tmp_path / "theirs", NETWORK, transforms)
    run = like(tmp_path, normalise="zscore", mean=[0.25], std=[0.5])
    result = import_model(str(tmp_path / "theirs"), run)
    assert result.written_by == "MONAI 1.4.0" and result.outputs == ("a", "b", "c")
    picture = tmp_path / "picture.png"  # of different sides and no symmetry: turned axes would show
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32)).astype(np.uint8)).save(picture)
    expected = as_monai_says(network, picture, transforms)
    np.testing.assert_allclose(by_medray(result.bundle, picture), expected, rtol=0, atol=1e-5)
    bundle = bundles.load(result.bundle)
    assert bundle.recipe.model.axes == "reversed" and not bundle.recipe.training["imported"]["not_taken_over"]


@pytest.mark.parametrize("codes", ["RAS", "LPS"])
def test_a_volume_gets_the_scores_that_monai_gives_it_however_it_is_stored(tmp_path, codes):
    transforms = [*LOADING, TO_RAS, TO_ONE]
    network = monai_bundle(tmp_path / "theirs", NETWORK | {"spatial_dims": 3}, transforms)
    result = import_model(str(tmp_path / "theirs"), like(tmp_path, size=[20, 24, 28], orientation="RAS"))
    values = np.random.default_rng(0).integers(0, 255, (28, 24, 20)).astype(np.int16)
    signs = [1.0 if letter in "RAS" else -1.0 for letter in codes]
    volume = tmp_path / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*signs, 1.0])), volume)
    expected = as_monai_says(network, volume, transforms)
    np.testing.assert_allclose(by_medray(result.bundle, volume), expected, rtol=0, atol=1e-5)


def test_answers_of_the_original_are_held_against_it(tmp_path):
    network = monai_bundle(tmp_path / "theirs", NETWORK, [*LOADING, TO_ONE])
    images = np.random.default_rng(0).normal(0, 1, (9, 1, 32, 24)).astype(np.float32)  # width first
    with torch.inference_mode():
        np.savez(tmp_path / "expected.npz", image=images, outputs=network(torch.from_numpy(images)).numpy())
    result = import_model(str(tmp_path / "theirs"), like(tmp_path), expect=str(tmp_path / "expected.npz"))
    assert result.compared == 9 and result.largest_difference is not None and result.largest_difference < 1e-5


@pytest.mark.parametrize(
    ("transforms", "modality", "message"),
    [
        ([TO_ONE], {"window": [50, 100]}, r"window = \[50.0, 100.0\].*\[modality\] window = \[100.0, 200.0\]"),
        ([TO_ONE], {"normalise": "zscore", "mean": [1], "std": [2]}, "mean = none"),
        ([], {}, "window = none"),
        (
            [{"_target_": "Resized", "keys": "image", "spatial_size": [24, 32]}],
            {},
            "no equal in medray.*Resize with spatial_size",
        ),
        ([{"_target_": "ScaleIntensityd", "keys": "image"}], {}, "no equal.*ScaleIntensity"),
        ([TO_ONE | {"clip": False}], {}, "no equal.*ScaleIntensityRange"),
        ([{"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True}], {}, "no equal.*NormalizeIntensity"),
        ([BY_NUMBERS, TO_ONE], {}, "no equal.*ScaleIntensityRange"),
        ([{"_target_": "builtins.open", "file": "x"}], {}, "a class of others, which is code.*builtins.open"),
        ([TO_ONE | {"a_min": "$1 + 1"}], {}, "an expression, which is code"),
        ([TO_ONE | {"a_min": "@absent::key"}], {}, "refers to what is not there.*@absent::key"),
    ],
)
def test_transforms_that_the_run_file_does_not_do_are_refused_by_name(tmp_path, transforms, modality, message):
    monai_bundle(tmp_path / "theirs", NETWORK, [*LOADING, *transforms])
    with pytest.raises(UserError, match=f"(?s){message}") as refused:
        import_model(str(tmp_path / "theirs"), like(tmp_path, **modality))
    assert refused.value.exit_code == 2 and not (tmp_path / "bundle").exists()


def test_a_run_file_may_say_that_its_own_way_is_right_and_the_card_tells_it(tmp_path):
    resized = {"_target_": "Resized", "keys": "image", "spatial_size": [24, 32]}
    monai_bundle(tmp_path / "theirs", NETWORK, [*LOADING, resized])
    result = import_model(str(tmp_path / "theirs"), like(tmp_path, {"transforms": "mine"}))
    assert "Resize, in whose place [modality] was said to be right" in (Path(result.bundle) / "README.md").read_text()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"_target_": "UNet", "spatial_dims": 2}, "the network is not one that is taken.*UNet"),
        ({"_target_": "os.system", "command": "true"}, "a class of others, which is code.*os.system"),
        ({"_target_": "$__import__('monai').networks.nets.DenseNet"}, "an expression, which is code"),
        (NETWORK | {"init_features": "$8"}, "an expression, which is code"),
        (NETWORK | {"init_features": 16}, "of another shape"),
        (NETWORK | {"width": 3}, "does not make this network of these arguments"),
    ],
)
def test_networks_that_are_not_taken_are_refused_by_name(tmp_path, network, message):
    monai_bundle(tmp_path / "theirs", NETWORK, [*LOADING, TO_ONE])
    config = json.loads((tmp_path / "theirs/configs/inference.json").read_text())
    (tmp_path / "theirs/configs/inference.json").write_text(json.dumps(config | {"network_def": network}))
    with pytest.raises(MedrayError, match=f"(?s){message}") as refused:
        import_model(str(tmp_path / "theirs"), like(tmp_path))
    assert refused.value.exit_code == 2 and not (tmp_path / "bundle").exists()


def test_a_volume_without_an_orientation_is_refused(tmp_path):
    monai_bundle(tmp_path / "theirs", NETWORK | {"spatial_dims": 3}, [*LOADING, TO_ONE])
    with pytest.raises(UserError, match="readers give in orders of their own"):
        import_model(str(tmp_path / "theirs"), like(tmp_path, size=[20, 24, 28]))


def test_a_config_may_be_yaml(tmp_path):
    import yaml

    monai_bundle(tmp_path / "theirs", NETWORK, [*LOADING, TO_ONE])
    written = tmp_path / "theirs/configs/inference.json"
    (tmp_path / "theirs/configs/inference.yaml").write_text(yaml.safe_dump(json.loads(written.read_text())))
    written.unlink()
    assert import_model(str(tmp_path / "theirs"), like(tmp_path)).compared == 0


def test_the_network_is_one_to_train_too_and_says_what_does_not_fit():
    plane = {"pixels": Input((1, 32, 32))}
    small = {"init_features": 8, "growth_rate": 4, "block_config": [2, 2]}
    spec = MonaiSpec(network="DenseNet", arguments=small)
    built = spec.build(plane, 2)
    assert built(pixels=torch.zeros(3, 1, 32, 32)).shape == (3, 2)
    assert spec.heads(built) == ("network.class_layers.out.",)
    for arguments, message in (
        ({"in_channels": 3}, "for other data"),
        ({"pretrained": True}, "not downloaded"),
        ({"growth": 3}, "does not make this network"),
    ):
        with pytest.raises(RunFileError, match=message):
            MonaiSpec(network="DenseNet121", arguments=arguments).build(plane, 2)
    with pytest.raises(RunFileError, match="has no name"):
        MonaiSpec().build(plane, 2)
    small_net = MonaiSpec(network="EfficientNetBN", arguments={"model_name": "efficientnet-b0"})
    assert small_net.heads(small_net.build(plane, 2)) == ("network._fc.",)
    squeezed = MonaiSpec(network="SEResNet50").build(plane, 2)
    assert MonaiSpec(network="SEResNet50").heads(squeezed) == ("network.last_linear.",)
