"""A small archive of real DICOM files that a small network learns in seconds, and run files for it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from medray.config.runs import ScoreRun, TrainRun
from medray.learning.bundles import TrainedModel, make_bundle
from medray.learning.models.cnn import CnnSpec
from medray.learning.objectives import BinaryObjective
from medray.learning.recipe import Recipe, versions
from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.registry import open_modality

SIZE = 16


def pixels(number: int, label: int) -> np.ndarray:
    """(16, 16) uint8: noise, and a bright square in the upper half (label 0) or the lower half (label 1)."""
    random = np.random.default_rng(number)
    image = random.integers(0, 90, (SIZE, SIZE))
    row, column = random.integers(0, 4) + (8 if label else 0), random.integers(0, 12)
    image[row : row + 4, column : column + 4] += 120
    return image.astype(np.uint8)


def write_image(path: Path, number: int, label: int, *, subject: str | None = None) -> None:
    """One DICOM file; the same arguments give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        write_dicom(
            pixels(number, label),
            patient_id=subject or f"S{number:04}",
            study_uid=uid("toy", number, "study"),
            series_uid=uid("toy", number, "series"),
            instance_uid=uid("toy", number, "image"),
        )
    )


def write_archive(folder: Path, count: int = 96) -> Path:
    """`folder`/archive with `count` files and `folder`/labels.csv (file, split, diagnosis); returns the archive."""
    rows = []
    for number in range(count):
        label = number % 2
        split = ("train", "train", "train", "validation", "test")[number // 2 % 5]
        name = f"{number % 3}/im_{number:04}.dcm"
        write_image(folder / "archive" / name, number, label)
        rows.append((name, split, ("upper", "lower")[label]))
    with open(folder / "labels.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("file", "split", "diagnosis"), *rows])
    return folder / "archive"


def train_run(folder: Path, **changes: Any) -> TrainRun:
    """A complete TrainRun on `folder`; `changes` replace whole keys, and keys of [training] by name."""
    training = {"epochs": 3, "batch_size": 16, "learning_rate": 0.003, "seed": 1} | changes.pop("training", {})
    settings: dict[str, Any] = {
        "name": "toy",
        "archive": str(folder / "archive"),
        "bundle": str(folder / "bundle"),
        "work": str(folder / "work"),
        "engine": {"kind": "local"},
        "modality": {"kind": "imaging", "size": [SIZE, SIZE], "dtype": "uint8"},
        "labels": {
            "table": str(folder / "labels.csv"),
            "key": "file",
            "columns": ["diagnosis"],
            "split_column": "split",
        },
        "model": {"kind": "cnn", "channels": [8, 8], "dense": 16},
        "objective": {"kind": "binary", "positive": "lower"},
        "training": training,
        "evaluation": {"resamples": 50},
        "floor": False,
    }
    return TrainRun.model_validate(settings | changes)


def score_run(folder: Path, **changes: Any) -> ScoreRun:
    """A complete ScoreRun on `folder`, with the bundle that train_run makes."""
    settings: dict[str, Any] = {
        "name": "toy-score",
        "archive": str(folder / "archive"),
        "bundle": str(folder / "bundle"),
        "store": str(folder / "scores"),
        "work": str(folder / "work-score"),
        "engine": {"kind": "local"},
    }
    return ScoreRun.model_validate(settings | changes)


def write_run_file(path: Path, run: TrainRun | ScoreRun) -> Path:
    """The run as TOML: JSON's scalars and lists are TOML's."""
    lines: list[str] = []

    def table(name: str, settings: dict[str, Any]) -> None:
        if name:
            lines.append(f"[{name}]")
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in settings.items() if not isinstance(value, dict))
        for key, value in settings.items():
            if isinstance(value, dict):
                table(f"{name}.{key}" if name else key, value)

    table("", run.model_dump(mode="json", exclude_unset=True))
    path.write_text("\n".join(lines) + "\n")
    return path


MODALITY = ImagingSpec(size=(SIZE, SIZE), mean=(51.5,), std=(33.25,))
MODEL = CnnSpec(channels=(4,), dense=8)


def recipe(**changes: Any) -> Recipe:
    """The recipe of a binary bundle; `changes` replace whole fields."""
    objective = changes.pop("objective", BinaryObjective(positive="lower"))
    classes = changes.pop("classes", ("upper", "lower"))
    facts = {"entries": 24, "subjects": 20, "classes": {"upper": 12, "lower": 12}}
    settings = {
        "name": "toy",
        "modality": MODALITY,
        "model": MODEL,
        "objective": objective,
        "classes": classes,
        "thresholds": (0.4375,),
        "outputs": objective.outputs(classes),
        "data": {"manifest_digest": "0123456789abcdef", "splits": {"train": facts}},
        "training": {"epochs": 3},
        "metrics": {"auroc": 0.96875, "confusion_matrix": [[3, 1], [0, 4]]},
        "versions": versions(),
        "created": "2026-03-01T00:00:00+00:00",
    }
    return Recipe.model_validate(settings | changes)


def weights(of: Recipe, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of the recipe's network."""
    import torch

    torch.manual_seed(seed)
    network = of.model.build(open_modality(of.modality).inputs(), of.objective.width(of.classes))
    return {name: value.numpy().copy() for name, value in network.state_dict().items()}


def bundle(**changes: Any) -> TrainedModel:
    """A bundle that was never trained: the recipe, and random weights."""
    of = recipe(**changes)
    return make_bundle(of, weights(of))


def scores(store: str | Path) -> dict[tuple[str, str], float]:
    """(entry id, output) to score, of all scored rows of a store."""
    from deltalake import DeltaTable

    rows = DeltaTable(str(store)).to_pyarrow_table().to_pylist()
    found = {(row["entry_id"], row["output"]): row["value"] for row in rows if row["status"] == "scored"}
    assert len(found) == sum(row["status"] == "scored" for row in rows), "an entry was scored twice"
    return found


def failures(store: str | Path) -> dict[str, str]:
    """Entry id to reason, of all failed rows of a store."""
    from deltalake import DeltaTable

    rows = DeltaTable(str(store)).to_pyarrow_table().to_pylist()
    return {row["entry_id"]: row["reason"] for row in rows if row["status"] == "failed"}
