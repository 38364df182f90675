"""The run types: what a run file holds, for training and for scoring."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medray import files
from medray.engines.base import EngineSpec, RaySpec
from medray.labels import LabelSettings
from medray.modalities import ModalitySpec
from medray.models import ModelSpec
from medray.objectives import ObjectiveSpec
from medray.runs import load_run
from medray.splits import SplitSettings
from medray.training import TrainingSettings


class Run(BaseModel):
    """What every run file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)
    """Names the work folder and the checkpoints."""
    archive: str
    """Folder or file that holds the data; local path or s3://, gs:// …"""
    bundle: str
    """Folder of the trained model: written by train, read by evaluate and score."""
    work: str | None = None
    """Folder for manifests, shards, checkpoints and reports; default work/<name>."""
    pseudonym_key: str | None = None
    """File with the secret that subject identifiers are hashed with; default ~/.medray/pseudonym.key."""
    max_failed: float = Field(default=0.01, ge=0, le=1)
    """Largest fraction of entries that may fail before the exit code is 3."""
    engine: EngineSpec = RaySpec()

    @property
    def root(self) -> str:
        return files.absolute(self.archive)

    @property
    def folder(self) -> str:
        return files.absolute(self.work or f"work/{self.name}")

    @property
    def bundle_uri(self) -> str:
        return files.absolute(self.bundle)


class EvaluationSettings(BaseModel):
    """Confidence intervals of `medray evaluate`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    resamples: int = Field(default=1000, ge=0)
    """Bootstrap resamples of whole subjects; 0: no intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    seed: int = 0


class TrainRun(Run):
    """A run file for index, prepare, train and evaluate."""

    modality: ModalitySpec
    labels: LabelSettings = LabelSettings()
    split: SplitSettings = SplitSettings()
    model: ModelSpec
    objective: ObjectiveSpec
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()


class ScoreRun(Run):
    """A run file for index and score. Preprocessing is the bundle's: there are no settings for it here."""

    store: str
    """Folder of the score table (Delta Lake)."""
    modality: dict[str, Any] = {}
    """What is different at this site from where the bundle was trained: its spec's `site` fields, nothing else."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Samples decoded and scored at once by one worker; does not change a score. auto: about 16 MB of them."""

    @property
    def store_uri(self) -> str:
        return files.absolute(self.store)


def load(path: str | Path, overrides: list[str] | None = None) -> TrainRun | ScoreRun:
    """The run file at `path`: a ScoreRun where it names a `store`, else a TrainRun. Raises RunFileError."""
    try:
        scores = "store" in tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        scores = False  # load_run says what is wrong with it
    return load_run(path, ScoreRun if scores else TrainRun, overrides or [])
