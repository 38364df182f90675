"""Dense layers and tables of numbers for codes."""

# F feature, U unit

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from medray.learning.keras.activations import Activation
from medray.learning.keras.layers.base import Config, Layer, Weight, WithMask
from medray.learning.keras.shapes import Shape, Size, known
from medray.learning.refusal import Refused

if TYPE_CHECKING:
    from torch import nn


class Dense(Layer):
    """Of the last axis. Kernel (F, U) in a file, (U, F) in torch."""

    classes: ClassVar[tuple[str, ...]] = ("Dense",)
    with_mask: ClassVar[WithMask] = "kept"
    kind: Literal["dense"] = "dense"
    units: Size
    bias: bool = True
    activation: Activation = Activation()

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        config.only("lora_rank", None)
        config.only("lora_alpha", None)
        config.only("quantization_config", None)
        return cls.made(
            units=config.needed("units"), bias=config.switch("use_bias", True), activation=config.activation()
        )

    def shape(self, *inputs: Shape) -> Shape:
        self._features(inputs[0])
        return (*inputs[0][:-1], self.units)

    def _features(self, shape: Shape) -> int:
        if not shape:
            raise Refused("the input has no features")
        return known(shape[-1], "the number of features")

    def weights(self, *inputs: Shape) -> tuple[Weight, ...]:
        kernel = Weight("kernel", (self._features(inputs[0]), self.units))
        return (kernel, *((Weight("bias", (self.units,)),) if self.bias else ()))

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.shaping import Dense as Module

        return Module(self._features(inputs[0]), self.units, self.bias, self.activation.function())

    def to_torch(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return {"weight": arrays[0].T} | ({"bias": arrays[1]} if self.bias else {})

    def to_keras(self, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [state["weight"].T, *([state["bias"]] if self.bias else [])]

    def written(self) -> tuple[str, dict[str, Any]]:
        return "Dense", {"units": self.units, "activation": self.activation.written(), "use_bias": self.bias}


class Embedding(Layer):
    """Codes (B, …) to numbers (B, …, F)."""

    classes: ClassVar[tuple[str, ...]] = ("Embedding",)
    kind: Literal["embedding"] = "embedding"
    categories: Size
    features: Size
    mask_zero: bool = Field(default=False, exclude_if=lambda zero: not zero)
    """Code 0 is no step: layers behind it that read masks leave it out."""

    @property
    def makes_mask(self) -> bool:
        return self.mask_zero

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        mask_zero = config.switch("mask_zero", False)
        for key in ("lora_rank", "lora_alpha", "quantization_config", "input_length", "sparse"):
            found = config.take(key)
            if key.startswith(("lora", "quant")) and found is not None:
                raise Refused(f"{key} is not supported")
        return cls.made(
            categories=config.needed("input_dim"), features=config.needed("output_dim"), mask_zero=mask_zero
        )

    def shape(self, *inputs: Shape) -> Shape:
        return (*inputs[0], self.features)

    def weights(self, *inputs: Shape) -> tuple[Weight, ...]:
        return (Weight("embeddings", (self.categories, self.features)),)

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.shaping import Embedding as Module

        return Module(self.categories, self.features)

    def to_torch(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return {"weight": arrays[0]}

    def to_keras(self, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [state["weight"]]

    def written(self) -> tuple[str, dict[str, Any]]:
        return "Embedding", {"input_dim": self.categories, "output_dim": self.features, "mask_zero": self.mask_zero}
