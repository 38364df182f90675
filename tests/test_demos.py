"""The demos' data and run files: what they write, what they change, and that only the change is seen. No training."""

from __future__ import annotations

from pathlib import Path

import pytest

from medray.archive.manifest import Manifest
from medray.config import runs
from medray.demos import DEMOS, run_demo
from medray.demos.base import Demo
from medray.demos.genomics import GENOMICS
from medray.demos.health_records import HEALTH_RECORDS
from medray.demos.imaging import IMAGING
from medray.engines.local import LocalEngine
from medray.errors import UserError
from medray.progress import Silent
from medray.verbs.index import index
from medray.verbs.to_meds import to_meds


def indexed(demo: Demo, out: Path) -> dict[str, tuple[bytes, str | None]]:
    """Entry id to fingerprint and reason, of the demo's archive as it lies there now."""
    if demo.convert is not None:
        (out / "to_meds.toml").write_text(demo.convert.format(out=out))
        convert = runs.load(out / "to_meds.toml")
        assert isinstance(convert, runs.ConvertRun)
        to_meds(convert, LocalEngine())
    (out / "train.toml").write_text(demo.train.format(out=out))
    run = runs.load(out / "train.toml")
    assert isinstance(run, runs.TrainRun)
    rows = Manifest.open(index(run, LocalEngine()).manifest).table()
    return {row["entry_id"]: (row["fingerprint"], row["reason"]) for row in rows.to_pylist()}


@pytest.mark.parametrize(
    ("demo", "entries", "changed", "failed"),
    [
        (IMAGING, 780, 4, {"truncated": 1}),
        (GENOMICS, 3190, 4, {"not_dna": 1}),
        (HEALTH_RECORDS, 800, 4, {}),
    ],
    ids=DEMOS,
)
def test_a_demo_changes_a_few_entries_and_no_others(tmp_path, demo, entries, changed, failed):
    demo.write(tmp_path)
    before = indexed(demo, tmp_path)
    assert len(before) == entries
    assert {reason for _, reason in before.values()} == {None}
    demo.change(tmp_path)
    after = indexed(demo, tmp_path)
    other = {entry for entry, facts in after.items() if before.get(entry) != facts}
    assert len(other) == changed
    reasons = [after[entry][1] for entry in other if after[entry][1] is not None]
    assert {reason: reasons.count(reason) for reason in reasons} == failed


@pytest.mark.parametrize("demo", [IMAGING, GENOMICS, HEALTH_RECORDS], ids=DEMOS)
def test_a_demos_score_run_names_the_bundle_that_its_training_makes(tmp_path, demo):
    for name, text in (("train", demo.train), ("score", demo.score)):
        (tmp_path / f"{name}.toml").write_text(text.format(out=tmp_path))
    trained, scored = runs.load(tmp_path / "train.toml"), runs.load(tmp_path / "score.toml")
    assert isinstance(scored, runs.ScoreRun)
    assert (trained.bundle, trained.archive) == (scored.bundle, scored.archive)


def test_a_demo_that_is_none_is_refused_with_the_names(tmp_path):
    with pytest.raises(UserError, match="no such demo") as refused:
        run_demo("proteomics", tmp_path, Silent())
    assert "imaging, genomics, ehr, all" in str(refused.value)
