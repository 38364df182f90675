"""score: what an archive holds that this bundle has not scored yet, into the score store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.eligibility import base_name
from medray.archive.manifest import Manifest
from medray.archive.order import file_edges, first, placed, rounds
from medray.archive.pseudonyms import key_mark, pseudonym_key
from medray.config.runs import ScoreRun, StoreRun
from medray.durations import deadline_at
from medray.engines.base import Engine
from medray.errors import PASSING, ArchiveAway, MedrayError
from medray.flows.driver import shards
from medray.flows.flow import TAKERS, Flow, SlowBatch, Stage, wanted
from medray.learning import bundles
from medray.learning.backend import Backend
from medray.learning.models.own import own_code
from medray.modalities.registry import ModalitySpec, open_modality
from medray.modalities.site import at_site
from medray.progress import Progress, Silent
from medray.scores import Claim, ScoreStore, entry_keys, standing
from medray.scores.audit import RunOutcome, recorded
from medray.verbs import stages
from medray.verbs.backend import chosen_backend
from medray.verbs.earlier_runs import doubted_entries, note_other_keys, refuse_ids_of_others, retire
from medray.verbs.index import index_archive
from medray.verbs.results import ScoreResult
from medray.verbs.tally import AWAY, ScoreTally, SharedSink, SlowEntry
from medray.verbs.unsettled import tell_faults

ENTRIES_PER_SHARD, MANY_ENTRIES, SHARD_BYTES = 256, 8192, 2**25
SMALL_ENTRIES = 32


class Asked(NamedTuple):
    """A bundle that is asked about an archive."""

    uri: str
    bundle: bundles.TrainedModel


def score(run: ScoreRun, engine: Engine, progress: Progress | None = None) -> ScoreResult:
    """Index, find what is pending for this bundle, score it, commit; stop at the run's deadline or limit.

    Raises BundleError, StoreError, ArchiveError; Fenced when a newer run has claimed the store meanwhile.
    """
    progress = progress or Silent()
    started, until = time.monotonic(), None if run.deadline is None else deadline_at(run.deadline, time.time())
    bundle = bundles.trusting(bundles.load(run.bundle_uri), run.trust)
    spec = at_site(bundle.recipe.modality, run.modality)
    note_unlearnt(bundle, progress)
    manifest, indexed = index_archive(run, spec, engine, progress, doubted_entries(run.store_uri), stages.SCORE_IMPORTS)
    [result] = score_manifest(run, [Asked(run.bundle_uri, bundle)], spec, manifest, engine, progress, until=until)
    if isinstance(result, MedrayError):
        raise result
    seconds = {"index": indexed.seconds, **result.stages}
    of_index = {name: getattr(indexed, name) for name in ("flagged", "outside", "folders_away")}
    return result.model_copy(update={"seconds": time.monotonic() - started, "stages": seconds, **of_index})


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
    run: StoreRun,
    asked: Sequence[Asked],
    spec: ModalitySpec,
    manifest: Manifest,
    engine: Engine,
    progress: Progress,
    *,
    until: float | None = None,
) -> list[ScoreResult | MedrayError]:
    """Score what of the manifest is pending for each of these bundles, which have different ids and all read by `spec`: an entry
    is read once, for all for which it is pending. What each came to, or what ended its run; the others go on.
    `until`: the deadline, seconds since the epoch.

    What may end one: StoreError, MachineError, UserError for a back end that is not here; Fenced when a newer run has claimed
    the bundle meanwhile.
    """
    scoring = _Scoring(run, spec, manifest, engine, progress, until, together=len(asked))
    scored = [_BundleRun(scoring, *each) for each in asked]
    try:
        scoring.score(scored)
    except BaseException as error:
        for each in scored:
            each.end(error)
        raise
    for each in scored:
        each.end()
    return [each.error or each.result() for each in scored]


@dataclass
class _Scoring:
    """A pass over a manifest, for some bundles that read alike."""

    run: StoreRun
    spec: ModalitySpec
    manifest: Manifest
    engine: Engine
    progress: Progress
    until: float | None
    together: int
    """So many bundles."""
    started: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    """When its first flow began."""
    ended: float = 0.0

    def score(self, scored: Sequence[_BundleRun]) -> None:
        """All that is pending. A MedrayError that is one bundle's is kept there."""
        for each in scored:
            each.attempt(each.choose_backend)
        if not _live(scored):
            return
        store = ScoreStore.open(self.run.store_uri, create=True, readers=self.run.readers)
        for each in _live(scored):
            each.attempt(partial(each.begin, store))
        scored = _live(scored)
        if not scored:
            return
        self._about(scored)
        self.begun = time.monotonic()
        self.progress.begin("score", sum(len(each.chosen) for each in scored))
        self._work_on(scored)
        self.ended = time.monotonic()
        for each in _live(scored):
            self._about([each])
            each.tell()

    def _about(self, scored: Sequence[_BundleRun]) -> None:
        """The lines of a log are of these runs from now on."""
        if scored:
            run_ids, bundle_ids = (
                ",".join(ids) for ids in zip(*((each.claim.run_id, each.bundle.id) for each in scored), strict=True)
            )
            self.progress.about(run_id=run_ids, bundle_id=bundle_ids)

    def _work_on(self, scored: Sequence[_BundleRun]) -> None:
        """What these have not committed yet, in one pass; where that meets a fault, in one for each, so that it ends nobody but whose
        it is."""
        try:
            self._pass(scored)
        except ArchiveAway as error:
            for each in _live(scored):
                each.archive_away = True
                each.counts |= {"state": "failed", "error": type(error).__name__}
            self.progress.fact("archive_away", "error", message=error.what)
            self.progress.note(str(error))
        except MedrayError as error:
            if len(scored) == 1:
                scored[0].end(error)
            if not _live(scored):
                return
            self.progress.fact("scored_apart", "warning", error=type(error).__name__, message=error.what)
            self.progress.note(f"{error}\nThe bundles are scored one by one instead, to see whose fault this is")
            for each in _live(scored):
                self._work_on([each])

    def _pass(self, scored: Sequence[_BundleRun]) -> None:
        """Raises what a flow raises."""
        for entries, takers in rounds(self.manifest, [each.rest() for each in scored], self.run.order):
            if self.until is not None and time.time() >= self.until:
                return
            asking = np.bitwise_or.reduce([np.uint64(each.is_live << taker) for taker, each in enumerate(scored)])
            chosen = entries.append_column(TAKERS, pa.array(takers & asking)).filter(pa.array(takers & asking != 0))
            del entries
            if len(chosen) == 0:
                continue
            for each, asks in zip(scored, wanted(chosen), strict=False):
                each.tally.known_unread += _unread(chosen.filter(pa.array(asks)))
            flow = self._flow(chosen, scored)
            chosen = chosen.select(["entry_id", "fingerprint"])  # the plan has the rest
            try:
                self.engine.run(flow)
            finally:
                for each in scored:
                    each.tally.slowest = _keyed(each.tally.slowest, chosen)
            del flow  # before the next round is read

    def _flow(self, chosen: pa.Table, scored: Sequence[_BundleRun]) -> Flow:
        run = self.run
        rows = stages.batch_rows(open_modality(self.spec)) if run.batch_size == "auto" else run.batch_size
        most = _entries_per_shard(chosen)
        small = len(chosen) <= SMALL_ENTRIES
        workers = 1 if small else self.engine.workers
        plan = shards(chosen, workers=workers, rows_per_shard=most, edges=file_edges(chosen))
        return Flow(
            "score",
            placed(plan),
            (
                stages.read(self.spec, rows, narrow=True),
                stages.for_each([each.stage(rows, alone=len(scored) == 1) for each in scored]),
            ),
            SharedSink([each.tally for each in scored], run.root, lambda taker, error: scored[taker].end(error)),
            self.progress.advance,
            small=small,
            commit_seconds=run.commit_seconds,
            commit_receipts=run.commit_files,
            until=self.until,
            failable=True,
            may_split=True,
        )


class _BundleRun:
    """One bundle's run: its back end, its claim on the store, its row of the audit table, what is pending for it, its counts."""

    backend: Backend
    store: ScoreStore
    claim: Claim
    counts: RunOutcome
    tally: ScoreTally
    chosen: np.ndarray
    """Numbers of the entries that it takes on, at most `limit`."""

    def __init__(self, scoring: _Scoring, uri: str, bundle: bundles.TrainedModel) -> None:
        self.scoring, self.uri, self.bundle = scoring, uri, bundle
        self.error: MedrayError | None = None
        """What ended it."""
        self.pending, self.retired = 0, 0
        self.archive_away = False
        self._recording: AbstractContextManager[RunOutcome] | None = None

    @property
    def is_live(self) -> bool:
        return self.error is None

    def attempt(self, step: Callable[[], None]) -> None:
        """A MedrayError of it ends this run."""
        try:
            step()
        except MedrayError as error:
            self.end(error)

    def choose_backend(self) -> None:
        scoring = self.scoring
        self.backend = chosen_backend(scoring.run, self.bundle, scoring.engine, scoring.progress)

    def begin(self, store: ScoreStore) -> None:
        """Claim the bundle; then see what is pending."""
        run, manifest, progress = self.scoring.run, self.scoring.manifest, self.scoring.progress
        self.store = store
        other_runs = refuse_ids_of_others(store, run, manifest, self.bundle.id)
        self.claim = store.claim(self.bundle.id)  # before pending: what an overtaken run has committed by now is seen
        progress.about(run_id=self.claim.run_id, bundle_id=self.bundle.id)
        key = key_mark(pseudonym_key(run.pseudonym_key))
        note_other_keys(store, key, progress)
        self._recording = recorded(
            store.uri, "score", self.claim.run_id, self.bundle.id, run.root, self.backend.title, key
        )
        self.counts = self._recording.__enter__()
        pending = store.pending_rows(
            manifest, self.bundle.id, retry_failed=run.retry_failed, attempts=run.retry_attempts
        )
        self.pending, self.chosen = len(pending), first(manifest, pending, run.order, run.limit)
        self.counts |= {"entries": len(manifest), "pending": len(pending), "scored": 0, "failed": 0, "not_eligible": 0}
        self.retired = retire(store, self.claim, self.scoring.spec, manifest, other_runs, progress)
        self.tally = ScoreTally(store.sink(self.claim), self.counts)

    def rest(self) -> np.ndarray:
        """Numbers of the entries that it takes on, without those that it has committed."""
        if not self.tally.entries:
            return self.chosen
        done = standing.of_run(self.store, self.scoring.manifest, self.claim)
        return np.setdiff1d(self.chosen, done, assume_unique=True)

    def stage(self, rows: int, *, alone: bool) -> Stage:
        run, recipe = self.scoring.run, self.bundle.recipe
        return stages.score(
            self.uri,
            self.bundle.id,
            rows,
            self.scoring.spec,
            own_code(recipe.model, run.trust),
            artefacts=True,
            graph=self.backend.graph,
            alone=alone,
        )

    def end(self, error: BaseException | None = None) -> None:
        """The run is over, for this reason if there is one: so the audit table says."""
        if isinstance(error, MedrayError) and self.error is None:
            self.error = error
        recording, self._recording = self._recording, None
        if recording is None:
            return
        try:
            recording.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        except MedrayError as fault:  # the table cannot be written
            self.error = self.error or fault

    def tell(self) -> None:
        """What a person should know of it."""
        tally, progress = self.tally, self.scoring.progress
        _tell_passing(tally.by_reason, progress)
        tell_faults(tally.faults, progress)
        if tally.storage_away and not self.archive_away:
            progress.fact("storage_away", "error", entries=tally.storage_away)
            progress.note(
                f"storage is away: {tally.storage_away:,} entries could not be read, and nothing else was wrong with them. "
                "See whether all of the archive is mounted and may be read"
            )
        if outside_read := _known_by_reading(tally.outside, self.scoring.spec):
            numbers = ", ".join(f"{name} {count:,}" for name, count in outside_read.items())
            progress.fact("outside_read", "warning", samples=outside_read)
            progress.note(f"samples of this run lie outside of what the training archive held, by {numbers}")

    def result(self) -> ScoreResult:
        scoring, tally = self.scoring, self.tally
        work = scoring.ended - scoring.begun
        return ScoreResult(
            run_id=self.claim.run_id,
            bundle_id=self.bundle.id,
            entries=len(scoring.manifest),
            pending=self.pending,
            scored=tally.scored,
            failed=tally.failed,
            not_eligible=tally.not_eligible,
            left=self.pending - tally.entries,
            storage_away=tally.storage_away,
            retired=self.retired,
            stopped="archive"
            if self.archive_away
            else "deadline"
            if tally.entries < len(self.chosen)
            else "limit"
            if len(self.chosen) < self.pending
            else None,
            samples=tally.samples,
            failed_samples=tally.by_reason.total(),
            by_reason=dict(tally.by_reason.most_common()),
            not_eligible_samples=tally.passed_over.total(),
            not_eligible_by_reason=dict(tally.passed_over.most_common()),
            outside_read=_known_by_reading(tally.outside, scoring.spec),
            together=scoring.together,
            seconds=scoring.ended - scoring.started,
            entries_per_second=tally.entries / max(work, 1e-9),
            stages={"pending": scoring.begun - scoring.started, "scoring": work},
            worker_seconds=dict(tally.seconds),
            slowest=cast("list[dict[str, int | float | str]]", tally.slowest),
            store=scoring.run.store_uri,
        )


def _live(scored: Sequence[_BundleRun]) -> list[_BundleRun]:
    return [each for each in scored if each.is_live]


def _unread(entries: pa.Table) -> int:
    """How many of these the index could not read either."""
    return pc.sum(pc.is_in(entries.column("reason"), pa.array(sorted(AWAY)))).as_py() or 0


def _known_by_reading(outside: Counter[str], spec: ModalitySpec) -> dict[str, int]:
    """Those of these counts that the index, which tells of `spec.ranged`, does not know."""
    return {name: count for name, count in outside.most_common() if base_name(name) not in spec.ranged}


def _tell_passing(by_reason: Counter[str], progress: Progress) -> None:
    passing = {reason: count for reason, count in by_reason.items() if reason in PASSING}
    if passing:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in passing.items())
        progress.fact("tried_again", "warning", reasons=passing)
        progress.note(f"could not be read as the index had it, and will be tried again by the next run: {counts}")


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
