"""Training that is killed at any moment, also while a checkpoint is written, and checkpoints that are spoilt in any byte: the
same final weights, or those from the checkpoint before, in a sentence."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from processes import descendants
from s3_server import BUCKET, s3_server

from medray.engines import checkpoints as places
from medray.engines.checkpoints import DRAFT, Kept, before, replace_newest
from medray.engines.local import LocalEngine
from medray.errors import MachineError
from medray.learning import bundles, checkpoints
from medray.learning.checkpoints import BrokenCheckpoint, broken_note, newest_whole, read_state
from medray.learning.plan import State
from medray.storage import files
from medray.verbs.train import train

FILES = ("last.safetensors", "best.safetensors", "optimizer.safetensors", "state.json")


def save(number: int) -> Callable[[Path], None]:
    """What writes the checkpoint of epoch `number`."""

    def write(folder: Path) -> None:
        tensors = {name: {"a": torch.full((3,), float(number))} for name in ("last", "best", "optimizer")}
        state = State(epoch=number, history=[], best=0.5, thresholds=(0.25,), stopped="").__dict__
        checkpoints.write(folder, {"plan": "p", **state}, tensors)

    return write


def epoch(start: Path | None) -> int | None:
    """That of a checkpoint, whose tensors are held against it."""
    if start is None:
        return None
    number = read_state(start)["epoch"]
    assert all(float(checkpoints.read_tensors(start, name)["a"][0]) == number for name in ("last", "best", "optimizer"))
    return number


# --- spoilt bytes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The folder of a training with the checkpoints of its epochs 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    for number in (1, 2):
        replace_newest(folder / "checkpoint", save(number))
    return folder


@pytest.mark.parametrize("name", FILES)
def test_no_bit_can_be_flipped_and_no_file_be_cut_without_a_fall_back(two, tmp_path, name):
    """1,000 bits of state.json and 200 of each other file by a seed; every third length of it, and every 16th of the others."""
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoint" / name
    whole = path.read_bytes()
    flips, step = (1000, 3) if name == "state.json" else (200, 16)
    bits = random.Random(name).sample(range(8 * len(whole)), flips)
    spoilt = [whole[:length] for length in range(0, len(whole), step)]
    for bit in bits:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        spoilt.append(bytes(flipped))
    for content in spoilt:
        path.write_bytes(content)
        with pytest.raises(BrokenCheckpoint):
            read_state(path.parent)
    path.unlink()
    start, broken = newest_whole([path.parent, before(path.parent)])
    assert epoch(start) == 1 and "goes on from the one before it, checkpoint-before" in broken_note(broken, start)


def test_a_checkpoint_that_the_storage_does_not_give_now_is_not_given_up(two, tmp_path, monkeypatch):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    read = Path.read_bytes

    def away(path: Path) -> bytes:
        if path.name == "last.safetensors" and path.parent.name == "checkpoint":
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return read(path)

    saved = Kept(tmp_path, None)
    with monkeypatch.context() as patch, pytest.raises(MachineError, match="storage does not give") as refused:
        patch.setattr(Path, "read_bytes", away)
        saved.start()
    assert not isinstance(refused.value, BrokenCheckpoint) and "nothing was removed" in refused.value.do
    assert epoch(saved.start()[0]) == 2


def test_a_checkpoint_of_a_training_that_has_not_ended_is_no_result(two):
    with pytest.raises(MachineError, match="has not ended"):
        places.fitted(two / "checkpoint", 1)


# --- kills while a checkpoint is written ------------------------------------------------------------------------


class Killed(BaseException):
    pass


@contextmanager
def killed_at(operation: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Killed is raised in place of the file operation of that number; gives the names of those that were carried out."""
    done: list[str] = []

    def counted(name: str, real: Callable) -> Callable:
        def call(*args: object, **options: object) -> object:
            if len(done) == operation:
                raise Killed
            done.append(name)
            return real(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for where, names in ((os, ("replace", "fsync")), (Path, ("rename", "mkdir")), (shutil, ("rmtree",))):
            for name in names:
                patch.setattr(where, name, counted(name, getattr(where, name)))
        patch.setattr(tempfile, "mkdtemp", counted("mkdtemp", tempfile.mkdtemp))
        yield done


def test_a_kill_at_any_file_operation_of_a_checkpoint_loses_none_that_was_whole(tmp_path, monkeypatch):
    """Before each mkdir, rename, fsync and removal: the newest is the new one or the one before it, and goes on from there."""
    ends: list[int | None] = []
    for first in (1, 2, 3):  # with none, one and two checkpoints there
        operation, killed = 0, True
        while killed:
            folder = tmp_path / f"{first}-{operation}"
            folder.mkdir()
            for number in range(1, first):
                replace_newest(folder / "checkpoint", save(number))
            killed = False
            with killed_at(operation, monkeypatch) as done:
                try:
                    replace_newest(folder / "checkpoint", save(first))
                except Killed:
                    killed = True
            start, note = Kept(folder, None).start()
            assert epoch(start) in ({first, first - 1} if first > 1 else {1, None}), (first, operation, done)
            assert note == ""
            ends.append(epoch(start))
            saved = Kept(folder, None)
            saved.start()
            saved.put(save(first + 1))
            assert epoch(saved.start()[0]) == first + 1
            if first > 1:
                assert epoch(newest_whole([before(folder / "checkpoint")])[0]) in (first, first - 1)
            operation += 1
        assert operation > 12
    assert {1, 2, 3, None} <= set(ends)


def test_the_newest_of_a_run_that_was_killed_between_two_renames_is_taken(two, tmp_path):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoint").rename(tmp_path / f"{DRAFT}left")
    assert epoch(Kept(tmp_path, None).start()[0]) == 2


def test_what_killed_runs_left_is_removed_once_it_is_old(two, tmp_path):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    for name in (".draft-old", ".outdated-old", ".draft-at-work"):
        (tmp_path / name).mkdir()
        if name.endswith("old"):
            os.utime(tmp_path / name, (0, 0))
    replace_newest(tmp_path / "checkpoint", save(3))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "checkpoint-before", ".draft-at-work"}


def test_checkpoints_of_engine_ray_of_medray_0_1_are_gone_on_from(two, tmp_path):
    shutil.copytree(two / "checkpoint-before", tmp_path / "checkpoint_2026-01-01_10-00-00.000001")
    shutil.copytree(two / "checkpoint", tmp_path / "checkpoint_2026-01-01_10-00-09.000001")
    saved = Kept(tmp_path, None)
    assert epoch(saved.start()[0]) == 2
    (tmp_path / "checkpoint_2026-01-01_10-00-09.000001" / "last.safetensors").write_bytes(b"")
    start, note = saved.start()
    assert epoch(start) == 1 and "goes on from the one before it" in note


# --- a disk that takes nothing more -----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 400 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system, where that is allowed")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that leaves 8 kB."""
    path = folder / "filler"
    free = shutil.disk_usage(folder).free
    path.write_bytes(bytes(free - 8192))
    return path


def test_a_full_disk_is_a_sentence_and_what_was_kept_stays(small_disk):
    saved = Kept(small_disk, None)
    for number in (1, 2):
        saved.put(save(number))
    filler = fill(small_disk)

    def large(folder: Path) -> None:
        (folder / "last.safetensors").write_bytes(bytes(100_000))

    with pytest.raises(MachineError, match="cannot be written") as refused:
        saved.put(large)
    assert refused.value.found == "No space left on device" and "goes on from the checkpoint before" in refused.value.do
    assert {path.name for path in small_disk.iterdir()} == {"checkpoint", "checkpoint-before", "filler"}
    assert epoch(saved.start()[0]) == 2
    filler.unlink()
    saved.put(save(3))
    assert epoch(saved.start()[0]) == 3


# --- whole trainings --------------------------------------------------------------------------------------------

LOCAL = """
import json, os, signal, sys, traceback
sys.path.insert(0, {tests!r})
from pathlib import Path
import toy
from medray.engines.local import LocalEngine
from medray.learning.training import Trainer
from medray.verbs.train import train

count, step = 0, Trainer._step

def training(kind, at):
    def one_more():
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, *args):
        one_more()
        return step(self, *args)

    def watch(event, args):
        if event in ("open", "os.rename", "os.mkdir", "shutil.rmtree", "os.remove", "os.rmdir"):
            if "/training/" in str(args[0]):
                one_more()

    if kind == "step":
        Trainer._step = counted
    if kind == "file":
        sys.addaudithook(watch)
    run = toy.train_run(Path({archive!r}), bundle={bundle!r}, work={work!r}, training={training!r})
    Path({bundle!r} + ".json").write_text(train(run, LocalEngine()).model_dump_json())

for kind, at in json.loads(sys.argv[1]):
    process = os.fork()  # what is imported is imported once
    if process == 0:
        try:
            training(kind, at)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(kind, at, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""

EPOCHS_ON_RAY = 300
"""Enough for 20 kills: an epoch takes a fraction of a second."""
ON_RAY = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import toy
from medray.engines.opening import open_engine
from medray.engines.spec import RaySpec
from medray.verbs.train import train
run = toy.train_run(Path({archive!r}), bundle={bundle!r}, work={work!r}, training={training!r})
engine = open_engine(RaySpec(workers=2, max_failures=40))
result = train(run, engine)
print(result.model_dump_json())
engine.close()
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    toy.write_archive(folder, 48)
    return folder


def driver(code: str, archive: Path, folder: Path, training: dict[str, object]) -> str:
    return code.format(
        tests=str(Path(__file__).parent),
        archive=str(archive),
        bundle=str(folder / "bundle"),
        work=str(folder / "work"),
        training=training,
    )


@pytest.mark.parametrize(("kills", "epochs"), [(2, 2), pytest.param(20, 30, marks=pytest.mark.slow)])
@pytest.mark.timeout(3600)
def test_a_training_killed_at_random_steps_and_file_operations_gives_the_same_weights_to_the_bit(
    archive, tmp_path, kills, epochs
):
    training: dict[str, object] = {"epochs": epochs, "batch_size": 1, "checkpoint_minutes": 1e-9}
    whole = train(
        toy.train_run(archive, bundle=str(tmp_path / "whole"), work=str(tmp_path / "whole-work"), training=training),
        LocalEngine(),
    )
    draw = random.Random(20261130)
    attempts = [(kind, draw.randrange(1, 40 if kind == "step" else 120)) for kind in ("step", "file") * (kills // 2)]
    code = driver(LOCAL, archive, tmp_path, training)
    words = [sys.executable, "-c", code, json.dumps([*attempts, ("none", 0)])]
    done = subprocess.run(words, capture_output=True, text=True)
    ends = [int(line.split()[2]) for line in done.stdout.splitlines()]
    assert ends == [-signal.SIGKILL] * kills + [0], done.stdout + done.stderr[-2000:]
    result = json.loads((tmp_path / "bundle.json").read_text())
    assert result["bundle_id"] == whole.bundle_id
    expected, weights = bundles.load(whole.bundle).weights, bundles.load(result["bundle"]).weights
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_training_on_ray_whose_workers_and_drivers_are_killed_20_times_gives_the_same_weights(archive, tmp_path):
    """Every fourth kill is of the driver with all of its Ray; the others are of one of two workers, at random moments."""
    training: dict[str, object] = {"epochs": EPOCHS_ON_RAY, "batch_size": 2, "checkpoint_minutes": 1e-9}
    code = driver(ON_RAY, archive, tmp_path, training)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    draw, kills, drivers = random.Random(20261130), 0, 0
    spoilt = 0
    done: tuple[int, str, str] | None = None
    while done is None:
        first = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        seen = b""
        while first.poll() is None and kills < 20:
            live = next(iter(tmp_path.glob("work/training/toy-*/live.json")), None)
            now = live.read_bytes() if live is not None else b""
            workers = descendants(first.pid, b"ray::RayTrainWorker")
            if now == seen or not workers:
                time.sleep(0.2)
                continue
            time.sleep(draw.uniform(0.0, 1.0))
            kills += 1
            if kills % 4 == 0:
                drivers += 1
                os.killpg(first.pid, signal.SIGKILL)
                first.wait()
                for stream in (first.stdout, first.stderr):
                    assert stream is not None
                    stream.close()
                newest = next(iter(tmp_path.glob("work/training/toy-*/checkpoint")), None)
                if newest is not None and kills % 8 == 0:  # and the newest checkpoint is spoilt
                    path = newest / draw.choice(FILES)
                    raw = bytearray(path.read_bytes())
                    raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
                    path.write_bytes(bytes(raw))
                    spoilt += 1
                break
            os.kill(draw.choice(workers), signal.SIGKILL)
            seen = live.read_bytes() if live is not None else b""
        if first.poll() is None or first.returncode != -signal.SIGKILL:
            out, errors = first.communicate()
            done = first.returncode, out, errors
    assert done[0] == 0, done[2][-3000:]
    assert (kills, drivers) == (20, 5) and spoilt == 2
    result = json.loads(done[1].strip().splitlines()[-1])
    whole = train(
        toy.train_run(archive, bundle=str(tmp_path / "whole"), work=str(tmp_path / "whole-work"), training=training),
        LocalEngine(),
    )
    expected, weights = bundles.load(whole.bundle).weights, bundles.load(result["bundle"]).weights
    far = max(float(np.abs(weights[name] - expected[name]).max()) for name in expected)
    assert result["epochs"] == EPOCHS_ON_RAY and far < 1e-2


# --- in a bucket ------------------------------------------------------------------------------------------------


def test_a_copy_in_a_bucket_that_was_killed_or_spoilt_leaves_the_one_before(tmp_path, monkeypatch):
    """The state is copied last. Killed after each file of the third copy; then each file of a whole one is emptied."""
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        uri = f"s3://{BUCKET}/work/training/toy"
        write = files.write_bytes

        def opened(number: int) -> Kept:
            folder = tmp_path / f"scratch-{number}"
            folder.mkdir()
            copies = places.Copies(uri)
            copies.fetch(folder)
            return Kept(folder, copies)

        first = opened(0)
        for number in (1, 2):
            first.put(save(number))
        for i in range(4):
            count = 0

            def dies(place: str, content: bytes, i: int = i) -> None:
                nonlocal count
                if place.startswith("s3://"):
                    if count == i:
                        raise Killed
                    count += 1
                write(place, content)

            saved = opened(10 + i)
            assert epoch(saved.start()[0]) == 2
            with monkeypatch.context() as patch, pytest.raises(Killed):
                patch.setattr(files, "write_bytes", dies)
                saved.put(save(3))
        assert epoch(opened(20).start()[0]) == 2
        opened(21).put(save(3))
        newest = sorted(file.uri.rpartition("/")[0] for file in files.list_files(uri) if "checkpoint-" in file.uri)[-1]
        for name in FILES:
            content = files.read_bytes(f"{newest}/{name}")
            files.write_bytes(f"{newest}/{name}", b"")
            start, note = opened(30 + FILES.index(name)).start()
            assert epoch(start) == 2 and "goes on from the one before it" in note
            files.write_bytes(f"{newest}/{name}", content)
        assert epoch(opened(40).start()[0]) == 3
