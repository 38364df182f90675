"""What the log of scores and the audit table tell of each run, together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypedDict, cast

from medray.scores.audit import AUDIT, RunRow


class HistoryRow(TypedDict):
    """A run, or a commit that is of no run; JSON-ready. What stands in the audit table alone is None where it has nothing of
    the run."""

    what: str
    """score, nightly, compact, vacuum or forget for a run, else the log's word for it (OPTIMIZE ...)."""
    run_id: str | None
    bundle_id: str | None
    began: str
    """ISO 8601, UTC; from the audit table where it has the run."""
    ended: str | None
    commits: int
    files: int
    rows: int
    """0 of a run that has claimed and committed nothing."""
    state: str | None
    who: str | None
    seconds: float | None
    version: str | None
    code: str | None
    entries: int | None
    pending: int | None
    scored: int | None
    failed: int | None
    not_eligible: int | None
    reasons: dict[str, int] | None
    error: str | None
    backend: str | None


Commit = Mapping[str, Any]
"""A commit as the log tells it: version, timestamp (ms since 1970 UTC), operation, and what medray added."""
_Row = dict[str, Any]
"""A HistoryRow that is still filled, from the log and from the audit table."""


def history(commits: Iterable[Commit], runs: Iterable[RunRow]) -> list[HistoryRow]:
    """One row per run, one per commit that is of no run; newest first."""
    rows: dict[str | int, _Row] = {}
    for commit in sorted(commits, key=lambda commit: commit["version"]):
        _note_commit(rows, commit)
    for run in sorted(runs, key=lambda run: run["began"]):
        row = rows.setdefault(run["run_id"], dict.fromkeys(("commits", "files", "rows"), 0))
        facts: _Row = {name: value for name, value in run.items() if name not in ("files", "rows")}
        if run["what"] != "score":  # the log of scores does not have these
            facts |= {"files": run["files"] or 0, "rows": run["rows"] or 0}
        row |= facts | {"ended": run["ended"] or row.get("ended")}
    blank: _Row = dict.fromkeys(AUDIT)
    # the newest first, also among those of one second
    newest = sorted((blank | row for row in reversed(rows.values())), key=lambda row: row["began"], reverse=True)
    return cast("list[HistoryRow]", newest)


def _note_commit(rows: dict[str | int, _Row], commit: Commit) -> None:
    """Add what one commit of the log tells to the row of its run."""
    run_id, kind = commit.get("medray.run_id"), commit.get("medray.kind")
    at = datetime.fromtimestamp(commit["timestamp"] / 1000, UTC).isoformat(timespec="milliseconds")
    facts = {"what": "score", "run_id": run_id, "bundle_id": commit.get("medray.bundle_id"), "began": at}
    if not run_id:
        facts["what"] = commit["operation"]
    row = rows.setdefault(run_id or commit["version"], facts | {"commits": 0, "files": 0, "rows": 0})
    row["ended"] = at
    row["commits"] += kind not in ("claim", "upkeep", "fence")
    row["files"] += commit.get("medray.files", 0)
    row["rows"] += commit.get("medray.rows", 0)
