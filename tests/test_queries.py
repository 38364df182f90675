"""DuckDB over Arrow streams."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from medray.storage.queries import database, execute, query


@pytest.fixture
def stream(tmp_path):
    pq.write_table(pa.table({"n": range(100_000)}), tmp_path / "n.parquet", row_group_size=1000)
    return ds.dataset(tmp_path / "n.parquet").scanner(batch_size=1000).to_reader()


def test_a_stream_is_closed_after_its_query_however_little_was_read_of_it(stream):
    with database() as db, query(db, "select n from big limit 1", big=stream) as rows:
        assert len(rows.read_all()) == 1
    with pytest.raises(StopIteration):  # nothing is left to read
        stream.read_next_batch()


def test_a_stream_is_closed_after_a_statement_and_after_a_fault(stream):
    with database() as db, pytest.raises(Exception, match="missing"):
        execute(db, "create table t as select missing from big", big=stream)
    with pytest.raises(StopIteration):  # nothing is left to read
        stream.read_next_batch()
