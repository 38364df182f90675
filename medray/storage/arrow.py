"""Arrow helpers: batches of a given size, joined tables, columns of nulls, which strings are among others."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc


def null_column(kind: pa.DataType, rows: int) -> pa.Array:
    """`rows` nulls of any type, extension types included."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.nulls(rows, kind.storage_type))
    return pa.nulls(rows, kind)


def rebatch(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in the same order, `rows` at a time; only the last batch may be shorter."""
    if rows < 1:
        raise ValueError(f"a batch has at least one row, found {rows}")
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        start = 0
        while len(batch) - start >= rows - count:
            waiting.append(batch.slice(start, rows - count))
            start += rows - count
            yield joined(waiting)
            waiting, count = [], 0
        if start < len(batch):
            waiting.append(batch.slice(start))
            count += len(batch) - start
    if waiting:
        yield joined(waiting)


def joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch of all rows; the same object when there is only one."""
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array; without a copy where it is one already."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def among(texts: pa.Array | pa.ChunkedArray, wanted: Container[str]) -> pa.Array | pa.ChunkedArray:
    """(N,) bool: which of these strings are in `wanted`, asked once for each that differs; false for null."""
    distinct = [text for text in pc.unique(texts).to_pylist() if text is not None and text in wanted]
    return pc.is_in(texts, pa.array(distinct, texts.type))
