"""Alerts of nights: by a real command and a real HTTP server on the loopback, and none of a good night."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from pydantic import ValidationError
from test_nightly import add, hold, nightly_run
from typer.testing import CliRunner
from webhook import Webhook, closed_port, webhook

from medray.alerts import sending
from medray.alerts.message import Alert
from medray.alerts.settings import AlertSettings
from medray.cli.app import app
from medray.config import runs
from medray.engines.local import LocalEngine
from medray.errors import MachineError, RunFileError, StoreError
from medray.learning import bundles
from medray.progress import Silent
from medray.reports.nightly import BundleNight, Summary
from medray.scores import ScoreStore, audit
from medray.stopping import Stopped
from medray.storage import files
from medray.verbs import alerts
from medray.verbs import nightly as nightly_module
from medray.verbs.alerts import check_night, of_night, try_alert
from medray.verbs.nightly import LOCK, nightly

KEEP = 'cat > "$0.tmp" && mv "$0.tmp" "$0"'
"""A command of a shell that keeps what it is given in the file that is its name."""


@pytest.fixture
def hook():
    with webhook() as server:
        yield server


@pytest.fixture
def archive(tmp_path):
    """Eight images and a bundle that was never trained."""
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    for number in range(8):
        toy.write_image(tmp_path / "archive" / f"{number}.dcm", number, number % 2)
    return tmp_path


def both(folder: Path, hook: Webhook, **changes: Any) -> dict[str, Any]:
    """[alert] by command and webhook."""
    return {"command": ["sh", "-c", KEEP, str(folder / "alert.json")], "webhook": hook.url, **changes}


def by_command(folder: Path) -> Any:
    return json.loads((folder / "alert.json").read_text())


def ways(result: Any) -> list[tuple[str, bool]]:
    return [(row["way"], row["sent"]) for row in result.alerts]


def the_alert(folder: Path, hook: Webhook, *causes: str) -> Any:
    """What both ways were told: one alert, the same, of these causes."""
    [sent] = hook.received
    assert sent == by_command(folder)
    assert sent["causes"] == list(causes)
    Alert.model_validate(sent)
    return sent


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


# --- what is told, and what is not ------------------------------------------------------------------------------


def test_a_good_night_tells_nobody(archive, hook):
    result = nightly(nightly_run(archive, alert=both(archive, hook, late="1h")), LocalEngine())
    assert (result.scored, result.alerts, result.exit_code(0.01)) == (8, [], 0)
    nothing_new = nightly(nightly_run(archive, alert=both(archive, hook)), LocalEngine())
    assert (nothing_new.pending, nothing_new.alerts) == (0, [])
    assert hook.received == [] and not (archive / "alert.json").exists()


def test_a_night_of_which_a_bundle_failed_is_told_with_counts_and_ids_and_no_paths(archive, hook):
    names = [str(archive / name) for name in ("bundle", "no-such-bundle")]
    result = nightly(nightly_run(archive, bundles=names, alert=both(archive, hook)), LocalEngine())
    assert (result.exit_code(0.01), ways(result)) == (2, [("command", True), ("webhook", True)])
    sent = the_alert(archive, hook, "failed")
    assert sent["text"] == "medray toy-nightly: 1 of 2 bundles met a fault"
    assert (sent["night"], sent["exit_code"], sent["pending"], sent["scored"]) == (result.night, 2, 8, 8)
    good, bad = sent["bundles"]
    assert good["bundle_id"] == result.bundles[names[0]]["bundle_id"] and good["run_id"] and good["causes"] == []
    assert (bad["causes"], bad["bundle_id"]) == (["failed"], "")
    text = json.dumps(sent)
    assert str(archive) not in text and "no-such-bundle" not in text and "S000" not in text


def test_a_refused_night_is_told_and_stays_refused(archive, hook):
    (archive / "scores").mkdir()
    (archive / "scores" / "of-another").write_text("x")
    run = nightly_run(archive, store=str(archive / "scores" / "of-another"), alert=both(archive, hook))
    with pytest.raises((StoreError, MachineError)) as refused:
        nightly(run, LocalEngine())
    sent = the_alert(archive, hook, "failed")
    assert (sent["error"], sent["message"]) == (type(refused.value).__name__, refused.value.what)
    assert sent["exit_code"] == refused.value.exit_code and "of-another" not in json.dumps(sent)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Stopped(), "the night was stopped by a signal; what it had committed stays"),
        (KeyboardInterrupt(), "the night was stopped by a signal; what it had committed stays"),
        (ValueError("a path /of/S0001"), "the night ended with ValueError"),
    ],
)
def test_a_night_that_a_signal_or_a_fault_ends_is_told_and_ends_as_it_would(archive, hook, monkeypatch, error, words):
    def ended(*_: object) -> None:
        raise error

    monkeypatch.setattr(nightly_module._Night, "read_scores", ended)
    with pytest.raises(type(error)):
        nightly(nightly_run(archive, alert=both(archive, hook)), LocalEngine())
    sent = the_alert(archive, hook, "failed")
    assert sent["text"] == f"medray toy-nightly: {words}" and "S0001" not in json.dumps(sent)
    assert len(toy.scores(archive / "scores")) == 8
    [night] = [row for row in ScoreStore.open(str(archive / "scores")).runs() if row["what"] == audit.NIGHTLY]
    assert night["state"] == ("stopped" if isinstance(error, KeyboardInterrupt) else "failed")


def test_an_archive_that_is_away_is_told(archive, hook):
    run = nightly_run(archive, alert=both(archive, hook))
    assert nightly(run, LocalEngine()).scored == 8
    (archive / "archive").rename(archive / "unmounted")
    result = nightly(run, LocalEngine())
    assert result.exit_code(0.01) in (1, 2)
    the_alert(archive, hook, "failed")


def test_too_many_failed_entries_are_told_with_their_reason_codes(archive, hook):
    (archive / "archive" / "notes.txt").write_text("the Tuesday list")
    result = nightly(nightly_run(archive, alert=both(archive, hook)), LocalEngine())
    assert result.exit_code(0.01) == 3
    sent = the_alert(archive, hook, "coverage")
    assert sent["text"] == "medray toy-nightly: toy: 1 of 9 entries failed, more than 0.01 of them may"
    assert sent["by_reason"] == sent["bundles"][0]["by_reason"] == {"unrecognised_format": 1}
    assert "notes" not in json.dumps(sent)


def test_a_deadline_that_leaves_most_entries_is_told_and_the_exit_code_stays_0(archive, hook):
    result = nightly(nightly_run(archive, deadline="0s", alert=both(archive, hook)), LocalEngine())
    assert (result.left, result.exit_code(0.01)) == (8, 0)
    sent = the_alert(archive, hook, "coverage")
    assert (sent["left"], sent["scored"]) == (8, 0)
    assert sent["text"] == "medray toy-nightly: toy: 0 of 8 pending entries are scored, less than 50%"


def test_a_night_into_which_too_little_came_is_told(archive, hook):
    run = nightly_run(archive, alert=both(archive, hook, least_new=1))
    assert nightly(run, LocalEngine()).alerts == []
    nightly(run, LocalEngine())
    sent = the_alert(archive, hook, "coverage")
    assert sent["text"] == "medray toy-nightly: 0 entries are new or changed, fewer than 1"


def test_a_night_that_is_late_is_told_while_it_goes_on_and_once(archive, hook, monkeypatch):
    told = threading.Event()

    def until_told(*_: object) -> dict[str, object]:
        assert told.wait(60)
        return {}

    monkeypatch.setattr(nightly_module, "housekeep", until_told)
    monkeypatch.setattr(alerts, "send", lambda *given: [sending.send(*given), told.set()][0])
    result = nightly(nightly_run(archive, alert=both(archive, hook, late="0s")), LocalEngine())
    assert (result.scored, result.exit_code(0.01)) == (8, 0)
    assert [row["causes"] for row in result.alerts] == ["late", "late"]  # by command and by webhook
    sent = the_alert(archive, hook, "late")
    assert sent["text"] == "medray toy-nightly: the night is not done by 0s, and goes on"
    assert sent["ended"] is None and sent["night"] == result.night


def test_a_planted_drift_is_told(tmp_path, hook, monkeypatch):
    monkeypatch.setattr("medray.scores.drift.NEEDED", 20)
    monkeypatch.setattr("test_nightly.PER_NIGHT", 60)
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    run = nightly_run(tmp_path, alert=both(tmp_path, hook))
    add(tmp_path, 0)
    assert nightly(run, LocalEngine()).alerts == []
    add(tmp_path, 1, brighter=60)
    result = nightly(run, LocalEngine())
    assert (result.level, result.exit_code(0.01), len(result.alerts)) == ("alert", 0, 2)
    sent = the_alert(tmp_path, hook, "drift")
    [output] = sent["bundles"][0]["outputs"]
    assert (output["output"], output["level"], output["n"]) == ("lower", "alert", 60) and output["psi"] > 0.25
    assert sent["text"].startswith("medray toy-nightly: toy: scores of lower have drifted (PSI ")


def summary(**changes: Any) -> Summary:
    """A night of one bundle: 100 pending, 90 scored, 4 failed, 6 not eligible, a drift to watch."""
    psi = {"output": "lower", "n": 90, "reference_n": 900, "psi": 0.2, "level": "watch", "enough": {"found": 1, "needed": 1},
           "quantiles": {}, "reference_quantiles": {}, "histogram": {"edges": [], "tonight": [], "reference": []}}  # fmt: skip
    of_bundle = {"bundle": "b", "name": "toy", "pending": 100, "scored": 90, "failed": 4, "not_eligible": 6,
                 "outputs": [psi]}  # fmt: skip
    facts = {"night": "n", "name": "toy", "archive": "a", "store": "s", "host": "h", "began": "", "ended": "",
             "seconds": 1.0, "deadline": None, "exit_code": 0, "max_failed": 0.05, "level": "watch", "entries": 100,
             "new": 100, "changed": 0, "vanished": 0, "pending": 100, "scored": 90, "failed": 4, "not_eligible": 6,
             "left": 0, "by_reason": {}, "entries_per_second": 1.0, "stages": {}, "housekeeping": {}, "versions": {},
             "bundles": [BundleNight.model_validate(of_bundle | changes.pop("bundle", {}))]}  # fmt: skip
    return Summary.model_validate(facts | changes)


@pytest.mark.parametrize(
    ("settings", "changes", "causes"),
    [
        ({}, {}, None),
        ({"drift": "watch"}, {}, ("drift",)),
        ({"drift": "watch", "on": ["failed", "late"]}, {}, None),
        ({"least_scored": 0.957}, {}, None),  # 90 of 94
        ({"least_scored": 0.958}, {}, ("coverage",)),
        ({"least_scored": 0.0}, {"bundle": {"scored": 0}}, None),
        ({"most_failed": 0.0426}, {}, None),  # 4 of 94
        ({"most_failed": 0.0425}, {}, ("coverage",)),
        ({}, {"bundle": {"too_many": True}, "exit_code": 3}, ("coverage",)),
        ({"most_failed": 1.0}, {"bundle": {"too_many": True}, "exit_code": 3}, None),
        ({"most_not_eligible": 0.06}, {}, None),
        ({"most_not_eligible": 0.059}, {}, ("coverage",)),
        ({"least_new": 100}, {}, None),
        ({"least_new": 101}, {}, ("coverage",)),
        ({}, {"housekeeping": {"error": "x"}, "exit_code": 1}, ("failed",)),
        ({}, {"bundle": {"storage_away": 3}, "exit_code": 1}, ("failed",)),
        ({"on": ["drift"]}, {"bundle": {"storage_away": 3}, "exit_code": 1}, None),
        ({"drift": "watch"}, {"bundle": {"error": "x"}, "exit_code": 1}, ("failed", "drift")),
        ({}, {"exit_code": 2}, ("failed",)),
    ],
)
def test_thresholds_decide_what_is_told(settings, changes, causes):
    alert = of_night(summary(**changes), AlertSettings.model_validate({"command": ["true"], **settings}), False, "")
    assert (alert and alert.causes) == causes
    if alert is not None:
        assert alert.text.count(":") and not alert.text.endswith(": ")


def test_a_second_nightly_run_of_a_store_tells_nobody(archive, hook):
    ScoreStore.open(str(archive / "scores"), create=True)
    process = hold(archive / "scores" / LOCK, 60)
    try:
        result = nightly(nightly_run(archive, alert=both(archive, hook)), LocalEngine())
    finally:
        process.kill()
        process.communicate()
    assert result.held_by is not None and (result.alerts, hook.received) == ([], [])


# --- an alert that fails ----------------------------------------------------------------------------------------


def test_a_webhook_that_is_down_loses_nothing_and_is_said(archive):
    url = f"http://127.0.0.1:{closed_port()}/secret-path"
    notes = Notes()
    settings = {"webhook": url, "command": ["false"], "tries": 1}
    result = nightly(nightly_run(archive, deadline="0s", alert=settings), LocalEngine(), notes)
    assert (result.left, result.exit_code(0.01)) == (8, 0) and Path(result.summary).exists()
    assert ways(result) == [("command", False), ("webhook", False)]
    assert [row["problem"] for row in result.alerts] == [
        "false ended with exit code 1",
        "the webhook cannot be reached: NewConnectionError",
    ]
    said = [line for line in notes.lines if "NOT sent" in line]
    assert len(said) == 2 and "0 of 8 pending entries are scored" in said[0] and "secret-path" not in "".join(said)
    after = nightly(nightly_run(archive), LocalEngine())
    assert after.scored == 8
    last = alerts.last_night(ScoreStore.open(str(archive / "scores")).runs())[1]
    assert last is not None and last["run_id"] == after.night


@pytest.mark.parametrize("fault", [RuntimeError("a fault of ours"), KeyboardInterrupt()])
def test_whatever_goes_wrong_with_sending_leaves_the_result_of_the_night(archive, hook, monkeypatch, fault):
    def broken(*_: object) -> None:
        raise fault

    monkeypatch.setattr(alerts, "send", broken)
    result = nightly(nightly_run(archive, deadline="0s", alert=both(archive, hook)), LocalEngine())
    assert (result.left, result.exit_code(0.01), ways(result)) == (8, 0, [("command", False), ("webhook", False)])


def settings_of(**keys: Any) -> AlertSettings:
    return AlertSettings.model_validate(keys)


TRIAL = alerts._made("toy", ("test",), ["trial"], {})


def sent(settings: AlertSettings) -> tuple[str | None, list[float]]:
    """(problem, waits between tries) of a trial by the only way of these settings."""
    waits: list[float] = []
    [delivery] = sending.send(TRIAL, settings, waits.append)
    return delivery.problem, waits


@pytest.mark.parametrize(
    ("answers", "problem", "waits"),
    [
        ([200], None, []),
        ([204], None, []),
        ([503, 429, 200], None, [1, 4]),
        ([503, 502, 500, 200], "the webhook answers with HTTP status 500, 3 times", [1, 4]),
        ([404, 200], "the webhook answers with HTTP status 404", []),
        ([401, 200], "the webhook answers with HTTP status 401", []),
    ],
)
def test_a_webhook_is_asked_again_where_that_may_help(hook, answers, problem, waits):
    hook.answers = list(answers)
    assert sent(settings_of(webhook=hook.url)) == (problem, waits)
    assert len(hook.received) == len(waits) + 1 and hook.received[0] == json.loads(TRIAL.model_dump_json())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_webhook_sends_an_alert_to_another_place(hook, status):
    with webhook() as elsewhere:
        hook.answers, hook.place = [status], elsewhere.url
        problem, _ = sent(settings_of(webhook=hook.url))
        assert problem == f"the webhook sends on to another place (HTTP status {status}), which is not followed"
        assert elsewhere.received == [] and len(hook.received) == 1


def test_the_token_comes_from_the_environment_or_a_file_and_stands_in_no_message(hook, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_ALERT_TOKEN", "open-sesame")
    assert sent(settings_of(webhook=hook.url, token_env="TOY_ALERT_TOKEN")) == (None, [])
    (tmp_path / "token").write_text("open-barley\n")
    assert sent(settings_of(webhook=hook.url, token_file=str(tmp_path / "token"), header="X-Token")) == (None, [])
    assert [hook.headers[0]["authorization"], hook.headers[1]["x-token"]] == ["Bearer open-sesame", "open-barley"]
    hook.answers = [403]
    problem, _ = sent(settings_of(webhook=hook.url, token_env="TOY_ALERT_TOKEN"))
    assert problem is not None and "sesame" not in problem


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"token_env": "TOY_NONE"}, "the environment variable TOY_NONE (token_env) is not set where the night runs"),
        ({"token_file": "/none/token"}, "the file of token_file cannot be read: No such file or directory"),
        ({"token_file": os.devnull}, "the file of token_file is empty"),
    ],
)
def test_without_its_token_nothing_is_sent_and_the_night_says_so_when_it_begins(archive, hook, keys, problem):
    settings = settings_of(webhook=hook.url, **keys)
    assert sent(settings) == (problem, [])
    notes = Notes()
    nightly(nightly_run(archive, alert=settings), LocalEngine(), notes)
    assert f"an alert of this night could not be sent: {problem}" in notes.lines
    assert hook.received == []


def test_a_url_that_is_a_secret_comes_from_a_file(hook, tmp_path):
    (tmp_path / "url").write_text(hook.url + "\n")
    assert sent(settings_of(webhook_file=str(tmp_path / "url"))) == (None, [])
    (tmp_path / "url").write_text("http://alerts.example.org/secret")
    problem, _ = sent(settings_of(webhook_file=str(tmp_path / "url")))
    assert problem is not None and problem.startswith("webhook_file: plain http goes to this machine only")
    assert "secret" not in problem and len(hook.received) == 1


def test_a_proxy_of_the_environment_is_asked(hook, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", hook.url)
    settings = settings_of(webhook="http://alerts.example.org/x", insecure_http=True)
    assert sent(settings) == (None, []) and len(hook.received) == 1
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert sent(settings_of(webhook=hook.url)) == (None, []) and len(hook.received) == 2


def test_a_webhook_that_does_not_answer_is_given_up(monkeypatch):
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        problem, waits = sent(settings_of(webhook=url, timeout="0.1s", tries=2))
    assert problem == "the webhook cannot be reached: ReadTimeoutError, 2 times" and waits == [1]


def test_a_command_is_given_its_arguments_as_they_are(tmp_path):
    argument = "$(touch planted) ; > x 'y"
    code = "import sys, json; json.dump([sys.argv[2:], json.load(sys.stdin)['causes']], open(sys.argv[1], 'w'))"
    command = [sys.executable, "-c", code, str(tmp_path / "told"), argument]
    assert sent(settings_of(command=command)) == (None, [])
    assert json.loads((tmp_path / "told").read_text()) == [[argument], ["test"]]
    assert [file.name for file in tmp_path.iterdir()] == ["told"]


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    script = 'sleep 600 & echo $! > "$0"; wait'
    problem, _ = sent(settings_of(command=["sh", "-c", script, str(tmp_path / "pid")], timeout="0.5s"))
    assert problem == "sh took longer than 0.5s and was ended"
    child = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 20
    while _runs(child):
        assert time.monotonic() < until
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["/none/pager"], "/none/pager cannot be started: No such file or directory"),
        (["sh", "-c", "exit 7"], "sh ended with exit code 7"),
        (["true"], None),  # it need not read what it is given
    ],
)
def test_a_command_that_cannot_be_started_or_fails_is_named(command, problem):
    assert sent(settings_of(command=command)) == (problem, [])


# --- the run file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "nobody is told"),
        ({"late": "07:00"}, "nobody is told"),
        ({"webhook": "http://alerts.example.org/x"}, "plain http goes to this machine only"),
        ({"webhook": "http://127.0.0.1.example.org/x"}, "plain http goes to this machine only"),
        ({"webhook": "https://user:pass@alerts.example.org/x"}, "holds no password"),
        ({"webhook": "ftp://alerts.example.org/x"}, "is a URL such as"),
        ({"webhook": "alerts.example.org"}, "is a URL such as"),
        ({"webhook": "https://[x"}, "is a URL such as"),
        ({"webhook": "https://a.example.org/", "webhook_file": "x"}, "both given"),
        ({"webhook": "https://a.example.org/", "token_env": "A", "token_file": "x"}, "both given"),
        ({"command": ["true"], "token_env": "A"}, "none is given"),
        ({"command": "mail -s x"}, "tuple"),
        ({"command": [""]}, "at least 1 character"),
        ({"command": ["true"], "late": "26:00"}, "local time"),
        ({"command": ["true"], "missing": "a day"}, "a duration is"),
        ({"command": ["true"], "timeout": "0s"}, "more than 0"),
        ({"command": ["true"], "on": ["drfit"]}, "coverage"),
        ({"webhook": "https://a.example.org/", "header": "X: y"}, "pattern"),
    ],
)
def test_settings_that_would_tell_nobody_or_everybody_are_refused(keys, words):
    with pytest.raises(ValidationError, match=words) as refused:
        settings_of(**keys)
    assert "user:pass" not in str(refused.value.errors(include_input=False, include_context=False, include_url=False))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x", "http://localhost/x", "http://[::1]:8080/", "https://a.example.org"]
)
def test_https_and_the_loopback_are_taken(url):
    assert settings_of(webhook=url).webhook == url


def write_run(folder: Path, **changes: Any) -> Path:
    """The run file of a night of `archive`."""
    settings = nightly_run(folder, **changes).model_dump(mode="json", exclude_unset=True)
    tables = {name: settings.pop(name) for name in ("engine", "alert") if name in settings}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    file = folder / "run.toml"
    file.write_text("\n".join(lines))
    return file


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_the_command_prints_its_result_whatever_became_of_the_alert(archive):
    down = {"webhook": f"http://127.0.0.1:{closed_port()}/x", "tries": 1}
    file = write_run(archive, deadline="0s", alert=down)
    done = call("nightly", str(file), "--json")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert (done.exit_code, result["left"]) == (0, 8)
    assert result["alerts"][0]["problem"] == "the webhook cannot be reached: NewConnectionError"
    shown = call("nightly", str(file))
    assert shown.exit_code == 0 and "NOT sent" in shown.output and "alerts" in shown.stdout


def test_a_run_file_that_is_refused_is_told_by_its_own_alert(archive, hook):
    file = write_run(archive, alert=both(archive, hook))
    file.write_text(file.read_text().replace("bundles =", "bundels ="))
    done = call("nightly", str(file))
    assert done.exit_code == 2
    sent = the_alert(archive, hook, "failed")
    assert (sent["error"], sent["exit_code"], sent["name"]) == ("RunFileError", 2, "run")
    assert str(archive) not in json.dumps(sent)


def test_a_refusal_before_anything_is_imported_is_told_too(archive, hook):
    file = write_run(archive, alert=both(archive, hook))
    right = file.read_text()
    runs.load(file)  # which keeps the outline of the run types, by which the quick answer goes
    quick = [sys.executable, "-c", "from medray.cli.quick import answer; import sys; answer(sys.argv[1:])"]
    file.write_text(right.replace('"toy-nightly"', '"toy-nightly'))  # no TOML: nobody knows whom to tell
    done = subprocess.run([*quick, "nightly", str(file)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, hook.received) == (2, [])
    file.write_text(right.replace("bundles =", "bundels ="))
    done = subprocess.run([*quick, "nightly", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "bundels" in done.stderr
    assert the_alert(archive, hook, "failed")["text"] == "medray run: the run file is refused"


def test_an_engine_that_cannot_be_opened_is_told(archive, hook):
    """In a process of its own: one of the tests may have a Ray already."""
    nowhere = {"kind": "ray", "address": f"127.0.0.1:{closed_port()}"}
    file = write_run(archive, engine=nowhere, alert=both(archive, hook))
    command = [sys.executable, "-m", "medray.cli", "nightly", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr
    assert the_alert(archive, hook, "failed")["error"] == "MachineError"


# --- medray alert -----------------------------------------------------------------------------------------------


def test_a_trial_goes_by_every_way(archive, hook):
    done = call("alert", "test", str(write_run(archive, alert=both(archive, hook))), "--json")
    assert (done.exit_code, [row["sent"] for row in json.loads(done.stdout)["alerts"]]) == (0, [True, True])
    assert the_alert(archive, hook, "test")["text"] == "medray toy-nightly: a trial alert; nothing is wrong"
    hook.answers = [403]
    assert call("alert", "test", str(archive / "run.toml")).exit_code == 1


def test_without_alert_there_is_nothing_to_try(archive):
    with pytest.raises(RunFileError, match="no \\[alert\\]"):
        try_alert(nightly_run(archive))
    done = call("alert", "test", str(write_run(archive)))
    assert done.exit_code == 2
    score = toy.write_run_file(archive / "score.toml", toy.score_run(archive))
    assert call("alert", "test", str(score)).exit_code == 2


def test_a_night_that_did_not_come_is_told_by_the_check(archive, hook):
    file = write_run(archive, alert=both(archive, hook))
    run = nightly_run(archive, alert=both(archive, hook))
    night = nightly(run, LocalEngine()).night
    done = call("alert", "check", str(file), "--json")
    seen = json.loads(done.stdout)
    assert (done.exit_code, seen["night"], seen["missing"], seen["alerts"], hook.received) == (0, night, False, [], [])

    with pytest.raises(RuntimeError), audit.recorded(run.store_uri, audit.NIGHTLY, "failed-one"):
        raise RuntimeError
    audit.begin(run.store_uri, audit.NIGHTLY, "killed-one", None)
    late = call("alert", "check", str(file), "--within", "0.001s", "--json")
    seen = json.loads(late.stdout)
    assert (late.exit_code, seen["missing"], seen["night"], seen["begun_since"]) == (1, True, night, 2)
    sent = the_alert(archive, hook, "missing")
    assert sent["night"] == night and "2 have begun since (failed, running)" in sent["text"]


def test_a_store_without_any_night_and_one_that_is_not_there_are_told(archive, hook):
    run = nightly_run(archive, alert=both(archive, hook))
    with pytest.raises(StoreError):
        check_night(run)
    assert the_alert(archive, hook, "missing")["error"] == "StoreError"
    hook.received.clear()
    ScoreStore.open(run.store_uri, create=True)
    seen = check_night(run)
    assert (seen.missing, seen.night, seen.code) == (True, None, 1)
    assert "no night has ever ended" in the_alert(archive, hook, "missing")["text"]


def test_of_a_store_from_before_nights_were_noted_scoring_runs_count(archive, hook):
    run = nightly_run(archive, alert=both(archive, hook))
    ScoreStore.open(run.store_uri, create=True)
    with audit.recorded(run.store_uri, "score", "an-earlier-run", "b"):
        pass
    assert check_night(run).night == "an-earlier-run" and hook.received == []


def test_the_audit_table_has_a_line_of_the_night_with_its_sums(archive):
    result = nightly(nightly_run(archive), LocalEngine())
    rows = ScoreStore.open(files.absolute(str(archive / "scores"))).runs()
    [night] = [row for row in rows if row["what"] == audit.NIGHTLY]
    counts = [night[name] for name in ("run_id", "state", "entries", "pending", "scored", "failed", "bundle_id")]
    assert counts == [result.night, "done", 8, 8, 8, 0, None]
    assert np.isfinite(night["seconds"])
