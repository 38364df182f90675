"""index: an archive to its manifest. Files that have not changed since the last index are not opened again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.changes import regroup
from medray.archive.entries import PARTS
from medray.archive.listing import compare, list_archive, named
from medray.archive.manifest import (
    DOUBTED,
    STATE,
    IndexState,
    Manifest,
    changes_of,
    counted,
    listing_of,
    parts_of,
    read_state,
    write_state,
)
from medray.archive.manifest import doubted as doubts
from medray.archive.pseudonyms import pseudonym_key
from medray.config.runs import EvaluateRun, ScoreRun, TrainRun
from medray.engines.base import Engine
from medray.errors import NOT_ELIGIBLE, ArchiveAway, ArchiveError, ArchiveGone, MachineError, UserError
from medray.flows.driver import shards
from medray.flows.flow import Flow
from medray.flows.table_sink import TableSink
from medray.learning import bundles
from medray.modalities.base import Modality, assembler, describer
from medray.modalities.registry import ModalitySpec, open_modality
from medray.modalities.site import at_site
from medray.modalities.spec import free_text, judge
from medray.plugins.brought import brought
from medray.progress import Progress, Silent
from medray.storage import files
from medray.storage.queries import database, execute
from medray.storage.row_files import RowFiles, new_rows
from medray.storage.walk import AWAY, Unlisted
from medray.verbs import stages
from medray.verbs.results import IndexResult
from medray.verbs.unsettled import faults_of, refuse_away, tell_faults, unread, unsettled

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SMALL_FILES, SMALL_BYTES = 2000, 2**28
"""Scanned in about a second, which is less than workers take to start."""

ROUND_FILES = 1_000_000
"""Planned at once: their names are in memory."""


def index(
    run: TrainRun | EvaluateRun | ScoreRun, engine: Engine, progress: Progress | None = None, *, failed: bool = False
) -> IndexResult:
    """List the archive, scan what is new or changed, and write the manifest. `failed`: the result lists what cannot be read.

    Raises ArchiveError when the archive is missing or empty.
    """
    manifest, result = index_archive(run, modality_of(run), engine, progress or Silent())
    return result.model_copy(update={"failed_entries": failed_entries(manifest)}) if failed else result


def failed_entries(manifest: Manifest) -> list[dict[str, str | None]]:
    """{path, reason, detail} of each entry that cannot be read, in the order of their paths below the root."""
    columns = ["entry_id", "parts", "reason", "detail"]
    rows: list[dict[str, str | None]] = []
    for batch in manifest.stream(columns):
        for row in batch.filter(batch.column("reason").is_valid()).to_pylist():
            uri = row["parts"][0]["uri"] if row["parts"] else row["entry_id"]
            path = files.relative(uri, manifest.root) if files.is_below(uri, manifest.root) else uri  # a list elsewhere
            if row["reason"] not in NOT_ELIGIBLE:
                rows.append({"path": path, "reason": row["reason"], "detail": row["detail"]})
    return sorted(rows, key=lambda row: row["path"] or "")


def modality_of(run: TrainRun | EvaluateRun | ScoreRun) -> ModalitySpec:
    """A score run reads as its bundle does, from where things lie at its site."""
    if isinstance(run, TrainRun):
        return run.modality
    return at_site(bundles.load(run.bundle_uri).recipe.modality, run.modality)


def index_archive(
    run: TrainRun | EvaluateRun | ScoreRun,
    spec: ModalitySpec,
    engine: Engine,
    progress: Progress,
    doubted: Collection[str] = (),
    then: tuple[str, ...] = (),
) -> tuple[Manifest, IndexResult]:
    """(manifest, result). The files of `doubted` entries are opened whatever their size and time say: when they were read,
    they were not as they had been indexed. `then`: modules that the work after this one will need (`Flow.next_imports`)."""
    started = time.monotonic()
    refuse_own_places(run)
    if len(files.places(run.root)) > 1 and not spec.several_archives:
        raise UserError(
            f"the modality {spec.kind!r} reads one archive at a time",
            where="archive",
            found=f"{len(files.places(run.root))} archives",
            do="convert them to one, or make a run file for each",
        )
    folder = files.join(run.folder, "manifest")
    with (
        database() as db,
        files.whole("a file of the index is spoilt", folder, "remove the folder: the next index reads every file anew"),
    ):
        index_run = _IndexRun(run, spec, engine, progress, db, doubted, then)
        state, kinds = index_run.index()
        files.remove_file(files.join(folder, DOUBTED))
    result = IndexResult(
        entries=state.counts.entries,
        failed=state.counts.failed,
        subjects=state.counts.subjects,
        bytes=state.counts.bytes,
        files=index_run.listing.places,
        scanned=int(index_run.opened.sum()),
        linked=index_run.linked,
        folders_away=index_run.folders_away,
        new=kinds.get("new", 0),
        changed=kinds.get("changed", 0),
        vanished=kinds.get("vanished", 0),
        by_reason=state.counts.by_reason,
        not_eligible=state.counts.not_eligible,
        not_eligible_by_reason=state.counts.not_eligible_by_reason,
        flagged=state.counts.flagged,
        outside=state.counts.outside,
        mixture=list(state.counts.mixture),
        manifest=index_run.folder,
        seconds=time.monotonic() - started,
    )
    if len(result.mixture) > 1:
        progress.note(f"this archive is a mixture: {mixture_words(result.mixture)}")
    if result.flagged:
        farthest = ", ".join(f"{name} {count:,}" for name, count in result.outside.items())
        progress.fact("outside", "warning", entries=result.flagged)
        progress.note(f"{result.flagged:,} entries lie outside of what the training archive held: {farthest}")
    return Manifest(index_run.folder, state), result


def mixture_words(mixture: Sequence[Mapping[str, str | int]]) -> str:
    """ "12 of Modality CT, BodyPartExamined HEAD; 3 of Modality MR": what differs between the kinds, most frequent first."""
    first, *others = [set(kind.items()) for kind in mixture]
    common = first.intersection(*others)
    kinds: list[str] = []
    for kind in mixture:
        own = [f"{name} {value}" for name, value in kind.items() if name != "entries" and (name, value) not in common]
        kinds.append(f"{kind['entries']:,} of {', '.join(own) or 'another kind, which is not stated'}")
    return "; ".join(kinds)


def refuse_own_places(run: TrainRun | EvaluateRun | ScoreRun) -> None:
    """What medray writes would be entries of the archive at the next index. Raises UserError."""
    uris = {"work": run.folder, "bundle": run.bundle_uri}
    if isinstance(run, ScoreRun):
        uris["store"] = run.store_uri
    for key, uri in uris.items():
        if any(f"{uri.rstrip('/')}/".startswith(f"{place.rstrip('/')}/") for place in files.places(run.root)):
            raise UserError(
                f"the {key} lies inside the archive, and would be read as data at the next index",
                where=f"{key} = {uri}",
                found=f"archive = {run.root}",
                expected="places of their own for what medray writes",
                do=f"give another folder for {key}, or a narrower archive",
            )


class _IndexRun:
    """One index run. `index` leaves the state before it in force until the last step."""

    def __init__(
        self,
        run: TrainRun | EvaluateRun | ScoreRun,
        spec: ModalitySpec,
        engine: Engine,
        progress: Progress,
        db: DuckDBPyConnection,
        doubted: Collection[str],
        then: tuple[str, ...],
    ) -> None:
        self.then = then
        self.run, self.spec, self.engine, self.progress, self.db = run, spec, engine, progress, db
        self.doubted = {*doubted, *doubts(files.join(run.folder, "manifest"))}
        self.folder = folder = files.join(run.folder, "manifest")
        files.make_closed_folder(run.folder, run.readers)
        files.make_closed_folder(folder)
        self.key = pseudonym_key(run.pseudonym_key)
        how = hashlib.sha256(spec.model_dump_json().encode() + run.root.encode() + self.key)
        self.modality = open_modality(spec)
        for plug_in in brought(spec):
            how.update(plug_in.model_dump_json().encode())
        self.companions = _companions(self.modality, run.root)
        how.update(self.companions)
        if self.modality.edition != 1:
            how.update(f"edition {self.modality.edition}".encode())
        if not all(map(files.is_local, files.places(run.root))):
            how.update(b"gzip as stored")  # earlier versions digested what pyarrow had unpacked
        self.how = how.hexdigest()[:16]
        self.before = before = read_state(folder)
        if before is None and files.exists(files.join(folder, STATE)):
            progress.fact("index_not_whole", "warning")
            progress.note("the last index is not whole: every file is read again")
        self.afresh = before is None or before.how != self.how
        now = datetime.now(UTC)
        self.seen_at = now if before is None else max(now, before.seen_at + timedelta(microseconds=1))
        self.old_listing, self.old_parts = listing_of(folder, before), parts_of(folder, before)
        lists = [
            file
            for place in files.places(run.root)
            for uri in self.modality.lists(place)
            for file in files.archive_files(uri)
        ]
        linked, unlisted = list[str](), list[Unlisted]()
        try:
            self.listed = list_archive(
                folder, run.root, list(dict.fromkeys(lists)), linked, unlisted, self.old_listing, run
            )
        except ArchiveGone as error:
            if not self._was_there:
                raise ArchiveError(**error.facts()) from None
            raise ArchiveAway(**{**error.facts(), "do": AWAY}) from None
        self.listing = self.listed.listing
        self.linked = len(linked)
        self.folders_away = sum(each.away for each in unlisted)
        if unlisted:
            progress.fact("unlisted_folders", "warning", count=len(unlisted), away=self.folders_away)
            progress.note(
                f"{len(unlisted):,} folders cannot be listed, such as {unlisted[0].folder}: what lay there at the last index is "
                "taken to lie there still"
            )
        if linked:
            progress.fact("linked_folders", "warning", count=len(linked))
            progress.note(
                f"{len(linked):,} links to folders are not followed, such as {linked[0]}: what they lead to is not read"
            )
        self.opened = np.zeros(self.listing.places, bool)
        self.new_parts = RowFiles(folder, (), PARTS)

    def index(self) -> tuple[IndexState, dict[str, int]]:
        """(state, how many entries are new, changed, updated, vanished)"""
        if self.listing.places == 0:
            self._forget_listing()
            if self._was_there:
                raise ArchiveAway("the archive holds no files any more", where=self.run.root, do=AWAY)
            raise ArchiveError(
                "the archive holds no files", where=self.run.root, do="check the `archive` key of the run file"
            )
        self.opened, vanished = self._todo()
        if self.opened.any():
            self._scan(self.opened)
            try:
                refuse_away(self.run.root, int(self.opened.sum()), self.new_parts)
            except ArchiveAway:
                self._forget_listing()
                raise
        if self.before is not None and not self.opened.any() and not vanished.any():
            return self._unchanged(self.before), {}
        return self._regroup(vanished)

    @property
    def _was_there(self) -> bool:
        """The last index found this archive; that of another run file may have stood in the work folder."""
        return self.before is not None and self.before.root == self.run.root

    def _unchanged(self, before: IndexState) -> IndexState:
        """The state before, with the new listing where only that says when files were changed."""
        first = next(self.old_listing.scan(["changed_ns"]), None)
        now = next(self.listing.scan(["changed_ns"]), None)
        if first is None or now is None or first.column(0).null_count < len(first) or now.column(0).null_count:
            self._forget_listing()
            return before
        state = before.model_copy(update={"listing": self.listing.files})
        write_state(self.folder, state, before)
        return state

    def _forget_listing(self) -> None:
        for name in self.listing.names:
            files.remove_file(files.join(self.folder, name))

    def _todo(self) -> tuple[np.ndarray, np.ndarray]:
        """(files,) bool: to be opened; (files of the last listing,) bool: gone."""
        fresh, vanished = compare(self.db, self.old_listing, self.listing)
        if self.afresh:
            fresh[:] = True
            return fresh, vanished
        for start, end in self.listed.suspect:
            fresh[start:end] = True
        fresh |= named(self.listing, self.listed.looked_into)  # earlier versions took them for files
        entries = changes_of(self.folder, self.before)
        fresh |= named(self.listing, unsettled(self.before, self.old_parts, entries, self.doubted))
        if fresh.any() or vanished.any():  # the data of what a list names may have come or gone
            fresh[self.listed.first_list :] = True
            fresh |= self._beside(fresh, vanished)
        return fresh, vanished

    def _beside(self, fresh: np.ndarray, vanished: np.ndarray) -> np.ndarray:
        """(files,) bool: those whose parts hang on a file that came, went or changed."""
        beside: set[str] = set()
        for listing, where in ((self.listing, fresh), (self.old_listing, vanished)):
            for batch in listing.scan(["uri"], where=where):
                for uri in batch.column("uri").to_pylist():
                    beside.update(self.modality.beside(uri))
        return named(self.listing, pa.array(sorted(beside), pa.string()))

    def _scan(self, fresh: np.ndarray) -> None:
        """The parts of these files, through the engine."""
        self.progress.begin("index", int(fresh.sum()))
        stage = stages.scan(self.spec, self.run.root, self.key)
        for listed in _rounds(self.listing.scan(stages.FILES.names, where=fresh)):
            small = len(listed) <= SMALL_FILES and pc.sum(listed.column("size")).as_py() <= SMALL_BYTES
            plan = shards(listed, workers=1 if small else self.engine.readers)
            with TableSink(self.run.folder, PARTS) as sink, new_rows(self.folder, "parts", PARTS) as writer:
                flow = Flow(
                    "index",
                    plan,
                    (stage,),
                    sink,
                    self.progress.advance,
                    small=small,
                    sooner=True,
                    failable=True,
                    next_imports=self.then,
                )
                self.engine.run(flow)
                for batch in sink.batches():
                    writer.write(batch)
            self.new_parts = self.new_parts.added(writer.file)
        tell_faults(faults_of(self.new_parts), self.progress)
        if _companions(self.modality, self.run.root) != self.companions:
            self._forget_listing()
            raise MachineError(
                "a table or reference beside the archive was replaced while files were read by it",
                where=self.run.root,
                do="run the same command again, when nobody writes to it",
            )

    def _regroup(self, vanished: np.ndarray) -> tuple[IndexState, dict[str, int]]:
        if not self.afresh:
            streams = {
                "opened": self.listing.scan(["uri"], where=self.opened),
                "gone": self.old_listing.scan(["uri"], where=vanished),
                "unread": pa.table({"uri": unread(self.new_parts)}),
            }
            # what a file held of which storage gave nothing now is not known to have changed
            sql = """create table unread_uris as select uri from unread;
                     create table touched_uris as
                     select uri from opened anti join unread_uris using (uri) union all select uri from gone"""
            execute(self.db, sql, **streams)
        old = changes_of(self.folder, self.before)
        regrouped = regroup(
            self.db,
            self.old_parts,
            self.new_parts,
            old,
            self.seen_at,
            describer(self.modality),
            judge(self.spec),
            free_text(self.spec),
            assembler(self.modality),
            self.spec.choose,
            afresh=self.afresh,
        )
        counts = (
            self.before.counts
            if self.before and not regrouped.kinds
            else counted(regrouped.entries, self.spec.kinds, flags=bool(self.spec.trained_ranges))
        )
        if counts.entries == 0:
            raise ArchiveError(
                "the archive holds no data that this modality reads",
                where=self.run.root,
                found=f"{self.listing.places} files",
                expected=f"files of the modality {self.spec.kind!r}",
                do="look at one with: medray inspect FILE",
            )
        state = IndexState(
            how=self.how,
            root=self.run.root,
            seen_at=self.seen_at,
            listing=self.listing.files,
            parts=regrouped.parts.compacted("parts").files,
            entries=regrouped.entries.compacted("entries").files,
            counts=counts,
        )
        write_state(self.folder, state, self.before)
        return state, regrouped.kinds


def _rounds(listed: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The files of a listing, at most about ROUND_FILES at once."""
    waiting: list[pa.RecordBatch] = []
    for batch in listed:
        waiting.append(batch)
        if sum(map(len, waiting)) >= ROUND_FILES:
            yield pa.Table.from_batches(waiting).cast(stages.FILES)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting).cast(stages.FILES)


def _companions(modality: Modality, root: str) -> bytes:
    """Name, size, times and inode of what decides how the archive's files are taken, beside the files themselves."""
    return repr(
        [
            (file, files.stamp_if_there(file.uri))
            for place in files.places(root)
            for uri in modality.companions(place)
            for file in files.archive_files(uri)
        ]
        or ""
    ).encode()
