"""Buckets: Arrow files of rows by bucket, which one flow of a conversion leaves for the next. No name is used twice."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medray.storage import files

BUFFERED_ROWS = 2**18
"""Rows that a worker collects before it writes them to their buckets."""


class Buckets:
    """The open bucket files of one worker; rows are collected until there are many."""

    def __init__(self, folder: str, buckets: int, open_files: ExitStack, schema: pa.Schema, by: str) -> None:
        self.folder, self.buckets, self.open_files, self.schema, self.by = folder, buckets, open_files, schema, by
        self.uris: dict[int, str] = {}
        self.writers: dict[int, pa.RecordBatchWriter] = {}
        self.pending: list[pa.RecordBatch] = []

    def add(self, rows: pa.RecordBatch) -> None:
        if len(rows):
            self.pending.append(rows.select(self.schema.names).cast(self.schema))
            if sum(map(len, self.pending)) >= BUFFERED_ROWS:
                self.flush()

    def flush(self) -> None:
        if not self.pending:
            return
        rows = pa.Table.from_batches(self.pending).combine_chunks()
        self.pending = []
        bucket = rows.column(self.by).to_numpy() % self.buckets
        order = np.argsort(bucket, kind="stable")
        rows, bucket = rows.take(pa.array(order)), bucket[order]
        starts = np.flatnonzero(np.diff(bucket, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            self._writer(int(bucket[start])).write_table(rows.slice(int(start), int(end - start)))

    def _writer(self, bucket: int) -> pa.RecordBatchWriter:
        if bucket not in self.writers:
            self.uris[bucket] = files.join(self.folder, f"{uuid.uuid4().hex}.arrow")
            stream = self.open_files.enter_context(files.new_file(self.uris[bucket]))
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self.writers[bucket] = self.open_files.enter_context(
                pa.ipc.new_stream(stream, self.schema, options=options)
            )
        return self.writers[bucket]


def read_all(uris: Iterable[str], schema: pa.Schema) -> pa.Table:
    """Rows of all these Arrow files, in one table."""
    tables = [schema.empty_table()]
    for uri in uris:
        with files.open_input(uri) as stream, pa.ipc.open_stream(stream) as reader:
            tables.append(reader.read_all())
    return pa.concat_tables(tables)


def write_table(table: pa.Table, folder: str) -> str:
    """URI of a new Arrow file with these rows."""
    uri = files.join(folder, f"{uuid.uuid4().hex}.arrow")
    with files.new_file(uri) as stream, pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return uri


def write_parquet(table: pa.Table, path: Path) -> None:
    """A table as a Parquet file of a dataset, as open as its folder."""
    with files.new_file(str(path)) as stream:
        pq.write_table(table, stream)


def plan_of(uris: Mapping[int, list[str]], lost: Mapping[int, list[str]] | None = None) -> list[pa.Table]:
    """A shard per bucket of `uris`: its files, and the files (`lost`) that name rows to leave out."""
    shards: list[pa.Table] = []
    for bucket, row_files in sorted(uris.items()):
        lost_files = sorted((lost or {}).get(bucket, []))
        is_lost = [False] * len(row_files) + [True] * len(lost_files)
        shards.append(
            pa.table(
                {"bucket": pa.repeat(bucket, len(is_lost)), "uri": sorted(row_files) + lost_files, "lost": is_lost}
            )
        )
    return shards
