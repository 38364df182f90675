"""What earlier versions wrote is read: bundles, score stores, manifests, shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy
from deltalake import DeltaTable

from medray.archive.manifest import Manifest
from medray.datasets.shards import ShardSet, read_samples
from medray.engines.local import LocalEngine
from medray.errors import UserError
from medray.learning import bundles
from medray.progress import Silent
from medray.scores import ScoreStore
from medray.verbs.evaluate import evaluate
from medray.verbs.score import score

WRITTEN = Path(__file__).parent / "written_by_6119fbd"
BUNDLE_ID = "e0b1d6d249207cc5"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the earlier version wrote, and the archive that it was made of."""
    shutil.copytree(WRITTEN, tmp_path / "old")
    toy.write_archive(tmp_path / "old", 10)
    (tmp_path / "old" / "archive" / "junk.dcm").write_text("no image")
    (tmp_path / "key").write_text("k" * 40)
    return tmp_path / "old"


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def run_of(folder: Path, **changes):
    return toy.score_run(folder, pseudonym_key=str(folder.parent / "key"), **changes)


def test_a_bundle_keeps_its_id():
    assert bundles.load(str(WRITTEN / "bundle")).id == BUNDLE_ID


def test_a_store_is_read_before_anything_is_written_to_it(folder: Path):
    store = ScoreStore.open(str(folder / "scores"))
    scores = store.scores(BUNDLE_ID)
    assert len(scores) == 11 and scores.column("facts").null_count == 11
    summary = store.summary()["bundles"][BUNDLE_ID]
    assert [summary[name] for name in ("entries", "scored", "failed", "not_eligible")] == [11, 10, 1, 0]
    assert store.runs()[0]["not_eligible"] is None
    assert "facts" not in [field.name for field in DeltaTable(store.uri).schema().fields]


def test_scoring_goes_on_in_it_and_finds_nothing_to_do_for_what_it_scored(folder: Path):
    again = score(run_of(folder), LocalEngine())
    assert (again.entries, again.pending) == (11, 0)
    toy.write_image(folder / "archive" / "new.dcm", 50, 1)
    more = score(run_of(folder), LocalEngine())
    assert (more.entries, more.pending, more.scored) == (12, 1, 1)
    store = ScoreStore.open(str(folder / "scores"))
    assert len(store.scores(BUNDLE_ID)) == 12
    assert store.compact()["files_merged"] > 1
    table = DeltaTable(store.uri).to_pyarrow_table()
    assert len(table) == 12 and "facts" in table.schema.names
    assert [run["not_eligible"] for run in store.runs() if run["what"] == "score"] == [0, 0, None]


def test_the_scores_of_today_are_those_of_then(folder: Path):
    score(run_of(folder, store=str(folder / "fresh"), work=str(folder / "work-fresh")), LocalEngine())
    then, now = (ScoreStore.open(str(folder / name)).scores(BUNDLE_ID) for name in ("scores", "fresh"))
    for name in ("entry_id", "subject_id", "fingerprint", "output", "status", "reason"):
        assert then.column(name).equals(now.column(name)), name
    assert then.column("value").to_pylist() == pytest.approx(now.column("value").to_pylist(), abs=1e-6)


def test_scoring_with_a_bundle_that_does_not_know_what_it_was_trained_on_says_so(folder: Path):
    notes = Notes()
    score(run_of(folder), LocalEngine(), notes)
    assert any("does not say what it was trained on" in line for line in notes.lines)


def test_a_manifest_is_read_and_its_entries_state_no_facts():
    manifest = Manifest.open(str(WRITTEN / "work-score" / "manifest"))
    table = manifest.table()
    assert len(manifest) == len(table) == 11
    assert table.column("facts").null_count == 11
    assert manifest.counts.by_reason == {"unrecognised_format": 1}


def test_shards_are_read():
    [folder] = (WRITTEN / "work" / "shards").iterdir()
    shards = ShardSet.open(str(folder))
    assert shards.rows("train") == 6
    assert read_samples(shards.split("train")[0].uri).column("pixels").type.shape == [1, 16, 16]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_report_of_today_has_the_numbers_of_then(folder: Path, split: str):
    then = json.loads((WRITTEN / "evaluation.json").read_text())[split]
    now = evaluate(toy.train_run(folder, pseudonym_key=str(folder.parent / "key")), LocalEngine(), split=split)
    assert (now.bundle_id, now.n) == (BUNDLE_ID, then["n"])
    assert list(now.thresholds) == pytest.approx(then["thresholds"], abs=1e-6)
    for name, value in then["metrics"].items():
        assert np.asarray(now.metrics[name]) == pytest.approx(np.asarray(value), abs=1e-6), name


# --- what a later version has written --------------------------------------------------------------------------


def refusal(*reading: object) -> str:
    """What the refusal of `reading[0](*reading[1:])` says, on one line."""
    function, *given = reading
    assert callable(function)
    with pytest.raises(UserError) as error:
        function(*given)
    return " ".join(str(error.value).split())


@pytest.mark.parametrize("file", ["work-score/manifest/state.json", "bundle/spec.json"])
def test_a_later_manifest_or_bundle_is_refused_with_the_version_that_reads_it(folder: Path, file: str):
    path = folder / file
    later = json.dumps(json.loads(path.read_text()) | {"format": 2, "read_by": "0.7.0", "new": 1})
    path.write_text(later)
    reading = bundles.load if path.name == "spec.json" else Manifest.open
    text = refusal(reading, str(path.parent))
    assert "is of a later version of medray found: format 2 expected: format 1 or earlier" in text
    assert "read it with medray 0.7.0 or later" in text
    assert path.read_text() == later


def test_an_index_leaves_a_later_manifest_as_it_is(folder: Path):
    state = next(folder.rglob("state.json"))
    state.write_text(json.dumps(json.loads(state.read_text()) | {"format": 2}))
    before = {path: path.read_bytes() for path in state.parent.iterdir()}
    text = refusal(score, run_of(folder), LocalEngine(), Silent())
    assert "the manifest is of a later version of medray" in text and "the medray that wrote it" in text
    assert {path: path.read_bytes() for path in state.parent.iterdir()} == before


def test_later_shards_are_refused(folder: Path):
    path = next(folder.rglob("index.parquet"))
    index = pq.read_table(path)
    pq.write_table(index.replace_schema_metadata(index.schema.metadata | {b"format": b"2", b"read_by": b"0.7.0"}), path)
    text = refusal(ShardSet.open, str(path.parent))
    assert "the index of the shards is of a later version of medray" in text and "medray 0.7.0 or later" in text


def test_a_later_store_is_refused_whatever_its_columns(tmp_path: Path):
    later = {"medray.format": "2", "medray.read_by": "0.7.0"}
    DeltaTable.create(
        str(tmp_path / "scores"), pa.schema([("one", pa.int64())]), configuration=later, raise_if_key_not_exists=False
    )
    text = refusal(ScoreStore.open, str(tmp_path / "scores"))
    assert "the score store is of a later version of medray" in text and "medray 0.7.0 or later" in text
