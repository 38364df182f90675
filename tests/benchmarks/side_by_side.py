"""What the scoring benchmarks share: each system in a fresh process, its rate and memory, and equal scores.

    python tests/benchmarks/score_….py [--quick] [--rounds 3] [--only NAME …] [--processes 2] [--folder DIR] [--memory]

The systems run in turn, as often as `--rounds` says; of several rounds the medians are shown, and the least and greatest
ratio of a round: other work on the machine shows there. The first system is the reference: `fair`, the loop that someone
writes who measures. It keeps freed memory as medray does and reads no more than it needs; `naive` is the same work as
documentation shows it. Workers of Ray run at nice 15 by default, beside loops at 0: here all are at 0.
`steady` counts from when every process has finished a first piece of work until the last; `whole` includes start-up
and, for medray, the index; `beyond` is what a whole run takes longer than its units at the steady rate. `--memory` runs
medray alone on a tenth of the archive and on all of it: private memory
(resident less shared) of the driver and of every worker, added up ten times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np

if TYPE_CHECKING:
    from medray.config.runs import ScoreRun

BEGUN = time.time()


class Clock:
    """Events (seconds since the epoch, units finished)."""

    def __init__(self) -> None:
        self.events: list[tuple[float, int]] = []

    def done(self, units: int, at: float | None = None) -> None:
        self.events.append((time.time() if at is None else at, units))

    def rates(self, processes: int) -> dict[str, float]:
        """Of the first events, one a process is left out: work that began before the clock did."""
        events = sorted(self.events)
        total = sum(n for _, n in events)
        early, last = events[:processes], events[-1][0]
        steady = (total - sum(n for _, n in early)) / max(last - early[-1][0], 1e-9)
        return {"units": total, "steady": steady, "whole": total / (last - BEGUN)}


System = Callable[[Path, str, Path, int, Clock], None]
"""(folder of the data, bundle, folder for results, processes, clock)"""


@dataclass(frozen=True)
class Benchmark:
    unit: str
    count: int
    quick: int
    make: Callable[[Path, int], None]
    """Data of so many units in a folder, with a bundle in `bundle` below it."""
    systems: dict[str, System]
    """The first is the reference."""
    scores: Callable[[str, Path, Path], np.ndarray]
    """(system, its results, folder of the data) to scores in an order that is the same for all systems."""


# --- systems --------------------------------------------------------------------------------------------------


def in_processes(worker: Callable[..., None], parts: Iterable[tuple[Any, ...]], total: int, clock: Clock) -> None:
    """Run worker(*part, queue) in a process each, which puts (seconds, units) for what it has finished."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=worker, args=(*part, queue)) for part in parts]
    for each in workers:
        each.start()
    while total:
        try:
            at, units = queue.get(timeout=5)
        except Empty:
            if any(each.exitcode for each in workers) or not any(each.is_alive() for each in workers):
                for each in workers:
                    each.terminate()
                raise SystemExit("a process of the hand-written loop has failed") from None
            continue
        clock.done(units, at)
        total -= units
    for each in workers:
        each.join()


class _Watch:
    def __init__(self, clock: Clock, each: int) -> None:
        self.clock, self.each, self.name = clock, each, ""

    def begin(self, name: str, total: int) -> None:
        self.name = name
        print(f"  medray: {name} of {total} began after {time.time() - BEGUN:.1f} s", file=sys.stderr)

    def advance(self, done: int, failed: int) -> None:
        if self.name == "score":
            self.clock.done(done * self.each)

    def training(self, live: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def about(self, **facts: str) -> None: ...

    def fact(self, event: str, level: str = "info", **facts: Any) -> None: ...


def score_with_medray(
    archive: Path,
    bundle: str,
    out: Path,
    processes: int,
    clock: Clock,
    each: int = 1,
    backend: Literal["torch", "onnx"] = "torch",
    **settings: Any,
) -> ScoreRun:
    """The score flow on a Ray of this machine; an entry is `each` units."""
    from medray.config.runs import ScoreRun
    from medray.engines.opening import open_engine
    from medray.engines.spec import RaySpec
    from medray.verbs.score import score

    places = {"archive": str(archive), "bundle": bundle, "store": str(out / "store"), "work": str(out / "work")}
    run = ScoreRun(name="benchmark", **places, **settings, engine=RaySpec(workers=processes, backend=backend))
    engine = open_engine(run.engine, run.name)
    result = score(run, engine, _Watch(clock, each))
    assert result.failed == 0 and result.scored == result.entries, result
    engine.close()
    return run


def keep_memory() -> None:
    """glibc's settings of medray's workers, for the loops that it is held against."""
    from medray.engines.memory import keep_freed_memory

    keep_freed_memory()


def save_bundle(uri: Path, seed: int = 0, **recipe: Any) -> None:
    """A network with seeded weights: no training is needed to measure scoring."""
    import torch

    from medray.learning import bundles
    from medray.learning.objectives import BinaryObjective
    from medray.learning.recipe import Recipe, versions
    from medray.modalities.registry import open_modality

    torch.manual_seed(seed)
    network = recipe["model"].build(open_modality(recipe["modality"]).inputs(), 1)
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    whole = Recipe(
        name="benchmark",
        objective=BinaryObjective(),
        classes=("a", "b"),
        thresholds=(0.5,),
        outputs=("b",),
        data={},
        training={},
        metrics={},
        versions=versions(),
        created="2026-01-01T00:00:00+00:00",
        **recipe,
    )
    bundles.save(bundles.make_bundle(whole, weights), str(uri))


# --- runs -----------------------------------------------------------------------------------------------------


def main(benchmark: Benchmark, script: str, doc: str) -> None:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{benchmark.unit}", type=int, default=benchmark.count, dest="count")
    parser.add_argument("--quick", action="store_true", help=f"{benchmark.quick:,} {benchmark.unit}: does it run")
    parser.add_argument("--memory", action="store_true", help="of medray, on a tenth and on all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=benchmark.systems, default=list(benchmark.systems))
    parser.add_argument("--folder", type=Path, help="where data are made and kept; default: a temporary folder")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        system, data, out = arguments.child
        clock = Clock()
        benchmark.systems[system](Path(data), f"{data}/bundle", Path(out), arguments.processes, clock)
        print(json.dumps(clock.rates(arguments.processes)))
        return
    count = benchmark.quick if arguments.quick else arguments.count
    with tempfile.TemporaryDirectory(prefix="medray-benchmark-") as scratch:
        folder = arguments.folder or Path(scratch)

        def command(system: str, count: int) -> tuple[list[str], Path, Path]:
            data = folder / f"{benchmark.unit}-{count}"
            if not data.exists():
                print(f"making {count:,} {benchmark.unit} …", file=sys.stderr)
                benchmark.make(data, count)
            out = Path(tempfile.mkdtemp(prefix=f"{system}-", dir=scratch))
            words = [sys.executable, script, "--processes", str(arguments.processes), "--child"]
            return [*words, system, str(data), str(out)], out, data

        if arguments.memory:
            _show_memory({n: peak_memory(command("medray", n)[0])[0] for n in (count // 10, count)}, benchmark.unit)
            return
        found: dict[str, list[dict[str, float]]] = {system: [] for system in arguments.only}
        scores = {}
        for system in arguments.only * arguments.rounds:
            words, out, data = command(system, count)
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            found[system].append(json.loads(done.stdout.strip().splitlines()[-1]))
            scores[system] = benchmark.scores(system, out, data)
    _show(found, scores, benchmark.unit)


def _show(found: dict[str, list[dict[str, float]]], scores: dict[str, np.ndarray], unit: str) -> None:
    reference = scores[next(iter(scores))]
    heads = (
        f"{'system':<12}",
        f"{unit:>9}",
        f"{'steady/s':>9}",
        f"{'of a round':>15}",
        f"{'whole/s':>9}",
        f"{'beyond s':>9}",
    )
    print(*heads, f"{'medray ÷ it, steady':>20}", f"{'of a round':>12}", f"{'difference':>11}")
    for system, rounds in found.items():
        units, steady, whole = (median(each[name] for each in rounds) for name in ("units", "steady", "whole"))
        ours = [each["steady"] for each in found.get("medray", [])] or [float("nan")] * len(rounds)
        ratios = [our / each["steady"] for our, each in zip(ours, rounds, strict=True)]
        difference = float(np.abs(scores[system] - reference).max())
        beyond = median(units / each["whole"] - units / each["steady"] for each in rounds)
        spread = f"{min(each['steady'] for each in rounds):.0f}-{max(each['steady'] for each in rounds):.0f}"
        print(
            f"{system:<12} {units:>9.0f} {steady:>9.1f} {spread:>15} {whole:>9.1f} {beyond:>9.1f}"
            f" {median(ours) / steady:>20.2f} {f'{min(ratios):.2f}-{max(ratios):.2f}':>12} {difference:>11.2g}"
        )


# --- memory ---------------------------------------------------------------------------------------------------


def peak_memory(words: list[str]) -> tuple[dict[str, int], str]:
    """({driver, workers, all: most private bytes}, standard output) of a command. Raises SystemExit where it fails."""
    with tempfile.TemporaryFile("w+") as told:
        child = subprocess.Popen(words, stdout=told, stderr=subprocess.DEVNULL, start_new_session=True)
        most = {"driver": 0, "workers": 0, "all": 0}
        while child.poll() is None:
            now = _private_bytes(child.pid)
            now["all"] = now["driver"] + now["workers"]
            most = {name: max(most[name], now[name]) for name in most}
            time.sleep(0.1)
        if child.returncode:
            raise SystemExit(f"{words} ended with code {child.returncode}")
        told.seek(0)
        return most, told.read()


def _private_bytes(session: int) -> dict[str, int]:
    """{driver or workers: bytes} of the processes of a session; Ray's own daemons are left out."""
    found = {"driver": 0, "workers": 0}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getsid(int(entry.name)) != session:
                continue
            title = (entry / "cmdline").read_bytes()
            status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
        except (OSError, ProcessLookupError):
            continue  # it has just ended
        works = title.startswith(b"ray::MapWorker") or b"medray.engines.ray.child" in title
        kind = "workers" if works else "driver" if int(entry.name) == session else None
        if kind and "VmRSS" in status:
            found[kind] += 1024 * (int(status["VmRSS"].split()[0]) - int(status["RssShmem"].split()[0]))
    return found


def _show_memory(found: dict[int, dict[str, int]], unit: str) -> None:
    few, many = found.values()
    print(f"{unit:>9} {'driver MB':>10} {'workers MB':>10} {'all MB':>8}")
    for count, most in found.items():
        print(f"{count:>9} {most['driver'] / 1e6:>10.0f} {most['workers'] / 1e6:>10.0f} {most['all'] / 1e6:>8.0f}")
    print(f"ten times the {unit}: {many['all'] / few['all']:.2f} times the memory")
