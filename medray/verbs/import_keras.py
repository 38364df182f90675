"""Keras files for `medray import`."""

# N row, K logit

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.config.runs import TrainRun
from medray.errors import UserError
from medray.learning.keras import reading
from medray.learning.keras.ports import Source, matched
from medray.learning.keras.reading import KerasFile
from medray.learning.keras.shapes import described
from medray.learning.models.keras import KerasSpec
from medray.learning.predictor import build_network
from medray.learning.recipe import Recipe
from medray.modalities.registry import open_modality


@dataclass(frozen=True)
class KerasOriginal:
    model: KerasSpec
    file: KerasFile

    @property
    def weights(self) -> Mapping[str, np.ndarray]:
        return self.file.weights

    @property
    def outputs(self) -> int:
        shape = self.model.described.output_shape({})
        return int(shape[-1] or 0) if len(shape) == 1 else 0

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "file": self.file.name,
            "sha256": self.file.sha256,
            "written_by": f"Keras {self.file.keras}",
            "layers": len(self.file.network.nodes),
            "not_taken_over": list(self.file.notes),
        }

    def answers(self, recipe: Recipe, given: Mapping[str, np.ndarray]) -> np.ndarray:
        """Logits, where the original ends without an activation; else scores."""
        import torch

        inputs = open_modality(recipe.modality).inputs()
        sources = matched(self.model.described, inputs, self.model.inputs)
        if absent := [name for name in sources if name not in given]:
            raise UserError(
                "inputs of the model are not in the file to compare with",
                where="--expect",
                found=f"no {', '.join(absent)}",
                expected=f"{', '.join(sources)} and outputs",
            )
        tensors = {
            source.name: torch.from_numpy(_arranged(given[name], source, name)) for name, source in sources.items()
        }
        if "mask" in inputs and "mask" not in tensors:  # the original knows of no padding
            sequence = next(iter(tensors.values()))
            tensors["mask"] = torch.ones((len(sequence), *(n or 0 for n in inputs["mask"].shape)), dtype=torch.bool)
        network = build_network(recipe, self.weights)
        with torch.inference_mode():
            logits = torch.cat(
                [network(**_part(tensors, i)) for i in range(0, len(next(iter(tensors.values()))), ROWS)]
            )
            said = logits if self.file.network.link() == "linear" else recipe.objective.activate(logits)
        return said.numpy()


ROWS = 64
"""That are computed at once."""


def read(file: str, run: TrainRun) -> KerasOriginal:
    """Raises UserError for a file that is not taken, and for one that ends with another activation than the objective's."""
    found = reading.read(file, file)
    names = run.model.inputs if isinstance(run.model, KerasSpec) else {}
    return KerasOriginal(KerasSpec(file=file, inputs=names).settled(found, run.objective), found)


def _arranged(values: np.ndarray, source: Source, name: str) -> np.ndarray:
    """An array as Keras has it, as medray has it: the opposite of what the network does with its inputs."""
    if values.ndim != len(source.shape) + 1 or values.shape[1:] != source.shape:
        raise UserError(
            "an input to compare with is of another shape than the model's",
            where=f"--expect {name}",
            found=str(list(values.shape)),
            expected=described(source.shape),
        )
    if source.name == "mask":
        values = values.astype(bool)
    elif source.name != "codes":
        values = values.astype(np.float32)
    if source.way == "channels_last":
        return np.ascontiguousarray(np.moveaxis(values, -1, 1))
    if source.way == "squeeze":
        return values[:, None]
    if source.way == "unsqueeze":
        return values[..., 0]
    return values


def _part(tensors: Mapping[str, Any], start: int) -> dict[str, Any]:
    return {name: value[start : start + ROWS] for name, value in tensors.items()}
