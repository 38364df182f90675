"""RowFiles: a table as Parquet files that never change, with a mark for each row that holds no more.

A night adds a small file and marks a few rows. Files are named by whoever owns the table (`IndexState`), so a file that
a killed run left is part of nothing. Now and then small files are merged and marked rows dropped.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from medray.storage import files

if TYPE_CHECKING:
    import pyarrow.parquet as pq

GROUP_ROWS = 131_072
"""Rows of a Parquet row group: what is read, and held, at once."""

SMALL_ROWS, SMALL_FILES = 1_000_000, 16
"""More than so many files of fewer rows are merged into one."""

AT = "_at"


class RowFile(BaseModel):
    """A Parquet file of a table."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    rows: int
    dead: str | None = None
    """File of marks, one bit a row, zlib: 1 where the row holds no more."""
    dead_rows: int = 0


def is_whole(folder: str, file: RowFile) -> bool:
    """Whether the file and its marks are there, and as long as they were written: by the footer, which stands at the end."""
    import pyarrow.parquet as pq

    try:
        with files.open_input(files.join(folder, file.name)) as stream:
            rows = pq.read_metadata(stream).num_rows
        if file.dead is not None:
            zlib.decompress(files.read_bytes(files.join(folder, file.dead)))
    except (FileNotFoundError, pa.ArrowInvalid, zlib.error):
        return False
    except OSError as error:
        if files.is_broken_parquet(error, folder):
            return False
        raise
    return rows == file.rows


class RowFiles:
    """The live rows of some Parquet files of a folder. A row's place is its number over all of them."""

    def __init__(self, folder: str, row_files: Sequence[RowFile], schema: pa.Schema) -> None:
        self.folder, self.files, self.schema = folder, tuple(row_files), schema
        self.starts = np.cumsum([0, *(file.rows for file in self.files)])

    @property
    def places(self) -> int:
        """Rows, marked ones too."""
        return int(self.starts[-1])

    def __len__(self) -> int:
        """Live rows."""
        return sum(file.rows - file.dead_rows for file in self.files)

    @property
    def names(self) -> list[str]:
        """Names of everything in the folder that belongs to the table."""
        return [name for file in self.files for name in (file.name, file.dead) if name]

    # -- reading

    def scan(
        self, columns: Sequence[str], *, at: bool = False, where: np.ndarray | None = None, valid: str | None = None
    ) -> pa.RecordBatchReader:
        """A stream of these columns of live rows, in the order of the files; with `at`, their places as `_at`.

        `where` (places,) bool: of those rows only. `valid`: of rows where that column is not null only.
        """
        fields = [self.schema.field(name) for name in columns] + ([pa.field(AT, pa.int64())] if at else [])
        schema = pa.schema(fields)
        return pa.RecordBatchReader.from_batches(schema, self._batches(schema, where, valid))

    def _batches(self, schema: pa.Schema, where: np.ndarray | None, valid: str | None) -> Iterator[pa.RecordBatch]:
        read = [name for name in self.schema.names if name in schema.names or name == valid]
        for file, start in zip(self.files, self.starts.tolist(), strict=False):
            live = None if where is None else where[start : start + file.rows]
            dead = self.dead(file)
            if dead is not None:
                live = ~dead if live is None else live & ~dead
            if live is not None and not live.any():
                continue
            for batch, first in self._groups(file, read, live, valid):
                keep = np.ones(len(batch), bool) if live is None else live[first : first + len(batch)]
                if valid:
                    keep = keep & batch.column(valid).is_valid().to_numpy(zero_copy_only=False)
                if not keep.any():
                    continue
                numbers = pa.array(np.arange(start + first, start + first + len(batch)))
                arrays = [numbers if name == AT else batch.column(name) for name in schema.names]
                rows = pa.RecordBatch.from_arrays(arrays, schema=schema)
                yield rows if keep.all() else rows.filter(pa.array(keep))

    def _groups(
        self, file: RowFile, columns: list[str], live: np.ndarray | None, valid: str | None
    ) -> Iterator[tuple[pa.RecordBatch, int]]:
        """(batch, number of its first row in the file), of the row groups in which a row can be wanted."""
        import pyarrow.parquet as pq

        with files.open_input(files.join(self.folder, file.name)) as stream, pq.ParquetFile(stream) as parquet:
            # a column that an earlier medray did not write is null in its rows
            stored = [name for name in columns if name in parquet.schema_arrow.names]
            stop = 0
            for number in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(number)
                first, stop = stop, stop + group.num_rows
                if (live is not None and not live[first:stop].any()) or (valid and _all_null(group, valid)):
                    continue
                for batch in parquet.iter_batches(GROUP_ROWS, row_groups=[number], columns=stored):
                    yield self._whole(batch, columns), first
                    first += len(batch)

    def _whole(self, batch: pa.RecordBatch, columns: list[str]) -> pa.RecordBatch:
        if batch.num_columns == len(columns):
            return batch
        fields = [self.schema.field(name) for name in columns]
        arrays = [
            batch.column(f.name) if f.name in batch.schema.names else pa.nulls(len(batch), f.type) for f in fields
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([f.with_nullable(True) for f in fields]))

    def dead(self, file: RowFile) -> np.ndarray | None:
        """(rows,) bool: marked. None: no row is."""
        if file.dead is None:
            return None
        raw = zlib.decompress(files.read_bytes(files.join(self.folder, file.dead)))
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=file.rows).astype(bool)

    # -- writing

    def marked(self, where: np.ndarray) -> RowFiles:
        """The table with the rows `where` (places,) bool marked as well. Files without a live row are left out."""
        remaining: list[RowFile] = []
        for file, start in zip(self.files, self.starts.tolist(), strict=False):
            bits = where[start : start + file.rows]
            if bits.any():
                known = self.dead(file)
                bits = bits if known is None else bits | known
                name = f"dead-{uuid.uuid4().hex}.bits"
                files.write_bytes(files.join(self.folder, name), zlib.compress(np.packbits(bits).tobytes(), 1))
                file = file.model_copy(update={"dead": name, "dead_rows": int(bits.sum())})
            if file.dead_rows < file.rows:
                remaining.append(file)
        return RowFiles(self.folder, remaining, self.schema)

    def added(self, file: RowFile) -> RowFiles:
        """The table with one more file; one without rows is left out."""
        return RowFiles(self.folder, [*self.files, *([file] if file.rows else [])], self.schema)

    def compacted(self, prefix: str) -> RowFiles:
        """The same live rows: small files merged where there are many, and files of which a quarter is marked."""
        small = [file for file in self.files if file.rows < SMALL_ROWS]
        chosen = {file.name for file in (small if len(small) > SMALL_FILES else [])}
        chosen |= {file.name for file in self.files if 4 * file.dead_rows > file.rows}
        if not chosen:
            return self
        old = RowFiles(self.folder, [file for file in self.files if file.name in chosen], self.schema)
        with new_rows(self.folder, prefix, self.schema) as writer:
            for batch in old.scan(self.schema.names):
                writer.write(batch)
        kept = [file for file in self.files if file.name not in chosen]
        return RowFiles(self.folder, kept, self.schema).added(writer.file)


class RowWriter:
    """Writes one new file of a table; `new_rows` makes it."""

    def __init__(self, parquet: pq.ParquetWriter, name: str, schema: pa.Schema) -> None:
        self._parquet, self.schema = parquet, schema
        self.file = RowFile(name=name, rows=0)
        self._waiting: list[pa.RecordBatch] = []

    @property
    def rows(self) -> int:
        """Given so far."""
        return self.file.rows + sum(map(len, self._waiting))

    def write(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Rows of the schema, in any number."""
        self._waiting += rows.to_batches() if isinstance(rows, pa.Table) else [rows]
        if self.rows - self.file.rows >= GROUP_ROWS:
            self.flush(whole_groups=True)

    def flush(self, *, whole_groups: bool = False) -> None:
        waiting = pa.Table.from_batches(self._waiting, self.schema)
        rows = len(waiting) // GROUP_ROWS * GROUP_ROWS if whole_groups else len(waiting)
        if rows:
            self._parquet.write_table(waiting.slice(0, rows), row_group_size=GROUP_ROWS)
        self._waiting = waiting.slice(rows).to_batches()
        self.file = self.file.model_copy(update={"rows": self.file.rows + rows})


@contextmanager
def new_rows(folder: str, prefix: str, schema: pa.Schema) -> Generator[RowWriter]:
    """A new file of a table. After the block it is whole; when the block raises, it is removed."""
    import pyarrow.parquet as pq

    name = f"{prefix}-{uuid.uuid4().hex}.parquet"
    repeated = [column for column in schema.names if column not in ("uri", "key_hi", "key_lo")]
    options = {"compression": "zstd", "compression_level": 1, "use_dictionary": repeated}
    with files.new_file(files.join(folder, name)) as stream, pq.ParquetWriter(stream, schema, **options) as parquet:
        writer = RowWriter(parquet, name, schema)
        yield writer
        writer.flush()
    if writer.file.rows == 0:  # nobody will name it
        files.remove_file(files.join(folder, name))


def _all_null(group: pq.RowGroupMetaData, column: str) -> bool:
    """Whether the statistics of a Parquet row group say that the column has no value."""
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema == column:
            facts = chunk.statistics
            return facts is not None and facts.has_null_count and facts.null_count == group.num_rows
    return False
