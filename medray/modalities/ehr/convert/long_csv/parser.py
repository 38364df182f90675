"""Long CSV to rows, whole blocks at a time: subject, time, code, value and unit by a column map."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import SampleError
from medray.modalities.ehr.convert.events import EVENT, FILES, IGNORED, NOTE, READ, ROWS, Drop, Subjects, Writer
from medray.modalities.ehr.convert.long_csv.head import HEAD, NO_TEXT, Rest, check_names, column_names
from medray.modalities.ehr.convert.long_csv.times import times
from medray.modalities.ehr.convert.long_csv.values import NOTHING_AS_CODE, NOTHING_OF_TOOLS, values
from medray.modalities.ehr.convert.members import Member, Unit, broken_files, members
from medray.modalities.ehr.convert.settings import CsvSource, CsvTable

BLOCK = 2**22
ROWS_AT_ONCE = 65_536
"""Small files are mapped together."""
SUBJECT = "\0subject"


class _Drops:
    """Which rows of a block are dropped, each for the first reason found."""

    def __init__(self, rows: int) -> None:
        self.why, self.names = np.zeros(rows, np.int16), [""]

    def __call__(self, where: np.ndarray, reason: str) -> None:
        if where.any():
            self.names.append(reason)
            self.why[where & (self.why == 0)] = len(self.names) - 1

    def counts(self) -> Iterator[tuple[str, int]]:
        counts = np.bincount(self.why, minlength=len(self.names))[1:]
        yield from ((name, int(count)) for name, count in zip(self.names[1:], counts, strict=True) if count)


class CsvParser:
    def __init__(self, source: CsvSource, key: bytes) -> None:
        self.source, self.subjects = source, Subjects(key, keep=source.keep_ids)

    def __call__(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        writer = Writer(unit.unit)
        waiting_of: dict[str, list[pa.Table]] = {}
        try:
            for member in members(unit.uri):
                for table, block in self._blocks(member, writer):
                    waiting = waiting_of.setdefault(table.name, [])
                    waiting.append(block)
                    if sum(map(len, waiting)) >= ROWS_AT_ONCE:
                        yield self._mapped(table, pa.concat_tables(waiting_of.pop(table.name)), writer)
        except SampleError as error:  # of the file before its first member, or between two
            writer.lost_file(unit.start, error)
        for name, blocks in waiting_of.items():
            table = next(each for each in self.source.tables if each.name == name)
            yield self._mapped(table, pa.concat_tables(blocks), writer)
        writer.finish()
        yield from writer.take()

    def _blocks(self, member: Member, writer: Writer) -> Iterator[tuple[CsvTable, pa.Table]]:
        """The member's rows as text columns, a block at a time; a broken one is a failed file."""
        name = member.name.rsplit("/", 1)[-1]
        table = next((each for each in self.source.tables if fnmatchcase(name, each.files)), None)
        if table is None:
            writer.count("", IGNORED)
            return
        writer.count("", FILES)
        try:
            with broken_files():
                subject = _subject_of_name(member.name, table)
                for block in _read(member.open(), table, writer):
                    yield (
                        table,
                        block if subject is None else block.append_column(SUBJECT, pa.repeat(subject, len(block))),
                    )
        except SampleError as error:
            writer.failed(member.number, error)

    def _mapped(self, table: CsvTable, block: pa.Table, writer: Writer) -> pa.RecordBatch:
        """Text columns of one table to EVENT rows; what is dropped is counted."""
        block = block.combine_chunks()
        drop = _Drops(len(block))
        for column in table.columns:
            drop(_true(pc.match_substring(_raw(block, column), NO_TEXT)), "not_text")
        identifier = _cells(block, table.subject_column or SUBJECT)
        subject, check = self._subjects(identifier, table, drop)
        code = pa.repeat(table.code, len(block)) if table.code_column is None else _cells(block, table.code_column)
        drop(_true(pc.is_in(code, pa.array(NOTHING_AS_CODE, pa.string()))), "no_code")
        drop(_true(pc.is_in(code, pa.array(table.drop_codes, pa.string()))), "by_rule")
        time, unsure = self._times(table, block, code, drop)
        code, number, words = self._values(table, block, code, drop)
        notes = {"clock_change": unsure, "two_digit_year": np.full(len(block), "%y" in table.time_format)}
        if table.subject_column is not None:
            notes["blanks_at_identifier"] = _true(pc.not_equal(_raw(block, table.subject_column), identifier))
        for note, where in notes.items():
            if count := int((where & (drop.why == 0)).sum()):
                writer.count(table.name, NOTE + note, count)
        writer.count(table.name, READ, len(block))
        for reason, count in drop.counts():
            writer.count(table.name, reason, count)
        seq = np.arange(writer.seq, writer.seq + len(block))
        writer.seq += len(block)
        columns = {
            "kind": np.full(len(block), EVENT, np.int8),
            "subject_id": subject,
            "check": check,
            "time": time,
            "code": code,
            "numeric_value": number,
            "text_value": words,
            "unit": np.full(len(block), writer.unit, np.int32),
            "seq": seq,
            "source": pa.repeat(table.name, len(block)),
            "head": np.ones(len(block), bool),
        }
        arrays = [
            pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(len(block), f.type) for f in ROWS
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=ROWS).filter(pa.array(drop.why == 0))

    def _subjects(self, cells: pa.Array, table: CsvTable, drop: _Drops) -> tuple[np.ndarray, np.ndarray]:
        """(N,) int64 ids and their checks; each identifier is keyed once per block."""
        words = cells.dictionary_encode()
        ids, bad = np.zeros((len(words.dictionary), 2), np.int64), np.zeros(len(words.dictionary), bool)
        for i, name in enumerate(words.dictionary.to_pylist()):
            if name:
                try:
                    ids[i] = self.subjects(name)
                except Drop:
                    bad[i] = True
        indices = words.indices.to_numpy()
        drop(_nothing(cells, table), "no_subject")
        drop(bad[indices], "bad_subject")
        return ids[indices, 0], ids[indices, 1]

    def _times(self, table: CsvTable, block: pa.Table, code: pa.Array, drop: _Drops) -> tuple[pa.Array, np.ndarray]:
        """(N,) timestamps in UTC, null = static, and (N,) bool: of an hour that clocks show twice or never."""
        static = _true(pc.is_in(code, pa.array(table.static_codes, pa.string())))
        if table.time_column is None:
            return pa.nulls(len(block), pa.timestamp("us")), np.zeros(len(block), bool)
        cells = _cells(block, table.time_column)
        time, wrong, unsure = times(cells, table)
        empty = _nothing(cells, table)
        if self.source.untimed == "drop":
            drop(empty & ~static, "no_time")
        drop(wrong & ~empty, "bad_time")
        at_origin = _true(pc.equal(time, pa.scalar(table.origin, pa.timestamp("us")))) | empty
        return pc.if_else(pa.array(static & at_origin), pa.scalar(None, pa.timestamp("us")), time), unsure

    @staticmethod
    def _values(table: CsvTable, block: pa.Table, code: pa.Array, drop: _Drops) -> tuple[pa.Array, pa.Array, pa.Array]:
        """(code with prefix, value and unit; float32 numbers; large_string texts), each (N,)."""
        number, text = pa.nulls(len(block), pa.float32()), pa.nulls(len(block), pa.large_string())
        full = pc.binary_join_element_wise(table.code_prefix, code, "")
        if table.value_column is not None:
            cells = _cells(block, table.value_column)
            parsed = values(cells, code, table)
            for reason, where in parsed.dropped.items():
                drop(where, reason)
            full = pc.if_else(pa.array(parsed.in_code), pc.binary_join_element_wise(full, cells, "//"), full)
            number, text = parsed.number, parsed.text
        if table.unit_column is not None:
            units = _cells(block, table.unit_column)
            without = pa.array(_nothing(units, table))
            full = pc.if_else(without, full, pc.binary_join_element_wise(full, units, "//"))
        return full, number, text


def _read(stream: BinaryIO, table: CsvTable, writer: Writer) -> Iterator[pa.Table]:
    """Blocks of text columns. Rows with another number of cells are counted and left out. Raises SampleError."""
    from pyarrow import csv

    head = stream.read(HEAD)
    names = column_names(head, table.delimiter, table.encoding)
    check_names(names, table.columns)

    def wrong(row: csv.InvalidRow) -> str:
        writer.count(table.name, READ)
        writer.count(table.name, "bad_row")
        return "skip"

    try:
        reader = csv.open_csv(
            Rest(head, stream, table.encoding),  # type: ignore[arg-type]  # any binary file object
            read_options=csv.ReadOptions(block_size=BLOCK, use_threads=False),
            parse_options=csv.ParseOptions(
                delimiter=table.delimiter, newlines_in_values=True, invalid_row_handler=wrong
            ),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys((*names, *table.columns), pa.string()), strings_can_be_null=False
            ),
        )
        for batch in reader:
            if len(whole := _whole_rows(batch, table, writer)):
                yield whole.select(list(table.columns))
    except KeyError:  # names that Arrow reads in another way
        raise SampleError("bad_columns", f"expected the columns {', '.join(table.columns)}") from None
    except pa.ArrowInvalid as error:  # its message may quote the file
        empty = "Empty CSV" in str(error)
        raise SampleError("empty_file" if empty else "corrupt", "" if empty else "no CSV of this encoding") from None


def _whole_rows(batch: pa.RecordBatch, table: CsvTable, writer: Writer) -> pa.Table:
    """The rows without those of which a cell holds other rows, because a quote before them is not closed."""
    lost = np.zeros(len(batch), bool)
    for column, kind in enumerate(batch.schema.types):
        if not pa.types.is_string(kind):
            continue
        for row in np.flatnonzero(_true(pc.match_substring(batch.column(column), "\n"))).tolist():
            swallowed = _rows_within(batch.column(column)[row].as_py(), batch.schema.names, table)
            if swallowed and not lost[row]:
                lost[row] = True
                writer.count(table.name, READ, swallowed)
                writer.count(table.name, "unclosed_quote", swallowed)
    return pa.Table.from_batches([batch]).filter(pa.array(~lost)) if lost.any() else pa.Table.from_batches([batch])


def _rows_within(cell: str, names: list[str], table: CsvTable) -> int:
    """How many rows of the source a cell has swallowed, its own included; 0 for a text of several lines. A line that is a
    row has as many cells, with a subject, a code and a time that is one."""
    lines = cell.splitlines()
    return len(lines) if any(_is_row(line, names, table) for line in lines[1:]) else 0


def _is_row(line: str, names: list[str], table: CsvTable) -> bool:
    if line.count(table.delimiter) != len(names) - 1:
        return False
    cells = dict(zip(names, line.split(table.delimiter), strict=True))
    needed = [cells[name].strip() for name in (table.subject_column, table.code_column) if name]
    when = cells[table.time_column].strip() if table.time_column else None
    return bool(needed) and all(needed) and (when is None or not times(pa.array([when]), table).wrong[0])


def _subject_of_name(name: str, table: CsvTable) -> str | None:
    """The identifier in a file's name; empty where the name has none, None where a column gives it."""
    if table.subject_column is not None:
        return None
    match = re.search(table.subject_pattern, name)
    return (match[1] or "") if match else ""


def _cells(block: pa.Table, column: str) -> pa.Array:
    """A text column as one array, without spaces at its ends."""
    return pc.utf8_trim_whitespace(_raw(block, column))


def _raw(block: pa.Table, column: str) -> pa.Array:
    chunks = block.column(column).chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


def _nothing(cells: pa.Array, table: CsvTable) -> np.ndarray:
    """(N,) bool: the cell is empty or stands for a missing value."""
    return _true(pc.is_in(cells, pa.array([*table.empty, *NOTHING_OF_TOOLS], pa.string())))


def _true(column: pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False).astype(bool)
