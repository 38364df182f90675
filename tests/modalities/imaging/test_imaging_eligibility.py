"""A model of CT heads over an archive as a hospital keeps it: trained, scored, and every entry in its status."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import mixed_archive
import pytest
from head_bundle import trained

import medray
from medray.config.runs import ScoreRun
from medray.engines.local import LocalEngine
from medray.scores import ScoreStore
from medray.verbs.score import score


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of CT heads."""
    return trained(tmp_path_factory.mktemp("heads"))


def refused_or_scored(
    folder: Path, bundle: str, count: int, kinds: dict[str, mixed_archive.Kind] = mixed_archive.KINDS
) -> Counter[tuple[bool, str]]:
    """How many series of (right for the model, status) a score run over a mixed archive gives."""
    archive = mixed_archive.write(folder / "archive", count, seed=2, kinds=kinds)
    run = ScoreRun.model_validate(
        {
            "name": "mixed",
            "archive": str(folder / "archive"),
            "bundle": bundle,
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


def test_of_a_mixed_archive_only_what_the_model_is_made_for_is_scored(tmp_path: Path, heads: str):
    found = refused_or_scored(tmp_path, heads, 56)
    assert found[True, "scored"] >= 4 and found[False, "not_eligible"] >= 40
    assert set(found) == {(True, "scored"), (False, "not_eligible")}


def test_a_reformat_in_another_plane_is_refused_though_it_calls_itself_axial(tmp_path: Path, heads: str):
    kinds = {
        name: {**mixed_archive.KINDS, **mixed_archive.BESIDE}[name]
        for name in ("CT head", "CT head in sagittal slices")
    }
    assert refused_or_scored(tmp_path, heads, 6, kinds) == {(True, "scored"): 3, (False, "not_eligible"): 3}


def nights(folder: Path, bundle: str):
    """A function that runs a night with these [modality] settings: (result, current row of each entry)."""
    places = {name: str(folder / name) for name in ("archive", "work")} | {"bundle": bundle}
    settings = places | {"name": "heads", "store": str(folder / "scores"), "engine": {"kind": "local"}}

    def night(**modality):
        run = ScoreRun.model_validate(settings | {"modality": modality})
        result = score(run, LocalEngine())
        assert result.pending == result.scored + result.failed + result.not_eligible + result.left
        rows = ScoreStore.open(str(folder / "scores")).scores(result.bundle_id).to_pylist()
        return result, {row["entry_id"]: row for row in rows}

    return night


def statuses(rows: dict[str, dict]) -> Counter[str]:
    return Counter(row["status"] for row in rows.values())


def test_when_a_rule_changes_the_entries_whose_answer_changes_are_pending_and_no_others(tmp_path: Path, heads: str):
    mixed_archive.write(tmp_path / "archive", 12, seed=2, kinds=mixed_archive.TRAINED)
    night = nights(tmp_path, heads)
    assert statuses(night()[1]) == {"scored": 12}
    none, rows = night(select={"Modality": "MR"})  # narrower than the bundle: nothing passes both
    assert (none.pending, none.not_eligible) == (12, 12) and statuses(rows) == {"not_eligible": 12}
    assert night(select={"Modality": "MR"})[0].pending == 0
    again, rows = night(select={"Modality": ["CT", "MR"]})
    assert (again.pending, again.scored) == (12, 12) and statuses(rows) == {"scored": 12}
    assert night()[0].pending == 0


def most_slices(archive: list[mixed_archive.Series]) -> set[str]:
    """Of each patient's series the one with most slices, of equal ones that with the first UID; worked out by hand."""
    best: dict[str, mixed_archive.Series] = {}
    for series in sorted(archive, key=lambda each: (-len(each.images), each.uid)):
        best.setdefault(series.patient, series)
    return {series.uid for series in best.values()}


def test_of_each_study_the_chosen_series_is_scored_and_a_better_one_takes_its_place(tmp_path: Path, heads: str):
    archive = mixed_archive.write(tmp_path / "archive", 12, seed=2, kinds=mixed_archive.TRAINED)
    night, choose = nights(tmp_path, heads), {"of": "study", "prefer": ["most slices"]}
    first, rows = night(choose=choose)
    wanted = most_slices(archive)
    assert (first.pending, first.scored, first.not_eligible) == (12, len(wanted), 12 - len(wanted))
    assert 1 < len(wanted) < 12
    assert {name for name, row in rows.items() if row["status"] == "scored"} == wanted
    values = {name: row["value"] for name, row in rows.items()}

    loser = next(each for each in archive if each.uid in wanted and len(each.images) < 6)
    better = mixed_archive.write_series(tmp_path / "archive", "better", loser.patient, slices=7)
    second, rows = night(choose=choose)
    assert (second.pending, second.scored, second.not_eligible) == (2, 1, 1)
    assert rows[better.uid]["status"] == "scored" and rows[loser.uid]["value"] is None
    assert rows[loser.uid]["detail"].endswith("is preferred: most slices")
    assert night(choose=choose)[0].pending == 0

    for file in (tmp_path / "archive" / loser.patient / "better").iterdir():
        file.unlink()
    third, rows = night(choose=choose)
    assert (third.pending, third.scored) == (1, 1)
    assert {name: rows[name]["value"] for name in values} == values


def test_a_prediction_of_a_folder_makes_the_same_choice_as_a_night(tmp_path: Path, heads: str):
    archive = mixed_archive.write(tmp_path / "archive", 12, seed=2, kinds=mixed_archive.TRAINED)
    choose = {"of": "study", "prefer": ["most slices"]}
    table = medray.Bundle.load(heads).predict(tmp_path / "archive", modality={"choose": choose})
    status = dict(zip(table["entry_id"].to_pylist(), table["status"].to_pylist(), strict=True))
    assert {name for name, its in status.items() if its == "scored"} == most_slices(archive)
    assert set(status.values()) == {"scored", "not_eligible"}


def test_an_entry_outside_of_what_the_model_was_trained_on_is_scored_with_a_flag_or_refused(tmp_path: Path, heads: str):
    mixed_archive.write(tmp_path / "archive", 4, seed=2, kinds=mixed_archive.TRAINED)
    far = mixed_archive.write_series(tmp_path / "archive", "far", "P9", slices=4, gap=7.5)
    night = nights(tmp_path, heads)
    result, rows = night()
    # heads have 5 mm between slices, so the scale is 5 % of that: 2.5 / 0.25 = 10
    flags = {name: json.loads(row["facts"]).get("outside", {}).get("spacing_mm[1]") for name, row in rows.items()}
    assert flags == {name: 10.0 if name == far.uid else None for name in rows}
    assert statuses(rows) == {"scored": 5} and (result.flagged, result.outside["spacing_mm[1]"]) == (1, 1)
    strict, rows = night(refuse_outside=5.0)
    assert (strict.pending, strict.not_eligible, strict.flagged) == (1, 1, 0)
    assert rows[far.uid]["detail"].startswith("spacing_mm[1]: 7.5; ")
    assert night(refuse_outside=100)[0].scored == 1


@pytest.mark.slow
def test_of_1000_mixed_series_only_what_the_model_is_made_for_is_scored(tmp_path: Path, heads: str):
    found = refused_or_scored(tmp_path, heads, 1000)
    assert set(found) == {(True, "scored"), (False, "not_eligible")}
    assert found.total() == 1000 and found[True, "scored"] >= 0.99 * 144
