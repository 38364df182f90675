"""Reads one ONNX file and tries it, in a process of its own: see `medray.learning.bounded`.

Arguments: the file, and JSON with `inputs`, `names`, `layout`, `output`. It leaves `network.json` and `weights.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from medray.errors import BundleError
from medray.learning.bounded import within_limits
from medray.learning.graphs import without_numbers
from medray.learning.onnx_files.checking import Checked, checked
from medray.learning.onnx_files.network import Network, OnnxModule
from medray.learning.onnx_files.ports import Source, matched
from medray.learning.onnx_runtime import onnxruntime
from medray.learning.refusal import Refused

onnxruntime()  # before the limits: its memory is not the file's

NETWORK, WEIGHTS = "network.json", "weights.safetensors"
ROWS = 4
TOLERANCE = 1e-5


def read(folder: Path, arguments: Sequence[str]) -> None:
    """Raises Refused."""
    asked = json.loads(arguments[1])
    found = checked(Path(arguments[0]).read_bytes(), asked["output"])
    sources = matched(found.ports, asked["inputs"], asked["names"], asked["layout"])
    network, looks_like = _tried(found, sources, asked["inputs"])
    safetensors.numpy.save_file(found.weights, folder / WEIGHTS)
    facts = {"network": network.model_dump(mode="json"), "producer": found.producer, "looks_like": looks_like}
    (folder / NETWORK).write_text(json.dumps(facts))


def _tried(found: Checked, sources: Sequence[Source], inputs: Mapping[str, Any]) -> tuple[Network, str]:
    """(the network, what its answers to random inputs look like). Raises Refused where it cannot be computed, or what it says of a
    row hangs on other rows or on chance."""
    nodes = without_numbers(found.nodes, found.weights) if found.weights else found.nodes
    network = Network(
        nodes=Network.packed(nodes),
        numbers={name: (array.dtype.str, array.shape) for name, array in found.weights.items()},
        sources=tuple(sources),
        batch=found.batch,
        width=0,
        link=found.link,
        operations=found.operations,
    )
    rows = found.batch or ROWS
    first, others = (_random(sources, inputs, rows, seed) for seed in (0, 1))
    mixed = {name: torch.cat([first[name][:1], others[name][1:]]) for name in first}
    outputs = [_computed(found, network, given) for given in (first, first, mixed)]
    shape = outputs[0].shape
    if len(shape) not in (1, 2) or shape[0] != rows or (len(shape) == 2 and not shape[1]):
        raise Refused(
            "the model's answers are not one row of numbers for each input",
            found=f"{list(shape)} for {rows} rows",
            expected=f"[{rows}, classes]",
            do="name another output, or export the model up to its classification",
        )
    once, again, beside = (each.reshape(rows, -1).astype(np.float64) for each in outputs)
    if not np.isfinite(once).all():
        raise Refused("the model's answers to random inputs are no finite numbers")
    if not np.array_equal(once, again):
        raise Refused("the model does not repeat its answers: it draws at random")
    if np.abs(once[0] - beside[0]).max() > TOLERANCE * max(1.0, float(np.abs(once[0]).max())):
        raise Refused(
            "what the model says of a row hangs on the other rows of its batch",
            do="export the model in evaluation mode",
        )
    return network.model_copy(update={"width": once.shape[1]}), _looks_like(np.concatenate([once, beside]))


def _computed(found: Checked, network: Network, given: Mapping[str, torch.Tensor]) -> np.ndarray:
    module = OnnxModule(network, None, "linear").eval()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in found.weights.items()})
    try:
        return module.raw(given).numpy()
    except (BundleError, MemoryError):
        raise
    except Exception as error:  # of onnxruntime, which has no base class for what it raises
        text = str(error).strip().splitlines()
        raise Refused(
            "onnxruntime cannot load the model", found=text[0][:160] if text else type(error).__name__
        ) from None


def _random(sources: Sequence[Source], inputs: Mapping[str, Any], rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Inputs of medray by name: standard normal, codes of all kinds, masks that are valid throughout."""
    draw = torch.Generator().manual_seed(seed)
    given: dict[str, torch.Tensor] = {}
    for name in {source.name for source in sources}:
        shape, categories = inputs[name]
        if name == "mask":
            given[name] = torch.ones(rows, *shape, dtype=torch.bool)
        elif categories:
            given[name] = torch.randint(0, categories, (rows, *shape), generator=draw)
        else:
            given[name] = torch.randn(rows, *shape, generator=draw)
    return given


def _looks_like(answers: np.ndarray) -> str:
    """softmax, sigmoid: such probabilities; linear: others are among them."""
    if answers.min() < 0 or answers.max() > 1:
        return "linear"
    return "softmax" if answers.shape[1] > 1 and np.allclose(answers.sum(1), 1, atol=1e-3) else "sigmoid"


if __name__ == "__main__":
    within_limits(read)
