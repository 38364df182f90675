"""ScoreStore: claims, commits and readings of the score table."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from medray import files
from medray.errors import REASONS, Fenced, MachineError, StoreError
from medray.manifest_table import Manifest
from medray.queries import database, query
from medray.scores import delta, history, runs, upkeep
from medray.scores.sink import ScoreSink, added, now
from medray.scores.table import IN_FILE, OF_SUBJECTS, REPLACED, SCORES, UPKEEP, Claim, claim_app, entry_keys

if TYPE_CHECKING:
    from deltalake import DeltaTable

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
        try:
            if not delta.there(uri):
                _refuse_other(uri, create)
                delta.make(uri, SCORES, **_FACTS)
            store = cls(uri, DeltaTable(delta.place(uri)))
        except (DeltaError, OSError) as error:
            raise StoreError("the score store cannot be opened", where=uri, found=str(error)) from error
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
        if not _SAFE.fullmatch(bundle_id):
            raise ValueError(f"bundle id {bundle_id!r}: expected letters, digits, '.', '_' and '-'")
        return self._claimed(bundle_id, {"medray.kind": "claim"})

    def claim_upkeep(self) -> Claim:
        """Take over the rewriting of files, of any bundle, under a new run id. Scoring goes on meanwhile."""
        return self._claimed(UPKEEP, {"medray.kind": "upkeep"})

    def fence_all(self, run_id: str) -> None:
        """Void every claim on a bundle: runs that are scoring can commit no more."""
        with delta.storing(self.uri):
            found = {files.relative(file.uri, self.uri) for file in files.list_files(self.uri)}
        folders = {path.partition("/")[0] for path in found if path.startswith("bundle_id=")}
        for folder in sorted(folders):
            self._claimed(folder.removeprefix("bundle_id="), {"medray.kind": "fence"}, run_id)

    @staticmethod
    def new_run_id() -> str:
        return f"{now():%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"

    def _claimed(self, bundle_id: str, facts: dict[str, Any], run_id: str | None = None) -> Claim:
        """Raises MachineError where the storage cannot be written."""
        from deltalake.exceptions import CommitFailedError

        run_id = run_id or self.new_run_id()
        lost: CommitFailedError | None = None
        for _ in range(_ATTEMPTS):
            with delta.storing(self.uri, "the store could not be claimed"):
                self._table.update_incremental()
                before = self.version
                claim = Claim(bundle_id, run_id, self._count(claim_app(bundle_id)) + 1)
                try:
                    self._transact(claim, [], facts, {claim.app: claim.number})
                except CommitFailedError as error:  # another run claimed at the same moment
                    lost = error
                    continue
                self._table.update_incremental()
                delta.sync_log(self.uri, before, self.version)
            return claim
        raise delta.fault(self.uri, lost or RuntimeError(), "the store could not be claimed")

    def sink(self, claim: Claim) -> ScoreSink:
        """Where the flow of a claimed run writes."""
        if files.is_local(self.uri):
            folder = files.local_path(self.uri)
            with delta.storing(self.uri):
                (folder / f"bundle_id={claim.bundle_id}").mkdir(exist_ok=True)
                files.sync_folder(folder)
        return ScoreSink(self.uri, claim, self)

    def append(self, claim: Claim, written: Sequence[dict[str, Any]]) -> None:
        """Add written files to the log in one commit, exactly once. Raises Fenced or MachineError."""
        self._refuse_absent(written)
        facts = {"medray.rows": sum(w["rows"] for w in written), "medray.files": len(written)}
        self.commit(claim, [added(w, claim.bundle_id) for w in written], {"medray.kind": "scores"} | facts)

    def commit(self, claim: Claim, actions: Sequence[Any], facts: dict[str, Any], gone: Collection[str] = ()) -> None:
        """Add and remove files in one commit, exactly once. Raises Fenced or MachineError.

        `gone`: paths that the commit removes. Raises Replaced where another commit has removed one of them before:
        what was made of them would double its rows. Delta itself takes two removals of one file; of two that counted
        REPLACED from the same number it refuses the later.
        """
        from deltalake.exceptions import DeltaError

        with delta.storing(self.uri):
            self._table.update_incremental()
        before, turn = self.version, self._count(claim.run_app) + 1
        problem: Exception = RuntimeError("no attempt")
        for _ in range(_ATTEMPTS + 1):
            if self._count(claim.run_app) >= turn:  # read back: a commit may land and still raise
                delta.sync_log(self.uri, before, self.version)
                return
            self._refuse_overtaken(claim)
            if gone and not set(gone) <= {each.path for each in self.live_files()}:
                raise upkeep.Replaced
            try:
                counters = {claim.app: claim.number, claim.run_app: turn}
                if gone:
                    counters[REPLACED] = self._count(REPLACED) + 1
                self._transact(claim, actions, facts, counters)
            except (DeltaError, OSError) as error:  # a race, or a fault of the storage
                problem = error
            with delta.storing(self.uri):
                self._table.update_incremental()
        raise delta.fault(self.uri, problem, "scores could not be committed") from problem

    def _transact(self, claim: Claim, actions: Sequence[Any], facts: dict[str, Any], counters: dict[str, int]) -> None:
        whose = {"medray.run_id": claim.run_id} | ({"medray.bundle_id": claim.bundle_id} if claim.bundle_id else {})
        delta.transact(
            self._table,
            actions,
            SCORES,
            facts=facts | whose,
            counters=counters,
            partition_by=["bundle_id"],
            clean=not actions,  # at a claim: once a run
        )

    def _count(self, app: str) -> int:
        return self._table.transaction_version(app) or 0

    def _refuse_overtaken(self, claim: Claim) -> None:
        newest = self._count(claim.app)
        if newest != claim.number:
            raise Fenced(
                "a later run has claimed what this one was writing; this one stops",
                where=self.uri,
                found=f"claim {newest}",
                expected=f"claim {claim.number}, of run {claim.run_id}",
                do="nothing is lost: what this run has committed stays. Run again where the later run was no scoring",
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

    # -- audit and upkeep

    def begin_run(self, what: str, run_id: str, bundle_id: str | None = None) -> runs.Record:
        """Note who begins what, when and with which code. `end_run` completes it; a killed run stays "running"."""
        return runs.begin(self.uri, what, run_id, bundle_id)

    def end_run(self, record: runs.Record, state: str = "done", **counts: Any) -> None:
        """Note how it ended: `state` "done", "stopped", "fenced" or "failed", and runs.Counts by name."""
        runs.end(self.uri, record, state, runs.Counts(**counts))

    def runs(self) -> list[dict[str, Any]]:
        """The audit table, newest first, JSON-ready: one row per run, with the columns of runs.RUNS."""
        return runs.read(self.uri)

    def merge(self, claim: Claim) -> int:
        """Merge files of the claim's bundle where many are of like size: a commit costs what the number of live files
        is. Returns how many were merged. Raises Fenced or MachineError."""
        return upkeep.merge(self, claim)

    def compact(self) -> dict[str, Any]:
        """Merge small files of each bundle, and write a checkpoint of the log: {files_merged, files_made}.

        Scores do not change, and a run that is scoring goes on. Raises Fenced where other upkeep began meanwhile.
        """
        return upkeep.compact(self)

    def vacuum(self, older_than: timedelta = upkeep.KEPT) -> dict[str, Any]:
        """Remove files that the newest version does not name: {files_removed, bytes_freed}.

        Those that a commit replaced more than `older_than` ago, and those of killed runs, when they are older than
        `older_than` and than an hour: a run that is scoring loses nothing. Earlier versions can then not be read.
        """
        return upkeep.vacuum(self, older_than)

    def forget(self, subjects: Collection[str]) -> dict[str, Any]:
        """Remove every row of these pseudonyms from every file below the store: {rows, files}, 0 where none.

        Runs that are scoring into the store are fenced: they could commit rows of the subject that they hold.
        """
        return upkeep.forget(self, subjects)

    def live_files(self) -> list[upkeep.LiveFile]:
        """What the newest version is made of, in the order of their paths."""
        self._table.update_incremental()
        found = pa.table(self._table.get_add_actions(flatten=True)).select(
            ["path", "partition.bundle_id", "size_bytes"]
        )
        return sorted(upkeep.LiveFile(*row.values()) for row in found.to_pylist())

    def unnamed_files(self, hours: int) -> Collection[str]:
        """Paths that the newest version does not name, of files replaced or (where never named) written `hours` ago."""
        self._table.update_incremental()
        return self._table.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=True)

    def checkpoint(self) -> None:
        """Sum the log up in one file: what opening reads then does not grow with the number of commits."""
        self._table.update_incremental()
        self._table.create_checkpoint()
        delta.sync_log(self.uri, self.version - 1, self.version)

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
        if len(manifest) == 0:
            return manifest.table() if isinstance(manifest, Manifest) else manifest
        numbers = self.pending_rows(manifest, bundle_id, retry_failed=retry_failed, attempts=attempts, memory=memory)
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
        memory: str = "2GB",
    ) -> np.ndarray:
        """As `pending`: the numbers of the rows alone, (N,) int64 in no order, as `Manifest.take` wants them."""
        unknown = sorted(set() if isinstance(retry_failed, bool) else set(retry_failed) - REASONS.keys())
        if unknown:
            raise ValueError(f"unknown reason codes {unknown}: expected some of {sorted(REASONS)}")
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
        return rows.column("row").to_numpy()

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
        with database(memory) as db, query(db, sql, found=found) as rows:
            yield from rows

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
        """Who wrote to the store and when, newest first: see scores/history.py."""
        self._table.update_incremental()
        return history.history(self._table.history(), self.runs())

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
        with database(memory) as db, query(db, sql, **tables) as rows:
            return rows.read_all()


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


_FACTS: dict[str, Any] = {
    "partition_by": ["bundle_id"],
    "name": "medray scores",
    "description": "One row per entry, sample, output and attempt; one per failed sample or entry.",
    "configuration": {
        "delta.logRetentionDuration": "interval 30 days",  # a commit lists the log; the table of runs is the audit trail
        "delta.checkpointInterval": "20",  # what a commit reads of the log begins at the last one
        # Other writers put minima and maxima of all columns into the log, which is kept: none of a subject's then.
        "delta.dataSkippingStatsColumns": ",".join(f.name for f in IN_FILE if f.name not in OF_SUBJECTS),
    },
}


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
