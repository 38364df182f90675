"""What the score table tells of the nights before: which runs there were, and what they scored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from typing_extensions import TypedDict

from medray.scores.scan import ScoreScan

NIGHTS, DAYS = 30, 60
"""The reference: the last 30 runs of a bundle that scored anything, none older than 60 days."""
MOST_ENTRIES = 200_000


class NightBefore(TypedDict):
    """A run that scored anything, JSON-ready."""

    run_id: str
    began: str
    """UTC, ISO 8601"""
    entries: int
    failed: int


def recent_runs(store: ScoreScan, bundle_id: str, until: datetime) -> list[NightBefore]:
    """The last runs of a bundle before `until` (UTC), oldest first.

    As many as NIGHTS and one (tonight's own). An entry failed when no row of it is a score and one failed; those that
    are not eligible are left out, and so is a run that met nothing else. Reads only files of the last DAYS.
    """
    columns = {name: ds.field(name) for name in ("run_id", "key_hi", "key_lo", "status")}
    columns["at"] = ds.field("scored_at").cast(pa.int64())
    oldest = until - timedelta(days=DAYS)
    rows = store.query(
        f"""with entry as (
                select run_id, min("at") as "at", bool_or(status = 'scored') as scored,
                       bool_or(status = 'failed') as faulty
                from scores group by run_id, key_hi, key_lo)
            select run_id, min("at") as "at", count(*) as entries, count(*) filter (not scored) as failed
            from entry where scored or faulty group by run_id order by "at" desc limit {NIGHTS + 1}""",
        columns,
        bundle_id,
        where=ds.field("scored_at") >= pa.scalar(oldest, pa.timestamp("us", "UTC")),
    )
    runs: list[NightBefore] = []
    for row in reversed(rows.to_pylist()):
        began = datetime.fromtimestamp(row.pop("at") / 1e6, until.tzinfo)
        runs.append(
            {
                "run_id": row["run_id"],
                "began": began.isoformat(timespec="seconds"),
                "entries": row["entries"],
                "failed": row["failed"],
            }
        )
    return runs


def values(store: ScoreScan, bundle_id: str, runs: Sequence[NightBefore]) -> dict[str, np.ndarray]:
    """Output to the scores (N,) float64 that these runs (as `recent_runs` gives them) wrote.

    Of runs with more than MOST_ENTRIES entries in all, a part that the hash of an entry chooses: every n-th.
    """
    if not runs:
        return {}
    every = -(-sum(run["entries"] for run in runs) // MOST_ENTRIES)
    columns = {name: ds.field(name) for name in ("output", "value", "key_lo")}
    rows = store.query(
        f"select output, value from scores where value is not null and key_lo % {max(1, every):d} = 0 order by all",
        columns,
        bundle_id,
        where=ds.field("run_id").isin([run["run_id"] for run in runs]),
    )
    outputs = rows.column("output").to_numpy(zero_copy_only=False)
    scores = rows.column("value").to_numpy().astype(np.float64)
    return {str(name): scores[outputs == name] for name in dict.fromkeys(outputs.tolist())}
