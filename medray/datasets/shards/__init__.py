"""Shards: Parquet files of samples, their index, and how training reads them.

    samples ── ShardSink.write: one Parquet file (and one of failed rows) ── ShardSink.commit: index.parquet
    index ── ShardSet ── cached: one memory-mapped Arrow file per shard and node ── Gatherer.gather: a batch

A fixed-shape tensor column lies in Parquet as fixed-size binary: the bytes of one sample, C order, little-endian.
That is read 5 to 15 times faster than Parquet's lists (tests/benchmarks/shard_io.py). Shape, dtype and dims stand in
the field's metadata, so that anyone can decode it:

    column = pyarrow.parquet.read_table("shard.parquet").column("pixels").combine_chunks()
    pixels = np.frombuffer(column.buffers()[1], "uint8").reshape(len(column), 1, 28, 28)  # "dtype", "shape"

The index names every file that counts; a file it does not name is of a killed attempt. Its order follows the
entries, not the order in which workers finished, so the rows of a split come in one order on every machine.
"""

from __future__ import annotations

from medray.datasets.shards.index import INDEX, Shard, ShardSet, ShardSink
from medray.datasets.shards.parquet import read_samples, write_samples
from medray.datasets.shards.reader import Gatherer, ShardReader, cached, gather

__all__ = [
    "INDEX",
    "Gatherer",
    "Shard",
    "ShardReader",
    "ShardSet",
    "ShardSink",
    "cached",
    "gather",
    "read_samples",
    "write_samples",
]
