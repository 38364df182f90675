"""What a small night costs beside `import torch`: one new entry among a thousand, and nothing new, by the command line.

    python tests/benchmarks/small_night.py [--rounds 5] [--entries 1000]

An archive of small DICOM files is scored; then, in each round, one file is added and `medray score` runs, on engine local
and on engine ray, each with a store of its own, and both run again with nothing new. Shown are medians of wall clock and
processor time with the least and the most, beside `python -c "import torch"` of the same round.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

RUN = """\
name = "night"
archive = "archive"
bundle = "bundle"
store = "store-{kind}"
work = "work-{kind}"
[engine]
kind = "{kind}"
"""


def seconds(command: list[str], folder: Path) -> tuple[float, float]:
    """(wall clock, processor) of one command, with those that it started. Raises SystemExit where it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr.decode()}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prepare(folder: Path, entries: int) -> None:
    """An archive, a bundle, two run files, and two stores that have every entry."""
    import side_by_side

    from medray.learning.models.cnn import CnnSpec
    from medray.modalities.imaging.spec import ImagingSpec

    (folder / "archive").mkdir()
    for number in range(entries):
        add(folder, number)
    spec = ImagingSpec(size=(16, 16), mean=(128.0,), std=(64.0,))
    side_by_side.save_bundle(folder / "bundle", modality=spec, model=CnnSpec(channels=(8, 16), dense=16))
    for kind in ("local", "ray"):
        (folder / f"{kind}.toml").write_text(RUN.format(kind=kind))
        seconds(score(kind), folder)


def add(folder: Path, number: int) -> None:
    import toy

    toy.write_image(folder / "archive" / f"image_{number:06d}.dcm", number, number % 2)


def score(kind: str) -> list[str]:
    return [sys.executable, "-m", "medray.cli", "score", f"{kind}.toml"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--entries", type=int, default=1000)
    options = parser.parse_args()
    bare = [sys.executable, "-c", "import torch"]
    with tempfile.TemporaryDirectory(prefix="small-night-") as name:
        folder = Path(name)
        prepare(folder, options.entries)
        measured: dict[str, list[tuple[float, float]]] = {}
        for number in range(options.rounds):
            add(folder, options.entries + number)
            measured.setdefault("import torch", []).append(seconds(bare, folder))
            for what in ("one new", "nothing new"):
                for kind in ("local", "ray"):
                    measured.setdefault(f"{what}, {kind}", []).append(seconds(score(kind), folder))
    torch_wall, torch_used = (median(each) for each in zip(*measured["import torch"], strict=True))
    print(
        f"{'':20} {'wall, s':>8} {'least':>6} {'most':>6} {'times':>6} {'cpu, s':>8} {'times':>6}   of {options.rounds} rounds"
    )
    for name, times in measured.items():
        walls, used = zip(*times, strict=True)
        wall, cpu = median(walls), median(used)
        print(
            f"{name:20} {wall:8.2f} {min(walls):6.2f} {max(walls):6.2f} {wall / torch_wall:6.2f} {cpu:8.2f} {cpu / torch_used:6.2f}"
        )


if __name__ == "__main__":
    main()
