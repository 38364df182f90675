"""Readings of the score table: what is pending, current scores, summaries. DuckDB over streams of columns, within a memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, Unpack, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from medray.archive.manifest import Manifest
from medray.errors import PASSING, REASONS
from medray.scores import standing
from medray.scores.scan import ScoreScan
from medray.scores.table import ADDED, RETIRED, SCORES, entry_keys
from medray.storage import delta
from medray.storage.queries import database, query

TRIES, NIGHT = 3, timedelta(hours=12)
"""An entry that could not be read because of its storage is tried so often in a night, and again every night."""
DOUBTED = timedelta(days=3)
"""How long an index opens the files of an entry that was found changed: every run that finds it so begins this anew."""


class PendingOptions(TypedDict, total=False):
    """See Readings.pending."""

    retry_failed: bool | Collection[str]
    attempts: int | None
    now: datetime | None
    memory: str


class BundleSummary(TypedDict):
    """What a store has of a bundle: its entries by their latest attempt, and what they take."""

    entries: int
    """scored + failed + not_eligible"""
    scored: int
    failed: int
    not_eligible: int
    reasons: dict[str, int]
    """Reason code to entries."""
    last_run_id: str
    last_scored_at: str
    """ISO 8601, UTC."""
    rows: int
    files: int
    """Files of rows; artefacts are not counted."""
    bytes: int


class StoreSummary(TypedDict):
    """What is in a store, JSON-ready."""

    store: str
    version: int
    bundles: dict[str, BundleSummary]


class OutlineRow(TypedDict):
    """What the current rows of a group of entries are of, each in order."""

    group: str
    outputs: list[str | None]
    run_ids: list[str]


class Readings(ScoreScan):
    """The reading half of a ScoreStore. Every reading is of the newest version."""

    def pending(self, manifest: pa.Table | Manifest, bundle_id: str, **options: Unpack[PendingOptions]) -> pa.Table:
        """Rows of the manifest, in its order, whose current rows are not of this (entry_id, fingerprint, bundle_id).

        Of a Manifest, which lies on disk, only these rows come into memory.

        Claim first, then ask: what an overtaken run commits before the claim is then seen, and nothing after it lands.
        A failed entry counts as done: the same content fails again. With `retry_failed` it is pending again when its
        latest attempt failed, for any reason or for one of those given (keys of errors.REASONS), and it has been
        tried less than `attempts` times. One that failed for a reason that may pass (errors.PASSING: the storage was
        away) is pending again in any case, at most TRIES times in a NIGHT; but where the index could not read it either, and
        says so by a reason of that kind, its row says the same. Reads the key columns of this bundle's files as a stream, and
        spills to disk beyond `memory`.
        """
        if len(manifest) == 0:
            return manifest.table() if isinstance(manifest, Manifest) else manifest
        numbers = self.pending_rows(manifest, bundle_id, **options)
        if isinstance(manifest, Manifest):
            return manifest.take(numbers)
        mask = np.zeros(len(manifest), bool)
        mask[numbers] = True
        return manifest.filter(pa.array(mask))

    def pending_rows(
        self,
        manifest: pa.Table | Manifest,
        bundle_id: str,
        *,
        retry_failed: bool | Collection[str] = False,
        attempts: int | None = None,
        now: datetime | None = None,
        memory: str = "2GB",
    ) -> np.ndarray:
        """Numbers of the pending rows, (N,) int64 in no order, as `Manifest.take` wants them; options as for `pending`, `now`
        (UTC) tells which tries were in this night."""
        unknown = sorted(set() if isinstance(retry_failed, bool) else set(retry_failed) - REASONS.keys())
        if unknown:
            raise ValueError(f"unknown reason codes {unknown}: expected some of {sorted(REASONS)}")
        columns: dict[str, ds.Expression] = {name: ds.field(name) for name in ("key_hi", "key_lo")}
        sql, reason = "select row from wanted anti join done using (key_hi, key_lo)", ds.field("reason")
        also: tuple[str, ...] = ()
        passing = reason.isin(pa.array(sorted(PASSING), pa.string()))
        if retry_failed or self._any(passing, bundle_id):
            codes = pa.array(() if retry_failed is True else sorted(retry_failed or ()), pa.string())
            columns["asked"] = ds.field("status") == "failed" if retry_failed is True else reason.isin(codes)
            columns["passing"] = passing
            columns["at"] = ds.field("scored_at").cast(pa.int64())  # one for all rows of an attempt
            most = 2**31 if attempts is None else attempts
            late = ((now or datetime.now(UTC)) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
            night = NIGHT // timedelta(microseconds=1)
            also = ("reason",)
            sql = f"""
                with tries as (
                    select key_hi, key_lo,
                           coalesce(max("at") filter (asked) = max("at"), false)
                               and count(distinct "at") < {most:d} as again,
                           coalesce(max("at") filter (passing) = max("at"), false)
                               and count(distinct "at") filter (passing and abs("at" - {late:d}) < {night:d}) < {TRIES:d}
                               as passed
                    from done group by all)
                select row from wanted left join tries using (key_hi, key_lo)
                where again is null or again or passed and (reason is null or reason not in ({_quoted(PASSING)}))"""
        rows = self._query(
            sql,
            memory,
            wanted=manifest.keys("row", *also) if isinstance(manifest, Manifest) else _keys(manifest, *also),
            done=self._scan(columns, bundle_id),
        )
        again = standing.overtaken(self, manifest, bundle_id, memory)
        return np.union1d(rows.column("row").to_numpy(), again)

    def doubted(self) -> list[str]:
        """Entries of any bundle that were of other content, within the time DOUBTED, than when they were indexed: what the
        index knows of their files may be wrong."""
        since = pa.scalar(datetime.now(UTC) - DOUBTED, pa.timestamp("us", "UTC"))
        changed = (ds.field("reason") == "changed") & (ds.field("scored_at") > since)
        with self._whole():
            rows = self._scan({"entry_id": ds.field("entry_id")}, None, changed).read_all()
        return pc.unique(rows.column("entry_id")).to_pylist()

    def scores(self, bundle_id: str, manifest: pa.Table | None = None, *, memory: str = "2GB") -> pa.Table:
        """Current rows (SCORES) of a bundle, ordered by entry, sample and output: each entry's latest attempt, without
        entries that are retired.

        With a manifest: of its entries alone, at the content that they have there.
        """
        present = pa.schema(self._table.schema()).names
        columns = {name: ds.field(name) for name in SCORES.names if name in present}
        columns["scored_at"] = ds.field("scored_at").cast(pa.int64())  # DuckDB needs an extension for time zones
        tables: dict[str, pa.Table | pa.RecordBatchReader] = {"scores": self._scan(columns, bundle_id)}
        where = ""
        if manifest is not None:
            keys = entry_keys(manifest)
            tables["wanted"] = pa.table({"key_hi": keys[:, 0], "key_lo": keys[:, 1]})
            where = "semi join wanted using (key_hi, key_lo)"
        rows = self._query(
            f"""select * from (select * from scores {where}
                               qualify scored_at = max(scored_at) over (partition by entry_id))
                where status <> '{RETIRED}' order by entry_id, sample_id, output""",
            memory,
            **tables,
        )
        for name in ADDED:
            if name not in present:
                rows = rows.append_column(name, pa.nulls(len(rows), SCORES.field(name).type))
        return rows.select(SCORES.names).cast(SCORES)

    def rows(self, bundle_id: str, own_ids: pa.Table | None = None, *, memory: str = "2GB") -> Iterator[pa.RecordBatch]:
        """Current rows of a bundle as `scores` has them, as a stream in bounded memory, all of one version of the table.

        Columns of SCORES without the keys, `scored_at` in microseconds since 1970 (UTC). With `own_ids` (subject_id,
        own_subject_id) also the latter, null where it has none for a subject.
        """
        present = pa.schema(self._table.schema()).names
        wanted = [name for name in SCORES.names if name not in ("key_hi", "key_lo", "fingerprint")]
        columns = {name: ds.field(name) for name in wanted if name in present}
        columns["scored_at"] = ds.field("scored_at").cast(pa.int64())  # DuckDB needs an extension for time zones
        names = ", ".join(name if name in present else f"null::varchar as {name}" for name in wanted)
        tables: dict[str, pa.Table | pa.RecordBatchReader] = {"scores": self._scan(columns, bundle_id)}
        join = ""
        if own_ids is not None:
            tables["own_ids"], names = own_ids, f"{names}, own_subject_id"
            join = "left join own_ids using (subject_id)"
        sql = f"""with latest as (from scores qualify scored_at = max(scored_at) over (partition by entry_id))
                  select {names} from latest {join} where status <> '{RETIRED}'
                  order by entry_id, sample_id, output"""
        with self._whole(), database(memory) as db, query(db, sql, **tables) as rows:
            yield from rows

    def outline(self, bundle_id: str, group: str) -> list[OutlineRow]:
        """What the current rows of a bundle are of, by groups of entries.

        `group` is a regular expression for entry ids; its first group names the group. Other entries are left out, and so
        are outputs that are artefacts alone.
        """
        columns = {name: ds.field(name) for name in ("entry_id", "output", "run_id", "status")}
        columns["at"] = ds.field("scored_at").cast(pa.int64())
        columns["numeric"] = ds.field("value").is_valid() | ds.field("output").is_null()
        outputs = "coalesce(list_sort(list(distinct output) filter (numeric)), [])"
        names = f"{outputs} as outputs, list_sort(list(distinct run_id)) as run_ids"
        rows = self._query(
            f"""with latest as (select * from scores qualify "at" = max("at") over (partition by entry_id))
                select regexp_extract(entry_id, '{group.replace("'", "''")}', 1) as "group", {names}
                from latest where status <> '{RETIRED}' and regexp_matches(entry_id, '{group.replace("'", "''")}')
                group by 1 order by 1""",
            "2GB",
            scores=self._scan(columns, bundle_id),
        )
        return rows.to_pylist()

    def stream(
        self, bundle_id: str, prefix: str, order: pa.RecordBatchReader, *, memory: str = "2GB"
    ) -> Iterator[pa.RecordBatch]:
        """Current rows of the entries in `order` (number int64, entry_id), ordered by number, in bounded memory.

        `prefix` is how their ids begin. Columns number, sample_id, output, value, reason. Without scores that are
        artefacts alone.
        """
        names = ("entry_id", "sample_id", "output", "value", "reason", "status")
        columns = {name: ds.field(name) for name in names} | {"at": ds.field("scored_at").cast(pa.int64())}
        self._table.update_incremental()
        chosen = (ds.field("bundle_id") == bundle_id) & pc.starts_with(ds.field("entry_id"), prefix)
        scores = delta.dataset(self._table, self.uri).scanner(columns=columns, filter=chosen).to_reader()
        sql = f"""select number, sample_id, output, value, reason
                  from (from scores qualify "at" = max("at") over (partition by entry_id))
                  join wanted using (entry_id)
                  where status <> '{RETIRED}' and (value is not null or output is null) order by number"""
        with self._whole(), database(memory) as db, query(db, sql, scores=scores, wanted=order) as rows:
            yield from rows

    def summary(self, *, memory: str = "2GB") -> StoreSummary:
        """What is in the store, by each entry's latest attempt. Any failed sample makes an entry failed; one is not eligible when no sample of it is anything else."""
        names = ("bundle_id", "entry_id", "status", "reason", "run_id")
        columns = {name: ds.field(name) for name in names} | {"at": ds.field("scored_at").cast(pa.int64())}
        bundles: dict[str, dict[str, Any]] = {}
        for row in self._query(_SUMMARY, memory, scores=self._scan(columns)).to_pylist():
            none = dict.fromkeys(("entries", "scored", "failed", "not_eligible"), 0)
            bundle = bundles.setdefault(row["bundle_id"], {**none, "reasons": {}})
            bundle["entries"] += row["entries"]
            bundle[row["status"]] += row["entries"]
            if row["reason"] is not None:
                bundle["reasons"][row["reason"]] = row["entries"]
            if row["at"] >= bundle.get("_at", row["at"]):
                bundle |= {"_at": row["at"], "last_run_id": row["run_id"]}
        for bundle in bundles.values():
            last = datetime.fromtimestamp(bundle.pop("_at") / 1e6, UTC)
            bundle |= {"last_scored_at": last.isoformat(timespec="seconds"), "rows": 0, "files": 0, "bytes": 0}
        for action in pa.table(self._table.get_add_actions(flatten=True)).to_pylist():
            bundle = bundles.get(action["partition.bundle_id"])
            if bundle is None:  # all of its entries are retired
                continue
            bundle["rows"] += action["num_records"]
            bundle["files"] += 1
            bundle["bytes"] += action["size_bytes"]
        return {"store": self.uri, "version": self.version, "bundles": cast("dict[str, BundleSummary]", bundles)}


# Of the rows of one attempt a failed one decides, then a scored one.
_SUMMARY = """
with latest as (
    select bundle_id, max("at") as "at", arg_max(run_id, "at") as run_id,
           arg_max(struct_pack(status := status, code := reason),
                   3 * "at" + case status when 'failed' then 2 when 'scored' then 1 else 0 end) as outcome
    from scores group by bundle_id, entry_id)
select bundle_id, outcome.status as status, outcome.code as reason, count(*) as entries, max("at") as "at",
       arg_max(run_id, "at") as run_id
from latest where outcome.status <> 'retired' group by bundle_id, status, reason
order by bundle_id, status desc, reason
"""


def _keys(manifest: pa.Table, *also: str) -> pa.Table:
    keys = entry_keys(manifest)
    columns = {"row": pa.array(np.arange(len(keys))), "key_hi": keys[:, 0], "key_lo": keys[:, 1]}
    names = manifest.schema.names
    nothing = pa.nulls(len(keys), pa.string())
    return pa.table(columns | {name: manifest.column(name) if name in names else nothing for name in also})


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))
