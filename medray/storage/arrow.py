"""Arrow helpers: batches of a given size, joined tables, columns of nulls, which strings are among others,
tables of others' libraries."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import UserError


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
    """One batch of all rows; the same object when there is only one. Tensors of one shape and several dtypes become of one that
    holds the numbers of all."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0].schema
    return pa.concat_batches(
        batches if all(batch.schema.equals(first) for batch in batches) else _of_one_dtype(batches)
    )


def _of_one_dtype(batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """The batches, whose tensor columns of one name have one dtype: the one that holds the numbers of all that have any."""
    wider: dict[str, pa.DataType] = {}
    for name in batches[0].schema.names:
        columns = [batch.column(name) for batch in batches]
        kinds = {column.type for column in columns}
        if len(kinds) > 1 and all(isinstance(kind, pa.FixedShapeTensorType) for kind in kinds):
            held = {column.type for column in columns if column.null_count < len(column)} or kinds
            dtype = np.result_type(*(kind.value_type.to_pandas_dtype() for kind in held))
            wider[name] = pa.fixed_shape_tensor(pa.from_numpy_dtype(dtype), columns[0].type.shape)
    return [
        of_columns([_as_tensor(batch.column(name), wider.get(name)) for name in batch.schema.names], batch.schema)
        for batch in batches
    ]


def _as_tensor(column: pa.Array, kind: pa.DataType | None) -> pa.Array:
    if kind is None or column.type == kind:
        return column
    if column.null_count == len(column):
        return null_column(kind, len(column))
    return pa.ExtensionArray.from_storage(kind, column.storage.cast(kind.storage_type))


def of_columns(columns: Sequence[pa.Array], schema: pa.Schema) -> pa.RecordBatch:
    """A batch of these columns by a schema, in which a tensor column of the right shape keeps the dtype that it has."""
    fields = [
        field.with_type(column.type) if _is_like(column.type, field.type) else field
        for field, column in zip(schema, columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, schema.metadata))


def _is_like(kind: pa.DataType, other: pa.DataType) -> bool:
    """Whether both are tensors of one shape."""
    tensors = isinstance(kind, pa.FixedShapeTensorType) and isinstance(other, pa.FixedShapeTensorType)
    return tensors and kind.shape == other.shape


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array; without a copy where it is one already."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def among(texts: pa.Array | pa.ChunkedArray, wanted: Container[str]) -> pa.Array | pa.ChunkedArray:
    """(N,) bool: which of these strings are in `wanted`, asked once for each that differs; false for null."""
    distinct = [text for text in pc.unique(texts).to_pylist() if text is not None and text in wanted]
    return pc.is_in(texts, pa.array(distinct, texts.type))


def as_table(data: object) -> pa.Table | None:
    """A pandas or polars DataFrame, or any other table that hands on Arrow, as a Table of plain strings; None for what is
    no table. Raises UserError for a column that Arrow has no type for, and for two of one name."""
    try:
        table = _table(data)
        if table is None:
            return None
        names = table.schema.names
        if len(set(names)) < len(names):
            raise ValueError("two columns of one name")
        return pa.table([_plain(column) for column in table.columns], names)
    except (pa.ArrowException, ValueError, TypeError) as error:  # its words may quote a value of the table
        raise UserError(
            "the table cannot be read", found=type(error).__name__,
            expected="columns of different names, each of one type that Arrow knows",
        ) from None  # fmt: skip


def _table(data: object) -> pa.Table | None:
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if not hasattr(data, "columns"):  # a Series is no table
        return None
    if type(data).__module__.partition(".")[0] == "pandas":
        return pa.Table.from_pandas(data, preserve_index=False)
    return pa.table(data) if hasattr(data, "__arrow_c_stream__") else None


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as string where it is another kind of string, or one of categories."""
    if pa.types.is_dictionary(column.type) and _is_text(column.type.value_type):
        return pa.chunked_array(
            [chunk.dictionary.cast(pa.string()).take(chunk.indices) for chunk in column.chunks], pa.string()
        )
    return column.cast(pa.string()) if _is_text(column.type) else column


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
