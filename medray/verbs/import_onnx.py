"""ONNX files for `medray import`."""

# N row, K output

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.config.runs import TrainRun
from medray.errors import UserError
from medray.learning.models.onnx import OnnxSpec
from medray.learning.onnx_files import reading
from medray.learning.onnx_files.ports import Source, described
from medray.learning.onnx_files.reading import OnnxFile
from medray.learning.predictor import build_network
from medray.learning.recipe import Recipe
from medray.modalities.registry import open_modality

ROWS = 64
"""That are computed at once."""


@dataclass(frozen=True)
class OnnxOriginal:
    model: OnnxSpec
    file: OnnxFile

    @property
    def weights(self) -> Mapping[str, np.ndarray]:
        return self.file.weights

    @property
    def outputs(self) -> int:
        return self.file.network.width

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "file": self.file.name,
            "sha256": self.file.sha256,
            "written_by": self.file.producer,
            "layers": sum(self.file.network.operations.values()),
            "not_taken_over": [],
        }

    def answers(self, recipe: Recipe, given: Mapping[str, np.ndarray]) -> np.ndarray:
        """What the file's own output is: logits where the graph gives them, else probabilities."""
        import torch

        sources = self.file.network.sources
        if absent := [source.port for source in sources if source.port not in given]:
            raise UserError(
                "inputs of the model are not in the file to compare with",
                where="--expect",
                found=f"no {', '.join(absent)}",
                expected=f"{', '.join(source.port for source in sources)} and outputs",
            )
        tensors = {source.name: torch.from_numpy(_arranged(given[source.port], source)) for source in sources}
        rows = len(next(iter(tensors.values())))
        network = build_network(recipe, self.weights)
        pieces = ({name: each[i : i + ROWS] for name, each in tensors.items()} for i in range(0, rows, ROWS))
        with torch.inference_mode():
            logits = torch.cat([network(**piece) for piece in pieces])
            gives_logits = self.file.network.link == "linear" and self.model.answers != "probabilities"
            return (logits if gives_logits else recipe.objective.activate(logits)).numpy()


def read(file: str, run: TrainRun) -> OnnxOriginal:
    """Raises UserError for a file that is not taken, and for one that ends with another activation than the objective's."""
    asked = run.model if isinstance(run.model, OnnxSpec) else OnnxSpec()
    inputs = open_modality(run.modality).inputs()
    found = reading.read(file, file, inputs, asked.inputs, asked.layout, asked.output)
    return OnnxOriginal(asked.settled(found, run.objective), found)


def _arranged(values: np.ndarray, source: Source) -> np.ndarray:
    """An array (N, …) as the graph has it, as medray has it: the opposite of what the network does with its inputs."""
    if values.shape[1:] != source.shape:
        raise UserError(
            "an input to compare with is of another shape than the model's",
            where=f"--expect {source.port}",
            found=described(values.shape[1:]),
            expected=described(source.shape),
        )
    kind = bool if source.name == "mask" else np.int64 if source.name == "codes" else np.float32
    values = values.astype(kind)
    if source.way == "channels_last":
        return np.ascontiguousarray(np.moveaxis(values, -1, 1))
    if source.way == "squeeze":
        return values[:, None]
    if source.way == "unsqueeze":
        return values[..., 0]
    return values
