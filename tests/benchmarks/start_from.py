"""What starting from trained weights is worth: epochs until a training is as good as one from random weights ever gets.

    python tests/benchmarks/start_from.py [--epochs 12] [--seeds 3] [--breast FILE.npz]

A residual network is trained to tell seeded synthetic textures apart: oriented waves under noise, eight orientations. Then a
related task with few images, two orientations that lie closer together, is learnt from random weights and from that bundle,
by equal settings. Shown for each seed are the best AUROC on validation of the training from random weights, the epoch in which
it had it, and the epoch in which the other reached it. `--breast`: BreastMNIST's file; its training from the textures' bundle
is reported beside the one from random weights, whichever is better.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

SIZE = 28


def textures(count: int, degrees: tuple[float, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, SIZE, SIZE) uint8 waves of two to five periods at a random place, with noise; (count, 1) which of `degrees`."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(degrees)
    angle = np.deg2rad(np.array(degrees)[labels] + random.normal(0, 3, count))
    waves, phase = random.uniform(2, 5, count), random.uniform(0, 2 * np.pi, count)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    images = 127 + 40 * np.sin(2 * np.pi * waves[:, None, None] * along + phase[:, None, None])
    images += random.normal(0, 50, images.shape)
    return images.clip(0, 255).astype(np.uint8), labels[:, None].astype(np.uint8)


def write(path: Path, degrees: tuple[float, ...], counts: dict[str, int], seed: int) -> Path:
    """A file in MedMNIST's layout."""
    arrays: dict[str, np.ndarray] = {}
    for number, (split, count) in enumerate(counts.items()):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = textures(count, degrees, 10 * seed + number)
    np.savez(path, **arrays)
    return path


def training(archive: Path, folder: Path, epochs: int, seed: int, start: Path | None, **settings: Any) -> list[float]:
    """AUROC on validation after each epoch."""
    import pyarrow.csv

    from medray.config.runs import TrainRun
    from medray.engines.local import LocalEngine
    from medray.verbs.train import train

    begins = {} if start is None else {"start_from": {"file": str(start), "learning_rate_factor": 0.3}}
    run = TrainRun.model_validate(
        {
            "name": "start",
            "archive": str(archive),
            "bundle": str(folder / "bundle"),
            "work": str(folder / "work"),
            "engine": {"kind": "local"},
            "modality": {"kind": "imaging", "size": [SIZE, SIZE], "dtype": "uint8"},
            "split": {"by": "given"},
            "model": {"kind": "resnet", "depth": 10, "width": 8},
            "floor": False,
            "training": {"epochs": epochs, "batch_size": 32, "seed": seed, **begins},
        }
        | settings
    )
    result = train(run, LocalEngine())
    table = pyarrow.csv.read_csv(result.history)
    name = "auroc" if "auroc" in table.column_names else "accuracy"
    return table[name].to_pylist()


def told(what: str, fresh: list[float], started: list[float]) -> tuple[int, int | None]:
    """(epoch in which the training from random weights was best, that in which the other was as good)."""
    best = max(fresh)
    epoch = fresh.index(best) + 1
    reached = next((number for number, value in enumerate(started, 1) if value >= best), None)
    print(f"{what:24} {best:8.4f} {epoch:6} {max(started):10.4f} {reached or '-':>8}", flush=True)
    return epoch, reached


def compare(folder: Path, epochs: int, seeds: int, breast: Path | None = None) -> list[tuple[int, int | None]]:
    binary = {"objective": {"kind": "binary", "positive": "1"}}
    many = write(
        folder / "many.npz", tuple(22.5 * i for i in range(8)), {"train": 3200, "val": 400, "test": 8}, seed=99
    )
    parent = folder / "parent"
    print("textures, accuracy:", training(many, parent, 6, 0, None, objective={"kind": "multiclass"})[-1], flush=True)
    print(f"{'':24} {'random':>8} {'epoch':>6} {'started':>10} {'reached':>8}")
    found = []
    for seed in range(seeds):
        few = write(folder / f"few-{seed}.npz", (33.0, 57.0), {"train": 160, "val": 400, "test": 8}, seed=seed)
        both = [
            training(few, folder / f"few-{seed}-{start is not None}", epochs, seed, start, **binary)
            for start in (None, parent / "bundle")
        ]
        found.append(told(f"two textures, seed {seed}", *both))
    if breast is not None:
        for seed in range(seeds):
            both = [
                training(breast, folder / f"breast-{seed}-{start is not None}", epochs, seed, start, **binary)
                for start in (None, parent / "bundle")
            ]
            told(f"BreastMNIST, seed {seed}", *both)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--breast", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    with tempfile.TemporaryDirectory(prefix="start-from-") as folder:
        compare(Path(folder), options.epochs, options.seeds, options.breast)


if __name__ == "__main__":
    main()
