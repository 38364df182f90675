"""Tensors of a network that medray has, for `medray import`: safetensors, or a checkpoint of PyTorch."""

# N row, K output

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.config.runs import TrainRun
from medray.errors import RunFileError, UserError
from medray.learning import bounded, pretrained, torch_child
from medray.learning.models import ModelSpec
from medray.learning.recipe import Recipe
from medray.learning.start_from import StartFrom
from medray.modalities.registry import open_modality
from medray.verbs import originals

if TYPE_CHECKING:
    import torch

MOST_BYTES = 2**34
MEMORY, SECONDS, BYTES_A_SECOND = 2**30, 30, 10_000_000


@dataclass(frozen=True)
class WeightsOriginal:
    model: ModelSpec
    name: str
    sha256: str
    tensors: Mapping[str, np.ndarray]
    width: int

    @property
    def weights(self) -> Mapping[str, np.ndarray]:
        return self.tensors

    @property
    def outputs(self) -> int:
        return self.width

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "file": self.name,
            "sha256": self.sha256,
            "written_by": "PyTorch or another that names tensors as it does",
            "layers": sum(array.ndim > 1 for array in self.tensors.values()),
            "not_taken_over": [],
        }

    def answers(self, recipe: Recipe, given: Mapping[str, np.ndarray]) -> np.ndarray:
        """Logits of inputs by medray's names, laid out as medray has them."""
        import torch

        inputs = open_modality(recipe.modality).inputs()
        for name, each in inputs.items():
            if name not in given or given[name].ndim != len(each.shape) + 1:
                raise UserError(
                    "an input of the model is not in the file to compare with, or of another shape",
                    where=f"--expect {name}",
                    found=str(list(given[name].shape)) if name in given else "nothing",
                    expected=f"{', '.join(inputs)} and outputs",
                )
        kinds: dict[str, Any] = {"mask": bool, "codes": np.int64}
        tensors = {name: torch.from_numpy(given[name].astype(kinds.get(name, np.float32))) for name in inputs}
        return originals.logits(recipe, self.weights, tensors).numpy()


def read(file: str, run: TrainRun) -> WeightsOriginal:
    """Raises UserError for a file that is not taken, RunFileError for one that is of another network than the run file's."""
    if not run.model.trainable or run.model.kind == "keras":
        raise RunFileError(
            "tensors alone say nothing of their network",
            where="[model] kind",
            found=run.model.kind,
            expected="the network of medray that they are of",
        )
    name, sha256, tensors = tensors_of(file)
    return original(run, run.model, pretrained.Published(name, sha256, tensors))


def tensors_of(file: str) -> tuple[str, str, dict[str, torch.Tensor]]:
    """(name, SHA-256, tensors) of a file that a process within limits has read. Raises UserError."""
    content = bounded.content_of(file, file, MOST_BYTES)
    name, size = PurePosixPath(file).name, len(content)
    with tempfile.TemporaryDirectory(prefix="medray-weights-") as scratch:
        folder = Path(scratch)
        (folder / name).write_bytes(content)
        limits = {"memory": MEMORY + 4 * size, "seconds": SECONDS + size // BYTES_A_SECOND}
        bounded.run(torch_child.__name__, [name], folder, **limits, where=file)
        import safetensors.torch

        return name, hashlib.sha256(content).hexdigest(), safetensors.torch.load_file(folder / torch_child.TENSORS)


def original(run: TrainRun, model: ModelSpec, published: pretrained.Published) -> WeightsOriginal:
    """The tensors as the network `model` has them, all of them. Raises RunFileError for those of another."""
    objective = run.objective
    width = objective.width(objective.names) if objective.names else _outputs(run, model, published.tensors)
    network = model.build(open_modality(run.modality).inputs(), width)
    whole = StartFrom(file=published.name, head=True)
    try:
        taken = pretrained.chosen(published, network, whole, (), model.other_heads)
    except RunFileError as error:
        do = "give [model] the kind, depth and sizes that the file was made with"
        raise RunFileError(
            error.what, where=published.name, found=error.found, expected="every tensor of the model", do=do
        ) from None
    arrays = {name: value.numpy() for name, value in {**network.state_dict(), **taken.tensors}.items()}
    return WeightsOriginal(model, published.name, published.sha256, arrays, width)


def _outputs(run: TrainRun, model: ModelSpec, tensors: Mapping[str, Any]) -> int:
    """Logits of the network whose tensors these are: rows of its last layer."""
    inputs = open_modality(run.modality).inputs()
    heads = model.heads(model.build(inputs, 1))
    last = [value for name, value in tensors.items() if value.ndim > 1 and (not heads or name.startswith(heads))]
    if not last:
        raise RunFileError(
            "the file holds no last layer",
            where="[model]",
            found=json.dumps(sorted(tensors)[:5]),
            expected=f"tensors whose names begin with {', '.join(heads)}",
            do="weights without it are a start for a training: [training.start_from]",
        )
    return int(last[-1].shape[0])
