"""The run types: what a run file holds, for training, for scoring and for conversion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from medray.alerts.settings import AlertSettings
from medray.archive.order import NEWEST, check_order
from medray.config import outline, renamed, toml
from medray.config.loader import checked
from medray.config.renamed import Notice
from medray.config.shapes import Shape, key_paths
from medray.config.undecided import refuse_undecided
from medray.datasets.label_table import LabelSettings
from medray.datasets.splits import SplitSettings
from medray.durations import deadline_at
from medray.engines.spec import EngineSpec, RaySpec
from medray.errors import REASONS
from medray.exports.sr_settings import SrSettings
from medray.learning.metrics import MetricOptions
from medray.learning.models import ModelSpec
from medray.learning.models.own import OWN_KIND, OwnCode, PythonModel
from medray.learning.objectives import ObjectiveSpec
from medray.learning.optimizers import TrainingSettings
from medray.modalities.ehr.convert.settings import MedsLabels, MedsSplit, SourceSpec
from medray.modalities.registry import ModalitySpec
from medray.storage import files


class ArchiveRun(BaseModel):
    """What every run file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)
    """Names the work folder and the checkpoints."""
    archive: str | Annotated[tuple[str, ...], Field(min_length=1)]
    """Folder or file that holds the data: local path or s3://, gs:// …; a zip, tar or tar.gz is a folder. Or a DICOMDIR, or a
    server, dicomweb+https://host/path?QUERY. A list of such: one archive that lies in several places."""
    work: str | None = None
    """Folder for manifests, shards, checkpoints and reports; default work/<name>."""
    pseudonym_key: str | None = None
    """File with the secret that subject identifiers are hashed with; default ~/.medray/pseudonym.key."""
    full_check_days: float = Field(default=30.0, gt=0)
    """How often an archive on a DICOMweb server is looked into study by study, whatever its counts say: an Orthanc is asked for
    the stored file of each instance, of any other server each instance is retrieved."""
    watch_changes: bool = True
    """Whether a local file is opened again when its change time (ctime) is another, though its size and modification time are
    as they were: it may be of other content. Set it to false where something touches all files every night, such as a
    backup that makes hard links."""
    max_failed: float = Field(default=0.01, ge=0, le=1)
    """Largest fraction of entries that may fail before the exit code is 3."""
    readers: files.Readers = "owner"
    """Who may read what the run writes to a disk (work, bundle, store, summaries): its user, or "group": also the group of its
    folders. It holds for folders that the run makes; what is written to one that is there follows that."""
    engine: EngineSpec = RaySpec()
    """Where the run runs."""

    @field_validator("archive")
    @classmethod
    def _places_apart(cls, found: str | tuple[str, ...]) -> str | tuple[str, ...]:
        uris = [files.absolute(each) for each in ((found,) if isinstance(found, str) else found)]
        if any(files.PLACES in uri for uri in uris):
            raise ValueError("a path with a line break")
        for i, uri in enumerate(uris):
            if any(files.is_below(other, uri) for other in [*uris[:i], *uris[i + 1 :]]):
                raise ValueError("of two archives one lies in the other, or they are the same")
        return found

    @property
    def root(self) -> str:
        """The archive's URI; of an archive in several places theirs, a line each (`files.places`)."""
        archives = (self.archive,) if isinstance(self.archive, str) else self.archive
        return files.PLACES.join(files.absolute(each) for each in archives)

    @property
    def folder(self) -> str:
        return files.absolute(self.work or f"work/{self.name}")


class EvaluationSettings(BaseModel):
    """Confidence intervals of `medray evaluate`, and settings of its figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    resamples: int = Field(default=1000, ge=0)
    """Bootstrap resamples of whole subjects; 0: no intervals."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Share of resamples that lie within an interval: 0.95 for intervals of 95 %."""
    seed: int = 0
    """Draws the resamples: the same seed gives the same intervals."""
    beta: float = Field(default=2.0, gt=0)
    """F-beta counts sensitivity so many times as much as precision."""
    prevalence: float | None = Field(default=None, gt=0, lt=1)
    """Share of positives where a binary model is to be used: PPV and NPV there, by Bayes from sensitivity and specificity."""
    pictures: bool = True
    """Whether the report shows the samples of its mistakes: images, sequences, timelines. They are patients' data."""
    shared_subjects: Literal["refuse", "leave_out", "keep"] = "refuse"
    """Subjects of an evaluated archive whom the bundle was trained or validated on: refused, left out of the metrics, or
    kept and counted. Known where both were indexed under one `pseudonym_key`."""

    @property
    def metric_options(self) -> MetricOptions:
        return MetricOptions(self.beta, self.prevalence)


class TrainRun(ArchiveRun):
    """A run file for index, prepare, train and evaluate."""

    bundle: str
    """Folder of the trained model: written by train, read by evaluate and score."""
    modality: ModalitySpec
    """What the data are, and how they become inputs of the model."""
    labels: LabelSettings = LabelSettings()
    """Where labels come from."""
    split: SplitSettings = SplitSettings()
    """How subjects are divided into train, validation and test."""
    model: ModelSpec
    """The network."""
    objective: ObjectiveSpec
    """What the model learns to say: its loss, outputs and threshold."""
    training: TrainingSettings = TrainingSettings()
    """How the network is fitted."""
    floor: bool = True
    """Train a logistic model on the same samples, too: reports show it beside the network, which has to beat it."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """What `medray evaluate` computes."""
    remember_subjects: bool = True
    """Leave hashes of the pseudonyms of train and validation beside the bundle, so that an evaluation on another archive
    can tell whom the model has seen. Who has the key can tell it of a patient."""

    @field_validator("model")
    @classmethod
    def _read_own_code(cls, model: Any) -> Any:
        """This run file names the module, so it may be imported; it is read once, here."""
        return model.with_code(OwnCode.read(model.kind)) if isinstance(model, PythonModel) else model

    @property
    def trust(self) -> tuple[str, ...]:
        """The model from a folder that this run file names, if it names one."""
        return (self.model.kind,) if isinstance(self.model, PythonModel) else ()

    @property
    def bundle_uri(self) -> str:
        return files.absolute(self.bundle)


class ExternalArchive(BaseModel):
    """One more archive that an evaluate run looks at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)
    """Names the archive in the report, and its work folder."""
    archive: str
    """Folder or file that holds the data; local path or s3://, gs:// …"""
    modality: dict[str, Any] = {}
    """What is different at this site from where the bundle was trained: its spec's `site` fields, nothing else."""
    labels: LabelSettings = LabelSettings()
    """Where this archive's labels come from."""
    split: SplitSettings = SplitSettings(by="all")
    """Which of its entries are evaluated; by default all that have a label."""


class EvaluateRun(ArchiveRun):
    """A run file for evaluate: a bundle on another archive than the one it was trained on. Nothing is fitted there:
    vocabulary, statistics, calibration and threshold are the bundle's, and so is how data are read."""

    bundle: str
    """Folder of the trained model."""
    trust: tuple[Annotated[str, Field(pattern=OWN_KIND)], ...] = ()
    """Models from folders that bundles of this run may import, as `model.kind` of their training named them:
    python:package.module:function. A bundle alone never has code imported."""
    modality: dict[str, Any] = {}
    """What is different at this site from where the bundle was trained: its spec's `site` fields, nothing else."""
    labels: LabelSettings = LabelSettings()
    """Where labels come from."""
    split: SplitSettings = SplitSettings(by="all")
    """`all`: every entry with a label. With `given` or `hash` the split that `--split` names."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """What `medray evaluate` computes."""
    also: tuple[ExternalArchive, ...] = ()
    """Further archives: the report has a row of metrics for each, and the metrics are those of all of them together."""
    own_test: str | None = None
    """predictions.parquet of the bundle's own test split, to stand beside these archives; default: where `medray
    evaluate` of its training left it, work/<name of the bundle>."""

    @model_validator(mode="after")
    def _archives_differ_in_name(self) -> EvaluateRun:
        names = [self.name, *(each.name for each in self.also)]
        if len(set(names)) < len(names):
            raise ValueError("each archive needs a name of its own")
        return self

    @property
    def bundle_uri(self) -> str:
        return files.absolute(self.bundle)

    def archives(self) -> tuple[EvaluateRun, ...]:
        """A run for each archive, with a work folder of its own."""
        alone = self.model_copy(update={"also": ()})
        names = ("name", "archive", "modality", "labels", "split")
        return (
            alone,
            *(
                alone.model_copy(
                    update={name: getattr(each, name) for name in names}
                    | {"work": files.join(self.folder, "archives", each.name)}
                )
                for each in self.also
            ),
        )


class StoreRun(ArchiveRun):
    """How an archive is scored into a store. Preprocessing is the bundle's: there are no settings for it here."""

    store: str
    """Folder of the score table (Delta Lake)."""
    moved_from: tuple[str, ...] = ()
    """Where the archive was when it was scored into this store before: what has other content now is scored once more. Without it
    an archive that shares ids with another one in the store, which is still there, is refused."""
    trust: tuple[Annotated[str, Field(pattern=OWN_KIND)], ...] = ()
    """Models from folders that bundles of this run may import, as `model.kind` of their training named them:
    python:package.module:function. A bundle alone never has code imported."""
    modality: dict[str, Any] = {}
    """What is different at this site from where the bundle was trained: its spec's `site` fields, nothing else."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Samples decoded and scored at once by one worker; does not change a score. auto: about 4 MB of them."""
    bundles_at_once: int = Field(default=16, ge=1, le=64)
    """Bundles that read alike are scored in one pass, by which each entry is read once: at most so many, whose networks are all in
    the memory of each worker. 1: one bundle after the other."""
    commit_seconds: float = Field(default=30.0, gt=0)
    """Readers see new scores at least this often; a killed run loses at most so much."""
    commit_files: int = Field(default=1000, ge=1)
    """Commit earlier when so many files of scores have been written."""
    deadline: str | None = None
    """Begin no entry after it: the next "06:00" by this machine's clock, or "4h" after the start. What has been scored
    by then is committed, the next run does the rest. The index is not cut short."""
    order: str = NEWEST
    """What is scored first: "newest" or "oldest" by the time of an entry's newest file, or a column of the manifest
    ("bytes", "bytes descending")."""
    limit: int | None = Field(default=None, ge=1)
    """Take on at most so many entries."""
    retry: tuple[str, ...] | Literal["all"] = ()
    """Reason codes of failed entries that are tried again although their content is the same; "all": any reason."""
    retry_attempts: int = Field(default=3, ge=1)
    """An entry is not tried more often than this in all, at one content by one bundle."""
    sr: SrSettings = SrSettings()
    """How `medray export dicom-sr` writes the scores as DICOM Structured Reports; scoring does not look at it."""

    @field_validator("deadline")
    @classmethod
    def _check_deadline(cls, text: str | None) -> str | None:
        if text is not None:
            deadline_at(text, 0.0)
        return text

    @field_validator("order")
    @classmethod
    def _check_order(cls, text: str) -> str:
        return check_order(text)

    @field_validator("retry")
    @classmethod
    def _check_retry(cls, reasons: tuple[str, ...] | str) -> tuple[str, ...] | str:
        unknown = sorted(set(() if reasons == "all" else reasons) - REASONS.keys())
        if unknown:
            raise ValueError(
                f"unknown reason codes {', '.join(unknown)}: expected some of {', '.join(sorted(REASONS))}"
            )
        return reasons

    @property
    def store_uri(self) -> str:
        return files.absolute(self.store)

    @property
    def moved_from_uris(self) -> tuple[str, ...]:
        return tuple(files.absolute(uri) for uri in self.moved_from)

    @property
    def retry_failed(self) -> bool | tuple[str, ...]:
        """As `ScoreStore.pending` takes it."""
        return True if self.retry == "all" else self.retry


class ScoreRun(StoreRun):
    """A run file for index and score."""

    bundle: str
    """Folder of the trained model."""

    @property
    def bundle_uri(self) -> str:
        return files.absolute(self.bundle)


class Housekeeping(BaseModel):
    """What a nightly run does to the store when all is scored, and time is left before the deadline."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    compact: bool = True
    """Join small files of scores: nights leave many."""
    vacuum_days: float | None = Field(default=7.0, ge=1)
    """Delete files that no version of the table has pointed to for so long; none: keep them. Longer than the longest
    run, and than anyone reads an older version."""


class NightlyRun(StoreRun):
    """A run file for nightly."""

    bundles: tuple[str, ...] = Field(min_length=1)
    """Folders of trained models: one, or several. Those that read alike are scored together, and groups of such one after the
    other, in the order of their first bundles: the most important first."""
    summary: str | None = None
    """Folder of the summaries (JSON and HTML, one of each for every night, and latest.*); default <work>/nights."""
    housekeeping: Housekeeping = Housekeeping()
    """What is done to the store when all is scored."""
    alert: AlertSettings | None = None
    """Whom a night that needs a person tells; none: the summary and the exit code alone tell."""

    @field_validator("bundles", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_bundle(cls, found: Any) -> Any:
        return (found,) if isinstance(found, str) else found

    @property
    def summary_uri(self) -> str:
        return files.absolute(self.summary) if self.summary else files.join(self.folder, "nights")

    def of_bundle(self, bundle: str, work: str) -> ScoreRun:
        """The scoring of one bundle, with its manifest in the folder `work`."""
        settings = {name: getattr(self, name) for name in StoreRun.model_fields}
        return ScoreRun.model_validate(settings | {"bundle": bundle, "work": work})


class ConvertRun(ArchiveRun):
    """A run file for to-meds."""

    archive: str  # pyright: ignore[reportIncompatibleVariableOverride]  # frozen
    """Folder or file that holds the data: local path or s3://, gs:// …"""
    source: SourceSpec
    """What is converted, and how it is read."""
    out: str
    """Folder of the MEDS dataset, local or mounted on all machines."""
    shards: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    """Files that subjects are spread over (in each split); auto: one per 64 MB of the archive."""
    split: MedsSplit | None = None
    """Splits to write into the dataset; none: it has no metadata/subject_splits.parquet."""
    labels: MedsLabels | None = None
    """A label table to write beside the events; none: no labels."""

    @property
    def out_uri(self) -> str:
        return files.absolute(self.out)


Run = TrainRun | EvaluateRun | ScoreRun | NightlyRun | ConvertRun

RUN_TYPES: Mapping[str, type[Run]] = {
    kind.__name__: kind for kind in (TrainRun, EvaluateRun, ScoreRun, NightlyRun, ConvertRun)
}


def load(path: str | Path, overrides: Sequence[str] | None = None, notice: Notice | None = None) -> Run:
    """The run file at `path`, of the type that its keys at the top say (`outline.kind_of`). `overrides` replace or add
    single keys; `notice` is told of names that are called otherwise today.

    Raises RunFileError.
    """
    run = toml.read(path)
    renamed.translate(run, notice)
    keys = list(run.settings)
    toml.override(run, overrides or [])
    renamed.translate(run, notice)
    refuse_undecided(run)
    outline.keep(RUN_TYPES.values())
    known = {name: kind.model_fields for name, kind in RUN_TYPES.items()}
    return checked(run, RUN_TYPES[outline.kind_of(keys, known)])


def all_keys() -> Iterator[tuple[str, ...]]:
    """Every key of every run type, with its tables."""
    for kind in RUN_TYPES.values():
        yield from key_paths(Shape.of(TypeAdapter(kind).core_schema))
