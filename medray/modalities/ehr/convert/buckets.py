"""Arrow files of rows by bucket: what one flow of a conversion leaves for the next. Their names are never used again."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa

from medray.storage import files

HELD_ROWS = 2**18
"""A worker holds so many rows before it writes them to their buckets."""


class Buckets:
    """One worker's open bucket files; rows are held until there are many."""

    def __init__(self, folder: str, buckets: int, open_files: ExitStack, schema: pa.Schema, by: str) -> None:
        self.folder, self.buckets, self.open_files, self.schema, self.by = folder, buckets, open_files, schema, by
        self.uris: dict[int, str] = {}
        self.writers: dict[int, Any] = {}
        self.held: list[pa.RecordBatch] = []

    def add(self, rows: pa.RecordBatch) -> None:
        if len(rows):
            self.held.append(rows.select(self.schema.names).cast(self.schema))
            if sum(map(len, self.held)) >= HELD_ROWS:
                self.flush()

    def flush(self) -> None:
        if not self.held:
            return
        rows = pa.Table.from_batches(self.held).combine_chunks()
        self.held = []
        bucket = rows.column(self.by).to_numpy() % self.buckets
        order = np.argsort(bucket, kind="stable")
        rows, bucket = rows.take(pa.array(order)), bucket[order]
        starts = np.flatnonzero(np.diff(bucket, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            self._writer(int(bucket[start])).write_table(rows.slice(int(start), int(end - start)))

    def _writer(self, bucket: int) -> Any:
        if bucket not in self.writers:
            self.uris[bucket] = files.join(self.folder, f"{uuid.uuid4().hex}.arrow")
            stream = self.open_files.enter_context(files.new_file(self.uris[bucket]))
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self.writers[bucket] = self.open_files.enter_context(
                pa.ipc.new_stream(stream, self.schema, options=options)
            )
        return self.writers[bucket]


def read_all(uris: Iterable[str], schema: pa.Schema) -> pa.Table:
    found = [schema.empty_table()]
    for uri in uris:
        with files.open_input(uri) as stream, pa.ipc.open_stream(stream) as reader:
            found.append(reader.read_all())
    return pa.concat_tables(found)


def write_table(table: pa.Table, folder: str) -> str:
    uri = files.join(folder, f"{uuid.uuid4().hex}.arrow")
    with files.new_file(uri) as stream, pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return uri


def plan_of(uris: Mapping[int, list[str]], lost: Mapping[int, list[str]] | None = None) -> list[pa.Table]:
    """A shard per bucket of `uris`: its files, and those (`lost`) of rows that it is without."""
    shards = []
    for bucket, held in sorted(uris.items()):
        gone = sorted((lost or {}).get(bucket, []))
        is_lost = [False] * len(held) + [True] * len(gone)
        shards.append(
            pa.table({"bucket": pa.repeat(bucket, len(is_lost)), "uri": sorted(held) + gone, "lost": is_lost})
        )
    return shards
