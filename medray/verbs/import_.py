"""import: a bundle of a model that another library trained. It scores as any other: same reading, same store, same id."""

# N row, K output

from __future__ import annotations

import hashlib
import time
import zipfile
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from medray.config import runs
from medray.config.runs import TrainRun
from medray.errors import BundleError, RunFileError, UserError
from medray.learning import bundles
from medray.learning.backend import with_graph
from medray.learning.objectives.base import Objective
from medray.learning.predictor import build_network
from medray.learning.recipe import Recipe, versions
from medray.modalities.registry import open_modality
from medray.plugins.brought import brought
from medray.storage import files
from medray.verbs.importers import Original, importer
from medray.verbs.results import ImportResult

TOLERANCE = 1e-5
"""Largest difference from the original's answers; of one beyond 1, as a part of it."""
OUTPUTS = "outputs"
MOST_BYTES = 2**31
"""Of the arrays to compare with."""
NAMED = {"multilabel": "label", "regression": "value"}


def place_of(like: Path, place: str | None) -> str:
    """Where the new bundle will be. Raises RunFileError for what is no training's run file."""
    return _training(like).bundle_uri if place is None else files.absolute(place)


def _training(like: Path | TrainRun) -> TrainRun:
    run = like if isinstance(like, TrainRun) else runs.load(like)
    if not isinstance(run, TrainRun):
        raise RunFileError(
            "a training's run file is asked for", where=str(like), expected="[modality], [model] and [objective]"
        )
    return run


def import_model(file: str, like: Path | TrainRun, place: str | None = None, expect: str | None = None) -> ImportResult:
    """Make a bundle of the model in `file`, with modality and objective of a training's run file, at `place` (by default where
    the run file has its bundle). `expect`: a .npz file of inputs and the original's answers, `outputs`.

    Raises UserError and RunFileError for what does not fit, BundleError where something lies at the place; no bundle is left then.
    """
    started = time.monotonic()
    run = _training(like)
    uri = run.bundle_uri if place is None else files.absolute(place)
    if files.exists(uri):
        raise BundleError(
            "the new bundle's place is taken",
            where=uri,
            do="name another one: --as FOLDER, or `bundle` in the run file",
        )
    original = importer(file).read(file, run)
    open_modality(run.modality).require_fitted()
    recipe = _recipe(run, original, run.name if place is None else PurePosixPath(uri).name)
    network = build_network(recipe, original.weights)
    rows, difference = 0, None
    if expect is not None:
        rows, difference = _compared(original, recipe, expect)
    facts = {**original.facts, "compared": rows, "largest_difference": difference}
    if expect is not None:
        facts["compared_with"] = hashlib.sha256(files.read_bytes(files.absolute(expect))).hexdigest()
    recipe = recipe.model_copy(update={"training": {"imported": facts}})
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    bundle = bundles.make_bundle(recipe, weights)
    schema = open_modality(recipe.modality).payload
    bundle, _ = with_graph(bundle, pa.RecordBatch.from_pylist([], schema=schema))
    files.make_closed_folder(uri, run.readers)
    bundles.save(bundle, uri)
    return ImportResult(
        bundle=uri,
        bundle_id=bundle.id,
        file=facts["file"],
        sha256=facts["sha256"],
        written_by=facts["written_by"],
        layers=facts["layers"],
        parameters=sum(array.size for array in weights.values()),
        outputs=recipe.outputs,
        answers=f"as the original's, on {rows:,} rows"
        if rows
        else "NOT compared with the original's (--expect FILE.npz)",
        compared=rows,
        largest_difference=difference,
        seconds=time.monotonic() - started,
    )


def _recipe(run: TrainRun, original: Original, name: str) -> Recipe:
    objective, classes = _classes(run.objective, original.outputs)
    threshold = getattr(objective, "threshold", None)
    decided = float(threshold) if isinstance(threshold, int | float) else 0.5
    return Recipe(
        name=name,
        modality=run.modality,
        model=original.model,
        objective=objective,  # pyright: ignore[reportArgumentType]  # of the kind that it was
        classes=classes,
        thresholds=() if threshold is None else (decided,) * len(objective.outputs(classes)),
        outputs=objective.outputs(classes),
        data={"manifest_digest": None, "splits": {}},
        training={},
        metrics={},
        versions=versions(run.modality, original.model, objective),
        plugins=brought(run.modality, original.model, objective),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _classes(objective: Objective, outputs: int) -> tuple[Objective, tuple[str, ...]]:
    """(objective, classes in the order of the model's outputs): `names` of the run file, which are the labels themselves here,
    else numbers from 0 on. Raises RunFileError where they are not as many."""
    kind = str(getattr(objective, "kind", ""))
    count = 2 if kind == "binary" else outputs
    if objective.names is not None:
        classes = objective.names
    elif kind in NAMED:
        classes = tuple(
            NAMED[kind] if count == 1 and kind == "regression" else f"{NAMED[kind]}_{i}" for i in range(count)
        )
    else:
        classes = tuple(map(str, range(count)))
    if kind == "binary" and getattr(objective, "positive", None) == classes[0]:
        classes = classes[::-1]
    changes: dict[str, Any] = {"names": None}
    if kind == "binary" and len(classes) == 2:
        changes["positive"] = classes[1]
    settled = objective.model_copy(update=changes)
    if len(classes) != count or settled.width(classes) != outputs:
        raise RunFileError(
            "the model has other outputs than the objective",
            where="[objective]",
            found=f"{outputs} outputs, and the classes {', '.join(classes)}",
            expected="one output of binary, else one of each of `names`",
        )
    return settled, classes


# --- comparison with the original -----------------------------------------------------------------------------


def _compared(original: Original, recipe: Recipe, expect: str) -> tuple[int, float]:
    """(rows, largest difference). Raises UserError where the bundle does not answer as the original did."""
    given = _arrays(expect)
    if OUTPUTS not in given:
        raise UserError(
            "the file to compare with holds no answers",
            where=expect,
            found=", ".join(given),
            expected=f"an array {OUTPUTS}",
        )
    wanted = given.pop(OUTPUTS)
    if not len(wanted) or len({len(array) for array in (wanted, *given.values())}) != 1:
        raise UserError(
            "the arrays to compare with are not of as many rows", where=expect,
            found=", ".join(f"{name} {array.shape}" for name, array in {**given, OUTPUTS: wanted}.items()),
        )  # fmt: skip
    found = original.answers(recipe, given)
    if wanted.shape != found.shape:
        raise UserError(
            "the answers to compare with are of another shape",
            where=expect,
            found=str(wanted.shape),
            expected=str(found.shape),
        )
    apart = np.abs(found.astype(np.float64) - wanted) / np.maximum(1.0, np.abs(wanted))
    largest = float(np.max(apart))
    if not largest <= TOLERANCE:  # nor where it is no number
        raise UserError(
            "the model answers otherwise than the original did: no bundle is made",
            where=expect,
            found=f"a largest difference of {largest:.3g}, in row {int(np.argmax(apart.max(axis=1)))} of {len(wanted)}",
            expected=f"at most {TOLERANCE:g} (of an answer beyond 1, as a part of it)",
            do="answer the inputs again with the model as it was saved, in evaluation and float32",
        )
    return len(wanted), largest


def _arrays(path: str) -> dict[str, np.ndarray]:
    """Arrays of numbers of a .npz file, whose rows are (N, …). Nothing is unpickled. Raises UserError."""
    try:
        content = files.read_bytes(files.absolute(path))
        with zipfile.ZipFile(BytesIO(content)) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > MOST_BYTES:
            raise UserError("the arrays to compare with are too large", where=path, found=f"{size:,} bytes")
        with np.load(BytesIO(content), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            "the file to compare with cannot be read",
            where=path,
            found=type(error).__name__,
            expected="a .npz of arrays",
        ) from None
    wrong = [name for name, array in arrays.items() if array.dtype.kind not in "biuf" or array.ndim < 1]
    if wrong:
        raise UserError("arrays to compare with are no numbers", where=path, found=", ".join(wrong))
    return arrays
