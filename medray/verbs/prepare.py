"""prepare: archive to shards. Every entry is decoded once; training and evaluation read the shards."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.eligibility import Trained, categories, value_of
from medray.archive.entries import TARGET, by_place, manifest_digest, write_manifest
from medray.archive.manifest import KINDS, doubt
from medray.archive.pseudonyms import pseudonym_key
from medray.archive.ranges import Ranges
from medray.config.runs import TrainRun
from medray.datasets.labels import apply_labels
from medray.datasets.samples import sample_schema, stacked
from medray.datasets.shards import ShardSet, ShardSink
from medray.datasets.splits import SPLITS, assign_splits
from medray.engines.base import Engine
from medray.errors import NOT_ELIGIBLE, PASSING, ArchiveError, LabelError, MachineError
from medray.faults import is_fault
from medray.flows.driver import shards
from medray.flows.flow import Flow
from medray.learning.objectives.base import Objective
from medray.modalities.base import Modality
from medray.modalities.registry import open_modality
from medray.plugins.brought import brought
from medray.progress import Progress, Silent
from medray.storage import files
from medray.verbs import stages
from medray.verbs.index import index_archive, mixture_words
from medray.verbs.results import PrepareResult
from medray.verbs.unsettled import tell_faults

SHARD_BYTES = 64 * 2**20
SMALL_BYTES = 2**22
FORMAT = 1


class Prepared(NamedTuple):
    """What training and evaluation build on."""

    folder: str
    digest: str
    """Digest of the entries used, their splits and targets, and how they were read."""
    classes: tuple[str, ...]
    result: PrepareResult
    trained: Trained | None
    """What the entries used hold of the facts that are learnt."""
    trained_ranges: Ranges | None
    """The ranges of their numbers."""


def prepare(run: TrainRun, engine: Engine, progress: Progress | None = None) -> PrepareResult:
    """Index, label, split and decode. Raises LabelError, SplitError and ArchiveError."""
    return prepare_shards(run, engine, progress or Silent()).result


def prepare_shards(run: TrainRun, engine: Engine, progress: Progress) -> Prepared:
    """Shards of the run's entries; those of an earlier call where nothing has changed."""
    started = time.monotonic()
    archive, indexed = index_archive(run, run.modality, engine, progress)
    manifest, labels = apply_labels(
        archive.table(), run.labels, root=run.root, pseudonym_key=pseudonym_key(run.pseudonym_key)
    )
    for line in labels.notes():
        progress.note(line)
    progress.fact(
        "labels", unlabelled=labels.unlabelled, unused_rows=labels.unused_rows, duplicate_rows=labels.duplicate_rows
    )
    manifest = assign_splits(manifest, run.split)
    manifest, classes = _with_targets(manifest, run)
    used = manifest.filter(_usable(manifest))
    modality = open_modality(run.modality)
    decides = [FORMAT, manifest_digest(used), run.modality.model_dump(mode="json"), classes]
    decides += [each.model_dump() for each in brought(run.modality)]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    folder = files.join(run.folder, "shards", digest)
    done = files.join(folder, "prepared.json")
    reused = files.exists(done)
    if reused and not _whole(folder):
        reused = False
        progress.fact("shards_not_whole", "warning")
        progress.note("the shards of an earlier run are not whole: they are made again")
    if not reused:
        files.remove_tree(folder)  # of a killed attempt
        files.make_closed_folder(files.join(run.folder, "shards"))
        write_manifest(manifest, files.join(folder, "manifest.parquet"), run.root)
        _decode(run, used, modality, folder, engine, progress)
    shard_set = ShardSet.open(folder)
    if not reused:
        refuse_unread(shard_set, archive.uri, run.root)
        tell_faults(Counter(filter(is_fault, shard_set.failed().column("detail").to_pylist())), progress)
    splits = {name: split_facts(used, name, run.objective, classes) for name in SPLITS}
    broken = pa.concat_arrays(
        [
            manifest.column("reason").drop_null().combine_chunks(),
            shard_set.failed().column("reason").combine_chunks().cast(pa.string()),
        ]
    )
    reasons = _reasons(broken)
    failed = {reason: count for reason, count in reasons.items() if reason not in NOT_ELIGIBLE}
    passed_over = {reason: count for reason, count in reasons.items() if reason in NOT_ELIGIBLE}
    mixture = mixture_of(used.column("facts").to_pylist(), run.modality.kinds)
    if len(mixture) > 1:
        progress.note(f"the entries used are a mixture: {mixture_words(mixture)}")
    result = PrepareResult(
        entries=indexed.entries,
        failed=sum(failed.values()),
        not_eligible=sum(passed_over.values()),
        not_eligible_by_reason=passed_over,
        mixture=mixture,
        shards=sum(len(shard_set.split(name)) for name in SPLITS),
        samples=sum(shard_set.rows(name) for name in SPLITS),
        unlabelled=len(manifest) - len(used) - (len(manifest) - manifest.column("reason").null_count),
        by_reason=failed,
        splits=splits,
        folder=folder,
        reused=reused,
        seconds=time.monotonic() - started,
    )
    if not reused:
        files.write_bytes(done, (result.model_dump_json(indent=2) + "\n").encode())
    taught = run.modality.taught(used.column("facts").to_pylist())
    return Prepared(folder, digest, classes, result, taught.trained, taught.trained_ranges)


def mixture_of(facts: Sequence[str | None], names: Sequence[str]) -> list[dict[str, str | int]]:
    """What entries with these facts are, as `archive.manifest.EntryCounts.mixture`."""
    kinds: Counter[tuple[str, ...]] = Counter()
    for text in facts if names else ():
        if text is not None:
            known = json.loads(text)
            kinds[tuple("\\".join(categories(value_of(known, name))) for name in names)] += 1
    mixture = [
        {**{name: value for name, value in zip(names, kind, strict=True) if value}, "entries": count}
        for kind, count in sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))[:KINDS]
    ]
    return [kind for kind in mixture if len(kind) > 1]


def _with_targets(manifest: pa.Table, run: TrainRun) -> tuple[pa.Table, tuple[str, ...]]:
    """The manifest with its `target` column, and the classes seen in the training split."""
    train = manifest.filter(pc.equal(manifest.column("split"), "train"))
    classes = run.objective.fit_classes(train.column("label").combine_chunks())
    targets = run.objective.targets(manifest.column("label").combine_chunks(), classes)
    return manifest.append_column(TARGET, targets), classes


def _usable(manifest: pa.Table) -> pa.Array | pa.ChunkedArray:
    known = pc.and_(manifest.column("split").is_valid(), manifest.column("target").is_valid())
    return pc.and_(known, manifest.column("reason").is_null())


def _decode(run: TrainRun, used: pa.Table, modality: Modality, folder: str, engine: Engine, progress: Progress) -> None:
    rows = rows_per_shard(modality)
    small = pc.sum(used.column("bytes")).as_py() <= SMALL_BYTES
    workers = 1 if small else engine.readers
    plan = []
    for name in SPLITS:
        of_split = by_place(used.filter(pc.equal(used.column("split"), name)))
        plan += shards(of_split, workers=workers, rows_per_shard=rows)
    sink = ShardSink(folder, sample_schema(modality.payload), modality.summarise, planned=len(used))
    progress.begin("prepare", len(used))
    read = stages.read(run.modality, min(rows, stages.batch_rows(modality)))
    engine.run(Flow("prepare", plan, (read,), sink, progress.advance, small=small, failable=True))


def _whole(folder: str) -> bool:
    try:
        return ShardSet.open(folder).is_whole()
    except (MachineError, ArchiveError):
        return False


def refuse_unread(shard_set: ShardSet, manifest: str, root: str) -> None:
    """Raises MachineError where entries that the index has read could not be read again: shards without them would be
    taken for all that there is by every later training. The next index opens their files."""
    failed = shard_set.failed()
    reasons = {name: n for name, n in _reasons(failed.column("reason")).items() if name in PASSING}
    if reasons:
        unread = failed.filter(pc.is_in(failed.column("reason"), pa.array(sorted(PASSING))))
        doubt(manifest, unread.column("entry_id").to_pylist())
        raise MachineError(
            "some entries could not be read as they were indexed a moment ago",
            where=root,
            found=", ".join(f"{name}: {count}" for name, count in reasons.items()),
            do="run the same command again, when the archive is there and nobody writes to it",
        )


def rows_per_shard(modality: Modality) -> int:
    """As many samples as make about 64 MB, between 1 and 4,096."""
    return max(1, min(4096, SHARD_BYTES // max(1, stages.sample_bytes(modality))))


def split_facts(
    used: pa.Table, name: str, objective: Objective, classes: tuple[str, ...]
) -> dict[str, int | dict[str, int]]:
    """entries, subjects and how many entries each class has, for one split."""
    rows = used.filter(pc.equal(used.column("split"), name))
    facts: dict[str, int | dict[str, int]] = {
        "entries": len(rows),
        "subjects": pc.count_distinct(rows.column("subject_id")).as_py() if len(rows) else 0,
    }
    targets = stacked(rows.column("target").combine_chunks()) if len(rows) else np.empty((0, len(classes)))
    if counts := objective.class_counts(targets, classes):
        facts["classes"] = counts
    return facts


def require_split(prepared: Prepared, name: str) -> None:
    """Raises LabelError where a split holds nothing to learn from or to test on."""
    if prepared.result.splits.get(name, {}).get("entries", 0) == 0:
        raise LabelError(
            f"the split {name!r} holds no labelled, readable entry",
            where=prepared.folder,
            found=", ".join(f"{split}: {facts['entries']}" for split, facts in prepared.result.splits.items()),
            do="check [labels] and [split] of the run file",
        )


def _reasons(column: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    """How many rows failed for each reason, most frequent first."""
    return dict(Counter(reason for reason in column.to_pylist() if reason is not None).most_common())
