"""nightly: index, score what is new with one or several bundles, tidy the store, and say in the morning how it went."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from medray.archive.manifest import Manifest
from medray.config.runs import Housekeeping, NightlyRun, ScoreRun
from medray.durations import deadline_at
from medray.engines.base import Engine
from medray.errors import MedrayError
from medray.learning import bundles
from medray.learning.recipe import versions
from medray.modalities.registry import ModalitySpec
from medray.modalities.site import at_site
from medray.progress import Progress, Silent
from medray.reports.nightly import BundleNight, Summary, write_page
from medray.reports.nightly.summary import LEVELS
from medray.scores import ScoreStore
from medray.scores.audit import NIGHTLY, RunCounts, recorded
from medray.scores.drift import compared
from medray.scores.nights import NIGHTS, recent_runs, values
from medray.storage import files, locks
from medray.verbs.alerts import watched
from medray.verbs.earlier_runs import doubted_entries
from medray.verbs.index import index_archive
from medray.verbs.results import IndexResult, NightlyResult, ScoreResult
from medray.verbs.score import Asked, note_unlearnt, score_manifest
from medray.verbs.stages import SCORE_IMPORTS

LOCK = "_medray/nightly.json"
"""Below the store; readers and vacuum of Delta pass over names with an underscore in front."""


def nightly(run: NightlyRun, engine: Engine, progress: Progress | None = None) -> NightlyResult:
    """Every bundle of the run over the archive, those that read alike together; then housekeeping and the summary.

    A bundle that meets a fault leaves it in the summary and in the exit code, and the others go on. Where another
    nightly run works on the store, the result says who, and nothing is done. Raises StoreError, MachineError.
    """
    progress = progress or Silent()
    night = _Night(run, engine, progress)
    with watched(run, night.id, progress) as watch:
        store = ScoreStore.open(run.store_uri, create=True, readers=run.readers)
        with locks.hold(files.join(run.store_uri, LOCK), night.id) as other:
            if other is not None:
                progress.fact("held", "warning")
                progress.note(f"another nightly run works on {run.store}: {other}. This one leaves; nothing is done.")
                return NightlyResult(
                    entries=0, failed=0, night=night.id, held_by=str(other), seconds=time.monotonic() - night.started
                )
            with recorded(run.store_uri, NIGHTLY, night.id, archive=run.root) as outcome:
                night.work()
                night.read_scores(store)
                night.tidy(store)
                result, summary = night.finish()
                outcome |= night.counts(summary)
    return result.model_copy(update={"alerts": watch.done(summary)})


COUNTED = ("pending", "scored", "failed", "not_eligible", "left")
"""Counts of a bundle's entries that a night adds up; the first is the sum of the others."""


class _Loaded(NamedTuple):
    """A bundle of the night."""

    uri: str
    """As the run file has it."""
    bundle: bundles.TrainedModel
    spec: ModalitySpec
    """Its modality at this site."""
    facts: dict[str, object]


def grouped(loaded: Sequence[_Loaded], at_once: int) -> list[list[_Loaded]]:
    """Bundles that are scored in one pass, in the order of the first of each group: their specs are equal in every setting and
    every fitted number, so all see the same entries, verdicts and samples. At most `at_once`; a bundle that comes twice is in
    two groups."""
    groups: list[list[_Loaded]] = []
    for each in loaded:
        for group in groups:
            alike = group[0].spec == each.spec and reads_as(group[0].spec) == reads_as(each.spec)
            if alike and len(group) < at_once and all(each.bundle.id != other.bundle.id for other in group):
                group.append(each)
                break
        else:
            groups.append([each])
    return groups


def reads_as(spec: ModalitySpec) -> str:
    """All that decides how an archive is indexed and read: equal texts, equal manifests and samples."""
    return spec.model_dump_json()


@dataclass
class _Night:
    run: NightlyRun
    engine: Engine
    progress: Progress
    id: str = field(default_factory=ScoreStore.new_run_id)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.monotonic)
    until: float | None = None
    indexed: dict[str, tuple[Manifest, IndexResult]] = field(default_factory=dict[str, tuple[Manifest, IndexResult]])
    """Indexes by the modality's settings: bundles that read alike share one."""
    facts: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    """What is known of each bundle, in the order of the run file."""
    bundles: list[BundleNight] = field(default_factory=list[BundleNight])
    codes: list[int] = field(default_factory=list[int])
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("index", "pending", "scoring"), 0.0))
    housekeeping: dict[str, object] = field(default_factory=dict[str, object])

    def __post_init__(self) -> None:
        if self.run.deadline is not None:
            self.until = deadline_at(self.run.deadline, time.time())

    def work(self) -> None:
        """Index and score with every bundle; a fault of one is kept."""
        self.facts = [{"bundle": uri} for uri in self.run.bundles]
        loaded = [self._loaded(uri, facts) for uri, facts in zip(self.run.bundles, self.facts, strict=True)]
        for group in grouped([each for each in loaded if each is not None], self.run.bundles_at_once):
            try:
                self._score(group)
            except MedrayError as error:
                for each in group:
                    self._failed(each.facts, error)
        self.bundles = [BundleNight.model_validate(facts) for facts in self.facts]

    def _failed(self, facts: dict[str, object], error: MedrayError) -> None:
        self.progress.note(str(error))
        self.progress.fact("bundle_failed", "error", error=type(error).__name__, message=error.what)
        self.codes.append(error.exit_code)
        facts["error"] = str(error)

    def _loaded(self, uri: str, facts: dict[str, object]) -> _Loaded | None:
        """The bundle, and how it reads here; None where that is a fault, which is kept."""
        try:
            bundle = bundles.trusting(bundles.load(files.absolute(uri)), self.run.trust)
            facts |= {"name": bundle.recipe.name, "bundle_id": bundle.id, "made_with": bundle.recipe.versions}
            spec = at_site(bundle.recipe.modality, self.run.modality)
        except MedrayError as error:
            self._failed(facts, error)
            return None
        note_unlearnt(bundle, self.progress)
        return _Loaded(uri, bundle, spec, facts)

    def _score(self, group: Sequence[_Loaded]) -> None:
        """With bundles that read alike, into their facts as they become known."""
        spec = group[0].spec
        scoring = self.run.of_bundle(group[0].uri, index_folder(self.run, spec))
        manifest, indexed = self._index(scoring, spec)
        for each in group:
            each.facts.update(
                {name: getattr(indexed, name) for name in ("entries", "new", "changed", "vanished", "linked")}
            )
        asked = [Asked(files.absolute(each.uri), each.bundle) for each in group]
        results = score_manifest(self.run, asked, spec, manifest, self.engine, self.progress, until=self.until)
        for each, result in zip(group, results, strict=True):
            if isinstance(result, MedrayError):
                self._failed(each.facts, result)
            else:
                self._scored(each.facts, result, indexed)
        of_pass = next((result.stages for result in results if isinstance(result, ScoreResult)), dict[str, float]())
        for name, seconds in of_pass.items():
            self.stages[name] += seconds

    def _scored(self, facts: dict[str, object], result: ScoreResult, indexed: IndexResult) -> None:
        result = result.model_copy(update={"folders_away": indexed.folders_away})
        counts = result.model_dump(exclude={"entries", "store", "flagged", "outside"})
        facts |= {"flagged": indexed.flagged, "outside": indexed.outside}
        facts |= counts | {"stages": {"index": indexed.seconds, **result.stages}}
        code = result.exit_code(self.run.max_failed)
        facts["too_many"] = code == 3
        self.codes.append(code)

    def _index(self, run: ScoreRun, spec: ModalitySpec) -> tuple[Manifest, IndexResult]:
        key = reads_as(spec)
        if key not in self.indexed:
            doubted = doubted_entries(run.store_uri)
            self.indexed[key] = index_archive(run, spec, self.engine, self.progress, doubted, SCORE_IMPORTS)
            self.stages["index"] += self.indexed[key][1].seconds
        return self.indexed[key]

    def read_scores(self, store: ScoreStore) -> None:
        """Tonight's scores of each bundle, and those of the nights before, from the store."""
        began = time.monotonic()
        self.bundles = [_with_scores(store, night) for night in self.bundles]
        self.stages["earlier scores"] = time.monotonic() - began

    def tidy(self, store: ScoreStore) -> None:
        began = time.monotonic()
        if self.until is not None and time.time() >= self.until:
            self.housekeeping = {"skipped": "the deadline had come"}
            return
        try:
            self.housekeeping = housekeep(store, self.run.housekeeping)
        except MedrayError as error:
            self.codes.append(error.exit_code)
            self.housekeeping = {"error": str(error)}
        self.stages["housekeeping"] = time.monotonic() - began

    def counts(self, summary: Summary) -> RunCounts:
        """What the audit table says of the night; failed samples by reason."""
        return {
            "entries": summary.entries,
            "pending": summary.pending,
            "scored": summary.scored,
            "failed": summary.failed,
            "not_eligible": summary.not_eligible,
            "reasons": summary.by_reason,
        }

    def finish(self) -> tuple[NightlyResult, Summary]:
        """Write the summary and the page; the result names them."""
        summary = self._summary()
        uris: dict[str, str] = {}
        files.make_closed_folder(self.run.summary_uri, self.run.readers)
        for kind, text in (("json", summary.model_dump_json(indent=1) + "\n"), ("html", write_page(summary))):
            uris[kind] = files.join(self.run.summary_uri, f"night-{self.id}.{kind}")
            for uri in (uris[kind], files.join(self.run.summary_uri, f"latest.{kind}")):
                files.write_bytes(uri, text.encode())
        same = (
            "entries",
            "failed",
            "night",
            "new",
            "changed",
            "vanished",
            "pending",
            "scored",
            "not_eligible",
            "left",
            "level",
            "seconds",
        )
        result = NightlyResult.model_validate(
            {name: getattr(summary, name) for name in same}
            | {
                "summary": uris["json"],
                "page": uris["html"],
                "bundles": {each.bundle: _short(each) for each in summary.bundles},
                "code": summary.exit_code,
            }
        )
        return result, summary

    def _summary(self) -> Summary:
        most = {n: max(getattr(each, n) for each in self.bundles) for n in ("entries", "new", "changed", "vanished")}
        total = {n: sum(getattr(each, n) for each in self.bundles) for n in COUNTED}
        reasons = sum((Counter(each.by_reason) for each in self.bundles), Counter[str]())
        passed_over = sum((Counter(each.not_eligible_by_reason) for each in self.bundles), Counter[str]())
        deadline = None if self.until is None else datetime.fromtimestamp(self.until, UTC).astimezone().isoformat()
        facts = {
            "night": self.id,
            "name": self.run.name,
            "archive": self.run.archive if isinstance(self.run.archive, str) else ", ".join(self.run.archive),
            "store": self.run.store,
            "host": socket.gethostname(),
            "began": self.began.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": time.monotonic() - self.started,
            "deadline": deadline,
            "exit_code": next((code for code in (1, 2, 3) if code in self.codes), 0),
            "max_failed": self.run.max_failed,
            "level": max((each.level for each in self.bundles), key=("", *LEVELS).index),
            "by_reason": dict(reasons.most_common()),
            "not_eligible_by_reason": dict(passed_over.most_common()),
            "entries_per_second": (total["pending"] - total["left"]) / max(self.stages["scoring"], 1e-9),
            "stages": dict(self.stages),
            "housekeeping": self.housekeeping,
            "bundles": self.bundles,
            "versions": versions(),
        }
        return Summary.model_validate(facts | most | total)


def _short(each: BundleNight) -> dict[str, int | str | None]:
    names = ("bundle_id", *COUNTED)
    return {name: getattr(each, name) for name in names} | {"drift": each.level, "error": each.error}


def index_folder(run: NightlyRun, spec: ModalitySpec) -> str:
    """Work folder of the index of all bundles that read alike."""
    return files.join(run.folder, f"index-{spec.kind}-{_digest(spec)}")


def _digest(spec: ModalitySpec) -> str:
    import hashlib

    return hashlib.sha256(reads_as(spec).encode()).hexdigest()[:8]


def _with_scores(store: ScoreStore, night: BundleNight) -> BundleNight:
    if not night.run_id or not night.scored + night.failed:
        return night
    runs = recent_runs(store, night.bundle_id, datetime.now(UTC))
    tonight = [run for run in runs if run["run_id"] == night.run_id]
    before = [run for run in runs if run["run_id"] != night.run_id][-NIGHTS:]
    now, then = values(store, night.bundle_id, tonight), values(store, night.bundle_id, before)
    outputs = [compared(name, then.get(name, np.empty(0)), scores) for name, scores in now.items()]
    return night.model_copy(update={"outputs": outputs, "nights": before})


def housekeep(store: ScoreStore, settings: Housekeeping) -> dict[str, object]:
    """Compact and vacuum as the run file says; what was done."""
    done: dict[str, object] = {}
    if settings.compact:
        done |= store.compact()
    if settings.vacuum_days is not None:
        done |= store.vacuum(timedelta(days=settings.vacuum_days))
    return done
