"""Files of medray's own that a kill, a power cut or a full disk has spoilt: rebuilt, passed over, or refused in a sentence."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import toy

from medray.datasets.shards import ShardSet
from medray.engines import checkpoints as places
from medray.engines.local import LocalEngine
from medray.errors import MachineError, MedrayError
from medray.learning import bundles, checkpoints
from medray.learning.checkpoints import BrokenCheckpoint
from medray.progress import Silent
from medray.storage import files
from medray.verbs.inspect import inspect_history, inspect_store
from medray.verbs.prepare import prepare
from medray.verbs.score import score
from medray.verbs.train import train

Spoil = Callable[[bytes], bytes]
SPOILS: dict[str, Spoil] = {
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "other bytes": lambda content: content[:-40] + bytes(40 - 1) + b"}",
    "no file": lambda content: b"",
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spoilt")
    toy.write_archive(folder, 40)
    return folder


class Killed(BaseException):
    pass


class Notes(Silent):
    def __init__(self) -> None:
        self.said: set[str] = set()

    def training(self, live) -> None:
        self.said.add(live["note"])


def killed_after(saves: int, monkeypatch: pytest.MonkeyPatch, run) -> Path:
    """The folder of checkpoints of a training that was killed when it had saved so many."""
    real, count = places.replace_newest, 0

    def replace(checkpoint, save):
        nonlocal count
        real(checkpoint, save)
        count += 1
        if count == saves:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(places, "replace_newest", replace)
        with pytest.raises(Killed):
            train(run, LocalEngine())
    [folder] = Path(run.folder, "training").iterdir()
    return folder


def run_in(archive: Path, folder: Path):
    return toy.train_run(
        archive, bundle=str(folder / "bundle"), work=str(folder / "work"), training={"epochs": 4, "batch_size": 4}
    )


@pytest.fixture(scope="module")
def whole(archive, tmp_path_factory) -> str:
    """Bundle id of the same training without a kill."""
    return train(run_in(archive, tmp_path_factory.mktemp("whole")), LocalEngine()).bundle_id


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("last.safetensors", "half"),
        ("last.safetensors", "other bytes"),
        ("best.safetensors", "empty"),
        ("optimizer.safetensors", "no file"),
        ("state.json", "half"),
    ],
)
def test_a_spoilt_checkpoint_is_passed_over_for_the_one_before(archive, whole, tmp_path, monkeypatch, name, spoil):
    run = run_in(archive, tmp_path)
    file = killed_after(3, monkeypatch, run) / "checkpoint" / name
    file.write_bytes(SPOILS[spoil](file.read_bytes()))
    if spoil == "no file":
        file.unlink()
    notes = Notes()
    assert train(run, LocalEngine(), notes).bundle_id == whole
    assert notes.said == {
        "the checkpoint checkpoint is not whole: training goes on from the one before it, checkpoint-before"
    }


def test_training_begins_again_where_no_checkpoint_is_whole(archive, whole, tmp_path, monkeypatch):
    run = run_in(archive, tmp_path)
    for file in killed_after(2, monkeypatch, run).rglob("last.safetensors"):
        file.write_bytes(b"")
    notes = Notes()
    assert train(run, LocalEngine(), notes).bundle_id == whole
    [said] = notes.said
    assert "begins again from the start" in said


def test_a_kill_between_the_two_renames_leaves_the_checkpoint_before(archive, whole, tmp_path, monkeypatch):
    run = run_in(archive, tmp_path)
    shutil.rmtree(killed_after(2, monkeypatch, run) / "checkpoint")
    notes = Notes()
    assert train(run, LocalEngine(), notes).bundle_id == whole
    assert notes.said == {""}


def test_a_checkpoint_without_digests_as_medray_0_1_wrote_it_is_taken(archive, whole, tmp_path, monkeypatch):
    import json

    run = run_in(archive, tmp_path)
    file = killed_after(2, monkeypatch, run) / "checkpoint" / "state.json"
    state = json.loads(file.read_text())
    del state["digests"]
    file.write_text(json.dumps(state))
    assert checkpoints.read_state(file.parent)["epoch"] == 2
    assert train(run, LocalEngine()).bundle_id == whole


def test_the_last_checkpoint_cut_short_is_a_refusal_that_says_what_to_do(tmp_path):
    (tmp_path / "state.json").write_text('{"plan": "a"')
    with pytest.raises(BrokenCheckpoint) as refused:
        places.fitted(tmp_path, 1)
    assert "--fresh" in str(refused.value)


# --- decoded samples on the node's disk -------------------------------------------------------------------------


@pytest.fixture
def common(tmp_path, monkeypatch) -> Path:
    """A folder for temporary files that all users may write to."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_the_cache_of_decoded_samples_can_be_entered_by_its_user_alone(archive, common, tmp_path, monkeypatch):
    seen: list[tuple[int, int, int]] = []
    real = places.replace_newest

    def look(checkpoint, save):
        [own] = common.glob("medray-cache-*")
        for file in own.rglob("*.arrow"):
            seen.append(tuple(stat.S_IMODE(each.stat().st_mode) for each in (own, file.parent, file)))  # type: ignore[arg-type]
        real(checkpoint, save)

    monkeypatch.setattr(places, "replace_newest", look)
    old = os.umask(0o000)
    try:
        train(run_in(archive, tmp_path), LocalEngine())
    finally:
        os.umask(old)
    assert set(seen) == {(0o700, 0o700, 0o600)}
    assert [list(own.iterdir()) for own in common.iterdir()] == [[]]  # and nothing stays


def test_a_training_that_fails_leaves_no_decoded_samples(archive, common, tmp_path, monkeypatch):
    monkeypatch.setattr(places, "replace_newest", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        train(run_in(archive, tmp_path), LocalEngine())
    assert not list(common.rglob("*.arrow"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize("there", ["folder", "link", "file"])
def test_a_cache_that_another_user_made_first_is_not_taken(common, there):
    name = common / f"medray-cache-{os.getuid()}"
    if there == "link":
        (common / "theirs").mkdir()
        name.symlink_to(common / "theirs")
    elif there == "file":
        name.write_bytes(b"")
    else:
        name.mkdir()
        os.chown(name, 65534, 65534)
    found = Path(places.cache_folder("plan")).parent
    assert found.name == f"{name.name}.1" and stat.S_IMODE(found.stat().st_mode) == 0o700
    assert Path(places.cache_folder("plan")).parent == found  # every worker of the node finds the same


def test_an_own_cache_that_others_could_enter_is_closed(common):
    (common / f"medray-cache-{os.getuid()}").mkdir(mode=0o755)
    found = Path(places.cache_folder("plan")).parent
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_a_machine_where_all_names_are_taken_is_refused(tmp_path):
    for number in range(100):
        (tmp_path / (f"own.{number}" if number else "own")).write_bytes(b"")
    with pytest.raises(MachineError, match="this user's alone"):
        files.own_folder(tmp_path, "own")


def test_caches_that_killed_trainings_left_a_day_ago_go(common):
    left = Path(places.cache_folder("killed"))
    left.mkdir()
    (left / "a.arrow").write_bytes(b"x")
    os.utime(left, (0, 0))
    late = Path(places.cache_folder("at work"))
    late.mkdir()
    places.cache_folder("new")
    assert not left.exists() and late.exists()


def test_shards_and_the_index_are_closed_to_other_users(archive, tmp_path):
    run = run_in(archive, tmp_path)
    train(run, LocalEngine())
    for name in ("shards", "manifest"):
        assert stat.S_IMODE(Path(run.folder, name).stat().st_mode) & 0o007 == 0
    assert bundles.load(run.bundle_uri)


# --- the files of index, prepare and score ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def worked(tmp_path_factory) -> Path:
    """An archive with a training, an evaluation and scores behind it."""
    folder = tmp_path_factory.mktemp("worked")
    toy.write_archive(folder, 20)
    run = toy.train_run(folder, training={"epochs": 1})
    train(run, LocalEngine())
    score(toy.score_run(folder), LocalEngine())
    return folder


REBUILT = ["work/manifest/files-*", "work/manifest/parts-*", "work/manifest/entries-*", "work/manifest/state.json"]
REBUILT += ["work/shards/*/index.parquet", "work/shards/*/shard-*"]
OF_THE_STORE = {
    "scores/bundle_id=*/part-*": "a file of scores cannot be read",
    "scores/_delta_log/*0.json": "the score store cannot be opened",
}
CUT = {"half": SPOILS["half"], "empty": SPOILS["empty"], "garbage": lambda content: os.urandom(16) + b"PAR1"}


def copied(worked: Path, folder: Path, pattern: str, spoil: str) -> None:
    """The archive and all that was made of it, with one file spoilt."""
    shutil.copytree(worked, folder, dirs_exist_ok=True)
    file = next(iter(sorted(folder.glob(pattern))))
    file.write_bytes(CUT[spoil](file.read_bytes()))


@pytest.mark.parametrize("spoil", CUT)
@pytest.mark.parametrize("pattern", REBUILT)
def test_a_spoilt_file_of_the_work_folder_is_made_again(worked, tmp_path, pattern, spoil):
    run = toy.train_run(tmp_path, training={"epochs": 1})
    expected = prepare(toy.train_run(worked, training={"epochs": 1}), LocalEngine())
    copied(worked, tmp_path, pattern, spoil)
    found = prepare(run, LocalEngine())
    assert (found.entries, found.samples, found.splits) == (expected.entries, expected.samples, expected.splits)
    assert ShardSet.open(found.folder).is_whole()
    assert prepare(run, LocalEngine()).reused


@pytest.mark.parametrize("spoil", ["half", "empty"])
@pytest.mark.parametrize("pattern", OF_THE_STORE)
def test_a_spoilt_file_of_the_store_is_a_sentence_that_names_it(worked, tmp_path, pattern, spoil):
    copied(worked, tmp_path, pattern, spoil)
    run = toy.score_run(tmp_path)
    for verb in (lambda: score(run, LocalEngine()), lambda: inspect_store(run.store_uri)):
        with pytest.raises(MedrayError, match=OF_THE_STORE[pattern]) as refused:
            verb()
        assert str(tmp_path / "scores") in str(refused.value) and refused.value.do


@pytest.mark.parametrize("pattern", ["scores/_medray/runs/part-*", "scores/_medray/runs/_delta_log/*0.json"])
def test_a_spoilt_audit_table_is_a_sentence(worked, tmp_path, pattern):
    copied(worked, tmp_path, pattern, "half")
    with pytest.raises(MedrayError, match="the audit table of the store cannot be read"):
        inspect_history(str(tmp_path / "scores"))


def test_a_shard_of_other_bytes_in_its_full_length_is_refused_with_what_to_do(worked, tmp_path):
    shutil.copytree(worked, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("work/shards/*/shard-*"):
        file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(MachineError, match="a shard is spoilt") as refused:
        train(toy.train_run(tmp_path, training={"epochs": 2}), LocalEngine())
    assert "remove the folder" in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_lock_file_of_nonsense_holds_nobody_up_for_ever(tmp_path, content):
    from medray.storage import locks

    place = tmp_path / "lock.json"
    place.write_bytes(content)
    os.utime(place, (0, 0))
    with locks.hold(str(place), "me") as other:
        assert other is None
