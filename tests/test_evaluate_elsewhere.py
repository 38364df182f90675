"""A bundle on other archives than its own: nothing is fitted, and who was in training is known."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import toy
from test_evaluate import Resources
from typer.testing import CliRunner

from medray.cli.app import app
from medray.config.runs import EvaluateRun, TrainRun, load
from medray.engines.local import LocalEngine
from medray.errors import BundleError, LabelError, RunFileError, SplitError
from medray.learning import bundles
from medray.verbs.evaluate import evaluate
from medray.verbs.overlap import SEEN
from medray.verbs.prepare import prepare
from medray.verbs.score import score
from medray.verbs.train import train


def write_site(folder: Path, numbers: range, *, split: str | None = None, only: int | None = None) -> None:
    """`folder`/archive and `folder`/labels.csv of images with these numbers, in a given split or without any."""
    rows = []
    for number in numbers:
        label = number % 2 if only is None else only
        toy.write_image(folder / "archive" / f"im_{number:04}.dcm", number, label)
        rows.append((f"im_{number:04}.dcm", *((split,) if split else ()), ("upper", "lower")[label]))
    with open(folder / "labels.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("file", *(("split",) if split else ()), "diagnosis"), *rows])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with an archive, the bundle trained on it, and its evaluation on its own test split."""
    folder = tmp_path_factory.mktemp("home")
    toy.write_archive(folder)
    train(toy.train_run(folder), LocalEngine())
    evaluate(toy.train_run(folder), LocalEngine())
    return folder


def elsewhere(home: Path, site: Path, **changes: Any) -> EvaluateRun:
    settings: dict[str, Any] = {
        "name": "site",
        "archive": str(site / "archive"),
        "bundle": str(home / "bundle"),
        "work": str(site / "work"),
        "engine": {"kind": "local"},
        "labels": {"table": str(site / "labels.csv"), "key": "file", "columns": ["diagnosis"]},
        "evaluation": {"resamples": 50},
    }
    return EvaluateRun.model_validate(settings | changes)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    write_site(folder, range(1000, 1030))
    return folder


def test_every_labelled_entry_of_another_archive_is_evaluated_and_nothing_is_fitted(home, site):
    before = {path.name: path.read_bytes() for path in (home / "bundle").iterdir()}
    result = evaluate(elsewhere(home, site), LocalEngine())
    assert (result.external, result.split, result.n, result.subjects) == (True, "all", 30, 30)
    assert (result.shared_subjects, result.absent_classes, result.not_eligible) == (0, (), {})
    recipe = bundles.load(str(home / "bundle")).recipe
    assert (result.bundle_id, result.thresholds) == (recipe.id, recipe.thresholds)
    assert {path.name: path.read_bytes() for path in (home / "bundle").iterdir()} == before
    score(
        toy.score_run(home, archive=str(site / "archive"), store=str(site / "scores"), work=str(site / "w")),
        LocalEngine(),
    )
    stored = toy.scores(site / "scores")
    rows = pq.read_table(result.predictions).to_pylist()
    assert [row["lower"] for row in rows] == pytest.approx([stored[row["entry_id"], "lower"] for row in rows], abs=1e-6)
    table, threshold = pq.read_table(result.predictions), recipe.thresholds[0]
    called, truth = table["lower"].to_numpy() >= threshold, np.array(table["target"].to_pylist())[:, 0] == 1
    assert result.metrics["accuracy"] == pytest.approx(np.mean(called == truth))
    assert result.intervals["accuracy"][0] <= result.metrics["accuracy"] <= result.intervals["accuracy"][1]
    assert json.loads(Path(result.predictions).with_name("metrics.json").read_text()) == result.model_dump(mode="json")


def test_a_training_run_file_works_on_an_archive_without_a_train_split(home, tmp_path):
    write_site(tmp_path, range(2000, 2012), split="held_out")
    run = toy.train_run(home, archive=str(tmp_path / "archive"), work=str(tmp_path / "work"), split={"by": "given"},
                        labels={"table": str(tmp_path / "labels.csv"), "key": "file", "columns": ["diagnosis"],
                                "split_column": "split"})  # fmt: skip
    result = evaluate(run, LocalEngine())
    assert (result.external, result.split, result.n) == (True, "test", 12)
    with pytest.raises(LabelError, match="'validation' holds no labelled") as refused:
        evaluate(run, LocalEngine(), split="validation")
    assert refused.value.found == "train: 0, validation: 0, test: 12"
    with pytest.raises(SplitError, match="train split is empty"):
        prepare(run, LocalEngine())


def test_the_own_test_split_is_the_same_from_the_training_work_folder_and_from_another(home, tmp_path):
    own = evaluate(toy.train_run(home), LocalEngine())
    again = evaluate(toy.train_run(home, work=str(tmp_path / "work")), LocalEngine())
    assert (own.external, again.external) == (False, True) and again.metrics == own.metrics
    assert again.shared_subjects == 0


def test_the_run_file_need_not_repeat_the_preprocessing_and_may_not_contradict_it(home, site, tmp_path):
    plain = toy.train_run(home, archive=str(site / "archive"), work=str(tmp_path / "work"), split={"by": "all"},
                          modality={"kind": "imaging", "size": [toy.SIZE, toy.SIZE]},
                          labels={"table": str(site / "labels.csv"), "key": "file", "columns": ["diagnosis"]})  # fmt: skip
    assert evaluate(plain, LocalEngine()).metrics == evaluate(elsewhere(home, site), LocalEngine()).metrics
    with pytest.raises(RunFileError, match="cannot change how its bundle reads data"):
        evaluate(elsewhere(home, site, modality={"size": [8, 8]}), LocalEngine())


# --- who was in training --------------------------------------------------------------------------------------


def test_subjects_that_the_bundle_was_trained_on_are_refused_or_left_out_or_counted(home, tmp_path):
    write_site(tmp_path, range(20, 40))  # S0020 to S0039: of each ten, six train and two validate
    with pytest.raises(LabelError, match="trained or validated on subjects of this archive") as refused:
        evaluate(elsewhere(home, tmp_path), LocalEngine())
    assert refused.value.found == "16 subjects with 16 of 20 entries"
    rest = evaluate(
        elsewhere(home, tmp_path, evaluation={"resamples": 0, "shared_subjects": "leave_out"}), LocalEngine()
    )
    assert (rest.n, rest.shared_subjects) == (4, 16)
    kept = evaluate(elsewhere(home, tmp_path, evaluation={"resamples": 0, "shared_subjects": "keep"}), LocalEngine())
    assert (kept.n, kept.shared_subjects) == (20, 16)
    assert "trained on 16 of these subjects, who are counted in" in Path(kept.report).read_text(encoding="utf-8")


def test_a_bundle_from_before_gets_its_hashes_when_it_is_trained_again(home):
    held = (home / "bundle" / SEEN).read_bytes()
    (home / "bundle" / SEEN).unlink()
    assert train(toy.train_run(home), LocalEngine()).reused
    assert (home / "bundle" / SEEN).read_bytes() == held


def test_under_another_key_and_for_an_old_bundle_it_is_said_not_to_be_known(home, tmp_path):
    write_site(tmp_path, range(20, 40))
    (tmp_path / "key").write_text("k" * 64)
    result = evaluate(elsewhere(home, tmp_path, pseudonym_key=str(tmp_path / "key")), LocalEngine())
    assert (result.n, result.shared_subjects) == (20, None)
    assert "not known whether the model was trained" in Path(result.report).read_text(encoding="utf-8")
    shutil.copytree(home / "bundle", tmp_path / "old", ignore=shutil.ignore_patterns(SEEN))
    result = evaluate(elsewhere(home, tmp_path, bundle=str(tmp_path / "old")), LocalEngine())
    assert (result.n, result.shared_subjects) == (20, None)


def test_the_hashes_of_subjects_hold_no_pseudonym_and_can_be_left_out(home, tmp_path):
    held = np.frombuffer((home / "bundle" / SEEN).read_bytes(), "<u8")
    manifest = pq.read_table(next((home / "work" / "shards").glob("*/manifest.parquet")))
    of_split = [row["subject_id"] for row in manifest.to_pylist() if row["split"] in ("train", "validation")]
    assert len(held) == 1 + len(set(of_split)) == 1 + 78
    assert not {f"{number:016x}" for number in held.tolist()} & set(of_split)
    toy.write_archive(tmp_path, 20)
    train(toy.train_run(tmp_path, remember_subjects=False, training={"epochs": 1}), LocalEngine())
    assert not (tmp_path / "bundle" / SEEN).exists()


def test_a_test_split_that_training_subjects_have_moved_into_is_refused(tmp_path):
    toy.write_archive(tmp_path, 40)
    labels = {"table": str(tmp_path / "labels.csv"), "key": "file", "columns": ["diagnosis"], "split_column": "split"}
    run = toy.train_run(tmp_path, labels=labels, training={"epochs": 1})
    train(run, LocalEngine())
    text = (tmp_path / "labels.csv").read_text().replace("0/im_0000.dcm,train", "0/im_0000.dcm,test")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(LabelError, match="archive has changed since training"):
        evaluate(run, LocalEngine())
    rest = evaluate(run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"shared_subjects": "leave_out"})}),
                    LocalEngine())  # fmt: skip
    assert rest.n == 8


# --- several archives -----------------------------------------------------------------------------------------


def test_several_archives_and_the_own_test_split_stand_beside_each_other(home, site, tmp_path):
    write_site(tmp_path, range(3000, 3010))
    also = {
        "name": "third", "archive": str(tmp_path / "archive"),
        "labels": {"table": str(tmp_path / "labels.csv"), "key": "file", "columns": ["diagnosis"]},
    }  # fmt: skip
    own = next((home / "work" / "evaluation").glob("*/test/predictions.parquet"))
    run = elsewhere(home, site, also=[also], own_test=str(own), work=str(tmp_path / "work"))
    result = evaluate(run, LocalEngine())
    assert (result.n, result.entries) == (40, 40)
    assert {name: row["n"] for name, row in result.by_archive.items()} == {
        "site": 30,
        "third": 10,
        "own test split": 18,
    }
    alone = evaluate(elsewhere(home, site), LocalEngine())
    assert result.by_archive["site"]["metrics"]["auroc"] == alone.metrics["auroc"]
    assert tuple(result.by_archive["site"]["intervals"]["auroc"]) == alone.intervals["auroc"]
    at_home = evaluate(toy.train_run(home), LocalEngine())
    assert result.by_archive["own test split"]["metrics"]["accuracy"] == at_home.metrics["accuracy"]
    assert set(pq.read_table(result.predictions)["archive"].to_pylist()) == {"site", "third"}
    page = Path(result.report).read_text(encoding="utf-8")
    resources = Resources()
    resources.feed(page)
    assert [each[:40] for each in resources.found if not each.startswith(("data:", "#"))] == []
    assert "By archive" in page and "own test split" in page and "trained on none of these subjects" in page


def test_predictions_of_another_bundle_are_not_taken_for_the_own_test_split(home, site, tmp_path):
    with pytest.raises(BundleError, match="cannot be read"):
        evaluate(elsewhere(home, site, own_test=str(tmp_path / "none.parquet")), LocalEngine())
    table = pq.read_table(next((home / "work" / "evaluation").glob("*/test/predictions.parquet")))
    pq.write_table(table.rename_columns([*table.column_names[:-1], "nodule"]), tmp_path / "other.parquet")
    with pytest.raises(BundleError, match="another bundle"):
        evaluate(elsewhere(home, site, own_test=str(tmp_path / "other.parquet")), LocalEngine())


def test_a_class_that_the_archive_lacks_is_said_and_what_needs_it_is_null(home, tmp_path):
    write_site(tmp_path, range(4000, 4006), only=0)
    result = evaluate(elsewhere(home, tmp_path), LocalEngine())
    assert result.absent_classes == ("lower",)
    assert result.metrics["auroc"] is None and result.metrics["sensitivity"] is None
    assert result.metrics["specificity"] is not None


def test_an_archive_without_labels_or_with_unknown_ones_is_refused(home, site, tmp_path):
    with pytest.raises(LabelError, match="no entry of the archive has a label"):
        evaluate(elsewhere(home, site, labels={}), LocalEngine())
    (tmp_path / "labels.csv").write_text((site / "labels.csv").read_text().replace("lower", "Lower"))
    labels = {"table": str(tmp_path / "labels.csv"), "key": "file", "columns": ["diagnosis"]}
    with pytest.raises(BundleError, match="other classes") as refused:
        evaluate(elsewhere(home, site, labels=labels), LocalEngine())
    assert refused.value.found == "Lower"


def test_a_file_that_cannot_be_read_counts_as_failed_and_sets_the_exit_code(home, tmp_path):
    write_site(tmp_path, range(5000, 5010))
    (tmp_path / "archive" / "im_5003.dcm").write_bytes(b"DICM no more")
    result = evaluate(elsewhere(home, tmp_path), LocalEngine())
    assert (result.n, result.failed) == (9, 1) and result.exit_code(0.01) == 3


# --- run files ------------------------------------------------------------------------------------------------


def test_a_run_file_with_a_bundle_alone_is_for_evaluate_and_the_command_takes_both(home, site, tmp_path):
    file = toy.write_run_file(tmp_path / "elsewhere.toml", elsewhere(home, site, work=str(tmp_path / "work")))  # type: ignore[arg-type]  # any run
    assert isinstance(load(file), EvaluateRun)
    done = CliRunner().invoke(app, ["evaluate", str(file), "--json"], catch_exceptions=False)
    assert done.exit_code == 0 and json.loads(done.stdout.splitlines()[-1])["external"] is True
    done = CliRunner().invoke(app, ["evaluate", str(file)], catch_exceptions=False)
    assert done.exit_code == 0 and "auroc" in done.stdout
    done = CliRunner().invoke(app, ["index", str(file), "--json"], catch_exceptions=False)
    assert done.exit_code == 0 and json.loads(done.stdout.splitlines()[-1])["entries"] == 30
    done = CliRunner().invoke(app, ["train", str(file)], catch_exceptions=False)
    assert done.exit_code == 2 and "medray evaluate" in done.stderr
    training = toy.write_run_file(tmp_path / "train.toml", toy.train_run(home))
    assert isinstance(load(training), TrainRun)
    done = CliRunner().invoke(app, ["evaluate", str(training), "--json"], catch_exceptions=False)
    assert done.exit_code == 0 and json.loads(done.stdout.splitlines()[-1])["external"] is False


def test_archives_of_one_name_are_refused(home, site):
    with pytest.raises(ValueError, match="name of its own"):
        elsewhere(home, site, also=[{"name": "site", "archive": "x"}])
