"""ScoreStore: the table of scores, on Delta Lake. Append-only; every entry once; a stale run is fenced.

    claim ── pending ── [worker] ScoreSink.write: one Parquet file nobody sees ── [driver] ScoreSink.commit

1. `claim` commits an empty transaction that counts the claims of a bundle: the newest claim alone may commit.
2. `pending` is what the manifest has and the current rows have not, by two int64 keys, in bounded memory.
3. A worker writes one Parquet file per shard under a name never used before and returns path, size and statistics.
4. `commit` adds such files to the log, together with two transaction counters: the claim's and the run's own.
   The log refuses it when another claim has landed in between; after an unclear error the run's counter tells
   whether it landed. A run that was killed leaves files that no log names: no reader sees them.
5. Resume is 1 to 4 again.

The table is partitioned by bundle: `pending` opens the files of one bundle only, a bundle is dropped without
rewriting a file, and compaction never mixes two. It needs reader version 1 and writer version 2 of Delta, so
polars, DuckDB, pandas, PyArrow and Spark read it without medray.

An entry that was replaced in the archive, or tried again after a failure, has the rows of each time. The rows of
one attempt on one entry share one `scored_at`. It is the worker's time, but never before any row of the bundle that an
earlier claim has committed (`ScoreLog.next_stamp`): the latest rows of an entry are those that were committed last,
whatever the clocks of its machines say. So the current scores are:

    polars   scores = pl.scan_delta(uri)
             latest = scores.filter(pl.col("scored_at") == pl.col("scored_at").max().over("bundle_id", "entry_id"))
             latest.filter(pl.col("status") != "retired").collect()
    DuckDB   scores = DeltaTable(uri).to_pyarrow_dataset()  # or delta_scan('uri'), with the extension `delta`
             latest = "from scores qualify scored_at = max(scored_at) over (partition by bundle_id, entry_id)"
             duckdb.sql(f"from ({latest}) where status <> 'retired'")
    pandas   scores = DeltaTable(uri).to_pandas()
             latest = scores[scores.scored_at == scores.groupby(["bundle_id", "entry_id"]).scored_at.transform("max")]
             latest[latest.status != "retired"]
    PyArrow  scores, by = DeltaTable(uri).to_pyarrow_table(), ["bundle_id", "entry_id"]
             latest = scores.group_by(by).aggregate([("scored_at", "max")]).rename_columns([*by, "scored_at"])
             scores.join(latest, [*by, "scored_at"], join_type="inner").filter(pc.field("status") != "retired")

An entry whose file is there and holds it no more is `retired` by a row of its own (`standing.py`). To be exact about
entries whose files have left the archive, join with the manifest on (entry_id, fingerprint):
`ScoreStore.scores(bundle_id, manifest)`.
"""

from __future__ import annotations

from medray.scores.sink import ScoreSink
from medray.scores.store import ScoreStore
from medray.scores.table import GIVEN, SCORES, Claim, entry_keys

__all__ = ["GIVEN", "SCORES", "Claim", "ScoreSink", "ScoreStore", "entry_keys"]
