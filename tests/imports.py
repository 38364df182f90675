"""A small network, its ONNX file, images and a run file to import it by."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from medray.config.runs import TrainRun
from medray.datasets.samples import tensor_column
from medray.learning import bundles
from medray.learning.predictor import Predictor
from medray.modalities.registry import open_modality
from medray.verbs.import_ import import_model

IMAGES = {"kind": "imaging", "size": [16, 16], "normalise": "none"}
MULTICLASS = {"kind": "multiclass", "names": ["a", "b", "c"]}


def like(folder: Path, model: dict[str, Any] | None = None, **changes: Any) -> TrainRun:
    whole = {
        "name": "imported",
        "archive": str(folder / "archive"),
        "bundle": str(folder / "bundle"),
        "work": str(folder / "work"),
        "modality": IMAGES,
        "model": {"kind": "onnx", **(model or {})},
        "objective": MULTICLASS,
    }
    return TrainRun.model_validate(whole | changes)


def network(outputs: int = 3, link: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(392, outputs)]
    layers = nn.Sequential(*body, *([] if link is None else [link]))
    layers.train()(torch.randn(16, 1, 16, 16))  # statistics of batch normalisation that are no identity
    return layers.eval()


def exported(
    path: Path, model: nn.Module, shape: tuple[int, ...] = (1, 16, 16), batch: int = 2, **settings: Any
) -> str:
    """The model as ONNX by torch's exporter, for any number of rows unless the settings say otherwise."""
    axes = {"dynamic_axes": {"image": {0: "N"}}} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(batch, *shape),),
            path,
            dynamo=False,
            input_names=["image"],
            output_names=["out"],
            **axes,
        )
    return str(path)


def images(count: int = 70, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (count, channels, 16, 16)).astype(np.float32)


def scores(bundle: bundles.TrainedModel, values: np.ndarray, size: int | None = None) -> np.ndarray:
    modality = open_modality(bundle.recipe.modality)
    samples = pa.record_batch([tensor_column(values)], schema=modality.payload)
    predict = Predictor(bundle, "cpu")
    size = size or len(samples)
    return np.concatenate([predict(samples.slice(i, size)) for i in range(0, len(samples), size)])


def encoded(bundle: bundles.TrainedModel, values: np.ndarray) -> torch.Tensor:
    return open_modality(bundle.recipe.modality).encode({"pixels": torch.from_numpy(values)})["pixels"]


def made(folder: Path, file: str, **changes: Any) -> bundles.TrainedModel:
    return bundles.load(import_model(file, like(folder, **changes)).bundle)
