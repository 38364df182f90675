"""Training on engine local whose work folder is in a bucket, over HTTP on the loopback: its checkpoints are kept there."""

from __future__ import annotations

import pytest
import toy
from s3_server import BUCKET, s3_server

from medray.engines.checkpoints import Copies
from medray.engines.local import LocalEngine
from medray.storage import files
from medray.verbs.train import train


def test_a_training_that_was_killed_goes_on_from_its_checkpoint_in_a_bucket(tmp_path, monkeypatch):
    toy.write_archive(tmp_path, 40)
    settings = {"epochs": 2, "batch_size": 8, "checkpoint_minutes": 1e-9}
    whole = train(toy.train_run(tmp_path, training=settings), LocalEngine())
    put, copied = Copies.put, []

    class Killed(BaseException):
        pass

    def put_then_die(self, checkpoint):
        put(self, checkpoint)
        copied.append(checkpoint.joinpath("state.json").read_text())
        if len(copied) == 1:
            raise Killed

    monkeypatch.setattr(Copies, "put", put_then_die)
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        work = f"s3://{BUCKET}/work"
        run = toy.train_run(tmp_path, work=work, bundle=str(tmp_path / "resumed"), training=settings)
        with pytest.raises(Killed):
            train(run, LocalEngine())
        resumed = train(run, LocalEngine())
        kept = [
            file.uri for file in files.list_files(work) if file.uri.endswith("state.json") and "checkpoint-" in file.uri
        ]
    assert len(kept) == 2, kept
    assert copied[1] != copied[0], "it began again from zero"
    assert resumed.bundle_id == whole.bundle_id


def test_the_two_newest_copies_are_kept_and_one_that_was_cut_off_is_not_whole(tmp_path):
    copies = Copies(str(tmp_path / "bucket"))
    for number in (1, 2, 3):
        source = tmp_path / f"source{number}"
        source.mkdir()
        (source / "state.json").write_text(str(number))
        (source / "last.safetensors").write_bytes(bytes([number]))
        copies.put(source)
    (tmp_path / "bucket" / "checkpoint-000003" / "state.json").unlink()
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    Copies(str(tmp_path / "bucket")).fetch(fetched)
    there = {str(path.relative_to(fetched)): path.read_bytes() for path in fetched.rglob("*.*")}
    assert there == {
        "checkpoint/last.safetensors": b"\2",
        "checkpoint/state.json": b"2",
    }
