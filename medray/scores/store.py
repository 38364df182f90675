"""ScoreStore: claims, commits and readings of the score table."""

from __future__ import annotations

import re
import tempfile
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from medray import files
from medray.errors import REASONS, Fenced, MachineError, StoreError
from medray.manifest_table import Manifest
from medray.scores.sink import ScoreSink, now
from medray.scores.table import SCORES, Claim, claim_app, entry_keys

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from duckdb import DuckDBPyConnection

_ATTEMPTS = 5  # of one commit that lost a race against someone else's
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # a folder name on every storage, without escapes


class ScoreStore:
    """An opened table of scores. `open` is the way in."""

    def __init__(self, uri: str, table: DeltaTable) -> None:
        self.uri, self._table = uri, table

    @classmethod
    def open(cls, uri: str, *, create: bool = False) -> ScoreStore:
        """The store at `uri`; with `create`, made there when nothing is.

        Raises StoreError when nothing is there, something else is, or its columns are not SCORES.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        uri = files.absolute(uri)
        place = str(files.local_path(uri)) if files.is_local(uri) else uri
        made = False
        try:
            if not DeltaTable.is_deltatable(place):
                _refuse_other(uri, create)
                _create(place)
                made = True
            store = cls(uri, DeltaTable(place))
        except (DeltaError, OSError) as error:
            raise StoreError("the score store cannot be opened", where=uri, found=str(error)) from error
        if made:
            store._sync_log(-1)
        store._check_columns()
        return store

    def _check_columns(self) -> None:
        found = {f.name: str(f.type) for f in pa.schema(self._table.schema())}
        expected = {f.name: str(f.type) for f in SCORES}
        if found == expected and self._table.metadata().partition_columns == ["bundle_id"]:
            return
        names = [n for n in {**expected, **found} if found.get(n) != expected.get(n)]
        raise StoreError(
            "this Delta table is no score store of this version of medray",
            where=self.uri,
            found=", ".join(f"{n}: {found.get(n, 'missing')}" for n in names) or "other partition columns",
            expected=", ".join(f"{n}: {expected.get(n, 'no such column')}" for n in names)
            or "partitioned by bundle_id",
            do="give another folder for the store",
        )

    @property
    def version(self) -> int:
        """Version of the log as last read."""
        return self._table.version()

    def claim(self, bundle_id: str) -> Claim:
        """Take over the scoring of a bundle under a new run id: every earlier claim can commit no more."""
        from deltalake.exceptions import CommitFailedError

        if not _SAFE.fullmatch(bundle_id):
            raise ValueError(f"bundle id {bundle_id!r}: expected letters, digits, '.', '_' and '-'")
        run_id = f"{now():%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
        lost: CommitFailedError | None = None
        for _ in range(_ATTEMPTS):
            self._table.update_incremental()
            before = self.version
            claim = Claim(bundle_id, run_id, self._count(claim_app(bundle_id)) + 1)
            try:
                self._transact(claim, [], {"medray.kind": "claim"}, {claim.app: claim.number})
            except CommitFailedError as error:  # another run claimed at the same moment
                lost = error
                continue
            self._table.update_incremental()
            self._sync_log(before)
            return claim
        raise MachineError("the store could not be claimed", where=self.uri, found=str(lost), do="run again") from lost

    def sink(self, claim: Claim) -> ScoreSink:
        """Where the flow of a claimed run writes."""
        if files.is_local(self.uri):
            folder = files.local_path(self.uri)
            (folder / f"bundle_id={claim.bundle_id}").mkdir(exist_ok=True)
            files.sync_folder(folder)
        return ScoreSink(self.uri, claim, self)

    def append(self, claim: Claim, written: Sequence[dict[str, Any]]) -> None:
        """Add written files to the log in one commit, exactly once. Raises Fenced or MachineError."""
        from deltalake.exceptions import DeltaError
        from deltalake.transaction import AddAction

        self._refuse_absent(written)
        partition = {"bundle_id": claim.bundle_id}
        actions = [AddAction(w["path"], w["size"], partition, w["modified_ms"], True, w["stats"]) for w in written]
        rows = sum(w["rows"] for w in written)
        facts = {"medray.kind": "scores", "medray.rows": rows, "medray.files": len(written)}
        self._table.update_incremental()
        before, turn = self.version, self._count(claim.run_app) + 1
        problem: Exception | None = None
        for _ in range(_ATTEMPTS + 1):
            if self._count(claim.run_app) >= turn:  # read back: a commit may land and still raise
                self._sync_log(before)
                return
            self._refuse_overtaken(claim)
            try:
                self._transact(claim, actions, facts, {claim.app: claim.number, claim.run_app: turn})
            except (DeltaError, OSError) as error:  # a race, or a fault of the storage
                problem = error
            self._table.update_incremental()
        raise MachineError(
            "scores could not be committed; what was committed before is safe",
            where=self.uri,
            found=str(problem),
            do="check the storage, then run again: it goes on from the last commit",
        ) from problem

    def _transact(self, claim: Claim, actions: list[Any], facts: dict[str, Any], counters: dict[str, int]) -> None:
        """One commit against the log as last read; it fails when a counter of the same name has moved since."""
        from deltalake import CommitProperties, Transaction

        self._table.create_write_transaction(
            actions,
            "append",
            self._table.schema(),
            partition_by=["bundle_id"],
            commit_properties=CommitProperties(
                custom_metadata=facts | {"medray.bundle_id": claim.bundle_id, "medray.run_id": claim.run_id},
                app_transactions=[Transaction(app, count) for app, count in counters.items()],
            ),
        )

    def _count(self, app: str) -> int:
        return self._table.transaction_version(app) or 0

    def _refuse_overtaken(self, claim: Claim) -> None:
        newest = self._count(claim.app)
        if newest != claim.number:
            raise Fenced(
                "a later run has claimed the scores of this bundle; this one stops",
                where=self.uri,
                found=f"claim {newest}",
                expected=f"claim {claim.number}, of run {claim.run_id}",
                do="nothing: what this run has committed stays, the later run does the rest",
            )

    def _refuse_absent(self, written: Sequence[dict[str, Any]]) -> None:
        """A file that the driver cannot see is lost to every reader. Checked on local paths, where it costs nothing."""
        if not files.is_local(self.uri):
            return
        for each in written:
            place = files.local_path(files.join(self.uri, each["path"]))
            size = place.stat().st_size if place.exists() else None
            if size != each["size"]:
                raise MachineError(
                    "a file of scores that a worker wrote is not there",
                    where=str(place),
                    found="no file" if size is None else f"{size} bytes",
                    expected=f"{each['size']} bytes",
                    do="put the store on storage that the driver and all workers share",
                )

    def _sync_log(self, after: int) -> None:
        """delta-rs does not fsync its log: make the versions after `after` survive a power cut, where local."""
        if not files.is_local(self.uri):
            return
        folder = files.local_path(self.uri) / "_delta_log"
        for version in range(after + 1, self.version + 1):
            for log in (folder / f"{version:020d}.json", folder / f"{version:020d}.checkpoint.parquet"):
                if log.exists():
                    files.sync_file(log)
        if (folder / "_last_checkpoint").exists():
            files.sync_file(folder / "_last_checkpoint")
        files.sync_folder(folder)

    # -- housekeeping

    def compact(self) -> dict[str, Any]:
        """Join small files, never of two bundles. Rows and readers see no change. {files_added, files_removed}."""
        self._table.update_incremental()
        before = self.version
        done = self._table.optimize.compact()
        self._table.update_incremental()
        self._sync_log(before)
        return {"files_added": done["numFilesAdded"], "files_removed": done["numFilesRemoved"]}

    def vacuum(self, older_than: timedelta) -> dict[str, Any]:
        """Delete files that no version since `older_than` names, those of killed runs too. {files_deleted}."""
        self._table.update_incremental()
        hours = int(older_than.total_seconds() // 3600)
        gone = self._table.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True)
        return {"files_deleted": len(gone)}

    # -- reading

    def pending(
        self,
        manifest: pa.Table | Manifest,
        bundle_id: str,
        *,
        retry_failed: bool | Collection[str] = False,
        attempts: int | None = None,
        memory: str = "2GB",
    ) -> pa.Table:
        """Rows of the manifest, in its order, without a score at this (entry_id, fingerprint, bundle_id).

        Of a Manifest, which lies on disk, only these rows come into memory.

        Claim first, then ask: what an overtaken run commits before the claim is then seen, and nothing after it lands.
        A failed entry counts as done: the same content fails again. With `retry_failed` it is pending again when its
        latest attempt failed, for any reason or for one of those given (keys of errors.REASONS), and it has been
        tried less than `attempts` times. Reads the key columns of this bundle's files as a stream, and spills to disk
        beyond `memory`.
        """
        unknown = sorted(set() if isinstance(retry_failed, bool) else set(retry_failed) - REASONS.keys())
        if unknown:
            raise ValueError(f"unknown reason codes {unknown}: expected some of {sorted(REASONS)}")
        if len(manifest) == 0:
            return manifest.table() if isinstance(manifest, Manifest) else manifest
        columns: dict[str, Any] = {name: ds.field(name) for name in ("key_hi", "key_lo")}
        done = "done"
        if retry_failed:
            codes = None if retry_failed is True else pa.array(sorted(retry_failed), pa.string())
            reason = ds.field("reason")
            columns["again"] = reason.is_valid() if codes is None else reason.isin(codes)
            columns["at"] = ds.field("scored_at").cast(pa.int64())  # one for all rows of an attempt
            enough = "" if attempts is None else f'or count(distinct "at") >= {attempts:d}'
            done = f"""(select key_hi, key_lo from done group by all
                        having coalesce(max("at") filter (again) < max("at"), true) {enough})"""
        rows = self._query(
            f"select row from wanted anti join {done} using (key_hi, key_lo)",
            memory,
            wanted=manifest.keys("row") if isinstance(manifest, Manifest) else _keys(manifest),
            done=self._scan(columns, bundle_id),
        )
        numbers = rows.column("row").to_numpy()
        if isinstance(manifest, Manifest):
            return manifest.take(numbers)
        mask = np.zeros(len(manifest), bool)
        mask[numbers] = True
        return manifest.filter(pa.array(mask))

    def scores(self, bundle_id: str, manifest: pa.Table | None = None, *, memory: str = "2GB") -> pa.Table:
        """Current rows (SCORES) of a bundle, ordered by entry, sample and output: each entry's latest attempt.

        With a manifest: of its entries alone, at the content that they have there.
        """
        columns = {name: ds.field(name) for name in SCORES.names}
        columns["scored_at"] = ds.field("scored_at").cast(pa.int64())  # DuckDB needs an extension for time zones
        tables: dict[str, Any] = {"found": self._scan(columns, bundle_id)}
        where = ""
        if manifest is not None:
            keys = entry_keys(manifest)
            tables["wanted"] = pa.table({"key_hi": keys[:, 0], "key_lo": keys[:, 1]})
            where = "semi join wanted using (key_hi, key_lo)"
        rows = self._query(
            f"""select * from found {where}
                qualify scored_at = max(scored_at) over (partition by entry_id)
                order by entry_id, sample_id, output""",
            memory,
            **tables,
        )
        return rows.select(SCORES.names).cast(SCORES)

    def outline(self, bundle_id: str, group: str) -> list[dict[str, Any]]:
        """What the current rows of a bundle are of, by groups of entries: {group, outputs, run_ids}, each in order.

        `group` is a regular expression for entry ids; its first group names the group. Other entries are left out.
        """
        columns = {name: ds.field(name) for name in ("entry_id", "output", "run_id")}
        columns["at"] = ds.field("scored_at").cast(pa.int64())
        names = "list_sort(list(distinct output)) as outputs, list_sort(list(distinct run_id)) as run_ids"
        rows = self._query(
            f"""with latest as (select * from found qualify "at" = max("at") over (partition by entry_id))
                select regexp_extract(entry_id, '{group.replace("'", "''")}', 1) as "group", {names}
                from latest where regexp_matches(entry_id, '{group.replace("'", "''")}') group by 1 order by 1""",
            "2GB",
            found=self._scan(columns, bundle_id),
        )
        return rows.to_pylist()

    def stream(self, bundle_id: str, prefix: str, *, memory: str = "2GB") -> Iterator[pa.RecordBatch]:
        """Current rows of the entries whose id begins with `prefix`, ordered by entry id, in bounded memory.

        Columns entry_id, sample_id, fingerprint, output, value, reason.
        """
        names = ("entry_id", "sample_id", "fingerprint", "output", "value", "reason")
        columns = {name: ds.field(name) for name in names} | {"at": ds.field("scored_at").cast(pa.int64())}
        self._table.update_incremental()
        chosen = (ds.field("bundle_id") == bundle_id) & pc.starts_with(ds.field("entry_id"), prefix)
        found = self._table.to_pyarrow_dataset().scanner(columns=columns, filter=chosen).to_reader()
        sql = f"""select {", ".join(names)} from found qualify "at" = max("at") over (partition by entry_id)
                  order by entry_id"""
        with self._connection(memory, found=found) as connection:
            yield from connection.sql(sql).to_arrow_reader(1 << 16)

    def summary(self, *, memory: str = "2GB") -> dict[str, Any]:
        """What is in the store, JSON-ready, by each entry's latest attempt.

        {store, version, bundles: {bundle_id: {entries, scored, failed, reasons: {code: entries}, last_run_id,
        last_scored_at, rows, files, bytes}}}; entries = scored + failed. Any failed sample makes an entry failed.
        """
        names = ("bundle_id", "entry_id", "reason", "run_id")
        columns = {name: ds.field(name) for name in names} | {"at": ds.field("scored_at").cast(pa.int64())}
        bundles: dict[str, dict[str, Any]] = {}
        for row in self._query(_SUMMARY, memory, found=self._scan(columns)).to_pylist():
            bundle = bundles.setdefault(row["bundle_id"], {"entries": 0, "scored": 0, "failed": 0, "reasons": {}})
            bundle["entries"] += row["entries"]
            bundle["scored" if row["reason"] is None else "failed"] += row["entries"]
            if row["reason"] is not None:
                bundle["reasons"][row["reason"]] = row["entries"]
            if row["at"] >= bundle.get("_at", row["at"]):
                bundle |= {"_at": row["at"], "last_run_id": row["run_id"]}
        for bundle in bundles.values():
            last = datetime.fromtimestamp(bundle.pop("_at") / 1e6, UTC)
            bundle |= {"last_scored_at": last.isoformat(timespec="seconds"), "rows": 0, "files": 0, "bytes": 0}
        for action in pa.table(self._table.get_add_actions(flatten=True)).to_pylist():
            bundle = bundles[action["partition.bundle_id"]]
            bundle["rows"] += action["num_records"]
            bundle["files"] += 1
            bundle["bytes"] += action["size_bytes"]
        return {"store": self.uri, "version": self.version, "bundles": bundles}

    def history(self) -> list[dict[str, Any]]:
        """Who wrote to the store and when, newest first, JSON-ready: one row per run, one per other commit.

        {what, run_id, bundle_id, began, ended (UTC, ISO 8601), commits, files, rows}; `what` is "score" for a run,
        else the log's word for it (OPTIMIZE, VACUUM END …). A run that has claimed and committed nothing has 0 rows.
        """
        self._table.update_incremental()
        found: dict[str | int, dict[str, Any]] = {}
        for commit in sorted(self._table.history(), key=lambda commit: commit["version"]):
            run_id = commit.get("medray.run_id")
            at = datetime.fromtimestamp(commit["timestamp"] / 1000, UTC).isoformat(timespec="seconds")
            row = found.setdefault(
                run_id or commit["version"],
                {
                    "what": "score" if run_id else commit["operation"],
                    "run_id": run_id,
                    "bundle_id": commit.get("medray.bundle_id"),
                    "began": at,
                    "ended": at,
                    "commits": 0,
                    "files": 0,
                    "rows": 0,
                },
            )
            row["ended"] = at
            row["commits"] += commit.get("medray.kind") != "claim"
            row["files"] += commit.get("medray.files", 0)
            row["rows"] += commit.get("medray.rows", 0)
        return list(reversed(found.values()))

    def query(
        self,
        sql: str,
        columns: dict[str, ds.Expression],
        bundle_id: str,
        *,
        where: ds.Expression | None = None,
        memory: str = "2GB",
    ) -> pa.Table:
        """Rows of a query in DuckDB over `found`: these columns of a bundle's rows, of every attempt.

        `where` on scored_at or run_id spares reading files of other runs.
        """
        return self._query(sql, memory, found=self._scan(columns, bundle_id, where))

    def _scan(
        self, columns: dict[str, Any], bundle_id: str | None = None, where: ds.Expression | None = None
    ) -> pa.RecordBatchReader:
        """A stream of these columns of the newest version, from the files of one bundle or of all."""
        self._table.update_incremental()
        chosen = None if bundle_id is None else ds.field("bundle_id") == bundle_id
        if where is not None:
            chosen = where if chosen is None else chosen & where
        return self._table.to_pyarrow_dataset().scanner(columns=columns, filter=chosen).to_reader()

    def _query(self, sql: str, memory: str, **tables: pa.Table | pa.RecordBatchReader) -> pa.Table:
        """Rows of a query in DuckDB."""
        with self._connection(memory, **tables) as connection:
            return connection.sql(sql).to_arrow_table()

    @staticmethod
    @contextmanager
    def _connection(memory: str, **tables: pa.Table | pa.RecordBatchReader) -> Iterator[DuckDBPyConnection]:
        """DuckDB over these tables; it holds no more than `memory` and spills the rest to disk."""
        import duckdb

        with tempfile.TemporaryDirectory(prefix="medray-") as spill:
            settings = {"memory_limit": memory, "temp_directory": spill, "preserve_insertion_order": False}
            with duckdb.connect(config=settings) as connection:
                for name, table in tables.items():
                    connection.register(name, table)
                yield connection


# 2 * at + 1 for a failed row: of the rows of one attempt, a failed one decides.
_SUMMARY = """
with latest as (
    select bundle_id, max("at") as "at", arg_max(run_id, "at") as run_id,
           arg_max(struct_pack(code := reason), 2 * "at" + (reason is not null)::int).code as reason
    from found group by bundle_id, entry_id)
select bundle_id, reason, count(*) as entries, max("at") as "at", arg_max(run_id, "at") as run_id
from latest group by bundle_id, reason order by bundle_id, reason
"""


def _keys(manifest: pa.Table) -> pa.Table:
    keys = entry_keys(manifest)
    return pa.table({"row": pa.array(np.arange(len(keys))), "key_hi": keys[:, 0], "key_lo": keys[:, 1]})


def _refuse_other(uri: str, create: bool) -> None:
    """Raises StoreError when no store may be made at `uri`, where none is."""
    if not create:
        raise StoreError(
            "there is no score store here", where=uri, do="check the path; the first `medray score` makes the store"
        )
    if files.exists(uri) and next(files.list_files(uri), None) is not None:
        raise StoreError(
            "this place holds something else, so no score store is made here",
            where=uri,
            expected="an empty or a new folder",
            do="give another folder for the store",
        )


def _create(place: str) -> None:
    from deltalake import DeltaTable

    DeltaTable.create(
        place,
        schema=SCORES,
        mode="ignore",  # another run may be making it too
        partition_by=["bundle_id"],
        name="medray scores",
        description="One row per entry, sample, output and attempt; one per failed sample or entry.",
        configuration={"delta.logRetentionDuration": "interval 3650 days"},  # the log is the audit trail
    )
