"""A few eligible samples of an archive as inputs of a bundle's network: real ones, to compare programs on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from medray.archive.entries import by_place
from medray.config import runs
from medray.config.runs import EvaluateRun, ScoreRun, TrainRun
from medray.datasets.samples import good
from medray.engines.local import LocalEngine
from medray.errors import RunFileError, UserError
from medray.learning import bundles
from medray.learning.predictor import to_device
from medray.modalities.base import Modality
from medray.modalities.registry import ModalitySpec, open_modality
from medray.modalities.site import at_site
from medray.progress import Silent
from medray.verbs import stages
from medray.verbs.index import index_archive

if TYPE_CHECKING:
    import torch

MOST = 64
"""Samples."""
WHERE = "--samples"


def few_inputs(bundle: bundles.TrainedModel, named: Path | runs.Run) -> Iterator[dict[str, torch.Tensor]]:
    """Inputs of the bundle's network by name, (rows, …) on the CPU, of at most MOST eligible samples of a run's archive, which are
    spread over it. The archive is indexed in the run's work folder, as `medray index` does, in this process.

    Raises RunFileError for a run of another bundle, or of data that the bundle does not read; UserError where no sample can be read.
    """
    run = named if isinstance(named, TrainRun | EvaluateRun | ScoreRun) else _loaded(named)
    indexed, read = _specs(run, bundle)
    manifest, _ = index_archive(run, indexed, LocalEngine(), Silent())
    eligible = [
        batch.column("row").to_numpy()[batch.column("reason").is_null().to_numpy(zero_copy_only=False)]
        for batch in manifest.keys("row", "reason")
    ]
    numbers = np.sort(np.concatenate([np.empty(0, np.int64), *eligible]))
    spread = np.unique(np.linspace(0, len(numbers) - 1, min(MOST, len(numbers))).round().astype(np.int64))
    modality = open_modality(read)
    reader = stages.Read(read, narrow=True)
    rows = max(1, stages.batch_rows(modality) // modality.samples_per_entry)
    left = MOST
    if len(spread):
        for batch in by_place(manifest.take(numbers[spread])).combine_chunks().to_batches(max_chunksize=rows):
            samples = good(reader(batch)).slice(0, left)
            left -= len(samples)
            if len(samples):
                yield _encoded(modality, samples)
            if not left:
                return
    if left == MOST:
        raise UserError(
            "no sample of the archive can be compared",
            where=f"{WHERE}, {run.archive}",
            found=f"{len(manifest)} entries, {len(numbers)} of them eligible, none of which could be read",
            expected="entries that the bundle scores",
            do="look at them with medray index, or leave --samples out: seeded inputs are compared then",
        )


def _loaded(named: object) -> TrainRun | EvaluateRun | ScoreRun:
    run = runs.load(named) if isinstance(named, Path) else named
    if not isinstance(run, TrainRun | EvaluateRun | ScoreRun):
        raise RunFileError(
            "the run file is of another kind",
            where=f"{WHERE}, {named}" if isinstance(named, Path) else WHERE,
            found=type(run).__name__,
            expected="a run file of a training, of an evaluation or of scores",
        )
    return run


def _specs(run: TrainRun | EvaluateRun | ScoreRun, bundle: bundles.TrainedModel) -> tuple[ModalitySpec, ModalitySpec]:
    """How the run's archive is indexed, and how its entries are read: as the bundle has it."""
    own = bundle.recipe.modality
    if isinstance(run, TrainRun):
        if run.modality.kind != own.kind:
            raise RunFileError(
                "the bundle reads other data than the run file",
                where=f"{WHERE}, [modality] kind",
                found=run.modality.kind,
                expected=own.kind,
            )
        return run.modality, own
    if (of_run := bundles.load(run.bundle_uri).id) != bundle.id:
        raise RunFileError("the run file is of another bundle", where=WHERE, found=of_run, expected=bundle.id)
    spec = at_site(own, run.modality)
    return spec, spec


def _encoded(modality: Modality, samples: pa.RecordBatch) -> dict[str, torch.Tensor]:
    import torch

    with torch.inference_mode():
        return modality.encode(to_device(modality.collate(samples), torch.device("cpu")))
