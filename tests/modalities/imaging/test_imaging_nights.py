"""Entries that the parts of one series make together, from night to night: what comes, goes and stays."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from dicom_build import MR, dataset, encoded, placed
from PIL import Image

from medray.archive import changes
from medray.archive.manifest import Manifest, changes_of, read_state
from medray.engines.local import LocalEngine
from medray.progress import Silent
from medray.verbs.index import index_archive
from medray.verbs.results import IndexResult

EACH: dict[str, Any] = {"kind": "imaging", "size": [2, 4, 4], "volumes": "each"}


def night(folder: Path, work: str = "work", **settings: object) -> tuple[Manifest, IndexResult]:
    run = toy.train_run(folder, modality=EACH | settings, labels={}, work=str(folder / work))
    return index_archive(run, run.modality, LocalEngine(), Silent())


def file_name(series: str, echo: int, k: int) -> str:
    return f"{random.Random(f'{series} {echo} {k}').random()}"


def write_slice(folder: Path, series: str, echo: int, k: int, value: int = 0) -> None:
    """Slice k of an echo of a series, in a file whose name says nothing."""
    made = dataset(
        np.full((4, 4), value, np.int16),
        sop_class=MR,
        modality="MR",
        series=series,
        instance=f"{echo} {k}",
        patient=series,
    )
    made = placed(made, (0, 0, 2.0 * k), EchoNumbers=echo)
    with warnings.catch_warnings(action="ignore"):  # ids that no standard allows are in archives, too
        made.SeriesInstanceUID = series
        raw = encoded(made)
    (folder / file_name(series, echo, k)).write_bytes(raw)


def remove_echo(folder: Path, series: str, echo: int) -> None:
    for k in range(3):
        (folder / file_name(series, echo, k)).unlink(missing_ok=True)


def entries(manifest: Manifest) -> dict[str, bytes]:
    """Entry id to fingerprint, of what the archive holds."""
    rows = manifest.table(["entry_id", "fingerprint"])
    return dict(zip(rows["entry_id"].to_pylist(), rows["fingerprint"].to_pylist(), strict=True))


def gone(manifest: Manifest) -> set[str]:
    rows = changes_of(manifest.uri, read_state(manifest.uri)).scan(["entry_id", "change"]).read_all()
    return {e for e, c in zip(rows["entry_id"].to_pylist(), rows["change"].to_pylist(), strict=True) if c == "vanished"}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two series of one echo, the id of one being the beginning of the other's."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for series in ("1.2.3", "1.2.3.4"):
        for k in range(3):
            write_slice(folder, series, 1, k)
    return tmp_path


def test_one_volume_becomes_three_at_night_two_and_one_again(archive):
    first, result = night(archive)
    assert set(entries(first)) == {"1.2.3", "1.2.3.4"} and result.new == 2
    for echo in (2, 3):
        for k in range(3):
            write_slice(archive / "archive", "1.2.3", echo, k)
    second, result = night(archive)
    assert set(entries(second)) == {"1.2.3#echo=1", "1.2.3#echo=2", "1.2.3#echo=3", "1.2.3.4"}
    assert (result.new, result.changed, result.vanished) == (3, 0, 1) and gone(second) == {"1.2.3"}
    assert entries(second)["1.2.3#echo=1"] == entries(first)["1.2.3"]  # the same slices, whole
    for echo in (2, 3):
        remove_echo(archive / "archive", "1.2.3", echo)
    third, result = night(archive)
    assert entries(third) == entries(first)
    assert (result.new, result.changed, result.vanished) == (1, 0, 3)


def test_a_late_slice_of_one_volume_changes_it_and_no_other(archive):
    for k in range(3):
        write_slice(archive / "archive", "1.2.3", 2, k)
    before = entries(night(archive)[0])
    write_slice(archive / "archive", "1.2.3", 2, 3)
    manifest, result = night(archive)
    assert (result.new, result.changed, result.vanished) == (0, 1, 0)
    assert {e for e, mark in entries(manifest).items() if before[e] != mark} == {"1.2.3#echo=2"}


def test_names_that_look_like_those_of_volumes_are_entries_of_their_own(archive):
    """Files whose paths continue the id of a series with characters before and after #."""
    folder = archive / "archive"
    names = ("1.2.3 copy", "1.2.3#echo=1", "1.2.3#echo=9", "1.2.3#", '1.2.3"', "1.2.3!x", "1.2.3#echo=1#2")
    for name in names:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / name, format="PNG")
    first, _ = night(archive)
    assert set(entries(first)) == {"1.2.3", "1.2.3.4", *names}
    for k in range(3):
        write_slice(folder, "1.2.3", 2, k)
    (folder / "1.2.3#echo=1").unlink()
    second, result = night(archive)
    assert set(entries(second)) == {"1.2.3#echo=1", "1.2.3#echo=2", "1.2.3.4", *names}
    assert result.vanished == 1 and gone(second) == {"1.2.3"}
    remove_echo(folder, "1.2.3", 2)
    third, result = night(archive)
    assert set(entries(third)) == {"1.2.3", "1.2.3.4", *names} - {"1.2.3#echo=1"}
    assert gone(third) == {"1.2.3#echo=1", "1.2.3#echo=2"}


def test_a_series_whose_id_goes_on_with_a_hash_after_another_s_stays_as_it_is(archive):
    folder = archive / "archive"
    for k in range(3):
        write_slice(folder, "1.2.3#4", 1, k)
    night(archive)
    for k in range(3):
        write_slice(folder, "1.2.3#4", 2, k)
    before, result = night(archive)
    assert gone(before) == {"1.2.3#4"}
    write_slice(folder, "1.2.3", 1, 3)
    after, result = night(archive)
    assert (result.new, result.changed, result.vanished) == (0, 1, 0)
    assert set(entries(after)) == {"1.2.3", "1.2.3.4", "1.2.3#4#echo=1", "1.2.3#4#echo=2"}


@pytest.mark.parametrize("seed", range(2))
def test_after_any_nights_the_manifest_is_that_of_an_index_from_scratch(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(changes, "PIECE_PARTS", 3)  # pieces end within and between series
    walk(tmp_path, seed, nights=4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 22))
def test_after_many_nights_the_manifest_is_that_of_an_index_from_scratch(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(changes, "PIECE_PARTS", 3)
    walk(tmp_path, seed, nights=12)


def walk(tmp_path: Path, seed: int, nights: int) -> None:
    rng, folder = random.Random(seed), tmp_path / "archive"
    folder.mkdir()
    names = ["1.2", "1.2.3", "1.23", "1.2#3", "1.2 3"]
    write_slice(folder, "1.2", 1, 0)
    for number in range(nights):
        for _ in range(rng.randint(1, 4)):
            name, echo = rng.choice(names), rng.randint(1, 3)
            if rng.random() < 0.6:
                for k in range(rng.randint(1, 3)):
                    write_slice(folder, name, echo, k, rng.randint(0, 1))
            elif rng.random() < 0.5:
                remove_echo(folder, name, echo)
            else:
                Image.fromarray(np.full((4, 4), rng.randint(0, 9), np.uint8)).save(
                    folder / f"{name}#copy={echo}", format="PNG"
                )
        write_slice(folder, "1.9", 1, number)
        manifest, _ = night(tmp_path)
        scratch, _ = night(tmp_path, work=f"scratch{number}")
        assert entries(manifest) == entries(scratch)
        assert not gone(manifest) & set(entries(manifest))
