"""medray demo imaging: BreastMNIST as DICOM files, from archive to re-scoring."""

from __future__ import annotations

import csv
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np

from medray.demos.base import Demo

NAMES = {0: "malignant", 1: "benign"}  # "benign" stands for BreastMNIST's class "normal, benign"
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


def write_archive(out: Path) -> None:
    """BreastMNIST as one DICOM file per image and labels.csv (file, subject, split, diagnosis)."""
    arrays = np.load(str(package_files("medray.demos") / "data" / "breastmnist.npz"))
    rows: list[tuple[str, str, str, str]] = []
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
    from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom

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
    """Changes of one night: one image replaced by a brighter one, two new ones, one transfer cut short."""
    arrays = np.load(str(package_files("medray.demos") / "data" / "breastmnist.npz"))
    images = arrays["test_images"]
    archive = out / "archive"
    _write(archive / "test" / "us_0000.dcm", np.minimum(images[0].astype(int) + 20, 255).astype(np.uint8), "test-0000")
    for i in (1, 2):
        _write(archive / "new" / f"us_{i:04}.dcm", images[i][:, ::-1].copy(), f"new-{i:04}")
    complete = (archive / "new" / "us_0001.dcm").read_bytes()
    _write(archive / "new" / "us_0003.dcm", images[3], "new-0003")
    truncated = archive / "new" / "us_0003.dcm"
    truncated.write_bytes(truncated.read_bytes()[: len(complete) - 300])


IMAGING = Demo(
    name="imaging",
    unit="images",
    train=TRAIN,
    score=SCORE,
    write=write_archive,
    change=change_archive,
    changed="1 image was replaced, 2 added and 1 cut short",
)
