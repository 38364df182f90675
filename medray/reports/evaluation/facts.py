"""What the report of an evaluation is made of. A section whose facts are absent is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from medray.learning.metrics import PLAIN, MetricOptions, MetricValue
from medray.learning.objectives import ObjectiveSpec
from medray.learning.thresholds import ThresholdChoice
from medray.modalities.pictures import SamplePicture
from medray.reports.learning_curve import EpochMetrics

if TYPE_CHECKING:
    import pyarrow as pa

LIMITS = (
    "Not a medical device. For research; no basis for decisions about a patient.",
    "The numbers hold for data like the evaluated split. Another scanner, laboratory, hospital or population needs "
    "its own evaluation.",
)

SplitFacts = Mapping[str, int | Mapping[str, int]]
"""{"entries": n, "subjects": n, "classes": {raw label: n}}; no classes where labels are none."""


@dataclass(frozen=True)
class Mistake:
    """A row that the model called wrongly."""

    entry_id: str
    true: str
    called: str
    score: float
    """Score of the called class, 0 to 1; of a regression, the predicted value."""
    image: SamplePicture | None = None
    """Pixels, or what `medray.modalities.pictures` has; None: nothing is shown."""


@dataclass(frozen=True)
class ScoringRun:
    """One pass over the archive: entries = those of earlier runs + pending; pending, what this run took on, is scored +
    failed + not_eligible."""

    title: str
    entries: int
    pending: int
    scored: int
    failed: int
    by_reason: Mapping[str, int] = field(default_factory=dict[str, int])
    seconds: float | None = None
    not_eligible: int = 0


class ArchiveMetrics(Protocol):
    """One archive of an evaluation."""

    @property
    def name(self) -> str: ...
    @property
    def n(self) -> int: ...
    @property
    def subjects(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, MetricValue]: ...
    @property
    def intervals(self) -> Mapping[str, tuple[float, float]]: ...


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """What a report is made of. Only the first five are needed."""

    name: str
    bundle_id: str
    model: str
    """In words: "resnet, depth 18"."""
    objective: ObjectiveSpec
    classes: Sequence[str]
    """Raw labels, as the bundle keeps them."""
    split: str = "test"
    """The split that was evaluated."""
    date: str = ""
    modality: str = ""
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    """More for the header: {"Trained": "12 epochs, 2 workers"}."""
    splits: Mapping[str, SplitFacts] = field(default_factory=dict[str, SplitFacts])
    """{split: {"entries": n, "subjects": n, "classes": {raw label: n}}}"""
    external: bool = False
    """On other archives than the one trained on: `splits` then has the archives by name."""
    seen: str = ""
    """Whether the model was trained on some of their subjects, as a sentence."""
    archives: Sequence[ArchiveMetrics] = ()
    """Metrics of each archive by itself."""
    metrics: Mapping[str, MetricValue] = field(default_factory=dict[str, MetricValue])
    """As `objective.metrics` gives them."""
    intervals: Mapping[str, tuple[float, float] | None] = field(default_factory=dict[str, tuple[float, float] | None])
    confidence: float = 0.95
    resamples: int | None = None
    beside: Mapping[str, Mapping[str, MetricValue]] = field(default_factory=dict[str, Mapping[str, MetricValue]])
    """Metrics of other models on the same rows, by their name: a baseline beside the network."""
    metric_options: MetricOptions = PLAIN
    """What some of the metrics were told."""
    thresholds: Sequence[float] = ()
    threshold_choice: Sequence[ThresholdChoice] = ()
    """As `Objective.threshold_choice` gives it; empty: not known, or not chosen."""
    scores: np.ndarray | None = None
    """(N, O)"""
    targets: np.ndarray | None = None
    """(N, T), NaN where not known"""
    history: pa.Table | Sequence[EpochMetrics] | None = None
    """As `learning_curve` takes it."""
    best_epoch: int | None = None
    mistakes: Sequence[Mistake] = ()
    mixture: Sequence[Mapping[str, str | int]] = ()
    """What the evaluated entries are, by what headers say: {fact: value …, "entries": n}."""
    measures: Mapping[str, tuple[int, float, float, float]] = field(
        default_factory=dict[str, tuple[int, float, float, float]]
    )
    """Geometry of the evaluated entries: fact to (entries, least, median, greatest)."""
    archive: Sequence[ScoringRun] = ()
    """Scoring runs of the archive, in order: the first whole one, then re-scoring."""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    limits: Sequence[str] = LIMITS
