"""export of a store's current scores as tables for people who have no medray: CSV files, or an Excel workbook."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

import numpy as np
import pyarrow as pa

import medray
from medray.archive.manifest import Manifest
from medray.config import runs
from medray.config.runs import NightlyRun, ScoreRun
from medray.errors import REASONS, RunFileError, StoreError, UserError
from medray.exports.tables import csv_files, workbook
from medray.exports.tables.columns import FAILED, OWN_ID, SCORED, Cell, without_own_ids
from medray.exports.tables.new_files import new_files, refuse_there
from medray.extras import lacking
from medray.learning import bundles
from medray.learning.bundles import TrainedModel
from medray.modalities.registry import ModalitySpec
from medray.modalities.site import at_site
from medray.scores import ScoreStore
from medray.storage import files
from medray.verbs.export import manifest_of
from medray.verbs.own_subjects import own_ids
from medray.verbs.results import TableExportResult

FORMATS = {"csv": csv_files.SUFFIX, "xlsx": workbook.SUFFIX}
"""To how the names of their files end."""
_URIS = {"csv": csv_files.uris_of, "xlsx": workbook.uris_of}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UNKNOWN = "not known: a run file says it (--run)"


def uris_of(format: str, out: str) -> list[str]:
    """The files that an export to `out` makes, that one last."""
    return _URIS[format](files.absolute(out))


class Tables(Protocol):
    """What both formats have."""

    escaped: int

    def scored(self, row: Sequence[Cell]) -> None: ...
    def failed(self, row: Sequence[Cell]) -> None: ...


@dataclass
class _Counts:
    scored: int = 0
    failed: int = 0
    not_eligible: int = 0
    unknown: int = 0
    thresholds: dict[str, float] = field(default_factory=dict[str, float])
    """Those of the outputs that have rows."""


def export_table(
    format: str, store: str, out: str, bundle: str | None = None, *, run_file: str | None = None, with_ids: bool = False
) -> TableExportResult:
    """Write the current rows of a store to new files; `bundle` is an id, or how it begins, and None all.

    `run_file`, of a scoring, names models and thresholds. `with_ids` adds the subjects' own ids, read from the archive of that
    run under the site's key, in files of mode 0600. Rows are streamed: any number in bounded memory.

    Raises UserError where files are there, where own ids cannot be told, and for more rows than Excel has; StoreError where
    no store is or none such bundle in it; RunFileError; ArchiveError where there is no key.
    """
    started = time.monotonic()
    planned = plan(format, store, out, bundle, run_file=run_file, with_ids=with_ids)
    scores, known = planned.store, planned.models
    ids = None
    if with_ids:
        assert planned.run is not None
        ids = own_ids(*planned.run)
    counts = {bundle_id: _Counts() for bundle_id in planned.bundles}
    failed, scored = (names if with_ids else without_own_ids(names) for names in (FAILED, SCORED))
    mode = 0o600 if with_ids else files.file_mode_like(scores.uri)
    opened = csv_files.csv_files if format == "csv" else workbook.workbook
    with new_files(planned.uris, mode) as drafts, opened(failed, scored, drafts) as tables:
        for bundle_id, counted in counts.items():
            _write(tables, scores, bundle_id, known.get(bundle_id), ids, (failed, scored), counted)
        if ids is not None and not any(c.scored + c.failed + c.not_eligible > c.unknown for c in counts.values()):
            raise UserError(
                "no subject of these scores is one of the archive, under this key",
                where=scores.uri,
                expected="the archive that was scored, and the key of that run",
                do="check `archive` and `pseudonym_key` of the run file",
            )
        tables.about(_about(planned, counts, with_ids, tables.escaped))
    return TableExportResult(
        files=tuple(planned.uris),
        rows=sum(each.scored for each in counts.values()),
        failed=sum(each.failed for each in counts.values()),
        not_eligible=sum(each.not_eligible for each in counts.values()),
        models={name: known[name].recipe.name if name in known else None for name in counts},
        escaped=tables.escaped,
        own_ids=with_ids,
        without_own_id=sum(each.unknown for each in counts.values()),
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class TablePlan:
    """What an export will read and write."""

    store: ScoreStore
    uris: list[str]
    bundles: list[str]
    models: dict[str, TrainedModel]
    """Those that a run file named, by their ids."""
    run: tuple[ScoreRun, ModalitySpec, Manifest] | None
    """What own ids are read by: run, modality at this site, manifest."""
    formulas: str


def plan(
    format: str, store: str, out: str, bundle: str | None = None, *, run_file: str | None = None, with_ids: bool = False
) -> TablePlan:
    """Everything that an export looks at before it writes; raises as `export_table`, and writes nothing."""
    if not out.endswith(FORMATS[format]) or out in (FORMATS[format], ""):
        raise UserError("this cannot be the new file", where=out, expected=f"a name that ends with {FORMATS[format]}")
    if format == "xlsx" and (absent := lacking("xlsxwriter")) is not None:
        raise UserError("workbooks are written by XlsxWriter", found=absent)
    uris = uris_of(format, out)
    refuse_there(uris)
    scores = ScoreStore.open(store)
    known = sorted(scores.summary()["bundles"])
    chosen = [name for name in known if name.startswith(bundle or "")]
    if not chosen or (bundle is not None and len(chosen) > 1):
        raise StoreError(
            "no such scores" if not chosen else "several bundles begin so",
            where=scores.uri,
            found=", ".join(chosen or known) or "no scores",
            do="name one as medray status shows it, or leave out --bundle for all",
        )
    if with_ids and run_file is None:
        raise UserError(
            "a keyed id cannot be turned back: own ids are read from the archive",
            where="--with-ids",
            expected="the run file that scored it, at the site that has the archive and the key",
            do="add --run RUN.toml",
        )
    if with_ids and not files.is_local(uris[0]):
        raise UserError("own ids are written to a disk alone, as files of one user", where=out, do="name a local file")
    models, run = ({}, None) if run_file is None else _of_run(run_file, chosen, with_ids)
    return TablePlan(scores, uris, chosen, models, run, csv_files.FORMULAS if format == "csv" else workbook.FORMULAS)


def _of_run(
    run_file: str, chosen: Sequence[str], with_ids: bool
) -> tuple[dict[str, TrainedModel], tuple[ScoreRun, ModalitySpec, Manifest] | None]:
    """(models by id, what own ids are read by)."""
    run = runs.load(run_file)
    if not isinstance(run, ScoreRun | NightlyRun):
        raise RunFileError("this is no run file of a scoring", where=run_file, expected="one of score or nightly")
    folders = run.bundles if isinstance(run, NightlyRun) else (run.bundle,)
    loaded = {folder: bundles.load(files.absolute(folder)) for folder in folders}
    models = {model.id: model for model in loaded.values() if model.id in chosen}
    if not models:
        raise StoreError(
            "the store has no scores of the bundles that this run file names",
            where=run_file,
            found=", ".join(model.id for model in loaded.values()),
            expected=", ".join(chosen),
        )
    if not with_ids:
        return models, None
    folder, model = next((folder, model) for folder, model in loaded.items() if model.id in models)
    spec, manifest = at_site(model.recipe.modality, run.modality), manifest_of(run, model)
    scoring = run if isinstance(run, ScoreRun) else run.of_bundle(folder, run.folder)
    return models, (scoring, spec, manifest)


def _write(
    tables: Tables,
    scores: ScoreStore,
    bundle_id: str,
    model: TrainedModel | None,
    ids: pa.Table | None,
    names: Sequence[Sequence[str]],
    counted: _Counts,
) -> None:
    """The rows of one bundle, those without a score apart."""
    thresholds = thresholds_of(model)
    for batch in scores.rows(bundle_id, ids):
        for row in batch.to_pylist():
            row |= {
                "scored_at": _time(row["scored_at"]),
                "model": None if model is None else model.recipe.name,
                "bundle_id": bundle_id,
            }
            counted.unknown += ids is not None and row[OWN_ID] is None
            if row["status"] == "scored":
                threshold = thresholds.get(row["output"])
                if threshold is not None:
                    counted.thresholds[row["output"]] = threshold
                row |= {"value": _shortest(row["value"]), "threshold": threshold}
                counted.scored += 1
                tables.scored([row[name] for name in names[1]])
                continue
            row["meaning"] = REASONS.get(row["reason"]) if row["reason"] else None
            counted.failed += row["status"] == "failed"
            counted.not_eligible += row["status"] != "failed"
            tables.failed([row[name] for name in names[0]])


def thresholds_of(model: TrainedModel | None) -> dict[str, float]:
    """Decision threshold of each output that has one."""
    if model is None or not model.recipe.thresholds:
        return {}
    return dict(zip(model.recipe.outputs, model.recipe.thresholds, strict=True))


def _shortest(value: float | None) -> float | None:
    """A float32 by the fewest decimals that tell it from its neighbours: 0.3, where float64 would show 0.30000001192092896."""
    return None if value is None else float(str(np.float32(value)))


def _time(microseconds: int) -> str:
    """ISO 8601, UTC."""
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds")


def _about(planned: TablePlan, counts: dict[str, _Counts], with_ids: bool, escaped: int) -> list[tuple[str, Cell]]:
    """What a person should know who has nothing but the tables."""
    rows: list[tuple[str, Cell]] = [
        ("written by", f"medray {medray.__version__}"),
        ("written at", datetime.now(UTC).isoformat(timespec="seconds")),
        ("store", planned.store.uri),
        ("version of the store", planned.store.version),
        ("rows", "current ones: of each entry and bundle the latest attempt; times are UTC"),
        ("subjects", "keyed ids; " + ("their own ids stand beside them" if with_ids else "own ids are not in here")),
    ]
    for bundle_id, counted in counts.items():
        model = planned.models.get(bundle_id)
        rows += [
            (f"bundle {bundle_id}: model", UNKNOWN if model is None else model.recipe.name),
            (f"bundle {bundle_id}: scores", counted.scored),
            (f"bundle {bundle_id}: failed", counted.failed),
            (f"bundle {bundle_id}: not eligible", counted.not_eligible),
        ]
        if model is None:
            rows.append((f"bundle {bundle_id}: threshold", UNKNOWN))
        elif not model.recipe.thresholds:
            rows.append((f"bundle {bundle_id}: threshold", "none: it decides by no threshold"))
        for output, threshold in thresholds_of(model).items():
            rows.append((f"bundle {bundle_id}: threshold of {output}", threshold))
        if with_ids:
            rows.append((f"bundle {bundle_id}: rows without an own id", counted.unknown))
    return [*rows, ("texts that look like formulas", f"{planned.formulas} ({escaped:,} cells)")]
