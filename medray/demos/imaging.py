"""medray demo imaging: BreastMNIST as DICOM files, from archive to re-scoring."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import numpy as np

from medray.engines.base import RaySpec, open_engine
from medray.errors import UserError
from medray.progress import Progress
from medray.report import ScoringRun, write_report
from medray.verbs import settings
from medray.verbs.evaluate import evaluate_bundle
from medray.verbs.index import index
from medray.verbs.prepare import prepare
from medray.verbs.results import EvaluateResult, ScoreResult
from medray.verbs.score import score
from medray.verbs.train import train

NAMES = {0: "malignant", 1: "benign"}  # "benign" stands for BreastMNIST's class "normal, benign"
SCORINGS = {"The whole archive": "score", "After 1 image was replaced, 2 added and 1 cut short": "score again"}
SPLITS = {"train": "train", "val": "validation", "test": "test"}

TRAIN = """\
# Trains a ResNet on the demo's archive: medray train {out}/train.toml
name    = "demo-imaging"
archive = "{out}/archive"      # a folder of DICOM files
bundle  = "{out}/bundle"       # the trained model: weights and recipe
work    = "{out}/work"         # manifest, shards, checkpoints, evaluation

[modality]
kind  = "imaging"
size  = [28, 28]               # height, width: every image is an entry
dtype = "uint8"                # ultrasound has 8 bits
[modality.augment]             # training only, seeded
flip           = ["width"]
rotate_degrees = 10
shift          = 0.07

[labels]
table          = "{out}/labels.csv"
key            = "file"        # path below the archive
columns        = ["diagnosis"]
split_column   = "split"       # the official split of BreastMNIST
subject_column = "subject"

[model]
kind  = "resnet"
depth = 10
width = 32

[objective]
kind     = "binary"
positive = "malignant"

[training]
epochs        = 15
batch_size    = 64             # over all workers together
learning_rate = 0.001
seed          = 0

[engine]
kind    = "ray"                # this machine; address = "auto" joins a running cluster
workers = 2
"""

SCORE = """\
# Scores what is new or changed in the archive: medray score {out}/score.toml
name    = "demo-imaging-score"
archive = "{out}/archive"
bundle  = "{out}/bundle"       # brings its own preprocessing
store   = "{out}/scores"       # a Delta Lake table that polars, DuckDB, pandas and Spark read
work    = "{out}/work-score"

[engine]
kind    = "ray"
workers = 2
"""


def imaging(out: Path, progress: Progress) -> dict[str, Any]:
    """Run the demo in the folder `out`, which must be new or an earlier demo's. Returns the summary of all steps."""
    started = time.monotonic()
    _claim_folder(out)
    write_archive(out)
    (out / "train.toml").write_text(TRAIN.format(out=out))
    (out / "score.toml").write_text(SCORE.format(out=out))
    train_run = settings.load(out / "train.toml")
    score_run = settings.load(out / "score.toml")
    assert isinstance(train_run, settings.TrainRun) and isinstance(score_run, settings.ScoreRun)
    engine = open_engine(RaySpec(workers=2))
    try:
        steps: dict[str, Any] = {
            "index": index(train_run, engine, progress),
            "prepare": prepare(train_run, engine, progress),
            "train": train(train_run, engine, progress),
        }
        steps["evaluate"], facts = evaluate_bundle(train_run, engine, progress, "test")
        steps["score"] = score(score_run, engine, progress)
        change_archive(out)
        progress.note("changed the archive: 1 image replaced, 2 added, 1 cut short")
        steps["score again"] = score(score_run, engine, progress)
    finally:
        engine.close()
    report = out / "report.html"
    runs = [_scoring_run(title, steps[name]) for title, name in SCORINGS.items()]
    report.write_text(write_report(replace(facts, archive=runs)), encoding="utf-8")
    summary = {name: step.model_dump(mode="json") for name, step in steps.items()}
    table = [{"step": name, "seconds": step.seconds, "outcome": OUTCOMES[name](step)} for name, step in steps.items()]
    return summary | {"steps": table, "report": str(report), "seconds": time.monotonic() - started}


def _tested(result: EvaluateResult) -> str:
    low, high = result.intervals["auroc"] or (float("nan"), float("nan"))
    return f"{result.n} test images: AUROC {result.metrics['auroc']:.3f} (95 %: {low:.3f} to {high:.3f})"


def _scored(result: ScoreResult) -> str:
    reasons = "".join(f", {count} {reason}" for reason, count in result.by_reason.items())
    return (
        f"{result.pending} of {result.entries} entries pending: {result.scored} scored, {result.failed} failed{reasons}"
    )


OUTCOMES: dict[str, Callable[[Any], str]] = {
    "index": lambda r: f"{r.entries} entries of {r.subjects} subjects in {r.files} files, {r.failed} failed",
    "prepare": lambda r: f"{r.samples} samples in {r.shards} shards",
    "train": lambda r: (
        f"{r.epochs} epochs on {r.workers} workers, {r.samples_per_second:.0f} images/s, bundle {r.bundle_id}"
    ),
    "evaluate": _tested,
    "score": _scored,
    "score again": _scored,
}
"""What each step tells a person."""


def _scoring_run(title: str, result: ScoreResult) -> ScoringRun:
    names = ("entries", "pending", "scored", "failed", "by_reason", "seconds")
    return ScoringRun(title, **{name: getattr(result, name) for name in names})


def _claim_folder(out: Path) -> None:
    """An earlier demo in this folder is removed; anything else in it is the user's and stays."""
    import shutil

    mark = out / ".medray-demo"
    if out.exists() and any(out.iterdir()):
        if not mark.exists():
            raise UserError(
                "the folder holds something that is not a demo's", where=str(out), do="choose another with --out DIR"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()


def write_archive(out: Path) -> None:
    """BreastMNIST as one DICOM file per image and labels.csv (file, subject, split, diagnosis)."""
    arrays = np.load(str(package_files("medray.demos") / "data" / "breastmnist.npz"))
    rows = []
    for name, split in SPLITS.items():
        for i, (pixels, label) in enumerate(zip(arrays[f"{name}_images"], arrays[f"{name}_labels"], strict=True)):
            path = Path(f"{split}") / f"us_{i:04}.dcm"
            _write(out / "archive" / path, pixels, f"{name}-{i:04}")
            rows.append((path.as_posix(), f"{name}-{i:04}", split, NAMES[int(label[0])]))
    with open(out / "labels.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "subject", "split", "diagnosis"))
        writer.writerows(rows)


def _write(path: Path, pixels: np.ndarray, subject: str) -> None:
    from medray.modalities.imaging.dicom_writer import uid, write_dicom

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        write_dicom(
            pixels,
            patient_id=subject,
            study_uid=uid("breastmnist", subject, "study"),
            series_uid=uid("breastmnist", subject, "series"),
            instance_uid=uid("breastmnist", subject, "image"),
        )
    )


def change_archive(out: Path) -> None:
    """What a night brings: one image replaced by a brighter one, two new ones, one transfer cut short."""
    arrays = np.load(str(package_files("medray.demos") / "data" / "breastmnist.npz"))
    images = arrays["test_images"]
    archive = out / "archive"
    _write(archive / "test" / "us_0000.dcm", np.minimum(images[0].astype(int) + 20, 255).astype(np.uint8), "test-0000")
    for i in (1, 2):
        _write(archive / "new" / f"us_{i:04}.dcm", images[i][:, ::-1].copy(), f"new-{i:04}")
    whole = (archive / "new" / "us_0001.dcm").read_bytes()
    _write(archive / "new" / "us_0003.dcm", images[3], "new-0003")
    cut = archive / "new" / "us_0003.dcm"
    cut.write_bytes(cut.read_bytes()[: len(whole) - 300])
