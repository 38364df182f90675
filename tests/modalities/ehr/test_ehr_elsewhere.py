"""A model of health records on another hospital's dataset and label table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from meds_data import at, write_events, write_labels, write_splits

from medray.config.runs import EvaluateRun, TrainRun
from medray.engines.local import LocalEngine
from medray.errors import BundleError
from medray.learning import bundles
from medray.verbs.evaluate import evaluate
from medray.verbs.train import train


def write_hospital(root: Path, first: int, splits: list[str], labels: str, code: str = "X") -> None:
    """60 subjects: three numbers in the first hours that are higher for odd ids, and a label that is theirs."""
    ids = range(first, first + 60)
    write_events(root / "data" / "0.parquet", [(i, at(h), code, i % 2 + h / 10) for i in ids for h in range(3)])
    write_splits(root, {i: splits[i % 7 % len(splits)] for i in ids})
    write_labels(root / "labels" / f"{labels}.parquet", [(i, at(24), i % 2 == 1) for i in ids])


def training(folder: Path, site: str, labels: str = "y", **changes: Any) -> TrainRun:
    settings: dict[str, Any] = {
        "name": "hospitals",
        "archive": str(folder / site),
        "bundle": str(folder / "bundle"),
        "work": str(folder / f"work-{site}"),
        "engine": {"kind": "local"},
        "modality": {"kind": "ehr", "window": "48h", "min_samples": 1, "task": {"labels": f"labels/{labels}.parquet"}},
        "split": {"by": "given"},
        "model": {"kind": "logistic"},
        "objective": {"kind": "binary", "names": ["no", "yes"], "positive": "yes"},
        "training": {"epochs": 20, "batch_size": 16, "learning_rate": 0.1},
        "evaluation": {"resamples": 20},
    }
    return TrainRun.model_validate(settings | changes)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hospitals")
    write_hospital(folder / "a", 0, ["train", "train", "tuning", "held_out"], "y")
    write_hospital(folder / "b", 1000, ["held_out"], "y")
    write_hospital(folder / "c", 2000, ["held_out"], "died")
    write_hospital(folder / "d", 3000, ["held_out"], "y", code="OTHER")
    train(training(folder, "a"), LocalEngine())
    return folder


def test_a_training_run_file_with_held_out_subjects_alone_is_evaluated(hospitals):
    result = evaluate(training(hospitals, "b"), LocalEngine())
    assert (result.n, result.external, result.shared_subjects) == (60, True, 0)
    assert result.metrics["auroc"] == 1.0


def test_a_label_table_of_another_name_is_a_matter_of_the_site(hospitals):
    assert evaluate(training(hospitals, "c", "died"), LocalEngine()).metrics["auroc"] == 1.0
    run = EvaluateRun.model_validate(
        {
            "name": "c", "archive": str(hospitals / "c"), "bundle": str(hospitals / "bundle"),
            "work": str(hospitals / "work-c2"), "modality": {"task": {"labels": "labels/died.parquet"}},
            "engine": {"kind": "local"}, "evaluation": {"resamples": 20},
        }
    )  # fmt: skip
    result = evaluate(run, LocalEngine())
    assert (result.n, result.split, result.metrics["auroc"]) == (60, "all", 1.0)


def test_another_window_than_the_bundles_is_refused(hospitals):
    modality = {"kind": "ehr", "window": "24h", "min_samples": 1, "task": {"labels": "labels/y.parquet"}}
    with pytest.raises(BundleError, match="other preprocessing") as refused:
        evaluate(training(hospitals, "b", modality=modality), LocalEngine())
    assert refused.value.where == "[modality] window"


def test_a_hospital_with_other_codes_has_nobody_that_the_model_can_be_asked_about(hospitals):
    from medray.errors import ArchiveError

    with pytest.raises(ArchiveError, match="can be scored") as refused:
        evaluate(training(hospitals, "d"), LocalEngine())
    assert refused.value.found == "0 failed, 60 not eligible"


def test_the_vocabulary_stays_the_bundles(hospitals):
    before = bundles.load(str(hospitals / "bundle"))
    evaluate(training(hospitals, "b"), LocalEngine())
    after = bundles.load(str(hospitals / "bundle"))
    assert before.id == after.id and before.recipe == after.recipe
