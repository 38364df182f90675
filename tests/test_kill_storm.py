"""Whatever is killed, and whenever: every entry is scored once, and no reader ever sees anything else."""

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
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from deltalake import DeltaTable
from masks import png
from store_rows import rows
from store_rows import score as score_rows

from medray.learning import bundles
from medray.scores import ScoreStore, artefacts, upkeep
from medray.scores.table import OF_ARTEFACT

DRIVER = Path(__file__).with_name("storm_driver.py")


def write_archive(folder: Path, entries: int, files: int) -> None:
    """`entries` noisy images of 16 x 16 in `files` .npz files, and the toy bundle."""
    noise = np.random.default_rng(0)
    (folder / "archive").mkdir()
    for number in range(files):
        images = noise.integers(0, 255, (entries // files, toy.SIZE, toy.SIZE), dtype=np.uint8)
        np.savez(folder / "archive" / f"{number}.npz", train_images=images)
    bundles.save(toy.bundle(), str(folder / "bundle"))


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


def check(storm: Storm, reader: Reader, entries: int) -> None:
    reader.stop()
    reader.poll()
    table = DeltaTable(storm.store).to_pyarrow_table()
    assert len(table) == len(set(table.column("entry_id").to_pylist())) == entries
    assert set(table.column("status").to_pylist()) == {"scored"}
    assert reader.faults == Counter() or set(reader.faults.values()) == {0}, reader.faults


def check_masks(store: ScoreStore, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row has its mask, of what the entry holds; what killed workers left beside them a vacuum removes, and no more."""
    rows = DeltaTable(store.uri).to_pyarrow_table(columns=["entry_id", *OF_ARTEFACT]).to_pylist()
    images: dict[str, np.ndarray] = {}
    for row in rows:
        path, _, number = row["entry_id"].rpartition("#")
        if path not in images:
            images[path] = np.load(Path(store.uri).parent / "archive" / path)["train_images"]
        assert store.artefact(row) == png(images[path][int(number.removeprefix("train/"))])
    monkeypatch.setattr(upkeep, "LIVE", timedelta(0))
    store.vacuum(timedelta(0))
    assert sorted(artefacts.listed(store.uri).column("path").to_pylist()) == sorted(row["artefact"] for row in rows)
    assert len(rows) == entries


def test_kills_of_workers_and_drivers_lose_nothing_and_double_nothing(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    write_archive(tmp_path, entries := 1_500, files=3)
    address = ray.get_runtime_context().gcs_address
    engine = {"kind": "ray", "address": address, "workers": 2}
    run = toy.score_run(tmp_path, engine=engine, commit_seconds=0.3, batch_size=25)
    storm = Storm(tmp_path, run, seconds=0.6, shard=50, seed=1, masks=True)
    reader = Reader(str(tmp_path / "scores"))
    reader.start()
    storm.rage({"actor": storm.kill_actor, "driver": storm.kill_driver}, [3, 1], pause=1.0, kills=6)
    check(storm, reader, entries)
    assert sum(storm.kills.values()) == 6 and reader.polls > 10
    check_masks(ScoreStore.open(storm.store), entries, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_storm_of_kills_on_three_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 60 kills of actors, raylets, drivers and upkeep while 40,000 entries are scored and a reader polls."""
    from ray.cluster_utils import Cluster

    write_archive(tmp_path, entries := 40_000, files=8)
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    engine = {"kind": "ray", "address": cluster.address, "workers": 4}
    run = toy.score_run(tmp_path, engine=engine, commit_seconds=1, batch_size=50)
    storm, reader = Storm(tmp_path, run, seconds=3.0, shard=200, seed=2), Reader(str(tmp_path / "scores"))

    def kill_raylet() -> bool:
        number = storm.random.randrange(len(nodes))
        cluster.remove_node(nodes[number], allow_graceful=False)
        nodes[number] = cluster.add_node(num_cpus=2)
        return True

    def kill_upkeep() -> bool:
        if not DeltaTable.is_deltatable(storm.store):
            return False
        work = subprocess.Popen([sys.executable, str(DRIVER), "upkeep", storm.store], stderr=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            work.wait(storm.random.uniform(1.0, 5.0))
        work.kill()
        return work.wait() == -signal.SIGKILL

    killers = {
        "actor": storm.kill_actor,
        "raylet": kill_raylet,
        "driver": storm.kill_driver,
        "upkeep": kill_upkeep,
    }
    reader.start()
    began = time.monotonic()
    try:
        storm.rage(killers, [5, 2, 1, 1], pause=3.0, kills=75)
    finally:
        storm.kill_driver()
        cluster.shutdown()
    check(storm, reader, entries)
    ScoreStore.open(storm.store).compact()
    check(storm, reader, entries)
    figures = {"seconds": round(time.monotonic() - began), "polls": reader.polls, "starts": storm.starts}
    print(json.dumps(figures | {"kills": storm.kills, "exits": storm.exits}))
    assert sum(storm.kills.values()) - storm.kills["upkeep"] >= 60, storm.kills


def test_a_driver_that_was_stopped_and_overtaken_is_fenced_when_it_goes_on(tmp_path: Path) -> None:
    write_archive(tmp_path, entries := 600, files=1)
    run = toy.score_run(tmp_path, commit_seconds=0.2, batch_size=10)
    storm, reader = Storm(tmp_path, run, seconds=0.4, shard=20, seed=3), Reader(str(tmp_path / "scores"), pause=0.05)
    reader.start()
    stopped = storm.start()
    while reader.seen < 40:
        assert stopped.poll() is None
        time.sleep(0.02)
    stopped.send_signal(signal.SIGSTOP)
    stood = reader.seen
    fast = [*storm.command[:3], "0", storm.command[4]]
    second = subprocess.run([sys.executable, str(DRIVER), *fast], capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert stood <= entries - json.loads(second.stdout)["scored"] < entries  # what was committed is not scored again
    stopped.send_signal(signal.SIGCONT)
    stopped.communicate(timeout=60)
    assert stopped.returncode == 1 and "Fenced" in (tmp_path / "driver-1.log").read_text()
    check(storm, reader, entries)
    states = Counter(row["state"] for row in ScoreStore.open(storm.store).runs())
    assert states == {"fenced": 1, "done": 1}


@pytest.mark.parametrize("point", ["written", "committed", "removing"])
def test_a_kill_inside_compaction_or_vacuum_changes_no_row(tmp_path: Path, point: str) -> None:
    store = ScoreStore.open(str(tmp_path / "scores"), create=True)
    live = ScoreStore.open(store.uri)
    for name in "abcd":
        score_rows(store, "b1", rows({name: 1}))
    if point == "removing":
        store.compact()
        for path in Path(store.uri).glob("bundle_id=*/*.parquet"):
            os.utime(path, (time.time() - 7200,) * 2)
        score_rows(store, "b1", rows({"e": 1}))
    before = DeltaTable(store.uri).to_pyarrow_table().sort_by("entry_id")
    command = [sys.executable, str(DRIVER), "upkeep", store.uri]
    assert subprocess.run([*command, point]).returncode == -signal.SIGKILL
    assert DeltaTable(store.uri).to_pyarrow_table().sort_by("entry_id").equals(before)
    score_rows(live, "b1", rows({"z": 1}))
    assert subprocess.run(command).returncode == 0
    after = DeltaTable(store.uri)
    assert after.to_pyarrow_table().column("entry_id").to_pylist().count("z") == 1
    assert len(after.to_pyarrow_table()) == len(before) + 1 and len(after.file_uris()) == 1
