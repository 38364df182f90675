"""The score store, and whole score runs, on an S3 endpoint: the real protocol over HTTP, on the loopback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest
import toy
from deltalake import DeltaTable
from s3_server import BUCKET, s3_server
from store_rows import Receipt, manifest, rows, score, seen

from medray.engines.local import LocalEngine
from medray.errors import Fenced, StoreError
from medray.learning import bundles
from medray.scores import ScoreStore, upkeep
from medray.storage import files


@pytest.fixture(scope="module", autouse=True)
def _endpoint() -> Iterator[None]:
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def uri(request: pytest.FixtureRequest) -> str:
    """A place in the bucket of this test's own."""
    return f"s3://{BUCKET}/{abs(hash(request.node.name)):x}/scores"


def test_a_store_in_a_bucket_is_made_only_when_asked_for(uri: str) -> None:
    with pytest.raises(StoreError, match="no score store here"):
        ScoreStore.open(uri)
    assert ScoreStore.open(uri, create=True).version == ScoreStore.open(uri).version == 0
    other = files.join(uri, "..", "other").replace("scores/../", "")
    files.write_bytes(files.join(other, "notes.txt"), b"mine")
    with pytest.raises(StoreError, match="holds something else"):
        ScoreStore.open(other, create=True)


def test_the_protocol_holds_in_a_bucket_as_on_a_disk(uri: str) -> None:
    store = ScoreStore.open(uri, create=True)
    stale = store.sink(store.claim("b1"))
    stale.commit([Receipt(stale.write(iter([rows({"a": 1}), rows({"b": 1}, reason="truncated")])))])
    late = Receipt(stale.write(iter([rows({"z": 1})])))
    other = ScoreStore.open(uri)
    score(other, "b1", rows({"c": 1}))
    with pytest.raises(Fenced):
        stale.commit([late])
    assert seen(store) == ["a", "b", "c"]
    pending = other.pending(manifest({"a": 1, "a2": 1, "c": 2}), "b1")
    assert pending.column("entry_id").to_pylist() == ["a2", "c"]
    assert other.scores("b1").column("entry_id").to_pylist() == ["a", "b", "c"]


def test_an_attempt_that_raises_leaves_nothing_in_the_bucket(uri: str) -> None:
    store = ScoreStore.open(uri, create=True)

    def broken():
        yield rows({"a": 1})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.sink(store.claim("b1")).write(broken())
    assert upkeep.parquet_files(uri) == []


def test_upkeep_works_in_a_bucket(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScoreStore.open(uri, create=True)
    for name in "abc":
        score(store, "b1", rows({name: 1}))
    until = store.version
    assert store.compact() == {"files_merged": 3, "files_made": 1}
    assert store.vacuum(timedelta(0))["files_removed"] == 0  # none is an hour old
    assert store.forget({"s-b"}) == {"rows": 1, "files": 2, "unreadable": 0}
    assert seen(store) == ["a", "c"]
    with pytest.raises((OSError, FileNotFoundError)):
        DeltaTable(uri, version=until).to_pyarrow_table()
    monkeypatch.setattr(upkeep, "LIVE", timedelta(seconds=-2))
    assert store.vacuum(timedelta(0))["files_removed"] == 2
    assert seen(store) == ["a", "c"] and len(upkeep.parquet_files(uri)) == 1
    assert [row["what"] for row in store.history()][:4] == ["vacuum", "forget", "vacuum", "compact"]


RACER = """
import sys
sys.path.insert(0, sys.argv[1])
from store_rows import Receipt, rows
from medray.errors import Fenced
from medray.scores import ScoreStore
store, numbers, committed = ScoreStore.open(sys.argv[2]), [], 0
for turn in range(8):
    sink = store.sink(store.claim("b1"))
    numbers.append(sink.claim.number)
    try:
        sink.commit([Receipt(sink.write(iter([rows({f"{sys.argv[3]}-{turn}": 1})])))])
        committed += 1
    except Fenced:
        pass
print(committed, *numbers)
"""


def test_writers_that_race_never_win_together(uri: str) -> None:
    """A log entry is made with a conditional PUT: two processes that claim and commit at once share no claim."""
    store = ScoreStore.open(uri, create=True)
    command = [sys.executable, "-c", RACER, str(files.local_path(__file__).parent), uri]
    racers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "pqr"]
    told = [[int(word) for word in racer.communicate(timeout=200)[0].split()] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    numbers = sorted(number for _, *claims in told for number in claims)
    assert numbers == list(range(1, 25))
    committed = sum(first for first, *_ in told)
    assert len(seen(store)) == committed > 0
    assert ScoreStore.open(uri).version == 24 + committed


def test_a_score_run_reads_and_writes_buckets_alone(uri: str, tmp_path) -> None:
    from medray.verbs.score import score as run_score

    base = uri.removesuffix("/scores")
    for number in range(5):
        toy.write_image(tmp_path / f"{number}.dcm", number, number % 2)
        files.write_bytes(f"{base}/archive/{number % 2}/{number}.dcm", (tmp_path / f"{number}.dcm").read_bytes())
    files.write_bytes(f"{base}/archive/notes.txt", b"the Tuesday list")
    bundles.save(toy.bundle(), f"{base}/bundle")
    places = {"archive": f"{base}/archive", "bundle": f"{base}/bundle", "store": uri, "work": f"{base}/work"}
    run = toy.score_run(tmp_path, **places)
    first = run_score(run, LocalEngine())
    assert (first.entries, first.pending, first.scored, first.failed) == (6, 6, 5, 1)
    assert first.by_reason == {"unrecognised_format": 1}
    toy.write_image(tmp_path / "9.dcm", 9, 1)
    files.write_bytes(f"{base}/archive/new.dcm", (tmp_path / "9.dcm").read_bytes())
    second = run_score(run, LocalEngine())
    assert (second.entries, second.pending, second.scored) == (7, 1, 1)
    assert len(seen(ScoreStore.open(uri))) == 7
