"""Data-parallel training of the small CNN: medray on Ray Train beside bare torchrun DDP loops on the same arrays.

    python tests/benchmarks/train_images.py [--samples 20000] [--epochs 3] [--processes 2] [--rounds 3]

All use the same model, batch size, optimiser, memory layout and one thread per process. The bare loops hold the
decoded arrays in memory and do nothing but index, forward, backward and step; `fair` keeps freed memory as medray does,
`naive` gives it back after every step. medray reads its shards, logs, validates and keeps checkpoints. `loop` counts
training time alone, `whole` includes start-up and all else; medians of the rounds, in which the systems take turns, and
the least and greatest of a round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np

BATCH = 128
BEGUN = time.time()


def make_data(path: Path, samples: int) -> None:
    """An .npz in MedMNIST's layout, 28 x 28, ten classes that can be learnt."""
    random = np.random.default_rng(0)
    prototypes = random.integers(0, 200, (10, 28, 28))

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = random.integers(0, 10, count)
        images = prototypes[labels] + random.integers(0, 56, (count, 28, 28))
        return images.astype(np.uint8), labels.astype(np.uint8)[:, None]

    arrays = {}
    for name, count in (("train", samples), ("val", 256), ("test", 256)):
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = draw(count)
    np.savez(path, **arrays)


def bare(path: Path, epochs: int, *, is_fair: bool) -> None:
    """Run by torchrun on every process."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from medray.learning.models.cnn import CnnSpec
    from medray.modalities.inputs import Input

    if is_fair:
        from medray.engines.memory import keep_freed_memory

        keep_freed_memory(heaps=True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    arrays = np.load(path)
    images = torch.from_numpy(arrays["train_images"]).unsqueeze(1)
    labels = torch.from_numpy(arrays["train_labels"][:, 0].astype(np.int64))
    torch.manual_seed(0)
    network = CnnSpec().build({"pixels": Input((1, 28, 28))}, 10).to(memory_format=torch.channels_last)
    parallel = DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    steps = -(-len(images) // BATCH)
    started = 0.0
    for epoch in range(epochs + 1):  # the first epoch warms up
        if epoch == 1:
            started = time.time()
        order = torch.from_numpy(np.random.default_rng([0, epoch]).permutation(len(images)))
        for batch in np.array_split(order.numpy(), steps):
            mine = torch.from_numpy(np.array_split(batch, world)[rank])
            x = (images[mine].float() / 255 - 0.5) / 0.3
            logits = parallel(pixels=x.contiguous(memory_format=torch.channels_last))
            loss = torch.nn.functional.cross_entropy(logits, labels[mine])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    seconds = time.time() - started
    if rank == 0:
        rate = len(images) * epochs / seconds
        print(json.dumps({"loop": rate, "whole": len(images) * (epochs + 1) / (time.time() - BEGUN)}), flush=True)
    dist.barrier()
    os._exit(0)  # tearing gloo down aborts now and then


def ours(path: Path, epochs: int, processes: int, work: Path) -> None:
    from medray.config.runs import TrainRun
    from medray.engines.opening import open_engine
    from medray.verbs.train import train

    run = TrainRun.model_validate(
        {
            "name": "benchmark",
            "archive": str(path),
            "bundle": str(work / "bundle"),
            "work": str(work),
            "engine": {"kind": "ray", "workers": processes},
            "modality": {"kind": "imaging", "size": [28, 28], "dtype": "uint8"},
            "model": {"kind": "cnn"},
            "objective": {"kind": "multiclass"},
            "floor": False,
            "training": {"epochs": epochs + 1, "batch_size": BATCH, "schedule": "constant"},
        }
    )
    engine = open_engine(run.engine, run.name)
    result = train(run, engine)
    engine.close()
    import pyarrow.csv

    rows = pyarrow.csv.read_csv(result.history).to_pylist()[1:]
    rate = sum(r["samples_per_second"] * r["seconds"] for r in rows) / sum(r["seconds"] for r in rows)
    samples = len(np.load(path)["train_images"])
    print(json.dumps({"loop": rate, "whole": samples * (epochs + 1) / (time.time() - BEGUN)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        system, path = arguments.child
        if system != "medray":
            bare(Path(path), arguments.epochs, is_fair=system == "fair")
        else:
            with tempfile.TemporaryDirectory() as work:
                ours(Path(path), arguments.epochs, arguments.processes, Path(work))
        return
    with tempfile.TemporaryDirectory(prefix="medray-benchmark-") as scratch:
        path = Path(scratch) / "digits.npz"
        make_data(path, arguments.samples)
        tail = [__file__, "--epochs", str(arguments.epochs), "--processes", str(arguments.processes), "--child"]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arguments.processes}"]
        found: dict[str, list[dict[str, float]]] = {"fair": [], "naive": [], "medray": []}
        for _ in range(arguments.rounds):
            for system in found:
                launcher = [] if system == "medray" else torchrun
                command = [sys.executable, *launcher, *tail, system, str(path)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[system].append(json.loads(done.stdout.strip().splitlines()[-1]))
    print(f"{'system':<8} {'loop, samples/s':>16} {'whole, samples/s':>17} {'medray ÷ it':>12} {'of a round':>12}")
    rates = [run["loop"] for run in found["medray"]]
    for system, runs in found.items():
        loop, whole = (median(run[name] for run in runs) for name in ("loop", "whole"))
        ratios = [our / run["loop"] for our, run in zip(rates, runs, strict=True)]
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(f"{system:<8} {loop:>16.0f} {whole:>17.0f} {median(rates) / loop:>12.3f} {spread:>12}")


if __name__ == "__main__":
    main()
