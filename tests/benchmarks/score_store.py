"""The score store at size: commits, appends, the anti-join. Prints ratios and memory; run it on a quiet machine.

    python tests/benchmarks/score_store.py [--rows 10000000] [--commits 500] [--hash-rows 100000000] [--folder DIR]

commits   latency of each of `commits` commits of one small file: last quarter against the first
append    10,000 rows, written and committed, to a store of a tenth of `rows` and to one of `rows`
pending   the anti-join of a manifest of `rows` entries on disk with as many scores, in a process of its own: peak memory
hashes    the same join on two int64 columns alone, `hash-rows` of each, in DuckDB within 2 GB
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medray.archive.entries import entry_keys
from medray.archive.manifest import CHANGES, EntryCounts, IndexState, Manifest, write_state
from medray.scores import GIVEN, ScoreStore
from medray.storage.queries import database, query
from medray.storage.row_files import new_rows

FILE_ROWS, BLOCK = 500_000, 65_536
NEW = 3
"""Entries of the manifest that have no score."""


@dataclass
class Receipt:
    payload: dict[str, Any]


def entries(first: int, count: int) -> dict[str, pa.Array]:
    """Ids of 37 characters and fingerprints, the same for the same numbers."""
    numbers = np.arange(first, first + count)
    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 12, "0")
    ids = pc.binary_join_element_wise(pa.scalar("1.2.840.113619.2.55.3.279"), digits, "")
    mixed = (numbers.astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)
    prints = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), count, [None, pa.py_buffer(np.stack([mixed, ~mixed], axis=1).tobytes())]
    )
    return {"entry_id": ids, "subject_id": digits, "fingerprint": prints}


def given(first: int, count: int) -> Iterator[pa.RecordBatch]:
    for start in range(first, first + count, BLOCK):
        size = min(BLOCK, first + count - start)
        values = np.random.default_rng(start).random(size, np.float32)
        found = entries(start, size) | {"sample_id": pa.array([""] * size), "output": pa.array(["malignant"] * size)}
        found |= {
            "value": pa.array(values),
            "reason": pa.nulls(size, pa.string()),
            "detail": pa.nulls(size, pa.string()),
        }
        yield pa.RecordBatch.from_arrays([found[f.name].cast(f.type) for f in GIVEN], schema=GIVEN)


def fill(store: ScoreStore, first: int, until: int) -> None:
    sink = store.sink(store.claim("b1"))
    for start in range(first, until, FILE_ROWS):
        sink.commit([Receipt(sink.write(given(start, min(FILE_ROWS, until - start))))])


def commits(folder: Path, count: int) -> None:
    store = ScoreStore.open(str(folder / "commits"), create=True)
    sink, found = store.sink(store.claim("b1")), []
    for number in range(count):
        receipt = Receipt(sink.write(given(number * 10, 10)))
        start = time.perf_counter()
        sink.commit([receipt])
        found.append(1000 * (time.perf_counter() - start))
    quarter = count // 4
    first, last = np.array(found[:quarter]), np.array(found[-quarter:])
    print(
        f"commits   {count}: median {np.median(first):.1f} -> {np.median(last):.1f} ms, ratio "
        f"{np.median(last) / np.median(first):.2f}; mean {first.mean():.1f} -> {last.mean():.1f} ms, "
        f"ratio {last.mean() / first.mean():.2f} (bar: at most 1.5)",
        flush=True,
    )


def append_seconds(store: ScoreStore, first: int, times: int = 7) -> float:
    sink, found = store.sink(store.claim("b1")), []
    for turn in range(times):
        start = time.perf_counter()
        sink.commit([Receipt(sink.write(given(first + turn * 10_000, 10_000)))])
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def appends(folder: Path, rows: int) -> None:
    store = ScoreStore.open(str(folder / "scores"), create=True)
    fill(store, 0, rows // 10)
    small = append_seconds(store, 2 * rows)
    start = time.perf_counter()
    fill(store, rows // 10, rows)
    rate = (rows - rows // 10) / (time.perf_counter() - start)
    large = append_seconds(store, 3 * rows)
    size = sum(file.size for file in store.live_files())
    print(
        f"append    10,000 rows: {small:.3f} s at {rows // 10:,}, {large:.3f} s at {rows:,}: "
        f"ratio {large / small:.2f} (bar: under 2); filled at {rate:,.0f} rows/s, {size / 1e6:,.0f} MB",
        flush=True,
    )


def write_manifest(folder: Path, count: int) -> None:
    """A manifest as `medray index` leaves it: one row per entry, on disk."""
    now = datetime.now(UTC)
    with new_rows(str(folder), "entries", CHANGES) as writer:
        for first in range(0, count, BLOCK):
            size = min(BLOCK, count - first)
            found: dict[str, Any] = entries(first, size)
            keys = entry_keys(pa.table(found))
            found |= {"key_hi": keys[:, 0], "key_lo": keys[:, 1], "bytes": np.full(size, 500_000)}
            found |= {"modified_ns": np.full(size, 10**18), "change": ["new"] * size, "seen_at": [now] * size}
            found["parts"] = pa.array([[]] * size, CHANGES.field("parts").type)
            columns = [
                pa.nulls(size, f.type) if f.name not in found else pa.array(found[f.name]).cast(f.type) for f in CHANGES
            ]
            writer.write(pa.RecordBatch.from_arrays(columns, schema=CHANGES))
    state = IndexState(how="", root="", seen_at=now, entries=(writer.file,), counts=EntryCounts(entries=count))
    write_state(str(folder), state, None)


def join(folder: Path) -> None:
    """In a process of its own: the peak is this join's."""
    manifest, store = Manifest.open(str(folder / "manifest")), ScoreStore.open(str(folder / "scores"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = store.pending(manifest, "b1")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"found": len(found), "seconds": seconds, "before": before / 1e6, "peak": peak / 1e6}))


def in_child(folder: Path, work: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--folder", str(folder), work]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def pending(folder: Path, rows: int) -> None:
    (folder / "manifest").mkdir()
    write_manifest(folder / "manifest", rows + NEW)
    told = in_child(folder, "--join")
    assert told["found"] == NEW, told
    print(
        f"pending   {rows:,} entries, {NEW} of them new: {told['seconds']:.1f} s, peak {told['peak']:.2f} GB "
        f"of which {told['before']:.2f} GB before it began (bar: 2 GB)",
        flush=True,
    )


def hashes(folder: Path, rows: int) -> None:
    schema = pa.schema([("key_hi", pa.int64()), ("key_lo", pa.int64())])
    random = np.random.default_rng(0)
    place = folder / "hashes.parquet"
    with pq.ParquetWriter(place, schema, compression="none", use_dictionary=False) as writer:
        for first in range(0, rows, 2**20):
            size = min(2**20, rows - first)
            keys = random.integers(-(2**63), 2**63 - 1, (2, size), dtype=np.int64)
            writer.write_table(pa.table(list(keys), schema=schema))
    told = in_child(folder, "--hashes")
    print(
        f"hashes    {rows:,} against as many, within 2 GB: {told['seconds']:.1f} s, peak of the process "
        f"{told['peak']:.2f} GB"
    )


def join_hashes(folder: Path) -> None:
    """In a process of its own, too."""
    place, start = folder / "hashes.parquet", time.perf_counter()
    with database("2GB") as db:
        source = f"read_parquet('{place}')"
        with query(db, f"select count(*) as n from {source} w anti join {source} d using (key_hi, key_lo)") as found:
            assert found.read_all().column("n").to_pylist() == [0]
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": seconds, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--commits", type=int, default=500)
    parser.add_argument("--hash-rows", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--join", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--hashes", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.join or options.hashes:
        (join if options.join else join_hashes)(options.folder)
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="score-store-") as folder:
        place = Path(folder)
        commits(place, options.commits)
        appends(place, options.rows)
        pending(place, options.rows)
        if options.hash_rows:
            hashes(place, options.hash_rows)


if __name__ == "__main__":
    main()
