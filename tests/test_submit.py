"""submit without a cluster: what is refused, what a job is made of, what is sent, how a log goes on."""

from __future__ import annotations

import fcntl
import gc
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
import toy
from flaky_job_server import FlakyServer
from typer.testing import CliRunner

import medray
from medray import stopping
from medray.cli import job
from medray.cli.app import app
from medray.cli.console import Log
from medray.config import runs
from medray.engines.ray.job_log import Following
from medray.engines.ray.job_server import JobServer, _url
from medray.errors import MachineError, UserError
from medray.flows.driver import collect
from medray.flows.flow import Flow, Receipt
from medray.storage import sent
from medray.verbs.submit import PATHS, packed, parcel

RAY = {"engine": {"kind": "ray", "workers": 2}, "pseudonym_key": "/keys/pseudonym.key"}


def submit(*words: str | Path):
    """Where nobody listens: what comes so far as to ask the cluster ends with exit code 1."""
    command = ["submit", "--address", "http://127.0.0.1:9", *map(str, words)]
    return CliRunner().invoke(app, command, catch_exceptions=False)


@pytest.fixture
def score_file(tmp_path) -> Path:
    return toy.write_run_file(tmp_path / "score.toml", toy.score_run(tmp_path, **RAY))


# --- what is refused before anything is sent --------------------------------------------------------------------


def test_relative_paths_are_refused_all_at_once(tmp_path):
    file = tmp_path / "score.toml"
    file.write_text(
        'archive = "data/us"\nbundle = "/shared/bundle"\nstore = "s3://here/scores"\n[modality]\nreference = "g.fa"\n'
    )
    done = submit("score", file)
    assert done.exit_code == 2
    assert 'archive = "data/us"; modality.reference = "g.fa"; work is not set, so it is "work/<name>"' in done.stderr
    assert "bundle" not in done.stderr.split("found: ")[1].split("\n")[0]
    assert "--root FOLDER" in done.stderr


def test_secrets_of_an_alert_are_looked_for_on_the_cluster(tmp_path):
    night = {"name": "n", "archive": "/data", "bundles": "/bundle", "store": "/store", "work": "/work"}
    secret = {"webhook": "https://alerts.example.org/", "token_file": "alert.token"}
    file = toy.write_run_file(tmp_path / "night.toml", runs.NightlyRun.model_validate(night | {"alert": secret}))
    with pytest.raises(UserError, match="relative paths") as refused:
        parcel(["nightly"], file, runs.load(file), [], [])
    assert refused.value.found == 'alert.token_file = "alert.token"'


def test_relative_paths_start_from_the_root(tmp_path):
    file = tmp_path / "score.toml"
    file.write_text('archive = "data/us"\nbundle = "b"\nstore = "s"\n')
    assert submit("score", file, "--root", "/shared").exit_code == 1  # only the cluster is missing
    made = parcel(["score"], file, runs.load(file), [], [], root="/shared")
    assert "--root=/shared" in shlex.split(made.command)


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[1].glob("jobs/runs/*.toml")), ids=lambda file: file.stem)
def test_every_path_of_a_run_file_that_ships_is_known_as_one(file):
    """Those with a folder in them: a key that is missing in PATHS would be looked for in the job's own folder."""
    from medray.config.loader import as_written

    def texts(table, keys=()):
        for key, value in table.items():
            if isinstance(value, dict):
                yield from texts(value, (*keys, key))
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and "/" in text:
                    yield ".".join((*keys, key))

    in_the_archive = {"modality.task.labels"}
    assert set(texts(as_written(file))) <= {*PATHS, *in_the_archive}


def test_an_engine_of_one_process_is_refused(tmp_path, score_file):
    local = toy.write_run_file(tmp_path / "local.toml", toy.score_run(tmp_path))
    done = submit("score", local)
    assert done.exit_code == 2 and """--set 'engine={kind="ray"}'""" in done.stderr
    assert submit("score", local, "--set", 'engine={kind="ray"}').exit_code == 1  # as it says
    done = submit("score", score_file, "--local")
    assert done.exit_code == 2 and "a submitted job runs on the cluster" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["demo"], "no verb that runs on a cluster"),
        (["score", "none.toml"], "there is no such run file"),
        (["train", "score.toml"], "this command needs a train run file"),
        (["score", "score.toml", "--epochs", "3"], "No such option: --epochs"),
        (["score", "score.toml", "--set", "stor=3"], "did you mean store?"),
        (["score", "score.toml", "--id", "a b"], "no id of a job"),
        (["score", "score.toml", "--pip", "none.txt"], "there is no such file of requirements"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, list) else "",
)
def test_what_is_wrong_is_said_before_the_cluster_is_asked(score_file, monkeypatch, words, says):
    monkeypatch.chdir(score_file.parent)
    done = submit(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr


@pytest.mark.parametrize("address", ["http://10.1.2.3:8265", "http://head.hospital.org:8265", "head.hospital.org:6379"])
def test_plain_http_to_another_machine_is_refused_unless_told(address):
    with pytest.raises(UserError) as refused:
        _url(address, insecure_http=False)
    assert "plain http to another machine" in str(refused.value) and "--insecure-http" in str(refused.value)


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8265", "http://127.9.9.9:1", "http://[::1]:8265", "http://localhost:8265", "https://h:1"],
)
def test_this_machine_and_https_are_not_refused(address):
    assert _url(address + "/", insecure_http=False) == address
    assert _url("http://10.1.2.3:8265", insecure_http=True) == "http://10.1.2.3:8265"


def test_an_address_that_was_given_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    assert _url(None, insecure_http=False) == "http://127.0.0.1:2"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:3")
    assert _url(None, insecure_http=False) == "http://127.0.0.1:3"
    assert _url("http://127.0.0.1:4", insecure_http=False) == "http://127.0.0.1:4"


def test_a_password_in_an_address_is_refused_without_being_repeated():
    with pytest.raises(UserError) as refused:
        _url("https://me:hidden@head:8265", insecure_http=False)
    assert "hidden" not in str(refused.value)


# --- what a job is made of --------------------------------------------------------------------------------------


def test_the_command_is_the_verb_with_its_options_and_the_versions_it_needs(score_file):
    run = runs.load(score_file)
    made = parcel(["score"], score_file, run, ["--limit", "5", "--set", 'order="bytes descending"'], [])
    words = shlex.split(made.command)
    assert words[:4] == ["exec", "python", "-m", "medray.cli.job"]
    assert [word.split("=")[1] for word in words if word.startswith("--needs=")] == ["python", "ray", "torch"]
    assert words[words.index("score") :] == ["score", "score.toml", "--limit", "5", "--set", 'order="bytes descending"']
    assert not made.notes
    assert "--needs" not in parcel(["score"], score_file, run, [], [], unpinned=True).command


def test_a_job_belongs_to_the_cluster_that_it_was_submitted_to(tmp_path):
    other = {"engine": {"kind": "ray", "address": "elsewhere:6379"}}
    file = toy.write_run_file(tmp_path / "score.toml", toy.score_run(tmp_path, **other))
    made = parcel(["score"], file, runs.load(file), [], [])
    assert made.command.endswith("--set engine.address=auto")
    assert "pseudonym_key" in made.notes[0]  # not set there either


def test_equal_commands_are_known_by_their_digest_and_have_ids_of_their_own(score_file):
    run = runs.load(score_file)
    one, two = (parcel(["score"], score_file, run, [], []) for _ in range(2))
    other = parcel(["score"], score_file, run, ["--limit", "5"], [])
    assert one.facts == two.facts and one.id != two.id
    assert one.facts["digest"] != other.facts["digest"]


def test_sent_are_the_run_file_and_the_code_and_no_data(score_file):
    with packed(score_file) as package:
        names = {str(file.relative_to(package)) for file in Path(package).rglob("*") if file.is_file()}
        size = sum((Path(package) / file).stat().st_size for file in names)
    assert {"sent/score.toml", "cli/job.py", "cli/app.py", "reports/templates/report.html.j2"} <= names
    assert {name for name in names if name.startswith("sent/")} <= {"sent/score.toml", f"sent/{sent.CODE}"}
    assert all(name.startswith("sent/") or (Path(medray.__file__).parent / name).is_file() for name in names)
    assert not [file for file in names if "demos/data" in file or "__pycache__" in file]
    assert size < 2**22
    assert not Path(package).exists()


def test_code_that_is_too_large_is_refused(score_file, tmp_path, monkeypatch):
    package = tmp_path / "site" / "medray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    with open(package / "weights.bin", "wb") as stream:
        stream.truncate(2**25)
    monkeypatch.setattr(medray, "__file__", str(package / "__init__.py"))
    with pytest.raises(MachineError) as refused, packed(score_file):
        pass
    assert "32 MB; the largest file is medray/weights.bin" in str(refused.value)


# --- where the job runs -----------------------------------------------------------------------------------------


def test_a_job_in_another_environment_ends_with_what_differs(tmp_path):
    command = [sys.executable, "-m", "medray.cli.job", "--needs=ray=1.0.0", "--needs=numpy=0.1", "score", "none.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected: ray 1.0.0, numpy 0.1" in done.stderr and "--unpinned" in done.stderr


def test_a_job_marks_its_result_and_starts_from_its_root(tmp_path):
    toy.write_archive(tmp_path / "shared", 8)
    run = toy.train_run(tmp_path / "shared", archive="archive", work="work", labels={})
    toy.write_run_file(tmp_path / "train.toml", run)
    command = [sys.executable, "-m", "medray.cli.job", f"--root={tmp_path / 'shared'}", "index", "train.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('medray-result {"entries": 8')
    assert [line[10:] for line in done.stderr.splitlines()] == ["index: 8 to do", done.stderr.splitlines()[-1][10:]]
    assert (tmp_path / "shared" / "work" / "manifest").is_dir()


def test_needs_are_compared_without_the_build():
    job.require({"python": f"{sys.version_info.major}.{sys.version_info.minor}"})
    with pytest.raises(UserError, match=r"environment is not"):
        job.require({"a-library-that-nobody-has": "1"})


def test_a_log_tells_what_begins_how_far_it_is_and_every_epoch(capsys):
    log = Log(every=3600)
    log.begin("score", 3000)
    log.advance(1000, 1)
    log.advance(2000, 1)
    row = {"epoch": 1, "train_loss": 0.5}
    log.training({"epoch": 1, "epochs": 2, "step": 0, "steps": 9, "history": [row], "stopped": None})
    lines = [line[10:] for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "score: 3,000 to do"
    assert lines[1].startswith("score: 3,000 of 3,000, 2 failed, ")
    assert lines[2] == "epoch   1  train_loss 0.5  of 2"
    assert len(lines) == 3


# --- being told to stop -----------------------------------------------------------------------------------------


def test_a_signal_in_a_commit_is_raised_after_it():
    committed, before = [], signal.getsignal(signal.SIGTERM)
    with pytest.raises(stopping.Stopped), stopping.on_signals(), stopping.signals_deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        committed.append("whole")
    assert committed == ["whole"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("commit_seconds", "committed"), [(3600.0, [[1, 2]]), (None, [])])
def test_what_has_come_is_committed_where_a_flow_commits_as_it_goes(commit_seconds, committed):
    class Sink:
        def __init__(self):
            self.commits = []

        def write(self, batches):
            raise NotImplementedError

        def commit(self, receipts):
            self.commits.append([receipt.entries for receipt in receipts])

    def receipts():
        yield Receipt(1, 0)
        yield Receipt(2, 0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    sink = Sink()
    flow = Flow("score", [], (), sink, commit_seconds=commit_seconds)
    with pytest.raises(stopping.Stopped), stopping.on_signals():
        collect(flow, receipts())
    assert sink.commits == committed


# --- a log through a bad connection ------------------------------------------------------------------------------

LOG = "".join(f"line {number} – ½\n" for number in range(40)) + "no newline"


@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_a_log_is_given_out_once_however_often_it_breaks(pieces):
    with FlakyServer(LOG, pieces, losses=3) as server:
        following = Following(JobServer(server.url), "x")
        assert "\n".join(following.lines()) == LOG
    assert server.streams == 4


# Ray leaves it to the garbage collector to close a stream that is given up, and aiohttp warns of that.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function Connection.__del__")
def test_a_connection_that_is_silent_for_too_long_is_made_anew(monkeypatch):
    monkeypatch.setattr(Following, "SILENCE", 0.3)
    with FlakyServer(LOG, 5, losses=1, silent=True) as server:
        assert "\n".join(Following(JobServer(server.url), "x").lines()) == LOG
        gc.collect()
    assert server.streams == 2


def test_a_cluster_that_stays_away_is_given_up_with_the_way_back():
    notes: list[str] = []
    with FlakyServer(LOG, 5, losses=1) as server:
        following = Following(JobServer(server.url), "a-job", notes.append, patience=2.0)
    with pytest.raises(MachineError) as given_up:
        list(following.lines())
    assert "medray jobs logs a-job --follow" in str(given_up.value)
    assert notes == ["the connection is lost (ConnectionError); the job goes on; trying again"]


# Wherever it comes: also where Python itself cannot raise it, so it is pressed again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("milliseconds", range(1, 41, 2))
def test_ctrl_c_while_a_log_is_followed_is_nothing_but_that(milliseconds):
    done = threading.Event()

    def press() -> None:
        seconds = milliseconds / 1000
        while not done.wait(seconds):
            os.kill(os.getpid(), signal.SIGINT)
            seconds = 0.5

    with FlakyServer(LOG, 1, losses=100, silent=True) as server:
        following, pressing = Following(JobServer(server.url), "x"), threading.Thread(target=press)
        try:
            with pytest.raises(KeyboardInterrupt):
                pressing.start()
                list(following.lines())
        finally:
            done.set()
            pressing.join()


@pytest.mark.parametrize(
    ("answer", "stopped", "code"), [(b"y\n", True, 143), (b"\n", False, 130), (b"\x03", False, 130)]
)
def test_ctrl_c_on_a_terminal_asks_whether_to_stop_the_job(answer, stopped, code):
    """A second Ctrl-C is no answer: the job goes on."""
    near, far = pty.openpty()
    with FlakyServer(LOG, 5, losses=1, silent=True) as server:
        command = [sys.executable, "-m", "medray.cli", "jobs", "logs", "a-job", "--follow", "--address", server.url]
        options = {"stdin": far, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        with subprocess.Popen(command, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **options) as client:
            assert client.stderr.readline() == "line 0 – ½\n"
            os.write(near, b"\x03")
            assert client.stderr.readline() in ("line 1 – ½\n", "\n")
            said = ""
            while "(no: it goes on)" not in said:
                said += client.stderr.read(1)

            def press() -> None:
                """Until it is noticed: a signal that comes right before Python waits for input is not seen until then."""
                while client.poll() is None:
                    os.write(near, answer)
                    time.sleep(0.5)

            pressing = threading.Thread(target=press)
            pressing.start()
            said += client.stderr.read()
            pressing.join()
        assert (client.returncode, server.stopped) == (code, stopped)
    os.close(near)
    os.close(far)
    assert ("job a-job goes on: medray jobs logs a-job --follow" in said) is not stopped
