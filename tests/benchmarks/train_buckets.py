"""Training on records of very different lengths: like lengths together beside naive padding, in one run.

    python tests/benchmarks/train_buckets.py [--patients 2500] [--sigma 1.0] [--epochs 2] [--rounds 3] [--archive MEDS]

buckets  medray's training as it is: a batch holds samples of like length (medray/learning/batches.py)
naive    the same loop on the same shards with random batches, each padded to its own longest

Both run alone in a fresh process on one thread and take turns; the best round of each counts. The rate is that of the
epochs after the first, without validation. Patients are seeded: log-normal numbers of events (median 60, deviation of
the logarithm `--sigma`), 40 codes. `--archive` takes a MEDS dataset with labels/ instead, such as PhysioNet 2012 by
`medray ehr to-meds jobs/runs/physionet_to_meds.toml`. `steps` are those the network computes for one that is an event.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

BATCH = 64
HIDDEN = 64
MOST = 1024
"""Events of a patient that are kept, the latest."""
MEDIAN, CODES, DAYS = 60, 40, 365
MINUTE_US = 60_000_000


def make_archive(root: Path, patients: int, sigma: float) -> None:
    """A MEDS dataset of one year, the same for the same arguments; the label hangs on the mean of one code."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    counts = np.clip(np.exp(np.log(MEDIAN) + sigma * random.standard_normal(patients)), 1, 10 * MOST).astype(np.int64)
    subject = np.repeat(np.arange(patients) + 1, counts)
    code = np.minimum(random.geometric(0.08, len(subject)) - 1, CODES - 1)
    minute = random.integers(0, DAYS * 24 * 60, len(subject))
    ill = random.random(patients) < 0.3
    value = (random.standard_normal(len(subject)) + ill[subject - 1] * (code == 0)).astype(np.float32)
    order = np.lexsort((value, code, minute, subject))
    names = pa.array([f"LAB//{i:02}" for i in range(CODES)])
    columns = {
        "subject_id": subject[order],
        "time": pa.array(minute[order] * MINUTE_US, pa.timestamp("us")),
        "code": pa.DictionaryArray.from_arrays(code[order].astype(np.int32), names).cast(pa.string()),
        "numeric_value": value[order],
    }
    labels = {
        "subject_id": np.arange(patients) + 1,
        "prediction_time": pa.repeat(pa.scalar(DAYS * 24 * 60 * MINUTE_US, pa.timestamp("us")), patients),
        "boolean_value": ill,
    }
    for name, table in (("data/0000", columns), ("labels/ill", labels)):
        (root / name).parent.mkdir(parents=True)
        pq.write_table(pa.table(table), root / f"{name}.parquet")


def fit(system: str, archive: Path, work: Path, epochs: int) -> dict[str, float]:
    """Samples per second, computed steps per event, and the loss at the end."""
    import pyarrow.csv

    from medray.config.runs import TrainRun
    from medray.engines.local import LocalEngine
    from medray.learning import training
    from medray.learning.batches import cut_batches, epoch_order
    from medray.verbs.train import train

    lengths: list[list[np.ndarray]] = []
    found_lengths = training.Trainer._lengths

    def seen(self: training.Trainer) -> list[np.ndarray] | None:
        lengths.append(found_lengths(self) or [])
        return None if system == "naive" else lengths[-1]

    training.Trainer._lengths = seen  # the one difference between the two
    run = TrainRun.model_validate(
        {
            "name": "benchmark",
            "archive": str(archive),
            "bundle": str(work / f"bundle-{system}"),
            "work": str(work),
            "engine": {"kind": "local"},
            "modality": {
                "kind": "ehr",
                "representation": "events",
                "max_events": MOST,
                "task": {"labels": str(next((archive / "labels").iterdir()))},
            },
            "split": {"by": "hash", "fractions": [0.9, 0.05, 0.05]},
            "model": {"kind": "rnn", "cell": "gru", "hidden": HIDDEN},
            "objective": {"kind": "binary"},
            "floor": False,
            "training": {"epochs": epochs + 1, "batch_size": BATCH, "schedule": "constant", "clip_norm": 1.0},
        }
    )
    result = train(run, LocalEngine(), fresh=True)
    rows = pyarrow.csv.read_csv(result.history).to_pylist()[1:]
    rate = sum(row["samples_per_second"] * row["seconds"] for row in rows) / sum(row["seconds"] for row in rows)
    order = epoch_order([len(each) for each in lengths[0]], 0, 0)
    batches = cut_batches(order, -(-len(order) // BATCH), lengths[0] if system == "buckets" else None, 0, 0)
    longest = [(len(batch), max(lengths[0][shard][row] for shard, row in batch.tolist())) for batch in batches]
    steps = sum(rows * most for rows, most in longest) / sum(int(each.sum()) for each in lengths[0])
    return {"rate": rate, "steps": steps, "loss": rows[-1]["train_loss"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=2500)
    parser.add_argument("--sigma", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=2, help="measured ones, after one that warms up")
    parser.add_argument("--rounds", type=int, default=3, help="the two take turns; the best round of each counts")
    parser.add_argument("--archive", type=Path, help="a MEDS dataset instead of seeded patients")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        system, archive, work = arguments.child
        print(json.dumps(fit(system, Path(archive), Path(work), arguments.epochs)))
        return
    found: dict[str, list[dict[str, float]]] = {"naive": [], "buckets": []}
    with tempfile.TemporaryDirectory(prefix="medray-benchmark-") as scratch:
        archive = arguments.archive or Path(scratch) / "archive"
        if arguments.archive is None:
            make_archive(archive, arguments.patients, arguments.sigma)
        for number in range(arguments.rounds):
            for system in found:
                words = [sys.executable, __file__, "--epochs", str(arguments.epochs), "--child", system]
                words += [str(archive.resolve()), f"{scratch}/work"]
                done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
                found[system].append(json.loads(done.stdout.strip().splitlines()[-1]))
                print(f"round {number + 1}, {system}: {found[system][-1]['rate']:.1f} samples/s", file=sys.stderr)
    best = {system: max(rows, key=lambda row: row["rate"]) for system, rows in found.items()}
    print(f"{'system':<8} {'samples/s':>10} {'÷ naive':>8} {'steps an event':>15} {'training loss':>14}")
    for system, row in best.items():
        ratio = row["rate"] / best["naive"]["rate"]
        print(f"{system:<8} {row['rate']:>10.1f} {ratio:>8.2f} {row['steps']:>15.2f} {row['loss']:>14.4f}")


if __name__ == "__main__":
    main()
