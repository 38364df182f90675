"""A Network with its weights as a .keras file of Keras 3. Needs h5py, not Keras."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from medray.learning.keras.graph import snake_case
from medray.learning.keras.layers.shaping import Masking
from medray.learning.keras.network import Network, Node
from medray.learning.keras.shapes import Shape
from medray.learning.refusal import Refused

VERSION = "3.0.0"
"""Of Keras: the first that reads what is written here."""
FUNCTIONAL = "keras.src.models.functional"
FLOAT32 = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None}


def written(network: Network, state: Mapping[str, np.ndarray], name: str) -> bytes:
    """The content of a .keras file; `state` is that of the torch network. Raises Refused for what Keras 3 cannot say."""
    names = _names(network)
    layers = [_input(port.name, names, port.shape, codes=port.codes) for port in network.inputs]
    shapes: dict[str, Shape] = {port.name: port.shape for port in network.inputs}
    shapes |= {shaped.node.name: shaped.output for shaped in network.shaped({})}
    calls = _calls(network)
    described = {name: _layer(nodes, names, network, shapes, calls) for name, nodes in calls.items()}
    order = _order(network)
    config = {
        "module": FUNCTIONAL,
        "class_name": "Functional",
        "config": {
            "name": _plain(name),
            "trainable": True,
            "layers": [*layers, *(described[each] for each in order)],
            "input_layers": [[names[port.name], 0, 0] for port in network.inputs],
            "output_layers": [[*_called(network.output, names, calls), 0]],
        },
        "registered_name": "Functional",
    }
    arrays = network.to_keras(state)
    groups = _groups(order, {name: layer["class_name"] for name, layer in described.items()})
    metadata = {"keras_version": VERSION, "date_saved": datetime.now(UTC).strftime("%Y-%m-%d@%H:%M:%S")}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("metadata.json", json.dumps(metadata))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", _hdf5(network, arrays, groups, names))
    return content.getvalue()


def _names(network: Network) -> dict[str, str]:
    """Name of each input and layer in the file: Keras has no / in one."""
    names: dict[str, str] = {}
    for name in [port.name for port in network.inputs] + [node.owner for node in network.nodes]:
        if name in names:
            continue
        plain = name.replace("/", "_")
        while plain in names.values():
            plain += "_"
        names[name] = plain
    return names


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-." else "_" for letter in name) or "model"


def _input(name: str, names: Mapping[str, str], shape: Sequence[int | None], *, codes: bool) -> dict[str, Any]:
    config = {
        "batch_shape": [None, *shape],
        "dtype": "int32" if codes else "float32",
        "sparse": False,
        "name": names[name],
    }
    return {
        "module": "keras.layers",
        "class_name": "InputLayer",
        "config": config,
        "registered_name": None,
        "name": names[name],
        "inbound_nodes": [],
    }


def _calls(network: Network) -> dict[str, list[Node]]:
    """Nodes of each layer, by the one that has the weights, which is the first."""
    calls: dict[str, list[Node]] = {node.name: [node] for node in network.nodes if node.shares is None}
    for node in network.nodes:
        if node.shares is not None:
            calls[node.shares].append(node)
    return calls


def _called(name: str, names: Mapping[str, str], calls: Mapping[str, Sequence[Node]]) -> tuple[str, int]:
    """(name in the file, number of the call) of an input or a node."""
    if name in names and name not in calls:
        return names[name], 0
    return next(
        (names[owner], [n.name for n in nodes].index(name))
        for owner, nodes in calls.items()
        if any(n.name == name for n in nodes)
    )


def _layer(
    nodes: Sequence[Node],
    names: Mapping[str, str],
    network: Network,
    shapes: Mapping[str, Shape],
    calls: Mapping[str, Sequence[Node]],
) -> dict[str, Any]:
    node = nodes[0]
    try:
        class_name, settings = node.layer.written()
    except Refused as refusal:
        raise refusal.of(node.name) from None
    codes = {port.name for port in network.inputs if port.codes}

    def tensors(inputs: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "class_name": "__keras_tensor__",
                "config": {
                    "shape": [None, *shapes[name]],
                    "dtype": "int32" if name in codes else "float32",
                    "keras_history": [*_called(name, names, calls), 0],
                },
            }
            for name in inputs
        ]

    return {
        "module": "keras.layers",
        "class_name": class_name,
        "config": {"name": names[node.name], "dtype": FLOAT32, **settings}
        | ({} if node.trainable else {"trainable": False}),
        "registered_name": None,
        "name": names[node.name],
        "inbound_nodes": [
            {"args": [tensors(each.inputs)] if node.layer.many else tensors(each.inputs), "kwargs": {}}
            for each in nodes
        ],
    }


def _order(network: Network) -> list[str]:
    """Nodes as Keras orders the layers of a Functional model when it loads one: by their distance from the output, the farthest
    first, and then as a walk from the output meets them (keras.src.ops.function.map_graph)."""
    reads = {node.name: node.inputs for node in network.nodes}
    owner = {node.name: node.owner for node in network.nodes}
    met: dict[str, int] = {}
    seen: set[str] = set()
    waiting = [network.output]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        met.setdefault(owner.get(name, name), len(met))
        waiting += reversed(reads.get(name, ()))
    depth = {network.output: 0}
    depth_of_layer: dict[str, int] = {}
    reads_of: dict[str, list[str]] = {}
    nodes, masks = {node.name: node for node in network.nodes}, network.masks()
    for name, source in masks.items():
        if nodes[name].layer.reads_mask:
            reads_of.setdefault(source, []).append(name)
    for node in reversed(network.nodes):
        # from what a mask is made of, to what reads it, are one or two operations that stand in the file's graph, too
        operations = 2 if isinstance(node.layer, Masking) else 1
        depth[node.name] = max(depth[node.name], depth_of_layer.get(node.owner, 0))
        depth_of_layer[node.owner] = depth[node.name]
        far = max([depth[node.name], *(depth[each] + operations for each in reads_of.get(node.name, ()))])
        for name in node.inputs:
            depth[name] = max(depth.get(name, 0), far + 1)
    return sorted(depth_of_layer, key=lambda name: (-depth_of_layer[name], met[name]))


def _groups(order: Sequence[str], classes: Mapping[str, str]) -> dict[str, str]:
    """Group of each layer's arrays: its class in snake case, numbered in that order."""
    seen: dict[str, int] = {}
    groups: dict[str, str] = {}
    for name in order:
        plain = snake_case(classes[name])
        groups[name] = f"{plain}_{seen[plain]}" if plain in seen else plain
        seen[plain] = seen.get(plain, 0) + 1
    return groups


def _hdf5(
    network: Network, arrays: Mapping[str, list[np.ndarray]], groups: Mapping[str, str], names: Mapping[str, str]
) -> bytes:
    import h5py

    content = io.BytesIO()
    with h5py.File(content, "w") as root:
        root.create_group("layers")
        for shaped in network.shaped({}):
            name = shaped.node.name
            if shaped.node.shares is not None:
                continue
            own = root.create_group(f"layers/{groups[name]}/vars")
            own.attrs["name"] = names[name]
            numbers: dict[tuple[str, ...], int] = {}
            for weight, array in zip(shaped.weights, arrays[name], strict=True):
                number = numbers.get(weight.group, 0)
                numbers[weight.group] = number + 1
                root[f"layers/{groups[name]}/{'/'.join(weight.group)}/{number}"] = array
    return content.getvalue()
