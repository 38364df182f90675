"""evaluate: the bundle's metrics on one split of the shards, with confidence intervals and a report."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray import bundles, files, stages
from medray.engines.base import Engine
from medray.errors import BundleError
from medray.flows import Flow
from medray.progress import Progress, Silent
from medray.report import ReportFacts, write_report
from medray.shards import ShardSet, read_samples
from medray.training import stacked
from medray.verbs.prepare import Prepared, prepare_shards, require_split
from medray.verbs.reporting import report_facts
from medray.verbs.results import EvaluateResult
from medray.verbs.settings import TrainRun
from medray.verbs.tables import TableSink
from medray.verbs.train import FLOOR, floor_uri

SMALL_SAMPLES = 256


def evaluate(run: TrainRun, engine: Engine, progress: Progress | None = None, *, split: str = "test") -> EvaluateResult:
    """Score one split with the bundle and compare with its labels. The threshold is the bundle's own.

    Raises BundleError when the bundle was trained with other preprocessing or other classes than the run file has.
    """
    return evaluate_bundle(run, engine, progress or Silent(), split)[0]


def evaluate_bundle(
    run: TrainRun, engine: Engine, progress: Progress, split: str
) -> tuple[EvaluateResult, ReportFacts]:
    """(result, what its report was made of)"""
    started = time.monotonic()
    bundle = bundles.load(run.bundle_uri)
    _refuse_other_preprocessing(run, bundle.recipe)
    prepared = prepare_shards(run, engine, progress)
    require_split(prepared, split)
    _refuse_other_classes(run, bundle.recipe, prepared)
    predictions = predict_split(run, bundle, run.bundle_uri, prepared, engine, progress, split)
    recipe = bundle.recipe
    scores, targets = score_matrix(predictions, recipe.outputs), stacked(predictions.column("target").combine_chunks())
    subjects = np.array(predictions.column("subject_id").to_pylist())
    names = recipe.objective.display(recipe.classes)
    metrics = recipe.objective.metrics(scores, targets, recipe.thresholds, names)
    if recipe.objective.calibrator is not None:
        plain = recipe.objective.metrics(recipe.objective.uncalibrated(scores), targets, recipe.thresholds, names)
        metrics["before_calibration"] = {name: plain[name] for name in ("ece", "brier") if name in plain}
    settings = run.evaluation
    intervals = recipe.objective.bootstrap(
        scores,
        targets,
        subjects,
        recipe.thresholds,
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    folder = files.join(run.folder, "evaluation", recipe.id, split)
    _write_predictions(predictions, folder)
    floor = _floor_metrics(run, prepared, engine, progress, split) if recipe.model.kind != FLOOR.kind else None
    facts = report_facts(run, bundle, prepared, predictions, metrics, intervals, split)
    if floor is not None:
        facts = replace(facts, beside={FLOOR.kind: floor})
    files.write_bytes(files.join(folder, "report.html"), write_report(facts).encode())
    result = EvaluateResult(
        entries=prepared.result.entries,
        failed=prepared.result.failed,
        bundle_id=recipe.id,
        split=split,
        n=len(predictions),
        subjects=len(set(subjects)),
        metrics=metrics,
        floor=floor,
        intervals=intervals,
        thresholds=recipe.thresholds,
        predictions=files.join(folder, "predictions.parquet"),
        report=files.join(folder, "report.html"),
        seconds=time.monotonic() - started,
    )
    files.write_bytes(files.join(folder, "metrics.json"), (result.model_dump_json(indent=2) + "\n").encode())
    return result, facts


def _floor_metrics(
    run: TrainRun, prepared: Prepared, engine: Engine, progress: Progress, split: str
) -> dict[str, Any] | None:
    """Of the logistic model on the same split, where one was trained with this run's data and settings."""
    uri = floor_uri(run, prepared)
    if not files.exists(files.join(uri, bundles.SPEC)):
        return None
    floor = bundles.load(uri)
    predictions = predict_split(run, floor, uri, prepared, engine, progress, split)
    recipe = floor.recipe
    scores, targets = score_matrix(predictions, recipe.outputs), stacked(predictions.column("target").combine_chunks())
    return recipe.objective.metrics(scores, targets, recipe.thresholds, recipe.objective.display(recipe.classes))


def predict_split(
    run: TrainRun, bundle: bundles.Bundle, uri: str, prepared: Prepared, engine: Engine, progress: Progress, split: str
) -> pa.Table:
    """One row per sample of the split, ordered by entry: keys, `target`, and one column per output."""
    shards = ShardSet.open(prepared.folder).split(split)
    plan = [pa.table({"shard": [shard.uri]}) for shard in shards]
    progress.begin("evaluate", len(plan))
    stage_list = (stages.load_shard(), stages.score(uri, bundle.id, stages.batch_rows(bundle.recipe.modality.open())))
    small = sum(shard.rows for shard in shards) <= SMALL_SAMPLES
    with TableSink(run.folder, stages.SCORE_ROWS) as sink:
        engine.run(Flow("evaluate", plan, stage_list, sink, progress.advance, small=small))
        rows = sink.take()
    failed = rows.filter(rows.column("output").is_null())
    if len(failed):
        raise BundleError(
            "the bundle gives NaN or infinity",
            where=uri,
            found=f"{len(failed)} of {sum(shard.rows for shard in shards)} samples",
            do="train again with a lower learning rate or with clip_norm",
        )
    return _wide(rows, bundle.recipe.outputs, _targets(prepared.folder, split))


def _targets(folder: str, split: str) -> pa.Table:
    """entry_id, sample_id, subject_id, target of every sample of a split."""
    names = ["entry_id", "sample_id", "subject_id", "target"]
    return pa.Table.from_batches([read_samples(shard.uri, names) for shard in ShardSet.open(folder).split(split)])


def _wide(rows: pa.Table, outputs: tuple[str, ...], keys: pa.Table) -> pa.Table:
    """Score rows (one per output) and keys, joined to one row per sample with a column per output."""
    order = [("entry_id", "ascending"), ("sample_id", "ascending")]
    keys = keys.sort_by(order)
    for name in outputs:
        column = rows.filter(pc.equal(rows.column("output"), name)).sort_by(order)
        same = column.column("entry_id").equals(keys.column("entry_id")) and column.column("sample_id").equals(
            keys.column("sample_id")
        )
        if not same:
            raise RuntimeError(f"output {name!r}: {len(column)} scores for {len(keys)} samples")
        keys = keys.append_column(name, column.column("value"))
    return keys


def score_matrix(predictions: pa.Table, outputs: tuple[str, ...]) -> np.ndarray:
    """(N, O) float32"""
    return np.stack([predictions.column(name).to_numpy() for name in outputs], axis=1)


def _write_predictions(predictions: pa.Table, folder: str) -> None:
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(predictions, buffer, compression="zstd")
    files.write_bytes(files.join(folder, "predictions.parquet"), buffer.getvalue().to_pybytes())


def _refuse_other_preprocessing(run: TrainRun, recipe: bundles.Recipe) -> None:
    asked, made = run.modality.model_dump(mode="json", exclude={"trained"}), recipe.modality.model_dump(mode="json")
    other = [name for name, value in asked.items() if value is not None and made.get(name) != value]
    if other:
        raise BundleError(
            "the bundle was trained with other preprocessing than the run file asks for",
            where=f"[modality] {', '.join(other)}",
            found=", ".join(f"{name} = {asked[name]}" for name in other),
            expected=", ".join(f"{name} = {made.get(name)}" for name in other),
            do="train again, or take the bundle's own settings",
        )


def _refuse_other_classes(run: TrainRun, recipe: bundles.Recipe, prepared: Prepared) -> None:
    if prepared.classes != recipe.classes:
        raise BundleError(
            "the bundle knows other classes than the data",
            where=run.bundle_uri,
            found=", ".join(prepared.classes),
            expected=", ".join(recipe.classes),
            do="train again, or correct [labels] and [objective] of the run file",
        )
