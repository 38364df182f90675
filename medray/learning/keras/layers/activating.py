"""Activations as layers of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from medray.learning.keras.activations import LAYERS, Activation
from medray.learning.keras.layers.base import Config, Layer, WithMask
from medray.learning.keras.shapes import Shape, described
from medray.learning.refusal import Refused

if TYPE_CHECKING:
    from torch import nn


class Activate(Layer):
    classes: ClassVar[tuple[str, ...]] = ("Activation", *LAYERS)
    with_mask: ClassVar[WithMask] = "kept"
    kind: Literal["activation"] = "activation"
    activation: Activation

    @property
    def refuses_mask(self) -> bool:
        return self.activation.name == "softmax"  # the layer Softmax reads masks, an Activation does not

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        if name == "Activation":
            return cls(activation=config.activation())
        for key in ("negative_slope", "alpha", "max_value", "threshold", "axis"):
            config.take(key)
        return cls(activation=Activation.of_layer(name, config.settings, config.keras))

    def shape(self, *inputs: Shape) -> Shape:
        axis = self.activation.axis
        place = axis if axis >= 0 else axis + len(inputs[0]) + 1
        if self.activation.name == "softmax" and not 1 <= place <= len(inputs[0]):
            raise Refused("there is no such axis", found=f"axis {axis} of {described(inputs[0])}")
        return inputs[0]

    def module(self, *inputs: Shape) -> nn.Module:
        return self._module(self.activation.function() or (lambda values: values))

    def written(self) -> tuple[str, dict[str, Any]]:
        return self.activation.written_layer()
