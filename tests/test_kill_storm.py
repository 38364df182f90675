"""Whatever is killed, and whenever: every entry is scored once, and no reader ever sees anything else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import toy
from deltalake import DeltaTable
from masks import png
from store_rows import rows
from store_rows import score as score_rows
from storm import DRIVER, Reader, Storm

from medray.learning import bundles
from medray.scores import ScoreStore, artefacts, upkeep
from medray.scores.table import OF_ARTEFACT


def write_archive(folder: Path, entries: int, files: int) -> None:
    """`entries` noisy images of 16 x 16 in `files` .npz files, and the toy bundle."""
    noise = np.random.default_rng(0)
    (folder / "archive").mkdir()
    for number in range(files):
        images = noise.integers(0, 255, (entries // files, toy.SIZE, toy.SIZE), dtype=np.uint8)
        np.savez(folder / "archive" / f"{number}.npz", train_images=images)
    bundles.save(toy.bundle(), str(folder / "bundle"))


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


@pytest.mark.slow  # test_changing_storm.py has a small storm on Ray
@pytest.mark.timeout(600)
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

    killers = {
        "actor": storm.kill_actor,
        "raylet": kill_raylet,
        "driver": storm.kill_driver,
        "upkeep": storm.kill_upkeep,
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
