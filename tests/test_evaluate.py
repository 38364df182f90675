"""Evaluation: its numbers, its report, what it refuses, and each objective from archive to scores."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import toy
from PIL import Image

from medray.config.runs import TrainRun
from medray.engines.local import LocalEngine
from medray.errors import BundleError, LabelError
from medray.verbs.evaluate import evaluate
from medray.verbs.reporting import measures_of
from medray.verbs.score import score
from medray.verbs.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with an archive, and the bundle trained on it."""
    folder = tmp_path_factory.mktemp("evaluated")
    toy.write_archive(folder)
    train(toy.train_run(folder), LocalEngine())
    return folder


@pytest.fixture(scope="module")
def evaluated(trained):
    return evaluate(toy.train_run(trained), LocalEngine())


# --- numbers --------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_the_predictions(evaluated):
    table = pq.read_table(evaluated.predictions)
    score, truth = table["lower"].to_numpy(), np.array(table["target"].to_pylist())[:, 0] == 1
    called = score >= evaluated.thresholds[0]
    confusion = [[np.sum(~called & ~truth), np.sum(called & ~truth)], [np.sum(~called & truth), np.sum(called & truth)]]
    pairs = score[truth][:, None] - score[~truth][None, :]
    assert evaluated.n == len(table) == 18
    assert evaluated.metrics["confusion_matrix"] == np.array(confusion).tolist()
    assert evaluated.metrics["accuracy"] == pytest.approx(np.mean(called == truth))
    assert evaluated.metrics["auroc"] == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    assert evaluated.metrics["brier"] == pytest.approx(np.mean((score - truth) ** 2), rel=1e-5)


def test_measures_are_the_least_median_and_greatest_of_what_entries_state():
    facts = ['{"tilt_degrees":1.5,"spacing_mm":[5,0.5,0.5],"Modality":"CT"}', '{"spacing_mm":[2.5,0.5,0.4]}', None]
    assert measures_of(facts) == {
        "spacing_mm[1]": (2, 2.5, 3.75, 5.0),
        "spacing_mm[2]": (2, 0.5, 0.5, 0.5),
        "spacing_mm[3]": (2, 0.4, 0.45, 0.5),
        "tilt_degrees": (1, 1.5, 1.5, 1.5),
    }


def test_the_report_says_what_kinds_of_images_were_evaluated(evaluated):
    page = Path(evaluated.report).read_text()
    assert "What was evaluated" in page and "Kinds of entries" in page


def test_the_report_shows_the_images_of_its_mistakes_unless_the_run_file_leaves_them_out(trained, evaluated):
    folder = Path(evaluated.report).parent
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run = toy.train_run(trained)
    without = run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"pictures": False})})
    try:
        told = evaluate(without, LocalEngine())
        page = Path(told.report).read_text()
    finally:  # other tests read what the first evaluation left
        for path, content in before.items():
            path.write_bytes(content)
    whole = before[Path(evaluated.report)].decode()
    shown = whole.count('src="data:image/png')
    assert shown == whole.count("<b>Called ") > 0
    assert page.count('src="data:image/png') == 0 and page.count("<b>Called ") == shown
    assert told.metrics == evaluated.metrics


def test_predictions_name_every_entry_of_the_split_once(trained, evaluated):
    table = pq.read_table(evaluated.predictions)
    assert table.column_names == ["entry_id", "sample_id", "subject_id", "target", "lower"]
    assert len(set(table["entry_id"].to_pylist())) == evaluated.n == evaluated.subjects
    assert table["entry_id"].to_pylist() == sorted(table["entry_id"].to_pylist())


def test_the_threshold_is_the_one_chosen_on_validation(trained, evaluated):
    from medray.learning import bundles

    assert evaluated.thresholds == bundles.load(str(trained / "bundle")).recipe.thresholds


def test_scores_of_the_split_are_those_of_a_scoring_run(trained, evaluated):
    score(toy.score_run(trained), LocalEngine())
    stored = toy.scores(trained / "scores")
    rows = pq.read_table(evaluated.predictions).to_pylist()
    assert [row["lower"] for row in rows] == pytest.approx([stored[row["entry_id"], "lower"] for row in rows], abs=1e-6)


def test_the_result_stands_beside_the_predictions(evaluated):
    written = json.loads(Path(evaluated.predictions).with_name("metrics.json").read_text())
    assert written == evaluated.model_dump(mode="json")


def test_another_split_has_its_own_numbers_and_folder(trained, evaluated):
    validation = evaluate(toy.train_run(trained), LocalEngine(), split="validation")
    assert (validation.split, validation.n) == ("validation", 18)
    assert validation.report != evaluated.report and Path(evaluated.report).exists()


# --- the report -----------------------------------------------------------------------------------------------


class Resources(HTMLParser):
    """Everything a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [
            value or "" for name, value in attrs if name in ("src", "srcset", "data", "action", "xlink:href")
        ]
        self.found += [
            value or "" for name, value in attrs if name == "href" and tag in ("link", "use", "image", "base")
        ]


def test_the_report_is_one_page_that_loads_nothing(evaluated):
    page = Path(evaluated.report).read_text(encoding="utf-8")
    resources = Resources()
    resources.feed(page)
    assert [each[:40] for each in resources.found if not each.startswith(("data:", "#"))] == []
    assert "@import" not in page and "url(http" not in page and "<script src" not in page
    assert evaluated.bundle_id in page and "Not a medical device" in page


# --- refusals -------------------------------------------------------------------------------------------------


def test_other_preprocessing_than_the_bundles_is_refused_before_anything_is_decoded(trained, tmp_path):
    modality = {"kind": "imaging", "size": [8, 8], "dtype": "uint8"}
    run = toy.train_run(trained, modality=modality, work=str(tmp_path / "work"))
    with pytest.raises(BundleError, match="other preprocessing") as refused:
        evaluate(run, LocalEngine())
    assert refused.value.where == "[modality] size"
    assert not (tmp_path / "work").exists()


def test_other_classes_than_the_bundles_are_refused(trained, tmp_path):
    table = (trained / "labels.csv").read_text().replace("lower", "left").replace("upper", "right")
    (tmp_path / "labels.csv").write_text(table)
    run = toy.train_run(trained, objective={"kind": "binary"}, work=str(tmp_path / "work"))
    labels = run.labels.model_copy(update={"table": str(tmp_path / "labels.csv")})
    with pytest.raises(BundleError, match="other classes") as refused:
        evaluate(run.model_copy(update={"labels": labels}), LocalEngine())
    assert (refused.value.found, refused.value.expected) == ("left, right", "upper, lower")


def test_another_positive_class_than_the_bundles_is_refused(trained):
    with pytest.raises(BundleError, match="another objective") as refused:
        evaluate(toy.train_run(trained, objective={"kind": "binary", "positive": "upper"}), LocalEngine())
    assert refused.value.where == "[objective] positive"


def test_a_split_without_entries_is_refused_with_the_counts(trained, tmp_path):
    table = (trained / "labels.csv").read_text().replace(",test,", ",train,")
    (tmp_path / "labels.csv").write_text(table)
    run = toy.train_run(trained, work=str(tmp_path / "work"))
    labels = run.labels.model_copy(update={"table": str(tmp_path / "labels.csv")})
    with pytest.raises(LabelError, match="'test' holds no labelled, readable entry") as refused:
        evaluate(run.model_copy(update={"labels": labels}), LocalEngine())
    assert refused.value.found == "train: 78, validation: 18, test: 0"


def test_a_bundle_that_is_not_trained_yet_says_so(trained, tmp_path):
    with pytest.raises(BundleError, match="not a bundle"):
        evaluate(toy.train_run(trained, bundle=str(tmp_path / "none")), LocalEngine())


# --- every objective, from archive to scores ------------------------------------------------------------------

COUNT = {"train": 48, "val": 12, "test": 12}


def image(number: int, cells: np.ndarray, levels: tuple[int, ...] = (120, 120, 120)) -> np.ndarray:
    """(12, 12) uint8: dim noise, and a bright band for each of three cells that is set."""
    picture = np.random.default_rng(number).integers(0, 60, (12, 12))
    for band in range(3):
        picture[4 * band + 1 : 4 * band + 3] += int(cells[band]) * levels[band]
    return picture.astype(np.uint8)


def write_npz(path: Path, cells_of, labels_of) -> None:
    arrays, number = {}, 0
    for split, count in COUNT.items():
        cells = np.array([cells_of(number + i) for i in range(count)])
        arrays[f"{split}_images"] = np.stack([image(number + i, cells[i]) for i in range(count)])
        arrays[f"{split}_labels"] = np.array([labels_of(row) for row in cells])
        number += count
    np.savez(path, **arrays)


def run_on(folder: Path, archive: Path, objective: dict, **changes) -> TrainRun:
    settings = {
        "modality": {"kind": "imaging", "size": [12, 12]},
        "labels": {},
        "split": {"by": "given"},
        "training": {"epochs": 12, "learning_rate": 0.01},
    }
    return toy.train_run(folder, archive=str(archive), objective=objective, **(settings | changes))


def through_all_verbs(run: TrainRun, folder: Path):
    """(train, evaluate, score) results, and the scores by (entry, output)."""
    engine = LocalEngine()
    results = train(run, engine), evaluate(run, engine), score(toy.score_run(folder, archive=run.archive), engine)
    return *results, toy.scores(folder / "scores")


def test_multiclass_from_npz_to_scores(tmp_path):
    write_npz(tmp_path / "bands.npz", lambda n: np.eye(3)[n % 3], lambda cells: [cells.argmax()])
    objective = {"kind": "multiclass", "names": ["top", "middle", "bottom"]}
    run = run_on(tmp_path, tmp_path / "bands.npz", objective)
    trained, tested, scored, scores = through_all_verbs(run, tmp_path)
    assert trained.metrics["accuracy"] == tested.metrics["accuracy"] == 1
    assert tested.metrics["confusion_matrix"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert set(tested.metrics["per_class"]) == {"top", "middle", "bottom"}
    assert (scored.scored, scored.failed, len(scores)) == (72, 0, 216)
    assert {output for _, output in scores} == {"top", "middle", "bottom"}
    assert sum(value for (entry, _), value in scores.items() if entry == "bands.npz#test/0") == pytest.approx(1)
    assert Path(tested.report).exists()


def test_multilabel_from_npz_to_scores(tmp_path):
    def cells_of(number):
        return np.array([number & 1, number >> 1 & 1, number >> 2 & 1])

    write_npz(tmp_path / "findings.npz", cells_of, lambda cells: cells)
    objective = {"kind": "multilabel", "names": ["top", "middle", "bottom"]}
    run = run_on(tmp_path, tmp_path / "findings.npz", objective)
    _, tested, scored, scores = through_all_verbs(run, tmp_path)
    assert tested.metrics["auroc"] > 0.95 and len(tested.thresholds) == 3
    assert set(tested.metrics["per_label"]) == {"top", "middle", "bottom"}
    assert (scored.scored, scored.failed, len(scores)) == (72, 0, 216)
    assert Path(tested.report).exists()


def write_class_folders(folder: Path) -> None:
    """folder/<split>/<class>/<number>.png"""
    number = 0
    for split, count in COUNT.items():
        for _ in range(count):
            place = folder / split / ("top", "bottom")[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            cells = np.array([1 - number % 2, 0, number % 2])
            Image.fromarray(image(number, cells)).save(place / f"{number:03}.png")
            number += 1


def test_binary_from_class_folders_to_scores(tmp_path):
    write_class_folders(tmp_path / "pictures")
    run = run_on(tmp_path, tmp_path / "pictures", {"kind": "binary", "positive": "top"})
    _, tested, scored, scores = through_all_verbs(run, tmp_path)
    assert tested.metrics["auroc"] == 1 and tested.n == 12
    assert (scored.scored, {output for _, output in scores}) == (72, {"top"})


def test_regression_from_a_label_table_to_scores_in_the_targets_unit(tmp_path):
    (tmp_path / "pictures").mkdir()
    rows, number = ["path,brightness,split"], 0
    for split, count in COUNT.items():
        for _ in range(count):
            level = number * 37 % 100
            Image.fromarray(image(number, np.ones(3), (level, level, level))).save(tmp_path / f"pictures/{number}.png")
            rows.append(f"{number}.png,{1000 + level},{split}")
            number += 1
    (tmp_path / "values.csv").write_text("\n".join(rows))
    labels = {"table": str(tmp_path / "values.csv"), "columns": ["brightness"], "split_column": "split"}
    objective = {"kind": "regression", "names": ["brightness"], "loss_function": "huber"}
    run = run_on(tmp_path, tmp_path / "pictures", objective, labels=labels)
    _, tested, scored, scores = through_all_verbs(run, tmp_path)
    assert tested.metrics["mae"] < 10 and tested.thresholds == ()
    assert (scored.scored, scored.failed) == (72, 0)
    assert all(950 < value < 1150 for value in scores.values())
    table = pq.read_table(tested.predictions)
    wrong = table["brightness"].to_numpy() - np.array(table["target"].to_pylist())[:, 0]
    assert tested.metrics["mae"] == pytest.approx(np.abs(wrong).mean(), rel=1e-5)
    assert Path(tested.report).exists()


# --- beside the network ---------------------------------------------------------------------------------------


def test_the_logistic_floor_stands_beside_the_network_and_is_trained_once(trained, tmp_path):
    run = toy.train_run(trained, floor=True, work=str(tmp_path / "work"), bundle=str(tmp_path / "bundle"))
    train(run, LocalEngine())
    [floor] = (tmp_path / "work" / "training").glob("*/bundle/spec.json")
    made = floor.stat().st_mtime_ns
    result = evaluate(run, LocalEngine())
    assert result.floor is not None and 0 <= result.floor["auroc"] <= 1
    assert result.floor["brier"] != result.metrics["brier"]
    page = Path(result.report).read_text()
    assert ">logistic</th>" in page
    train(run, LocalEngine())
    assert floor.stat().st_mtime_ns == made


def test_a_logistic_run_needs_no_floor(trained, tmp_path):
    changes = {"model": {"kind": "logistic"}, "work": str(tmp_path / "work"), "bundle": str(tmp_path / "bundle")}
    run = toy.train_run(trained, floor=True, **changes)
    train(run, LocalEngine())
    assert list((tmp_path / "work" / "training").glob("*/bundle")) == []
    assert evaluate(run, LocalEngine()).floor is None


def test_calibrated_scores_are_stored_and_the_report_says_what_they_were(trained, tmp_path):
    changes = {"work": str(tmp_path / "work"), "bundle": str(tmp_path / "bundle")}
    run = toy.train_run(
        trained, objective={"kind": "binary", "positive": "lower", "calibration": "validation"}, **changes
    )
    train(run, LocalEngine())
    result = evaluate(run, LocalEngine())
    assert result.metrics["before_calibration"]["ece"] != result.metrics["ece"]
    assert "calibrated on the validation split" in Path(result.report).read_text()
    score(toy.score_run(trained, bundle=str(tmp_path / "bundle"), store=str(tmp_path / "scores")), LocalEngine())
    stored, rows = toy.scores(tmp_path / "scores"), pq.read_table(result.predictions).to_pylist()
    assert [row["lower"] for row in rows] == pytest.approx([stored[row["entry_id"], "lower"] for row in rows], abs=1e-6)
