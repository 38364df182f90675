"""Labelled entries of another archive than the one that a bundle was trained on, as it reads them; nothing is fitted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.entries import TARGET, by_place, manifest_digest
from medray.archive.pseudonyms import pseudonym_key
from medray.config.runs import EvaluateRun
from medray.datasets.labels import apply_labels
from medray.datasets.samples import sample_schema
from medray.datasets.shards import ShardSet, ShardSink
from medray.datasets.splits import SPLITS, assign_splits
from medray.engines.base import Engine
from medray.errors import NOT_ELIGIBLE, BundleError, LabelError
from medray.flows.driver import shards
from medray.flows.flow import Flow
from medray.learning import bundles
from medray.learning.recipe import Recipe
from medray.modalities.registry import ModalitySpec, open_modality
from medray.modalities.site import at_site
from medray.progress import Progress
from medray.storage import files
from medray.verbs import stages
from medray.verbs.index import index_archive
from medray.verbs.overlap import seen
from medray.verbs.prepare import SMALL_BYTES, refuse_unread, rows_per_shard, split_facts
from medray.verbs.results import class_counts

SHOWN = 20


class External(NamedTuple):
    """Decoded entries of one archive."""

    folder: str
    """The folder of their shards."""
    split: str
    """Under which they stand there."""
    facts: dict[str, Any]
    """entries, subjects and classes of what is evaluated."""
    entries: int
    """Those of the whole archive."""
    failed: int
    not_eligible: dict[str, int]
    """Entries that the model is not asked about, by reason."""
    shared: int | None
    """Subjects whom the bundle was trained or validated on; None: not known."""
    absent: tuple[str, ...]
    """Classes of the bundle that no entry has."""


def labelled_entries(
    run: EvaluateRun, bundle: bundles.TrainedModel, engine: Engine, progress: Progress, split: str
) -> External:
    """Index, label and decode; those of an earlier call where nothing has changed.

    Raises LabelError and SplitError, BundleError for classes that the bundle does not know, and RunFileError for
    [modality] keys that are no matter of a site.
    """
    recipe = bundle.recipe
    spec = at_site(recipe.modality, run.modality)
    archive, indexed = index_archive(run, spec, engine, progress)
    key = pseudonym_key(run.pseudonym_key)
    manifest, labels = apply_labels(archive.table(), run.labels, root=run.root, pseudonym_key=key)
    for line in labels.notes():
        progress.note(line)
    if not labels.labelled:
        raise LabelError("no entry of the archive has a label", where=run.root, do="check [labels] of the run file")
    manifest = assign_splits(manifest, run.split, only=split)
    chosen = manifest.filter(pc.equal(manifest.column("split"), split).fill_null(False))
    chosen = chosen.append_column(TARGET, _targets(chosen, recipe, run))
    readable = pc.and_(chosen.column("target").is_valid(), chosen.column("reason").is_null())
    used = chosen.filter(readable)
    if not len(used):
        _refuse_empty(manifest, split, run)
    used, shared = _without_seen(used, run, key, progress)
    folder = _decoded(used, archive.uri, spec, bundle.id, run, engine, progress)
    lost = [*manifest.column("reason").drop_null().to_pylist(), *ShardSet.open(folder).failed()["reason"].to_pylist()]
    reasons = Counter(str(reason) for reason in lost)
    facts = split_facts(used, split, recipe.objective, recipe.classes)
    absent = tuple(name for name, count in class_counts(facts).items() if not count)
    if absent:
        progress.note(f"no entry evaluated has the class {', '.join(absent)}: figures that need it are not defined")
    return External(
        folder=folder,
        split=split,
        facts=facts,
        entries=indexed.entries,
        failed=sum(count for reason, count in reasons.items() if reason not in NOT_ELIGIBLE),
        not_eligible={reason: count for reason, count in reasons.items() if reason in NOT_ELIGIBLE},
        shared=shared,
        absent=absent,
    )


def _targets(rows: pa.Table, recipe: Recipe, run: EvaluateRun) -> pa.Array:
    """As in training, by the bundle's classes. Raises BundleError for a label that is none of them."""
    labels = rows.column("label").combine_chunks()
    if unknown := recipe.objective.unknown_classes(labels, recipe.classes):
        raise BundleError(
            "the bundle knows other classes than the data",
            where=run.bundle_uri,
            found=", ".join(unknown[:SHOWN]),
            expected=", ".join(recipe.classes),
            do="write the labels of this archive as those that the bundle was trained on",
        )
    return recipe.objective.targets(labels, recipe.classes)


def _refuse_empty(manifest: pa.Table, split: str, run: EvaluateRun) -> None:
    counts = Counter(manifest.column("split").to_pylist())
    raise LabelError(
        f"the split {split!r} holds no labelled, readable entry",
        where=run.root,
        found=", ".join(f"{name}: {counts.get(name, 0)}" for name in SPLITS),
        do='check [labels] and [split] of the run file; [split] by = "all" takes every entry with a label',
    )


def _without_seen(used: pa.Table, run: EvaluateRun, key: bytes, progress: Progress) -> tuple[pa.Table, int | None]:
    """The rows that may be evaluated, and how many subjects the bundle has seen. Raises LabelError."""
    known = seen(run.bundle_uri, used, key)
    if known is None:
        progress.note(
            "not known whether the bundle was trained on some of these subjects: it keeps no hashes under this key"
        )
        return used, None
    subjects = pc.count_distinct(used.filter(pa.array(known)).column("subject_id")).as_py()
    if not subjects:
        return used, 0
    rule = run.evaluation.shared_subjects
    if rule == "refuse" or (rule == "leave_out" and known.all()):
        raise LabelError(
            "the bundle was trained or validated on subjects of this archive, so that its metrics would flatter it",
            where=run.root,
            found=f"{subjects} subjects with {int(known.sum())} of {len(used)} entries",
            expected="subjects that it has not seen",
            do='set [evaluation] shared_subjects = "leave_out", or "keep" to count them in',
        )
    progress.note(f"{subjects} subjects whom the bundle was trained or validated on: {rule.replace('_', ' ')}")
    return (used.filter(pa.array(~known)) if rule == "leave_out" else used), subjects


def _decoded(
    used: pa.Table,
    archive: str,
    spec: ModalitySpec,
    bundle_id: str,
    run: EvaluateRun,
    engine: Engine,
    progress: Progress,
) -> str:
    """Folder of the shards of these entries. `archive`: where their manifest is. Raises MachineError where some cannot be
    read now."""
    decides: Mapping[str, Any] = {
        "entries": manifest_digest(used),
        "bundle": bundle_id,
        "spec": spec.model_dump(mode="json"),
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    folder = files.join(run.folder, "evaluated", digest)
    done = files.join(folder, "done.json")
    if files.exists(done):
        return folder
    files.remove_tree(folder)  # of a killed attempt
    modality = open_modality(spec)
    rows = rows_per_shard(modality)
    small = pc.sum(used.column("bytes")).as_py() <= SMALL_BYTES
    plan = shards(by_place(used), workers=1 if small else engine.readers, rows_per_shard=rows)
    sink = ShardSink(folder, sample_schema(modality.payload), planned=len(used))
    progress.begin("prepare", len(used))
    read = stages.read(spec, min(rows, stages.batch_rows(modality)))
    engine.run(Flow("prepare", plan, (read,), sink, progress.advance, small=small, failable=True))
    refuse_unread(ShardSet.open(folder), archive, run.root)
    files.write_bytes(done, json.dumps({"entries": len(used)}).encode())
    return folder
