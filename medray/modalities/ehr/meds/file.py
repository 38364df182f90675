"""MedsFile: one Parquet file of a MEDS 0.4 dataset. Checked when opened, decoded a row group at a time.

MEDS DataSchema: subject_id int64, time timestamp[us] without a zone (null: static), code string, and where there
are numbers numeric_value float32. text_value and further columns are never read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from medray.errors import SampleError
from medray.modalities.ehr.meds.codes import CodeTable
from medray.storage.files import is_broken_parquet, open_input

STATIC = np.iinfo(np.int64).min
"""Time of an event without one."""
ABSENT = np.uint32(0x7FC0DEAD)
"""Bits of the NaN that stands for no number, so that it differs from a NaN in the file."""
CACHED_GROUPS = 4
BROKEN = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, OSError, UnicodeDecodeError)
"""What pyarrow raises for content that is damaged: a page that does not decode is an OSError of no errno, a column's name that
is not UTF-8 a UnicodeDecodeError."""


class Rows(NamedTuple):
    """N events of a file, in its order."""

    subject: np.ndarray
    """int64"""
    time: np.ndarray
    """int64, microseconds since 1970, STATIC for none"""
    code: np.ndarray
    """int32, number in the CodeTable"""
    value: np.ndarray
    """float32; ABSENT for none, and NaN or infinity where the file says so"""

    def take(self, rows: np.ndarray | slice) -> Rows:
        return Rows(*(column[rows] for column in self))

    @staticmethod
    def joined(parts: list[Rows]) -> Rows:
        return parts[0] if len(parts) == 1 else Rows(*map(np.concatenate, zip(*parts, strict=True)))


class MedsFile:
    """An open file. Raises SampleError when it is not Parquet or not MEDS."""

    def __init__(self, uri: str, codes: CodeTable) -> None:
        import pyarrow.parquet as pq

        self.uri, self._codes = uri, codes
        stream = open_input(uri)
        try:
            _check_magic(stream)
            facts = pq.read_metadata(stream)
            self.columns = checked_columns(facts.schema.to_arrow_schema())
            self._file = pq.ParquetFile(stream, metadata=facts, read_dictionary=["code"])
        except BROKEN as error:
            stream.close()
            if not is_broken_parquet(error, uri):
                raise
            raise SampleError("corrupt", f"Parquet: {type(error).__name__}") from None
        except SampleError:
            stream.close()
            raise
        sizes = [facts.row_group(g).num_rows for g in range(facts.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        """(G + 1,) first row of each row group, and the end."""
        self._cache: OrderedDict[int, Rows] = OrderedDict()
        self._problems: dict[int, SampleError | None] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def close(self) -> None:
        self._file.close(force=True)

    def subjects(self) -> Iterator[np.ndarray]:
        """subject_id of each row group, int64. Raises SampleError, and OSError of the storage."""
        for group in range(len(self.starts) - 1):
            yield _numbers(self._read(group, ["subject_id"]).column("subject_id"), pa.int64())

    def rows(self, start: np.ndarray, stop: np.ndarray) -> Rows:
        """The rows of ranges [start, stop), one range after the other. Raises SampleError."""
        if not len(start):
            return Rows(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.int32, np.float32)))
        if start.min() < 0 or stop.max() > len(self):
            raise SampleError("changed", f"{len(self)} rows now")
        groups = self._groups_of(start, stop)
        rows = Rows.joined([self._group(int(group)) for group in groups])
        lengths = stop - start
        if len(groups) == 1 or int(groups[-1] - groups[0]) == len(groups) - 1:
            first = start - self.starts[groups[0]]
            if (start[1:] == stop[:-1]).all():  # patients next to each other, as a worker mostly has them
                return rows.take(slice(int(first[0]), int(first[0] + lengths.sum())))
            return rows.take(spread(first, lengths))
        row = spread(start, lengths)
        group = np.searchsorted(self.starts, row, side="right") - 1
        sizes = np.diff(self.starts)[groups]
        moved = np.zeros(len(self.starts), np.int64)
        moved[groups] = np.cumsum(sizes) - sizes - self.starts[groups]
        return rows.take(row + moved[group])

    def problem_of(self, start: np.ndarray, stop: np.ndarray) -> SampleError | None:
        """Why the rows of ranges [start, stop) cannot be read; None where they can. Each row group is tried once."""
        for group in self._groups_of(start, stop).tolist():
            if group not in self._problems:
                try:
                    self._group(group)
                    self._problems[group] = None
                except SampleError as problem:
                    self._problems[group] = problem
            if (problem := self._problems[group]) is not None:
                return problem
        return None

    def _groups_of(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Numbers of the row groups that hold rows of these ranges, ascending."""
        first = np.searchsorted(self.starts, start, side="right") - 1
        last = np.searchsorted(self.starts, np.maximum(stop - 1, start), side="right") - 1
        if len(start) == 1 or ((first == first[0]).all() and (last == first[0]).all()):
            return np.arange(int(first.min()), int(last.max()) + 1)
        return np.unique(spread(first, last - first + 1))

    def _group(self, group: int) -> Rows:
        """The rows of a row group, from the cache where they are there. Raises SampleError."""
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        table = self._read(group, self.columns)
        coded = _one(table.column("code"))
        if not pa.types.is_dictionary(coded.type):
            coded = coded.dictionary_encode()
        if coded.null_count or table.column("subject_id").null_count:
            raise SampleError("bad_columns", "rows without a code or a subject_id; MEDS requires both in every row")
        number = self._codes.numbers(coded.dictionary.cast(pa.string()).to_pylist())
        rows = Rows(
            _numbers(table.column("subject_id"), pa.int64()),
            _times(table.column("time")),
            number[coded.indices.to_numpy()] if len(number) else np.empty(0, np.int32),
            _values(table.column("numeric_value")) if "numeric_value" in self.columns else _absent(len(table)),
        )
        self._cache[group] = rows
        while len(self._cache) > CACHED_GROUPS:
            self._cache.popitem(last=False)
        return rows

    def _read(self, group: int, columns: list[str]) -> pa.Table:
        try:
            return self._file.read_row_group(group, columns=columns, use_threads=False)
        except BROKEN as error:
            if not is_broken_parquet(error, self.uri):
                raise
            lost = int(self.starts[group + 1] - self.starts[group])
            raise SampleError(
                "corrupt",
                f"row group {group + 1} of {len(self.starts) - 1}, {lost} of {len(self)} rows: {type(error).__name__}",
            ) from None


def spread(start: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """All numbers of ranges: start[0], start[0] + 1 …, lengths[0] of them, then those of the next range."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - (ends - lengths), lengths)


def equal_runs(numbers: np.ndarray) -> list[tuple[int, int]]:
    """[start, stop) of each run of equal numbers; none for no numbers."""
    ends = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
    edges = [0, *ends.tolist(), len(numbers)] if len(numbers) else []
    return list(pairwise(edges))


def _check_magic(stream: pa.NativeFile) -> None:
    size = stream.size()
    if size == 0:
        raise SampleError("empty_file")
    head = stream.read(4)
    stream.seek(max(0, size - 4))
    tail = stream.read(4)
    stream.seek(0)
    if head != b"PAR1":
        raise SampleError("unrecognised_format", "no Parquet file")
    if tail != b"PAR1" or size < 12:
        raise SampleError("truncated", "a Parquet file without its footer")


def checked_columns(schema: pa.Schema) -> list[str]:
    """The columns to read. Raises SampleError `bad_columns` where they are not those of MEDS."""
    missing = [name for name in ("subject_id", "time", "code") if name not in schema.names]
    if missing:
        raise SampleError("bad_columns", f"no column {', '.join(missing)}; MEDS has subject_id, time and code")
    names = [name for name in ("subject_id", "time", "code", "numeric_value") if name in schema.names]
    if twice := [name for name in names if schema.names.count(name) > 1]:
        raise SampleError("bad_columns", f"more than one column {twice[0]}")
    kinds = {name: schema.field(name).type for name in names}
    check_times(kinds["time"], "time")
    kind = kinds["code"].value_type if pa.types.is_dictionary(kinds["code"]) else kinds["code"]
    wrong = None
    if not pa.types.is_integer(kinds["subject_id"]):
        wrong = ("subject_id", "int64")
    elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        wrong = ("code", "string")
    elif "numeric_value" in kinds and not pa.types.is_floating(kinds["numeric_value"]):
        wrong = ("numeric_value", "float32")
    if wrong:
        raise SampleError("bad_columns", f"{wrong[0]} is {kinds[wrong[0]]}; MEDS has {wrong[1]}")
    return names


def check_times(kind: pa.DataType, name: str) -> None:
    """Raise SampleError `bad_columns` for anything but a timestamp without a zone."""
    if not pa.types.is_timestamp(kind):
        raise SampleError("bad_columns", f"{name} is {kind}; MEDS has timestamp[us]")
    if kind.tz is not None:
        detail = f"{name} has the time zone {kind.tz}; MEDS has none: convert all tables to times without a zone"
        raise SampleError("bad_columns", detail)


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _numbers(column: pa.ChunkedArray, kind: pa.DataType) -> np.ndarray:
    """A column without nulls, as a numpy array of `kind`. Raises SampleError where a number does not fit."""
    if column.null_count:
        raise SampleError("bad_columns", "rows without a subject_id; MEDS requires one in every row")
    try:
        return _one(column.cast(kind)).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        raise SampleError("bad_columns", f"numbers that do not fit {kind}") from None


def _times(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) int64 microseconds, STATIC where null. Raises SampleError for times finer than a microsecond."""
    try:
        time = _one(column.cast(pa.timestamp("us"))).cast(pa.int64())
    except pa.ArrowInvalid:
        raise SampleError("bad_columns", "times that are not whole microseconds") from None
    return _filled(time, np.int64, STATIC)


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) float32, ABSENT where null; a float64 beyond float32 becomes infinite, and so counts as missing."""
    return _filled(_one(column.cast(pa.float32(), safe=False)), np.float32, ABSENT.view(np.float32))


def _filled(column: pa.Array, kind: type[np.generic], null: int | np.generic) -> np.ndarray:
    """(N,) numbers with `null` where there is none."""
    if not column.null_count:
        return column.to_numpy()
    numbers = np.frombuffer(column.buffers()[1], kind)[column.offset : column.offset + len(column)].copy()
    numbers[column.is_null().to_numpy(zero_copy_only=False)] = null
    return numbers


def _absent(rows: int) -> np.ndarray:
    return np.full(rows, ABSENT, np.uint32).view(np.float32)
