"""Label tables: what a run file says of one, and reading it as text."""

from __future__ import annotations

import difflib
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, model_validator

from medray.errors import LabelError
from medray.storage.files import read_bytes

SHOWN = 20  # so many examples stand in a report or an error


EMPTY = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "<NA>"]
"""Cells of a CSV that hold nothing."""


class LabelSettings(BaseModel):
    """Where labels come from; without a `table`, from what the archive carries (class folders, label arrays)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str | None = None
    """CSV (comma, semicolon or tab; may be .gz) or Parquet."""
    key: str = "path"
    """Column of the table that names the entry."""
    match: Literal["path", "entry", "subject"] = "path"
    """What `key` holds: a file's path below the archive (or its folder), an entry id, or the subject's identifier."""
    columns: tuple[str, ...] = ("label",)
    """Columns of the labels; none keeps the archive's own labels."""
    split_column: str | None = None
    """Column that names the split of each entry: train, validation or test."""
    subject_column: str | None = None
    """Column that names whose entry it is, for splits and intervals of this training."""

    @model_validator(mode="after")
    def _gives_something(self) -> LabelSettings:
        if not (self.columns or self.split_column or self.subject_column):
            raise ValueError("a label table must give columns, split_column or subject_column")
        return self


def read_table(settings: LabelSettings) -> pa.Table:
    """The key and value columns of the label table, all as text; an empty cell, NA, NaN or null is null.

    A CSV keeps its text as it is ("007"), but for blanks around values; whole numbers of a Parquet file have no decimal
    point. Raises LabelError, also for keys in floating point that are too large to tell neighbours apart.
    """
    uri = settings.table or ""
    try:
        data = pa.BufferReader(read_bytes(uri))
    except OSError as error:
        raise LabelError("the label table cannot be read", where=uri, found=error.strerror or str(error)) from None
    try:
        table = (
            _read_parquet(data) if uri.endswith((".parquet", ".pq")) else _read_csv(data, packed=uri.endswith(".gz"))
        )
        table.validate(full=True)
        columns: list[str] = table.column_names
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
        # Arrow's message may quote a row of the table
        raise LabelError(
            "the label table cannot be read", where=uri, found=type(error).__name__, expected="CSV or Parquet, UTF-8"
        ) from None
    names = list(dict.fromkeys([settings.key, *value_columns(settings)]))
    for name in names:
        if columns.count(name) != 1:
            near = difflib.get_close_matches(name, columns, 1)
            raise LabelError(
                f"the label table must have one column {name!r}",
                where=uri,
                found=", ".join(columns),
                do=f"did you mean {near[0]}?" if near else "name the columns in [labels]",
            )
    _refuse_rounded_keys(table.column(settings.key), settings)
    for name in names:
        kind = table.column(name).type
        if pa.types.is_string(kind) and pc.any(pc.match_substring_regex(table.column(name), r"[\r\n]")).as_py():
            raise LabelError(
                f"cells of the column {name!r} hold line breaks",
                where=uri,
                do="look for a quote that is not closed: the rows behind it would be lost",
            )
    table = pa.table({name: _without_points(table.column(name)) for name in names})
    table = table.cast(pa.schema([(name, pa.string()) for name in names]))
    for name in value_columns(settings):
        trimmed = pc.utf8_trim_whitespace(table.column(name))
        filled = pc.invert(pc.is_in(trimmed, value_set=pa.array(EMPTY)))
        table = table.set_column(table.column_names.index(name), name, pc.if_else(filled, trimmed, None))
    return table


def _refuse_rounded_keys(column: pa.ChunkedArray, settings: LabelSettings) -> None:
    """Raises LabelError for floats above 2^53: two identifiers that differ by one would be one number."""
    if pa.types.is_floating(column.type):
        largest = 2**24 if column.type == pa.float32() else 2**53
        if pc.any(pc.greater_equal(pc.abs(column), float(largest))).as_py():
            raise LabelError(
                "the keys of the label table were rounded: they are floating-point numbers that are too large",
                where=settings.table or "",
                found=f"{settings.key} of type {column.type}, with numbers of {largest} and more",
                expected="whole numbers or text",
                do="write the table again with the keys as text",
            )


def value_columns(settings: LabelSettings) -> list[str]:
    named = (*settings.columns, settings.split_column, settings.subject_column)
    return list(dict.fromkeys(name for name in named if name))


def _read_csv(data: pa.BufferReader, *, packed: bool) -> pa.Table:
    from pyarrow import csv

    text = pa.CompressedInputStream(data, "gzip").read() if packed else data.read()
    header = text[:65536].split(b"\n", 1)[0]
    delimiter = max(",;\t", key=lambda mark: header.count(mark.encode()))
    names = csv.open_csv(pa.BufferReader(text), parse_options=csv.ParseOptions(delimiter=delimiter)).schema.names
    return csv.read_csv(
        pa.BufferReader(text),
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=EMPTY
        ),
    )


def _read_parquet(data: pa.BufferReader) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(data)


def _without_points(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole numbers that were stored as floats, beside a missing one, as integers; NaN is null."""
    if not pa.types.is_floating(column.type):
        return column
    column = pc.if_else(pc.is_nan(column), None, column)
    whole = pc.and_(pc.equal(column, pc.round(column)), pc.less(pc.abs(column), 2.0**53))
    return column.cast(pa.int64()) if pc.all(whole).as_py() else column


def line_numbers(settings: LabelSettings, rows: np.ndarray) -> list[int]:
    """Line numbers in the file of rows (from 0) of the table, as a person counts: the header of a CSV is row 1."""
    uri = settings.table or ""
    if uri.endswith((".parquet", ".pq")):
        return [row + 1 for row in rows.tolist()]
    raw = read_bytes(uri)
    text = pa.CompressedInputStream(pa.BufferReader(raw), "gzip").read() if uri.endswith(".gz") else raw
    if b'"' in text:  # a cell may hold line ends
        return [row + 2 for row in rows.tolist()]
    filled = [number for number, line in enumerate(text.splitlines(), 1) if line]  # Arrow passes over empty lines
    return [filled[row + 1] for row in rows.tolist()]
