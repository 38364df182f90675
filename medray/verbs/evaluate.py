"""evaluate: the bundle's metrics on one split of the shards, or on other archives, with intervals and a report."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.pseudonyms import own_subject, pseudonym_key
from medray.config.runs import EvaluateRun, TrainRun
from medray.datasets.shards import ShardSet, read_samples
from medray.engines.base import Engine
from medray.errors import ArchiveError, BundleError, LabelError, RunFileError
from medray.flows.flow import Flow
from medray.flows.table_sink import TableSink
from medray.learning import bundles
from medray.learning.backend import Backend
from medray.learning.metrics import Metrics
from medray.learning.models.own import own_code
from medray.learning.recipe import Recipe
from medray.modalities.registry import open_modality
from medray.modalities.site import NARROWING
from medray.progress import Progress, Silent
from medray.reports.evaluation import ReportFacts, write_report
from medray.storage import files
from medray.verbs import overlap, stages
from medray.verbs.backend import chosen_backend
from medray.verbs.external import External, labelled_entries
from medray.verbs.measuring import Archive, measured
from medray.verbs.prepare import Prepared, prepare_shards, require_split
from medray.verbs.reporting import report_facts
from medray.verbs.results import EvaluateResult
from medray.verbs.train import FLOOR, floor_uri

SMALL_SAMPLES = 256
ALL = "all"
"""What a split is called that is everything with a label."""
OWN = "own test split"


def evaluate(
    run: TrainRun | EvaluateRun, engine: Engine, progress: Progress | None = None, *, split: str = "test"
) -> EvaluateResult:
    """Score one split with the bundle and compare with its labels. Threshold and calibration are the bundle's own.

    A training run's own split is taken from its shards; everything else is another archive, of which nothing is fitted.
    Raises BundleError when the bundle was trained with other preprocessing or other classes than the run file has.
    """
    return evaluate_bundle(run, engine, progress or Silent(), split)[0]


def evaluate_bundle(
    run: TrainRun | EvaluateRun, engine: Engine, progress: Progress, split: str
) -> tuple[EvaluateResult, ReportFacts]:
    """(result, what its report was made of)"""
    started = time.monotonic()
    bundle = bundles.trusting(bundles.load(run.bundle_uri), run.trust)
    if run.evaluation.prevalence is not None and not bundle.recipe.objective.at_prevalence:
        raise RunFileError(
            "PPV and NPV at a prevalence are of two classes",
            where="[evaluation] prevalence",
            found=f"a bundle that is {bundle.recipe.objective.kind}",
            expected="a binary bundle",
            do="leave the key out",
        )
    if isinstance(run, TrainRun):
        changes = _site_changes(run, bundle.recipe)
        if _trained_here(run, bundle.recipe):
            return _own_split(run, bundle, engine, progress, split, started)
        names = ("name", "archive", "work", "pseudonym_key", "max_failed", "engine", "bundle", "trust")
        shared = {name: getattr(run, name) for name in (*names, "labels", "split", "evaluation")}
        run = EvaluateRun(**shared, modality=changes)
    return _elsewhere(run, bundle, engine, progress, split, started)


# --- the archive that the bundle was trained on ---------------------------------------------------------------


def _trained_here(run: TrainRun, recipe: Recipe) -> bool:
    """The run file reads data as the bundle does, and the shards that it was trained on lie in this work folder."""
    if _other(run, recipe):
        return False
    return files.exists(files.join(run.folder, "shards", str(recipe.data.get("manifest_digest")), "prepared.json"))


def _own_split(
    run: TrainRun, bundle: bundles.TrainedModel, engine: Engine, progress: Progress, split: str, started: float
) -> tuple[EvaluateResult, ReportFacts]:
    recipe = bundle.recipe
    prepared = prepare_shards(run, engine, progress)
    require_split(prepared, split)
    if prepared.classes != recipe.classes:
        raise BundleError(
            "the bundle knows other classes than the data",
            where=run.bundle_uri,
            found=", ".join(prepared.classes),
            expected=", ".join(recipe.classes),
            do="train again, or correct [labels] and [objective] of the run file",
        )
    backend = chosen_backend(run, bundle, engine, progress)
    predictions = predict_split(run, bundle, run.bundle_uri, prepared.folder, engine, progress, split, backend)
    if split == "test" and prepared.digest != recipe.data.get("manifest_digest"):
        predictions = _without_seen(predictions, run, progress)
    metrics, intervals = measured(recipe, predictions, run.evaluation)
    folder = files.join(run.folder, "evaluation", recipe.id, split)
    floor = _floor_metrics(run, prepared, engine, progress, split) if recipe.model.kind != FLOOR.kind else None
    facts = report_facts(
        run, bundle, predictions, metrics, intervals, split=split, folders=[(prepared.folder, split)],
        splits=prepared.result.splits,
    )  # fmt: skip
    if floor is not None:
        facts = replace(facts, beside={FLOOR.kind: floor})
    result = EvaluateResult(
        entries=prepared.result.entries,
        failed=prepared.result.failed,
        bundle_id=recipe.id,
        split=split,
        n=len(predictions),
        subjects=_subjects(predictions),
        metrics=metrics,
        floor=floor,
        intervals=intervals,
        thresholds=recipe.thresholds,
        beta=run.evaluation.beta,
        prevalence=run.evaluation.prevalence,
        predictions=files.join(folder, "predictions.parquet"),
        report=files.join(folder, "report.html"),
        seconds=time.monotonic() - started,
    )
    _write(result, facts, predictions, folder)
    return result, facts


def _without_seen(predictions: pa.Table, run: TrainRun, progress: Progress) -> pa.Table:
    """The archive has changed since training, and a stratified split may have moved a subject. Raises LabelError."""
    known = overlap.seen(run.bundle_uri, predictions, pseudonym_key(run.pseudonym_key))
    if known is None or not known.any():
        return predictions
    rule, subjects = run.evaluation.shared_subjects, _subjects(predictions.filter(pa.array(known)))
    if rule == "refuse" or (rule == "leave_out" and known.all()):
        raise LabelError(
            "the archive has changed since training, and its test split holds subjects that the bundle was trained on",
            where=run.root,
            found=f"{subjects} subjects with {int(known.sum())} of {len(predictions)} samples",
            expected="subjects that it has not seen",
            do='train again, or set [evaluation] shared_subjects = "leave_out"',
        )
    progress.note(f"{subjects} subjects of the test split were in training: {rule.replace('_', ' ')}")
    return predictions.filter(pa.array(~known)) if rule == "leave_out" else predictions


def _floor_metrics(run: TrainRun, prepared: Prepared, engine: Engine, progress: Progress, split: str) -> Metrics | None:
    """Figures of the logistic model on the same split, where one was trained with this run's data and settings."""
    uri = floor_uri(run, prepared)
    if not files.exists(files.join(uri, bundles.SPEC)):
        return None
    floor = bundles.load(uri)
    predictions = predict_split(run, floor, uri, prepared.folder, engine, progress, split)
    return measured(floor.recipe, predictions, run.evaluation.model_copy(update={"resamples": 0}))[0]


# --- other archives -------------------------------------------------------------------------------------------


def _elsewhere(
    run: EvaluateRun, bundle: bundles.TrainedModel, engine: Engine, progress: Progress, split: str, started: float
) -> tuple[EvaluateResult, ReportFacts]:
    recipe = bundle.recipe
    evaluated: list[tuple[str, External, pa.Table]] = []
    backend = chosen_backend(run, bundle, engine, progress)
    for each in run.archives():
        progress.fact("archive", name=each.name)
        external = labelled_entries(each, bundle, engine, progress, split)
        if not ShardSet.open(external.folder).rows(split):
            raise ArchiveError(
                "no labelled entry of the archive can be scored",
                where=each.root,
                found=f"{external.failed} failed, {sum(external.not_eligible.values())} not eligible",
                do="look at the reasons with medray index, or at [modality] of the run file",
            )
        predictions = predict_split(each, bundle, run.bundle_uri, external.folder, engine, progress, split, backend)
        evaluated.append((each.name, external, predictions))
    together = evaluated[0][2] if len(evaluated) == 1 else _together({name: table for name, _, table in evaluated})
    metrics, intervals = measured(recipe, together, run.evaluation)
    by_archive = [Archive.of(recipe, name, predictions, run.evaluation) for name, _, predictions in evaluated]
    own = _own_test(run, recipe)
    if own is not None:
        by_archive.append(Archive.of(recipe, OWN, own, run.evaluation))
    elif len(evaluated) == 1:
        by_archive = []
    title = ALL if all(each.split.by == "all" for each in run.archives()) else split
    folder = files.join(run.folder, "evaluation", recipe.id, f"{title}-{_digest(run)}")
    facts = report_facts(
        run, bundle, together, metrics, intervals, split=title,
        folders=[(external.folder, split) for _, external, _ in evaluated],
        splits={name: external.facts for name, external, _ in evaluated},
        archives=by_archive,
    )  # fmt: skip
    counts = [external.shared for _, external, _ in evaluated]
    shared = None if None in counts else sum(each or 0 for each in counts)
    facts = replace(facts, seen=_seen(shared, run.evaluation.shared_subjects))
    result = EvaluateResult(
        entries=sum(external.entries for _, external, _ in evaluated),
        failed=sum(external.failed for _, external, _ in evaluated),
        bundle_id=recipe.id,
        split=title,
        external=True,
        n=len(together),
        subjects=_subjects(together),
        not_eligible=dict(sum((Counter(external.not_eligible) for _, external, _ in evaluated), Counter())),
        shared_subjects=shared,
        absent_classes=tuple(
            name for name in recipe.classes if all(name in external.absent for _, external, _ in evaluated)
        ),
        metrics=metrics,
        intervals=intervals,
        by_archive={each.name: each.as_json() for each in by_archive},
        thresholds=recipe.thresholds,
        beta=run.evaluation.beta,
        prevalence=run.evaluation.prevalence,
        predictions=files.join(folder, "predictions.parquet"),
        report=files.join(folder, "report.html"),
        seconds=time.monotonic() - started,
    )
    _write(result, facts, together, folder)
    return result, facts


def _seen(shared: int | None, rule: str) -> str:
    if shared is None:
        return "It is not known whether the model was trained on some of these subjects."
    if not shared:
        return "The model was trained on none of these subjects."
    return f"The model was trained on {shared:,} of these subjects, who are {'left out' if rule == 'leave_out' else 'counted in'}."


def _together(predictions: Mapping[str, pa.Table]) -> pa.Table:
    """All rows, with their `archive`. A subject that is its entry itself is another one in another archive."""
    tables = []
    for name, table in predictions.items():
        subjects = table.column("subject_id").to_pylist()
        entries = table.column("entry_id").to_pylist()
        own = [f"{name}/{s}" if s == own_subject(e) else s for s, e in zip(subjects, entries, strict=True)]
        table = table.set_column(table.column_names.index("subject_id"), "subject_id", pa.array(own))
        tables.append(table.append_column("archive", pa.repeat(name, len(table))))
    return pa.concat_tables(tables)


def _own_test(run: EvaluateRun, recipe: Recipe) -> pa.Table | None:
    """Predictions of the bundle's own test split, where they are. Raises BundleError for another bundle's."""
    import pyarrow.parquet as pq

    predictions = files.join(f"work/{recipe.name}", "evaluation", recipe.id, "test", "predictions.parquet")
    uri = files.absolute(run.own_test or predictions)
    try:
        table = pq.read_table(pa.BufferReader(files.read_bytes(uri)))
    except OSError as error:
        if run.own_test is None:
            return None
        raise BundleError(
            "the predictions of the bundle's own test split cannot be read", where=f"own_test = {uri}",
            found=error.strerror or type(error).__name__, do="run medray evaluate on the training's run file first",
        ) from None  # fmt: skip
    needed = {"subject_id", "target", *recipe.outputs}
    if not needed <= set(table.column_names):
        raise BundleError("these are predictions of another bundle", where=f"own_test = {uri}",
                          found=", ".join(table.column_names), expected=", ".join(sorted(needed)))  # fmt: skip
    return table


def _digest(run: EvaluateRun) -> str:
    """A digest of the archives: two sets of them leave two reports."""
    return hashlib.sha256("\n".join(each.root for each in run.archives()).encode()).hexdigest()[:8]


def _site_changes(run: TrainRun, recipe: Recipe) -> dict[str, Any]:
    """What the run file says of its site that is other than the bundle's. Raises BundleError for other preprocessing
    and for another objective: what the run file does not state is the bundle's."""
    asked, made = run.modality.model_dump(mode="json"), recipe.modality.model_dump(mode="json")
    stated = run.modality.model_fields_set | {"kind"}
    other = [name for name in _other(run, recipe) if name in stated]
    site = {name: asked[name] for name in other if name in recipe.modality.site | NARROWING}
    _refuse_other("modality", {name: asked[name] for name in other if name not in site}, made)
    goal, goals = run.objective.model_dump(mode="json"), recipe.objective.model_dump(mode="json")
    names = [name for name in run.objective.binding if goal.get(name) is not None]
    _refuse_other("objective", {name: goal[name] for name in names if goal[name] != goals.get(name)}, goals)
    return site


def _other(run: TrainRun, recipe: Recipe) -> list[str]:
    """Fields of [modality], stated or not, that are other than the bundle's; None is for what was fitted."""
    fitted = {"trained", "trained_ranges"}
    asked, made = run.modality.model_dump(mode="json", exclude=fitted), recipe.modality.model_dump(mode="json")
    return [name for name, value in asked.items() if value is not None and made.get(name) != value]


def _refuse_other(table: str, other: dict[str, Any], made: dict[str, Any]) -> None:
    if other:
        raise BundleError(
            f"the bundle was trained with {'another objective' if table == 'objective' else 'other preprocessing'} "
            "than the run file asks for",
            where=f"[{table}] {', '.join(other)}",
            found=", ".join(f"{name} = {value}" for name, value in other.items()),
            expected=", ".join(f"{name} = {made.get(name)}" for name in other),
            do="train again, or take the bundle's own settings: leave these keys out",
        )


# --- scores and metrics ---------------------------------------------------------------------------------------


def predict_split(
    run: TrainRun | EvaluateRun,
    bundle: bundles.TrainedModel,
    uri: str,
    folder: str,
    engine: Engine,
    progress: Progress,
    split: str,
    backend: Backend | None = None,
) -> pa.Table:
    """One row per sample of the split of the shards in `folder`, ordered by entry: keys, `target`, a column per output.
    `backend`: what scores; None: torch."""
    shards = ShardSet.open(folder).split(split)
    plan = [pa.table({"shard": [shard.uri]}) for shard in shards]
    progress.begin("evaluate", len(plan))
    stage_list = (
        stages.load_shard(),
        stages.score(
            uri,
            bundle.id,
            stages.batch_rows(open_modality(bundle.recipe.modality)),
            code=own_code(bundle.recipe.model, run.trust),
            graph=backend and backend.graph,
        ),
    )
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
    return _wide(rows, bundle.recipe.outputs, _targets(folder, split))


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


def _subjects(predictions: pa.Table) -> int:
    return pc.count_distinct(predictions.column("subject_id")).as_py()


def _write(result: EvaluateResult, facts: ReportFacts, predictions: pa.Table, folder: str) -> None:
    """predictions.parquet, report.html and metrics.json."""
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(predictions, buffer, compression="zstd")
    files.write_bytes(files.join(folder, "predictions.parquet"), buffer.getvalue().to_pybytes())
    files.write_bytes(files.join(folder, "report.html"), write_report(facts).encode())
    files.write_bytes(files.join(folder, "metrics.json"), (result.model_dump_json(indent=2) + "\n").encode())
