"""An alert: the JSON that a command reads and a webhook is sent. Counts, codes and ids of runs; nothing of an entry."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

AlertCause = Literal["failed", "coverage", "drift", "late", "missing", "test"]


class OutputLevel(BaseModel):
    """Drift of one output of a bundle."""

    model_config = ConfigDict(frozen=True)

    output: str
    level: str
    psi: float | None
    """Population stability index of tonight's scores against those of the nights before."""
    n: int
    """Scores of tonight."""


class AlertCounts(BaseModel):
    """Entries of a night, or of one of its bundles."""

    model_config = ConfigDict(frozen=True)

    pending: int = 0
    scored: int = 0
    failed: int = 0
    not_eligible: int = 0
    left: int = 0
    by_reason: dict[str, int] = {}
    """Failed samples by reason code."""


class BundleAlert(AlertCounts):
    """A bundle of the night, good or not."""

    name: str = ""
    """As the bundle was trained."""
    bundle_id: str = ""
    run_id: str = ""
    """Id of its rows in the score table."""
    causes: tuple[AlertCause, ...] = ()
    """Those of the alert that this bundle gave."""
    level: str = ""
    """Level of drift."""
    outputs: tuple[OutputLevel, ...] = ()
    """Those whose level is watch or alert."""


class Alert(AlertCounts):
    """What is sent. Keys are added by later versions and none is taken away; `format` counts changes of what one means."""

    kind: Literal["medray.alert"] = "medray.alert"
    format: int = 1
    causes: tuple[AlertCause, ...]
    text: str
    """The alert in one line, for a person."""
    name: str
    """Of the run file."""
    night: str = ""
    """Id of the nightly run; "" where none began."""
    host: str
    sent: str = ""
    """When it was made: UTC, ISO 8601."""
    began: str | None = None
    ended: str | None = None
    """None: the night goes on, or never began."""
    exit_code: int | None = None
    error: str | None = None
    """Type of the error that ended the night."""
    message: str | None = None
    """What medray says of that error; not what was found, nor where."""
    new: int = 0
    changed: int = 0
    vanished: int = 0
    not_eligible_by_reason: dict[str, int] = {}
    level: str = ""
    """The highest level of drift of any output."""
    bundles: tuple[BundleAlert, ...] = ()
    version: str = ""
    """Of medray."""


def now() -> str:
    """This moment as the keys of an alert have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
