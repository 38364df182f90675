"""The HTML report of one evaluated bundle: one page, no other files, readable offline, on paper and in the dark.

`ReportFacts` holds what the caller knows; a section whose facts are absent is not there. Nothing here knows the
modality: the pictures of mistakes are whatever the caller gives, or none.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files as package_files
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medray.errors import REASONS
from medray.learning.metrics import MEANINGS, PLAIN, Figures
from medray.learning.objectives import ObjectiveSpec
from medray.learning.thresholds import WORDS
from medray.reports.figures import Figure, figures, learning_curve
from medray.reports.numbers import NONE, metric_text

if TYPE_CHECKING:
    import pyarrow as pa

LIMITS = (
    "Not a medical device. For research; no basis for decisions about a patient.",
    "The numbers hold for data like the evaluated split. Another scanner, laboratory, hospital or population needs "
    "its own evaluation.",
)
THUMBNAIL = 256  # pixels, the longer side at most
SMALL = 96  # pixels; smaller images are shown with their pixels, not smoothed


@dataclass(frozen=True)
class Mistake:
    """A row that the model called wrongly. `image`: uint8 (H, W) or (H, W, 3), or None."""

    entry_id: str
    true: str
    called: str
    score: float
    """Of the called class, 0 to 1; of a regression, the predicted value."""
    image: np.ndarray | None = None


@dataclass(frozen=True)
class ScoringRun:
    """One pass over the archive: entries = those of earlier runs + pending; pending, what this run took on, is scored +
    failed + not_eligible."""

    title: str
    entries: int
    pending: int
    scored: int
    failed: int
    by_reason: Mapping[str, int] = field(default_factory=dict)
    seconds: float | None = None
    not_eligible: int = 0


class ArchiveFigures(Protocol):
    """One archive of an evaluation."""

    @property
    def name(self) -> str: ...
    @property
    def n(self) -> int: ...
    @property
    def subjects(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, Any]: ...
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
    facts: Mapping[str, str] = field(default_factory=dict)
    """More for the header: {"Trained": "12 epochs, 2 workers"}."""
    splits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """{split: {"entries": n, "subjects": n, "classes": {raw label: n}}}"""
    external: bool = False
    """On other archives than the one trained on: `splits` then has the archives by name."""
    seen: str = ""
    """Whether the model was trained on some of their subjects, as a sentence."""
    archives: Sequence[ArchiveFigures] = ()
    """Metrics of each archive by itself."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """As `objective.metrics` gives them."""
    intervals: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    confidence: float = 0.95
    resamples: int | None = None
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Metrics of other models on the same rows, by their name: a baseline beside the network."""
    figures: Figures = PLAIN
    """What some of the metrics were told."""
    thresholds: Sequence[float] = ()
    threshold_choice: Sequence[Mapping[str, Any]] = ()
    """As `Objective.threshold_choice` gives it; empty: not known, or not chosen."""
    scores: np.ndarray | None = None
    """(N, O)"""
    targets: np.ndarray | None = None
    """(N, T), NaN where not known"""
    history: pa.Table | Sequence[Mapping[str, Any]] | None = None
    """As `figures.learning_curve` takes it."""
    best_epoch: int | None = None
    mistakes: Sequence[Mistake] = ()
    mixture: Sequence[Mapping[str, Any]] = ()
    """What the evaluated entries are, by what headers say: {fact: value …, "entries": n}."""
    measures: Mapping[str, tuple[int, float, float, float]] = field(default_factory=dict)
    """Geometry of the evaluated entries: fact to (entries, least, median, greatest)."""
    archive: Sequence[ScoringRun] = ()
    """Scoring runs of the archive, in order: the first whole one, then re-scoring."""
    versions: Mapping[str, str] = field(default_factory=dict)
    limits: Sequence[str] = LIMITS


@dataclass(frozen=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    numbers: frozenset[str]
    """Columns that are set to the right."""
    caption: str = ""


@dataclass(frozen=True)
class Section:
    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Mapping[str, Any]] = ()
    thumbs: Sequence[Mapping[str, Any]] = ()


def write_report(facts: ReportFacts) -> str:
    """One self-contained HTML page: styles and pictures are in it, and it loads nothing. Same facts, same text."""
    names = facts.objective.display(facts.classes)
    sections = (
        _metrics(facts),
        _by_archive(facts),
        _per_class(facts),
        _figures(facts, names),
        _mistakes(facts),
        _training(facts),
        _data(facts, names),
        _entries(facts),
        _archive(facts),
    )
    return rendered(
        "report.html.j2",
        f=facts,
        facts=_header(facts, names),
        heads=_heads(facts),
        decision=decision(facts, names),
        sections=[section for section in sections if section is not None],
        versions=", ".join(f"{name} {version}" for name, version in facts.versions.items()),
    )


def rendered(name: str, **facts: Any) -> str:
    """A page of medray's own templates; the look of all of them is in page.html.j2."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    loader = FunctionLoader(
        lambda name: package_files("medray").joinpath("reports", "templates", name).read_text(encoding="utf-8")
    )
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return pages.get_template(name).render(facts)


def decision(facts: ReportFacts, names: Sequence[str]) -> str:
    """How a score becomes a call, and how the threshold was chosen; "" where nothing is called."""
    if facts.objective.kind == "multiclass":
        return "The class with the highest probability is called."
    if facts.objective.kind == "regression" or not facts.thresholds:
        return ""
    rule = facts.objective.threshold
    if isinstance(rule, str):
        wanted = f" of {facts.objective.sensitivity_target:.0%}" if rule == "sensitivity" else ""
        data = "the data here" if facts.external else f"the {facts.split} split"
        how = f"It is {WORDS[rule]}{wanted} on the validation split; {data} had no part in the choice."
        how += _sureness(facts)
    else:
        how = "It was set in the run file."
    if facts.objective.kind == "binary":
        return f"A sample is called “{names[1]}” when its score is at least {metric_text(facts.thresholds[0])}. {how}"
    return f"A label is called present when its score is at least its threshold (below). {how.replace('It', 'Each', 1)}"


def _sureness(facts: ReportFacts) -> str:
    """The interval of a threshold that was chosen on few rows; of several outputs it stands in their table."""
    if len(facts.threshold_choice) != 1 or not facts.threshold_choice[0]["few"]:
        return ""
    choice = facts.threshold_choice[0]
    pair = choice["interval"]
    told = "most resamples of them have one class only" if pair is None else (
        f"on 95% of the resamples of these subjects it lies between {metric_text(pair[0])} and {metric_text(pair[1])}"
    )  # fmt: skip
    return f" It was chosen on few rows, {choice['positives']:,} positive and {choice['negatives']:,} negative ones: {told}."


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of an svg or png as a data: address."""
    media = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def thumbnail(image: np.ndarray) -> bytes:
    """uint8 (H, W) or (H, W, 3) to PNG bytes, at most 256 pixels on the longer side. Raises ValueError for others."""
    from PIL import Image

    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"a thumbnail is uint8 (H, W) or (H, W, 3), found {image.dtype} {image.shape}")
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    picture.save(stream, format="png")
    return stream.getvalue()


# --- the parts of the page --------------------------------------------------------------------------------------


def _header(facts: ReportFacts, names: Sequence[str]) -> list[tuple[str, str]]:
    evaluated = facts.splits.get(facts.split, {})
    if facts.external:
        counts = ("entries", "subjects")
        evaluated = {name: sum(each[name] for each in facts.splits.values()) for name in counts}
    rows = [
        ("Bundle", facts.bundle_id),
        ("Model", facts.model),
        ("Input", facts.modality),
        ("Objective", f"{facts.objective.kind}: {', '.join(names)}" if len(names) <= 6 else
         f"{facts.objective.kind}, {len(names)} outputs"),
        ("Evaluated", _counted(evaluated)),
        *facts.facts.items(),
    ]  # fmt: skip
    return [(term, value) for term, value in rows if value]


def _counted(split: Mapping[str, Any]) -> str:
    return f"{split['entries']:,} entries of {split['subjects']:,} subjects" if split else ""


def _heads(facts: ReportFacts) -> list[tuple[str, str, str]]:
    """The four numbers to see first: (title, value, interval)."""
    first = {"regression": ("mae", "rmse", "r2"), "multiclass": ("accuracy", "balanced_accuracy", "auroc", "ece")}
    shown = first.get(facts.objective.kind, ("auroc", "sensitivity", "specificity", "ece"))
    return [
        (MEANINGS[name][0], metric_text(facts.metrics[name]), _interval(facts, name, f"{facts.confidence:.0%}: "))
        for name in shown
        if name in facts.metrics
    ]


def _interval(facts: ReportFacts, name: str, lead: str = "") -> str:
    pair = facts.intervals.get(name)
    return "" if pair is None else f"{lead}{metric_text(pair[0])} to {metric_text(pair[1])}"


def _metrics(facts: ReportFacts) -> Section | None:
    shown = [name for name in facts.objective.scalar_metrics() if name in facts.metrics]
    if not shown:
        return None
    columns, numbers = ["Metric", "Value"], ["Value"]
    interval = f"{facts.confidence:.0%} interval"
    if facts.intervals:
        columns, numbers = [*columns, interval], [*numbers, interval]
    rows = []
    for name in shown:
        title, meaning = MEANINGS[name]
        others = {other: metric_text(found.get(name)) for other, found in facts.beside.items()}
        value = metric_text(facts.metrics[name])
        rows.append(
            {"Metric": title, "Value": value, interval: _interval(facts, name) or NONE, "Meaning": meaning} | others
        )
    means = {"multiclass": "classes", "multilabel": "labels", "regression": "outputs"}.get(facts.objective.kind)
    lines = []
    if means and len(facts.classes) > 1:
        but = "; accuracy, ECE and Brier score are over all samples" if means == "classes" else ""
        lines.append(f"Means over {means}, each counting the same{but}.")
    if facts.intervals:
        kept = ", at the same threshold" if facts.thresholds else ""
        times = f" ({facts.resamples:,} times)" if facts.resamples else ""
        lines.append(
            f"Intervals: whole subjects drawn again with replacement{times}{kept}; draws in which a figure is not defined "
            "are left out of it."
        )
    if before := facts.metrics.get("before_calibration"):
        said = " and ".join(f"{MEANINGS[name][0]} {metric_text(value)}" for name, value in before.items())
        lines.append(f"Scores are calibrated on the validation split; the network's own had {said}.")
    if "f_beta" in shown:
        lines.append(f"F-beta is with beta = {facts.figures.beta:g}.")
    if "ppv_at_prevalence" in shown:
        lines.append(
            f"PPV and NPV are also for a prevalence of {facts.figures.prevalence:.3g}, by Bayes from sensitivity and specificity."
        )
    if any(facts.metrics[name] is None for name in shown):
        lines.append(
            f"{NONE} is not defined on these samples: a class has none, or a ratio would be divided by nothing."
        )
    columns += [*facts.beside, "Meaning"]
    return Section("Metrics", lines, [Table(columns, rows, frozenset([*numbers, *facts.beside]))])


def _by_archive(facts: ReportFacts) -> Section | None:
    """A row for each archive: its metrics with their intervals below each other would be too wide, so a column each."""
    if not facts.archives:
        return None
    names = [name for name in facts.objective.scalar_metrics() if name in facts.archives[0].metrics]
    rows = [
        {"Metric": title, **{each.name: value(each) for each in facts.archives}}
        for title, value in (
            ("Samples", lambda each: f"{each.n:,}"),
            ("Subjects", lambda each: f"{each.subjects:,}"),
            *((MEANINGS[name][0], partial(_with_interval, name)) for name in names),
        )
    ]
    columns = ["Metric", *(each.name for each in facts.archives)]
    lines = [f"Values with their {facts.confidence:.0%} intervals." if facts.intervals else "Values."]
    return Section("By archive", lines, [Table(columns, rows, frozenset(columns[1:]))])


def _with_interval(name: str, archive: ArchiveFigures) -> str:
    pair = archive.intervals.get(name)
    value = metric_text(archive.metrics.get(name))
    return value if pair is None else f"{value} ({metric_text(pair[0])} to {metric_text(pair[1])})"


def _per_class(facts: ReportFacts) -> Section | None:
    """Multiclass, multilabel and several outputs: a row for each."""
    ones = {"per_class": "Class", "per_label": "Label", "per_output": "Output"}
    key = next((key for key in ones if key in facts.metrics), None)
    if key is None or len(facts.metrics[key]) < 2:
        return None
    one = ones[key]
    titles = {"n": "Samples", "positives": "Positive"} | {name: title for name, (title, _) in MEANINGS.items()}
    kept = ("n", "positives", "auroc", "auprc", "sensitivity", "specificity", "precision", "f1", "mae", "rmse", "r2")
    rows, columns = [], [one]
    for k, (name, found) in enumerate(facts.metrics[key].items()):
        shown = {titles[each]: found[each] for each in kept if each in found}
        row = {one: name} | {t: f"{v:,}" if isinstance(v, int) else metric_text(v) for t, v in shown.items()}
        if key == "per_label" and facts.thresholds:
            row["Threshold"] = metric_text(facts.thresholds[k])
            if k < len(facts.threshold_choice) and (pair := facts.threshold_choice[k]["interval"]):
                row["Threshold"] += f" ({metric_text(pair[0])} to {metric_text(pair[1])})"
        columns = list(row)
        rows.append(row)
    return Section(f"By {one.lower()}", (), [Table(columns, rows, frozenset(columns[1:]))])


def _figures(facts: ReportFacts, names: Sequence[str]) -> Section | None:
    if facts.scores is None or facts.targets is None:
        return None
    drawn = figures(facts.objective.kind, names, facts.scores, facts.targets, facts.thresholds)
    return Section("Figures", figures=[embedded(each) for each in drawn]) if drawn else None


def embedded(figure: Figure) -> dict[str, Any]:
    return {"title": figure.title, "caption": figure.caption, "alt": figure.alt, "wide": figure.wide,
            "uri": data_uri(figure.data, figure.format)}  # fmt: skip


def _training(facts: ReportFacts) -> Section | None:
    if facts.history is None or not len(facts.history):
        return None
    epochs = len(facts.history)
    kept = "" if facts.best_epoch is None else f"; the weights of epoch {facts.best_epoch} were kept"
    caption = f"{epochs} epochs{kept}." if epochs > 1 else "1 epoch."
    alt = f"Training and validation loss and validation metrics over {caption}"
    curve = Figure("Learning curve", caption, alt, learning_curve(facts.history, facts.best_epoch), "png", wide=True)
    return Section("Training", figures=[embedded(curve)])


def _mistakes(facts: ReportFacts) -> Section | None:
    if not facts.mistakes:
        return None
    thumbs = []
    for each in facts.mistakes:
        said = f"{each.called}, {metric_text(each.score)}" if each.called else metric_text(each.score)
        thumbs.append(
            {
                "uri": None if each.image is None else data_uri(thumbnail(each.image), "png"),
                "alt": f"True {each.true}, called {said}",
                "head": f"{'Called' if each.called else 'Predicted'} {said}",
                "small": each.image is not None and max(each.image.shape) <= SMALL,
                "body": f"True: {each.true}",
                "entry_id": each.entry_id,
            }
        )
    if facts.objective.kind == "regression":
        return Section("Largest errors", thumbs=thumbs)
    line = "The samples the model was most sure of and wrong about. Look twice: a label may be wrong, too."
    return Section("Most confident mistakes", [line], thumbs=thumbs)


def _data(facts: ReportFacts, names: Sequence[str]) -> Section | None:
    if not facts.splits:
        return None
    shown = dict(zip(facts.classes, names, strict=True))
    what = "Archive" if facts.external else "Split"
    rows, columns = [], [what, "Entries", "Subjects"]
    for split, counted in facts.splits.items():
        row: dict[str, Any] = {
            what: split,
            "Entries": f"{counted['entries']:,}",
            "Subjects": f"{counted['subjects']:,}",
        }
        for raw, count in counted.get("classes", {}).items():
            part = f" ({count / counted['entries']:.0%})" if counted["entries"] else ""
            name = shown.get(raw, str(raw))
            row[f"{name} (class)" if name in columns[:3] else name] = f"{count:,}{part}"
        columns += [name for name in row if name not in columns]
        rows.append(row)
    many = len(columns) > 12  # then a row for each class and a column for each split
    table = Table(columns, rows, frozenset(columns[1:]))
    line = "Split by subject: all entries of one subject are in one split."
    if facts.external:
        line = f"{facts.seen} Nothing was fitted: threshold, calibration and preprocessing are the bundle's.".strip()
    return Section("Data", [line], [_turned(table) if many else table])


def _entries(facts: ReportFacts) -> Section | None:
    """What was evaluated, by the headers of its files."""
    if not facts.mixture and not facts.measures:
        return None
    tables = []
    if facts.mixture:
        columns = [*dict.fromkeys(name for kind in facts.mixture for name in kind if name != "entries"), "Entries"]
        rows = [
            {column: kind.get(column, NONE) for column in columns} | {"Entries": f"{kind['entries']:,}"}
            for kind in facts.mixture
        ]
        tables.append(Table(columns, rows, frozenset(["Entries"]), "Kinds of entries"))
    if facts.measures:
        heads = ["Entries", "Least", "Median", "Greatest"]
        measured = [
            {"Fact": name, "Entries": f"{count:,}"}
            | {head: f"{value:g}" for head, value in zip(heads[1:], values, strict=True)}
            for name, (count, *values) in facts.measures.items()
        ]
        tables.append(Table(["Fact", *heads], measured, frozenset(heads), "Geometry"))
    line = "By the headers of their files; score rows keep these facts, too."
    if len(facts.mixture) > 1:
        line = "These entries are a mixture: figures are of all kinds together. " + line
    return Section("What was evaluated", [line], tables)


def _turned(table: Table) -> Table:
    """Rows for columns: the first column's values become the heads."""
    first, *rest = table.columns
    heads = [row[first] for row in table.rows]
    rows = [{"": column} | {row[first]: row.get(column, NONE) for row in table.rows} for column in rest]
    return Table(["", *heads], rows, frozenset(heads))


def _archive(facts: ReportFacts) -> Section | None:
    if not facts.archive:
        return None
    columns = ["Run", "Entries", "Pending", "Scored", "Failed", "Not eligible", "Seconds"]
    rows = [
        {
            "Run": run.title,
            "Entries": f"{run.entries:,}",
            "Pending": f"{run.pending:,}",
            "Scored": f"{run.scored:,}",
            "Failed": f"{run.failed:,}",
            "Not eligible": f"{run.not_eligible:,}",
            "Seconds": NONE if run.seconds is None else f"{run.seconds:.1f}",
        }
        for run in facts.archive
    ]
    tables = [Table(columns, rows, frozenset(columns[1:]))]
    reasons = [
        {"Run": run.title, "Reason": reason, "Failed": f"{count:,}", "Meaning": REASONS.get(reason, "")}
        for run in facts.archive
        for reason, count in sorted(run.by_reason.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    if reasons:
        tables.append(Table(["Run", "Reason", "Failed", "Meaning"], reasons, frozenset(["Failed"])))
    line = (
        "Pending is what had no score by this bundle yet, or had changed. Every pending entry is scored, failed, or not "
        "eligible: the model is not asked about it."
    )
    return Section("Archive scoring", [line], tables)
