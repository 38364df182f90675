"""What the log of scores and the audit table tell of each run, together."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from medray.scores.audit import AUDIT


def history(commits: Iterable[dict[str, Any]], runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Newest first, JSON-ready: one row per run, one per commit that is of no run.

    {what, run_id, bundle_id, began, ended (UTC, ISO 8601), commits, files, rows} from the log: `what` is "score",
    "compact", "vacuum" or "forget" for a run, else the log's word for it (OPTIMIZE ...). A run that has claimed and
    committed nothing has 0 rows. {state, who, seconds, version, code, entries, pending, scored, failed, not_eligible, reasons,
    error}
    from the audit table, None where it has nothing of the run; its `began` and `ended` go before.
    """
    found: dict[str | int, dict[str, Any]] = {}
    for commit in sorted(commits, key=lambda commit: commit["version"]):
        _note_commit(found, commit)
    for run in sorted(runs, key=lambda run: run["began"]):
        row = found.setdefault(run["run_id"], dict.fromkeys(("commits", "files", "rows"), 0))
        facts = {name: value for name, value in run.items() if name not in ("files", "rows")}
        if run["what"] != "score":  # the log of scores does not have these
            facts |= {name: run[name] or 0 for name in ("files", "rows")}
        row |= facts | {"ended": run["ended"] or row.get("ended")}
    blank = dict.fromkeys(AUDIT)
    # the newest first, also among those of one second
    return sorted((blank | row for row in reversed(found.values())), key=lambda row: row["began"], reverse=True)


def _note_commit(found: dict[str | int, dict[str, Any]], commit: dict[str, Any]) -> None:
    """Add what one commit of the log tells to the row of its run."""
    run_id, kind = commit.get("medray.run_id"), commit.get("medray.kind")
    at = datetime.fromtimestamp(commit["timestamp"] / 1000, UTC).isoformat(timespec="milliseconds")
    facts = {"what": "score", "run_id": run_id, "bundle_id": commit.get("medray.bundle_id"), "began": at}
    if not run_id:
        facts["what"] = commit["operation"]
    row = found.setdefault(run_id or commit["version"], facts | {"commits": 0, "files": 0, "rows": 0})
    row["ended"] = at
    row["commits"] += kind not in ("claim", "upkeep", "fence")
    row["files"] += commit.get("medray.files", 0)
    row["rows"] += commit.get("medray.rows", 0)
