"""A night: what came in is scored, once; a second run leaves; the summary and the page tell how it went."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy
from deltalake import DeltaTable

from medray.archive.manifest import changes_of, read_state
from medray.config.runs import NightlyRun
from medray.engines.local import LocalEngine
from medray.learning import bundles
from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom
from medray.reports.nightly import Summary, write_page
from medray.scores import ScoreStore
from medray.storage import files, locks
from medray.verbs.nightly import LOCK, nightly

PER_NIGHT = 360


def nightly_run(folder: Path, **changes) -> NightlyRun:
    settings = {
        "name": "toy-nightly",
        "archive": str(folder / "archive"),
        "bundles": str(folder / "bundle"),
        "store": str(folder / "scores"),
        "work": str(folder / "work"),
        "engine": {"kind": "local"},
    }
    return NightlyRun.model_validate(settings | changes)


def told(result) -> Summary:
    """The summary file of a night."""
    return Summary.model_validate_json(Path(result.summary).read_text())


@pytest.fixture
def archive(tmp_path):
    """Eight images and a bundle that was never trained."""
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    for number in range(8):
        toy.write_image(tmp_path / "archive" / f"{number}.dcm", number, number % 2)
    return tmp_path


# --- what is scored ---------------------------------------------------------------------------------------------


def test_a_night_with_nothing_new_scores_nothing_and_one_with_a_change_scores_the_change(archive):
    first = nightly(nightly_run(archive), LocalEngine())
    assert (first.entries, first.new, first.pending, first.scored, first.left) == (8, 8, 8, 8, 0)
    second = nightly(nightly_run(archive), LocalEngine())
    assert (second.entries, second.new, second.changed, second.vanished, second.scored) == (8, 0, 0, 0, 0)

    replaced = write_dicom(
        toy.pixels(99, 1), patient_id="S0003", study_uid=uid("toy", 3, "study"), series_uid=uid("toy", 3, "series"),
        instance_uid=uid("toy", 3, "image"),
    )  # fmt: skip
    (archive / "archive" / "3.dcm").write_bytes(replaced)
    toy.write_image(archive / "archive" / "new.dcm", 8, 0)
    (archive / "archive" / "5.dcm").unlink()
    third = nightly(nightly_run(archive), LocalEngine())
    assert (third.new, third.changed, third.vanished) == (1, 1, 1)
    assert (third.entries, third.pending, third.scored, third.failed) == (8, 2, 2, 0)
    assert DeltaTable(str(archive / "scores")).to_pyarrow_table().num_rows == 10  # 8, and one for each of the two
    (folder,) = (archive / "work").glob("index-imaging-*/manifest")
    changes = changes_of(str(folder), read_state(str(folder))).scan(["entry_id", "change"]).read_all().to_pylist()
    kinds = sorted((row["change"], row["entry_id"]) for row in changes if row["change"] != "new")
    assert kinds == [("changed", uid("toy", 3, "image")), ("vanished", uid("toy", 5, "image"))]
    assert (first.exit_code(0.01), second.exit_code(0.01), third.exit_code(0.01)) == (0, 0, 0)


def test_the_files_of_a_night_are_a_summary_and_a_page_by_its_id_and_as_the_latest(archive):
    result = nightly(nightly_run(archive, summary=str(archive / "nights")), LocalEngine())
    names = {file.name for file in (archive / "nights").iterdir()}
    assert names == {f"night-{result.night}.json", f"night-{result.night}.html", "latest.json", "latest.html"}
    assert (archive / "nights" / "latest.html").read_text() == Path(result.page).read_text()
    summary = told(result)
    assert (summary.exit_code, summary.scored, summary.level) == (0, 8, "too few")
    assert summary.stages.keys() == {"index", "pending", "scoring", "earlier scores", "housekeeping"}
    assert write_page(summary) == Path(result.page).read_text()  # the page holds what the summary does


def test_more_failures_than_the_run_file_allows_need_a_look(archive):
    (archive / "archive" / "torn.dcm").write_bytes(b"\0" * 200)
    night = nightly(nightly_run(archive), LocalEngine())
    page = Path(night.page).read_text()
    assert night.exit_code(0.01) == 3 and "Nothing needs a look." not in page
    assert "toy: more failed than max_failed = 1.00% allows: 11% of the entries, 11% of the samples." in page
    again = nightly(nightly_run(archive, max_failed=1.0, retry=["unrecognised_format"]), LocalEngine())
    page = Path(again.page).read_text()
    assert (again.failed, again.exit_code(1.0)) == (1, 0) and "max_failed" not in page
    assert "In the night before: 11%." in page


def test_several_bundles_are_scored_and_one_that_fails_does_not_stop_the_others(archive):
    other = toy.weights(toy.recipe(), seed=1)
    bundles.save(bundles.make_bundle(toy.recipe(), other), str(archive / "other"))
    names = [str(archive / name) for name in ("bundle", "none", "other")]
    result = nightly(nightly_run(archive, bundles=names), LocalEngine())
    assert [result.bundles[name]["scored"] for name in names] == [8, 0, 8]
    assert result.exit_code(0.01) == 2 and "not a bundle" in result.bundles[names[1]]["error"]
    assert (result.entries, result.new, result.pending, result.scored) == (8, 8, 16, 16)
    again = nightly(nightly_run(archive, bundles=names), LocalEngine())
    assert (again.pending, again.exit_code(0.01)) == (0, 2)


def test_too_many_failed_entries_of_one_bundle_are_exit_code_3(archive):
    (archive / "archive" / "notes.txt").write_text("the Tuesday list")
    result = nightly(nightly_run(archive), LocalEngine())
    assert (result.scored, result.failed, result.exit_code(0.01)) == (8, 1, 3)
    summary = told(result)
    assert summary.by_reason == {"unrecognised_format": 1}
    page = Path(result.page).read_text()
    assert "the file is of no format this modality reads" in page
    assert "notes.txt" not in page + Path(result.summary).read_text()


def test_after_the_deadline_nothing_is_begun_and_the_summary_says_what_is_left(archive):
    result = nightly(nightly_run(archive, deadline="0s"), LocalEngine())
    assert (result.pending, result.scored, result.left, result.exit_code(0.01)) == (8, 0, 8, 0)
    summary = told(result)
    assert summary.bundles[0].stopped == "deadline" and summary.housekeeping == {"skipped": "the deadline had come"}
    assert "8 entries are left, since the deadline came" in Path(result.page).read_text()


# --- the lock ---------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from medray.storage import locks
with locks.held(sys.argv[1], "first") as other:
    print(other, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(place: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that holds the lock; returns when it does."""
    command = [sys.executable, "-c", HOLD, str(place), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "None\n"
    return process


def test_a_second_nightly_run_says_who_holds_the_store_and_leaves(archive):
    ScoreStore.open(str(archive / "scores"), create=True)
    process = hold(archive / "scores" / LOCK, 60)
    try:
        result = nightly(nightly_run(archive), LocalEngine())
    finally:
        process.kill()
        process.communicate()
    assert result.held_by is not None and f"run first, process {process.pid} on " in result.held_by
    assert (result.scored, result.exit_code(0.01)) == (0, 0)
    after = nightly(nightly_run(archive), LocalEngine())  # its holder was killed: taken over
    assert (after.held_by, after.scored) == (None, 8)
    assert not (archive / "scores" / LOCK).exists()


def test_of_two_nightly_runs_at_once_one_works_and_nothing_doubles(archive):
    for number in range(8, 200):
        toy.write_image(archive / "archive" / f"{number}.dcm", number, number % 2)
    file = archive / "run.toml"
    settings = nightly_run(archive).model_dump(mode="json", exclude_unset=True)
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if key != "engine"]
    file.write_text("\n".join([*lines, '[engine]\nkind = "local"']))
    job = [sys.executable, str(Path(__file__).parents[1] / "jobs" / "nightly.py"), str(file), "--json"]
    runs = [subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    found = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], found
    results = [json.loads(out) for out, _ in found]
    assert sum(result["scored"] for result in results) == 200
    assert len(toy.scores(archive / "scores")) == 200
    assert sum(result["held_by"] is not None or result["pending"] == 0 for result in results) == 1


def test_a_lock_of_another_host_holds_until_it_has_been_silent_too_long(tmp_path):
    place = str(tmp_path / "lock.json")

    def write(age: float) -> None:
        text = {"host": "elsewhere", "pid": 1, "born": "1", "run_id": "other", "since": "", "beat": time.time() - age}
        files.write_bytes(place, json.dumps(text).encode())

    write(locks.STALE_SECONDS - 60)
    with locks.held(place, "mine") as other:
        assert other is not None and other.host == "elsewhere"
    assert Path(place).exists()
    write(locks.STALE_SECONDS + 1)
    with locks.held(place, "mine") as other:
        assert other is None
        assert json.loads(Path(place).read_text())["run_id"] == "mine"
    assert list(tmp_path.iterdir()) == []


def test_a_process_number_that_was_given_again_does_not_hold_a_lock(tmp_path):
    process = hold(tmp_path / "lock.json", 60)
    text = json.loads((tmp_path / "lock.json").read_text())
    process.kill()
    process.communicate()
    (tmp_path / "lock.json").write_text(
        json.dumps(text | {"pid": 1, "born": "0"})
    )  # there is a process 1, but not this
    with locks.held(str(tmp_path / "lock.json"), "mine") as other:
        assert other is None


# --- drift ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """An archive after three nights of PER_NIGHT images each, scored every night."""
    folder = tmp_path_factory.mktemp("nights")
    bundles.save(toy.bundle(), str(folder / "bundle"))
    for night in range(3):
        add(folder, night)
        assert nightly(nightly_run(folder), LocalEngine()).scored == PER_NIGHT
    return folder


def add(folder: Path, night: int, brighter: int = 0) -> None:
    """A night's images; `brighter`: as from a scanner that was set up anew."""
    for number in range(night * PER_NIGHT, (night + 1) * PER_NIGHT):
        pixels = np.clip(toy.pixels(number, number % 2).astype(int) + brighter, 0, 255).astype(np.uint8)
        file = folder / "archive" / str(night) / f"{number}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        names = ("study", "series", "image")
        study, series, image = (uid("toy", number, name) for name in names)
        file.write_bytes(
            write_dicom(pixels, patient_id=f"S{number}", study_uid=study, series_uid=series, instance_uid=image)
        )


def test_a_planted_drift_is_flagged_and_a_night_without_is_not(nights):
    add(nights, 3)
    calm = nightly(nightly_run(nights), LocalEngine())
    (output,) = told(calm).bundles[0].outputs
    assert (calm.level, output["level"], output["n"], output["reference_n"]) == ("none", "none", 360, 1080)
    assert output["psi"] < 0.1 and len(told(calm).bundles[0].nights) == 3
    assert "Nothing needs a look." in Path(calm.page).read_text()

    add(nights, 4, brighter=60)
    drifted = nightly(nightly_run(nights), LocalEngine())
    (output,) = told(drifted).bundles[0].outputs
    assert (drifted.level, drifted.bundles[str(nights / "bundle")]["drift"]) == ("alert", "alert")
    assert output["psi"] > 0.25 and drifted.exit_code(0.01) == 0
    assert "scores of lower have drifted" in Path(drifted.page).read_text()
