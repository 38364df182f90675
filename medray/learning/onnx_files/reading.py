"""ONNX files, read by a process of its own."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from medray.errors import UserError
from medray.extras import lacking
from medray.learning.bounded import content_of, run
from medray.learning.onnx_files.network import Network
from medray.learning.onnx_files.ports import Layout
from medray.modalities.inputs import Inputs

MODULE = "medray.learning.onnx_files.child"
MOST_BYTES = 2**31 - 1
"""What one ONNX file can hold."""
MEMORY, SECONDS, BYTES_A_SECOND = 2**30, 30, 10_000_000
BYTES_A_NUMBER = 2048
"""Of what a network reads of a row: what its layers may make of the few rows that are tried."""


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file as it was read, with the inputs that a modality gives it."""

    name: str
    """The file's, without its folder."""
    sha256: str
    producer: str
    """The tool that wrote it, and its version."""
    network: Network
    weights: dict[str, np.ndarray]
    looks_like: str
    """What answers to random inputs are among: softmax or sigmoid, as probabilities are; linear: others."""


def read(
    file: str, where: str, inputs: Inputs, names: Mapping[str, str], layout: Layout = "auto", output: str | None = None
) -> OnnxFile:
    """The model in an ONNX file, and that it can be computed from `inputs`; `names`: which of them its own inputs are.

    Raises UserError for a file that is missing, too large, broken, or holds what medray does not take.
    """
    if (absent := lacking("onnx", "onnxruntime")) is not None:
        raise UserError("ONNX files are read by onnx and computed by onnxruntime", where=where, found=absent)
    content = content_of(file, where, MOST_BYTES)
    asked = {
        "inputs": {name: (each.shape, each.categories) for name, each in inputs.items()},
        "names": dict(names),
        "layout": layout,
        "output": output,
    }
    with tempfile.TemporaryDirectory(prefix="medray-onnx-") as scratch:
        folder = Path(scratch)
        (folder / "model.onnx").write_bytes(content)
        size = len(content)
        numbers = sum(math.prod(n or 1 for n in each.shape) for each in inputs.values())
        run(
            MODULE,
            ["model.onnx", json.dumps(asked)],
            folder,
            memory=MEMORY + 8 * size + BYTES_A_NUMBER * numbers,
            seconds=SECONDS + size // BYTES_A_SECOND,
            where=where,
        )
        import safetensors.numpy

        facts = json.loads((folder / "network.json").read_text())
        weights = safetensors.numpy.load_file(folder / "weights.safetensors")
    return OnnxFile(
        name=PurePosixPath(file).name,
        sha256=hashlib.sha256(content).hexdigest(),
        producer=facts["producer"],
        network=Network.model_validate(facts["network"]),
        weights=weights,
        looks_like=facts["looks_like"],
    )
