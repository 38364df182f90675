"""Sequence tables: CSV, TSV and semicolon tables as text, with the offsets of the sequence cells; Parquet by rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from medray.errors import SampleError
from medray.modalities.genomics.formats.records import Reader, SequenceRecord, decode
from medray.modalities.genomics.formats.text import Chunk, LineReader
from medray.storage.files import is_broken_parquet, open_input

if TYPE_CHECKING:
    from medray.modalities.genomics.spec import Column, GenomicsSpec

NAMES = {
    "sequence": ("sequence", "seq", "dna", "bases", "text"),
    "id": ("id", "name", "accession"),
    "label": ("label", "class", "target", "y"),
    "split": (),
    "subject": (),
}
"""Names that a column may have where the spec gives none."""
LONGEST_ROW = 1 << 20
"""Bytes of a row whose quoted cells go over several lines."""
UNCLOSED = re.compile(rb'[ ]*"(?:[^"]|"")*$')
NOTHING = frozenset(["", "NA", "N/A", "NaN", "nan", "null", "NULL", "<NA>"])
"""Texts of empty cells (label, split, subject), as in a label table: rows without a subject do not share a patient."""
ROWS = 4096
"""Rows of Parquet that are read at once."""
CELL_BITS = 31
"""An Arrow string is shorter than 2^31 bytes."""


class Columns(NamedTuple):
    """Numbers of the columns of a table, from 0."""

    sequence: int
    id: int | None
    label: int | None
    split: int | None
    subject: int | None


class TableCell(NamedTuple):
    """A cell's text and where it begins in its line."""

    at: int
    text: bytes
    broken: bool = False
    """It begins with a quote, but is not a quoted cell."""
    unclosed: bool = False
    """It begins with a quote, and no other one ends it in this line."""


def wanted_columns(spec: GenomicsSpec) -> dict[str, Column | None]:
    return {
        "sequence": spec.sequence_column,
        "id": spec.id_column,
        "label": spec.label_column,
        "split": spec.split_column,
        "subject": spec.subject_column,
    }


def has_header(spec: GenomicsSpec) -> bool:
    return spec.header if spec.header is not None else not isinstance(spec.sequence_column, int)


def columns(spec: GenomicsSpec, names: Sequence[str]) -> Columns:
    """Where each wanted column is in a table with these names (or, without a header, with so many columns).

    Raises SampleError `unrecognised_format` where there is no column of sequences, `bad_columns` for one the spec names.
    """
    lower = [name.strip('\ufeff "').lower() for name in names]
    numbers: dict[str, int | None] = {}
    for role, column in wanted_columns(spec).items():
        if column is None:
            matches = [name for name in NAMES[role] if has_header(spec) and name in lower]
            numbers[role] = _only(lower, matches[0], role) if matches else None
        elif isinstance(column, int):
            if column > len(names):
                raise SampleError("bad_columns", f"{len(names)} columns; {role}_column is {column}")
            numbers[role] = column - 1
        elif column.lower() in lower:
            numbers[role] = _only(lower, column.lower(), role)
        else:
            raise SampleError("bad_columns", f"no column {column}, which {role}_column names")
    if numbers["sequence"] is None:
        raise SampleError("unrecognised_format", "a table without a column of sequences: set sequence_column")
    return Columns(**numbers)  # type: ignore[arg-type]  # sequence is not None


def _only(names: Sequence[str], name: str, role: str) -> int:
    """The number of the one column of that name. Raises SampleError where there are several: it is unclear which is meant."""
    if names.count(name) > 1:
        raise SampleError("bad_columns", f"{names.count(name)} columns {name}: which is the {role}?")
    return names.index(name)


def delimiter(line: bytes) -> bytes:
    """Tab, comma or semicolon: what the first line has most of; b"" where it has none."""
    best = max((b"\t", b",", b";"), key=line.count)
    return best if best in line else b""


def cells(line: bytes, between: bytes) -> list[TableCell]:
    """The cells of a line, quotes and blanks around them left out (RFC 4180)."""
    mark = re.escape(between)
    row: list[TableCell] = []
    at = 0
    pattern = re.compile(rb'[ ]*"((?:[^"]|"")*)"[ ]*(?=' + mark + rb"|$)|([^" + mark + rb"]*)")
    line = line.rstrip(b"\r\n")
    while at <= len(line):
        match = pattern.match(line, at)
        group = 1 if match and match.group(1) is not None else 2
        text = match.group(group) if match else b""
        start = match.start(group) if match else at
        broken = group == 2 and text.lstrip()[:1] == b'"'
        unclosed = broken and UNCLOSED.match(line, at) is not None
        text_start = start + len(text) - len(text.lstrip())
        row.append(TableCell(text_start, text.strip().replace(b'""', b'"'), broken, unclosed))
        at = (match.end() if match else at) + 1
    return row


def text_table(spec: GenomicsSpec) -> Reader:
    """The reader of a delimited text under `spec`."""
    return partial(_rows, spec)


def _rows(spec: GenomicsSpec, chunks: Iterator[Chunk]) -> Iterator[SequenceRecord]:
    between, layout, width = b"", None, 0
    feed = LineReader(chunks)
    number = 0
    while (line := feed.next_filled()) is not None:
        number += 1
        if layout is None:
            between = delimiter(line.text) or b","
            row = _whole_row(feed, line, between, None) or cells(line.text, between)
            layout, width = columns(spec, _cell_texts(row) if has_header(spec) else [""] * len(row)), len(row)
            if has_header(spec):
                continue
        else:
            row = _whole_row(feed, line, between, width)
        if row is None:
            yield SequenceRecord(
                f"row {number}", problem=SampleError("corrupt", f"row {number} has a quote that is not closed")
            )
        else:
            yield _row(layout, width, row, line.offset, number)
    if feed.broken is not None:
        raise feed.broken


def _cell_texts(row: list[TableCell]) -> list[str]:
    return [decode(cell.text) for cell in row]


def _whole_row(feed: LineReader, line: Chunk, between: bytes, width: int | None) -> list[TableCell] | None:
    """The cells of the row that begins with `line` and goes on in the next lines while a quote is open.

    None where no line closes it so that the row has `width` cells; the lines after the first are then read as rows.
    """
    text = line.text
    row = cells(text, between)
    if not any(cell.unclosed for cell in row):
        return row
    while any(cell.unclosed for cell in row) and len(text) < LONGEST_ROW and (next_line := feed.next()) is not None:
        text += next_line.text
        row = cells(text, between)
    if any(cell.broken for cell in row) or width not in (None, len(row)):
        feed.rewind()
        return None
    return row


def _row(layout: Columns, width: int, row: list[TableCell], offset: int, number: int) -> SequenceRecord:
    name = f"row {number}"
    surplus = [cell.text for cell in row[width:]]
    if len(row) < width or any(surplus):
        return SequenceRecord(name, problem=SampleError("corrupt", f"row {number} has {len(row)} columns, not {width}"))
    if any(row[column].broken for column in layout if column is not None):
        return SequenceRecord(name, problem=SampleError("corrupt", f"row {number} has text after a quote"))
    try:
        texts = [None if column is None else decode(row[column].text) for column in layout[1:]]
    except SampleError as problem:
        return SequenceRecord(name, problem=SampleError(problem.reason, f"row {number}"))
    row_id, label, split, subject = texts[0] or None, *map(_filled, texts[1:])
    cell = row[layout.sequence]
    return SequenceRecord(row_id or name, [Chunk(offset + cell.at, cell.text)], "", label, subject, split)


def _filled(text: str | None) -> str | None:
    """The text; None for a cell that holds nothing."""
    return None if text is None or text in NOTHING else text


# --- Parquet ----------------------------------------------------------------------------------------------------


def parquet_rows(spec: GenomicsSpec, uri: str) -> Iterator[SequenceRecord]:
    """Rows of a Parquet table; a letter's offset is its row's number, shifted left by 31 bits, plus its position in the cell.
    Of a row group that cannot be read to its end, one row with a problem says how many rows are lost.

    Raises SampleError, and OSError of the storage.
    """
    with open_parquet(uri) as file:
        names = file.schema_arrow.names
        layout = columns(spec.model_copy(update={"header": True}), names)
        roles = {role: names[column] for role, column in layout._asdict().items() if column is not None}
        start = 0
        for group in range(file.num_row_groups):
            number, stop = start, start + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(ROWS, [group], sorted(set(roles.values()))):
                    for record in _records(batch, roles, number):
                        yield record
                        number += 1
            except UnicodeDecodeError:
                yield _lost_rows("not_text", "a cell that is not UTF-8", number, stop)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
                if not is_broken_parquet(error, uri):
                    raise
                yield _lost_rows("corrupt", type(error).__name__, number, stop)
            start = stop


def _records(batch: pa.RecordBatch, roles: dict[str, str], first: int) -> Iterator[SequenceRecord]:
    """The rows of a batch, from row `first` of the table on. Raises UnicodeDecodeError."""
    table = {role: _column_texts(batch.column(name)) for role, name in roles.items()}
    for i, sequence in enumerate(table["sequence"]):
        rest = {role: values[i] for role, values in table.items()}
        yield SequenceRecord(
            rest.get("id") or f"row {first + i + 1}",
            [Chunk(first + i << CELL_BITS, (sequence or "").encode())],
            label=_filled(rest.get("label")),
            subject=_filled(rest.get("subject")),
            split=_filled(rest.get("split")),
        )


def _lost_rows(reason: str, what: str, start: int, stop: int) -> SequenceRecord:
    """In place of rows `start` to `stop`, counted from 0."""
    name = f"row {start + 1}"
    return SequenceRecord(
        name, problem=SampleError(reason, f"Parquet: {what}; {stop - start} rows from {name} on are not read")
    )


def _column_texts(column: pa.Array) -> list[str | None]:
    """Cells as text; whole numbers that were stored as floats, beside a missing one, have no decimal point."""
    if not pa.types.is_floating(column.type):
        return column.cast(pa.string()).to_pylist()
    return [None if each is None or each != each else f"{each:.17g}" for each in column.to_pylist()]


def open_parquet(uri: str):
    """A pyarrow ParquetFile. Raises SampleError `corrupt`."""
    import pyarrow.parquet as pq

    stream = open_input(uri)
    try:
        return pq.ParquetFile(stream)
    except (pa.ArrowInvalid, OSError) as error:
        stream.close()
        if not is_broken_parquet(error, uri):
            raise
        raise SampleError("corrupt", "Parquet: the footer cannot be read") from None
    except UnicodeDecodeError:
        stream.close()
        raise SampleError("corrupt", "Parquet: a column's name is not UTF-8") from None


class ParquetCells:
    """The sequence cells of one Parquet table by row number, a row group at a time."""

    def __init__(self, spec: GenomicsSpec, uri: str) -> None:
        self.uri = uri
        self._file = open_parquet(uri)
        names = self._file.schema_arrow.names
        self._name = names[columns(spec.model_copy(update={"header": True}), names).sequence]
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        self._group, self._cells = -1, pa.chunked_array([], pa.string())

    def read(self, start: int, end: int) -> bytes:
        """Text of one cell between two offsets. Raises SampleError `truncated` where the table has no such row."""
        row, base = start >> CELL_BITS, start >> CELL_BITS << CELL_BITS
        if row >= self._starts[-1]:
            raise SampleError("truncated", "the table is shorter than when it was indexed")
        group = next(i for i, start in enumerate(self._starts[1:]) if row < start)
        if group != self._group:
            row_group = self._file.read_row_group(group, columns=[self._name])
            self._group, self._cells = group, row_group.column(0).cast(pa.string())
        cell = (self._cells[row - self._starts[group]].as_py() or "").encode()
        return cell[start - base : end - base]

    def close(self) -> None:
        self._file.close(force=True)
