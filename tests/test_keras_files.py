"""Keras files become torch networks that answer as Keras does; what is not supported is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from keras_fixtures import FOLDER, LIBRARIES, answers, changed, names, random_input, unpacked

from medray.errors import UserError
from medray.learning.keras.building import KerasNetwork, answer
from medray.learning.keras.container import Opened, open_file
from medray.learning.keras.reading import read

TOLERANCE = 1e-5
"""Largest difference of an answer, relative to the largest answer where that is above 1."""
ARCHITECTURES = (
    "lenet", "vgg", "resnet", "unet_encoder", "deepbind", "danq", "gru_d", "lstm_classifier", "efficientnet", "densenet",
    "nested",
)  # fmt: skip


def network(opened: Opened) -> KerasNetwork:
    made = KerasNetwork(opened.model.network, {})
    state = opened.model.network.to_torch(opened.arrays)
    made.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return made


def difference(opened: Opened, model: str, expected: np.ndarray) -> float:
    """Largest difference of a network's answers to a model's random inputs."""
    given = {
        port.name: random_input(model, number, port.shape, "int32" if port.codes else "float32")[: len(expected)]
        for number, port in enumerate(opened.model.network.inputs)
    }
    found = answer(network(opened), {name: torch.from_numpy(array) for name, array in given.items()}).numpy()
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_supported_layer_and_ten_architectures_answer_as_keras_does(library: str, tmp_path: Path) -> None:
    models = answers(library)
    differences = {
        name: difference(open_file(unpacked(name, tmp_path)), name.removeprefix(f"{library}-").rpartition(".")[0], of)
        for name in names()
        for of in [models.get(name.removeprefix(f"{library}-").rpartition(".")[0])]
        if name.startswith(f"{library}-") and of is not None
    }
    assert {name: far for name, far in differences.items() if far > TOLERANCE} == {}
    assert {name.rpartition(".")[0] for name in differences} == {f"{library}-{name}" for name in models}
    if library != "keras-torch":
        assert set(ARCHITECTURES) <= set(models) and all(len(models[name]) == 100 for name in ARCHITECTURES)


def test_arrays_come_back_from_torch_as_they_were(tmp_path: Path) -> None:
    for name in names():
        if name.endswith(".keras"):
            opened = open_file(unpacked(name, tmp_path))
            described = opened.model.network
            back = described.to_keras(described.to_torch(opened.arrays))
            for node, arrays in opened.arrays.items():
                for was, comes in zip(arrays, back[node], strict=True):
                    assert was.ndim == 0 or np.array_equal(was, comes), (name, node)


def test_hard_sigmoid_is_that_of_the_keras_which_wrote_the_file(tmp_path: Path) -> None:
    # 1 / 6 + 0.5 of Keras 3, 0.2 + 0.5 of Keras 2
    for library, expected in (("keras", 1 / 6 + 0.5), ("keras2", 0.7)):
        opened = open_file(unpacked(f"{library}-activation_hard_sigmoid.keras", tmp_path))
        found = answer(network(opened), {opened.model.network.inputs[0].name: torch.ones(1, 7)})
        assert found.numpy() == pytest.approx(expected, abs=1e-6)


def test_batch_norm_moves_its_statistics_as_keras_does(tmp_path: Path) -> None:
    """By the batch's mean and biased variance; momentum is the share of the old ones."""
    opened = open_file(unpacked("keras-batchnorm.keras", tmp_path))
    [node] = opened.model.network.nodes
    gamma, beta, mean, variance = opened.arrays[node.name]
    made = network(opened).train()
    values = torch.from_numpy(random_input("batchnorm", 0, (6, 5, 3), "float32")[:4])
    [port] = opened.model.network.inputs
    said = made.keras_layout({port.name: values}).detach().numpy()
    flat = values.numpy().reshape(-1, 3).astype(np.float64)
    of_batch, spread = flat.mean(0), flat.var(0)
    expected = (values.numpy() - of_batch) / np.sqrt(spread + 0.01) * gamma + beta
    assert said == pytest.approx(expected, abs=1e-5)
    [layer] = made.layers.values()
    assert layer.running_mean.numpy() == pytest.approx(0.9 * mean + 0.1 * of_batch, abs=1e-6)
    assert layer.running_var.numpy() == pytest.approx(0.9 * variance + 0.1 * spread, abs=1e-6)
    before = layer.running_mean.clone()
    made.eval().keras_layout({port.name: values})
    assert torch.equal(layer.running_mean, before)


def test_dropout_drops_in_training_alone(tmp_path: Path) -> None:
    opened = open_file(unpacked("keras-spatialdropout2d.keras", tmp_path))
    made = network(opened)
    [port] = opened.model.network.inputs
    ones = torch.ones(50, 6, 5, 3)
    assert torch.equal(made.eval().keras_layout({port.name: ones}), ones)
    dropped = made.train().keras_layout({port.name: ones})
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped.amin((1, 2)), dropped.amax((1, 2)))  # whole channels


def test_a_layer_that_is_not_trainable_stays_as_it_is(tmp_path: Path) -> None:
    def freeze(config: dict[str, Any]) -> None:
        for layer in config["config"]["layers"]:
            layer["config"]["trainable"] = layer["class_name"] not in ("BatchNormalization", "Conv2D")

    made = network(open_file(changed("keras-resnet.keras", tmp_path, config=freeze))).train()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    assert {name for name, each in made.named_parameters() if each.requires_grad} == {
        name for name in before if "dense" in name
    }
    made.keras_layout({"pixels": torch.randn(4, 32, 32, 3)}).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


# --- refusals -------------------------------------------------------------------------------------------------


def layer(config: dict[str, Any], number: int) -> dict[str, Any]:
    return config["config"]["layers"][number]


def a_lambda(config: dict[str, Any]) -> None:
    code = {"class_name": "__lambda__", "config": {"code": "harmless", "defaults": None, "closure": None}}
    layer(config, 1).update(class_name="Lambda", config={"name": "mine", "function": code})


def a_custom_layer(config: dict[str, Any]) -> None:
    layer(config, 1).update(class_name="Mine", module="someone.layers", registered_name="someone>Mine")


def a_custom_initializer(config: dict[str, Any]) -> None:
    initializer = {"module": "someone", "class_name": "Start", "config": {}, "registered_name": "someone>Start"}
    layer(config, 1)["config"]["kernel_initializer"] = initializer


def a_function(config: dict[str, Any]) -> None:
    function = {"module": "builtins", "class_name": "function", "config": "mine", "registered_name": "function"}
    layer(config, 1)["config"]["activation"] = function


def settings(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: layer(config, 1)["config"].update(changes)


DENSE = "layers/dense/vars/0"


def linked(link: Any) -> Callable[[h5py.File], None]:
    def change(root: h5py.File) -> None:
        root["elsewhere"] = root[DENSE][()]
        del root[DENSE]
        root[DENSE] = link

    return change


def stored(**how: Any) -> Callable[[h5py.File], None]:
    def change(root: h5py.File) -> None:
        values = root[DENSE][()]
        del root[DENSE]
        root.create_dataset(DENSE, data=values, **how)

    return change


def outside(root: h5py.File) -> None:
    del root[DENSE]
    root.create_dataset(DENSE, (7, 5), np.float32, external=[("/etc/hostname", 0, 140)])


def virtual(root: h5py.File) -> None:
    layout = h5py.VirtualLayout((7, 5), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "values", (7, 5))
    del root[DENSE]
    root.create_virtual_dataset(DENSE, layout)


def without_numbers(root: h5py.File) -> None:
    del root[DENSE]
    root.create_dataset(DENSE, (7, 5), np.float32)


def not_finite(root: h5py.File) -> None:
    root[DENSE][0, 0] = np.nan


def member(name: str) -> Callable[[zipfile.ZipFile], None]:
    return lambda archive: archive.writestr(name, b"harmless")


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "a Lambda layer": ("Lambda layer holds code", {"config": a_lambda}),
    "a layer of others": ("someone>Mine", {"config": a_custom_layer}),
    "an initializer of others": ("someone>Start", {"config": a_custom_initializer}),
    "a function of one's own": ("a function of one's own", {"config": a_function}),
    "a layer that is not supported": (
        r"dense \(MultiHeadAttention\) is not supported[\s\S]*BatchNormalization",
        {"config": lambda config: layer(config, 1).update(class_name="MultiHeadAttention")},
    ),
    "a setting that is not known": ("turns", {"config": settings(turns=3)}),
    "an activation that is not known": ("sparsemax", {"config": settings(activation="sparsemax")}),
    "numbers of half precision": (
        "mixed_float16",
        {"config": settings(dtype={"module": "keras", "class_name": "DTypePolicy", "config": {"name": "mixed_float16"}})},
    ),
    "other shapes than the settings": (r"another shape[\s\S]*\(7, 5\)[\s\S]*\(7, 6\)", {"config": settings(units=6)}),
    "an absurd width": ("too large", {"config": settings(units=2**27)}),
    "more weights than bytes": ("smaller than its weights", {"config": settings(units=2**22)}),
    "a negative width": ("units is wrong", {"config": settings(units=-5)}),
    "a path that leads out of the zip": (r"\.\./evil", {"members": member("../evil")}),
    "an absolute path": ("/tmp/evil", {"members": member("/tmp/evil")}),
    "a pickle beside the weights": (r"model\.pkl", {"members": member("model.pkl")}),
    "a member that is there twice": ("not whole", {"members": member("config.json")}),
    "a soft link": ("leads elsewhere", {"weights": linked(h5py.SoftLink("/elsewhere"))}),
    "an external link": ("leads elsewhere", {"weights": linked(h5py.ExternalLink("other.h5", "/values"))}),
    "external storage": ("outside of the file", {"weights": outside}),
    "a virtual dataset": ("outside of the file", {"weights": virtual}),
    "a filter": ("stored by a filter", {"weights": stored(compression="gzip")}),
    "numbers that are not there": ("not all in the file", {"weights": without_numbers}),
    "numbers that are not finite": ("no finite number", {"weights": not_finite}),
    "weights that are compressed": ("weights are compressed", {"compressed": True}),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_is_refused_by_name_that_holds(what: str, tmp_path: Path) -> None:
    message, changes = REFUSED[what]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of zipfile, that a name is there twice
        path = changed("keras-dense.keras", tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        read(str(path), "[model] file")
    assert caught.value.where == "[model] file" and caught.value.exit_code == 2
    assert not (tmp_path / "evil").exists() and not Path("/tmp/evil").exists()


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("gru", "stateful", True, "stateful"),
        ("lstm", "return_state", True, "return_state"),
        ("conv2d", "padding", "full", "padding"),
        ("dropout", "noise_shape", [None, 1], "noise_shape"),
        ("normalization", "invert", True, "invert"),
        ("bidirectional_sum", "merge_mode", None, "merge"),
        ("dense", "lora_rank", 4, "lora_rank"),
    ],
)
def test_a_setting_without_support_is_refused(name: str, key: str, value: Any, message: str, tmp_path: Path) -> None:
    path = changed(f"keras-{name}.keras", tmp_path, config=settings(**{key: value}))
    with pytest.raises(UserError, match=message):
        read(str(path), "file")


def test_deep_json_text_and_half_a_file_are_refused(tmp_path: Path) -> None:
    whole = unpacked("keras-dense.keras", tmp_path)
    deep = tmp_path / "deep.keras"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(deep, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, "[" * 200_000 if name == "config.json" else source.read(name))
    half = tmp_path / "half.keras"
    half.write_bytes(whole.read_bytes()[:5000])
    text = tmp_path / "text.keras"
    text.write_text("harmless")
    for path, message in ((deep, "no JSON"), (half, "no whole zip"), (text, "no Keras file")):
        with pytest.raises(UserError, match=message):
            read(str(path), "file")
    with pytest.raises(UserError, match="no such file"):
        read(str(tmp_path / "none.keras"), "file")


def test_an_h5_of_weights_alone_and_one_with_a_link_are_refused(tmp_path: Path) -> None:
    path = unpacked("keras2-lenet.h5", tmp_path)
    with h5py.File(path, "r+") as root:
        kernel = root["model_weights/dense/dense"]
        assert isinstance(kernel, h5py.Group)
        del kernel["kernel:0"]
        kernel["kernel:0"] = h5py.ExternalLink("other.h5", "/values")
    with pytest.raises(UserError, match="leads elsewhere"):
        read(str(path), "file")
    with h5py.File(path, "r+") as root:
        del root.attrs["model_config"]
    with pytest.raises(UserError, match="without a model"):
        read(str(path), "file")


def masked(model: str, change: Callable[[dict[str, Any]], None], folder: Path) -> Path:
    return changed(f"keras-{model}.keras", folder, config=change)


def test_a_mask_that_a_layer_does_not_take_or_that_is_not_its_inputs_is_refused(tmp_path: Path) -> None:
    def of(config: dict[str, Any], class_name: str) -> dict[str, Any]:
        return next(each for each in config["config"]["layers"] if each["class_name"] == class_name)

    def softmax(config: dict[str, Any]) -> None:
        of(config, "Dropout").update(class_name="Softmax", config={"name": "softmax", "axis": -1})

    def other_value(config: dict[str, Any]) -> None:
        of(config, "NotEqual")["inbound_nodes"][0]["args"][1] = 0.5

    def no_masking(config: dict[str, Any]) -> None:
        of(config, "Masking").update(class_name="Activation", config={"name": "masking", "activation": "linear"})

    for model, change, message in (
        ("masked_lstm_twice", softmax, "softmax would get the mask that embedding makes"),
        ("masked_steps", other_value, "called with a mask of its own"),
        ("masked_steps", no_masking, "called with a mask of its own"),
    ):
        with pytest.raises(UserError, match=message):
            read(str(masked(model, change, tmp_path)), "file")


def test_a_masked_step_changes_nothing(tmp_path: Path) -> None:
    """What stands behind the last step that counts is of no matter, and the last output is that step's."""
    opened = open_file(unpacked("keras-masked_lstm.keras", tmp_path))
    [port] = opened.model.network.inputs
    codes = torch.tensor([[3, 1, 4, 0, 0, 0], [0, 3, 0, 1, 4, 0], [3, 1, 4, 1, 5, 9]])
    found = answer(network(opened), {port.name: codes})
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_layer_that_is_called_twice_is_one_and_learns_from_both_places(tmp_path: Path) -> None:
    opened = open_file(unpacked("keras-shared_dense.keras", tmp_path))
    made = network(opened).train()
    assert sum(each.numel() for each in made.parameters()) == (5 * 4 + 4) + (4 * 2 + 2) + (4 * 3 + 3)
    given = {port.name: torch.randn(7, 5) for port in opened.model.network.inputs}
    made.keras_layout(given).sum().backward()
    kernel = next(each.grad for name, each in made.named_parameters() if name.endswith("dense.weight"))
    assert kernel is not None
    alone = network(opened).train()
    made_of_one = {name: value if name == "input_0" else value.zero_() for name, value in given.items()}
    alone.keras_layout(made_of_one).sum().backward()
    other = next(each.grad for name, each in alone.named_parameters() if name.endswith("dense.weight"))
    assert other is not None and not torch.allclose(kernel, other)


def test_a_call_of_a_layer_whose_first_one_is_not_used_and_two_outputs_are_refused(tmp_path: Path) -> None:
    def twice(config: dict[str, Any]) -> None:
        [dense] = [each for each in config["config"]["layers"] if each["class_name"] == "Dense"]
        [conv] = [each for each in config["config"]["layers"] if each["name"] == "conv2d"]
        pooled = [each for each in config["config"]["layers"] if each["class_name"] == "GlobalAveragePooling2D"]
        pooled[0]["inbound_nodes"] += conv["inbound_nodes"]
        call = json.loads(json.dumps(dense["inbound_nodes"][0]))
        call["args"][0]["config"]["keras_history"][1] = 1
        dense["inbound_nodes"].append(call)
        config["config"]["output_layers"] = [[dense["name"], 1, 0]]

    def outputs(config: dict[str, Any]) -> None:
        config["config"]["output_layers"] = [["dense", 0, 0], ["global_average_pooling2d", 0, 0]]

    for change, message in ((twice, "once more, which is no"), (outputs, "several outputs")):
        with pytest.raises(UserError, match=message):
            read(str(changed("keras-resnet.keras", tmp_path, config=change)), "file")


def test_regularisers_are_told_of(tmp_path: Path) -> None:
    regulariser = {"module": "keras.regularizers", "class_name": "L2", "config": {"l2": 0.1}, "registered_name": None}
    found = read(str(changed("keras-dense.keras", tmp_path, config=settings(kernel_regularizer=regulariser))), "file")
    assert found.notes == ("dense: kernel_regularizer",)
    assert found.keras.startswith("3.") and found.weights["layers.0_dense.weight"].shape == (5, 7)


# --- made anew ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_files_that_are_made_anew_answer_alike_on_a_hundred_inputs(tmp_path: Path) -> None:
    """Needs a network: TensorFlow, Keras and tf_keras are installed into an environment of their own."""
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "environment")], check=True)
    packages = ["tensorflow-cpu==2.21.0", "keras==3.15.1", "tf_keras==2.21.0", "numpy==2.4.6"]
    subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    for library in ("keras", "keras2"):
        folder = tmp_path / library
        folder.mkdir()
        subprocess.run([str(python), str(FOLDER / "make.py"), str(folder), library, "--whole"], check=True)
        stored = np.load(folder / f"answers-{library}.npz")
        for name in stored.files:
            assert len(stored[name]) == 100
            for path in folder.glob(f"{library}-{name}.*"):
                assert difference(open_file(path), name, stored[name]) <= TOLERANCE, path.name
