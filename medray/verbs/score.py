"""score: what an archive holds that this bundle has not scored yet, into the score store."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import TypedDict, cast

import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.eligibility import base_name
from medray.archive.manifest import Manifest
from medray.archive.order import file_edges, placed, rounds
from medray.config.runs import ScoreRun, StoreRun
from medray.durations import deadline_at
from medray.engines.base import Engine
from medray.errors import PASSING, ArchiveAway, StoreError
from medray.flows.driver import shards
from medray.flows.flow import Flow, Receipt, Sink, SlowBatch
from medray.flows.lane import SLOWEST
from medray.learning import bundles
from medray.learning.backend import Backend
from medray.learning.models.own import own_code
from medray.modalities.registry import ModalitySpec, open_modality
from medray.modalities.site import at_site
from medray.progress import Progress, Silent
from medray.scores import Claim, ScoreStore, entry_keys, standing
from medray.scores.audit import RunOutcome, recorded
from medray.storage import files
from medray.verbs import stages
from medray.verbs.backend import chosen_backend
from medray.verbs.index import index_archive
from medray.verbs.results import ScoreResult
from medray.verbs.unsettled import tell_faults

ENTRIES_PER_SHARD, MANY_ENTRIES, SHARD_BYTES = 256, 8192, 2**25
SMALL_ENTRIES = 32
AWAY = PASSING - {"changed"}
"""Reasons of entries that storage did not give."""
AWAY_ENTRIES = 100
"""Where so many entries, one after the other, fail for nothing but their storage, that is away; or where all of a run do."""


class SlowEntry(TypedDict):
    """A batch of entries that took long to read, under the key of its first entry."""

    key_hi: int
    seconds: float
    together: int


class ScoreTally:
    """A sink that counts what passes through its commits, for the result and for the audit table (`counts`); the
    writing is the inner sink's."""

    def __init__(self, sink: Sink, counts: RunOutcome, root: str) -> None:
        self.write, self.inner, self.counts, self.root = sink.write, sink, counts, root
        self.entries, self.failed, self.not_eligible, self.samples = 0, 0, 0, 0
        self.by_reason: Counter[str] = Counter()
        self.passed_over: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.slowest: list[SlowBatch | SlowEntry] = []
        self.unread, self.unread_together, self.most_together = 0, 0, 0
        """Entries that failed for nothing but their storage: all, since one that did not, and the most without one."""
        self.known_unread = 0
        """Entries that the index could not read either: a link that leads nowhere says nothing of the storage."""
        self.faults: Counter[str] = Counter()
        self.outside: Counter[str] = Counter()

    def commit(self, receipts: Sequence[Receipt]) -> None:
        """Raises ArchiveAway where entries could not be read because all of the archive has gone: their failures are not
        kept, so that they are pending."""
        unread = [receipt for receipt in receipts if AWAY & receipt.reasons.keys()]
        if unread and files.is_away(self.root):
            self._commit([receipt for receipt in receipts if receipt not in unread])
            raise ArchiveAway(
                "the archive is no longer there: this run stops",
                where=self.root,
                found=f"{sum(receipt.failed for receipt in unread):,} entries that could not be read",
                do="mount it again; the next run takes up what is left",
            )
        self._commit(receipts)

    def _commit(self, receipts: Sequence[Receipt]) -> None:
        self.inner.commit(receipts)
        for receipt in receipts:
            self.entries += receipt.entries
            self.failed += receipt.failed
            self.not_eligible += receipt.not_eligible
            self.passed_over.update(receipt.passed_over)
            self.samples += receipt.samples
            self.by_reason.update(receipt.reasons)
            self.faults.update(receipt.faults)
            self.outside.update(receipt.outside)
            self._count_unread(receipt)
            self.seconds.update(receipt.seconds)
            self.slowest = sorted([*self.slowest, *receipt.slowest], key=lambda row: -row["seconds"])[:SLOWEST]
        self.counts |= {"scored": self.scored, "failed": self.failed, "not_eligible": self.not_eligible}
        self.counts["reasons"] = self.by_reason + self.passed_over

    def _count_unread(self, receipt: Receipt) -> None:
        unread = sum(count for reason, count in receipt.reasons.items() if reason in AWAY)
        self.unread += unread
        alone = unread == receipt.entries == receipt.failed
        self.unread_together = self.unread_together + unread if alone else 0
        self.most_together = max(self.most_together, self.unread_together)

    @property
    def storage_away(self) -> int:
        """How many entries failed because their storage is away; 0 where it was there, or at work for a few."""
        whole = self.entries == self.unread > self.known_unread
        away = whole or self.most_together - self.known_unread >= AWAY_ENTRIES
        return self.unread - self.known_unread if away else 0

    @property
    def scored(self) -> int:
        return self.entries - self.failed - self.not_eligible


def score(run: ScoreRun, engine: Engine, progress: Progress | None = None) -> ScoreResult:
    """Index, find what is pending for this bundle, score it, commit; stop at the run's deadline or limit.

    Raises BundleError, StoreError, ArchiveError; Fenced when a newer run has claimed the store meanwhile.
    """
    progress = progress or Silent()
    started, until = time.monotonic(), None if run.deadline is None else deadline_at(run.deadline, time.time())
    bundle = bundles.trusting(bundles.load(run.bundle_uri), run.trust)
    spec = at_site(bundle.recipe.modality, run.modality)
    note_unlearnt(bundle, progress)
    manifest, indexed = index_archive(run, spec, engine, progress, doubted_entries(run.store_uri))
    result = score_manifest(run, bundle, spec, manifest, engine, progress, until=until)
    seconds = {"index": indexed.seconds, **result.stages}
    of_index = {name: getattr(indexed, name) for name in ("flagged", "outside", "folders_away")}
    return result.model_copy(update={"seconds": time.monotonic() - started, "stages": seconds, **of_index})


def doubted_entries(store_uri: str) -> list[str]:
    """Entries that the last runs of this store found to be of other content than the index had; none where no store is yet."""
    return ScoreStore.open(store_uri).doubted() if files.exists(files.join(store_uri, "_delta_log")) else []


def note_unlearnt(bundle: bundles.TrainedModel, progress: Progress) -> None:
    """A bundle from before eligibility was learnt cannot tell what it was trained on: say so."""
    spec = bundle.recipe.modality
    if spec.trained is None and spec.learnt:
        progress.fact("trained_on_unknown", "warning", bundle_id=bundle.id)
        progress.note(
            f"the bundle {bundle.recipe.name} does not say what it was trained on (it is from an earlier medray): of this "
            "archive only what holds nothing for a model is left out. Train it again, or name rules in [modality.select]"
        )


def score_manifest(
    run: ScoreRun,
    bundle: bundles.TrainedModel,
    spec: ModalitySpec,
    manifest: Manifest,
    engine: Engine,
    progress: Progress,
    *,
    until: float | None = None,
) -> ScoreResult:
    """Score what of the manifest is pending for the bundle. `until`: the deadline, seconds since the epoch.

    Raises StoreError, MachineError, UserError for a back end that is not here; Fenced when a newer run has claimed the store
    meanwhile.
    """
    started = time.monotonic()
    backend = chosen_backend(run, bundle, engine, progress)
    store = ScoreStore.open(run.store_uri, create=True, readers=run.readers)
    other_runs = refuse_ids_of_others(store, run, manifest, bundle.id)
    claim = store.claim(bundle.id)  # before pending: what an overtaken run has committed by now is seen
    progress.about(run_id=claim.run_id, bundle_id=bundle.id)
    with recorded(store.uri, "score", claim.run_id, bundle.id, run.root, backend.title) as counts:
        pending = store.pending_rows(manifest, bundle.id, retry_failed=run.retry_failed, attempts=run.retry_attempts)
        wanted = len(pending) if run.limit is None else min(run.limit, len(pending))
        counts |= {"entries": len(manifest), "pending": len(pending), "scored": 0, "failed": 0, "not_eligible": 0}
        retired = retire(store, claim, spec, manifest, other_runs, progress)
        sink, away = ScoreTally(store.sink(claim), counts, run.root), False
        scoring = time.monotonic()
        progress.begin("score", wanted)
        for chosen in rounds(manifest, pending, run.order, run.limit) if wanted else ():
            if until is not None and time.time() >= until:
                break
            flow = _flow(run, bundle, backend, spec, chosen, sink, engine, progress, until)
            sink.known_unread += pc.sum(pc.is_in(chosen.column("reason"), pa.array(sorted(AWAY)))).as_py() or 0
            chosen = chosen.select(["entry_id", "fingerprint"])  # the plan has the rest
            try:
                engine.run(flow)
            except ArchiveAway as error:
                away = True
                counts |= {"state": "failed", "error": type(error).__name__}
                progress.fact("archive_away", "error", message=error.what)
                progress.note(str(error))
                break
            finally:
                sink.slowest = _keyed(sink.slowest, chosen)
            del flow  # before the next round is read
    _tell_passing(sink.by_reason, progress)
    tell_faults(sink.faults, progress)
    if sink.storage_away and not away:
        progress.fact("storage_away", "error", entries=sink.storage_away)
        progress.note(
            f"storage is away: {sink.storage_away:,} entries could not be read, and nothing else was wrong with them. "
            "See whether all of the archive is mounted and may be read"
        )
    outside_read = _known_by_reading(sink.outside, spec)
    if outside_read:
        numbers = ", ".join(f"{name} {count:,}" for name, count in outside_read.items())
        progress.fact("outside_read", "warning", samples=outside_read)
        progress.note(f"samples of this run lie outside of what the training archive held, by {numbers}")
    now = time.monotonic()
    return ScoreResult(
        run_id=claim.run_id,
        bundle_id=bundle.id,
        entries=len(manifest),
        pending=len(pending),
        scored=sink.scored,
        failed=sink.failed,
        not_eligible=sink.not_eligible,
        left=len(pending) - sink.entries,
        storage_away=sink.storage_away,
        retired=retired,
        stopped="archive"
        if away
        else "deadline"
        if sink.entries < wanted
        else "limit"
        if wanted < len(pending)
        else None,
        samples=sink.samples,
        failed_samples=sink.by_reason.total(),
        by_reason=dict(sink.by_reason.most_common()),
        not_eligible_samples=sink.passed_over.total(),
        not_eligible_by_reason=dict(sink.passed_over.most_common()),
        outside_read=outside_read,
        seconds=now - started,
        entries_per_second=sink.entries / max(now - scoring, 1e-9),
        stages={"pending": scoring - started, "scoring": now - scoring},
        worker_seconds=dict(sink.seconds),
        slowest=cast("list[dict[str, int | float | str]]", sink.slowest),
        store=run.store_uri,
    )


def _known_by_reading(outside: Counter[str], spec: ModalitySpec) -> dict[str, int]:
    """Those of these counts that the index, which tells of `spec.ranged`, does not know."""
    return {name: count for name, count in outside.most_common() if base_name(name) not in spec.ranged}


def refuse_ids_of_others(store: ScoreStore, run: StoreRun, manifest: Manifest, bundle_id: str) -> list[str]:
    """Runs of the bundle over other archives that share the store. Raises StoreError where one of them has scored other content
    under an id of this archive: each would overwrite what the other has."""
    scored = {row["run_id"]: row["archive"] for row in store.runs() if row["bundle_id"] == bundle_id and row["archive"]}
    strange = {root for root in set(scored.values()) if not _same_archive(root, run)}
    others = {run_id: root for run_id, root in scored.items() if root in strange}
    if others and (entries := standing.of_runs(store, manifest, bundle_id, others)):
        raise StoreError(
            "another archive has been scored into this store under the same ids",
            where=store.uri,
            found=f"{entries:,} entries of {run.root} have scores of other content, of {sorted(set(others.values()))[0]}",
            expected="ids that are of one archive",
            do="give each archive a store of its own, or make them one archive in several places (archive = [...]). Where "
            "it is the same archive, which has moved, name where it was: moved_from = [...]",
        )
    return sorted(others)


def _same_archive(root: str, run: StoreRun) -> bool:
    """Whether an archive that was scored is this run's: one lies in the other, it has moved, or it is no longer there."""
    here = files.places(run.root)
    before = files.places(root)
    return (
        any(files.is_below(a, b) or files.is_below(b, a) for a in here for b in before)
        or root in run.moved_from_uris
        or files.is_away(root)
    )


def retire(
    store: ScoreStore,
    claim: Claim,
    spec: ModalitySpec,
    manifest: Manifest,
    other_runs: Sequence[str],
    progress: Progress,
) -> int:
    """Rows of entries whose files are there and hold them no more are current no longer. How many entries these are. Not those
    that runs over other archives (`other_runs`) have scored."""
    retired = standing.absent(store, manifest, claim.bundle_id)
    retired = retired.filter(pc.invert(pc.is_in(retired.column("run_id"), pa.array(other_runs, pa.string()))))
    ids = retired.column("entry_id").to_pylist()
    retired = retired.filter(pa.array(manifest.no_longer_held(ids, spec.file_of), pa.bool_()))
    standing.retire(store, claim, retired)
    if spec.earlier_ids and any(
        re.fullmatch(spec.earlier_ids, each) for each in retired.column("entry_id").to_pylist()
    ):
        progress.fact("ids_changed", "warning")
        progress.note("entries have other ids in this version of medray: they are scored once more under the new ones")
    if len(retired):
        progress.fact("retired", entries=len(retired))
        progress.note(f"{len(retired)} entries of the store are retired: their files hold them no more")
    return len(retired)


def _tell_passing(by_reason: Counter[str], progress: Progress) -> None:
    passing = {reason: count for reason, count in by_reason.items() if reason in PASSING}
    if passing:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in passing.items())
        progress.fact("tried_again", "warning", reasons=passing)
        progress.note(f"could not be read as the index had it, and will be tried again by the next run: {counts}")


def _flow(
    run: ScoreRun,
    bundle: bundles.TrainedModel,
    backend: Backend,
    spec: ModalitySpec,
    chosen: pa.Table,
    sink: Sink,
    engine: Engine,
    progress: Progress,
    until: float | None,
) -> Flow:
    rows = stages.batch_rows(open_modality(spec)) if run.batch_size == "auto" else run.batch_size
    most = _entries_per_shard(chosen)
    small = len(chosen) <= SMALL_ENTRIES
    workers = 1 if small else engine.workers
    plan = shards(chosen, workers=workers, rows_per_shard=most, edges=file_edges(chosen))
    return Flow(
        "score",
        placed(plan),
        (
            stages.read(spec, rows, narrow=True),
            stages.score(
                run.bundle_uri,
                bundle.id,
                rows,
                spec,
                own_code(bundle.recipe.model, run.trust),
                artefacts=True,
                graph=backend.graph,
            ),
        ),
        sink,
        progress.advance,
        small=small,
        commit_seconds=run.commit_seconds,
        commit_receipts=run.commit_files,
        until=until,
        failable=True,
        may_split=True,
    )


def _keyed(batches: list[SlowBatch | SlowEntry], chosen: pa.Table) -> list[SlowBatch | SlowEntry]:
    """Batches by key instead of id: an id may be a path or hold a date of care, and this leaves the store."""
    ids = pa.array([batch["entry_id"] for batch in batches if "entry_id" in batch], pa.string())
    keys = entry_keys(chosen.take(pc.index_in(ids, chosen.column("entry_id"))))
    key_of = dict(zip(ids.to_pylist(), map(int, keys[:, 0]), strict=True))
    return [
        SlowEntry(key_hi=key_of[batch["entry_id"]], seconds=batch["seconds"], together=batch["together"])
        if "entry_id" in batch
        else batch
        for batch in batches
    ]


def _entries_per_shard(pending: pa.Table) -> int:
    """More where entries are small: a shard costs an engine some milliseconds, whatever is in it."""
    each = max(1.0, pc.mean(pending.column("bytes")).as_py() or 0.0)
    return max(ENTRIES_PER_SHARD, min(MANY_ENTRIES, int(SHARD_BYTES / each)))
