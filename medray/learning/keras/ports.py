"""Which input of medray each input of a Keras model is, and how one becomes the other."""

# C channel, S spatial axes, T position or event, F feature

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from medray.errors import RunFileError
from medray.learning.keras.layers.dense import Embedding
from medray.learning.keras.network import Network, Port
from medray.learning.keras.shapes import Shape, described
from medray.modalities.inputs import Input, Inputs

WHERE = "[model] inputs"
Way = Literal["channels_last", "squeeze", "flat", "as_it_is", "unsqueeze"]
"""How an array of medray is laid out as Keras has it: channels moved to the end, or one channel left out, or all in a row; or as
it is; or with one feature."""


class Source(NamedTuple):
    """What an input of a Keras model is made of."""

    name: str
    """medray's input."""
    way: Way
    shape: Shape
    """As Keras has it."""


def matched(network: Network, inputs: Inputs, names: Mapping[str, str]) -> dict[str, Source]:
    """Each input of the model with its source; `names`: what a run file says of them. Raises RunFileError."""
    ports = {port.name: port for port in network.inputs}
    if unknown := sorted(names.keys() - ports.keys()):
        raise RunFileError(
            "the Keras model has no such input", where=WHERE, found=", ".join(unknown), expected=", ".join(ports)
        )
    found = {name: _source(network, port, inputs, names) for name, port in ports.items()}
    sources = [source.name for source in found.values()]
    if len(set(sources)) < len(sources):
        raise RunFileError("two inputs of the Keras model are made of one", where=WHERE, found=", ".join(sources))
    return found


def _source(network: Network, port: Port, inputs: Inputs, names: Mapping[str, str]) -> Source:
    name = names.get(port.name) or (port.name if port.name in inputs else None)
    data = [each for each in inputs if each != "mask"]
    if name is None and len(network.inputs) == 1 and len(data) == 1:
        name = data[0]
    if name is None or name not in inputs:
        raise RunFileError(
            "the modality has no input of this name" if name else "it is not clear what an input of the Keras model is",
            where=WHERE,
            found=name or port.name,
            expected=f"one of {', '.join(inputs)}",
            do=f'name it: inputs = {{"{port.name}" = "{data[0]}"}}',
        )
    given = inputs[name]
    if None in given.shape:
        raise RunFileError(
            "inputs that vary in length do not go into a Keras model: what it says of a padded row would hang on the batch",
            where="[model]",
            found=f"{name} {described(given.shape)}",
            expected="inputs of one length",
            do='of health records set representation = "bins"',
        )
    _refuse_codes(network, port, name, given)
    for way, shape in _ways(name, tuple(n or 0 for n in given.shape), network.channels_first):
        if len(shape) == len(port.shape) and all(n in (None, m) for n, m in zip(port.shape, shape, strict=True)):
            return Source(name, way, shape)
    raise RunFileError(
        "the Keras model takes another shape than the modality gives",
        where="[model] file",
        found=f"{port.name} {described(port.shape)}",
        expected=f"{described(_ways(name, tuple(n or 0 for n in given.shape), network.channels_first)[0][1])}, from {name}",
        do="give [modality] the size that the model was built for",
    )


def _refuse_codes(network: Network, port: Port, name: str, given: Input) -> None:
    for node in network.nodes:
        if (
            port.name in node.inputs
            and isinstance(node.layer, Embedding)
            and not 0 < given.categories <= node.layer.categories
        ):
            raise RunFileError(
                "an embedding of the Keras model does not fit the codes that the modality gives",
                where="[model] file",
                found=f"{node.name}: {node.layer.categories} categories",
                expected=f"{given.categories} or more" if given.categories else f"codes, which {name} is not",
            )


def _ways(name: str, shape: tuple[int, ...], channels_first: bool) -> list[tuple[Way, tuple[int, ...]]]:
    """Ways that an input of medray can be laid out, and the shapes that it has then."""
    if name == "pixels":
        channels, *spatial = shape
        first: tuple[Way, tuple[int, ...]] = (
            ("as_it_is", shape) if channels_first else ("channels_last", (*spatial, channels))
        )
        if channels > 1:
            return [first]
        return [first, ("squeeze", tuple(spatial)), ("flat", (math.prod(spatial),))]
    if name == "sequence" and channels_first:
        return [("channels_last", (shape[1], shape[0])), ("as_it_is", shape)]
    if len(shape) == 1 and name in ("mask", "codes"):
        return [("as_it_is", shape), ("unsqueeze", (*shape, 1))]
    return [("as_it_is", shape)]
