"""How long `medray` takes before it answers: `import medray`, --help and refusals of wrong run files, by hand.

    python tests/benchmarks/start_up.py [ROUNDS]

Each round starts every command once, one after the other, so that a busy machine slows all of them alike. Printed are
medians of the wall clock and of the processor's time, and how many times that of `import typer, pydantic` they are;
CONTRIBUTING.md says what they have to stay below. The last column of `import medray` is its own time, without Python's.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PYTHON = sys.executable
MEDRAY = [PYTHON, "-m", "medray.cli"]
GOOD = """\
name = "start"
archive = "archive"
bundle = "bundle"
[modality]
kind = "imaging"
size = [28, 28]
[model]
kind = "cnn"
[objective]
kind = "binary"
"""
WRONG = {
    "unknown key": GOOD.replace("size", "sise"),
    "wrong type": GOOD.replace("[28, 28]", '"small"'),
    "missing archive": GOOD.replace('"archive"', '"nowhere"'),
    "no TOML": GOOD.replace("=", "= =", 1),
}
LIMIT = 1.5
"""Times the bare import."""


def commands(folder: Path) -> dict[str, list[str]]:
    made = {
        "bare: import typer, pydantic": [PYTHON, "-c", "import typer, pydantic"],
        "python": [PYTHON, "-c", "pass"],
        "import medray": [PYTHON, "-c", "import medray"],
        "medray --help": [*MEDRAY, "--help"],
        "missing file": [*MEDRAY, "train", "nothing.toml"],
    }
    for name, text in WRONG.items():
        file = folder / f"{name.replace(' ', '_')}.toml"
        file.write_text(text)
        made[name] = [*MEDRAY, "train", str(file)]
    return made


def seconds(command: list[str], folder: Path) -> tuple[float, float]:
    """(wall clock, processor) of one start."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 2):
        raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr.decode()}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "archive").mkdir()
        (folder / "good.toml").write_text(GOOD)
        subprocess.run(
            [*MEDRAY, "train", "good.toml"], cwd=folder, capture_output=True, check=False
        )  # makes the outline
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands(folder)}
        for _ in range(rounds):
            for name, command in commands(folder).items():
                measured[name].append(seconds(command, folder))
    middle = {name: tuple(map(statistics.median, zip(*times, strict=True))) for name, times in measured.items()}
    bare, empty = middle["bare: import typer, pydantic"], middle["python"]
    print(f"{'':30} {'wall':>8} {'times':>6} {'cpu':>8} {'times':>6}   of {rounds} rounds")
    for name, (wall, used) in middle.items():
        over = "" if name == "python" or used <= LIMIT * bare[1] else f"  above {LIMIT}"
        own = f"  {1000 * max(0.0, wall - empty[0]):.1f} ms beside Python's" if name == "import medray" else ""
        print(f"{name:30} {wall:7.3f}s {wall / bare[0]:6.2f} {used:7.3f}s {used / bare[1]:6.2f}{over}{own}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
