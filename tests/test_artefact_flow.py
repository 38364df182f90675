"""A modality that gives a file with each score, through real runs on both engines, and what the verbs say of its store."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import toy
from deltalake import DeltaTable
from masks import Described, masked, png
from pages import PROJECT, blocks

from medray.engines.local import LocalEngine
from medray.engines.opening import open_engine
from medray.learning import bundles
from medray.scores import ScoreStore, artefacts
from medray.scores.artefacts import Artefact, beside
from medray.verbs import score as verb
from medray.verbs import stages
from medray.verbs.inspect import inspect_history, inspect_store
from medray.verbs.stages import score_rows
from medray.verbs.upkeep import forget, vacuum


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An archive of 6 images and a file that is none, and a bundle."""
    toy.write_archive(tmp_path, 6)
    (tmp_path / "archive" / "junk.dcm").write_text("no image")
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    return tmp_path


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring makes a mask and a text for each image."""
    made = stages.score
    monkeypatch.setattr(stages, "score", lambda *given, **options: masked(made(*given, **options), Described))


def expected(folder: Path) -> dict[str, bytes]:
    return {f"{number % 3}/im_{number:04}.dcm": png(toy.pixels(number, number % 2)) for number in range(6)}


def contents(store: ScoreStore, output: str) -> list[bytes]:
    """The artefacts of an output, in the order of their bytes."""
    rows = DeltaTable(store.uri).to_pyarrow_table().to_pylist()
    return sorted(store.artefact(row) for row in rows if row["output"] == output and row["artefact"])


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_each_engine_commits_a_mask_and_a_text_with_every_score(
    folder: Path, described: None, ray_session: None, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "SMALL_ENTRIES", 0)
    kind: dict[str, Any] = {"kind": "ray", "address": "auto", "workers": 2} if engine == "ray" else {"kind": "local"}
    run = toy.score_run(folder, engine=kind, batch_size=2)
    result = verb.score(run, open_engine(run.engine))
    assert (result.scored, result.failed, result.samples) == (6, 1, 7)  # a text is no sample more
    store = ScoreStore.open(run.store_uri)
    assert contents(store, "lower") == sorted(expected(folder).values())
    assert contents(store, "brightest") == sorted(str(toy.pixels(n, n % 2).max()).encode() for n in range(6))
    rows = DeltaTable(store.uri).to_pyarrow_table().to_pylist()
    of_text = [row for row in rows if row["output"] == "brightest"]
    assert all(row["value"] is None and row["status"] == "scored" for row in of_text)
    assert sum(row["artefact"] is None for row in rows) == 1  # of the file that is no image
    again = verb.score(run, open_engine(run.engine))
    assert again.pending == 0


def test_the_verbs_that_look_at_a_store_count_entries_as_before(folder: Path, described: None) -> None:
    run = toy.score_run(folder)
    verb.score(run, LocalEngine())
    facts = inspect_store(run.store_uri).facts["bundles"]
    [bundle] = facts.values()
    assert [bundle[name] for name in ("entries", "scored", "failed", "rows")] == [7, 6, 1, 13]
    line = inspect_history(run.store_uri).facts["runs"][0]
    assert (line["scored"], line["failed"], line["rows"]) == (6, 1, 13)


def test_the_commands_vacuum_and_forget_take_the_files_along(folder: Path, described: None) -> None:
    run = toy.score_run(folder, pseudonym_key=str(folder / "key"))
    (folder / "key").write_text("k" * 40)
    verb.score(run, LocalEngine())
    store = ScoreStore.open(run.store_uri)
    assert len(artefacts.listed(store.uri)) == 12
    done = forget(run.store_uri, "S0003", str(folder / "key"))
    assert (done.rows, done.files) == (2, 1 + 2)
    assert len(artefacts.listed(store.uri)) == 10
    assert vacuum(run.store_uri, "0d").files_removed == 0
    assert len(contents(store, "lower")) == 5


def test_a_store_of_an_earlier_version_gets_masks_for_what_is_new(tmp_path: Path, described: None) -> None:
    written = Path(__file__).parent / "compatibility" / "written_by_6119fbd"
    shutil.copytree(written, tmp_path / "old")
    toy.write_archive(tmp_path / "old", 10)
    (tmp_path / "key").write_text("k" * 40)
    run = toy.score_run(tmp_path / "old", pseudonym_key=str(tmp_path / "key"))
    store = ScoreStore.open(run.store_uri)
    bundle_id = bundles.load(run.bundle_uri).id
    assert store.scores(bundle_id).column("artefact").null_count == 11
    assert store.vacuum()["files_removed"] == 0  # without the column there is nothing to look for
    toy.write_image(tmp_path / "old" / "archive" / "new.dcm", 50, 1)
    assert verb.score(run, LocalEngine()).pending == 1
    assert contents(store, "lower") == [png(toy.pixels(50, 1))]
    assert len(artefacts.listed(store.uri)) == 2 and store.compact()["files_merged"] > 1
    rows = ScoreStore.open(run.store_uri).scores(bundle_id)
    assert (len(rows), rows.column("artefact").null_count) == (13, 11)


def test_the_page_of_the_score_table_shows_how_artefacts_are_made_and_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = blocks(PROJECT / "docs" / "score-table.md", "python")
    [making] = [block.text for block in page if "class Masked" in block.text]
    [reading] = [block.text for block in page if "store.artefact(row)" in block.text]
    names: dict[str, Any] = {}
    exec(compile(making, "making", "exec"), names)
    made = stages.score
    monkeypatch.setattr(stages, "score", lambda *given, **options: masked(made(*given, **options), names["Masked"]))
    run = toy.score_run(folder, store=str(folder / "scores" / "ultrasound"))
    bundle_id = verb.score(run, LocalEngine()).bundle_id
    monkeypatch.chdir(folder)
    exec(compile(reading.replace("7529d979b63b53b9", bundle_id), "reading", "exec"), {})
    assert sorted(path.read_bytes() for path in folder.glob("*.png")) == sorted(expected(folder).values())


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from medray.config import runs
from medray.engines.local import LocalEngine
from medray.scores import sink
from medray.scores.log import ScoreLog
from medray.verbs import score, stages
from masks import Described, masked

made, transact, point = stages.score, ScoreLog._transact, sys.argv[3]
stages.score = lambda *given, **options: masked(made(*given, **options), Described)

def killed(*given, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def transacted(log, claim, actions, *given):
    if not actions:
        return transact(log, claim, actions, *given)
    if point == "landed":
        transact(log, claim, actions, *given)
    killed()

if point == "artefacts":
    sink.FileWriter.add = killed
else:
    ScoreLog._transact = transacted
score.score(runs.load(sys.argv[2]), LocalEngine())
"""


@pytest.mark.parametrize("point", ["artefacts", "rows", "landed"])
def test_a_run_killed_at_any_point_leaves_no_row_without_its_file_and_is_taken_up(
    folder: Path, described: None, point: str
) -> None:
    """Killed when the artefacts of a shard are written and its rows are not; when those are, too; when they are committed
    and nobody has heard of it."""
    run = toy.score_run(folder)
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent)]
    run_file = toy.write_run_file(folder / "score.toml", run)
    assert subprocess.run([*command, str(run_file), point]).returncode == -signal.SIGKILL
    store = ScoreStore.open(run.store_uri)
    committed, left = len(contents(store, "lower")), len(artefacts.listed(store.uri))
    assert left > 0 and committed == (left // 2 if point == "landed" else 0)
    verb.score(run, LocalEngine())
    assert contents(store, "lower") == sorted(expected(folder).values())
    assert len(artefacts.listed(store.uri)) == 12 + (0 if committed else left)
    for path in Path(store.uri).rglob("*"):
        os.utime(path, (0, 0))
    vacuum(run.store_uri, "7d")
    assert len(artefacts.listed(store.uri)) == 12
    assert contents(store, "lower") == sorted(expected(folder).values())


# --- rows of a batch ------------------------------------------------------------------------------------------


def samples(*ids: str) -> pa.RecordBatch:
    columns = {"entry_id": list(ids), "sample_id": ["0"] * len(ids), "subject_id": [f"s-{each}" for each in ids]}
    fingerprints = pa.array([bytes(16)] * len(ids), pa.binary(16))
    return pa.RecordBatch.from_pydict(columns | {"fingerprint": fingerprints, "facts": pa.nulls(len(ids), pa.string())})


def test_an_artefact_lies_in_the_row_of_its_output_or_after_those_of_its_sample() -> None:
    given = samples("a", "b")
    rows = score_rows(given, np.array([[0.25, 0.75], [0.5, 0.125]], np.float32), ("no", "yes"))
    made = [Artefact(0, "timeline", "text/csv", b"t"), Artefact(1, "yes", "image/png", b"m")]
    found = [
        (row["entry_id"], row["output"], row["value"], row["artefact"] and row["artefact"]["content"])
        for row in beside(rows, given, ("no", "yes"), made).to_pylist()
    ]
    assert found == [
        ("a", "no", 0.25, None),
        ("a", "yes", 0.75, None),
        ("a", "timeline", None, b"t"),
        ("b", "no", 0.5, None),
        ("b", "yes", 0.125, b"m"),
    ]


@pytest.mark.parametrize("names", [("yes", "yes"), ("map", "map")])
def test_two_artefacts_of_one_name_and_sample_are_refused(names: tuple[str, str]) -> None:
    given = samples("a")
    rows = score_rows(given, np.array([[0.5]], np.float32), ("yes",))
    with pytest.raises(ValueError, match="two artefacts"):
        beside(rows, given, ("yes",), [Artefact(0, name, "image/png", b"m") for name in names])


def test_an_artefact_of_no_sample_is_refused() -> None:
    given = samples("a")
    rows = score_rows(given, np.array([[0.5]], np.float32), ("yes",))
    with pytest.raises(ValueError, match="sample 1 of 1"):
        beside(rows, given, ("yes",), [Artefact(1, "yes", "image/png", b"m")])
