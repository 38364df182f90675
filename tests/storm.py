"""A storm: drivers that are started again and again, what kills them and their workers, and a reader that polls meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import toy
from deltalake import DeltaTable

DRIVER = Path(__file__).with_name("storm_driver.py")


class Reader(threading.Thread):
    """Reads the whole table again and again, as one without medray does, and notes what must never be."""

    def __init__(self, store: str, pause: float = 0.2) -> None:
        super().__init__(daemon=True)
        self.store, self.pause, self.done = store, pause, threading.Event()
        self.polls, self.seen, self.faults = 0, 0, Counter[str]()

    def run(self) -> None:
        while not self.done.wait(self.pause):
            if DeltaTable.is_deltatable(self.store):
                self.poll()

    def poll(self) -> None:
        with suppress(FileNotFoundError):  # a vacuum between opening and reading: a reader opens again
            found = DeltaTable(self.store).to_pyarrow_table(columns=["entry_id", "output", "artefact"])
            paths = found.column("artefact").drop_null().to_pylist()
            self.faults["missing"] += sum(not Path(self.store, path).exists() for path in paths)
            entries = len(found.group_by(["entry_id", "output"]).aggregate([]))
            self.faults["duplicates"] += len(found) - entries
            self.faults["lost"] += max(0, self.seen - entries)
            self.seen, self.polls = entries, self.polls + 1

    def stop(self) -> None:
        self.done.set()
        self.join()


class Storm:
    """A supervisor that starts the driver again whenever it ends, and kills what it is told to, until all is scored."""

    def __init__(self, folder: Path, run: Any, *, seconds: float, shard: int, seed: int, masks: bool = False) -> None:
        self.folder, self.store, self.random = folder, str(folder / "scores"), random.Random(seed)
        self.run_file = toy.write_run_file(folder / "score.toml", run)
        (folder / "pids").mkdir()
        self.command = [
            "score",
            str(self.run_file),
            str(folder / "pids"),
            str(seconds),
            str(shard),
            *(["masks"] if masks else []),
        ]
        self.kills, self.exits, self.starts = Counter[str](), Counter[int](), 0
        self.driver: subprocess.Popen[str] | None = None
        self.result: dict[str, Any] | None = None

    def start(self) -> subprocess.Popen[str]:
        self.starts += 1
        log = open(self.folder / f"driver-{self.starts}.log", "w")  # noqa: SIM115
        with log:
            return subprocess.Popen(
                [sys.executable, str(DRIVER), *self.command], stdout=subprocess.PIPE, stderr=log, text=True
            )

    def tend(self) -> bool:
        """Start the driver where none runs; True when one has ended with nothing left to do."""
        if self.driver is None:
            self.driver = self.start()
        elif self.driver.poll() is not None:
            told = self.driver.communicate()[0]
            self.exits[self.driver.returncode] += 1
            self.driver = None
            found = [
                line for line in told.splitlines() if line.startswith("{")
            ]  # Ray may print about lost nodes after it
            if found and self.exits[0]:
                self.result = json.loads(found[-1])
                return True
        return False

    def kill_driver(self) -> bool:
        if self.driver is None:
            return False
        self.driver.kill()
        self.driver.communicate()
        self.driver = None
        return True

    def kill_actor(self) -> bool:
        alive = [path for path in (self.folder / "pids").iterdir() if Path("/proc", path.name).exists()]
        if not alive:
            return False
        with suppress(ProcessLookupError):
            os.kill(int(self.random.choice(alive).name), signal.SIGKILL)
        return True

    def kill_upkeep(self) -> bool:
        """Compacts and vacuums for some seconds, and is killed; False where it was done before."""
        if not DeltaTable.is_deltatable(self.store):
            return False
        work = subprocess.Popen([sys.executable, str(DRIVER), "upkeep", self.store], stderr=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            work.wait(self.random.uniform(1.0, 5.0))
        work.kill()
        return work.wait() == -signal.SIGKILL

    def rage(self, killers: dict[str, Callable[[], bool]], weights: list[float], pause: float, kills: int) -> None:
        """Kill at random about every `pause` seconds, but begin only when scores come in; `kills` in all."""
        waited, scored_before = time.monotonic() + pause, 0
        while not self.tend():
            time.sleep(0.1)
            if time.monotonic() < waited or sum(self.kills.values()) >= kills:
                continue
            if not scored_before and not list((self.folder / "pids").iterdir()):
                continue
            scored_before = 1
            (name,) = self.random.choices(list(killers), weights)
            if killers[name]():
                self.kills[name] += 1
                waited = time.monotonic() + pause * self.random.uniform(0.5, 1.5)
