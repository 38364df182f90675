"""SimpleRNN, GRU and LSTM, in one or both directions, and other layers on each step alone.

Gates stand in one matrix, in Keras's order z r h (GRU) and i f c o (LSTM); torch has r z n and i f g o.
"""

# T step, F feature, U unit, G gates

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from medray.learning.keras.activations import Activation
from medray.learning.keras.layers.base import Config, Layer, Weight, WithMask
from medray.learning.keras.shapes import Shape, Size, known, rank
from medray.learning.refusal import Refused, shown

if TYPE_CHECKING:
    from torch import nn

GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}
CELL = ("cell", "vars")
TANH, SIGMOID = Activation(name="tanh"), Activation(name="sigmoid")


class Recurrent(Layer):
    """(B, T, F) to (B, U), or (B, T, U) with all steps."""

    classes: ClassVar[tuple[str, ...]] = tuple(GATES)
    with_mask: ClassVar[WithMask] = "read"
    kind: Literal["recurrent"] = "recurrent"
    cell: Literal["SimpleRNN", "GRU", "LSTM"]
    units: Size
    all_steps: bool = False
    backwards: bool = False
    """From the last step to the first; all steps then come out in that order."""
    activation: Activation = TANH
    gate: Activation = SIGMOID
    bias: bool = True
    reset_after: bool = True
    """Of GRU: the reset gate comes after the product with the recurrent matrix."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    recurrent_dropout: float = Field(default=0.0, ge=0, lt=1)
    zero_masked: bool = Field(default=False, exclude_if=lambda zero: not zero)
    """Steps that a mask leaves out give zeros; else what the step before them gave."""

    @property
    def reads_mask(self) -> bool:
        return True

    @property
    def gives_mask(self) -> bool:
        return self.all_steps

    @model_validator(mode="after")
    def _of_each_number(self) -> Recurrent:
        if "softmax" in (self.activation.name, self.gate.name):
            raise ValueError("softmax is no activation of a recurrent layer here")
        return self

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        config.only("stateful", False)
        config.only("return_state", False)
        config.only("time_major", False)
        gate = SIGMOID if name == "SimpleRNN" else config.activation("recurrent_activation")
        return cls.made(
            cell=name,
            units=config.needed("units"),
            all_steps=config.switch("return_sequences", False),
            backwards=config.switch("go_backwards", False),
            activation=config.activation(),
            gate=gate,
            bias=config.switch("use_bias", True),
            reset_after=config.switch("reset_after", False) if name == "GRU" else True,
            dropout=config.take("dropout", 0.0),
            recurrent_dropout=config.take("recurrent_dropout", 0.0),
            zero_masked=config.switch("zero_output_for_mask", False),
        )

    def shape(self, *inputs: Shape) -> Shape:
        steps, _ = rank(inputs[0], 2)
        self._features(inputs[0])
        return (steps, self.units) if self.all_steps else (self.units,)

    def _features(self, shape: Shape) -> int:
        return known(rank(shape, 2)[1], "the number of features")

    @property
    def two_biases(self) -> bool:
        return self.cell == "GRU" and self.reset_after

    def weights(self, *inputs: Shape) -> tuple[Weight, ...]:
        wide = GATES[self.cell] * self.units
        weights = [
            Weight("kernel", (self._features(inputs[0]), wide), CELL),
            Weight("recurrent_kernel", (self.units, wide), CELL),
        ]
        if self.bias:
            weights.append(Weight("bias", (2, wide) if self.two_biases else (wide,), CELL))
        return tuple(weights)

    def module(self, *inputs: Shape) -> nn.Module:
        return self._built(*inputs, masked=False)

    def masked_module(self, *inputs: Shape) -> nn.Module:
        return self._built(*inputs, masked=True)

    def _built(self, *inputs: Shape, masked: bool) -> nn.Module:
        from medray.learning.keras.modules.recurrent import Recurrent as Module

        fused = (
            not masked
            and self.gate == SIGMOID
            and self.recurrent_dropout == 0
            and (self.cell != "GRU" or self.reset_after)
        )
        relu = self.cell == "SimpleRNN" and self.activation == Activation(name="relu")
        return Module(
            self.cell,
            self._features(inputs[0]),
            self.units,
            bias=self.bias,
            fused=fused and (relu or self.activation == TANH),
            relu=relu,
            activation=self.activation.function(),
            gate=self.gate.function(),
            reset_after=self.reset_after,
            all_steps=self.all_steps,
            backwards=self.backwards,
            dropout=self.dropout,
            recurrent_dropout=self.recurrent_dropout,
            zero_masked=self.zero_masked,
        )

    def to_torch(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        state = {"cell.weight_ih_l0": self._swapped(arrays[0]).T, "cell.weight_hh_l0": self._swapped(arrays[1]).T}
        if self.bias:
            both = arrays[2] if self.two_biases else np.stack([arrays[2], np.zeros_like(arrays[2])])
            state |= {"cell.bias_ih_l0": self._swapped(both[0]), "cell.bias_hh_l0": self._swapped(both[1])}
        return state

    def to_keras(self, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        arrays = [self._swapped(state[f"cell.{name}_l0"].T) for name in ("weight_ih", "weight_hh")]
        if self.bias:
            both = [self._swapped(state[f"cell.{name}_l0"]) for name in ("bias_ih", "bias_hh")]
            arrays.append(np.stack(both) if self.two_biases else both[0] + both[1])
        return arrays

    def _swapped(self, array: np.ndarray) -> np.ndarray:
        """The last axis (G · U) with the order of the other library; the same both ways."""
        if self.cell != "GRU":
            return array
        update, reset, new = np.split(array, 3, axis=-1)
        return np.concatenate([reset, update, new], axis=-1)

    def written(self) -> tuple[str, dict[str, Any]]:
        settings: dict[str, Any] = {
            "units": self.units,
            "return_sequences": self.all_steps,
            "go_backwards": self.backwards,
            "activation": self.activation.written(),
            "use_bias": self.bias,
            "dropout": self.dropout,
            "recurrent_dropout": self.recurrent_dropout,
            "zero_output_for_mask": self.zero_masked,
        }
        if self.cell != "SimpleRNN":
            settings["recurrent_activation"] = self.gate.written()
        if self.cell == "GRU":
            settings["reset_after"] = self.reset_after
        return self.cell, settings


def _inner(found: Any, what: str, config: Config) -> tuple[str, Config]:
    """(class, settings) of a layer within a layer. Its settings are read with the outer one's version."""
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise Refused(f"{what} holds no layer", found=shown(found))
    return str(found.get("class_name")), Config(found["config"], config.keras)


class Bidirectional(Layer):
    classes: ClassVar[tuple[str, ...]] = ("Bidirectional",)
    with_mask: ClassVar[WithMask] = "read"
    kind: Literal["bidirectional"] = "bidirectional"
    ahead: Recurrent
    back: Recurrent
    merge: Literal["concat", "sum", "mul", "ave"] = "concat"

    @property
    def reads_mask(self) -> bool:
        return True

    @property
    def gives_mask(self) -> bool:
        return self.ahead.all_steps

    @model_validator(mode="after")
    def _alike(self) -> Bidirectional:
        if self.ahead.backwards or not self.back.backwards or self.ahead.all_steps != self.back.all_steps:
            raise ValueError("one layer ahead and one back, both with all steps or both without")
        if self.merge != "concat" and self.ahead.units != self.back.units:
            raise ValueError("layers of as many units, unless they are put side by side")
        return self

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        layers: list[Layer] = []
        for key in ("layer", "backward_layer"):
            found = config.take(key)
            if key == "backward_layer" and found is None:
                layers.append(layers[0].model_copy(update={"backwards": True}))
                continue
            class_name, inner = _inner(found, key, config)
            if class_name not in GATES:
                raise Refused(
                    f"{key} is no layer that is supported", found=shown(class_name), expected=", ".join(GATES)
                )
            layers.append(Recurrent.read(class_name, inner))
            inner.finish()
            config.notes += inner.notes
        ahead, back = layers
        if getattr(ahead, "backwards", False):
            raise Refused("the layer ahead goes backwards")
        if config.keras == 2:  # tf_keras 2.21 bidirectional.py: whatever the layers' own settings say
            ahead, back = (
                each.model_copy(update={"zero_masked": getattr(each, "all_steps", False)}) for each in layers
            )
        return cls.made(ahead=ahead, back=back, merge=config.take("merge_mode", "concat"))

    def shape(self, *inputs: Shape) -> Shape:
        shape = self.ahead.shape(*inputs)
        wide = self.ahead.units + self.back.units if self.merge == "concat" else self.ahead.units
        return (*shape[:-1], wide)

    def weights(self, *inputs: Shape) -> tuple[Weight, ...]:
        return tuple(
            weight._replace(group=(group, *weight.group))
            for group, layer in (("forward_layer", self.ahead), ("backward_layer", self.back))
            for weight in layer.weights(*inputs)
        )

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.recurrent import Bidirectional as Module

        return Module(self.ahead.module(*inputs), self.back.module(*inputs), self.merge, self.ahead.all_steps)

    def masked_module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.recurrent import Bidirectional as Module

        ahead, back = self.ahead.masked_module(*inputs), self.back.masked_module(*inputs)
        return Module(ahead, back, self.merge, self.ahead.all_steps)

    def to_torch(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        first = 3 if self.ahead.bias else 2
        ahead, back = self.ahead.to_torch(arrays[:first]), self.back.to_torch(arrays[first:])
        return {f"ahead.{name}": array for name, array in ahead.items()} | {
            f"back.{name}": array for name, array in back.items()
        }

    def to_keras(self, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        arrays: list[np.ndarray] = []
        for prefix, layer in (("ahead.", self.ahead), ("back.", self.back)):
            own = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
            arrays += layer.to_keras(own)
        return arrays

    def written(self) -> tuple[str, dict[str, Any]]:
        inner: list[dict[str, Any]] = []
        for name, layer in (("forward_layer", self.ahead), ("backward_layer", self.back)):
            class_name, settings = layer.written()
            config = {"name": name, **settings}
            inner.append(
                {"module": "keras.layers", "class_name": class_name, "config": config, "registered_name": None}
            )
        return "Bidirectional", {"layer": inner[0], "backward_layer": inner[1], "merge_mode": self.merge}
