"""A Network as a torch module, without weights yet."""

# B batch, C channel, S spatial axes, T step

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from medray.learning.keras.modules.convolution import UsualLayout
from medray.learning.keras.modules.functions import moved
from medray.learning.keras.modules.normalising import BatchNorm
from medray.learning.keras.network import Network
from medray.learning.keras.ports import Source, Way


class MakesMask(Protocol):
    def mask_of(self, input: Tensor) -> Tensor: ...


class KerasNetwork(nn.Module):
    """The layers of a Keras model. Inputs by medray's names to (B, …) of the last layer."""

    def __init__(self, network: Network, sources: Mapping[str, Source]) -> None:
        """`sources`: what each input is made of; without them it is called by `keras_layout` alone."""
        super().__init__()
        self.network = network
        self.sources: dict[str, tuple[str, Way]] = {name: (source.name, source.way) for name, source in sources.items()}
        keys = network.keys()
        masked = network.masks()
        masked_anywhere = {node.owner for node in network.nodes if node.name in masked}
        self.layers = nn.ModuleDict()
        for shaped in network.shaped({name: source.shape for name, source in sources.items()}):
            if shaped.node.shares is not None:
                continue
            layer, reads = shaped.node.layer, shaped.node.name in masked_anywhere and shaped.node.layer.reads_mask
            module = layer.masked_module(*shaped.inputs) if reads else layer.module(*shaped.inputs)
            if not shaped.node.trainable:
                _freeze(module)
            self.layers[keys[shaped.node.name]] = module
        self.steps = [(keys[node.name], node.name, node.inputs) for node in network.nodes]
        self.masked: dict[str, str] = {
            node.name: masked[node.name] for node in network.nodes if node.name in masked and node.layer.reads_mask
        }
        """Nodes that read a mask, and the node that made it."""
        self.sources_of_masks = frozenset(self.masked.values())
        self.last_use = {name: i for i, (_, _, inputs) in enumerate(self.steps) for name in inputs}
        narrow = any(isinstance(each, nn.Conv2d) and each.out_channels < NARROW for each in self.modules())
        for each in self.modules():
            if isinstance(each, UsualLayout):
                each.usual_layout = narrow

    def forward(self, **given: Tensor) -> Tensor:
        return self.keras_layout({name: _arranged(given, source, way) for name, (source, way) in self.sources.items()})

    def keras_layout(self, values: Mapping[str, Tensor]) -> Tensor:
        """Inputs by the model's own names, laid out as Keras has them."""
        known = dict(values)
        masks: dict[str, Tensor] = {}
        for i, (key, name, inputs) in enumerate(self.steps):
            given = [known[each] for each in inputs]
            if name in self.sources_of_masks:
                masks[name] = cast("MakesMask", self.layers[key]).mask_of(given[0])
            if name in self.masked:
                given.append(masks[self.masked[name]])
            known[name] = self.layers[key](*given)
            for each in inputs:
                if self.last_use[each] == i:
                    known.pop(each, None)
        return known[self.network.output]


NARROW = 8
"""As `predictor.NARROW`."""


def _arranged(given: Mapping[str, Tensor], source: str, way: Way) -> Tensor:
    values = given[source]
    mask = given.get("mask")
    if mask is not None and source in ("sequence", "codes"):  # whatever stands in the padding, the layers see zeros
        values = values.masked_fill(~(mask.unsqueeze(-1) if source == "sequence" else mask), 0)
    if source == "mask":
        values = values.float()
    if way == "channels_last":
        return moved(values, 1, -1)
    if way == "squeeze":
        return values.squeeze(1)
    if way == "flat":
        return values.flatten(1)
    return values.unsqueeze(-1) if way == "unsqueeze" else values


def _freeze(module: nn.Module) -> None:
    """What Keras does with a layer that is not trainable."""
    module.requires_grad_(False)
    for each in module.modules():
        if isinstance(each, BatchNorm):
            each.always_measured = True


def answer(network: KerasNetwork, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the network says of inputs laid out as Keras has them, by the model's own names, in evaluation."""
    with torch.inference_mode():
        return network.eval().keras_layout(inputs)
