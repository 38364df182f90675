"""Network: the description of a model that came from a Keras file. JSON, checked as a whole, without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medray.learning.keras.activations import Activation
from medray.learning.keras.layers import AnyLayer, Weight
from medray.learning.keras.layers.activating import Activate
from medray.learning.keras.shapes import MOST, Shape, Size, described, numbers
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
    shares: Name | None = Field(default=None, exclude_if=lambda name: name is None)
    """The node whose layer it is, called once more: weights are that one's."""

    @property
    def owner(self) -> str:
        """The node that has the weights."""
        return self.shares or self.name


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
        self._refuse_false_shares(self.shaped({}))
        self.masks()
        return self

    @staticmethod
    def _refuse_false_shares(shaped: Sequence[Shaped]) -> None:
        """Raises ValueError for a node that is not the same layer as the one whose weights it has."""
        known = {each.node.name: each for each in shaped}
        for each in shaped:
            node = each.node
            owner = known.get(node.owner)
            if owner is None or owner.node.shares is not None:
                raise ValueError(f"{node.name} is {node.owner} once more, which is no layer")
            same = node.layer == owner.node.layer and node.trainable == owner.node.trainable
            if not same or list(map(len, each.inputs)) != list(map(len, owner.inputs)) or each.weights != owner.weights:
                raise Misfit(
                    Refused(
                        f"{node.owner} is called with inputs of other axes or features",
                        found=described(each.inputs[0]),
                        expected=described(owner.inputs[0]),
                    )
                )

    @property
    def last_is_shared(self) -> bool:
        """Whether the last layer is called at another place, too."""
        return sum(node.owner == self._last.owner for node in self.nodes) > 1

    def masks(self) -> dict[str, str]:
        """Nodes whose input has a mask, each with the node that made it. Raises ValueError for one that takes none."""
        carried: dict[str, str] = {}
        found: dict[str, str] = {}
        for node in self.nodes:
            made = [(name, carried[name]) for name in node.inputs if name in carried]
            if made:
                name, source = made[0]
                if node.layer.many or node.layer.refuses_mask or _within(name) != _within(node.name):
                    raise Misfit(_refused_mask(node.name, source))
                found[node.name] = source
                if node.layer.gives_mask and not node.layer.makes_mask:
                    carried[node.name] = source
            if node.layer.makes_mask:
                carried[node.name] = node.name
        return found

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
                weights = node.layer.weights(*inputs) if node.shares is None else ()
                total += sum(numbers(weight.shape) for weight in weights)
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
        """Name of each node to the name that its torch module has: of those that share one, the same."""
        own = {node.name: f"{i}_{_plain(node.name)}" for i, node in enumerate(self.nodes)}
        return {node.name: own[node.owner] for node in self.nodes}

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
            if node.shares is not None:
                continue
            prefix = f"layers.{keys[node.name]}."
            own = {each.removeprefix(prefix): array for each, array in state.items() if each.startswith(prefix)}
            arrays[node.name] = [np.asarray(array, order="C") for array in node.layer.to_keras(own)]
        return arrays


def _within(name: str) -> str:
    """The nested model that a node lies in."""
    return name.rpartition("/")[0]


def _refused_mask(name: str, source: str) -> Refused:
    return Refused(
        f"{name} would get the mask that {source} makes, and takes none here",
        expected="masks in LSTM, GRU, SimpleRNN, Bidirectional, GlobalAveragePooling1D, Dense, LayerNormalization, Dropout, "
        "activations but the layer Softmax; Flatten, Conv1D and other pooling, which end a mask; all in one model",
        do="build the model so that the mask ends before it: return_sequences = False, or mask_zero = False",
    )


class Misfit(ValueError):
    """Layers that do not fit each other; `refusal` says which."""

    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.what + (f": {refusal.found}" if refusal.found else ""))
        self.refusal = refusal


def _plain(name: str) -> str:
    """A name that a torch module may have."""
    return "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name)[:60]
