"""A layer on each step alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from medray.learning.keras.layers.base import Config, Layer, Weight
from medray.learning.keras.layers.convolution import Conv
from medray.learning.keras.layers.dense import Dense
from medray.learning.keras.layers.pooling import GlobalPool, Pool
from medray.learning.keras.layers.shaping import Flatten
from medray.learning.keras.shapes import Shape, described
from medray.learning.refusal import Refused, shown

if TYPE_CHECKING:
    from torch import nn

INNER: tuple[type[Layer], ...] = (Dense, Conv, Flatten, GlobalPool, Pool)
SUPPORTED = {name: kind for kind in INNER for name in kind.classes}


class TimeDistributed(Layer):
    classes: ClassVar[tuple[str, ...]] = ("TimeDistributed",)
    kind: Literal["time_distributed"] = "time_distributed"
    layer: Annotated[Dense | Conv | Flatten | GlobalPool | Pool, Field(discriminator="kind")]

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        found = config.needed("layer")
        if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
            raise Refused("it holds no layer", found=shown(found))
        class_name = str(found.get("class_name"))
        if class_name not in SUPPORTED:
            raise Refused("a layer that is not supported in it", found=shown(class_name), expected=", ".join(SUPPORTED))
        inner = Config(found["config"], config.keras)
        layer = SUPPORTED[class_name].read(class_name, inner)
        inner.finish()
        config.notes += inner.notes
        return cls.made(layer=layer)

    def shape(self, *inputs: Shape) -> Shape:
        if len(inputs[0]) < 2:
            raise Refused("the input has no steps", found=described(inputs[0]))
        return (inputs[0][0], *self.layer.shape(inputs[0][1:]))

    def weights(self, *inputs: Shape) -> tuple[Weight, ...]:
        weights = self.layer.weights(inputs[0][1:])
        return tuple(weight._replace(group=("layer", *weight.group)) for weight in weights)

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.shaping import TimeDistributed as Module

        return Module(self.layer.module(inputs[0][1:]))

    def to_torch(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return {f"layer.{name}": array for name, array in self.layer.to_torch(arrays).items()}

    def to_keras(self, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self.layer.to_keras({name.removeprefix("layer."): array for name, array in state.items()})

    def written(self) -> tuple[str, dict[str, Any]]:
        name, settings = self.layer.written()
        config = {"name": name.lower(), **settings}
        layer = {"module": "keras.layers", "class_name": name, "config": config, "registered_name": None}
        return "TimeDistributed", {"layer": layer}
