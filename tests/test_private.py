"""Who may read what medray leaves on a disk, whatever the umask: stat over everything that whole runs leave behind."""

from __future__ import annotations

import grp
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import toy
from store_rows import Receipt, rows, seen

from medray.archive.pseudonyms import pseudonym_key
from medray.config.runs import ConvertRun, NightlyRun
from medray.engines.base import Engine
from medray.engines.local import LocalEngine
from medray.engines.ray.engine import RayEngine
from medray.engines.spec import RaySpec
from medray.learning import bundles
from medray.scores import ScoreStore
from medray.storage import files, modes
from medray.verbs.evaluate import evaluate
from medray.verbs.inspect import write_montage
from medray.verbs.nightly import nightly
from medray.verbs.score import score
from medray.verbs.to_meds import to_meds
from medray.verbs.train import train
from medray.verbs.upkeep import forget, vacuum

WRITTEN = ("work", "bundle", "scores", "work-score", "work-night", "meds")
FHIR = '{"resourceType": "Patient", "id": "a", "birthDate": "1970-01-01", "gender": "female"}\n'


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode) & 0o777


def left_open(folder: Path, of_folder: int, of_file: int) -> dict[str, str]:
    """What below the folder, itself included, has other permissions: path to octal mode."""
    roots = [folder / name for name in WRITTEN if (folder / name).exists()]
    places = [place for root in roots for place in (root, *root.rglob("*"))]
    assert len(places) > 25
    wanted = {place: of_folder if place.is_dir() else of_file for place in places}
    return {str(p.relative_to(folder)): oct(permissions(p)) for p, mode in wanted.items() if permissions(p) != mode}


def all_verbs(folder: Path, engine: Engine, **changes: str) -> None:
    """Every verb that writes, with results on `folder`; images of which one is broken."""
    toy.write_archive(folder, 48)
    (folder / "archive" / "0" / "notes.dcm").write_text("no image")
    (folder / "fhir").mkdir()
    (folder / "fhir" / "a.ndjson").write_text(FHIR)
    local = isinstance(engine, LocalEngine)
    training = toy.train_run(folder, training={"epochs": 1}, max_failed=1.0, floor=local, **changes)
    train(training, engine)
    if local:
        evaluate(training, engine)
    scoring = toy.score_run(folder, max_failed=1.0, **changes)
    score(scoring, engine)
    toy.write_image(folder / "archive" / "new.dcm", 900, 1)
    settings = scoring.model_dump(exclude={"bundle", "work", "name"}, exclude_unset=True)
    night = {"name": "night", "bundles": [scoring.bundle], "work": str(folder / "work-night")}
    nightly(NightlyRun.model_validate(settings | night), engine)
    converted = {"archive": str(folder / "fhir"), "out": str(folder / "meds"), "source": {"kind": "fhir"}}
    to_meds(ConvertRun.model_validate(converted | changes), engine)
    forget(scoring.store, "S0003")
    vacuum(scoring.store, "1d")


@pytest.mark.parametrize("mask", [0o022, 0o000])
def test_whatever_the_umask_only_the_user_reads_what_all_verbs_leave(tmp_path, mask):
    with umask(mask):
        all_verbs(tmp_path, LocalEngine())
        assert os.umask(mask) == mask  # and the process has its own again
    assert left_open(tmp_path, 0o700, 0o600) == {}


def test_what_workers_of_ray_that_score_write_is_the_users_alone(ray_session, tmp_path):
    with umask(0o000):
        toy.write_archive(tmp_path, 48)
        bundles.save(toy.bundle(), str(tmp_path / "bundle"))
        assert score(toy.score_run(tmp_path), RayEngine(RaySpec(workers=2))).scored == 48
    assert left_open(tmp_path, 0o700, 0o600) == {}


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_what_workers_and_processes_of_ray_write_is_the_users_alone(ray_session, tmp_path, mask):
    with umask(mask):
        all_verbs(tmp_path, RayEngine(RaySpec(workers=2)))
    assert left_open(tmp_path, 0o700, 0o600) == {}


@pytest.mark.parametrize("mask", [0o077, 0o000])
def test_readers_group_opens_all_to_the_group_and_to_nobody_else(tmp_path, mask):
    with umask(mask):
        all_verbs(tmp_path, LocalEngine(), readers="group")
    assert left_open(tmp_path, 0o750, 0o640) == {}


@pytest.mark.slow
def test_what_processes_of_ray_write_is_read_by_the_group_that_a_run_names(ray_session, tmp_path):
    with umask(0o077):
        all_verbs(tmp_path, RayEngine(RaySpec(workers=2)), readers="group")
    assert left_open(tmp_path, 0o750, 0o640) == {}


READ = """
import os, sys
import deltalake.fs, pyarrow.dataset  # an environment may be closed to others
from deltalake import DeltaTable
os.setgroups([])
os.setgid(int(sys.argv[2])); os.setuid(65534)
print(DeltaTable(sys.argv[1]).to_pyarrow_dataset().count_rows())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read as another user")
@pytest.mark.parametrize(("readers", "group", "reads"), [("group", True, True), ("owner", True, False), ("group", False, False)])  # fmt: skip
def test_a_member_of_the_group_reads_the_table_without_medray(tmp_path, readers, group, reads):
    for above in tmp_path.parents:
        if above.stat().st_uid == os.geteuid() and permissions(above) & 0o011 != 0o011:
            above.chmod(permissions(above) | 0o011)
    tmp_path.chmod(0o711)
    with umask(0o000):
        store = ScoreStore.open(str(tmp_path / "scores"), create=True, readers=readers)
        sink = store.sink(store.claim("b1"))
        sink.commit([Receipt(sink.write(iter([rows({"a": 1, "b": 1})])))])
    theirs = grp.getgrgid(os.getegid()).gr_gid if group else 65534
    command = [sys.executable, "-c", READ, store.uri, str(theirs)]
    reader = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert (reader.returncode == 0 and reader.stdout == "2\n") is reads, reader.stderr
    assert reads or "ermission denied" in reader.stderr


def test_a_store_that_is_shared_in_another_way_stays_so_and_new_files_follow_it(tmp_path):
    store = tmp_path / "scores"
    store.mkdir()
    store.chmod(0o2775)  # of a group that writes, as `mkdir -m 2775` makes it
    with umask(0o077):
        opened = ScoreStore.open(str(store), create=True)
        sink = opened.sink(opened.claim("b1"))
        sink.commit([Receipt(sink.write(iter([rows({"a": 1})])))])
        opened.begin_run("score", "r1")
        opened.checkpoint()
    assert seen(opened) == ["a"]
    for place in store.rglob("*"):
        assert permissions(place) == (0o775 if place.is_dir() else 0o664), place
        assert not place.is_dir() or place.stat().st_mode & stat.S_ISGID


def test_nothing_that_medray_writes_can_be_written_by_everybody(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with umask(0o000):
        files.write_bytes(str(folder / "below" / "a.json"), b"{}")
        with files.new_file(str(folder / "b.bin")) as stream:
            stream.write(b"b")
    assert {permissions(p) for p in folder.rglob("*")} == {0o775, 0o664}


def test_a_picture_of_images_in_a_common_folder_is_the_users_alone(tmp_path):
    toy.write_image(tmp_path / "archive" / "a.dcm", 1, 1)
    common = tmp_path / "common"
    common.mkdir()
    common.chmod(0o1777)
    with umask(0o000):
        write_montage(str(tmp_path / "archive"), str(common / "a.png"))
    assert permissions(common / "a.png") == 0o600


def test_an_exported_file_is_as_open_as_the_store_that_it_is_of(tmp_path):
    from medray.exports.vcf import _written

    for mode, expected in ((0o700, 0o600), (0o750, 0o640)):
        store = tmp_path / f"store-{mode:o}"
        store.mkdir()
        store.chmod(mode)
        with umask(0o000), _written(str(tmp_path / f"{mode:o}.vcf"), files.file_mode_like(str(store))) as write:
            write(b"##fileformat=VCFv4.2\n")
        assert permissions(tmp_path / f"{mode:o}.vcf") == expected
    assert files.file_mode_like("s3://bucket/scores") == 0o600


def test_a_bundle_that_is_saved_by_hand_is_the_users_alone(tmp_path):
    with umask(0o000):
        bundles.save(toy.bundle(), str(tmp_path / "models" / "bundle"))
    for place in (tmp_path / "models", *(tmp_path / "models").rglob("*")):
        assert permissions(place) == (0o700 if place.is_dir() else 0o600)


def test_the_key_of_pseudonyms_and_its_folder_are_the_users_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with umask(0o000):
        key = pseudonym_key(None)
    folder = tmp_path / ".medray"
    assert (permissions(folder), permissions(folder / "pseudonym.key")) == (0o700, 0o600)
    folder.chmod(0o755)  # as earlier versions made it
    (folder / "pseudonym.key").chmod(0o644)
    assert pseudonym_key(None) == key
    assert (permissions(folder), permissions(folder / "pseudonym.key")) == (0o750, 0o640)
    (folder / "pseudonym.key").chmod(0o600)
    assert pseudonym_key(None) == key and permissions(folder) == 0o700


def test_folders_on_a_file_system_without_modes_are_made_all_the_same(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(modes.os, "chmod", refused)
    files.make_closed_folder(str(tmp_path / "a" / "b"), "owner")
    files.write_bytes(str(tmp_path / "a" / "b" / "c"), b"c")
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"c"


def test_blocks_that_overlap_are_closed_to_whom_one_of_them_is_and_leave_the_umask_as_it_was(tmp_path):
    shared, own = tmp_path / "shared", tmp_path / "own"
    modes.make_closed(shared, "group")
    modes.make_closed(own)
    with umask(0o022):
        first, second = modes.following(shared), modes.following(own)
        first.__enter__()
        (shared / "a").touch()
        second.__enter__()
        first.__exit__(None, None, None)
        (own / "b").touch()
        second.__exit__(None, None, None)
        assert os.umask(0o022) == 0o022
    assert (permissions(shared / "a"), permissions(own / "b")) == (0o640, 0o600)
