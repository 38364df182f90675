"""export: scores of one bundle in formats of their field: back into the file that they are of, or a report for each entry."""

from __future__ import annotations

import time
from collections.abc import Sequence

from medray.archive.manifest import Manifest
from medray.config import runs
from medray.config.runs import NightlyRun, ScoreRun
from medray.errors import RunFileError, StoreError, UserError
from medray.exports import Algorithm, RunExporter, ScoredRun, exporter, run_exporter
from medray.learning import bundles
from medray.learning.bundles import TrainedModel
from medray.modalities.site import at_site
from medray.scores import ScoreStore
from medray.storage import files
from medray.verbs.nightly import index_folder
from medray.verbs.results import ExportResult


def export(format: str, store: str, source: str, out: str, bundle: str | None = None) -> ExportResult:
    """Write the scores that the store has of `source`; `bundle` is an id, or how it begins.

    `source` is a scored file, and `out` the new file; of a format that is of a whole archive (dicom-sr), `source` is the
    run file that scored it, and `out` the folder of the new files. Raises StoreError where there is no store, or not one
    such bundle in it, RunFileError, and what the format's exporter raises.
    """
    started = time.monotonic()
    of_run = run_exporter(format)
    write = exporter(format) if of_run is None else None
    scores = ScoreStore.open(store)
    if of_run is not None:
        return _of_run(of_run, scores, source, out, bundle, started)
    assert write is not None
    known = sorted(scores.summary()["bundles"])
    [bundle_id] = _one([name for name in known if name.startswith(bundle or "")], known, store)
    return ExportResult(
        bundle_id=bundle_id, **write(scores, bundle_id, source, out), seconds=time.monotonic() - started
    )


def _one(matches: Sequence[str], known: Sequence[str], store: str) -> Sequence[str]:
    """The matches, when it is one. Raises StoreError."""
    if len(matches) != 1:
        raise StoreError(
            "the scores of one bundle are written, and this does not say which" if matches else "no such scores",
            where=store,
            found=", ".join(matches or known) or "no scores",
            expected="one bundle",
            do="name it: --bundle ID",
        )
    return matches


def _of_run(
    write: RunExporter, scores: ScoreStore, source: str, out: str, bundle: str | None, started: float
) -> ExportResult:
    run = runs.load(source)
    if not isinstance(run, ScoreRun | NightlyRun):
        raise RunFileError("this is no run file of a scoring", where=source, expected="one of score or nightly")
    known = sorted(scores.summary()["bundles"])
    folders = run.bundles if isinstance(run, NightlyRun) else (run.bundle,)
    loaded = {model.id: model for model in (bundles.load(files.absolute(folder)) for folder in folders)}
    loaded = {name: model for name, model in loaded.items() if name.startswith(bundle or "")}
    kinds = {model.recipe.modality.kind for model in loaded.values()} - {"imaging"}
    if kinds:
        raise UserError("structured reports are of DICOM images", where=source, found=f"a bundle of {min(kinds)}")
    [bundle_id] = _one([name for name in known if name in loaded], known, scores.uri)
    model = loaded[bundle_id]
    scored = ScoredRun(manifest_of(run, model), algorithm(model), run.sr, source, run.readers)
    written = write(scores, scored, out)
    refused, asked = sum(written.get("refused", {}).values()), written["scored"]
    return ExportResult(
        bundle_id=bundle_id,
        **written,
        seconds=time.monotonic() - started,
        code=3 if refused > run.max_failed * (asked + refused) else 0,
    )


def manifest_of(run: ScoreRun | NightlyRun, model: TrainedModel) -> Manifest:
    """The last index of the archive of a scoring, as this bundle reads it. Raises UserError where there is none."""
    spec = at_site(model.recipe.modality, run.modality)
    work = run.folder if isinstance(run, ScoreRun) else index_folder(run, spec)
    where = files.join(work, "manifest")
    try:
        return Manifest.open(where)
    except FileNotFoundError:
        raise UserError("the archive has not been indexed", where=where, do="score it first (medray score)") from None


def algorithm(model: TrainedModel) -> Algorithm:
    """What a bundle says of itself to those who read its scores."""
    recipe = model.recipe
    return Algorithm(
        name=recipe.name,
        bundle_id=recipe.id,
        outputs=recipe.outputs,
        probabilities=recipe.objective.probabilities,
        thresholds=recipe.thresholds,
        calibrated=recipe.objective.calibrator is not None,
    )
