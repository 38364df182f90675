"""The summary of a night: the JSON file, and all that its page shows. No ids of entries, no patient data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from medray.scores.drift import OutputDrift
from medray.scores.nights import NightBefore

LEVELS = ("too few", "none", "watch", "alert")
"""Levels of drift, in rising order."""


class BundleNight(BaseModel):
    """What one bundle did. With `error`, the facts that it did not come to are at their defaults."""

    model_config = ConfigDict(frozen=True)

    bundle: str
    """Folder of the bundle, as the run file has it."""
    name: str = ""
    """As the bundle was trained."""
    bundle_id: str = ""
    run_id: str = ""
    """Id of its rows in the score table."""
    error: str | None = None
    """Why it did not get to its end; what it had committed stays."""
    entries: int = 0
    """In the archive, as this bundle reads it."""
    new: int = 0
    """Entries that the index before did not have."""
    changed: int = 0
    """Entries whose content is another than at the index before."""
    vanished: int = 0
    """Entries of the index before that are no longer there."""
    linked: int = 0
    """Symbolic links to folders, which are not followed."""
    pending: int = 0
    """Without a score at their present content: scored + failed + not_eligible + left."""
    scored: int = 0
    failed: int = 0
    not_eligible: int = 0
    """The model is not asked about them: by a rule, or because nothing is there to score."""
    left: int = 0
    folders_away: int = 0
    """Folders whose storage fails: what lay there at the last index is taken to lie there still; the exit code is 1."""
    storage_away: int = 0
    """Failed entries whose storage was away; the exit code is then 1."""
    retired: int = 0
    """Entries of the store whose files are there and hold them no more: their rows are current no longer."""
    stopped: Literal["deadline", "limit", "archive"] | None = None
    """Why entries are left."""
    samples: int = 0
    failed_samples: int = 0
    too_many: bool = False
    """More failed than the run file's `max_failed` allows: the exit code is 3."""
    by_reason: dict[str, int] = {}
    """Failed samples."""
    not_eligible_samples: int = 0
    not_eligible_by_reason: dict[str, int] = {}
    """Samples that the model is not asked about."""
    flagged: int = 0
    """Eligible entries of the archive with a number outside of what the bundle was trained on."""
    outside: dict[str, int] = {}
    """How many of them by that number."""
    outside_read: dict[str, int] = {}
    """Samples scored tonight by a number outside of it that only reading tells (grey values)."""
    together: int = 1
    """Bundles that were scored in one pass over the archive, this one included: seconds, stages, worker_seconds and slowest are of
    the pass."""
    seconds: float = 0.0
    entries_per_second: float = 0.0
    stages: dict[str, float] = {}
    """Seconds, one after the other: index, pending, scoring."""
    worker_seconds: dict[str, float] = {}
    """Seconds inside workers, all together: read, score, write."""
    slowest: list[dict[str, int | float | str]] = []
    """{key_hi (as in the score table), seconds, together}: as `medray score` tells them."""
    outputs: list[OutputDrift] = []
    """Tonight's scores against the reference, as medray.drift.compared tells them: n, psi, level, quantiles …"""
    nights: list[NightBefore] = []
    """Runs before this one that scored anything, oldest first, at most 30: {run_id, began, entries, failed}. They are
    the reference."""
    made_with: dict[str, str] = {}
    """Library versions that the bundle was trained with."""

    @property
    def level(self) -> str:
        """The highest of its outputs; "" where nothing was scored."""
        return max((each["level"] for each in self.outputs), key=LEVELS.index, default="")

    @property
    def failed_fraction(self) -> float | None:
        done = self.scored + self.failed
        return self.failed / done if done else None


class Summary(BaseModel):
    """A night, whole. `pending`, `scored`, `failed`, `not_eligible`, `left` and the reasons are sums over bundles; `entries`, `new`,
    `changed` and `vanished` are those of the bundle that sees most, since all look at one archive."""

    model_config = ConfigDict(frozen=True)

    night: str
    """Id of the nightly run: its start (UTC), and 8 hex digits."""
    name: str
    archive: str
    store: str
    host: str
    began: str
    """UTC, ISO 8601."""
    ended: str
    seconds: float
    deadline: str | None
    """Local time of the host, ISO 8601; none: no deadline was set."""
    exit_code: int
    max_failed: float
    """Largest fraction of a bundle's entries, and of their samples, that may fail."""
    level: str
    """The highest level of drift of any output: alert, watch, none, too few; "" where nothing was scored."""
    entries: int
    new: int
    changed: int
    vanished: int
    pending: int
    scored: int
    failed: int
    not_eligible: int = 0
    left: int
    by_reason: dict[str, int]
    not_eligible_by_reason: dict[str, int] = {}
    entries_per_second: float
    """Entries scored, failed and not eligible over the seconds of scoring."""
    stages: dict[str, float]
    """Seconds of the night, one after the other: index, pending, scoring, reading of earlier scores, housekeeping."""
    housekeeping: dict[str, object]
    """What it did to the store, or {skipped: why}."""
    bundles: list[BundleNight]
    versions: dict[str, str]
    """Versions of the libraries that scored tonight."""
