"""A model of CT heads over an archive as a hospital keeps it: trained, scored, and every entry in its status."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import mixed_archive
import pytest

from medray.config.runs import ScoreRun, TrainRun
from medray.engines.local import LocalEngine
from medray.scores import ScoreStore
from medray.verbs.score import score
from medray.verbs.train import train


def trained(folder: Path) -> None:
    """A bundle of CT heads at `folder`/bundle."""
    heads = mixed_archive.write(folder / "train", 24, seed=1, kinds=mixed_archive.TRAINED)
    splits = ("train", "train", "validation", "test")
    with open(folder / "labels.csv", "w", newline="") as stream:
        rows = [(series.uid, i % 2, splits[i // 2 % 4], f"S{i}") for i, series in enumerate(heads)]
        csv.writer(stream).writerows([("series", "bleed", "split", "who"), *rows])
    table = {"table": str(folder / "labels.csv"), "key": "series", "match": "entry", "columns": ["bleed"]}
    run = TrainRun.model_validate(
        {
            "name": "heads",
            "archive": str(folder / "train"),
            "bundle": str(folder / "bundle"),
            "work": str(folder / "work-train"),
            "modality": {"kind": "imaging", "size": [4, 8, 8], "dtype": "int16"},
            "labels": table | {"split_column": "split", "subject_column": "who"},
            "model": {"kind": "cnn", "channels": [4], "dense": 4},
            "objective": {"kind": "binary"},
            "training": {"epochs": 1, "batch_size": 8},
            "engine": {"kind": "local"},
            "floor": False,
        }
    )
    result = train(run, LocalEngine())
    assert result.failed == 0 and [kind["Modality"] for kind in result.mixture] == ["CT"]


def refused_or_scored(folder: Path, count: int) -> Counter[tuple[bool, str]]:
    """How many series of (right for the model, status) a score run over a mixed archive gives."""
    trained(folder)
    archive = mixed_archive.write(folder / "archive", count, seed=2)
    run = ScoreRun.model_validate(
        {
            "name": "mixed",
            "archive": str(folder / "archive"),
            "bundle": str(folder / "bundle"),
            "store": str(folder / "scores"),
            "work": str(folder / "work"),
            "engine": {"kind": "local"},
        }
    )
    result = score(run, LocalEngine())
    assert result.entries == result.pending == result.scored + result.failed + result.not_eligible + result.left
    rows = ScoreStore.open(str(folder / "scores")).scores(result.bundle_id).to_pylist()
    status = {row["entry_id"]: row["status"] for row in rows}
    files = [entry for entry in status if entry.endswith(".dcm")]  # objects that are no images go by their file
    folders = {int(entry.split("/")[-2]): status[entry] for entry in files}
    for row in rows:
        assert (row["value"] is None) == (row["status"] != "scored")
        assert row["status"] != "not_eligible" or row["reason"] != "not_eligible" or ": " in row["detail"]
    assert len(status) == result.entries
    found: Counter[tuple[bool, str]] = Counter()
    for number, series in enumerate(archive):
        its = status.get(series.uid) or folders[number]
        found[series.right, its] += 1
    assert result.exit_code(0.01) == 0
    return found


def test_of_a_mixed_archive_only_what_the_model_is_made_for_is_scored(tmp_path: Path):
    found = refused_or_scored(tmp_path, 56)
    assert found[True, "scored"] >= 4 and found[False, "not_eligible"] >= 40
    assert set(found) == {(True, "scored"), (False, "not_eligible")}


def test_when_a_rule_changes_the_entries_whose_answer_changes_are_pending_and_no_others(tmp_path: Path):
    trained(tmp_path)
    mixed_archive.write(tmp_path / "archive", 12, seed=2, kinds=mixed_archive.TRAINED)
    places = {name: str(tmp_path / name) for name in ("archive", "bundle", "work")}
    settings = places | {"name": "heads", "store": str(tmp_path / "scores"), "engine": {"kind": "local"}}

    def night(**select):
        run = ScoreRun.model_validate(settings | {"modality": {"select": select}})
        result = score(run, LocalEngine())
        rows = ScoreStore.open(str(tmp_path / "scores")).scores(result.bundle_id).to_pylist()
        return result, Counter(row["status"] for row in rows)

    assert night()[1] == {"scored": 12}
    none, statuses = night(Modality="MR")  # narrower than the bundle: nothing passes both
    assert (none.pending, none.not_eligible) == (12, 12) and statuses == {"not_eligible": 12}
    assert night(Modality="MR")[0].pending == 0
    again, statuses = night(Modality=["CT", "MR"])
    assert (again.pending, again.scored) == (12, 12) and statuses == {"scored": 12}
    assert night()[0].pending == 0


@pytest.mark.slow
def test_of_500_mixed_series_only_what_the_model_is_made_for_is_scored(tmp_path: Path):
    found = refused_or_scored(tmp_path, 500)
    assert set(found) == {(True, "scored"), (False, "not_eligible")}
    assert found.total() == 500
