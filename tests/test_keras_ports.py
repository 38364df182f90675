"""Inputs of a modality become those of a Keras model: channels, several inputs by name, masks, codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from keras_fixtures import changed, unpacked

from medray.errors import RunFileError
from medray.learning.keras.building import KerasNetwork
from medray.learning.keras.container import open_file
from medray.learning.keras.network import Network
from medray.learning.keras.ports import matched
from medray.learning.models.keras import KerasSpec
from medray.modalities.inputs import Input

PIXELS = {"pixels": Input((1, 28, 28))}


def network_of(path: Path) -> Network:
    return open_file(path).model.network


def built(network: Network, inputs: dict[str, Input], names: dict[str, str] | None = None) -> KerasNetwork:
    torch.manual_seed(0)
    return KerasNetwork(network, matched(network, inputs, names or {})).eval()


def input_shape(*shape: int) -> Any:
    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"][0]["config"]["batch_shape"] = [None, *shape]

    return change


def test_channels_come_last_first_or_not_at_all(tmp_path: Path) -> None:
    picture = torch.randn(3, 3, 6, 5)
    last = built(network_of(unpacked("keras-flatten.keras", tmp_path)), {"pixels": Input((3, 6, 5))})
    assert torch.equal(last(pixels=picture), picture.permute(0, 2, 3, 1).reshape(3, -1))
    first = built(network_of(unpacked("keras-torch-first_globalavg2d.keras", tmp_path)), {"pixels": Input((3, 6, 5))})
    assert torch.allclose(first(pixels=picture), picture.mean((2, 3), keepdim=True), atol=1e-6)
    grey = torch.randn(2, 1, 4, 7)
    for shape in ((4, 7), (28,)):
        network = network_of(changed("keras-flatten.keras", tmp_path, config=input_shape(*shape)))
        assert torch.equal(built(network, {"pixels": Input((1, 4, 7))})(pixels=grey), grey.flatten(1))
    with pytest.raises(RunFileError, match="takes another shape"):
        matched(network_of(unpacked("keras-flatten.keras", tmp_path)), PIXELS, {})


def test_several_inputs_are_found_by_their_names(tmp_path: Path) -> None:
    network = network_of(unpacked("keras-gru_d.keras", tmp_path))
    inputs = {"sequence": Input((12, 5)), "mask": Input((12,)), "summary": Input((8,)), "static": Input((3,))}
    made = built(network, inputs)
    mask = torch.arange(12) < torch.tensor([[12], [5]])
    given = {"sequence": torch.randn(2, 12, 5), "mask": mask, "static": torch.randn(2, 3), "summary": torch.randn(2, 8)}
    found = made(**given)
    other = {**given, "sequence": given["sequence"].masked_fill(~mask.unsqueeze(2), 7.0)}
    assert torch.equal(made(**other), found)  # nothing of the padding reaches it
    plain = {"sequence": given["sequence"] * mask.unsqueeze(2), "mask": mask.float(), "static": given["static"]}
    assert torch.equal(made.keras_layout(plain), found)


def test_inputs_are_named_where_they_have_other_names(tmp_path: Path) -> None:
    network = network_of(unpacked("keras-subtract.keras", tmp_path))
    inputs = {"sequence": Input((4, 3)), "codes": Input((4, 3))}
    with pytest.raises(RunFileError, match="not clear what an input"):
        matched(network, inputs, {})
    made = built(network, inputs, {"input_0": "codes", "input_1": "sequence"})
    one, other = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    assert torch.equal(made(sequence=one, codes=other), other - one)
    for names, message in (
        ({"input_0": "sequence", "input_1": "sequence"}, "made of one"),
        ({"input_0": "sequence", "input_2": "codes"}, "no such input"),
        ({"input_0": "sequence", "input_1": "pixels"}, "no input of this name"),
    ):
        with pytest.raises(RunFileError, match=message):
            matched(network, inputs, names)


def test_an_embedding_gets_codes_and_knows_them_all(tmp_path: Path) -> None:
    network = network_of(unpacked("keras-embedding.keras", tmp_path))
    assert built(network, {"codes": Input((6,), categories=11)})(codes=torch.tensor([[0, 10, 3, 4, 5, 6]])).shape == (
        1,
        6,
        3,
    )
    for given in (Input((6,), categories=12), Input((6,))):
        with pytest.raises(RunFileError, match="does not fit the codes"):
            matched(network, {"codes": given}, {})


def test_lengths_that_vary_are_refused(tmp_path: Path) -> None:
    network = network_of(unpacked("keras-lstm.keras", tmp_path))
    with pytest.raises(RunFileError, match="vary in length"):
        matched(network, {"sequence": Input((None, 3)), "mask": Input((None,))}, {})


def test_a_model_of_any_size_gets_that_of_the_modality(tmp_path: Path) -> None:
    def free(config: dict[str, Any]) -> None:
        config["config"]["layers"][0]["config"]["batch_shape"] = [None, None, None, 3]

    network = network_of(changed("keras-densenet.keras", tmp_path, config=free)).without_link()
    spec = KerasSpec(network=network.model_dump(mode="json"))
    assert spec.build({"pixels": Input((3, 40, 24))}, 2)(pixels=torch.randn(2, 3, 40, 24)).shape == (2, 2)
    with pytest.raises(RunFileError, match="other outputs than the objective"):
        spec.build({"pixels": Input((3, 40, 24))}, 5)


def test_narrow_convolutions_are_trained_in_the_usual_layout(tmp_path: Path) -> None:
    """Gradients are those of channels last, which spoilt memory there."""
    network = network_of(unpacked("keras-unet_encoder.keras", tmp_path))
    made = built(network, {"pixels": Input((1, 32, 32))})
    assert all(each.usual_layout for each in made.modules() if hasattr(each, "usual_layout"))
    pictures = torch.randn(4, 1, 32, 32)
    made(pixels=pictures).sum().backward()
    usual = {name: each.grad for name, each in made.named_parameters()}
    for each in made.modules():
        if hasattr(each, "usual_layout"):
            each.usual_layout = False
    made.double().zero_grad()
    made(pixels=pictures.double()).sum().backward()
    for name, each in made.named_parameters():
        assert each.grad is not None and torch.allclose(usual[name].double(), each.grad, atol=1e-4), name
