"""An entry that ends its worker is a failed row; every other entry is scored, once."""

from collections import Counter
from pathlib import Path

import poison
import pyarrow as pa
import pytest
import toy

from medray.engines.ray.careful import Careful
from medray.engines.spec import RaySpec
from medray.errors import MachineError
from medray.flows.flow import Stage
from medray.learning import bundles
from medray.scores import ScoreStore
from medray.verbs.index import index
from medray.verbs.prepare import prepare
from medray.verbs.score import score

ENGINE = {"kind": "ray", "workers": 2, "memory_per_worker": "1GB"}


@pytest.fixture(scope="module")
def engine(ray_session):
    from medray.engines.ray.engine import RayEngine

    return RayEngine(RaySpec.model_validate(ENGINE))


def archive(folder: Path, count: int, **poisons: int) -> Path:
    """Good files, and files of these names as their number says; a bundle."""
    for number in range(count):
        toy.write_image(folder / "archive" / f"{number % 7}" / f"im_{number:05}.dcm", number, number % 2)
    for name, number in poisons.items():
        toy.write_image(folder / "archive" / f"{number % 7}" / f"{name}_{number}.dcm", number, 0)
    bundles.save(toy.bundle(), str(folder / "bundle"))
    return folder / "archive"


@pytest.mark.parametrize("good", [38, pytest.param(1998, marks=pytest.mark.slow)])
def test_entries_that_end_their_worker_are_failed_rows_among_good_ones(tmp_path, engine, monkeypatch, good):
    archive(tmp_path, good, segfault=9001, glutton=9002)
    poison.plant(monkeypatch)
    result = score(toy.score_run(tmp_path, engine=ENGINE), engine)
    assert (result.entries, result.scored, result.failed) == (good + 2, good, 2)
    assert result.by_reason == {"worker_died": 2}
    assert len(toy.scores(tmp_path / "scores")) == good  # each once
    assert Counter(toy.failures(tmp_path / "scores").values()) == {"worker_died": 2}
    again = score(toy.score_run(tmp_path, engine=ENGINE), engine)
    assert (again.pending, again.scored) == (0, 0)
    details = [row["detail"] for row in _rows(tmp_path) if row["status"] == "failed"]
    assert sorted(details) == ["ended by SIGSEGV, 2 times", "needed more memory than a worker may take, 2 times"]


def _rows(folder: Path) -> list[dict]:
    return ScoreStore.open(str(folder / "scores")).scores(toy.bundle().id).to_pylist()


def test_a_handful_of_entries_does_not_end_the_driver(tmp_path, engine, monkeypatch):
    archive(tmp_path, 5, segfault=9001, exit=9002)
    poison.plant(monkeypatch, scan=poison.scanning)
    result = score(toy.score_run(tmp_path, engine=ENGINE), engine)
    # the scan of these two ends the process, too: they are entries by their paths
    assert (result.entries, result.scored, result.failed) == (7, 5, 2)
    assert result.by_reason == {"worker_died": 2}


def test_an_entry_that_dies_once_is_scored(tmp_path, engine, monkeypatch):
    archive(tmp_path, 5, mood=9001)
    poison.plant(monkeypatch)
    result = score(toy.score_run(tmp_path, engine=ENGINE), engine)
    assert (result.entries, result.scored, result.failed) == (6, 6, 0)


def test_a_file_that_ends_the_scan_is_a_failed_entry(tmp_path, engine, monkeypatch):
    archive(tmp_path, 40, segfault=9001)
    poison.plant(monkeypatch, scan=poison.scanning)
    monkeypatch.setattr("medray.verbs.index.SMALL_FILES", 0)
    result = index(toy.score_run(tmp_path, engine=ENGINE), engine)
    assert (result.entries, result.failed, result.by_reason) == (41, 1, {"worker_died": 1})


def test_shards_leave_out_what_ends_its_worker(tmp_path, engine, monkeypatch):
    toy.write_archive(tmp_path, 48)
    (tmp_path / "archive" / "0" / "im_0000.dcm").rename(tmp_path / "archive" / "0" / "segfault_0000.dcm")
    labels = tmp_path / "labels.csv"
    labels.write_text(labels.read_text().replace("0/im_0000.dcm", "0/segfault_0000.dcm"))
    poison.plant(monkeypatch)
    result = prepare(toy.train_run(tmp_path, engine=ENGINE), engine)
    assert (result.samples, result.by_reason) == (47, {"worker_died": 1})


class Deadly:
    def __call__(self, batch):
        import os

        os._exit(9)


class Nothing:
    def write(self, batches):
        return {"rows": sum(len(batch) for batch in batches)}

    def commit(self, receipts): ...


def test_work_whose_rows_cannot_fail_says_what_ends_it():
    work = Careful((Stage(Deadly, 4),), Nothing(), failable=False)
    with pytest.raises(MachineError, match="ends its process each time") as caught:
        work(pa.table({"value": list(range(10))}))
    assert caught.value.found == "ended with code 9"
    work.close()


class Unbuildable:
    def __init__(self):
        import os

        os._exit(9)


def test_work_that_dies_while_it_is_built_blames_no_entry():
    work = Careful((Stage(Unbuildable, 4),), Nothing(), failable=True)
    with pytest.raises(MachineError, match="ends its process each time") as caught:
        work(pa.table({"value": list(range(10))}))
    assert "0 were begun" in caught.value.where
    work.close()
