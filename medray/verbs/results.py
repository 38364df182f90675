"""What the verbs return: the one JSON object of `--json`, and the numbers for the exit code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict


class Result(BaseModel):
    model_config = ConfigDict(frozen=True)

    entries: int
    failed: int

    def exit_code(self, max_failed: float) -> int:
        """0, or 3 where more than `max_failed` of the entries failed."""
        return 3 if self.failed > max_failed * self.entries else 0


class IndexResult(Result):
    subjects: int
    bytes: int
    files: int
    """Files in the archive; those that are no data by rule (DICOMDIR, ignored names) make no entry."""
    scanned: int
    """Files that were opened; the others have not changed since the last index."""
    linked: int = 0
    """Symbolic links to folders, which are not followed."""
    folders_away: int = 0
    """Folders whose storage fails: what lay there at the last index is taken to lie there still, and the exit code is 1."""
    new: int
    """Entries that the last index of this work folder did not know."""
    changed: int
    """Entries whose content is another; one that was only touched, moved or given another label is not among them."""
    vanished: int
    """Entries that are no more."""
    by_reason: dict[str, int]
    not_eligible: int
    """Entries that the model is not asked about: what holds nothing for one, and what a rule leaves out."""
    not_eligible_by_reason: dict[str, int]
    flagged: int = 0
    """Eligible entries with a number outside of what the training archive held."""
    outside: dict[str, int] = {}
    """How many of them by that number; how far outside is in the facts of their rows."""
    mixture: list[dict[str, str | int]]
    """What the entries are, by what the modality learns of headers: {fact: value …, entries}, most frequent first."""
    failed_entries: list[dict[str, str | None]] | None = None
    """{path, reason, detail} of each entry that cannot be read, where they were asked for."""
    manifest: str
    """Folder of the change table of entries."""
    seconds: float

    def exit_code(self, max_failed: float) -> int:
        """1 where storage of a part of the archive was away, else as for any result."""
        return 1 if self.folders_away else super().exit_code(max_failed)


class PrepareResult(Result):
    shards: int
    samples: int
    unlabelled: int
    """Readable entries without a label or a split: not used."""
    not_eligible: int = 0
    """Entries that [modality.select] leaves out, or that hold nothing for a model: not used."""
    not_eligible_by_reason: dict[str, int] = {}
    mixture: list[dict[str, str | int]] = []
    """What the entries used are, as `medray index` tells it of the archive."""
    by_reason: dict[str, int]
    splits: dict[str, dict[str, int | dict[str, int]]]
    """Per split: entries, subjects, classes."""
    folder: str
    reused: bool
    seconds: float


def class_counts(split: Mapping[str, int | dict[str, int]]) -> dict[str, int]:
    """Entries of each class in a split of `PrepareResult.splits`; none where labels are no classes."""
    counts = split.get("classes")
    return counts if isinstance(counts, dict) else {}


class TrainResult(Result):
    bundle: str
    bundle_id: str
    metrics: dict[str, object]
    """Metrics of the validation split, at the best epoch."""
    epochs: int
    best_epoch: int
    stopped: str
    mixture: list[dict[str, str | int]] = []
    """What it was trained on, by what headers say: {fact: value …, entries}, most frequent first."""
    seconds: float
    samples_per_second: float
    """Training samples over the loops' time: start-up and validation excluded."""
    workers: int
    history: str
    reused: bool


class EvaluateResult(Result):
    bundle_id: str
    split: str
    """"all" where another archive was not split."""
    external: bool = False
    """Read as another archive than the one trained on: not from the shards of its training."""
    n: int
    subjects: int
    metrics: Mapping[str, object]
    floor: Mapping[str, object] | None = None
    """Metrics of the logistic model on the same samples, where one was trained."""
    intervals: dict[str, tuple[float, float]]
    by_archive: dict[str, dict[str, object]] = {}
    """Results of each of several archives, and of the bundle's own test split: {name: {n, subjects, metrics, intervals}}."""
    absent_classes: tuple[str, ...] = ()
    """Classes of the bundle that no entry evaluated has; what needs them is null."""
    not_eligible: dict[str, int] = {}
    """Entries of other archives that the bundle is not asked about, by reason."""
    shared_subjects: int | None = None
    """Subjects of other archives whom the bundle was trained or validated on; null: not known, or its own archive."""
    thresholds: tuple[float, ...]
    beta: float = 2.0
    """The beta of `f_beta`."""
    prevalence: float | None = None
    """The prevalence of `ppv_at_prevalence` and `npv_at_prevalence`."""
    predictions: str
    report: str
    seconds: float


class ScoreResult(Result):
    """`failed` counts this run's failed entries; entries of earlier runs are in the store.

    pending = scored + failed + not_eligible + left.
    """

    run_id: str
    bundle_id: str
    pending: int
    scored: int
    not_eligible: int
    """Entries that the model is not asked about: by a rule, or because nothing is there to score. No failure."""
    left: int
    """Pending entries that the next run takes up."""
    folders_away: int = 0
    """As in the result of an index; the exit code is 1."""
    storage_away: int = 0
    """Entries that failed because the storage of all of the run, or of a part of the archive, was away: the exit code is 1."""
    retired: int = 0
    """Entries of the store whose files are there and hold them no more: their rows are current no longer."""
    stopped: Literal["deadline", "limit", "archive"] | None
    """Why entries are left; archive: it was no longer there, and the exit code is 1."""
    samples: int
    """Samples of this run's entries; an entry that cannot be read counts as one."""
    failed_samples: int
    by_reason: dict[str, int]
    """Failed samples."""
    not_eligible_samples: int
    not_eligible_by_reason: dict[str, int]
    """Samples that the model is not asked about."""
    flagged: int = 0
    """Eligible entries of the archive, scored in this run or before, with a number outside of what was trained on."""
    outside: dict[str, int] = {}
    """How many of them by that number."""
    outside_read: dict[str, int] = {}
    """Scored samples of this run by a number outside of what was trained on that only reading tells (grey values)."""
    together: int = 1
    """Bundles that were scored in one pass over the archive, this one included: seconds, stages, worker_seconds and slowest are of
    the pass."""
    seconds: float
    entries_per_second: float
    """Entries scored, failed and not eligible, over the time from the first to the last commit."""
    stages: dict[str, float]
    """Seconds of this run, one after the other: index, pending (what has no score yet), scoring."""
    worker_seconds: dict[str, float]
    """Seconds inside workers, all together: read, score, write."""
    slowest: list[dict[str, int | float | str]]
    """The entries that took longest to read: {key_hi (as in the score table), seconds, together}. A batch is timed as
    a whole: `together` says how many entries shared the time, and `key_hi` is of the first of them."""
    store: str

    def exit_code(self, max_failed: float) -> int:
        """3 where more than `max_failed` of the entries that were taken on, or of their samples, failed; those that are
        not eligible count on neither side. 1 where the archive went, or a part of it is away."""
        if self.stopped == "archive" or self.storage_away or self.folders_away:
            return 1
        asked = self.samples - self.not_eligible_samples
        many = self.failed > max_failed * (self.scored + self.failed) or self.failed_samples > max_failed * asked
        return 3 if many else 0


class AlertRow(TypedDict):
    """What became of an alert on one way."""

    way: str
    """command or webhook."""
    causes: str
    sent: bool
    problem: str | None
    """Why it was not sent."""


class AlertTestResult(BaseModel):
    """A trial alert."""

    model_config = ConfigDict(frozen=True)

    alerts: list[AlertRow]

    @property
    def code(self) -> int:
        """0 where every way took it."""
        return 0 if all(row["sent"] for row in self.alerts) else 1


class LastNight(BaseModel):
    """The last night of a store that came to its end."""

    model_config = ConfigDict(frozen=True)

    store: str
    night: str | None
    """None: none has ever ended."""
    ended: str | None
    """UTC, ISO 8601."""
    hours: float | None
    """Since then."""
    within: str
    """How long ago it may have ended."""
    missing: bool
    """It ended longer ago."""
    begun_since: int
    """Nights that began after it, and have not ended, or failed."""
    alerts: list[AlertRow]

    @property
    def code(self) -> int:
        return 1 if self.missing else 0


class NightlyResult(Result):
    """What a night came to; the summary file has all of it. `entries` and what follows are as in its keys."""

    night: str
    held_by: str | None = None
    """Another nightly run works on this store: who, where, since when. Nothing was done then."""
    new: int = 0
    changed: int = 0
    vanished: int = 0
    pending: int = 0
    scored: int = 0
    not_eligible: int = 0
    left: int = 0
    level: str = ""
    """Level of drift: alert, watch, none, too few; "" where nothing was scored."""
    seconds: float
    summary: str = ""
    """The JSON file of this night."""
    page: str = ""
    """The HTML page of this night."""
    bundles: dict[str, dict[str, int | str | None]] = {}
    """Per bundle folder: bundle_id, pending, scored, failed, not_eligible, left, drift, error."""
    alerts: list[AlertRow] = []
    """What [alert] of the run file sent, or could not send; empty: nothing was to be told. The exit code does not hang on it."""
    code: int = 0

    def exit_code(self, max_failed: float) -> int:
        """The highest need first: 1 or 2 where a bundle met a fault, 3 where too much of one failed, else 0. A run that
        found the store in another's hands has nothing to complain of: 0."""
        return self.code


class ToMedsResult(Result):
    """`entries` and `failed` are files, those inside a tar or zip counted one by one."""

    subjects: int
    events: int
    files: int
    """Parquet files of events."""
    read: dict[str, int]
    """Resources or rows by type: read = converted + dropped, for each."""
    converted: dict[str, int]
    events_by_type: dict[str, int]
    dropped: dict[str, dict[str, int]]
    """Dropped ones by type and reason."""
    notes: dict[str, dict[str, int]]
    """What else is worth knowing of what was converted: values left out, dates without a time of day."""
    faults: int
    """How many were dropped because something is wrong with them, not by a rule."""
    ignored: int
    """Files that are none of this source."""
    failed_files: list[dict[str, int | str | None]]
    """The first hundred: place in the order of names, member, reason."""
    labels: dict[str, object]
    out: str
    reused: bool
    seconds: float

    def exit_code(self, max_failed: float) -> int:
        """3 where more than `max_failed` of the files, or of what they hold, failed; and where nothing came of them, or no
        label where a table of labels was asked for."""
        nothing = self.events == 0 or (bool(self.labels) and self.labels["labels"] == 0)
        many = self.failed > max_failed * self.entries or self.faults > max_failed * sum(self.read.values())
        return 3 if many or nothing else 0


class ExportResult(BaseModel):
    """Alleles = scored + failed + not_eligible + not_scored; records without an alternate allele are copied.

    Of a format for whole archives: records, which are its entries, = scored + failed + not_eligible + not_scored + refused.
    """

    model_config = ConfigDict(frozen=True)

    bundle_id: str
    out: str
    records: int
    alleles: int | None = None
    """Those of a VCF; other formats have records alone."""
    scored: int
    failed: int
    not_eligible: int
    """There was nothing to score: a reference block, an allele that is deleted."""
    not_scored: int
    """Alleles or entries of which the store holds nothing: added or changed since, or in a part that could not be read."""
    refused: dict[str, int] = {}
    """Of a format for whole archives: scored entries that could not be written, by reason."""
    already: int | None = None
    """Of the scored ones: those that an earlier export had written. They stay as they are."""
    not_in_index: int | None = None
    """Entries that the store holds and the run's index does not at this content: gone, replaced, or of another archive."""
    seconds: float
    code: int = Field(default=0, exclude=True)
    """Exit code: 3 where more of the scored entries were refused than the run's `max_failed`."""


class TableExportResult(BaseModel):
    """The current scores of a store as tables."""

    model_config = ConfigDict(frozen=True)

    files: tuple[str, ...]
    """The new files; the last is the one that was named."""
    rows: int
    """Scores."""
    failed: int
    """Rows without a score because the entry or sample failed."""
    not_eligible: int
    """Rows without a score because the model is not asked about the entry or sample."""
    models: dict[str, str | None]
    """Id of each bundle to its name; null where no run file says it."""
    escaped: int
    """Texts that a ' was put before, in CSV: a spreadsheet would have computed them."""
    own_ids: bool
    without_own_id: int = 0
    """Rows of which the archive no longer tells whose they are; their cell is empty."""
    seconds: float


class ModelExportResult(BaseModel):
    """A network in a file of another library."""

    model_config = ConfigDict(frozen=True)

    bundle_id: str
    out: str
    layers: int
    inputs: dict[str, str]
    """Shape of each, as that library has it."""
    outputs: tuple[str, ...]
    answers: str
    """scores, or logits."""
    compared: int
    """Rows that the file's answers were compared with torch's on."""
    compared_on: str
    """What they are: samples of an archive, or seeded inputs."""
    largest_difference: float
    """Of an answer beyond 1, as a part of it."""
    seconds: float


class ImportResult(BaseModel):
    """A bundle that was made of a model of another library."""

    model_config = ConfigDict(frozen=True)

    bundle: str
    bundle_id: str
    file: str
    sha256: str
    written_by: str
    """The library and its version."""
    layers: int
    parameters: int
    outputs: tuple[str, ...]
    answers: str
    """Whether they were compared with the original's, for people."""
    compared: int
    """Rows whose answers were compared with the original's; 0: none was."""
    largest_difference: float | None
    """Of these answers; of one beyond 1, as a part of it. None: they were not compared."""
    seconds: float


class VacuumResult(BaseModel):
    model_config = ConfigDict(frozen=True)

    store: str
    files_merged: int
    files_made: int
    """Files that the merged ones became."""
    files_removed: int
    bytes_freed: int
    audit_rows_removed: int = 0
    """Rows of the audit table that were older than was asked for."""
    seconds: float


class CopyResult(BaseModel):
    model_config = ConfigDict(frozen=True)

    store: str
    copy_of_it: str
    version: int
    """Of the table of scores, as it was copied."""
    files: int
    bytes: int
    seconds: float


class ForgetResult(BaseModel):
    """Does not name the subject."""

    model_config = ConfigDict(frozen=True)

    store: str
    rows: int
    """Removed from the scores that readers saw."""
    files: int
    """Removed from the storage: rewritten without the subject, replaced earlier, or left by killed runs."""
    unreadable: int
    """Files among these that a kill had cut short: nobody can say whom they held."""
    other_keys: int = 0
    """Keys of pseudonyms that runs have scored into this store under, beside the one that was looked with; forget with each of them."""
    untouched: str = "the archive, work folders (manifests, shards, reports), bundles, exports, backups"
    """Other places where the subject may stand."""
    seconds: float
