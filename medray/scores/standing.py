"""Which rows of the score store still stand: those of entries that the archive holds, at the content that it holds.

The current rows of an entry are its latest. So an entry that goes back to an earlier content is scored once more, and
one whose file is there and holds it no more gets a row that says so, `retired`, without a value. An entry whose file is
gone keeps its rows: a part of the archive may not be mounted.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from medray.archive.manifest import Manifest
from medray.scores.file import now, write_file
from medray.scores.log import ScoreLog
from medray.scores.scan import ScoreScan
from medray.scores.table import IN_FILE, RETIRED, Claim, entry_keys

OTHER = pa.schema(
    [(name, pa.string()) for name in ("entry_id", "subject_id")]
    + [("at", pa.int64()), ("status", pa.string()), ("run_id", pa.string())]
)

_OTHER = """
select entry_id, any_value(subject_id) as subject_id, max("at") as "at", arg_max(status, "at") as status,
       arg_max(run_id, "at") as run_id
from scores semi join other using (key_hi, key_lo) group by entry_id
"""
_OURS = """
with own as (select key_hi, key_lo, max("at") as "at" from scores semi join ours using (key_hi, key_lo) group by all)
select row from ours join own using (key_hi, key_lo) where own."at" < ours."at"
"""


def of_other_content(store: ScoreScan, wanted: pa.Table | Manifest, bundle_id: str, memory: str) -> pa.Table:
    """OTHER: entries with rows at a content that the manifest does not have of them, when the latest such row was written
    (µs since 1970 UTC), its status and its run."""
    names = ("key_hi", "key_lo")
    columns: dict[str, ds.Expression] = {name: ds.field(name) for name in names}
    sql = "select key_hi, key_lo from scores anti join wanted using (key_hi, key_lo) group by all"
    other = store.ask(sql, columns, bundle_id, memory=memory, wanted=_keys(wanted))
    if len(other) == 0:
        return OTHER.empty_table()
    columns |= {name: ds.field(name) for name in ("entry_id", "subject_id", "status", "run_id")}
    columns["at"] = ds.field("scored_at").cast(pa.int64())
    return store.ask(_OTHER, columns, bundle_id, memory=memory, other=other)


def overtaken(store: ScoreScan, wanted: pa.Table | Manifest, bundle_id: str, memory: str) -> np.ndarray:
    """(N,) int64: numbers of the manifest's rows that have a score, and later rows at another content or `retired`."""
    other = of_other_content(store, wanted, bundle_id, memory)
    if len(other) == 0:
        return np.empty(0, np.int64)
    sql = 'select row, key_hi, key_lo, "at" from wanted join other using (entry_id)'
    ours = store.ask(sql, memory=memory, wanted=_keys(wanted, "entry_id"), other=other)
    columns = {name: ds.field(name) for name in ("key_hi", "key_lo")}
    columns["at"] = ds.field("scored_at").cast(pa.int64())
    return store.ask(_OURS, columns, bundle_id, memory=memory, ours=ours).column("row").to_numpy()


def absent(store: ScoreScan, manifest: Manifest, bundle_id: str, memory: str = "2GB") -> pa.Table:
    """OTHER: entries with current rows in the store that the manifest does not have."""
    other = of_other_content(store, manifest, bundle_id, memory)
    unlisted = other.filter(pc.not_equal(other.column("status"), RETIRED))
    if len(unlisted) == 0:
        return unlisted
    sql = "select entry_id from wanted semi join unlisted using (entry_id)"
    listed = store.ask(sql, memory=memory, wanted=manifest.stream(["entry_id"]), unlisted=unlisted).column("entry_id")
    return unlisted.filter(pc.invert(pc.is_in(unlisted.column("entry_id"), listed))).sort_by("entry_id")


def of_runs(store: ScoreScan, manifest: Manifest, bundle_id: str, run_ids: Collection[str], memory: str = "2GB") -> int:
    """How many entries of the manifest have rows of these runs at a content that the manifest does not have of them."""
    columns = {name: ds.field(name) for name in ("entry_id", "key_hi", "key_lo")}
    theirs = ds.field("run_id").isin(pa.array(sorted(run_ids), pa.string()))
    sql = "select distinct entry_id, key_hi, key_lo from scores"
    rows = store.query(sql, columns, bundle_id, where=theirs, memory=memory)
    if len(rows) == 0:
        return 0
    sql = "select distinct entry_id from rows anti join wanted using (key_hi, key_lo)"
    other = store.ask(sql, memory=memory, rows=rows, wanted=_keys(manifest))
    sql = "select count(*) as n from wanted semi join other using (entry_id)"
    listed = store.ask(sql, memory=memory, other=other, wanted=manifest.stream(["entry_id"]))
    return listed.column("n")[0].as_py()


def of_run(store: ScoreScan, manifest: Manifest, claim: Claim, memory: str = "2GB") -> np.ndarray:
    """(N,) int64: numbers of the entries of the manifest, at its content, of which the claim's run has committed rows."""
    columns = {name: ds.field(name) for name in ("key_hi", "key_lo")}
    sql = "select distinct key_hi, key_lo from scores"
    done = store.query(sql, columns, claim.bundle_id, where=ds.field("run_id") == claim.run_id, memory=memory)
    sql = "select row from wanted semi join done using (key_hi, key_lo)"
    return store.ask(sql, memory=memory, done=done, wanted=_keys(manifest)).column("row").to_numpy()


def retire(store: ScoreLog, claim: Claim, entries: pa.Table) -> None:
    """One row `retired` for each of these entries (OTHER), in one commit. Raises Fenced or MachineError."""
    if len(entries) == 0:
        return
    retired_at = max(now(), store.next_stamp(claim.bundle_id))
    written = write_file(store.uri, claim.bundle_id, claim, _rows(entries, retired_at, claim.run_id), modified=now())
    if written is not None:
        store.append(claim, [written])


def _rows(entries: pa.Table, retired_at: datetime, run_id: str) -> list[pa.RecordBatch]:
    """IN_FILE."""
    count = len(entries)
    keyed = entries.select(["entry_id", "subject_id"]).append_column(
        "fingerprint", pa.array([bytes(16)] * count, pa.binary())
    )
    keys = entry_keys(keyed)
    columns = {name: keyed.column(name).combine_chunks() for name in keyed.schema.names} | {
        "sample_id": pa.repeat("", count),
        "key_hi": pa.array(keys[:, 0]),
        "key_lo": pa.array(keys[:, 1]),
        "run_id": pa.repeat(run_id, count),
        "scored_at": pa.repeat(pa.scalar(retired_at, IN_FILE.field("scored_at").type), count),
        "status": pa.repeat(RETIRED, count),
        "detail": pa.repeat("its file is there, and holds it no more", count),
    }
    arrays = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(count, f.type) for f in IN_FILE]
    return pa.Table.from_arrays(arrays, schema=IN_FILE).to_batches(max_chunksize=65_536)


def _keys(manifest: pa.Table | Manifest, *also: str) -> pa.Table | pa.RecordBatchReader:
    """(row, key_hi, key_lo, columns `also`) of a manifest."""
    if isinstance(manifest, Manifest):
        return manifest.keys("row", *also)
    keys = entry_keys(manifest)
    columns = {"row": pa.array(np.arange(len(keys))), "key_hi": pa.array(keys[:, 0]), "key_lo": pa.array(keys[:, 1])}
    return pa.table(columns | {name: manifest.column(name) for name in also})
