"""Which input of medray each input of an ONNX graph is, and how one becomes the other."""

# B batch, C channel, S spatial axes, T position or event, F feature

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from medray.learning.onnx_files.checking import Port
from medray.learning.refusal import Refused, shown

Way = Literal["as_it_is", "channels_last", "squeeze", "flat", "unsqueeze"]
"""How an array of medray is laid out as the graph has it: as it is, or channels moved to the end, or one channel left out, or all in a
row, or with one feature."""
Layout = Literal["auto", "channels_first", "channels_last"]
NUMBERS = ("float32", "float16", "float64")
CODES = ("int64", "int32")
MASKS = ("bool", *NUMBERS, *CODES)


class Source(BaseModel):
    """An input of a graph, and what it is made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: str
    """The graph's name of it."""
    name: str
    """medray's input."""
    way: Way
    shape: tuple[int, ...]
    """Of a row, as the graph has it."""
    dtype: str


def matched(
    ports: Sequence[Port],
    inputs: Mapping[str, tuple[Sequence[int | None], int]],
    names: Mapping[str, str],
    layout: Layout = "auto",
) -> list[Source]:
    """Each input of a graph with its source. `inputs`: medray's, by name: (shape, categories); `names`: what a run file says.
    Raises Refused."""
    if unknown := sorted(names.keys() - {port.name for port in ports}):
        raise Refused(
            "the model has no such input",
            found=shown(", ".join(unknown)),
            expected=shown(", ".join(port.name for port in ports)),
        )
    found = [_source(port, len(ports) == 1, inputs, names, layout) for port in ports]
    sources = [source.name for source in found]
    if len(set(sources)) < len(sources):
        raise Refused("two inputs of the model are made of one", found=", ".join(sources))
    return found


def _source(
    port: Port,
    alone: bool,
    inputs: Mapping[str, tuple[Sequence[int | None], int]],
    names: Mapping[str, str],
    layout: Layout,
) -> Source:
    name = names.get(port.name) or (port.name if port.name in inputs else None)
    data = [each for each in inputs if each != "mask"]
    if name is None and alone and len(data) == 1:
        name = data[0]
    if name is None or name not in inputs:
        raise Refused(
            "the modality has no input of this name" if name else "it is not clear what an input of the model is",
            found=shown(name or port.name),
            expected=f"one of {', '.join(inputs)}",
            do=f'name it: inputs = {{"{shown(port.name)}" = "{data[0]}"}}',
        )
    shape, categories = inputs[name]
    if None in shape:
        raise Refused(
            "inputs that vary in length do not go into an ONNX model: what it says of a padded row is not known",
            found=f"{name} {described(shape)}",
            expected="inputs of one length",
            do='of health records set representation = "bins"',
        )
    kinds = MASKS if name == "mask" else CODES if categories else NUMBERS
    if port.dtype not in kinds:
        raise Refused(
            "an input of the model is of another type than the modality gives",
            found=f"{shown(port.name)}: {port.dtype}",
            expected=" or ".join(kinds[:2]),
        )
    ways = _ways(name, tuple(n or 0 for n in shape), layout)
    fitting: list[tuple[Way, tuple[int, ...]]] = [
        (way, given)
        for way, given in ways
        if len(given) == len(port.shape) and all(n in (None, m) for n, m in zip(port.shape, given, strict=True))
    ]
    if not fitting:
        raise Refused(
            "the model takes another shape than the modality gives",
            found=f"{shown(port.name)} {described(port.shape)}",
            expected=" or ".join(described(given) for _, given in ways) + f", from {name}",
            do="give [modality] the size that the model was built for",
        )
    if len(fitting) > 1 and name == "pixels" and shape[0] != 1:
        raise Refused(
            "it is not clear where the model has its channels",
            found=f"{shown(port.name)} {described(port.shape)}",
            do='say it: [model] layout = "channels_first" or "channels_last"',
        )
    way, given = fitting[0]
    return Source(port=port.name, name=name, way=way, shape=given, dtype=port.dtype)


def _ways(name: str, shape: tuple[int, ...], layout: Layout) -> list[tuple[Way, tuple[int, ...]]]:
    """Ways that an input of medray can be laid out, and the shapes that it has then."""
    if name == "pixels":
        channels, *spatial = shape
        first: list[tuple[Way, tuple[int, ...]]] = []
        if layout != "channels_last":
            first.append(("as_it_is", shape))
        if layout != "channels_first":
            first.append(("channels_last", (*spatial, channels)))
        if channels > 1:
            return first
        return [*first, ("squeeze", tuple(spatial)), ("flat", (math.prod(spatial),))]
    if name == "sequence" and shape[0] != shape[1]:
        return [("as_it_is", shape), ("channels_last", (shape[1], shape[0]))]
    if len(shape) == 1 and name in ("mask", "codes"):
        return [("as_it_is", shape), ("unsqueeze", (*shape, 1))]
    return [("as_it_is", shape)]


def described(shape: Sequence[int | None]) -> str:
    """ "(28, 28, 1)"; ? where any number goes."""
    return f"({', '.join('?' if n is None else str(n) for n in shape)})"
