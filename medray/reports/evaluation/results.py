"""Sections of the report on what the model does: metrics, charts, mistakes, training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from medray.learning.metrics import NONE, metric_text, rows, scalar
from medray.reports.drawing import figure
from medray.reports.evaluation.facts import ArchiveMetrics, ReportFacts
from medray.reports.learning_curve import learning_chart
from medray.reports.page import Card, Section, Table, data_uri, embedded, sketch, thumbnail

SMALL = 96  # pixels; smaller images are shown with their pixels, not smoothed


def interval(intervals: Mapping[str, tuple[float, float] | None], name: str, lead: str = "") -> str:
    """ "0.81 to 0.93" behind `lead`; "" where a metric has no interval."""
    pair = intervals.get(name)
    return "" if pair is None else f"{lead}{metric_text(pair[0])} to {metric_text(pair[1])}"


def metrics(facts: ReportFacts) -> Section | None:
    """A row for each scalar, and how they were computed."""
    objective = facts.objective
    shown = [name for name in objective.scalar_metrics() if name in facts.metrics]
    if not shown:
        return None
    columns, numbers = ["Metric", "Value"], ["Value"]
    head = f"{facts.confidence:.0%} interval"
    if facts.intervals:
        columns, numbers = [*columns, head], [*numbers, head]
    table = [
        {
            "Metric": objective.metric(name).title,
            "Value": metric_text(scalar(facts.metrics, name)),
            head: interval(facts.intervals, name) or NONE,
            "Meaning": objective.metric(name).meaning,
        }
        | {other: metric_text(scalar(metrics, name)) for other, metrics in facts.beside.items()}
        for name in shown
    ]
    columns += [*facts.beside, "Meaning"]
    return Section("Metrics", _notes(facts, shown), [Table(columns, table, frozenset([*numbers, *facts.beside]))])


def _notes(facts: ReportFacts, shown: Sequence[str]) -> list[str]:
    """Sentences on how the metrics shown were computed."""
    objective, options = facts.objective, facts.metric_options
    lines: list[str] = []
    if note := objective.metric_note(facts.classes):
        lines.append(note)
    if facts.intervals:
        at_threshold = ", at the same threshold" if facts.thresholds else ""
        times = f" ({facts.resamples:,} times)" if facts.resamples else ""
        lines.append(
            f"Intervals: whole subjects drawn again with replacement{times}{at_threshold}; draws in which a figure is not defined "
            "are left out of it."
        )
    before = facts.metrics.get("before_calibration")
    if isinstance(before, dict) and before:
        values = {name: value for name, value in before.items() if not isinstance(value, dict)}
        listed = " and ".join(f"{objective.metric(name).title} {metric_text(value)}" for name, value in values.items())
        lines.append(f"Scores are calibrated on the validation split; the network's own had {listed}.")
    if "f_beta" in shown:
        lines.append(f"F-beta is with beta = {options.beta:g}.")
    if "ppv_at_prevalence" in shown:
        lines.append(
            f"PPV and NPV are also for a prevalence of {options.prevalence:.3g}, by Bayes from sensitivity and specificity."
        )
    if any(facts.metrics[name] is None for name in shown):
        lines.append(
            f"{NONE} is not defined on these samples: a class has none, or a ratio would be divided by nothing."
        )
    return lines


def by_archive(facts: ReportFacts) -> Section | None:
    """A row for each metric and a column for each archive: with their intervals, rows for archives would be too wide."""
    if not facts.archives:
        return None
    names = [name for name in facts.objective.scalar_metrics() if name in facts.archives[0].metrics]
    values: dict[str, Callable[[ArchiveMetrics], str]] = {"Samples": _samples, "Subjects": _subjects}
    values |= {facts.objective.metric(name).title: partial(_with_interval, name) for name in names}
    table = [{"Metric": title} | {each.name: value(each) for each in facts.archives} for title, value in values.items()]
    columns = ["Metric", *(each.name for each in facts.archives)]
    lines = [f"Values with their {facts.confidence:.0%} intervals." if facts.intervals else "Values."]
    return Section("By archive", lines, [Table(columns, table, frozenset(columns[1:]))])


def _samples(archive: ArchiveMetrics) -> str:
    return f"{archive.n:,}"


def _subjects(archive: ArchiveMetrics) -> str:
    return f"{archive.subjects:,}"


def _with_interval(name: str, archive: ArchiveMetrics) -> str:
    value, between = metric_text(scalar(archive.metrics, name)), interval(archive.intervals, name)
    return f"{value} ({between})" if between else value


def breakdown(facts: ReportFacts) -> Section | None:
    """A row for each class, label or output, where there are several."""
    table = facts.objective.breakdown
    parts = {} if table is None else rows(facts.metrics, table.key)
    if table is None or len(parts) < 2:
        return None
    counts = {"n": "Samples", "positives": "Positive"}
    titles = {name: counts.get(name) or facts.objective.metric(name).title for name in table.metrics}
    lines: list[dict[str, str]] = []
    for k, (name, values) in enumerate(parts.items()):
        shown = {titles[each]: values[each] for each in table.metrics if each in values}
        row = {table.of: name} | {t: f"{v:,}" if isinstance(v, int) else metric_text(v) for t, v in shown.items()}
        if len(facts.thresholds) == len(parts):
            row["Threshold"] = metric_text(facts.thresholds[k])
            if k < len(facts.threshold_choice) and (pair := facts.threshold_choice[k]["interval"]):
                row["Threshold"] += f" ({metric_text(pair[0])} to {metric_text(pair[1])})"
        lines.append(row)
    columns = list(lines[-1])
    return Section(f"By {table.of.lower()}", (), [Table(columns, lines, frozenset(columns[1:]))])


def charts(facts: ReportFacts, names: Sequence[str]) -> Section | None:
    """The charts of the objective."""
    if facts.scores is None or facts.targets is None:
        return None
    drawn = facts.objective.charts(names, facts.scores, facts.targets, facts.thresholds)
    return Section("Figures", figures=[embedded(figure(each)) for each in drawn]) if drawn else None


def training(facts: ReportFacts) -> Section | None:
    """The learning curve."""
    if facts.history is None or not len(facts.history):
        return None
    chart = learning_chart(facts.history, facts.objective, facts.best_epoch)
    return Section("Training", figures=[embedded(figure(chart))])


def mistakes(facts: ReportFacts) -> Section | None:
    """The samples that the objective finds most wrong, with their pictures."""
    if not facts.mistakes:
        return None
    cards: list[Card] = []
    for each in facts.mistakes:
        call = f"{each.called}, {metric_text(each.score)}" if each.called else metric_text(each.score)
        pixels = each.image if isinstance(each.image, np.ndarray) else None
        alt = f"True {each.true}, called {call}"
        cards.append(
            Card(
                uri=None if pixels is None else data_uri(thumbnail(pixels), "png"),
                svg=None if each.image is None or isinstance(each.image, np.ndarray) else sketch(each.image, alt),
                alt=alt,
                head=f"{'Called' if each.called else 'Predicted'} {call}",
                small=pixels is not None and max(pixels.shape) <= SMALL,
                body=f"True: {each.true}",
                entry_id=each.entry_id,
            )
        )
    note = facts.objective.mistakes_note
    return Section(facts.objective.mistakes_title, [note] if note else [], thumbs=cards)
