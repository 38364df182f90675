"""Arrow helpers: batches of a given size, joined tables, columns of nulls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa


def null_column(kind: pa.DataType, rows: int) -> pa.Array:
    """`rows` nulls of any type, extension types included."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.nulls(rows, kind.storage_type))
    return pa.nulls(rows, kind)


def rebatch(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in the same order, `rows` at a time; only the last batch may be shorter."""
    if rows < 1:
        raise ValueError(f"a batch has at least one row, found {rows}")
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        start = 0
        while len(batch) - start >= rows - count:
            held.append(batch.slice(start, rows - count))
            start += rows - count
            yield joined(held)
            held, count = [], 0
        if start < len(batch):
            held.append(batch.slice(start))
            count += len(batch) - start
    if held:
        yield joined(held)


def joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch of all rows; the same object when there is only one."""
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array; without a copy where it is one already."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def as_table(data: Any) -> pa.Table | None:
    """A pandas or polars DataFrame, or any other table that hands on Arrow, as a Table of plain strings; None for what is
    no table."""
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    elif type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns"):
        data = pa.Table.from_pandas(data, preserve_index=False)
    elif not isinstance(data, pa.Table):
        if not hasattr(data, "__arrow_c_stream__") or not hasattr(data, "columns"):  # a Series is no table
            return None
        data = pa.table(data)
    texts = [pa.types.is_string_view(f.type) or pa.types.is_large_string(f.type) for f in data.schema]
    fields = [f.with_type(pa.string()) if text else f for f, text in zip(data.schema, texts, strict=True)]
    return data.cast(pa.schema(fields))
