"""Scoring on 1, 2 and 4 nodes with work that sleeps, and with very many pending entries: what medray itself costs.

    python tests/benchmarks/scaling.py [--nodes 1 2 4] [--entries 2000] [--sleep 0.02] [--pending 1000000 5000000]

scaling   nodes of one CPU each (`ray.cluster_utils.Cluster` on this machine), one scoring actor a node, an entry sleeps;
          efficiency against one node, steady state from the first receipt to the last, and the overhead per entry
pending   a manifest of so many entries, none scored, through `score` on two actors without any work: peak memory of the
          driver (private) and entries per second
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]


class Sleep:
    """Entries to themselves, `seconds` each."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        time.sleep(self.seconds * len(batch))
        return batch


class Constant:
    """Entries to one score each."""

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        from medray.verbs.stages import SCORE_ROWS

        rows = len(batch)
        columns: dict[str, Any] = {name: batch.column(name) for name in ("entry_id", "subject_id", "fingerprint")}
        columns |= {"sample_id": pa.array([""] * rows), "output": pa.array(["lower"] * rows)}
        columns |= {"value": pa.array(np.full(rows, 0.5, np.float32))}
        columns |= {name: pa.nulls(rows, pa.string()) for name in ("reason", "detail")}
        return pa.RecordBatch.from_arrays([columns[f.name] for f in SCORE_ROWS], schema=SCORE_ROWS)


class Clock:
    """Progress that notes when receipts came."""

    def __init__(self) -> None:
        self.events: list[tuple[float, int]] = []

    def begin(self, name: str, total: int) -> None: ...

    def advance(self, done: int, failed: int) -> None:
        self.events.append((time.monotonic(), done))

    def training(self, live: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def about(self, **ids: str) -> None: ...

    def fact(self, event: str, level: str = "info", **counts: Any) -> None: ...


def write_manifest(folder: Path, count: int) -> None:
    """As `medray index` leaves it: one file an entry, in folders of a thousand."""
    from score_store import BLOCK, entries

    from medray.archive.entries import entry_keys
    from medray.archive.manifest import CHANGES, EntryCounts, IndexState, write_state
    from medray.storage.row_files import new_rows

    now = np.datetime64("2026-01-01T00:00:00", "us").item()
    part = CHANGES.field("parts").type.value_type
    with new_rows(str(folder), "entries", CHANGES) as writer:
        for first in range(0, count, BLOCK):
            size = min(BLOCK, count - first)
            found: dict[str, Any] = entries(first, size)
            keys = entry_keys(pa.table(found))
            numbers = np.arange(first, first + size)
            facts: dict[str, Any] = {
                "uri": [f"/archive/of/a/hospital/{n // 1000:06}/{n:09}.dcm" for n in numbers],
                "locator": [""] * size,
                "digest": found["fingerprint"],
                "size": np.full(size, 500_000),
                "modified_ns": numbers * 1000 + 10**18,
            }
            parts = pa.StructArray.from_arrays([pa.array(facts[f.name]).cast(f.type) for f in part], fields=list(part))
            found |= {"key_hi": keys[:, 0], "key_lo": keys[:, 1], "bytes": np.full(size, 500_000)}
            found |= {"modified_ns": numbers, "change": ["new"] * size, "seen_at": [now] * size}
            found["parts"] = pa.ListArray.from_arrays(np.arange(size + 1, dtype=np.int32), parts)
            columns = [
                pa.nulls(size, f.type) if f.name not in found else pa.array(found[f.name]).cast(f.type) for f in CHANGES
            ]
            writer.write(pa.RecordBatch.from_arrays(columns, schema=CHANGES))
    state = IndexState(how="", root="/archive", seen_at=now, entries=(writer.file,), counts=EntryCounts(entries=count))
    write_state(str(folder), state, None)


def run(folder: Path, engine: Any, sleep: float) -> tuple[Any, Clock]:
    """The `score` verb over the manifest in `folder`, with work that sleeps in the place of decoding and a network."""
    import toy

    from medray.archive.manifest import Manifest
    from medray.learning import bundles
    from medray.verbs import score as verb
    from medray.verbs import stages

    bundle = toy.bundle()
    bundles.save(bundle, str(folder / "bundle"))
    stages.read = lambda *given, **options: stages.Stage(partial(Sleep, sleep), 32, name="read")  # type: ignore[assignment]
    stages.score = lambda *given, **options: stages.Stage(Constant, 4096, name="score")  # type: ignore[assignment]
    if sleep:
        verb.ENTRIES_PER_SHARD = verb.MANY_ENTRIES = 16
    clock = Clock()
    manifest = Manifest.open(str(folder / "manifest"))
    settings = toy.score_run(folder, commit_seconds=5.0)
    asked = [verb.Asked(str(folder / "bundle"), bundle)]
    [result] = verb.score_manifest(settings, asked, bundle.recipe.modality, manifest, engine, clock)
    return result, clock


def scaling(options: argparse.Namespace, nodes: int) -> dict[str, float]:
    from ray.cluster_utils import Cluster

    from medray.engines.ray.engine import RayEngine
    from medray.engines.spec import RaySpec

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1)
    try:
        with tempfile.TemporaryDirectory(prefix="medray-scaling-") as scratch:
            write_manifest(Path(scratch) / "manifest", options.entries * nodes)
            engine = RayEngine(RaySpec(address=cluster.address, workers=nodes))
            found, clock = run(Path(scratch), engine, options.sleep)
            engine.close()
        assert found.scored == options.entries * nodes, found
        events = sorted(clock.events)
        steady = sum(n for _, n in events[nodes:]) / (events[-1][0] - events[nodes - 1][0])
        return {"steady": steady, "whole": found.entries_per_second}
    finally:
        cluster.shutdown()


def pending(options: argparse.Namespace, count: int) -> dict[str, float]:
    import os

    from medray.engines.ray.engine import RayEngine
    from medray.engines.spec import RaySpec

    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.1):
            status = dict(line.split(":", 1) for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines())
            most = max(most, 1024 * (int(status["VmRSS"].split()[0]) - int(status["RssShmem"].split()[0])))

    with tempfile.TemporaryDirectory(prefix="medray-pending-") as scratch:
        write_manifest(Path(scratch) / "manifest", count)
        engine = RayEngine(RaySpec(workers=2))
        pa.default_memory_pool().release_unused()
        threading.Thread(target=watch, daemon=True).start()
        start = time.monotonic()
        found, _ = run(Path(scratch), engine, 0.0)
        done.set()
        engine.close()
    assert found.scored == count, found
    return {"peak": most / 1e6, "seconds": time.monotonic() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--entries", type=int, default=2000, help="for each node")
    parser.add_argument("--sleep", type=float, default=0.02, help="seconds an entry")
    parser.add_argument("--pending", type=int, nargs="*", default=[1_000_000, 5_000_000])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        work = {"scaling": scaling, "pending": pending}[options.child[0]]
        print("\n" + json.dumps(work(options, int(options.child[1]))))
        return
    found: dict[tuple[str, int], dict[str, float]] = {}
    for kind, counts in (("scaling", options.nodes), ("pending", options.pending)):
        for count in counts:
            words = [sys.executable, __file__, "--entries", str(options.entries), "--sleep", str(options.sleep)]
            done = subprocess.run([*words, "--child", kind, str(count)], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found[kind, count] = told = json.loads(done.stdout.strip().splitlines()[-1])
            if kind == "scaling":
                one = found[kind, options.nodes[0]]["steady"] / options.nodes[0]
                overhead = 1000 * (count / told["steady"] - options.sleep)
                print(
                    f"scaling   {count} nodes: {told['steady']:.1f} entries/s steady, {told['whole']:.1f} with start-up; "
                    f"efficiency {told['steady'] / (count * one):.3f}; overhead {overhead:.2f} s per 1,000 entries",
                    flush=True,
                )
            else:
                print(
                    f"pending   {count:,} entries: driver's peak {told['peak']:,.0f} MB, {told['seconds']:.0f} s, "
                    f"{count / told['seconds']:,.0f} entries/s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
