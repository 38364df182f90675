"""The recipe of a bundle: all that decides its scores, and the id that is a digest of it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

import medray
from medray.learning.models import ModelSpec
from medray.learning.objectives import ObjectiveSpec
from medray.modalities.registry import ModalitySpec, open_modality
from medray.plugins.brought import Brought, libraries

FORMAT = 1


DECIDES = ("format", "modality", "model", "objective", "classes", "thresholds", "outputs")
"""Fields of spec.json that decide a score: the id is a digest of them and of the weights."""


class Recipe(BaseModel):
    """spec.json: how the bundle reads, computes and names its scores, and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    name: str
    modality: ModalitySpec
    """With the statistics fitted on the training split."""
    model: ModelSpec
    objective: ObjectiveSpec
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    """Chosen on the validation split; empty where the objective has none."""
    outputs: tuple[str, ...]
    """Names of the scores, in the order of the model's outputs."""
    data: dict[str, Any]
    """Manifest digest, and entries, subjects and class balance of each split."""
    training: dict[str, Any]
    """Settings, seed, epochs run, best epoch."""
    metrics: dict[str, Any]
    """On the validation split, at the best epoch."""
    versions: dict[str, str]
    created: str
    """UTC, ISO 8601"""
    plugins: tuple[Brought, ...] = ()
    """The plug-ins that modality, model and objective are of; left out of spec.json where all are medray's own."""
    id: str = ""

    @model_serializer(mode="wrap")
    def _without_empty_plugins(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        whole = dump(self)
        if not whole.get("plugins", True):
            del whole["plugins"]
        return whole

    @property
    def same_bits(self) -> bool:
        """Whether torch gives a sample the same bits in every batch of one shape, on one thread."""
        inputs = open_modality(self.modality).inputs()
        return self.model.same_bits and not any(None in each.shape for each in inputs.values())

    def decides_scores(self) -> dict[str, Any]:
        """The part that the id is a digest of, beside the weights."""
        return self.model_dump(mode="json", include=set(DECIDES))


def bundle_id(decides: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> str:
    """16 hex digits of SHA-256 over DECIDES (canonical JSON) and the weights by name, dtype, shape and bytes."""
    whole = hashlib.sha256(json.dumps(decides, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        whole.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        whole.update(array.tobytes())
    return whole.hexdigest()[:16]


def versions(*settings: BaseModel) -> dict[str, str]:
    """Versions of what decides numbers: medray, python, torch and the readers; and what plug-ins say of these settings."""
    # medray's own is not asked of what is installed: a submitted job brings its code along
    recorded = {"python": platform.python_version(), "medray": medray.__version__}
    for name in (
        "torch",
        "numpy",
        "pyarrow",
        "ray",
        "pydicom",
        "monai",
        "nibabel",
        "pillow",
        "biopython",
        "meds",
        *libraries(*settings),
    ):
        try:
            recorded[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional library that is not here made no difference
    return recorded
