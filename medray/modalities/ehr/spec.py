"""EhrSpec: what [modality] of a run file says about health records, and what a bundle keeps. Imports nothing heavy."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medray.archive.choice import Choose
from medray.archive.eligibility import Refused
from medray.modalities.ehr.rules import TimeRule, duration_us, parse_rule
from medray.modalities.spec import Spec

QUANTILES = 65
SELECTABLE = {
    "codes": "codes of events and static facts that an entry may see; it is enough that one passes",
    "age_years": "at the prediction time, years of 365.25 days; does not pass where birth is not known",
    "events": "how many events with a time an entry may see",
    "history_days": "from the first event with a time that an entry may see to the prediction time",
    "days_since_last": "from the last such event to the prediction time",
}
"""Facts that [modality.select] may ask for: { codes = "LOINC//718-7", age_years = { min = 18 }, events = { min = 3 } }.
The rules are checked against the events within the window, when an entry is read; no such fact is kept beside its score."""
AGE = "MEDRAY//AGE"
"""Name of the static fact that medray adds: years from MEDS_BIRTH to the prediction time."""


class TaskSpec(BaseModel):
    """Predictions to make: an entry is one subject at one prediction time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: str | None = None
    """MEDS label table: a Parquet file or a folder of them, absolute or relative to the archive. Every row is an
    entry (there may be several per subject), and its value the label; one whose subject is in no data file fails as
    `no_events`."""
    value: Literal["boolean_value", "integer_value", "float_value", "categorical_value"] | None = None
    """Column of the label; default: the one that holds values."""
    at: str | None = None
    """Without a label table, the prediction time by rule, one per subject: "first + 48h", "last", "first of CODE + 24h"
    (CODE may be a glob; units min, h, d). first and last count timed events other than MEDS_BIRTH, MEDS_DEATH and
    label codes. A subject without such an event is an entry failed as `no_prediction_time`. Default: "last"."""

    @field_validator("at")
    @classmethod
    def _rule_can_be_read(cls, at: str | None) -> str | None:
        return None if at is None else str(parse_rule(at))

    @model_validator(mode="after")
    def _one_source(self) -> TaskSpec:
        if self.at is not None and self.labels is not None:
            raise ValueError("prediction times come from `labels` or by the rule `at`: give one of them")
        return self

    @property
    def rule(self) -> TimeRule | None:
        """The rule that gives the prediction time; None where a label table gives it."""
        return None if self.labels is not None else parse_rule(self.at or "last")


class Code(BaseModel):
    """One word of the vocabulary, with the statistics of its finite numbers in the training split."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    code: str
    """The code, as it is in the dataset."""
    mean: float | None = None
    """Mean of its finite numbers; None where it has none."""
    std: float | None = None
    """Standard deviation of its finite numbers; None where it has none."""
    quantiles: tuple[float, ...] | None = None
    """Its numbers at QUANTILES equally spaced levels from the least to the greatest, where `scale` asks for them."""


class EhrSpec(Spec):
    """Settings by which a health record becomes model inputs.

    read     events with prediction_time - window ≤ time ≤ prediction_time, and static ones (no time); sorted by time,
             code hash, value; exact duplicates once; NaN and infinite numbers are missing (counted, never passed on)
    collate  vocabulary (unknown = 0) and z-score by the training split's statistics, then bins or events
    """

    kind: Literal["ehr"] = "ehr"  # type: ignore[assignment]  # frozen: a narrower type is safe
    """The modality: health records as MEDS datasets."""
    site: ClassVar[frozenset[str]] = frozenset({"task"})
    several_archives: ClassVar[bool] = False

    task: TaskSpec = TaskSpec()
    """Predictions to make: for whom, and as of when."""
    window: str | None = None
    """How far back from the prediction time events count, such as "48h" or "365d"; both ends count. Default: all."""
    label_codes: tuple[str, ...] = ()
    """Globs of codes that define the label. They never become inputs, whatever the other settings say; where one occurs in
    the window of a training patient, fitting stops with an error unless `drop_label_codes` is set."""
    drop_label_codes: bool = False
    """Leave label codes out without an error, because it is known that they occur before prediction times."""

    codes: tuple[str, ...] = ("*",)
    """Globs of codes that may be inputs (fnmatch: * matches any text, [ starts a set of characters)."""
    exclude: tuple[str, ...] = ()
    """Globs of codes that may not. Safer than hoping: exclude what is recorded because of the outcome."""
    scale: Literal["zscore", "quantile"] = "zscore"
    """zscore: (number - mean) / deviation. quantile: the normal score of the number's rank among those of its code in
    training (van der Waerden 1952), within ± 2.6: skewed laboratory values and typing errors keep their order, and do
    not squeeze the others together."""
    min_samples: int = Field(default=5, ge=1)
    """A code in fewer training samples than this is unknown."""
    max_codes: int = Field(default=1024, ge=1)
    """How many codes of timed events the vocabulary has at most: the most frequent; the others are unknown."""
    max_static: int = Field(default=64, ge=0)
    """How many static codes are kept at most: the most frequent, age included."""
    clip: float = Field(default=5.0, gt=0)
    """z-scores are limited to ± this, so that one typing error does not outweigh everything else."""

    representation: Literal["bins", "events"] = "bins"
    """bins: `sequence` (window / bin_hours, features), regular in time. events: `codes` and `sequence`, one step an
    event: z-score or 0, has a number, log1p hours since the previous event, log1p hours to the prediction time."""
    bin_hours: float = Field(default=1.0, gt=0)
    """bins: width of a bin; must divide the window. An event at the prediction time is in the last bin."""
    bin_value: Literal["last", "mean"] = "last"
    """bins: which of several numbers of a code in one bin is used. A bin without one repeats the last number; 0 before the
    first."""
    bin_codes: Literal["numeric", "all"] = "numeric"
    """bins: which codes are features: those with numbers in training, or all (others by presence only)."""
    since_last: bool = False
    """bins: also log1p hours since the code was last seen in the window, at the bin's end."""
    max_events: int = Field(default=512, ge=1)
    """events: how many are kept, the most recent; those left out are counted."""
    summaries: tuple[str, ...] = ()
    """Durations, such as ["48h", "24h"]: over each, up to the prediction time, least, greatest, mean, first, last, change
    and so on of every code with numbers are one more input, `summary`: what few patients do not teach a sequence model."""

    vocabulary: tuple[Code, ...] | None = None
    """Fitted: codes 1 … V of timed events, most frequent first."""
    static: tuple[Code, ...] | None = None
    """Fitted: static codes, most frequent first; each gives two features, present and z-score."""
    fitted_on: dict[str, int] | None = None
    """Fitted: number of samples and events, and how many events were truncated, non_finite or of a label code."""

    @field_validator("choose")
    @classmethod
    def _nothing_is_chosen(cls, choose: Choose | None) -> Choose | None:
        if choose is not None:
            raise ValueError("records are judged when they are read, one by one: [modality.task] says at which times")
        return choose

    @model_validator(mode="after")
    def _facts_of_records(self) -> EhrSpec:
        if unknown := sorted({*self.ruled} - SELECTABLE.keys()):
            raise ValueError(f"records have no fact {', '.join(unknown)}; expected {', '.join(SELECTABLE)}")
        return self

    @field_validator("window")
    @classmethod
    def _window_can_be_read(cls, window: str | None) -> str | None:
        if window is not None:
            duration_us(window)
        return window

    @field_validator("summaries")
    @classmethod
    def _summaries_can_be_read(cls, summaries: tuple[str, ...]) -> tuple[str, ...]:
        for each in summaries:
            duration_us(each)
        return summaries

    @model_validator(mode="after")
    def _fits_together(self) -> EhrSpec:
        if not self.codes or not all((*self.codes, *self.exclude, *self.label_codes)):
            raise ValueError("codes, exclude and label_codes must be globs that are not empty, and codes at least one")
        if self.representation == "bins":
            if self.window_us is None:
                raise ValueError('representation = "bins" needs a window, such as window = "48h"')
            if self.window_us % self.bin_us or self.bin_us == 0:
                raise ValueError(f"bin_hours = {self.bin_hours:g} does not divide the window {self.window!r}")
        if self.window_us is not None and any(duration_us(each) > self.window_us for each in self.summaries):
            raise ValueError(f"summaries {list(self.summaries)} reach further back than the window {self.window!r}")
        if (self.vocabulary is None) != (self.static is None):
            raise ValueError("vocabulary and static are fitted together: give both or none")
        return self

    def refused(self, facts: str | None) -> Refused | None:
        """None, always: records are judged by the events an entry may see, when it is read (`selection.py`)."""
        return None

    @property
    def window_us(self) -> int | None:
        return None if self.window is None else duration_us(self.window)

    @property
    def bin_us(self) -> int:
        return round(self.bin_hours * 3_600_000_000)

    @property
    def bins(self) -> int:
        """Number of bins in the window; 0 without a window."""
        return (self.window_us or 0) // self.bin_us
