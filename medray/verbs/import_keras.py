"""Keras files for `medray import`."""

# N row, K logit

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.config.runs import TrainRun
from medray.learning.keras import reading
from medray.learning.keras.ports import matched
from medray.learning.keras.reading import KerasFile
from medray.learning.models.keras import KerasSpec
from medray.learning.recipe import Recipe
from medray.modalities.registry import open_modality
from medray.verbs import originals


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
        originals.refuse_absent(given, sources)
        tensors = {source.name: originals.arranged(given[port], port, source) for port, source in sources.items()}
        if "mask" in inputs and "mask" not in tensors:  # the original knows of no padding
            sequence = next(iter(tensors.values()))
            tensors["mask"] = torch.ones((len(sequence), *(n or 0 for n in inputs["mask"].shape)), dtype=torch.bool)
        said = originals.logits(recipe, self.weights, tensors)
        return (said if self.file.network.link() == "linear" else recipe.objective.activate(said)).numpy()


def read(file: str, run: TrainRun) -> KerasOriginal:
    """Raises UserError for a file that is not taken, and for one that ends with another activation than the objective's."""
    found = reading.read(file, file)
    names = run.model.inputs if isinstance(run.model, KerasSpec) else {}
    return KerasOriginal(KerasSpec(file=file, inputs=names).settled(found, run.objective), found)
