"""How long a training takes until its first epoch is done: on Ray with two workers beside `--local`, command start included.

    python tests/benchmarks/first_epoch.py [--rounds 5] [--model cnn] [--floor]

BreastMNIST as it ships with medray: 546 images of 28 x 28, prepared anew by every run. The two sides run in turn, each in a
fresh process. `first epoch` is when a person sees its line, from the start of the command; `whole` is when the command ends;
`processor` is the time of all processes that it started, Ray's own among them. Medians of the rounds; the ratios are of the
two runs of a round, with the least and the greatest. Workers of Ray run at nice 15 by default, beside a local run at 0: here all
are at 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from statistics import median

BEGUN = time.time()
os.environ.setdefault("RAY_worker_niceness", "0")


def child(engine: str, model: str, folder: Path, *, floor: bool) -> None:
    """One training, as `medray train` has it; prints when the first epoch was shown."""
    from medray.config.runs import TrainRun
    from medray.engines.opening import open_engine
    from medray.progress import Live, Silent
    from medray.verbs.train import train

    class Watch(Silent):
        shown = 0.0

        def training(self, live: Live) -> None:
            if live["history"] and not self.shown:
                self.shown = time.time()

    run = TrainRun.model_validate(
        {
            "name": "first",
            "archive": str(files("medray.demos") / "data" / "breastmnist.npz"),
            "bundle": str(folder / "bundle"),
            "work": str(folder / "work"),
            "engine": {"kind": "local"} if engine == "local" else {"kind": "ray", "workers": 2},
            "modality": {"kind": "imaging", "size": [28, 28], "dtype": "uint8"},
            "model": {"kind": model},
            "objective": {"kind": "binary"},
            "floor": floor,
            "training": {"epochs": 1, "batch_size": 64},
        }
    )
    opened, watch = open_engine(run.engine, run.name), Watch()
    try:
        train(run, opened, watch)
    finally:
        opened.close()
    print(json.dumps({"first epoch": watch.shown - BEGUN, "whole": time.time() - BEGUN}))


def measured(engine: str, model: str, *, floor: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="medray-benchmark-") as scratch:
        command = [sys.executable, __file__, "--model", model, "--child", engine, scratch]
        process = subprocess.Popen(
            [*command, *(["--floor"] if floor else [])], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        used: dict[int, float] = {}
        while process.poll() is None:
            used |= _processor_seconds(process.pid)
            time.sleep(0.1)
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"the training ended with code {process.returncode}")
    return json.loads(printed.strip().splitlines()[-1]) | {"processor": sum(used.values())}


def _processor_seconds(session: int) -> dict[int, float]:
    """Processor's time of each living process of a session; Ray's own daemons are among them."""
    found: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ProcessLookupError):  # it has just ended
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                found[int(entry.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="cnn")
    parser.add_argument(
        "--floor",
        action="store_true",
        help="train the logistic model before it, as `medray train` does: `whole` has both",
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        engine, folder = arguments.child
        child(engine, arguments.model, Path(folder), floor=arguments.floor)
        return
    found: dict[str, list[dict[str, float]]] = {"local": [], "ray": []}
    for _ in range(arguments.rounds):
        for engine, runs in found.items():
            runs.append(measured(engine, arguments.model, floor=arguments.floor))
    print(f"{'':<12} {'local, s':>9} {'ray, s':>9} {'ray ÷ local':>12} {'of a round':>12}")
    for name in ("first epoch", "whole", "processor"):
        local, ray = ([run[name] for run in runs] for runs in found.values())
        ratios = [b / a for a, b in zip(local, ray, strict=True)]
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(f"{name:<12} {median(local):>9.1f} {median(ray):>9.1f} {median(ratios):>12.2f} {spread:>12}")


if __name__ == "__main__":
    main()
