"""train: shards to a bundle. The same command again goes on where a killed one stopped."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from medray.archive.pseudonyms import pseudonym_key
from medray.config.runs import TrainRun
from medray.datasets.samples import good, stacked
from medray.datasets.shards import ShardSet, read_samples
from medray.engines.base import Engine, Fitted
from medray.errors import BundleError, LabelError, RunFileError
from medray.extras import lacking
from medray.learning import bundles, pretrained
from medray.learning.backend import with_graph
from medray.learning.keras import reading
from medray.learning.models.keras import WHERE as KERAS_FILE
from medray.learning.models.keras import KerasSpec
from medray.learning.models.logistic import LogisticSpec
from medray.learning.objectives.base import Objective
from medray.learning.plan import FitPlan
from medray.learning.recipe import Recipe, versions
from medray.learning.start_from import StartFrom
from medray.modalities.registry import open_modality
from medray.plugins.brought import brought
from medray.progress import EpochRow, Progress, Silent
from medray.storage import files
from medray.storage.arrow import joined
from medray.verbs.overlap import seen_by
from medray.verbs.prepare import Prepared, prepare_shards, require_split
from medray.verbs.results import TrainResult, class_counts
from medray.verbs.stages import sample_bytes

FLOOR = LogisticSpec()
MOST_CHECKED, FEW_CHECKED, CHECKED_BYTES = 64, 4, 2**26
"""Validation samples that a graph's scores are compared on: so many, or of large samples so many bytes."""


def train(
    run: TrainRun,
    engine: Engine,
    progress: Progress | None = None,
    *,
    fresh: bool = False,
    replace: bool = False,
) -> TrainResult:
    """Prepare what is not prepared, fit, and save the bundle.

    A finished training of the same run file on the same data is returned as it is; `fresh` trains it again. The bundle of
    another training is left where it is, since score stores may name it, unless `replace` is said: BundleError.
    Raises what prepare raises, MachineError when workers keep failing, RunFileError for settings that cannot work.
    """
    progress = progress or Silent()
    started = time.monotonic()
    run, start = with_start(run, progress)  # refused before data are prepared for hours
    prepared = prepare_shards(run, engine, progress)
    require_split(prepared, "train")
    require_split(prepared, "validation")
    _require_classes(run, prepared)
    plan = fit_plan(run, prepared, start)
    for line in open_modality(plan.modality).cautions(ShardSet.open(prepared.folder).summaries("train")):
        progress.fact("caution", level="warning")
        progress.note(f"caution: {line}")
    folder = files.join(plan.work, plan.name)
    existing = None if replace and fresh else _existing(run.bundle_uri)
    finished = existing if existing and existing.recipe.training.get("plan") == plan.name else None
    if existing is not None and finished is None:
        _replace_or_refuse(run, existing, progress, replace)
    if fresh:
        finished = None
        files.remove_tree(folder)
    floor = _floor_plan(run, prepared, progress)
    if finished is not None:
        if floor is not None:
            _save_floor(run, floor, prepared, *engine.fit([floor], progress.training))
        if run.remember_subjects and not files.exists(
            files.join(run.bundle_uri, bundles.SEEN)
        ):  # from before it was kept
            seen = seen_by(prepared.folder, pseudonym_key(run.pseudonym_key))
            files.write_bytes(files.join(run.bundle_uri, bundles.SEEN), seen)
        progress.fact("reused")
        progress.note(f"this run file was already trained on this data: {run.bundle} (--fresh trains it again)")
        return _result(run, finished, prepared, folder, time.monotonic() - started, reused=True)
    files.make_folder(folder)
    if start is not None:
        plan = _start_from(plan, start, folder, progress)
    *floors, fitted = engine.fit([plan] if floor is None else [floor, plan], progress.training)
    if floor is not None:
        _save_floor(run, floor, prepared, *floors)
    bundle = _with_graph(bundles.make_bundle(_recipe(run, plan, prepared, fitted), fitted.weights), prepared, progress)
    meanwhile = None if replace else _existing(run.bundle_uri)  # by a training that ended meanwhile
    if meanwhile is not None and meanwhile.recipe.training.get("plan") != plan.name:
        _replace_or_refuse(run, meanwhile, progress, replace)
    files.make_closed_folder(run.bundle_uri, run.readers)
    seen = seen_by(prepared.folder, pseudonym_key(run.pseudonym_key)) if run.remember_subjects else None
    bundles.save(bundle, run.bundle_uri, seen)
    _write_history(fitted.state["history"], fitted.state["best_epoch"], run.objective, folder)
    return _result(run, bundle, prepared, folder, time.monotonic() - started, reused=False)


def _with_graph(bundle: bundles.TrainedModel, prepared: Prepared, progress: Progress) -> bundles.TrainedModel:
    """The bundle with an ONNX graph whose scores of validation samples are torch's; as it is where it has none, which is
    said, or where the extra `onnx` is not installed."""
    if lacking("onnx", "onnxruntime") is not None:
        return bundle
    shards = ShardSet.open(prepared.folder)
    modality = open_modality(bundle.recipe.modality)
    most = max(FEW_CHECKED, min(MOST_CHECKED, CHECKED_BYTES // max(1, sample_bytes(modality))))
    taken: list[pa.RecordBatch] = []
    for shard in shards.split("validation"):
        samples = good(read_samples(shard.uri))
        taken.append(samples.slice(0, most - sum(map(len, taken))))
        if sum(map(len, taken)) >= most:
            break
    made, reason = with_graph(bundle, joined(taken))
    progress.fact("graph", made=made.graph is not None)
    if made.graph is None:
        progress.note(f"the bundle has no ONNX graph, so that torch alone scores it: {reason}")
    return made


def _replace_or_refuse(run: TrainRun, existing: bundles.TrainedModel, progress: Progress, replace: bool) -> None:
    """Raises BundleError for the bundle of another training, unless it may be replaced."""
    if not replace:
        raise BundleError(
            "the bundle's place holds the bundle of another training",
            where=run.bundle_uri,
            found=f"bundle {existing.id}, made {existing.recipe.created[:10]} by {existing.recipe.name!r}",
            expected="a place of its own for each training: score stores name their bundle by its id",
            do="name another `bundle` in the run file, or say --replace: the bundle that is there is then lost",
        )
    progress.fact("replaces", bundle_id=existing.id)
    progress.note(f"the bundle of another training, {existing.id[:12]}, is replaced: {run.bundle}")


def refuse_other_bundle(run: TrainRun, prepared: str, progress: Progress, replace: bool) -> None:
    """For a dry run that ends before training: raises BundleError where the bundle's place is taken by that of a training on other
    data than `prepared`, the digest of the samples to be made, unless it may be replaced."""
    existing = _existing(run.bundle_uri)
    if existing is not None and existing.recipe.data.get("manifest_digest") != prepared:
        _replace_or_refuse(run, existing, progress, replace)


def _require_classes(run: TrainRun, prepared: Prepared) -> None:
    """Raises LabelError for a class, or a label, of which validation holds no entry: nothing could be said of it, and the
    epoch and the threshold would be chosen without it. Before the first epoch."""
    splits = prepared.result.splits
    counts = {name: class_counts(facts) for name, facts in splits.items()}
    names = dict(zip(prepared.classes, run.objective.display(prepared.classes), strict=True))
    absent = [name for name in prepared.classes if counts["validation"].get(name) == 0]
    if absent:
        lacking = [
            f"{names[name]}: "
            + ", ".join(f"{split} {counted.get(name, 0):,}" for split, counted in counts.items() if counted)
            for name in absent
        ]
        raise LabelError(
            "the validation split lacks a class",
            where="[split]",
            found="; ".join(lacking),
            expected="at least one entry of each class in train and in validation",
            do='set split.stratify = true or other fractions, mark some subjects of the class as "validation", or leave the '
            "class out",
        )


def floor_uri(run: TrainRun, prepared: Prepared) -> str:
    """Folder of the logistic model that was trained on the same samples as the run's bundle."""
    plan = fit_plan(as_floor(run), prepared)
    return files.join(plan.work, plan.name, "bundle")


def as_floor(run: TrainRun) -> TrainRun:
    """The same run with the logistic model."""
    training = run.training.model_copy(update={"start_from": None})
    return run.model_copy(update={"model": FLOOR, "training": training})


def _floor_plan(run: TrainRun, prepared: Prepared, progress: Progress) -> FitPlan | None:
    """The plan of the logistic floor, which is trained before the network; None where there is none to train, or where one was
    trained on the same data by the same settings."""
    if not run.floor or run.model.kind == FLOOR.kind:
        return None
    uri = floor_uri(run, prepared)
    with suppress(BundleError):  # none, or not a whole one
        bundles.load(uri)
        return None
    files.make_folder(uri)
    progress.fact("floor")
    progress.note("first the logistic floor (floor = false leaves it out)")
    return fit_plan(as_floor(run), prepared)


def _save_floor(run: TrainRun, plan: FitPlan, prepared: Prepared, fitted: Fitted) -> None:
    bundle = bundles.make_bundle(_recipe(as_floor(run), plan, prepared, fitted), fitted.weights)
    bundles.save(bundle, floor_uri(run, prepared))


def with_start(run: TrainRun, progress: Progress) -> tuple[TrainRun, pretrained.Start | None]:
    """(the run with what its model's file says, what training starts from). Raises RunFileError for a file that is not taken."""
    import torch

    if not run.model.trainable:
        raise RunFileError(
            "a model of this kind is not trained",
            where="[model] kind",
            found=run.model.kind,
            do="medray import makes a bundle of its file, which scores as any other",
        )
    settings = run.training.start_from
    start = None if settings is None else pretrained.Start(settings, pretrained.read(settings))
    if not isinstance(run.model, KerasSpec):
        return run, start
    if run.model.file is None:
        raise RunFileError("the run file names no Keras file", where=KERAS_FILE, expected='file = "model.keras"')
    found = reading.read(run.model.file, f"{KERAS_FILE} = {run.model.file}")
    if found.notes:
        progress.note(f"not taken over from {found.name}, since [training] has its own: {', '.join(found.notes)}")
    if start is None:
        tensors = {name: torch.from_numpy(array) for name, array in found.weights.items()}
        published = pretrained.Published(found.name, found.sha256, tensors)
        start = pretrained.Start(StartFrom(file=run.model.file, head=True), published)
    return run.model_copy(update={"model": run.model.settled(found, run.objective)}), start


def _start_from(plan: FitPlan, start: pretrained.Start, folder: str, progress: Progress) -> FitPlan:
    """The plan with what its network takes of the file, left in `folder` for the workers, beside a table of it. Raises
    RunFileError."""
    import pyarrow.csv

    model = plan.model
    network = model.build(open_modality(plan.modality).inputs(), plan.objective.width(plan.classes))
    taken = pretrained.chosen(start.published, network, start.settings, model.heads(network), model.other_heads)
    initial = pretrained.leave(start.published, start.settings, taken, files.join(folder, pretrained.LEFT))
    buffer = pa.BufferOutputStream()
    pyarrow.csv.write_csv(pretrained.table(start.published, network, taken), buffer)
    table_uri = files.join(folder, pretrained.TABLE)
    files.write_bytes(table_uri, buffer.getvalue().to_pybytes())
    counts = {"tensors": initial.loaded, "new": len(initial.new), "left_out": len(initial.unused)}
    progress.fact("pretrained", sha256=initial.sha256, **counts)
    progress.note(f"training starts from {pretrained.in_words(initial)}; tensor by tensor: {table_uri}")
    return replace(plan, initial=initial)


def fit_plan(run: TrainRun, prepared: Prepared, start: pretrained.Start | None = None) -> FitPlan:
    """What the workers get. Its name changes with anything that changes the result, but not with the engine, nor with
    where a file of initial weights lies."""
    shards = ShardSet.open(prepared.folder)
    modality = open_modality(run.modality).fitted(shards.summaries("train"))
    ranges = {**(prepared.trained_ranges or {}), **(modality.trained_ranges or {})}  # of headers, and of what was read
    modality = modality.model_copy(update={"trained": prepared.trained, "trained_ranges": ranges})
    targets = [stacked(read_samples(shard.uri, ["target"]).column("target")) for shard in shards.split("train")]
    objective = run.objective.fitted(np.concatenate(targets))
    settings = run.training.model_copy(update={"start_from": None})
    began = [] if start is None else [start.settings.model_dump(exclude={"file", "sha256"}), start.published.sha256]
    decides = [
        prepared.digest,
        modality.model_dump(mode="json"),
        run.model.model_dump(mode="json"),
        objective.model_dump(mode="json"),
        settings.model_dump(mode="json"),
        *(each.model_dump() for each in brought(modality, run.model, objective)),
        *began,
    ]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    return FitPlan(
        name=f"{run.name}-{digest}",
        modality=modality,  # type: ignore[arg-type]  # `fitted` returns a spec of its own kind
        model=run.model,
        objective=objective,
        classes=prepared.classes,
        shards=prepared.folder,
        settings=settings,
        work=files.join(run.folder, "training"),
    )


def _existing(uri: str) -> bundles.TrainedModel | None:
    """The bundle at `uri`, if one is. Raises BundleError for one that is altered, and must not be overwritten."""
    if not files.exists(files.join(uri, bundles.SPEC)):
        return None
    try:
        return bundles.load(uri)
    except BundleError as error:
        raise BundleError(
            "the bundle's place holds something else, which would be overwritten",
            where=uri,
            found=str(error),
            do="move it away, or name another `bundle` in the run file",
        ) from None


def _recipe(run: TrainRun, plan: FitPlan, prepared: Prepared, fitted: Fitted) -> Recipe:
    state = fitted.state
    best = state["history"][state["best_epoch"] - 1]
    rate = _samples_per_second(state["history"])
    objective = type(plan.objective).model_validate(state["objective"])
    return Recipe(
        name=run.name,
        modality=plan.modality,
        model=plan.model,
        objective=objective,
        classes=plan.classes,
        thresholds=tuple(state["thresholds"]),
        outputs=plan.objective.outputs(plan.classes),
        data={
            "manifest_digest": prepared.digest,
            "splits": prepared.result.splits,
            "mixture": prepared.result.mixture,
        },
        training={
            "plan": plan.name,
            "settings": plan.settings.model_dump(mode="json"),
            "workers": fitted.workers,
            "epochs": len(state["history"]),
            "best_epoch": state["best_epoch"],
            "stopped": state["stopped"],
            "threshold_choice": list(state.get("threshold_choice", ())),
            "samples_per_second": rate,
            **({} if plan.initial is None else {"pretrained": plan.initial.facts()}),
        },
        metrics={name: value for name, value in best.items() if name not in ("epoch", "seconds", "samples_per_second")},
        versions=versions(plan.modality, plan.model, objective),
        plugins=brought(plan.modality, plan.model, objective),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _samples_per_second(history: list[EpochRow]) -> float:
    seconds = sum(row["seconds"] for row in history)
    return sum(row["samples_per_second"] * row["seconds"] for row in history) / max(seconds, 1e-9)


def _write_history(history: list[EpochRow], best_epoch: int, objective: Objective, folder: str) -> None:
    """history.csv, history.parquet and learning_curve.png beside the checkpoints."""
    import pyarrow.csv
    import pyarrow.parquet as pq

    from medray.reports.learning_curve import learning_curve

    table = pa.Table.from_pylist(history)
    for name, write in (("history.csv", pyarrow.csv.write_csv), ("history.parquet", pq.write_table)):
        buffer = pa.BufferOutputStream()
        write(table, buffer)
        files.write_bytes(files.join(folder, name), buffer.getvalue().to_pybytes())
    files.write_bytes(files.join(folder, "learning_curve.png"), learning_curve(table, objective, best_epoch))


def _result(
    run: TrainRun, bundle: bundles.TrainedModel, prepared: Prepared, folder: str, seconds: float, *, reused: bool
) -> TrainResult:
    facts = bundle.recipe.training
    return TrainResult(
        entries=prepared.result.entries,
        failed=prepared.result.failed,
        bundle=run.bundle_uri,
        bundle_id=bundle.id,
        metrics=bundle.recipe.metrics,
        epochs=facts["epochs"],
        best_epoch=facts["best_epoch"],
        stopped=facts["stopped"],
        mixture=prepared.result.mixture,
        seconds=seconds,
        samples_per_second=facts["samples_per_second"],
        workers=facts["workers"],
        history=files.join(folder, "history.csv"),
        reused=reused,
    )
