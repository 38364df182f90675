"""Results on public data, by the run files of jobs/runs: train, choose on validation, report test once per seed.

    python tests/benchmarks/reference_results.py mnist breast adrenal [--seeds 0 1 2] [--workers 2 | --local]
        [--data ../shared/data/imaging] [--work work/reference]

A finished training is not repeated, and a killed one goes on: the script can be run again.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

from medray.config import runs
from medray.engines.opening import open_engine
from medray.engines.spec import LocalSpec, RaySpec
from medray.verbs.evaluate import evaluate
from medray.verbs.train import train

PROJECT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MEDRAY_TEST_DATA") or PROJECT.parent / "shared" / "data") / "imaging"
ARCHIVES = {"mnist": "mnist", "breast": "medmnist/breastmnist.npz", "adrenal": "medmnist/adrenalmnist3d.npz"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=ARCHIVES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--local", action="store_true", help="engine local: this process")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, default=Path("work/reference"))
    arguments = parser.parse_args()
    engine = open_engine(LocalSpec() if arguments.local else RaySpec(workers=arguments.workers))
    where = "local" if arguments.local else f"ray{arguments.workers}"
    try:
        for name in arguments.names:
            rows = [one(name, seed, where, arguments, engine) for seed in arguments.seeds]
            auc, accuracy = ([row[i] for row in rows] for i in (0, 1))
            mean = f"AUC {statistics.mean(auc):.4f}, accuracy {statistics.mean(accuracy):.4f}"
            print(f"{name:<8} {where:<6} mean of {len(rows)} seeds: {mean}", flush=True)
    finally:
        engine.close()


def one(name: str, seed: int, where: str, arguments: argparse.Namespace, engine) -> tuple[float, float]:
    """(AUC, accuracy) on test of one seed."""
    work = arguments.work.resolve() / name
    changes = [
        f'name="{name}-{where}-{seed}"',
        f'archive="{arguments.data / ARCHIVES[name]}"',
        f'bundle="{work / f"bundle-{where}-{seed}"}"',
        f'work="{work}"',
        f"training.seed={seed}",
    ]
    run = runs.load(PROJECT / "jobs" / "runs" / f"{name}_train.toml", changes)
    assert isinstance(run, runs.TrainRun)
    trained = train(run, engine)
    tested = evaluate(run, engine)
    auc, accuracy = tested.metrics["auroc"], tested.metrics["accuracy"]
    print(
        f"{name:<8} {where:<6} seed {seed}: test AUC {auc:.4f} {interval(tested.intervals.get('auroc'))} "
        f"accuracy {accuracy:.4f} {interval(tested.intervals.get('accuracy'))} n {tested.n} "
        f"best epoch {trained.best_epoch} of {trained.epochs}, {trained.seconds:.0f} s",
        flush=True,
    )
    return auc, accuracy


def interval(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"[{pair[0]:.3f}, {pair[1]:.3f}]"


if __name__ == "__main__":
    main()
