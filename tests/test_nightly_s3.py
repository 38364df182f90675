"""A night whose archive, store and summary are in a bucket, over HTTP on the loopback."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict

import pytest
import toy
from s3_server import BUCKET, s3_server

from medray.config.runs import NightlyRun
from medray.engines.local import LocalEngine
from medray.learning import bundles
from medray.storage import files, locks
from medray.verbs.nightly import LOCK, nightly

HOME = f"s3://{BUCKET}/nightly"


@pytest.fixture(autouse=True)
def _endpoint() -> Iterator[None]:
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(locks, "SETTLE_SECONDS", 0.2)
        yield


def test_a_night_in_a_bucket_holds_its_lock_there_and_lets_go(tmp_path):
    bundles.save(toy.bundle(), f"{HOME}/bundle")
    for number in range(6):
        toy.write_image(tmp_path / f"{number}.dcm", number, 0)
        files.write_bytes(f"{HOME}/archive/{number}.dcm", (tmp_path / f"{number}.dcm").read_bytes())
    names = {name: f"{HOME}/{name}" for name in ("archive", "work")}
    run = NightlyRun.model_validate(
        {**names, "store": f"{HOME}/scores", "bundles": f"{HOME}/bundle", "engine": {"kind": "local"}}
    )
    lock = f"{HOME}/scores/{LOCK}"
    first = nightly(run, LocalEngine())
    assert (first.new, first.scored, first.exit_code(0.01), files.exists(lock)) == (6, 6, 0, False)
    summary = json.loads(files.read_bytes(first.summary))
    assert summary["bundles"][0]["scored"] == 6 and summary["housekeeping"] != {}
    assert b"Nightly scoring" in files.read_bytes(f"{HOME}/work/nights/latest.html")

    other = locks.Holder("elsewhere", 1, "1", "other", "2026-03-01T00:00:00+00:00", time.time())
    files.write_bytes(lock, json.dumps(asdict(other)).encode())
    left = nightly(run, LocalEngine())
    assert left.held_by == str(other) and left.exit_code(0.01) == 0
    silent = asdict(other) | {"beat": time.time() - locks.STALE_SECONDS - 1}
    files.write_bytes(lock, json.dumps(silent).encode())
    after = nightly(run, LocalEngine())
    assert (after.held_by, after.pending, files.exists(lock)) == (None, 0, False)


def test_of_two_that_write_a_lock_at_once_the_last_holds_it(monkeypatch):
    """Both found no lock; the other writes while this one waits to look again."""
    lock, other = f"{HOME}/lock.json", locks.Holder("elsewhere", 1, "1", "other", "", time.time())

    def settle(seconds: float) -> None:
        files.write_bytes(lock, json.dumps(asdict(other)).encode())

    monkeypatch.setattr(locks.time, "sleep", settle)
    with locks.hold(lock, "mine") as found:
        assert found == other
    assert files.exists(lock)
