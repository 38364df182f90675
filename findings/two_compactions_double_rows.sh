#!/usr/bin/env bash
# deltalake 1.6.6 (delta-rs): two processes that compact one table at the same moment.
#
# Both have read version 2, both write the same rows into a new file, the first commits. The Delta protocol leaves conflicts to
# writers; delta-rs refuses a delete or an update that comes second.
# Expected before the run: the second compaction is refused, too, or sees that there is nothing left to do.
# Seen: it lands, and every row of the table is there twice. So it is with z_order, and with create_write_transaction where
# actions say data_change = False: removals of files that are removed already are taken.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'deltalake==1.6.6' 'pyarrow==26.0.1'
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

print("deltalake", deltalake.__version__)


def rows(uri):
    files = DeltaTable(uri).file_uris()
    return sorted(row for file in files for row in pq.read_table(file).column("measurement").to_pylist())


def two(name, second):
    for measurement in (1, 2, 3):
        write_deltalake(name, pa.table({"measurement": [measurement]}), mode="append")
    one, other = DeltaTable(name), DeltaTable(name)
    one.optimize.compact()
    assert rows(name) == [1, 2, 3]
    try:
        second(other)
        print("compact, then", name, "from the version before: lands, the rows are", rows(name))
    except CommitFailedError:
        print("compact, then", name, "from the version before: refused, the rows are", rows(name))
    return rows(name)


assert two("compact", lambda table: table.optimize.compact()) == [1, 1, 2, 2, 3, 3]
assert two("z_order", lambda table: table.optimize.z_order(["measurement"])) == [1, 1, 2, 2, 3, 3]
assert two("delete", lambda table: table.delete("measurement = 1")) == [1, 2, 3]
print("as found")
PY
