"""Reading shards and gathering batches, against what one would write first. Prints ratios; run it on a quiet machine.

    python tests/benchmarks/shard_io.py

Read: a Parquet file of medray against the same tensors as Parquet lists (FixedSizeList), both LZ4.
Gather: 128 random rows over 30 memory-mapped shards against Arrow's `take` on one table of all shards.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medray.datasets.samples import KEYS, sample_schema, tensor_column, tensor_field
from medray.datasets.shards import Gatherer, Shard, cached, read_samples, write_samples

BATCH_COLUMNS = ["entry_id", "sample_id", "subject_id", "target", "pixels"]


def best(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest call, the first left out."""
    work()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def samples(pixels: np.ndarray, name: str) -> pa.RecordBatch:
    """(N, *shape) as samples."""
    n = len(pixels)
    columns = {
        "entry_id": pa.array([f"{name}/series-{i:06d}" for i in range(n)]),
        "sample_id": pa.array(["0"] * n),
        "subject_id": pa.array([f"{i:016x}" for i in range(n)]),
        "fingerprint": pa.array([i.to_bytes(16, "big") for i in range(n)], pa.binary(16)),
        "split": pa.array(["train"] * n),
        "target": pa.array([[float(i % 2)] for i in range(n)], pa.list_(pa.float32())),
        "reason": pa.nulls(n, pa.string()),
        "detail": pa.nulls(n, pa.string()),
        "pixels": tensor_column(pixels),
    }
    schema = sample_schema(pa.schema([tensor_field("pixels", pixels.shape[1:], pixels.dtype, dims="C H W")]))
    return pa.RecordBatch.from_arrays([columns[f.name] for f in schema], schema=schema)


def reading(folder: Path, pixels: np.ndarray) -> None:
    batch = samples(pixels, "a")
    write_samples([batch], str(folder / "packed.parquet"), batch.schema)
    lists = pa.table({n: batch.column(n) for n in KEYS.names} | {"pixels": batch.column("pixels").storage})
    pq.write_table(lists, folder / "lists.parquet", compression="lz4")
    packed = best(lambda: read_samples(str(folder / "packed.parquet")))
    naive = best(lambda: pq.read_table(folder / "lists.parquet"))
    size = pixels.nbytes / 1e6
    print(
        f"read {pixels.shape} {pixels.dtype}: {size / packed:,.0f} MB/s, lists {size / naive:,.0f} MB/s, "
        f"ratio {naive / packed:.1f}"
    )


def gathering(folder: Path, rows_per_shard: int) -> None:
    rng = np.random.default_rng(0)
    batches = []
    for i in range(30):
        batch = samples(rng.integers(0, 255, (rows_per_shard, 1, 28, 28), dtype=np.uint8), f"shard{i}")
        name = str(folder / f"shard-{rows_per_shard}-{i}.parquet")
        size = write_samples([batch], name, batch.schema)[1]
        batches.append(cached(Shard(name, rows_per_shard, size, "train"), folder / "cache"))
    shard, row = rng.integers(0, 30, 128), rng.integers(0, rows_per_shard, 128)
    rows = Gatherer(batches, BATCH_COLUMNS)
    table = pa.Table.from_batches([batch.select(BATCH_COLUMNS) for batch in batches])
    wanted = pa.array(shard * rows_per_shard + row)
    ours = best(lambda: rows.gather(shard, row), times=200)
    naive = best(lambda: table.take(wanted).combine_chunks(), times=20)
    print(
        f"gather 128 of 30 x {rows_per_shard} (1, 28, 28) uint8: {ours * 1e6:,.0f} µs, take {naive * 1e6:,.0f} µs, "
        f"ratio {naive / ours:.1f}"
    )


def main() -> None:
    pa.set_cpu_count(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reading(folder, rng.integers(0, 255, (4096, 1, 28, 28), dtype=np.uint8))
        reading(folder, (rng.normal(size=(64, 1, 64, 64, 64)) * 50).astype(np.float32))
        gathering(folder, 256)
        gathering(folder, 4096)


if __name__ == "__main__":
    main()
