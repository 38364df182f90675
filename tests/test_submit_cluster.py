"""medray submit and medray jobs on a real cluster: a head and two workers from `ray start`, with a token.

One training and two scoring jobs are shared by the tests of this file, because a job takes seconds to start.
"""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import toy
from deltalake import DeltaTable
from ray_cluster import Cluster, Proxy, cluster

from medray.config.runs import NightlyRun
from medray.learning import bundles
from medray.learning.models.resnet import ResNetSpec

PRINTED_HERE = ("note: ", "job ", "medray: ")
"""How lines begin that are the client's own."""
NIGHT = 400
"""Images of the archive to score; each takes some 20 ms of a large network."""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture
def proxy(here):
    with Proxy(urlsplit(here.url).port) as between:
        yield between


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Run files train.toml and score.toml of 96 images, and night.toml of NIGHT others for a network that takes time."""
    folder = tmp_path_factory.mktemp("jobs")
    toy.write_archive(folder)
    for number in range(NIGHT):
        toy.write_image(folder / "night-archive" / f"{number % 8}" / f"{number:04}.dcm", number, number % 2)
    shared = {"engine": {"kind": "ray", "workers": 2}, "pseudonym_key": str(folder / "pseudonym.key")}
    toy.write_run_file(folder / "train.toml", toy.train_run(folder, **shared))
    toy.write_run_file(folder / "score.toml", toy.score_run(folder, **shared))
    large = toy.recipe(model=ResNetSpec(depth=18), modality=toy.MODALITY.model_copy(update={"size": (112, 112)}))
    bundles.save(bundles.make_bundle(large, toy.weights(large)), str(folder / "large"))
    places = {name: str(folder / f"night-{name}") for name in ("archive", "store", "work")}
    night = toy.score_run(folder, **shared, **places, name="night", bundle=str(folder / "large"))
    toy.write_run_file(folder / "night.toml", night)
    return folder


@dataclass
class Followed:
    """What a client printed, and how it ended."""

    stdout: str
    lines: list[str]
    """Of stderr."""
    cuts: int
    client: subprocess.Popen[str]

    @property
    def code(self) -> int:
        return self.client.returncode

    @property
    def log(self) -> list[str]:
        return [line for line in self.lines if not line.startswith(PRINTED_HERE)]

    @property
    def id(self) -> str:
        return next(line.split()[1] for line in self.lines if line.startswith("job "))


@pytest.fixture(scope="module")
def trained(here, archive) -> Followed:
    """`medray submit train`, its connections cut for three seconds when the shards and when the first epoch are done."""
    with Proxy(urlsplit(here.url).port) as between:
        command = here.command("submit", "train", archive / "train.toml", "--json", address=between.url)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=here.env(), **pipes) as client:
            lines, marks = [], ["prepare: 96 of 96", "epoch   1"]
            for line in client.stderr:
                lines.append(line.rstrip("\n"))
                if marks and marks[0] in line:
                    marks.pop(0)
                    between.cut(seconds=3.0)
            return Followed(client.stdout.read(), lines, 2 - len(marks), client)


def ids(here: Cluster) -> set[str]:
    """Of all jobs, asked of Ray itself."""
    return {job["submission_id"] for job in here.get("/api/jobs/")}


# --- who may ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN_PATH": None}, "none was sent"),
        ({"RAY_AUTH_TOKEN_PATH": None, "RAY_AUTH_TOKEN": "0123456789secret"}, "another one was sent"),
        ({"RAY_AUTH_TOKEN_PATH": None, "RAY_AUTH_TOKEN": "0123456789secret\né"}, "cannot be sent"),
        ({"RAY_AUTH_TOKEN_PATH": "/none"}, "there is none here"),
    ],
    ids=["none", "wrong", "garbled", "missing"],
)
def test_without_the_token_a_job_is_refused_and_nothing_started(here, archive, env, found):
    before = ids(here)
    done = here.medray("submit", "score", archive / "score.toml", **env)
    assert (done.returncode, done.stdout) == (2, "")
    assert found in done.stderr and "RAY_AUTH_TOKEN_PATH" in done.stderr
    assert "Traceback" not in done.stderr and "secret" not in done.stderr
    assert ids(here) == before


def test_a_job_server_that_is_not_there_is_a_message(here, archive):
    done = here.medray("submit", "score", archive / "score.toml", address="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the job server does not answer" in done.stderr and "Traceback" not in done.stderr


def test_https_is_checked_against_the_certificates_that_were_given(here, tmp_path):
    certificate, other = make_certificate(tmp_path / "a"), make_certificate(tmp_path / "b")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.with_suffix(".crt"), certificate.with_suffix(".key"))
    with Proxy(urlsplit(here.url).port, tls=context) as between:
        for ca in ([], ["--ca", other.with_suffix(".crt")]):
            done = here.medray("jobs", "list", *ca, address=between.url)
            assert done.returncode == 2 and "certificate is not accepted" in done.stderr
        assert between.passed == 0
        done = here.medray("jobs", "list", "--ca", certificate.with_suffix(".crt"), "--json", address=between.url)
        assert done.returncode == 0, done.stderr
        assert between.passed > 0


def make_certificate(place: Path) -> Path:
    """`place`.crt and `place`.key, for 127.0.0.1, signed by itself."""
    options = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", f"{place}.crt", "-keyout", f"{place}.key"]
    subprocess.run(["openssl", "req", "-x509", "-days", "1", *options, *files], check=True, capture_output=True)
    return place


# --- train: followed through a connection that is cut -----------------------------------------------------------


def test_a_submitted_training_ends_with_its_result_and_exit_code(trained, archive):
    assert trained.code == 0, "\n".join(trained.lines)
    found = json.loads(trained.stdout)
    assert (found["entries"], found["failed"], found["workers"]) == (96, 0, 2)
    assert found["bundle"] == str(archive / "bundle") and (archive / "bundle" / "spec.json").exists()


def test_a_job_prints_its_progress_as_plain_lines(trained):
    assert any(line.endswith("index: 96 to do") for line in trained.log)
    assert sum("epoch" in line and "auroc" in line for line in trained.log) == 3
    assert not any("\r" in line or "medray-result" in line for line in trained.log)


def test_a_cut_log_goes_on_without_a_line_lost_or_doubled(here, trained):
    assert trained.cuts == 2
    assert any("the connection is lost" in line for line in trained.lines)
    whole = here.medray("jobs", "logs", trained.id, "--json")
    assert whole.returncode == 0
    assert trained.log == whole.stderr.splitlines()
    assert json.loads(whole.stdout) == json.loads(trained.stdout)


def test_another_client_attaches_to_a_job_by_its_id(here, trained):
    again = here.medray("jobs", "logs", trained.id, "--follow")
    assert again.returncode == 0
    assert again.stderr.splitlines() == trained.log
    assert "bundle_id" in again.stdout and "auroc" in again.stdout


def test_the_list_of_jobs_tells_verb_and_end_and_no_paths(here, trained, archive):
    said = here.medray("jobs", "list", "--json")
    job = next(job for job in json.loads(said.stdout)["jobs"] if job["id"] == trained.id)
    assert (job["verb"], job["status"], job["exit_code"]) == ("train", "SUCCEEDED", 0)
    assert job["command"].endswith(" train train.toml") and str(archive) not in job["command"]


# --- score: stopped in the middle, and gone on with --------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(here, archive, trained) -> tuple[str, dict]:
    """Id of a scoring job, and what `jobs stop` said when the first scores had come."""
    assert trained.code == 0
    started = here.medray("submit", "score", archive / "night.toml", "--no-wait")
    assert started.returncode == 0, started.stderr
    id = started.stdout.strip()
    wait_for_scores(here, id, archive / "night-store")  # of the first of eight shards
    done = here.medray("jobs", "stop", id, "--json")
    assert done.returncode == 0, done.stderr
    return id, json.loads(done.stdout)


def wait_for_scores(here: Cluster, id: str, store: Path) -> None:
    """Until a worker has written a file of scores, and its receipt has had time to come."""
    until = time.monotonic() + 120
    while not [*store.glob("bundle_id=*/part-*.parquet")]:
        log = here.get(f"/api/jobs/{id}/logs")["logs"]
        assert time.monotonic() < until and "medray-result" not in log, log
        time.sleep(0.1)
    time.sleep(0.5)


def test_a_stopped_job_has_committed_what_had_come(here, stopped, archive):
    id, said = stopped
    assert (said["status"], said["exit_code"]) == ("STOPPED", 143)
    assert "medray: stopped; the same command goes on" in here.medray("jobs", "logs", id).stdout
    rows = DeltaTable(str(archive / "night-store")).to_pyarrow_table()
    assert 0 < len(set(rows["entry_id"].to_pylist())) < NIGHT
    history = json.loads(here.medray_here("history", archive / "night-store", "--json").stdout)
    assert history["runs"][0]["state"] == "stopped"


def test_following_a_stopped_job_ends_with_143(here, stopped):
    assert here.medray("jobs", "logs", stopped[0], "--follow").returncode == 143


def test_the_same_submit_scores_the_rest_each_entry_once(here, stopped, archive, proxy):
    """The answer to this submit is lost on the way: it is asked for again, and not started twice."""
    done_before = len(toy.scores(archive / "night-store"))
    before = ids(here)
    proxy.swallow = b"POST /api/jobs/"
    done = here.medray("submit", "score", archive / "night.toml", "--json", address=proxy.url)
    assert done.returncode == 0, done.stderr
    assert proxy.swallowed == 1
    assert len(ids(here) - before) == 1
    found = json.loads(done.stdout)
    assert (found["scored"], found["failed"], found["left"]) == (NIGHT - done_before, 0, 0)
    assert len(toy.scores(archive / "night-store")) == NIGHT  # which refuses doubles


# --- the rest ---------------------------------------------------------------------------------------------------


def test_an_id_is_started_once_and_means_one_command(here, archive, trained):
    command = ["submit", "score", archive / "score.toml", "--limit", "24", "--id", "scores-of-today"]
    first = here.medray(*command, "--no-wait", "--json")
    assert json.loads(first.stdout) == {"id": "scores-of-today", "submitted": True}, first.stderr
    again = here.medray(*command, "--json")  # follows it to its end
    assert again.returncode == 0 and "was submitted before" in again.stderr
    found = json.loads(again.stdout)
    assert (found["bundle_id"], found["scored"], found["left"]) == (json.loads(trained.stdout)["bundle_id"], 24, 72)
    other = here.medray("submit", "index", archive / "score.toml", "--id", "scores-of-today")
    assert other.returncode == 2 and "another job has this id" in other.stderr


@pytest.mark.slow  # training and scoring are submitted on every run
def test_a_night_is_submitted_as_any_verb_is(here, archive, trained):
    shared = {"engine": {"kind": "ray", "workers": 2}, "pseudonym_key": str(archive / "pseudonym.key")}
    places = {name: str(archive / name) for name in ("archive", "work-nightly", "nightly-scores")}
    night = NightlyRun.model_validate(
        {"name": "nightly", "archive": places["archive"], "work": places["work-nightly"], **shared}
        | {"bundles": [str(archive / "bundle")], "store": places["nightly-scores"], "limit": 40}
    )
    toy.write_run_file(archive / "nightly.toml", night)
    done = here.medray("submit", "nightly", archive / "nightly.toml", "--json")
    assert done.returncode == 0, done.stderr
    [told] = json.loads(done.stdout)["bundles"].values()
    assert (told["scored"], told["failed"], told["left"]) == (40, 0, 56)
    assert (archive / "work-nightly" / "nights" / "latest.html").exists()


def test_the_exit_code_is_that_of_the_job_and_ctrl_c_leaves_it_running(here, archive):
    """The folder of --root is not there on the cluster: exit code 2, from the job."""
    command = here.command("submit", "index", archive / "train.toml", "--root", "/none/such", "--id", "no-root")
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=here.env(), **quiet) as client:
        assert client.stderr.readline() == "job no-root\n"
        client.send_signal(signal.SIGINT)
        said = client.stderr.read()
    assert client.returncode == 130
    assert "job no-root goes on: medray jobs logs no-root --follow" in said
    done = here.medray("jobs", "logs", "no-root", "--follow")
    assert done.returncode == 2
    assert "the folder that paths start from is not there" in done.stderr


def test_jobs_that_are_not_there_are_refused(here):
    for words in (["status", "none"], ["logs", "none", "--follow"], ["stop", "none"]):
        done = here.medray("jobs", *words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert "the cluster knows no such job" in done.stderr
