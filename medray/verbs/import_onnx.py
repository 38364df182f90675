"""ONNX files for `medray import`."""

# N row, K output

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medray.config.runs import TrainRun
from medray.learning.models.onnx import OnnxSpec
from medray.learning.onnx_files import reading
from medray.learning.onnx_files.reading import OnnxFile
from medray.learning.recipe import Recipe
from medray.modalities.registry import open_modality
from medray.verbs import originals


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
        sources = self.file.network.sources
        originals.refuse_absent(given, [source.port for source in sources])
        inputs = {source.name: originals.arranged(given[source.port], source.port, source) for source in sources}
        said = originals.logits(recipe, self.weights, inputs)
        gives_logits = self.file.network.link == "linear" and self.model.answers != "probabilities"
        return (said if gives_logits else recipe.objective.activate(said)).numpy()


def read(file: str, run: TrainRun) -> OnnxOriginal:
    """Raises UserError for a file that is not taken, and for one that ends with another activation than the objective's."""
    asked = run.model if isinstance(run.model, OnnxSpec) else OnnxSpec()
    inputs = open_modality(run.modality).inputs()
    found = reading.read(file, file, inputs, asked.inputs, asked.layout, asked.output)
    return OnnxOriginal(asked.settled(found, run.objective), found)
