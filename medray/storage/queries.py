"""DuckDB over Arrow streams, within a memory limit: the joins and sorts of tables that do not fit in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY = "2GB"
COUNTED = 0.75
"""Share of the memory it takes that DuckDB counts against its limit: at a join of 100 million rows it took 1.25 times that."""

RowSource = pa.Table | pa.RecordBatchReader


@contextmanager
def database(memory: str = MEMORY) -> Generator[DuckDBPyConnection]:
    """A DuckDB that holds no more than about `memory` (as "2GB") and spills the rest below TMPDIR.

    Of a join, the right side is the one that is built: an Arrow stream has no size by which DuckDB could choose.
    """
    import duckdb
    from pydantic import ByteSize, TypeAdapter

    limit = TypeAdapter(ByteSize).validate_python(memory)
    with tempfile.TemporaryDirectory(prefix="medray-") as spill:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{int(COUNTED * limit)}B",
            "temp_directory": spill,
            "preserve_insertion_order": False,
            "disabled_optimizers": "build_side_probe_side,join_order",
        }
        with duckdb.connect(config=settings) as connection:
            yield connection


@contextmanager
def query(connection: DuckDBPyConnection, sql: str, **tables: RowSource) -> Generator[pa.RecordBatchReader]:
    """The rows of a query as a stream; `tables` are seen by it alone. Queries may be open at the same time."""
    with connection.cursor() as cursor, closed(tables):
        for name, table in tables.items():
            cursor.register(name, table)
        yield cursor.sql(sql).to_arrow_reader(65_536)


@contextmanager
def closed(tables: Mapping[str, RowSource]) -> Generator[None]:
    """After the block, streams among the tables are closed: DuckDB does not read to its end what it can do without, and a scan
    of Arrow's would go on reading ahead in threads of its own."""
    try:
        yield
    finally:
        for table in tables.values():
            if isinstance(table, pa.RecordBatchReader):
                table.close()


def execute(connection: DuckDBPyConnection, sql: str, **tables: RowSource) -> None:
    """A statement without rows of its own; what it creates is seen by later queries."""
    with connection.cursor() as cursor, closed(tables):
        for name, table in tables.items():
            cursor.register(name, table)
        cursor.execute(sql)
