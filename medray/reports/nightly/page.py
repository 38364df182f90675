"""The morning page: one self-contained HTML page of a night's summary, in the look of the evaluation report.

It holds nothing but the summary: no ids of entries, no patient data. Same summary, same text.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medray.errors import REASONS
from medray.learning.metrics import NONE
from medray.learning.rates import wilson
from medray.reports.nightly.pictures import distribution, nights
from medray.reports.nightly.summary import LEVELS, BundleNight, Summary
from medray.reports.nightly.words import LEVEL_WORDS, duration, moment, nights_said, share
from medray.reports.numbers import score_text
from medray.reports.page import Section, Table, embedded, rendered
from medray.scores.drift import ALERT, NEEDED, WATCH, OutputDrift
from medray.scores.nights import NightBefore

SHOWN = 12
"""Outputs with a picture: those that have drifted most."""

STOPPED = {
    "deadline": "the deadline came",
    "limit": "the limit was reached",
    "archive": "the archive was no longer there",
    None: "",
}
QUANTILE_HEADS = {"0.05": "5 %", "0.25": "25 %", "0.5": "median", "0.75": "75 %", "0.95": "95 %"}


def write_page(summary: Summary) -> str:
    """HTML text. Styles and pictures are in it, and it loads nothing."""
    order = sorted(summary.bundles, key=lambda bundle: bundle.error is None)  # faults first
    alerts = [line for bundle in order for line in _alerts(bundle, summary.max_failed)]
    sections = [_overview(summary)]
    for bundle in summary.bundles:
        sections += _bundle(bundle, alone=len(summary.bundles) == 1)
    sections.append(_times(summary))
    return rendered(
        "morning.html.j2",
        s=summary,
        alerts=alerts,
        facts=_header(summary),
        heads=_heads(summary),
        sections=sections,
        versions=", ".join(f"{name} {version}" for name, version in summary.versions.items()),
    )


def _header(summary: Summary) -> list[tuple[str, str]]:
    rows = [
        ("Archive", summary.archive),
        ("Store", summary.store),
        ("Began (UTC)", moment(summary.began)),
        ("Took", duration(summary.seconds)),
        ("Deadline (local)", moment(summary.deadline) if summary.deadline else "none"),
        ("Host", summary.host),
        ("Exit code", str(summary.exit_code)),
    ]
    return [(term, value) for term, value in rows if value]


def _heads(summary: Summary) -> list[tuple[str, str, str]]:
    """The numbers to see first: (title, value, note)."""
    done = summary.scored + summary.failed
    came = f"{summary.changed:,} changed, {summary.vanished:,} vanished"
    failed = f"{share(summary.failed / done)} of {done:,}" if done else ""
    left = next((STOPPED[bundle.stopped] for bundle in summary.bundles if bundle.left), "")
    speed = f"{summary.entries_per_second:,.1f} entries/s" if done else "nothing was pending"
    return [
        ("New", f"{summary.new:,}", came),
        ("Scored", f"{summary.scored:,}", speed),
        ("Failed", f"{summary.failed:,}", failed),
        ("Not eligible", f"{summary.not_eligible:,}", "the model is not asked about them"),
        ("Left", f"{summary.left:,}", left),
        ("Drift", LEVEL_WORDS[summary.level], "highest of all outputs"),
    ]


def _alerts(bundle: BundleNight, most: float) -> list[str]:
    """What a person should look at, a sentence each."""
    who = bundle.name or bundle.bundle
    alerts: list[str] = []
    if bundle.error is not None:
        alerts.append(f"{who} did not get to its end. {_one_line(bundle.error)}")
    for each in sorted(bundle.outputs, key=lambda each: -(each["psi"] or 0)):
        if each["level"] in ("alert", "watch"):
            word = "have drifted" if each["level"] == "alert" else "may be drifting"
            was, is_ = score_text(each["reference_quantiles"]["0.5"]), score_text(each["quantiles"]["0.5"])
            alerts.append(
                f"{who}: scores of {each['output']} {word} (PSI {score_text(each['psi'])}, {each['level']}): "
                f"median {was} before, {is_} tonight."
            )
    before = _failed_before(bundle)
    if bundle.too_many:
        failed = f"{share(bundle.failed_fraction or 0.0)} of the entries, {share(bundle.failed_samples / (bundle.samples - bundle.not_eligible_samples))}"
        alerts.append(f"{who}: more failed than max_failed = {share(most)} allows: {failed} of the samples.")
    if bundle.failed_fraction and before and _at_least(bundle) > max(before):
        than = f"in any of the {nights_said(len(before))}" if len(before) > 1 else "in the night"
        alerts.append(f"{who}: {share(bundle.failed_fraction)} of the entries failed, more than {than} before.")
    if bundle.storage_away:
        alerts.append(
            f"{who}: storage was away: {bundle.storage_away:,} entries could not be read, and are pending. See whether all of "
            "the archive is mounted."
        )
    if bundle.folders_away:
        alerts.append(f"{who}: storage is away: {bundle.folders_away:,} folders of the archive could not be listed.")
    if bundle.linked:
        alerts.append(f"{who}: {bundle.linked:,} links to folders are not followed: what they lead to is not scored.")
    if bundle.left:
        alerts.append(
            f"{who}: {bundle.left:,} entries are left, since {STOPPED[bundle.stopped] or 'it stopped early'}."
        )
    return alerts


def _one_line(error: str) -> str:
    return "; ".join(line.strip() for line in error.splitlines())


def _at_least(bundle: BundleNight) -> float:
    """Lower end of the 95 % interval of tonight's failed fraction: one failure of few is no news."""
    done = np.array([bundle.scored + bundle.failed])
    return float(wilson(np.array([bundle.failed]) / done, done)[0][0])


def _failed_before(bundle: BundleNight) -> list[float]:
    return [run["failed"] / run["entries"] for run in bundle.nights]


def _overview(summary: Summary) -> Section:
    columns = [
        "Bundle",
        "Entries",
        "New",
        "Changed",
        "Vanished",
        "Pending",
        "Scored",
        "Failed",
        "Not eligible",
        "Left",
        "Drift",
    ]
    rows = [
        _row(bundle.name or bundle.bundle, bundle, bundle.level if bundle.error is None else "stopped")
        for bundle in summary.bundles
    ]
    if len(summary.bundles) > 1:
        rows.append(_row("in all", summary, summary.level))
    lines = ["New, changed and vanished: since the index before. Pending: without a score at their present content."]
    if retired := sum(bundle.retired for bundle in summary.bundles):
        lines.append(f"Retired: {retired:,} entries that their files hold no more; their scores are not current.")
    return Section("What came in", lines, [Table(columns, rows, frozenset(columns[1:-1]))])


def _row(name: str, of: BundleNight | Summary, level: str) -> dict[str, str]:
    counted = ("entries", "new", "changed", "vanished", "pending", "scored", "failed", "not_eligible", "left")
    counts = {each.capitalize().replace("_", " "): f"{getattr(of, each):,}" for each in counted}
    return {"Bundle": name, **counts, "Drift": LEVEL_WORDS.get(level, level)}


def _bundle(bundle: BundleNight, *, alone: bool) -> list[Section]:
    lead = "" if alone else f"{bundle.name or bundle.bundle}: "

    def title(text: str) -> str:
        return lead + text if lead else text.capitalize()

    sections = [_drift(bundle, title("scores")), _failures(bundle, title("failures")), _nights(bundle, title("nights"))]
    return [section for section in (*sections, _slowest(bundle, title("slowest entries"))) if section is not None]


def _drift(bundle: BundleNight, title: str) -> Section | None:
    if not bundle.outputs:
        line = (
            "Nothing was scored tonight."
            if bundle.error is None
            else f"It did not get to its end. {_one_line(bundle.error)}"
        )
        return Section(title, [line])
    columns = ["Output", "Night", "Scores", *QUANTILE_HEADS.values(), "PSI", "Drift"]
    rows: list[dict[str, str]] = []
    order = sorted(bundle.outputs, key=lambda each: (-LEVELS.index(each["level"]), -(each["psi"] or 0)))
    for each in order:
        for night, count, quantiles in (
            ("tonight", each["n"], each["quantiles"]),
            ("before", each["reference_n"], each["reference_quantiles"]),
        ):
            first = night == "tonight"
            row = {"Output": each["output"] if first else "", "Night": night, "Scores": f"{count:,}"}
            row |= {head: score_text(quantiles[key]) for key, head in QUANTILE_HEADS.items()}
            rows.append(row | {"PSI": score_text(each["psi"]) if first else "", "Drift": _level(each) if first else ""})
    reference = f"the {nights_said(len(bundle.nights))} before that scored anything" if bundle.nights else "none yet"
    lines = [
        f"Before: {reference}. PSI, the population stability index, compares tonight with them in ten bins, their "
        f"deciles: below {WATCH} no drift, up to {ALERT} watch, above it alert (Siddiqi 2006).",
    ]
    if any(each["level"] == "too few" for each in order):
        lines.append(
            f"Too few: with N scores tonight and M before, N M / (N + M) has to reach {NEEDED}. With fewer, chance alone "
            f"passes {WATCH} in more than one night of 100 (Yurdakul 2018)."
        )
    if len(order) > SHOWN:
        lines.append(f"Pictures of the {SHOWN} outputs that have changed most, of {len(order)}.")
    drawn = [embedded(distribution(each)) for each in order[:SHOWN]]
    return Section(title, lines, [Table(columns, rows, frozenset(columns[2:-1]))], drawn)


def _level(output: OutputDrift) -> str:
    if output["level"] != "too few":
        return LEVEL_WORDS[output["level"]]
    return f"too few ({output['enough']['found']:,} of {output['enough']['needed']})"


def _failures(bundle: BundleNight, title: str) -> Section | None:
    before = sorted(_failed_before(bundle))
    if bundle.failed_fraction is None and not (bundle.not_eligible or bundle.flagged or bundle.outside_read):
        return None
    lines = [f"{share(bundle.failed_fraction or 0.0)} of the entries failed tonight."]
    if bundle.not_eligible:
        lines.append(f"{bundle.not_eligible:,} entries are not eligible, and are no failures.")
    if bundle.flagged:
        numbers = ", ".join(f"{name} ({count:,})" for name, count in bundle.outside.items())
        lines.append(
            f"{bundle.flagged:,} entries of the archive lie outside of what the model was trained on, by {numbers}: they are "
            "scored, and the facts of their rows say how far outside."
        )
    if bundle.outside_read:
        numbers = ", ".join(f"{name} ({count:,})" for name, count in bundle.outside_read.items())
        lines.append(
            f"Samples scored tonight that lie outside of what the model was trained on when they are read: {numbers}."
        )
    if len(before) == 1:
        lines[0] += f" In the night before: {share(before[0])}."
    elif before:
        spread = f"{share(float(np.median(before)))} in the median, {share(before[-1])} at most"
        lines[0] += f" In the {nights_said(len(before))} before: {spread}."
    rows = [
        {"Reason": reason, "Samples": f"{count:,}", "Meaning": REASONS.get(reason, "")}
        for counts in (bundle.by_reason, bundle.not_eligible_by_reason)
        for reason, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    return Section(
        title, lines, [Table(["Reason", "Samples", "Meaning"], rows, frozenset(["Samples"]))] if rows else []
    )


def _nights(bundle: BundleNight, title: str) -> Section | None:
    if not bundle.nights or bundle.failed_fraction is None:
        return None
    began = bundle.run_id[:4] + "-" + bundle.run_id[4:6] + "-" + bundle.run_id[6:8]
    entries = bundle.scored + bundle.failed
    tonight: NightBefore = {"run_id": bundle.run_id, "began": began, "entries": entries, "failed": bundle.failed}
    return Section(title, figures=[embedded(nights([*bundle.nights, tonight]))])


def _slowest(bundle: BundleNight, title: str) -> Section | None:
    if not bundle.slowest:
        return None
    rows = [
        {"key_hi": str(row["key_hi"]), "Time": duration(float(row["seconds"])), "Read together": f"{row['together']:,}"}
        for row in bundle.slowest
    ]
    line = (
        "Time to read one. Entries are read many at a time and timed together: the key is of the first of them. Who "
        "may read the score table finds it there by key_hi."
    )
    return Section(title, [line], [Table(list(rows[0]), rows, frozenset(["Time", "Read together"]))])


def _times(summary: Summary) -> Section:
    tables = [_timed("Stage", "Seconds", summary.stages)]
    inside: dict[str, float] = {}
    for bundle in summary.bundles:
        for name, seconds in bundle.worker_seconds.items():  # of all bundles of its pass
            inside[name] = inside.get(name, 0.0) + seconds / bundle.together
    if inside:
        tables.append(_timed("Inside workers", "Seconds, all workers", inside))
    done = {name: value for name, value in summary.housekeeping.items() if value is not None}
    housekeeping = "; ".join(f"{name.replace('_', ' ')}: {_counted(value)}" for name, value in done.items()) or "none"
    lines = [f"Housekeeping: {housekeeping}."]
    for bundle in summary.bundles:
        if bundle.bundle_id:
            made = ", ".join(f"{name} {version}" for name, version in bundle.made_with.items())
            passed = f"; scored in one pass with {bundle.together - 1} more" if bundle.together > 1 else ""
            lines.append(
                f"{bundle.name}: bundle {bundle.bundle_id}, run {bundle.run_id or NONE}{passed}; made with {made}."
            )
    return Section("Time and versions", lines, tables)


def _counted(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}" if isinstance(value, float) else str(value)


def _timed(head: str, unit: str, seconds: Mapping[str, float]) -> Table:
    rows = [{head: name, unit: f"{value:,.1f}"} for name, value in seconds.items()]
    return Table([head, unit], rows, frozenset([unit]))
