"""Network: the description of a model that came from a Keras file. JSON, checked as a whole, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medray.learning.keras.activations import Activation
from medray.learning.keras.layers import AnyLayer, Weight
from medray.learning.keras.layers.activating import Activate
from medray.learning.keras.shapes import MOST, Shape, Size, numbers
from medray.learning.refusal import Refused

MOST_NODES = 5000
Name = Annotated[str, Field(min_length=1, max_length=300)]


class Port(BaseModel):
    """One input of the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    shape: Annotated[tuple[Size | None, ...], Field(max_length=8)]
    """Without the batch axis, as Keras has it; None where it takes any length."""
    codes: bool = False
    """Whole numbers, for an embedding."""


class Node(BaseModel):
    """One layer in its place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    layer: AnyLayer
    inputs: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1000)]
    """Names of inputs and of nodes before it."""
    trainable: bool = True


class Shaped(NamedTuple):
    """A node with what comes in and what comes out."""

    node: Node
    inputs: tuple[Shape, ...]
    output: Shape

    @property
    def weights(self) -> tuple[Weight, ...]:
        return self.node.layer.weights(*self.inputs)


class Network(BaseModel):
    """Layers in an order in which each can be computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    inputs: Annotated[tuple[Port, ...], Field(min_length=1, max_length=100)]
    nodes: Annotated[tuple[Node, ...], Field(min_length=1, max_length=MOST_NODES)]
    output: Name

    @model_validator(mode="after")
    def _in_order(self) -> Network:
        known = [port.name for port in self.inputs]
        for node in self.nodes:
            if absent := [name for name in node.inputs if name not in known]:
                raise ValueError(f"{node.name} reads {absent[0]}, which is no input and no layer before it")
            if not node.layer.many and len(node.inputs) != 1:
                raise ValueError(f"{node.name} reads {len(node.inputs)} inputs and takes one")
            known.append(node.name)
        if len(set(known)) < len(known):
            raise ValueError("two layers of one name")
        if self.output not in known[len(self.inputs) :]:
            raise ValueError(f"the output {self.output} is no layer")
        read = {name for node in self.nodes for name in node.inputs}
        if unused := [name for name in known if name not in read and name != self.output]:
            raise ValueError(f"nothing reads {unused[0]}")
        if self.nodes[-1].name != self.output:
            raise ValueError(f"the output {self.output} is not the last layer")
        self.shaped({})
        return self

    def shaped(self, shapes: Mapping[str, Shape]) -> tuple[Shaped, ...]:
        """Each node with its shapes; `shapes` of inputs are in the place of those that the model states. Raises ValueError."""
        known: dict[str, Shape] = {port.name: shapes.get(port.name, port.shape) for port in self.inputs}
        found: list[Shaped] = []
        total = 0
        for node in self.nodes:
            inputs = tuple(known[name] for name in node.inputs)
            try:
                output = node.layer.shape(*inputs)
                numbers(output)
                total += sum(numbers(weight.shape) for weight in node.layer.weights(*inputs))
            except Refused as refusal:
                raise Misfit(refusal.of(node.name)) from None
            if total > MOST:
                raise Misfit(Refused("the model has too many weights", expected=f"at most {MOST:,} numbers"))
            known[node.name] = output
            found.append(Shaped(node, inputs, output))
        return tuple(found)

    def output_shape(self, shapes: Mapping[str, Shape]) -> Shape:
        return self.shaped(shapes)[-1].output

    @property
    def channels_first(self) -> bool:
        """How its layers want pictures laid out; channels last where no layer says."""
        said = [node.layer.channels_first for node in self.nodes if hasattr(node.layer, "channels_first")]  # pyright: ignore[reportAttributeAccessIssue]
        return bool(said) and said[0]

    # -- the last activation

    def link(self) -> str:
        """Name of the last layer's activation: "softmax"; "linear" where there is none."""
        return self._last_activation().name

    def _last_activation(self) -> Activation:
        return getattr(self._last.layer, "activation", Activation())

    @property
    def _last(self) -> Node:
        return self.nodes[-1]

    def without_link(self) -> Network:
        """The network that gives what goes into its last activation: logits."""
        last = self._last
        if isinstance(last.layer, Activate):
            rest = self.nodes[:-1]
            if rest and rest[-1].name == last.inputs[0]:
                return self.model_copy(update={"nodes": rest, "output": last.inputs[0]})
        plain = last.layer.model_copy(update={"activation": Activation()})
        return self.model_copy(update={"nodes": (*self.nodes[:-1], last.model_copy(update={"layer": plain}))})

    # -- arrays

    def keys(self) -> dict[str, str]:
        """Name of each node to the name that its torch module has."""
        return {node.name: f"{i}_{_plain(node.name)}" for i, node in enumerate(self.nodes)}

    def to_torch(self, arrays: Mapping[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays of a file, by node, to the state of the torch network."""
        keys = self.keys()
        return {
            f"layers.{keys[node.name]}.{name}": np.asarray(array, order="C")
            for node in self.nodes
            if node.name in arrays
            for name, array in node.layer.to_torch(arrays[node.name]).items()
        }

    def to_keras(self, state: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
        """The opposite of `to_torch`."""
        keys = self.keys()
        arrays: dict[str, list[np.ndarray]] = {}
        for node in self.nodes:
            prefix = f"layers.{keys[node.name]}."
            own = {each.removeprefix(prefix): array for each, array in state.items() if each.startswith(prefix)}
            arrays[node.name] = [np.asarray(array, order="C") for array in node.layer.to_keras(own)]
        return arrays


class Misfit(ValueError):
    """Layers that do not fit each other; `refusal` says which."""

    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.what + (f": {refusal.found}" if refusal.found else ""))
        self.refusal = refusal


def _plain(name: str) -> str:
    """A name that a torch module may have."""
    return "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name)[:60]
