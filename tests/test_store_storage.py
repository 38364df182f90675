"""The store on storage that fails: a disk that is full, one that may not be written, a power cut. Real file systems."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import toy
from store_rows import Receipt, content, ids, manifest, rows, score, seen

from medray.engines.local import LocalEngine
from medray.errors import MachineError, StoreError
from medray.learning import bundles
from medray.scores import GIVEN, ScoreStore
from medray.storage import files
from medray.verbs.score import score as run_score


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB of its own. Skips where this user may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "medray-test", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def many(count: int) -> pa.RecordBatch:
    """`count` rows that do not compress."""
    random = np.random.default_rng(0)
    found = {f.name: pa.nulls(count, f.type) for f in GIVEN}
    found |= {"entry_id": pa.array([random.bytes(20).hex() for _ in range(count)])}
    found |= {"subject_id": found["entry_id"], "sample_id": found["entry_id"]}
    found |= {"fingerprint": pa.array([content(1)] * count, pa.binary()), "output": pa.array(["y"] * count)}
    return pa.RecordBatch.from_pydict(found, schema=GIVEN)


def fill(place: Path) -> Path:
    """A file that takes all that is left of the disk."""
    rest = place / "rest"
    with open(rest, "wb", buffering=0) as stream, pytest.raises(OSError, match="No space"):
        while True:
            stream.write(b"\0" * 4096)
    return rest


def test_a_disk_that_is_full_while_scores_are_written_is_said_and_leaves_the_store_whole(small_disk: Path) -> None:
    store = ScoreStore.open(str(small_disk / "scores"), create=True)
    score(store, "b1", rows({"a": 1}))
    sink = store.sink(store.claim("b1"))
    with pytest.raises(MachineError, match="cannot be written") as caught:
        sink.write(iter([many(20_000)]))
    assert "No space left" in caught.value.found and "free space" in caught.value.do
    assert len(list(Path(store.uri).rglob("bundle_id=*/*.parquet"))) == 1  # nothing half-written stays
    assert seen(ScoreStore.open(store.uri)) == ["a"]
    sink.commit([Receipt(sink.write(iter([rows({"b": 1})])))])
    assert seen(ScoreStore.open(store.uri)) == ["a", "b"]


def test_a_disk_that_is_full_when_scores_are_committed_loses_nothing(small_disk: Path) -> None:
    store = ScoreStore.open(str(small_disk / "scores"), create=True)
    score(store, "b1", rows({"a": 1}))
    sink = store.sink(store.claim("b1"))
    written = Receipt(sink.write(iter([rows({"b": 1})])))
    rest = fill(small_disk)
    with pytest.raises(MachineError, match="before is safe") as caught:
        sink.commit([written])
    assert "No space left" in caught.value.found
    with pytest.raises(MachineError):
        ScoreStore.open(store.uri).claim("b1")
    with pytest.raises(MachineError):
        store.begin_run("score", "r1")
    with pytest.raises(MachineError):
        store.vacuum()
    rest.unlink()
    assert seen(ScoreStore.open(store.uri)) == ["a"]
    sink.commit([written])
    again = ScoreStore.open(store.uri)
    assert seen(again) == ["a", "b"] and ids(again.pending(manifest({"a": 1, "b": 1, "c": 1}), "b1")) == ["c"]
    json.dumps(again.history())


def test_no_store_is_made_on_a_full_disk(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(StoreError, match="cannot be opened"):
        ScoreStore.open(str(small_disk / "scores"), create=True)


def test_a_store_that_may_only_be_read_is_read_and_says_so_when_written(small_disk: Path) -> None:
    store = ScoreStore.open(str(small_disk / "scores"), create=True)
    score(store, "b1", rows({"a": 1}))
    sink = store.sink(store.claim("b1"))
    written = Receipt(sink.write(iter([rows({"b": 1})])))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    reader = ScoreStore.open(store.uri)
    assert seen(reader) == ["a"] and reader.summary()["bundles"]["b1"]["entries"] == 1
    assert len(reader.history()) == 3
    attempts: list[Callable[[], object]] = [
        lambda: reader.claim("b1"),
        lambda: sink.write(iter([rows({"c": 1})])),
        lambda: sink.commit([written]),
        lambda: reader.vacuum(),
        lambda: reader.forget({"s-a"}),
    ]
    for attempt in attempts:
        with pytest.raises(MachineError) as caught:
            attempt()
        assert "ead-only file system" in caught.value.found, caught.value
    assert reader.compact() == {"files_merged": 0, "files_made": 0}
    assert seen(ScoreStore.open(store.uri)) == ["a"]


def test_a_score_run_on_a_full_disk_ends_with_a_message_and_the_next_run_does_the_rest(
    small_disk: Path, tmp_path: Path
) -> None:
    for number in range(6):
        toy.write_image(tmp_path / "archive" / f"{number}.dcm", number, number % 2)
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    run = toy.score_run(tmp_path, store=str(small_disk / "scores"))
    ScoreStore.open(run.store_uri, create=True).claim("none")
    rest = fill(small_disk)
    with pytest.raises(MachineError, match="No space left"):
        run_score(run, LocalEngine())
    rest.unlink()
    assert run_score(run, LocalEngine()).scored == 6
    assert len(seen(ScoreStore.open(run.store_uri))) == 6


def test_a_commit_returns_when_its_files_its_log_and_their_folders_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that the store writes is fsynced, with the folder that names it, before the commit returns."""
    synced: set[str] = set()
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", noted)
    store = ScoreStore.open(str(tmp_path / "scores"), create=True)
    for name in "ab":
        score(store, "b1", rows({name: 1}))
    store.compact()
    store.forget({"s-a"})
    assert {str(path) for path in Path(store.uri).rglob("*")} - synced == set()
    assert str(tmp_path) in synced and str(tmp_path / "scores") in synced
