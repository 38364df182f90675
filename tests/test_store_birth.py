"""The birth of a store: two first runs at one moment, and storage that does not keep what commits rest on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from s3_server import BUCKET, s3_server
from store_rows import Receipt, rows, score, seen

from medray.errors import MachineError, StoreError
from medray.scores import ScoreStore, log
from medray.storage import conditional, delta, files


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}"


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store may be made: on a disk, or in a bucket."""
    return str(tmp_path) if request.param == "disk" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def test_a_storage_that_lets_two_writers_create_one_file_is_refused_at_the_birth_of_a_store(monkeypatch):
    with s3_server(conditional=False) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        uri = f"s3://{BUCKET}/scores"
        with pytest.raises(StoreError, match="two writers create the same file") as refused:
            ScoreStore.open(uri, create=True)
        assert "If-None-Match" in refused.value.found and "412" in refused.value.expected
        assert not list(files.list_files(f"s3://{BUCKET}"))  # neither a table nor what it was asked with


def test_a_storage_that_keeps_it_is_asked_once(bucket, monkeypatch):
    asked: list[str] = []
    real = log.refuse_unconditional
    monkeypatch.setattr(log, "refuse_unconditional", lambda uri: asked.append(uri) or real(uri))
    uri = f"{bucket}/once/scores"
    for _ in range(2):
        ScoreStore.open(uri, create=True)
    assert asked == [uri]
    assert not [file.uri for file in files.list_files(uri) if "probe" in file.uri]


@pytest.mark.parametrize(
    ("answers", "refused"),
    [([200, 412], False), ([503, 412], False), ([503, 200, 500, 412], False), ([200, 503, 200], True), ([409, 200, 200], True)],
)  # fmt: skip
def test_answers_that_are_lost_or_busy_decide_nothing(bucket, monkeypatch, answers, refused):
    left = list(answers)
    monkeypatch.setattr(conditional, "_create", lambda *_: left.pop(0))
    monkeypatch.setattr(conditional, "PAUSE", 0.0)
    if refused:
        with pytest.raises(StoreError):
            conditional.refuse_unconditional(f"{bucket}/lost")
    else:
        conditional.refuse_unconditional(f"{bucket}/lost")
    assert left == []


def test_a_storage_that_refuses_the_request_is_said(bucket, monkeypatch):
    monkeypatch.setattr(conditional, "_create", lambda *_: 403)
    with pytest.raises(StoreError, match="cannot be opened") as refused:
        ScoreStore.open(f"{bucket}/refused", create=True)
    assert "403" in refused.value.found


@pytest.mark.parametrize("token", [None, "a/session+token="])
def test_the_signature_is_that_of_botocore(monkeypatch, token):
    """botocore.auth.S3SigV4Auth as a second implementation, at one moment."""
    import botocore.auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    url, now = "https://s3.example.org:9000/hospital/a%20b/%C3%A9/probe-1", datetime(2026, 3, 1, 12, tzinfo=UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_: now.replace(tzinfo=None), raising=True)
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    else:
        monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    request = AWSRequest("PUT", url, headers={"If-None-Match": "*", "Host": "s3.example.org:9000"}, data=b"")
    request.context["payload_signing_enabled"] = True
    botocore.auth.S3SigV4Auth(Credentials("key", "secret", token), "s3", "eu-central-1").add_auth(request)
    ours = conditional.signed("PUT", url, {"If-None-Match": "*"}, "key", "secret", "eu-central-1", now)
    assert ours["Authorization"] == request.headers["Authorization"]


@pytest.mark.parametrize(
    ("uri", "endpoint", "keys"),
    [
        ("/data/scores", "http://127.0.0.1:1", True),
        ("gs://bucket/scores", "http://127.0.0.1:1", True),
        ("s3://bucket/scores", None, True),
        ("s3://bucket/scores", "https://vpce-1.s3.eu-central-1.vpce.amazonaws.com", True),
        ("s3://bucket/scores", "http://127.0.0.1:1", False),
    ],
)
def test_what_is_known_or_cannot_be_asked_is_not_asked(monkeypatch, uri, endpoint, keys):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    if keys:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setattr(conditional, "_create", lambda *_: pytest.fail("it was asked"))
    conditional.refuse_unconditional(uri)


# --- two first runs ---------------------------------------------------------------------------------------------

FIRST = """
import sys, time
sys.path.insert(0, sys.argv[1])
from store_rows import Receipt, rows
from medray.scores import ScoreStore
print("ready", flush=True)
for line in sys.stdin:
    uri, moment = line.split()
    time.sleep(max(0.0, float(moment) - time.time()))
    store = ScoreStore.open(uri, create=True)
    run = store.begin_run("score", f"r-{sys.argv[2]}", "b" + sys.argv[2])
    sink = store.sink(store.claim("b" + sys.argv[2]))
    sink.commit([Receipt(sink.write(iter([rows({sys.argv[2]: 1})])))])
    store.end_run(run)
    print("done", flush=True)
"""


def test_two_first_runs_at_one_moment_make_one_store_and_both_commit(place):
    command = [sys.executable, "-c", FIRST, str(Path(__file__).parent)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with ExitStack() as open_processes:
        racers = [open_processes.enter_context(subprocess.Popen([*command, name], text=True, **pipes)) for name in "pq"]
        assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 2
        for turn in range(3):
            uri, moment = f"{place}/turn-{turn}/scores", time.time() + 0.2
            for racer in racers:
                racer.stdin.write(f"{uri} {moment}\n")
                racer.stdin.flush()
            told = [racer.stdout.readline() for racer in racers]
            assert told == ["done\n"] * 2, [racer.communicate()[1][-2000:] for racer in racers]
            store = ScoreStore.open(uri)
            assert seen(store) == ["p", "q"]
            assert {row["run_id"]: row["state"] for row in store.runs()} == {"r-p": "done", "r-q": "done"}


@pytest.mark.parametrize("stage", ["draft of the log", "lock", "version", "committed"])
def test_a_store_that_another_run_makes_at_this_moment_is_no_reason_to_refuse(place, monkeypatch, stage):
    """The other run gets as far as `stage` after this one has looked whether a table is there."""
    uri, real, looked = f"{place}/{stage.replace(' ', '-')}/scores", delta.is_table, []

    def is_table(at: str) -> bool:
        known = real(at)
        if at == uri and not looked:
            looked.append(at)
            if stage == "draft of the log":
                files.write_bytes(f"{uri}/_delta_log/_commit_1.json.tmp", b"{}")
            elif stage == "lock":
                files.write_bytes(f"{uri}/_medray/nightly.json", b"{}")
            else:
                other = ScoreStore.open(uri, create=True)
                if stage == "committed":
                    score(other, "b1", rows({"a": 1}))
        return known

    monkeypatch.setattr(delta, "is_table", is_table)
    store = ScoreStore.open(uri, create=True)
    score(store, "b2", rows({"b": 1}))
    assert seen(store) == (["a", "b"] if stage == "committed" else ["b"])


@pytest.mark.parametrize("name", ["notes.txt", "bundle_id=b1/part-1.parquet", "_delta_log/_last_checkpoint"])
def test_a_place_that_holds_something_else_is_refused_as_before(place, name):
    files.write_bytes(f"{place}/other/{name}", b"mine")
    with pytest.raises(StoreError, match="holds something else"):
        ScoreStore.open(f"{place}/other", create=True)


# --- each file is looked at before its commit -------------------------------------------------------------------


@pytest.mark.parametrize("spoil", ["absent", "short"])
@pytest.mark.parametrize("count", [1, 40])
def test_a_file_that_is_not_there_as_it_was_written_is_not_committed(place, spoil, count):
    store = ScoreStore.open(f"{place}/{spoil}-{count}/scores", create=True)
    sink = store.sink(store.claim("b1"))
    written = [sink.write(iter([rows({f"e{number}": 1})])) for number in range(count)]
    uri = files.join(store.uri, str(written[-1]["path"]))
    if spoil == "absent":
        files.remove_file(uri)
    else:
        files.write_bytes(uri, files.read_bytes(uri)[:-10])
    version = ScoreStore.open(store.uri).version
    with pytest.raises(MachineError, match="is not there") as refused:
        sink.commit([Receipt(facts) for facts in written])
    assert refused.value.expected == f"{written[-1]['size']} bytes"
    assert ScoreStore.open(store.uri).version == version and seen(store) == []
    sink.commit([Receipt(facts) for facts in written[:-1]])
    assert len(seen(store)) == count - 1


def test_a_merged_file_is_looked_at_before_it_takes_the_place_of_others(place, monkeypatch):
    from medray.scores import upkeep

    store = ScoreStore.open(f"{place}/merged/scores", create=True)
    for name in "abc":
        score(store, "b1", rows({name: 1}))
    real = upkeep.write_file

    def cut(*given, **options):
        facts = real(*given, **options)
        uri = files.join(store.uri, facts["path"])
        files.write_bytes(uri, files.read_bytes(uri)[:-1])
        return facts

    monkeypatch.setattr(upkeep, "write_file", cut)
    with pytest.raises(MachineError, match="is not there"):
        store.compact()
    assert seen(ScoreStore.open(store.uri)) == ["a", "b", "c"]
