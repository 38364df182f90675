"""What of a night a person has to know, and telling it: `[alert]` of a nightly run file, `medray alert test` and `check`.

A night is never changed by its alert: what it scored is committed, its summary is written, and its exit code stands before
anything is sent, and whatever goes wrong with sending is told beside its result.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import medray
from medray.alerts.message import Alert, AlertCause, BundleAlert, OutputLevel, now
from medray.alerts.sending import Delivery, missing_secrets, send
from medray.alerts.settings import AlertSettings, Cause
from medray.config.runs import NightlyRun, Run
from medray.durations import deadline_at, seconds_of
from medray.errors import MedrayError, RunFileError
from medray.progress import Progress, Silent
from medray.reports.nightly import BundleNight, Summary
from medray.scores import ScoreStore
from medray.scores.audit import NIGHTLY, RunRow
from medray.verbs.results import AlertRow, AlertTestResult, LastNight

CAUSES: tuple[Cause, ...] = ("failed", "coverage", "drift", "late")
"""In the order that an alert names them."""
DRIFTED: dict[str, tuple[str, ...]] = {"watch": ("watch", "alert"), "alert": ("alert",)}
"""Levels of drift that are told from each setting of `drift` on."""


# --- during a night -------------------------------------------------------------------------------------------


class Watch:
    """Tells of one night what its run file asks for: that it is late, while it is; the rest at its end."""

    def __init__(self, run: NightlyRun, night: str, progress: Progress) -> None:
        self.run, self.night, self.progress = run, night, progress
        self.settings = run.alert
        self.began = now()
        self.told: list[AlertRow] = []
        """What was sent, or was not, in order."""
        self._late_at = (
            None
            if self.settings is None or self.settings.late is None or "late" not in self.settings.on
            else deadline_at(self.settings.late, time.time())
        )
        self._deciding = threading.Lock()
        """Held while it is decided who tells that the night is late: the clock or its end."""
        self._late_told = self._ended = False
        self._clock: threading.Timer | None = None

    def start(self) -> None:
        if self.settings is None:
            return
        if problem := missing_secrets(self.settings):
            self.progress.fact("alert_not_ready", "warning", problem=problem)
            self.progress.note(f"an alert of this night could not be sent: {problem}")
        if self._late_at is not None:
            self._clock = threading.Timer(max(0.0, self._late_at - time.time()), self._tell_late)
            self._clock.daemon = True
            self._clock.start()

    def stop(self) -> None:
        """No alert is sent by the clock from here on; one that it is sending comes to its end."""
        with self._deciding:
            self._ended = True
        if self._clock is not None:
            self._clock.cancel()
            self._clock.join()

    def _tell_late(self) -> None:
        with self._deciding:
            if self._ended:
                return
            self._late_told = True
        assert self.settings is not None
        self._tell(self._alert(("late",), [f"the night is not done by {self.settings.late}, and goes on"]))

    def done(self, summary: Summary) -> list[AlertRow]:
        """Tell of a night that came to its end, where it needs a person; what was sent in all, or was not."""
        self.stop()
        if self.settings is not None:
            alert = of_night(summary, self.settings, self.late(), self.began)
            if alert is not None and not (self._late_told and alert.causes == ("late",)):
                self._tell(alert)
        return self.told

    def broken(self, error: BaseException) -> None:
        """Tell of a night that this ended."""
        self.stop()
        if self.settings is None:
            return
        causes: list[AlertCause] = []
        if "failed" in self.settings.on:
            causes.append("failed")
        if self.late() and not self._late_told:
            causes.append("late")
        if causes:
            self._tell(self._alert(causes, [_of_error(error)], error))

    def late(self) -> bool:
        return self._late_at is not None and time.time() >= self._late_at

    def _alert(self, causes: Sequence[AlertCause], words: Sequence[str], error: BaseException | None = None) -> Alert:
        facts: dict[str, Any] = {"began": self.began, "night": self.night}
        if error is not None:
            facts |= {"ended": now(), **_facts_of(error)}
        return _made(self.run.name, causes, words, facts)

    def _tell(self, alert: Alert) -> None:
        assert self.settings is not None
        for row in deliver(alert, self.settings, self.progress):
            self.told.append(row)


@contextmanager
def watched(run: NightlyRun, night: str, progress: Progress) -> Generator[Watch]:
    """In the block a night is at work; an error or a signal that ends it is told, and passes."""
    watch = Watch(run, night, progress)
    watch.start()
    try:
        yield watch
    except BaseException as error:
        watch.broken(error)
        raise
    finally:
        watch.stop()


@contextmanager
def telling(run: Run, progress: Progress) -> Generator[None]:
    """In the block a run is made ready (its engine is opened): of a night an error or a signal that ends that is told."""
    if not isinstance(run, NightlyRun):
        yield
        return
    try:
        yield
    except BaseException as error:
        Watch(run, "", progress).broken(error)
        raise


def tell_refused(path: Path, overrides: Sequence[str], error: MedrayError) -> list[AlertRow]:
    """Tell that a nightly run file is refused, by what its [alert] says, where that table is right."""
    settings = settings_of(path, overrides)
    if settings is None or "failed" not in settings.on:
        return []
    return deliver(_made(path.stem, ("failed",), [_of_error(error)], _facts_of(error)), settings, Silent())


def settings_of(path: Path, overrides: Sequence[str]) -> AlertSettings | None:
    """[alert] of a run file whose other tables may be wrong; None where there is none, or it is wrong itself."""
    from medray.config import toml

    try:
        file = toml.read(path)
        toml.override(file, list(overrides))
        table = file.settings.get("alert")
        return None if table is None else AlertSettings.model_validate(table)
    except (MedrayError, ValueError):
        return None


def deliver(alert: Alert, settings: AlertSettings, progress: Progress) -> list[AlertRow]:
    """Send an alert, and say what became of it. Raises nothing: the night that it is of is done, or has its own error."""
    try:
        deliveries = send(alert, settings)
    except KeyboardInterrupt:
        problem = "a signal came while it was sent"
        deliveries = [Delivery(way, problem) for way in _ways(settings)]
    except Exception as error:  # a fault of ours must not take the place of what the night came to
        deliveries = [Delivery(way, f"{type(error).__name__} in medray") for way in _ways(settings)]
    causes = ", ".join(alert.causes)
    rows: list[AlertRow] = []
    for way, problem in deliveries:
        rows.append({"way": way, "causes": causes, "sent": problem is None, "problem": problem})
        if problem is None:
            progress.fact("alert", "warning", way=way, causes=causes)
            progress.note(f"alert by {way}: {alert.text}")
        else:
            progress.fact("alert_not_sent", "error", way=way, causes=causes, problem=problem)
            progress.note(f"the alert by {way} was NOT sent: {problem}. It said: {alert.text}")
    return rows


def _ways(settings: AlertSettings) -> list[Any]:
    return [*(["command"] if settings.command else []), *(["webhook"] if settings.has_webhook else [])]


# --- what deserves one ----------------------------------------------------------------------------------------


def of_night(summary: Summary, settings: AlertSettings, late: bool, began: str) -> Alert | None:
    """The alert of a night that came to its end; None where it needs nobody."""
    words: list[str] = []
    causes: set[AlertCause] = set()
    bundles: list[BundleAlert] = []
    failed = summary.exit_code in (1, 2) or "error" in summary.housekeeping
    if failed:
        causes.add("failed")
        words += _failures(summary)
    arrived = summary.new + summary.changed
    few = settings.least_new and arrived < settings.least_new and not failed
    if few:
        causes.add("coverage")
        words.append(f"{arrived:,} entries are new or changed, fewer than {settings.least_new:,}")
    for night in summary.bundles:
        uncovered, drifted = _uncovered(night, settings, summary.max_failed), _drifted(night, settings)
        found = {"failed": _has_failed(night), "coverage": bool(uncovered), "drift": bool(drifted)}
        own: list[AlertCause] = [cause for cause in CAUSES if found.get(cause) and cause in settings.on]
        causes |= set(own)
        name = night.name or night.bundle_id or "a bundle"
        if "coverage" in own:
            words += [f"{name}: {each}" for each in uncovered]
        if "drift" in own:
            words += [f"{name}: scores of {each.output} have drifted (PSI {each.psi:.2f})" for each in drifted]
        bundles.append(_bundle(night, own))
    if late:
        causes.add("late")
        words.append(f"the night was done after {settings.late}")
    told: list[AlertCause] = [cause for cause in CAUSES if cause in causes and cause in settings.on]
    if not told:
        return None
    counts = ("pending", "scored", "failed", "not_eligible", "left", "new", "changed", "vanished", "level", "night")
    facts = {name: getattr(summary, name) for name in counts}
    facts |= {name: getattr(summary, name) for name in ("by_reason", "not_eligible_by_reason", "ended", "exit_code")}
    return _made(summary.name, told, words, facts | {"bundles": bundles, "began": began})


def _failures(summary: Summary) -> list[str]:
    errors = sum(1 for night in summary.bundles if night.error is not None)
    away = max((night.folders_away for night in summary.bundles), default=0)
    lost = sum(night.storage_away for night in summary.bundles)
    said = [
        (errors, f"{errors} of {len(summary.bundles)} bundles met a fault"),
        (any(night.stopped == "archive" for night in summary.bundles), "the archive was no longer there"),
        (away, f"storage of {away:,} folders was away"),
        (lost, f"{lost:,} entries failed because their storage was away"),
        ("error" in summary.housekeeping, "housekeeping met a fault"),
    ]
    return [words for true, words in said if true] or [f"exit code {summary.exit_code}"]


def _has_failed(night: BundleNight) -> bool:
    return bool(night.error is not None or night.stopped == "archive" or night.folders_away or night.storage_away)


def _uncovered(night: BundleNight, settings: AlertSettings, max_failed: float) -> list[str]:
    """What is too little, or too much, of what a bundle was to score; nothing of one that met a fault, which is told."""
    if night.error is not None:
        return []
    asked = night.pending - night.not_eligible
    most_failed = max_failed if settings.most_failed is None else settings.most_failed
    found: list[str] = []
    if night.scored < settings.least_scored * asked:
        found.append(f"{night.scored:,} of {asked:,} pending entries are scored, less than {settings.least_scored:.0%}")
    too_many = night.too_many if settings.most_failed is None else night.failed > most_failed * asked
    if too_many:
        found.append(f"{night.failed:,} of {asked:,} entries failed, more than {most_failed:.3g} of them may")
    if night.not_eligible > settings.most_not_eligible * night.pending:
        found.append(
            f"{night.not_eligible:,} of {night.pending:,} entries are not eligible, more than "
            f"{settings.most_not_eligible:.3g} of them may be"
        )
    return found


def _drifted(night: BundleNight, settings: AlertSettings) -> list[OutputLevel]:
    return [
        OutputLevel(output=each["output"], level=each["level"], psi=each["psi"], n=each["n"])
        for each in night.outputs
        if each["level"] in DRIFTED[settings.drift]
    ]


def _bundle(night: BundleNight, causes: Sequence[AlertCause]) -> BundleAlert:
    names = ("name", "bundle_id", "run_id", "pending", "scored", "failed", "not_eligible", "left", "by_reason", "level")
    outputs = [
        OutputLevel(output=each["output"], level=each["level"], psi=each["psi"], n=each["n"])
        for each in night.outputs
        if each["level"] in DRIFTED["watch"]
    ]
    facts: dict[str, Any] = {name: getattr(night, name) for name in names}
    return BundleAlert(**facts, causes=tuple(causes), outputs=tuple(outputs))


def _made(name: str, causes: Sequence[AlertCause], words: Sequence[str], facts: Mapping[str, Any]) -> Alert:
    text = f"medray {name}: " + "; ".join(words)
    whole = {"causes": tuple(causes), "text": text, "name": name, "host": socket.gethostname(), "sent": now()}
    return Alert.model_validate({**whole, "version": medray.__version__, **facts})


def _of_error(error: BaseException) -> str:
    if isinstance(error, RunFileError):  # its message quotes the run file, places of the archive among that
        return "the run file is refused"
    if isinstance(error, MedrayError):
        return f"the night ended with {type(error).__name__}: {error.what}"
    if isinstance(error, KeyboardInterrupt):
        return "the night was stopped by a signal; what it had committed stays"
    return f"the night ended with {type(error).__name__}"


def _facts_of(error: BaseException) -> dict[str, Any]:
    message = error.what if isinstance(error, MedrayError) and not isinstance(error, RunFileError) else None
    code = error.exit_code if isinstance(error, MedrayError) else None
    return {"error": type(error).__name__, "message": message, "exit_code": code}


# --- the verbs ------------------------------------------------------------------------------------------------


def try_alert(run: NightlyRun, progress: Progress | None = None) -> AlertTestResult:
    """Send a trial alert by every way of the run file. Raises RunFileError where it has none."""
    settings = _asked(run)
    alert = _made(run.name, ("test",), ["a trial alert; nothing is wrong"], {})
    return AlertTestResult(alerts=deliver(alert, settings, progress or Silent()))


def check_night(run: NightlyRun, within: str | None = None, progress: Progress | None = None) -> LastNight:
    """Whether a night of the run's store has ended within the time that `[alert] missing`, or `within`, says; where none has, an
    alert is sent. For another scheduler than that of the nights, and another machine.

    Raises RunFileError where the run file has no [alert] or `within` is no duration; StoreError, MachineError where the store
    cannot be read: that is told, too.
    """
    settings, progress = _asked(run), progress or Silent()
    within = within or settings.missing
    try:
        longest = seconds_of(within)
    except ValueError as error:
        raise RunFileError(str(error), where="--within") from None
    try:
        rows = ScoreStore.open(run.store_uri).runs()
    except MedrayError as error:
        words = [f"whether a night has ended cannot be seen: {error.what}"]
        deliver(_made(run.name, ("missing",), words, _facts_of(error)), settings, progress)
        raise
    nights, last = last_night(rows)
    hours = None if last is None else (datetime.now(UTC) - _moment(last)).total_seconds() / 3600
    missing = hours is None or hours * 3600 > longest
    since = [row for row in nights if last is None or row["began"] > last["began"]]
    told: list[AlertRow] = []
    if missing:
        words = ["no night has ever ended" if hours is None else f"the last night ended {hours:.1f} hours ago"]
        if since:
            states = ", ".join(sorted({row["state"] for row in since}))
            words.append(f"{len(since)} have begun since ({states})")
        words.append(f"one within {within} is asked for")
        facts = {} if last is None else {"night": last["run_id"], "began": last["began"], "ended": last["ended"]}
        told = deliver(_made(run.name, ("missing",), ["; ".join(words)], facts), settings, progress)
    return LastNight(
        store=run.store_uri,
        night=last and last["run_id"],
        ended=last and last["ended"],
        hours=hours,
        within=within,
        missing=missing,
        begun_since=len(since),
        alerts=told,
    )


def last_night(rows: Sequence[RunRow]) -> tuple[list[RunRow], RunRow | None]:
    """(nights, the last that came to its end) of the audit table, newest first. Of a store whose nights were by a version that did
    not note them, its scoring runs."""
    nights = [row for row in rows if row["what"] == NIGHTLY] or [row for row in rows if row["what"] == "score"]
    ended = [row for row in nights if row["state"] == "done" and row["ended"]]
    return nights, max(ended, key=_moment, default=None)


def _moment(row: RunRow) -> datetime:
    assert row["ended"] is not None
    return datetime.fromisoformat(row["ended"])


def _asked(run: NightlyRun) -> AlertSettings:
    if run.alert is None:
        raise RunFileError(
            "the run file has no [alert], so nobody is told",
            where=run.name,
            expected="an [alert] table with a command or a webhook",
            do="docs/nightly.md has one",
        )
    return run.alert
