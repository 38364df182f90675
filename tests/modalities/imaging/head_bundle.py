"""A model of CT heads, trained in a few seconds on series of `mixed_archive`. For tests of eligibility."""

from __future__ import annotations

import csv
from pathlib import Path

import mixed_archive

from medray.config.runs import TrainRun
from medray.engines.local import LocalEngine
from medray.verbs.train import train


def trained(folder: Path) -> str:
    """Path of a bundle of CT heads, which is trained below `folder`."""
    heads = mixed_archive.write(folder / "train", 24, seed=1, kinds=mixed_archive.TRAINED)
    splits = ("train", "train", "validation", "test")
    with open(folder / "labels.csv", "w", newline="") as stream:
        rows = [(series.uid, i % 2, splits[i // 2 % 4], f"S{i}") for i, series in enumerate(heads)]
        csv.writer(stream).writerows([("series", "bleed", "split", "who"), *rows])
    table = {"table": str(folder / "labels.csv"), "key": "series", "match": "entry", "columns": ["bleed"]}
    run = TrainRun.model_validate(
        {
            "name": "heads",
            "archive": str(folder / "train"),
            "bundle": str(folder / "bundle"),
            "work": str(folder / "work-train"),
            "modality": {"kind": "imaging", "size": [4, 8, 8], "dtype": "int16"},
            "labels": table | {"split_column": "split", "subject_column": "who"},
            "model": {"kind": "cnn", "channels": [4], "dense": 4},
            "objective": {"kind": "binary"},
            "training": {"epochs": 1, "batch_size": 8},
            "engine": {"kind": "local"},
            "floor": False,
        }
    )
    result = train(run, LocalEngine())
    assert result.failed == 0 and [kind["Modality"] for kind in result.mixture] == ["CT"]
    return run.bundle_uri
