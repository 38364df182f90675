"""Cross-validation on public data by the run files of jobs/runs: every subject is tested once, by models that never saw it.

    python tests/benchmarks/cross_validation.py splice [--models cnn1d cnn_rnn …] [--folds 10] [--seed 0]
    python tests/benchmarks/cross_validation.py physionet [--folds 5]
    python tests/benchmarks/cross_validation.py breast [--models run_file no_average …] [--folds 3]

In each fold the epoch, the threshold and the calibration are chosen on a validation part of the other folds. The data
are those of MEDRAY_TEST_DATA (default ../shared/data). `breast` compares settings of one network on the official
training and validation images alone: the official test images are not in the archive that it makes. A finished training is not repeated: the script can be run again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from medray.config import runs
from medray.engines.base import Engine
from medray.engines.local import LocalEngine
from medray.verbs.evaluate import evaluate
from medray.verbs.results import EvaluateResult
from medray.verbs.to_meds import to_meds
from medray.verbs.train import train

PROJECT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MEDRAY_TEST_DATA") or PROJECT.parent / "shared" / "data")

RNN = "pooling='flatten', bidirectional=true, hidden=32, dense=64, dropout=0.5"
MODELS: dict[str, dict[str, list[str]]] = {
    "splice": {
        "cnn1d": ["model={kind='cnn1d'}", "training.epochs=12", "training.average_weights=0.97"],
        "cnn_rnn": [
            "model={kind='cnn_rnn'}",
            "training.epochs=15",
            "training.learning_rate=0.003",
            "training.average_weights=0.97",
        ],
        **{
            cell: [
                f"model={{kind='rnn', cell='{cell}', {RNN}}}",
                "training.epochs=8",
                "training.learning_rate=0.003",
                "training.clip_norm=1.0",
                "training.average_weights=0.97",
            ]
            for cell in ("elman", "gru", "lstm")
        },
        "logistic": ["model={kind='logistic'}", "training.epochs=8", "training.learning_rate=0.01"],
    },
    "physionet": {
        **{cell: [f"model.cell='{cell}'"] for cell in ("gru", "lstm", "elman")},
        "logistic": ["model={kind='logistic'}"],
    },
    "breast": {
        "run_file": [],
        "no_average": [
            "training={epochs=24, batch_size=64, learning_rate=0.001, weight_decay=0.05, warmup_epochs=2}",
        ],
        "slower": ["training.learning_rate=0.0005"],
        "scale_contrast": ["modality.augment.scale=0.1", "modality.augment.contrast=0.1"],
    },
}


def archive_of(name: str, work: Path, engine: Engine) -> str:
    """Where the data lie; PhysioNet's are converted to MEDS first."""
    if name == "splice":
        return str(DATA / "genomics" / "splice" / "splice.data")
    if name == "breast":
        return str(without_test(PROJECT / "medray" / "demos" / "data" / "breastmnist.npz", work / "breastmnist.npz"))
    out = work / "meds"
    changes = [f'archive="{DATA / "ehr" / "physionet2012"}"', f'out="{out}"', f'work="{work}"', "source.keep_ids=true"]
    run = runs.load(PROJECT / "jobs" / "runs" / "physionet_to_meds.toml", changes)
    assert isinstance(run, runs.ConvertRun)
    print(f"to-meds: {to_meds(run, engine).events:,} events", flush=True)
    return str(out)


def without_test(source: Path, out: Path) -> Path:
    """The training and validation images of a MedMNIST file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with np.load(source) as arrays:
        np.savez_compressed(out, **{name: arrays[name] for name in arrays.files if not name.startswith("test_")})
    return out


def one(
    name: str, model: str, fold: int, archive: str, arguments: argparse.Namespace, engine: Engine
) -> EvaluateResult:
    work = arguments.work.resolve() / name
    changes = [
        f'name="{name}-{model}-{fold}"',
        f'archive="{archive}"',
        f'bundle="{work / f"bundle-{model}-{arguments.seed}-{fold}"}"',
        f'work="{work / f"fold-{arguments.seed}-{fold}"}"',
        f"split={{by='hash', folds={arguments.folds}, fold={fold}, seed={arguments.seed}, fractions=[0.8, 0.1, 0.1]}}",
        f"training.seed={arguments.seed}",
        "objective.calibration='validation'",
        "evaluation.resamples=0",
        "floor=false",
        *MODELS[name][model],
    ]
    run = runs.load(PROJECT / "jobs" / "runs" / f"{name}_train.toml", changes)
    assert isinstance(run, runs.TrainRun)
    train(run, engine)
    return evaluate(run, engine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--folds", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("work/cross-validation"))
    arguments = parser.parse_args()
    arguments.folds = arguments.folds or {"splice": 10, "physionet": 5, "breast": 3}[arguments.name]
    engine = LocalEngine()
    archive = archive_of(arguments.name, arguments.work.resolve() / arguments.name, engine)
    for model in arguments.models or MODELS[arguments.name]:
        folds = [one(arguments.name, model, fold, archive, arguments, engine) for fold in range(arguments.folds)]
        print(f"{arguments.name} {model}: {summary(folds)}", flush=True)


def summary(folds: list[EvaluateResult]) -> str:
    """Mean and deviation over folds, and each class's error over all folds together."""
    found: list[str] = []
    for name in ("accuracy", "auroc", "auprc", "ece"):
        values = [fold.metrics[name] for fold in folds]
        found.append(f"{name} {mean(values):.4f} ± {stdev(values):.4f}")
    before: list[dict[str, Any]] = [fold.metrics["before_calibration"] for fold in folds]
    found.append(f"ece before calibration {mean(each['ece'] for each in before):.4f}")
    confusion = np.sum([fold.metrics["confusion_matrix"] for fold in folds], axis=0)
    errors = 100 * (1 - np.diag(confusion) / confusion.sum(axis=1))
    names = list(folds[0].metrics.get("per_class", {})) or ["negative", "positive"]
    found += [f"error of {name} {error:.1f} %" for name, error in zip(names, errors, strict=True)]
    return ", ".join([f"{int(confusion.sum())} tested", *found])


if __name__ == "__main__":
    main()
