"""score: what an archive holds that this bundle has not scored yet, into the score store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from medray import bundles, stages
from medray.engines.base import Engine
from medray.flows import Flow, Receipt, Sink, shards
from medray.manifests import by_place
from medray.modalities.base import at_site
from medray.progress import Progress, Silent
from medray.scores import ScoreStore
from medray.verbs.index import index_archive
from medray.verbs.results import ScoreResult
from medray.verbs.settings import ScoreRun

ENTRIES_PER_SHARD, MANY_ENTRIES, SHARD_BYTES = 256, 4096, 2**25
SMALL_ENTRIES = 32


class Tally:
    """A sink that counts what passes through its commits; the writing is the inner sink's."""

    def __init__(self, sink: Sink) -> None:
        self.write, self.inner = sink.write, sink
        self.entries, self.failed, self.samples = 0, 0, 0
        self.by_reason: Counter[str] = Counter()

    def commit(self, receipts: Sequence[Receipt]) -> None:
        self.inner.commit(receipts)
        for receipt in receipts:
            self.entries += receipt.entries
            self.failed += receipt.failed
            self.samples += receipt.samples
            self.by_reason.update(receipt.reasons)


def score(run: ScoreRun, engine: Engine, progress: Progress | None = None) -> ScoreResult:
    """Index, find what is pending for this bundle, score it, commit.

    Raises BundleError, StoreError, ArchiveError; Fenced when a newer run has claimed the store meanwhile.
    """
    progress = progress or Silent()
    started = time.monotonic()
    bundle = bundles.load(run.bundle_uri)
    spec = at_site(bundle.recipe.modality, run.modality)
    manifest, indexed = index_archive(run, spec, engine, progress)
    store = ScoreStore.open(run.store_uri, create=True)
    claim = store.claim(bundle.id)  # before pending: what an overtaken run has committed by now is seen
    pending = store.pending(manifest, bundle.id)
    sink = Tally(store.sink(claim))
    scoring = time.monotonic()
    rows = stages.batch_rows(spec.open()) if run.batch_size == "auto" else run.batch_size
    progress.begin("score", len(pending))
    flow = Flow(
        "score",
        shards(by_place(pending), workers=engine.workers, rows_per_shard=_entries_per_shard(pending)),
        (
            stages.read(spec, rows),
            stages.score(run.bundle_uri, bundle.id, rows, spec),
        ),
        sink,
        progress.advance,
        small=len(pending) <= SMALL_ENTRIES,
        commit_seconds=30.0,
    )
    engine.run(flow)
    now = time.monotonic()
    return ScoreResult(
        run_id=claim.run_id,
        bundle_id=bundle.id,
        entries=indexed.entries,
        pending=len(pending),
        scored=sink.entries - sink.failed,
        failed=sink.failed,
        samples=sink.samples,
        failed_samples=sum(sink.by_reason.values()),
        by_reason=dict(sink.by_reason.most_common()),
        seconds=now - started,
        entries_per_second=len(pending) / max(now - scoring, 1e-9),
        store=run.store_uri,
    )


def _entries_per_shard(pending: pa.Table) -> int:
    """More where entries are small: a shard costs an engine some milliseconds, whatever is in it."""
    each = max(1.0, pc.mean(pending.column("bytes")).as_py() or 0.0)
    return max(ENTRIES_PER_SHARD, min(MANY_ENTRIES, int(SHARD_BYTES / each)))
