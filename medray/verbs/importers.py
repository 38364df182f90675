"""What makes a bundle's network of a file of another library: the registry. One module for each kind of file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np

from medray.config.runs import TrainRun
from medray.errors import UserError
from medray.learning.models import ModelSpec
from medray.learning.recipe import Recipe
from medray.storage import files


class Original(Protocol):
    """A file as it was read."""

    @property
    def model(self) -> ModelSpec:
        """Settings that build its network, whole in themselves: they need the file no more."""
        ...

    @property
    def weights(self) -> Mapping[str, np.ndarray]:
        """State of that network."""
        ...

    @property
    def outputs(self) -> int:
        """Number of its logits."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """For the recipe, JSON-ready: file, sha256, written_by, layers, not_taken_over."""
        ...

    def answers(self, recipe: Recipe, given: Mapping[str, np.ndarray]) -> np.ndarray:
        """What the bundle's network says (N, K), in the original's own terms, of inputs by their names there and laid out as
        there. Raises UserError for inputs that are missing or of another shape."""
        ...


class Importer(NamedTuple):
    """A kind of file."""

    kind: str
    suffixes: tuple[str, ...]
    read: Callable[[str, TrainRun], Original]
    """Of a file and the run file whose modality and objective it gets. Raises UserError."""


def _keras(file: str, run: TrainRun) -> Original:
    from medray.verbs.import_keras import read

    return read(file, run)


def _onnx(file: str, run: TrainRun) -> Original:
    from medray.verbs.import_onnx import read

    return read(file, run)


def _weights(file: str, run: TrainRun) -> Original:
    from medray.verbs.import_weights import read

    return read(file, run)


def _monai(file: str, run: TrainRun) -> Original:
    from medray.verbs.import_monai import read

    return read(file, run)


FOLDER = Importer("monai", (), _monai)
"""A folder is a bundle of MONAI."""
IMPORTERS: tuple[Importer, ...] = (
    Importer("keras", (".keras", ".h5", ".hdf5"), _keras),
    Importer("onnx", (".onnx",), _onnx),
    Importer("weights", (".safetensors", ".pt", ".pth", ".ckpt", ".bin"), _weights),
)


def importer(file: str) -> Importer:
    """The kind of a file, by the end of its name. Raises UserError."""
    name = PurePosixPath(file).name
    if files.exists(files.join(files.absolute(file), "configs")):
        return FOLDER
    for each in IMPORTERS:
        if name.lower().endswith(each.suffixes):
            return each
    raise UserError(
        "a file of this kind cannot be imported",
        where=file,
        found=PurePosixPath(name).suffix or name,
        expected=", ".join(suffix for each in IMPORTERS for suffix in each.suffixes)
        + ", or the folder of a MONAI bundle",
    )
