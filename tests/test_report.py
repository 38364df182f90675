"""The report page and its figures: self-contained, complete, escaped, deterministic, optional in every part."""

from __future__ import annotations

import functools
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from medray.learning.metrics import metric_text
from medray.learning.objectives import BinaryObjective, MulticlassObjective, MultilabelObjective, RegressionObjective
from medray.learning.objectives.diagnostics import curve_points
from medray.learning.rates import wilson
from medray.reports.drawing import figure
from medray.reports.evaluation import Mistake, ReportFacts, ScoringRun, write_report
from medray.reports.learning_curve import learning_curve
from medray.reports.page import thumbnail

HISTORY = [
    {"epoch": 1, "train_loss": 0.7, "loss": 0.6, "auroc": None, "accuracy": 0.5, "learning_rate": 1e-3},
    {"epoch": 2, "train_loss": 0.5, "loss": 0.5, "auroc": 0.8, "accuracy": 0.7, "learning_rate": 1e-3},
]


class Page(HTMLParser):
    """What a page holds: opened tags balance, and every address it would load."""

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.addresses += [
            value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data") and value
        ]
        if tag in ("img", "svg"):
            self.images.append(found)
        assert tag not in ("script", "iframe", "link", "object")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and "svg" not in self.open:
            self.text.append(data)


def words(html: str) -> str:
    return re.sub(r"\s+", " ", " ".join(Page(html).text))


def binary_facts(rows: int = 120) -> ReportFacts:
    random = np.random.default_rng(0)
    objective = BinaryObjective(names=("malignant", "benign"), positive="malignant")
    classes = ("1", "0")
    truth = (np.arange(rows) % 3 == 0).astype(np.float32)[:, None]
    scores = np.clip(0.4 * truth + 0.6 * random.random((rows, 1)), 0, 1).astype(np.float32)
    names = objective.display(classes)
    return ReportFacts(
        name="breast",
        bundle_id="3f9c1b20aa74e5d1",
        model="resnet, depth 18",
        objective=objective,
        classes=classes,
        date="2025-11-22",
        splits={"train": {"entries": 400, "subjects": 390, "classes": {"1": 300, "0": 100}},
                "test": {"entries": rows, "subjects": 117, "classes": {"1": 80, "0": 40}}},
        metrics=objective.metrics(scores, truth, (0.5,), names),
        intervals={"auroc": (0.81, 0.93)},
        resamples=1000,
        thresholds=(0.5,),
        scores=scores,
        targets=truth,
        history=HISTORY,
        best_epoch=2,
        mistakes=[Mistake("series 1", "benign", "malignant", 0.93, np.full((28, 28), 90, np.uint8))],
        archive=[ScoringRun("Whole archive", 780, 780, 780, 0, {}, 6.2),
                 ScoringRun("After 4 changes", 783, 4, 3, 1, {"truncated": 1}, 0.9)],
        versions={"medray": "0.1.0"},
    )  # fmt: skip


def without_figures() -> ReportFacts:
    return replace(binary_facts(), scores=None, targets=None, history=None)


@functools.cache
def binary_page() -> str:
    return write_report(binary_facts())


def other_facts() -> dict[str, ReportFacts]:
    random = np.random.default_rng(0)
    many = MulticlassObjective()
    classes = tuple(map(str, range(14)))
    truth = (np.arange(200) % 14).astype(np.float32)[:, None]
    scores = random.dirichlet(np.ones(14), 200)
    labels = MultilabelObjective(names=("edema", "effusion"))
    present = np.stack([np.arange(200) % 2, np.arange(200) % 5 == 0], axis=1).astype(np.float32)
    present[:20, 1] = np.nan
    ages = RegressionObjective(names=("age (years)",))
    age = random.normal(60, 10, (200, 1))
    made = {}
    for objective, names, given, targets, thresholds in (
        (many, classes, scores, truth, ()),
        (labels, labels.names, random.random((200, 2)), present, (0.4, 0.6)),
        (ages, ages.names, age + random.normal(0, 3, (200, 1)), age, ()),
    ):
        made[objective.kind] = ReportFacts(
            name=objective.kind, bundle_id="00", model="cnn", objective=objective, classes=names,
            metrics=objective.metrics(given, targets, thresholds, names), thresholds=thresholds,
            scores=given, targets=targets,
        )  # fmt: skip
    return made


# --- the page ---------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_elsewhere():
    html = binary_page()
    page = Page(html)
    assert page.open == []
    inside = {f"#{name}" for name in re.findall(r' id="([^"]+)"', html)}
    assert all(address.startswith("data:image/png;") or address in inside for address in page.addresses)
    assert any(address.startswith("data:image/png;") for address in page.addresses)
    bare = re.sub(r'"data:[^"]*"|xmlns="http://www.w3.org/2000/svg"', "", html)
    assert not re.search(r"@import|url\((?!#)|https?://| style=| on\w+=", bare)


def test_the_page_says_what_was_evaluated_how_well_and_how_sure():
    text = words(binary_page())
    for said in ("breast", "3f9c1b20aa74e5d1", "resnet, depth 18", "2025-11-22", "120 entries of 117 subjects",
                 "AUROC", "0.810 to 0.930", "(1,000 times)", "Not a medical device", "medray 0.1.0",
                 "300 (75%)", "Whole archive", "truncated", "the file ends before its data does",
                 "Called malignant, 0.930", "True: benign", "the weights of epoch 2 were kept"):  # fmt: skip
        assert said in text, said


def test_the_page_says_how_the_threshold_was_chosen():
    facts = without_figures()
    text = words(write_report(facts))
    assert "A sample is called “malignant” when its score is at least 0.500." in text
    assert "Youden's J" in text
    assert "on the validation split; the test split had no part in the choice" in text
    fixed = replace(facts, objective=facts.objective.model_copy(update={"threshold": 0.5}))
    assert "It was set in the run file." in words(write_report(fixed))
    wanted = {"threshold": "sensitivity", "sensitivity_target": 0.9}
    sensitive = replace(facts, objective=facts.objective.model_copy(update=wanted))
    assert "the highest threshold that reaches the wanted sensitivity of 90%" in words(write_report(sensitive))


def test_every_picture_has_a_text_for_those_who_cannot_see_it():
    page = Page(binary_page())
    labels = [image["alt"] if "alt" in image else image["aria-label"] for image in page.images]
    assert len(labels) == 7  # ROC, precision-recall, calibration, confusion, scores, a mistake, learning curve
    assert all(len(label or "") > 10 for label in labels)
    assert any("area under the curve: malignant 0." in (label or "") for label in labels)


def test_the_same_facts_give_the_same_bytes():
    assert write_report(binary_facts()) == binary_page()


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
def test_other_objectives_have_their_own_page(kind):
    html = write_report(other_facts()[kind])
    text = words(html)
    said = {"multiclass": ("By class", "Confusion matrix", "Means over classes"),
            "multilabel": ("By label", "Threshold", "Each is the threshold", "0.600"),
            "regression": ("MAE", "age (years): residuals")}[kind]  # fmt: skip
    for each in said:
        assert each in text, each
    assert Page(html).open == []


def test_a_section_without_facts_is_not_there():
    bare = ReportFacts(name="bare", bundle_id="00", model="cnn", objective=BinaryObjective(), classes=("0", "1"))
    text = words(write_report(bare))
    for title in ("Metrics", "Figures", "Training", "Data", "Archive", "mistakes"):
        assert title not in text
    assert "Not a medical device" in text


def test_text_from_data_cannot_become_markup():
    facts = without_figures()
    evil = '<script>alert("x")</script>'
    facts = replace(
        facts, name=evil, mistakes=[Mistake(evil, evil, evil, 0.5)], facts={evil: evil}, versions={evil: evil}
    )
    html = write_report(facts)
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_number_that_is_not_defined_is_a_dash():
    facts = without_figures()
    found = facts.metrics | {"auroc": None}
    text = words(write_report(replace(facts, metrics=found, intervals={"auroc": None})))
    assert "– is not defined on these samples" in text
    assert metric_text(None) == metric_text(float("nan")) == "–"
    assert metric_text(0.12345) == "0.123"
    assert metric_text(12345.6) == "12,345.6"


def test_the_page_says_of_which_kinds_the_entries_are_and_how_large():
    kinds = [{"Modality": "CT", "BodyPartExamined": "HEAD", "entries": 1200}, {"Modality": "MR", "entries": 3}]
    page = words(write_report(replace(binary_facts(), mixture=kinds, measures={"tilt_degrees": (1200, 0, 2.5, 18.5)})))
    assert "These entries are a mixture" in page
    assert "Modality BodyPartExamined Entries CT HEAD 1,200 MR – 3" in page
    assert "tilt_degrees 1,200 0 2.5 18.5" in page
    assert "What was evaluated" not in words(binary_page())


def test_a_baseline_stands_beside_the_model():
    facts = without_figures()
    text = words(write_report(replace(facts, beside={"logistic": facts.metrics | {"auroc": 0.617}})))
    assert "logistic" in text
    assert "0.617" in text


def test_class_names_that_are_column_names_do_not_collide():
    facts = without_figures()
    objective = BinaryObjective(names=("Split", "Entries"))
    text = words(write_report(replace(facts, objective=objective, classes=("0", "1"))))
    assert "Split (class)" in text
    assert "Entries (class)" in text


# --- thumbnails -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "size"), [((28, 28), (28, 28)), ((1024, 512), (128, 256)), ((40, 60, 3), (60, 40))])
def test_a_thumbnail_is_a_png_of_at_most_256_pixels(shape, size):
    with Image.open(io.BytesIO(thumbnail(np.full(shape, 200, np.uint8)))) as picture:
        assert picture.size == size
        assert picture.getpixel((0, 0)) == (200 if len(shape) == 2 else (200, 200, 200))


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)])
def test_an_array_that_is_no_picture_is_refused(image):
    with pytest.raises(ValueError, match="thumbnail"):
        thumbnail(image)


# --- figures ----------------------------------------------------------------------------------------------------


def test_a_learning_curve_is_drawn_from_the_first_epoch_and_from_a_table():
    for history in (HISTORY[:1], HISTORY, pa.Table.from_pylist(HISTORY)):
        with Image.open(io.BytesIO(learning_curve(history, BinaryObjective()))) as picture:
            assert picture.format == "PNG"
    assert learning_curve(HISTORY, BinaryObjective()) == learning_curve(
        pa.Table.from_pylist(HISTORY), BinaryObjective()
    )


def test_drawing_needs_no_pyplot_and_leaves_no_setting_behind():
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_report(binary_facts())
    assert dict(matplotlib.rcParams) == before


def test_curve_points_are_one_for_each_different_score():
    cuts, true, false = curve_points(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    assert cuts.tolist() == [0.9, 0.5, 0.1]
    assert true.tolist() == [1, 2, 2]
    assert false.tolist() == [0, 1, 2]


def test_the_wilson_interval_of_8_in_10():
    low, high = wilson(np.array([0.8]), np.array([10]))
    assert (low[0], high[0]) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Newcombe 1998, method 3


def test_one_class_has_no_curves_but_the_other_figures():
    scores = np.linspace(0, 1, 20)[:, None]
    titles = [each.title for each in BinaryObjective().charts(("a", "b"), scores, np.zeros((20, 1)), (0.5,))]
    assert titles == ["Calibration", "Confusion matrix", "Scores"]


def test_no_rows_give_no_figures():
    assert BinaryObjective().charts(("a", "b"), np.zeros((2, 1)), np.full((2, 1), np.nan), (0.5,)) == []


def test_a_figure_of_many_rows_stays_small():
    random = np.random.default_rng(0)
    truth = (random.random((50_000, 1)) < 0.5).astype(np.float32)
    scores = np.clip(0.3 * truth + 0.7 * random.random((50_000, 1)), 0, 1)
    for each in BinaryObjective().charts(("a", "b"), scores, truth, (0.5,)):
        assert len(figure(each).svg) < 150_000, each.title
    for each in RegressionObjective().charts(("age",), 50 * scores, 50 * truth, ()):
        assert len(figure(each).svg) < 400_000, each.title
