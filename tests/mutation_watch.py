"""Watches over mutation_child.py: files are scanned, read and inspected in processes that this one ends when they hang.

    python tests/mutation_watch.py COUNT SEED [FIRST]

runs so many mutations, prints each fault as it is met, and at the end the figures by format.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mutation_child
from mutation_seeds import all_seeds

CHILD = Path(mutation_child.__file__)
CPU_SECONDS, WALL_SECONDS = 5.0, 120.0
"""A file that takes more CPU hangs; one that waits for so long does, too."""
MEGABYTES = 1024
TICKS = os.sysconf("SC_CLK_TCK")


class Watched:
    """Every mutation from `first` to `stop`, in children that are started anew after one that ends."""

    def __init__(self, first: int, stop: int, seed: int) -> None:
        self.told: list[dict[str, Any]] = []
        at = first
        while at < stop:
            at = self._run(at, stop, seed)

    def _run(self, first: int, stop: int, seed: int) -> int:
        """Number of the next mutation to do."""
        words = [sys.executable, str(CHILD), str(first), str(stop), str(seed)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=CHILD.parent) as child:
            assert child.stdout is not None
            handle, held, current = child.stdout.fileno(), b"", first
            began, cpu = time.monotonic(), 0.0
            starting = True
            while True:
                ready, _, _ = select.select([handle], [], [], 0.2)
                if ready:
                    piece = os.read(handle, 1 << 16)
                    if not piece:
                        break
                    *lines, held = (held + piece).split(b"\n")
                    for line in lines:
                        if line.startswith(b"begin "):
                            current, starting = int(line.split()[1]), False
                        else:
                            self.told.append(json.loads(line))
                    began, cpu = time.monotonic(), _cpu(child.pid)
                elif not starting and (_cpu(child.pid) - cpu > CPU_SECONDS or time.monotonic() - began > WALL_SECONDS):
                    child.send_signal(signal.SIGKILL)
                    child.wait()
                    self._lost(current, "a hang")
                    return current + 1
            if child.wait() == 0:
                return stop
            self._lost(current, f"the process ended with {child.returncode}")
            return current + 1

    def _lost(self, number: int, fault: str) -> None:
        names = sorted(all_seeds())
        self.told.append({"number": number, "seed": names[number % len(names)], "fault": fault, "cpu": 0.0, "mb": 0})

    def faults(self) -> list[dict[str, Any]]:
        """What must not be: a raise, a crash, a hang, 5 s or 1 GB."""
        return [each for each in self.told if "fault" in each or each["cpu"] > CPU_SECONDS or each["mb"] > MEGABYTES]


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has taken; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def told_shortly(faults: list[dict[str, Any]]) -> str:
    return "\n".join(f"{each['number']} {each['seed']}: {each.get('fault') or each}" for each in faults[:20])


def figures(told: list[dict[str, Any]]) -> str:
    """How many files ended how, in all and by format; the slowest and the largest."""
    outcomes = Counter(outcome for each in told for outcome in each.get("reasons", ["fault"]))
    by_format = Counter(each["seed"] for each in told)
    slowest, largest = (max(told, key=lambda each: each[key]) for key in ("cpu", "mb"))
    lines = [f"{len(told)} files of {len(by_format)} formats, {min(by_format.values())} of each at least"]
    lines += [f"{count:7} {outcome or 'good'}" for outcome, count in outcomes.most_common()]
    lines.append(f"slowest {slowest['cpu']} s: {slowest['number']} {slowest['seed']}")
    lines.append(f"largest {largest['mb']} MB: {largest['number']} {largest['seed']}")
    return "\n".join(lines)


def main(count: int, seed: int, first: int = 0) -> int:
    told: list[dict[str, Any]] = []
    faults = 0
    for start in range(first, first + count, 1000):
        watched = Watched(start, min(start + 1000, first + count), seed)
        told += watched.told
        faults += len(watched.faults())
        for fault in watched.faults():
            print(json.dumps(fault), flush=True)
        print(f"{len(told)} done, {faults} faults", file=sys.stderr, flush=True)
    print(figures(told))
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4])))
