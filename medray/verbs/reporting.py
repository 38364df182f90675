"""What an evaluation's report needs, from the bundle, the predictions and the shards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.config.runs import EvaluateRun, TrainRun
from medray.datasets.samples import stacked
from medray.datasets.shards import ShardSet, read_samples
from medray.learning import bundles
from medray.learning.metrics import Metrics
from medray.learning.recipe import Recipe
from medray.modalities.pictures import SamplePicture
from medray.modalities.registry import open_modality
from medray.reports.evaluation import Mistake, ReportFacts
from medray.reports.evaluation.facts import SplitFacts
from medray.storage import files
from medray.verbs.measuring import Archive, score_matrix
from medray.verbs.prepare import mixture_of

SHOWN = 12
"""Mistakes in a report."""


Folder = tuple[str, str]
"""A folder of shards, and the split in it."""


def report_facts(
    run: TrainRun | EvaluateRun,
    bundle: bundles.TrainedModel,
    predictions: pa.Table,
    measured: Metrics,
    intervals: Mapping[str, tuple[float, float]],
    *,
    split: str,
    folders: Sequence[Folder],
    splits: Mapping[str, SplitFacts],
    archives: Sequence[Archive] = (),
) -> ReportFacts:
    """`splits`: entries, subjects and classes by split, or by archive where the bundle is on others than its own."""
    recipe = bundle.recipe
    training = recipe.training
    scores = score_matrix(predictions, recipe.outputs)
    stated = stated_facts(folders)
    return ReportFacts(
        name=recipe.name,
        bundle_id=recipe.id,
        model=described(recipe.model.model_dump(mode="json", exclude_unset=True)),
        objective=recipe.objective,
        classes=recipe.classes,
        split=split,
        date=recipe.created,
        modality=described(recipe.modality.model_dump(mode="json", include={"kind", "size"})),
        facts={
            "Trained": _how(training),
            "Data": f"manifest digest {recipe.data['manifest_digest'] or 'not known'}",
        },
        splits=splits,
        external=isinstance(run, EvaluateRun),
        archives=archives,
        metrics=measured,
        intervals=intervals,
        confidence=run.evaluation.confidence,
        resamples=run.evaluation.resamples,
        metric_options=run.evaluation.metric_options,
        thresholds=recipe.thresholds,
        threshold_choice=training.get("threshold_choice", ()),
        scores=scores,
        targets=stacked(predictions.column("target").combine_chunks()),
        history=_history(run, training["plan"]) if "plan" in training else None,
        best_epoch=training.get("best_epoch"),
        mistakes=mistakes(recipe, folders, predictions, scores, pictures=run.evaluation.pictures),
        mixture=mixture_of(stated, recipe.modality.kinds),
        measures=measures_of(stated),
        versions=recipe.versions,
    )


def stated_facts(folders: Sequence[Folder]) -> list[str | None]:
    """Facts (JSON) of each entry in these shards, None where none are known."""
    facts_by_entry: dict[tuple[str, str], str | None] = {}
    for folder, split in folders:
        for shard in ShardSet.open(folder).split(split):
            samples = read_samples(shard.uri, ["entry_id", "facts"])
            entries = zip(samples.column("entry_id").to_pylist(), samples.column("facts").to_pylist(), strict=True)
            facts_by_entry |= {(folder, entry): facts for entry, facts in entries}
    return list(facts_by_entry.values())


def measures_of(facts: Sequence[str | None]) -> dict[str, tuple[int, float, float, float]]:
    """How many entries state each fact that is a length in mm, an angle in degrees or a number of slices, and its least,
    median and greatest value; the members of a list (spacing between slices, rows and columns) each by itself."""
    values: dict[str, list[float]] = {}
    for text in facts:
        for name, value in json.loads(text).items() if text else ():
            if name != "slices" and not name.endswith(("_mm", "_degrees")):
                continue
            listed = isinstance(value, list)
            for position, each in enumerate(value if listed else [value], 1):
                if isinstance(each, int | float):
                    values.setdefault(f"{name}[{position}]" if listed else name, []).append(float(each))
    return {
        name: (len(numbers), min(numbers), float(np.median(numbers)), max(numbers))
        for name, numbers in sorted(values.items())
    }


def _how(training: Mapping[str, Any]) -> str:
    if imported := training.get("imported"):
        return f"elsewhere; imported from {imported['file']}, written by {imported['written_by']}"
    return (
        f"{training['epochs']} epochs, best {training['best_epoch']}, {training['workers']} workers, "
        f"seed {training['settings']['seed']}"
    )


def described(spec: dict[str, Any]) -> str:
    """{"kind": "resnet", "depth": 18} to "resnet, depth 18"."""
    rest = [f"{name} {_shown(value)}" for name, value in spec.items() if name != "kind" and not isinstance(value, dict)]
    return ", ".join([spec["kind"], *rest])


def _shown(value: Any) -> str:
    return " × ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _history(run: TrainRun | EvaluateRun, plan: str) -> pa.Table | None:
    """History of the training that made the bundle, where it was trained in this work folder."""
    import pyarrow.parquet as pq

    try:
        content = files.read_bytes(files.join(run.folder, "training", plan, "history.parquet"))
    except FileNotFoundError:
        return None
    return pq.read_table(pa.BufferReader(content))


def mistakes(
    recipe: Recipe, folders: Sequence[Folder], predictions: pa.Table, scores: np.ndarray, *, pictures: bool = True
) -> list[Mistake]:
    """The rows that the objective finds most wrong, the worst first, with their pictures where these are wanted."""
    targets = stacked(predictions.column("target").combine_chunks())
    names = recipe.objective.display(recipe.classes)
    calls = recipe.objective.mistakes(scores, targets, recipe.thresholds, names, SHOWN)
    if not calls:
        return []
    wrong = pa.array([call.row for call in calls])
    keys = predictions.select(["entry_id", "sample_id"]).take(wrong).to_pylist()
    seen = _pictures(recipe, folders, {row["entry_id"] for row in keys}) if pictures else {}
    return [
        Mistake(
            entry_id=key["entry_id"],
            true=call.true,
            called=call.called,
            score=call.score,
            image=seen.get((key["entry_id"], key["sample_id"])),
        )
        for call, key in zip(calls, keys, strict=True)
    ]


def _pictures(
    recipe: Recipe, folders: Sequence[Folder], wanted: set[str]
) -> dict[tuple[str, str], SamplePicture | None]:
    """(entry id, sample id) to a picture, of the entries wanted."""
    modality = open_modality(recipe.modality)
    pictures: dict[tuple[str, str], SamplePicture | None] = {}
    shards = [shard for folder, split in folders for shard in ShardSet.open(folder).split(split)]
    for shard in shards if wanted else ():
        samples = read_samples(shard.uri)
        mine = samples.filter(pc.is_in(samples.column("entry_id"), pa.array(sorted(wanted))))
        if len(mine):
            keys = zip(mine.column("entry_id").to_pylist(), mine.column("sample_id").to_pylist(), strict=True)
            pictures |= dict(zip(keys, modality.pictures(mine), strict=True))
    return pictures
