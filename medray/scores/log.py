"""ScoreLog: claims and commits of the score table. The newest claim alone may commit, and each commit lands once."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from medray.errors import ArchiveError, Fenced, MachineError, StoreError
from medray.scores import artefacts, audit
from medray.scores.file import EPOCH, ScoreFile, added, now
from medray.scores.scan import ScoreScan
from medray.scores.table import ADDED, IN_FILE, OF_SUBJECTS, REPLACED, SCORES, UPKEEP, Claim, claim_app
from medray.storage import delta, files
from medray.storage.conditional import refuse_unconditional
from medray.storage.versions import refuse_later

if TYPE_CHECKING:
    from deltalake.transaction import AddAction, RemoveAction

FORMAT = 1  # of the store; a later one says so as `medray.format` in the table's configuration
_BOUND = timedelta(milliseconds=1)
"""Bounds of times in a log are whole milliseconds, and some tools round them down."""
_ATTEMPTS = 5  # of one commit that lost a race against someone else's
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # a folder name on every storage, without escapes


class Replaced(Exception):
    """Files that a commit would replace are not live any more: another one has replaced them."""


class Claims:
    """The newest claims on bundles and on upkeep (UPKEEP) at one moment, by number."""

    def __init__(self, newest: Mapping[str, int], fenced: Collection[str] = ()) -> None:
        self.newest, self.fenced = newest, fenced
        """`fenced`: bundles on which the newest claim is a fence, so that files which tell no claim are of an earlier one."""

    def void(self, path: str) -> bool:
        """Whether the file of scores, or the artefact, at this path below the store is of an earlier claim, by which nothing can
        be committed any more. One that an earlier version of medray wrote does not tell its claim."""
        below = path.removeprefix(f"{artefacts.FOLDER}/").removeprefix("bundle_id=").split("/")
        tag = _TAG.match(below[1])
        if tag is None:
            return below[0] in self.fenced
        return int(tag[2]) < self.newest.get(UPKEEP if tag[1] == "upkeep" else below[0], 0)


_TAG = re.compile(r"(?:part-)?(claim|upkeep)(\d+)-")  # Claim.tag


class LiveFile(NamedTuple):
    """A file that the newest version names."""

    path: str
    bundle_id: str
    size: int


class ScoreLog(ScoreScan):
    """The log of a table of scores, opened: who may commit, what is committed, which files are live."""

    @classmethod
    def open(cls, uri: str | PathLike[str], *, create: bool = False, readers: files.Readers = "owner") -> Self:
        """The store at `uri`; with `create`, made there when nothing is, for `readers` alone where its folder is new.

        Raises StoreError when nothing is there, something else is, or its columns are not SCORES.
        """
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        uri = files.absolute(uri)
        try:
            if not delta.is_table(uri):
                _refuse_other(uri, create)
                files.make_closed_folder(uri, readers)
                refuse_unconditional(uri)
                delta.make(uri, SCORES, **_FACTS)
            store = cls(uri, DeltaTable(delta.location(uri)))
        except (DeltaError, OSError) as error:
            raise StoreError(
                "the score store cannot be opened",
                where=uri,
                found=str(error),
                do="a file of its log is spoilt: put _delta_log back from a backup",
            ) from error
        store._check_columns()
        return store

    def _check_columns(self) -> None:
        """Raises StoreError for a store of a later version of medray, and for a table that is no score store."""
        written = {name.removeprefix("medray."): fact for name, fact in self._table.metadata().configuration.items()}
        refuse_later(written, FORMAT, "the score store", self.uri, StoreError)
        columns = {f.name: str(f.type) for f in pa.schema(self._table.schema())}
        expected = {f.name: str(f.type) for f in SCORES if f.name in columns or f.name not in ADDED}
        if columns == expected and self._table.metadata().partition_columns == ["bundle_id"]:
            return
        names = [n for n in {**expected, **columns} if columns.get(n) != expected.get(n)]
        raise StoreError(
            "this Delta table is no score store of this version of medray",
            where=self.uri,
            found=", ".join(f"{n}: {columns.get(n, 'missing')}" for n in names) or "other partition columns",
            expected=", ".join(f"{n}: {expected.get(n, 'no such column')}" for n in names)
            or "partitioned by bundle_id",
            do="give another folder for the store",
        )

    def _complete_columns(self) -> None:
        """Add the columns that a store of an earlier version lacks. Raises DeltaError, OSError."""
        missing = [name for name in ADDED if name not in pa.schema(self._table.schema()).names]
        if missing:
            delta.add_columns(self._table, [SCORES.field(name) for name in missing])

    def claim(self, bundle_id: str) -> Claim:
        """Take over the scoring of a bundle under a new run id: every earlier claim can commit no more."""
        if not _SAFE.fullmatch(bundle_id):
            raise ValueError(f"bundle id {bundle_id!r}: expected letters, digits, '.', '_' and '-'")
        return self._claimed(bundle_id, {"medray.kind": "claim"})

    def claim_upkeep(self) -> Claim:
        """Take over the rewriting of files, of any bundle, under a new run id. Scoring goes on meanwhile."""
        return self._claimed(UPKEEP, {"medray.kind": "upkeep"})

    def fence_all(self, run_id: str) -> Claims:
        """Void every claim on a bundle that a file is of, or a run of the audit table: runs that are scoring can commit no
        more. The newest claims are then these, and the newest on upkeep."""
        with delta.storing(self.uri):
            bundles = {bundle_of(files.relative(file.uri, self.uri)) for file in files.list_files(self.uri)}
        bundles |= {run["bundle_id"] for run in audit.read(self.uri) if run["bundle_id"]}
        newest = {bundle_id: self.fence(bundle_id, run_id) for bundle_id in sorted(bundles - {UPKEEP})}
        return Claims(newest | {UPKEEP: self.claims(UPKEEP)}, fenced=newest.keys())

    def fence(self, bundle_id: str, run_id: str) -> int:
        """Void every claim on one bundle, or on upkeep (UPKEEP). The number of the claim that does it."""
        return self._claimed(bundle_id, {"medray.kind": "fence"}, run_id).number

    def claims(self, bundle_id: str) -> int:
        """How many claims on a bundle there have been: the number of the newest."""
        with delta.storing(self.uri):
            self._table.update_incremental()
        return self._count(claim_app(bundle_id))

    @staticmethod
    def new_run_id() -> str:
        """A name for a run that no other has; it begins with the time, UTC."""
        return f"{now():%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"

    def _claimed(self, bundle_id: str, facts: Mapping[str, object], run_id: str | None = None) -> Claim:
        """Raises MachineError where the storage cannot be written."""
        from deltalake.exceptions import CommitFailedError

        run_id = run_id or self.new_run_id()
        lost: CommitFailedError | None = None
        for _ in range(_ATTEMPTS):
            with delta.storing(self.uri, "the store could not be claimed"):
                self._table.update_incremental()
                before = self.version
                self._complete_columns()
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

    def next_stamp(self, bundle_id: str) -> datetime:
        """A time (UTC) later than the `scored_at` of every row of a bundle: that of the newest version at most.

        Asked after a claim has landed, before which all that earlier claims committed has landed, too. Rows that bear it or
        a later time are then the latest by the order of the log, whatever the clocks of workers and drivers say.
        """
        with delta.storing(self.uri):
            self._table.update_incremental()
            actions = pa.table(self._table.get_add_actions(flatten=True))
            actions = actions.filter(pc.equal(actions.column("partition.bundle_id"), bundle_id))
            if len(actions) == 0:
                return EPOCH
            bounds = (
                actions.column("max.scored_at") if "max.scored_at" in actions.column_names else pa.nulls(len(actions))
            )
            if bounds.null_count:  # written by another tool, which keeps no bounds
                bounds = self._scan({"at": ds.field("scored_at")}, bundle_id).read_all().column("at")
        return pc.max(bounds).as_py() + _BOUND

    def append(self, claim: Claim, written: Sequence[ScoreFile]) -> None:
        """Add written files to the log in one commit, exactly once. Raises Fenced or MachineError."""
        self.refuse_absent(written)
        facts = {"medray.rows": sum(w["rows"] for w in written), "medray.files": len(written)}
        self.commit(claim, [added(w, claim.bundle_id) for w in written], {"medray.kind": "scores"} | facts)

    def commit(
        self,
        claim: Claim,
        actions: Sequence[AddAction | RemoveAction],
        facts: Mapping[str, object],
        removed: Collection[str] = (),
    ) -> None:
        """Add and remove files in one commit, exactly once. Raises Fenced or MachineError.

        `removed`: paths that the commit removes. Raises Replaced where another commit has removed one of them before:
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
            if removed and not set(removed) <= {each.path for each in self._live()}:
                raise Replaced
            try:
                counters = {claim.app: claim.number, claim.run_app: turn}
                if removed:
                    counters[REPLACED] = self._count(REPLACED) + 1
                self._transact(claim, actions, facts, counters)
            except (DeltaError, OSError) as error:  # a race, or a fault of the storage
                problem = error
            with delta.storing(self.uri):
                self._table.update_incremental()
        raise delta.fault(self.uri, problem, "scores could not be committed") from problem

    def _transact(
        self,
        claim: Claim,
        actions: Sequence[AddAction | RemoveAction],
        facts: Mapping[str, object],
        counters: dict[str, int],
    ) -> None:
        whose = {"medray.run_id": claim.run_id} | ({"medray.bundle_id": claim.bundle_id} if claim.bundle_id else {})
        delta.transact(
            self._table,
            actions,
            SCORES,
            facts={**facts, **whose},
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

    def refuse_absent(self, written: Sequence[ScoreFile]) -> None:
        """A file that the driver cannot see, or not in its length, is lost to every reader: each is looked at (in a bucket by
        one HEAD, several at once), and of artefacts one listing for a shard that has any. Raises MachineError."""
        for each in written:
            if "artefacts" in each:
                artefacts.refuse_absent(self.uri, each["artefacts"])
        uris = [files.join(self.uri, each["path"]) for each in written]
        with delta.storing(self.uri):
            sizes = files.sizes(uris)
        for each, uri, size in zip(written, uris, sizes, strict=True):
            if size != each["size"]:
                raise MachineError(
                    "a file of scores that a worker wrote is not there",
                    where=uri,
                    found="no file" if size is None else f"{size} bytes",
                    expected=f"{each['size']} bytes",
                    do="put the store on storage that the driver and all workers share",
                )

    def live_files(self) -> list[LiveFile]:
        """What the newest version is made of, in the order of their paths."""
        self._table.update_incremental()
        return self._live()

    def _live(self) -> list[LiveFile]:
        """Those of the version as it was last read. A commit is held against this one: what it has checked is what it replaces."""
        actions = pa.table(self._table.get_add_actions(flatten=True)).select(
            ["path", "partition.bundle_id", "size_bytes"]
        )
        return sorted(LiveFile(*row.values()) for row in actions.to_pylist())

    def unnamed_files(self, hours: int) -> Collection[str]:
        """Paths that the newest version does not name, of files replaced or (where never named) written `hours` ago."""
        self._table.update_incremental()
        return self._table.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=True)

    def removed_files(self) -> set[str]:
        """Paths that the newest version says are removed: no run commits them again."""
        self._table.update_incremental()
        return set(self._table.vacuum(0, dry_run=True, enforce_retention_duration=False, full=False))

    def checkpoint(self) -> None:
        """Sum the log up in one file: what opening reads then does not grow with the number of commits."""
        self._table.update_incremental()
        delta.checkpoint(self._table)
        delta.sync_log(self.uri, self.version - 1, self.version)


_FACTS: dict[str, object] = {
    "partition_by": ["bundle_id"],
    "name": "medray scores",
    "description": "One row per entry, sample, output and attempt; one per sample or entry without a score.",
    "configuration": {
        "delta.logRetentionDuration": "interval 30 days",  # a commit lists the log; the table of runs is the audit trail
        "delta.checkpointInterval": "20",  # what a commit reads of the log begins at the last one
        # Other writers put minima and maxima of all columns into the log, which is kept: none of a subject's then.
        "delta.dataSkippingStatsColumns": ",".join(f.name for f in IN_FILE if f.name not in (*OF_SUBJECTS, *ADDED)),
    },
}


_BIRTH = re.compile(r"_medray/.*|_delta_log/(?!_last_checkpoint|.*\.parquet).*")
"""What lies in a store while another run makes it, before its first version stands: no reason to refuse the place."""


def bundle_of(path: str) -> str:
    """The bundle that a file below the store is of; UPKEEP where it is of none."""
    for above in ("bundle_id=", f"{artefacts.FOLDER}/"):
        if path.startswith(above):
            return path.removeprefix(above).partition("/")[0]
    return UPKEEP


def _refuse_other(uri: str, create: bool) -> None:
    """Raises StoreError when no store may be made at `uri`, where none is."""
    if not create:
        raise StoreError(
            "there is no score store here", where=uri, do="check the path; the first `medray score` makes the store"
        )
    if _holds_other(uri) and not delta.is_table(uri):
        raise StoreError(
            "this place holds something else, so no score store is made here",
            where=uri,
            expected="an empty or a new folder",
            do="give another folder for the store",
        )


def _holds_other(uri: str) -> bool:
    """Whether anything lies at `uri` but what another run leaves there while it makes a store. Raises ArchiveError for a folder that
    cannot be listed."""
    try:
        return any(not _BIRTH.fullmatch(files.relative(file.uri, uri)) for file in files.list_files(uri))
    except FileNotFoundError:  # a bucket's folder goes with its last file: with what another run asks the storage
        return False
    except ArchiveError:
        if files.is_local(uri) and files.exists(uri):
            raise
        return False  # nothing there yet
