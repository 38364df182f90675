"""Python's front door: the verbs as functions, and a bundle that predicts.

Every function takes the path of a run file, or a run (`TrainRun`, `ScoreRun` …) made in Python; opens the engine that the
run names and closes it; and returns the typed result whose JSON `--json` prints. Errors are those of `medray.errors`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypeVar

from medray.config import runs
from medray.config.runs import EvaluateRun, NightlyRun, Run, ScoreRun, TrainRun
from medray.errors import RunFileError, UserError

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    import pyarrow as pa

    from medray.archive.eligibility import Fact
    from medray.engines.base import Engine
    from medray.learning.bundles import TrainedModel
    from medray.learning.graphs import Graph
    from medray.learning.recipe import Recipe
    from medray.modalities.base import Inspection
    from medray.progress import Progress
    from medray.verbs.results import (
        EvaluateResult,
        ImportResult,
        IndexResult,
        ModelExportResult,
        NightlyResult,
        PrepareResult,
        ScoreResult,
        TrainResult,
    )
    from medray.verbs.stages import Score

RunT = TypeVar("RunT", bound=Run)


class DataFrame(Protocol):
    """A DataFrame of pandas or polars, or an Arrow table."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Data: TypeAlias = "str | PathLike[str] | Sequence[str | PathLike[str]] | np.ndarray | Sequence[np.ndarray] | DataFrame"
"""What `Bundle.predict` takes."""
EngineChoice: TypeAlias = "Engine | Literal['local'] | None"
"""An engine that is open, and stays so; this process in the place of what the run names; None: what the run names."""
Overrides = Mapping[str, object]
"""Keys of a run file to other values: {"training.epochs": 3} or {"training": {"epochs": 3}}; `--set` of the command line."""


def load_run(path: str | PathLike[str], overrides: Overrides | None = None) -> Run:
    """The run file at `path`, with some keys replaced: a TrainRun, EvaluateRun, ScoreRun, NightlyRun or ConvertRun.

    Raises RunFileError, which names each wrong key with its line.
    """
    return runs.load(Path(path), list(_as_set("", overrides or {})))


def index(
    run: str | PathLike[str] | TrainRun | EvaluateRun | ScoreRun,
    *,
    failed: bool = False,
    overrides: Overrides | None = None,
    engine: EngineChoice = None,
    progress: Progress | None = None,
) -> IndexResult:
    """List an archive: its entries, subjects, and what cannot be read; with `failed`, every file of those. Raises
    ArchiveError."""
    from medray.verbs.index import index as verb

    settled = _settled(run, overrides, TrainRun, EvaluateRun, ScoreRun)
    with _opened(settled, engine) as opened:
        return verb(settled, opened, progress, failed=failed)


def prepare(
    run: str | PathLike[str] | TrainRun,
    *,
    overrides: Overrides | None = None,
    engine: EngineChoice = None,
    progress: Progress | None = None,
) -> PrepareResult:
    """Decode an archive into shards, once for all trainings on the same data. Raises ArchiveError, LabelError, SplitError."""
    from medray.verbs.prepare import prepare as verb

    settled = _settled(run, overrides, TrainRun)
    with _opened(settled, engine) as opened:
        return verb(settled, opened, progress)


def train(
    run: str | PathLike[str] | TrainRun,
    *,
    fresh: bool = False,
    replace: bool = False,
    overrides: Overrides | None = None,
    engine: EngineChoice = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a model into a bundle; a finished training of the same run is returned as it is, a killed one goes on.

    `fresh` forgets both, `replace` overwrites the bundle of another training. Raises what `prepare` raises, MachineError.
    """
    from medray.verbs.train import train as verb

    settled = _settled(run, overrides, TrainRun)
    with _opened(settled, engine) as opened:
        return verb(settled, opened, progress, fresh=fresh, replace=replace)


def evaluate(
    run: str | PathLike[str] | TrainRun | EvaluateRun,
    *,
    split: Literal["train", "validation", "test"] = "test",
    overrides: Overrides | None = None,
    engine: EngineChoice = None,
    progress: Progress | None = None,
) -> EvaluateResult:
    """Metrics of a bundle with confidence intervals, and a report, on one split or another archive. Raises BundleError."""
    from medray.verbs.evaluate import evaluate as verb

    settled = _settled(run, overrides, TrainRun, EvaluateRun)
    with _opened(settled, engine) as opened:
        return verb(settled, opened, progress, split=split)


def score(
    run: str | PathLike[str] | ScoreRun,
    *,
    overrides: Overrides | None = None,
    engine: EngineChoice = None,
    progress: Progress | None = None,
) -> ScoreResult:
    """Score what an archive holds that the bundle has not scored yet, into the score store. Raises BundleError, StoreError."""
    from medray.verbs.score import score as verb

    settled = _settled(run, overrides, ScoreRun)
    with _opened(settled, engine) as opened:
        return verb(settled, opened, progress)


def nightly(
    run: str | PathLike[str] | NightlyRun,
    *,
    overrides: Overrides | None = None,
    engine: EngineChoice = None,
    progress: Progress | None = None,
) -> NightlyResult:
    """Score what is new with one or several bundles, tidy the store, write the page of the night. Raises StoreError."""
    from medray.verbs.nightly import nightly as verb

    settled = _settled(run, overrides, NightlyRun)
    with _opened(settled, engine, progress) as opened:
        return verb(settled, opened, progress)


def inspect(path: str | PathLike[str]) -> Inspection:
    """What medray sees in a file, a folder, a bundle or a score store: `title`, `facts`, `tables`. Raises ArchiveError."""
    from medray.verbs.inspect import inspect as verb

    return verb(fspath(path))


def import_model(
    file: str | PathLike[str],
    like: str | PathLike[str] | TrainRun,
    *,
    bundle: str | PathLike[str] | None = None,
    expect: str | PathLike[str] | None = None,
) -> ImportResult:
    """Make a bundle of a model of another library, with modality and objective of a training's run.

    `file` is a Keras (.keras, .h5) or ONNX file, the folder of a MONAI bundle, or tensors (.safetensors, .pt) of a network that
    medray has; no code of it is run. The bundle is written to the folder `bundle`, by default that of the run. `expect` is a
    .npz of inputs and the original's answers, `outputs`, which are compared with the bundle's.

    Raises UserError and RunFileError for what does not fit, BundleError where the folder is taken.
    """
    from medray.verbs.import_ import import_model as verb

    run = like if isinstance(like, TrainRun) else Path(like)
    place, compared = (None if each is None else fspath(each) for each in (bundle, expect))
    return verb(fspath(file), run, place, compared)


def export_model(
    bundle: str | PathLike[str],
    out: str | PathLike[str],
    *,
    logits: bool = False,
    samples: str | PathLike[str] | TrainRun | EvaluateRun | ScoreRun | None = None,
) -> ModelExportResult:
    """Write the network of a bundle to the new file `out`: .onnx, or .keras where the bundle is of kind `keras`.

    The answers of that network are the bundle's scores; with `logits`, what comes before the last activation. They are compared with
    torch's on seeded inputs, and on samples of the archive of a run file, `samples`. Raises UserError, also where they differ,
    RunFileError, BundleError.
    """
    from medray.verbs.export_model import export_model as verb

    format = "keras" if fspath(out).endswith(".keras") else "onnx"
    named = Path(samples) if isinstance(samples, str | PathLike) else samples
    return verb(format, fspath(bundle), fspath(out), logits=logits, samples=named)


class Bundle:
    """A trained model that predicts; `Bundle.load` is the way in."""

    def __init__(self, trained: TrainedModel, uri: str, graph: Graph | None = None) -> None:
        self._trained, self.uri, self._graph = trained, uri, graph
        self._scores: dict[str, Score] = {}

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        trust: Collection[str] = (),
        backend: Literal["torch", "onnx", "auto"] = "torch",
    ) -> Bundle:
        """The bundle in a folder. `trust`: models from folders that may be imported, python:package.module:function.
        `backend`: what computes scores, as `[engine] backend`.

        Raises BundleError when it is missing, altered, holds a pickle, is of another format, its model is code that is
        not trusted or a plug-in that is not here, or onnx is asked for and it has no graph that agrees with torch; UserError
        where onnxruntime is not installed.
        """
        import torch

        from medray.learning import bundles
        from medray.learning.backend import choose
        from medray.storage import files

        uri = files.absolute(path)
        trained = bundles.trusting(bundles.load(uri), trust)
        return cls(trained, uri, choose(trained, backend, on_gpu=torch.cuda.is_available()).graph)

    @property
    def id(self) -> str:
        """16 hex digits: as in the score table's `bundle_id`."""
        return self._trained.id

    @property
    def recipe(self) -> Recipe:
        """Modality with its fitted statistics, model, objective, classes, thresholds; where it comes from, how it did."""
        return self._trained.recipe

    @property
    def weights(self) -> Mapping[str, np.ndarray]:
        """The arrays of the network by name."""
        return self._trained.weights

    def __repr__(self) -> str:
        spec = self.recipe
        return f"<Bundle {spec.name} {self.id}: {spec.modality.kind}, {spec.model.kind}, {spec.objective.kind}>"

    def predict(
        self,
        data: Data,
        *,
        archive: str | PathLike[str] | None = None,
        modality: Mapping[str, object] | None = None,
        prediction_times: DataFrame | datetime | None = None,
        facts: Mapping[str, Fact] | None = None,
        pseudonym_key: str | None = None,
    ) -> pa.Table:
        """Scores, with the preprocessing and the eligibility of `score`: one row per sample, and nothing is stored.

        Columns: `input` (URI of the file; of arrays and sequences the number from 0, of records the subject_id as given),
        `entry_id`, `sample_id`, `subject_id` (pseudonym), `status` (scored, failed, not_eligible), `reason` (a code where
        there is no score), `detail`, one float32 column per score, and `predicted`: the class at the bundle's threshold, a
        list of labels, or no such column where nothing is called (regression, variants). A score whose name is one of
        these columns gets `_score` appended.

        `data`: a path or a list of paths, files or folders (one of a list that is not there is a row `missing_file`); or,
        in memory,

        - images: a NumPy array (N, H, W[, 3]) or (H, W), volumes (N, D, H, W[, 3]) or (D, H, W), or a list of single ones;
          values as stored in files (HU for CT). `facts` say of them what a header would: {"Modality": "US"}
        - sequences: a NumPy array of str, or a DataFrame with a column `sequence`
        - health records: a DataFrame of MEDS events, and `prediction_times`: a DataFrame with subject_id and
          prediction_time, or one datetime for all

        Every modality takes paths; that of a plug-in takes from memory what the plug-in says, or nothing. Data in memory
        go through a temporary folder that only this user can read, and that is then removed.

        `archive`: folder that entry ids of paths are relative to; by default the path itself, or what the paths share.
        `modality`: what is different at this site, as [modality] of a score run. `pseudonym_key`: file with the secret
        that subjects are hashed with, by default that of run files.

        Raises UserError for data that the bundle's modality cannot understand, RunFileError for a `modality` that changes
        how data are read, ArchiveError for a path that is not there or holds no data of it.
        """
        from medray.archive.pseudonyms import pseudonym_key as read_key
        from medray.modalities.site import at_site
        from medray.verbs.predict import predict
        from medray.verbs.stages import Score

        spec = at_site(self.recipe.modality, modality or {})
        name = spec.model_dump_json()
        if name not in self._scores:
            self._scores[name] = Score(self.uri, self.id, spec, bundle=self._trained, graph=self._graph)
        return predict(
            self._scores[name],
            spec,
            data,
            key=read_key(pseudonym_key),
            archive=None if archive is None else fspath(archive),
            prediction_times=prediction_times,
            facts=facts,
        )


def _as_set(prefix: str, overrides: Overrides) -> Iterator[str]:
    """ "training.epochs=3": what `--set` takes. Raises UserError for a value that no run file can have."""
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            yield from _as_set(f"{prefix}{key}.", value)
            continue
        plain = fspath(value) if isinstance(value, PathLike) else value
        if not isinstance(plain, str | int | float | list | tuple):
            raise UserError(
                "a run file cannot hold this value",
                where=f"overrides {prefix}{key}",
                found=type(plain).__name__,
                expected="a text, a number, true or false, a list, or a mapping of keys",
            )
        yield f"{prefix}{key}={json.dumps(plain, ensure_ascii=False)}"


def _settled(run: str | PathLike[str] | Run, overrides: Overrides | None, *kinds: type[RunT]) -> RunT:
    """The run itself, or the one in the file. Raises RunFileError for a file or a run of another kind."""
    loaded = load_run(run, overrides) if isinstance(run, str | PathLike) else run
    if not isinstance(loaded, kinds):
        raise RunFileError(
            "this function takes another kind of run",
            where=fspath(run) if isinstance(run, str | PathLike) else "",
            found=type(loaded).__name__,
            expected=" or ".join(each.__name__ for each in kinds),
        )
    if overrides and loaded is run:
        raise UserError(
            "overrides are for the keys of a run file",
            found="a run made in Python",
            do='change it: run.model_copy(update={"name": "other"})',
        )
    return loaded


@contextmanager
def _opened(
    run: TrainRun | EvaluateRun | ScoreRun | NightlyRun, engine: EngineChoice, progress: Progress | None = None
) -> Iterator[Engine]:
    """The engine given, which stays open; else one of this run, which is closed."""
    from medray.engines.opening import open_engine
    from medray.engines.spec import LocalSpec
    from medray.progress import Silent
    from medray.verbs.alerts import telling

    if engine is not None and not isinstance(engine, str):
        yield engine
        return
    with telling(run, progress or Silent()):
        opened = open_engine(LocalSpec() if engine == "local" else run.engine, run.name)
    try:
        yield opened
    finally:
        opened.close()
