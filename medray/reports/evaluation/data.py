"""Sections of the report on what was evaluated and scored: splits, kinds of entries, runs over the archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medray.errors import REASONS
from medray.learning.metrics import NONE
from medray.reports.evaluation.facts import ReportFacts, SplitFacts
from medray.reports.page import Section, Table, turned


def split_count(split: SplitFacts, name: str) -> int:
    """Its entries or subjects. Raises TypeError for what is no count."""
    value = split[name]
    if isinstance(value, Mapping):
        raise TypeError(f"{name} of a split is no number")
    return value


def _classes(split: SplitFacts) -> Mapping[str, int]:
    """Entries of each class; {} where labels are no classes."""
    value = split.get("classes")
    return value if isinstance(value, Mapping) else {}


def data(facts: ReportFacts, names: Sequence[str]) -> Section | None:
    """Entries, subjects and classes of each split, or of each archive."""
    if not facts.splits:
        return None
    shown = dict(zip(facts.classes, names, strict=True))
    what = "Archive" if facts.external else "Split"
    rows: list[dict[str, str]] = []
    columns = [what, "Entries", "Subjects"]
    for split, counted in facts.splits.items():
        count = split_count(counted, "entries")
        row = {what: split, "Entries": f"{count:,}", "Subjects": f"{split_count(counted, 'subjects'):,}"}
        for raw, of_class in _classes(counted).items():
            part = f" ({of_class / count:.0%})" if count else ""
            name = shown.get(raw, raw)
            row[f"{name} (class)" if name in columns[:3] else name] = f"{of_class:,}{part}"
        columns += [name for name in row if name not in columns]
        rows.append(row)
    many = len(columns) > 12  # then a row for each class and a column for each split
    table = Table(columns, rows, frozenset(columns[1:]))
    line = "Split by subject: all entries of one subject are in one split."
    if facts.external:
        line = f"{facts.seen} Nothing was fitted: threshold, calibration and preprocessing are the bundle's.".strip()
    return Section("Data", [line], [turned(table, NONE) if many else table])


def entries(facts: ReportFacts) -> Section | None:
    """What was evaluated, by the headers of its files."""
    if not facts.mixture and not facts.measures:
        return None
    tables: list[Table] = []
    if facts.mixture:
        columns = [*dict.fromkeys(name for kind in facts.mixture for name in kind if name != "entries"), "Entries"]
        rows = [
            {column: str(kind.get(column, NONE)) for column in columns} | {"Entries": f"{kind['entries']:,}"}
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


def archive(facts: ReportFacts) -> Section | None:
    """Runs over the archive, and why entries failed in them."""
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
