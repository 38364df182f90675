"""Scans of the score table: queries in DuckDB over streams of columns of the newest version, within a memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as ds

from medray.storage import delta, files
from medray.storage.queries import database, query

if TYPE_CHECKING:
    from deltalake import DeltaTable


class ScoreScan:
    """An opened table of scores that can be asked. Every answer is of the newest version."""

    def __init__(self, uri: str, table: DeltaTable) -> None:
        self.uri, self._table = uri, table

    @property
    def version(self) -> int:
        """Version of the log as last read."""
        return self._table.version()

    @property
    def has_artefacts(self) -> bool:
        """Whether the table has the column `artefact`; one of an earlier version gets it at the next claim."""
        return "artefact" in pa.schema(self._table.schema()).names

    def query(
        self,
        sql: str,
        columns: dict[str, ds.Expression],
        bundle_id: str | None,
        *,
        where: ds.Expression | None = None,
        memory: str = "2GB",
    ) -> pa.Table:
        """Rows of a query in DuckDB over `scores`: these columns of the rows of a bundle, or of all, of every attempt.

        `where` on scored_at or run_id spares reading files of other runs.
        """
        return self._query(sql, memory, scores=self._scan(columns, bundle_id, where))

    def ask(
        self,
        sql: str,
        columns: dict[str, ds.Expression] | None = None,
        bundle_id: str | None = None,
        *,
        memory: str = "2GB",
        **tables: pa.Table | pa.RecordBatchReader,
    ) -> pa.Table:
        """Rows of a query as in `query`, with further tables; `scores` is there where columns of it are asked for."""
        if columns is not None:
            tables["scores"] = self._scan(columns, bundle_id)
        return self._query(sql, memory, **tables)

    def _whole(self) -> AbstractContextManager[None]:
        do = "put it back from a backup: its rows are scores, and nobody else has them"
        return files.whole("a file of scores cannot be read", self.uri, do)

    def _any(self, where: ds.Expression, bundle_id: str) -> bool:
        """Whether a row of the bundle is so. Files whose bounds say no are not opened."""
        batches = self._scan({"reason": ds.field("reason")}, bundle_id, where)
        with self._whole():
            return sum(map(len, batches)) > 0  # to the end: a scan that is left reads ahead in threads of its own

    def _scan(
        self, columns: Mapping[str, ds.Expression], bundle_id: str | None = None, where: ds.Expression | None = None
    ) -> pa.RecordBatchReader:
        """A stream of these columns of the newest version, from the files of one bundle or of all."""
        self._table.update_incremental()
        chosen = None if bundle_id is None else ds.field("bundle_id") == bundle_id
        if where is not None:
            chosen = where if chosen is None else chosen & where
        return delta.dataset(self._table, self.uri).scanner(columns=columns, filter=chosen).to_reader()

    def _query(self, sql: str, memory: str, **tables: pa.Table | pa.RecordBatchReader) -> pa.Table:
        """Rows of a query in DuckDB. Raises MachineError where a file of the store is spoilt."""
        with self._whole(), database(memory) as db, query(db, sql, **tables) as rows:
            return rows.read_all()
