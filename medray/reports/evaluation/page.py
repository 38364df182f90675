"""The page of an evaluation: its head, and its sections in their order."""

from __future__ import annotations

from collections.abc import Sequence

from medray.learning.metrics import metric_text, scalar
from medray.reports.evaluation.data import archive, data, entries, split_count
from medray.reports.evaluation.facts import ReportFacts, SplitFacts
from medray.reports.evaluation.results import breakdown, by_archive, charts, interval, metrics, mistakes, training
from medray.reports.page import rendered


def write_report(facts: ReportFacts) -> str:
    """One self-contained HTML page: styles and pictures are in it, and it loads nothing. Same facts, same text."""
    names = facts.objective.display(facts.classes)
    sections = (
        metrics(facts),
        by_archive(facts),
        breakdown(facts),
        charts(facts, names),
        mistakes(facts),
        training(facts),
        data(facts, names),
        entries(facts),
        archive(facts),
    )
    evaluated = "the data here" if facts.external else f"the {facts.split} split"
    return rendered(
        "report.html.j2",
        f=facts,
        facts=_header(facts, names),
        heads=_heads(facts),
        decision=facts.objective.decision(names, facts.thresholds, facts.threshold_choice, evaluated),
        sections=[section for section in sections if section is not None],
        versions=", ".join(f"{name} {version}" for name, version in facts.versions.items()),
    )


def _header(facts: ReportFacts, names: Sequence[str]) -> list[tuple[str, str]]:
    evaluated: SplitFacts = facts.splits.get(facts.split, {})
    if facts.external:
        evaluated = {
            name: sum(split_count(each, name) for each in facts.splits.values()) for name in ("entries", "subjects")
        }
    listed = f": {', '.join(names)}" if len(names) <= 6 else f", {len(names)} outputs"
    rows = [
        ("Bundle", facts.bundle_id),
        ("Model", facts.model),
        ("Input", facts.modality),
        ("Objective", f"{facts.objective.kind}{listed}"),
        ("Evaluated", _counted(evaluated)),
        *facts.facts.items(),
    ]
    return [(term, value) for term, value in rows if value]


def _counted(split: SplitFacts) -> str:
    return f"{split_count(split, 'entries'):,} entries of {split_count(split, 'subjects'):,} subjects" if split else ""


def _heads(facts: ReportFacts) -> list[tuple[str, str, str]]:
    """The numbers to see first: (title, value, interval)."""
    objective = facts.objective
    lead = f"{facts.confidence:.0%}: "
    return [
        (objective.metric(name).title, metric_text(scalar(facts.metrics, name)), interval(facts.intervals, name, lead))
        for name in objective.headline()
        if name in facts.metrics
    ]
