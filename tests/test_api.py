"""Python's front door: names, runs and engines, `Bundle.predict` beside the score table, and the tour of docs/python.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy
from pages import PROJECT, blocks

import medray
from medray.errors import ArchiveError, RunFileError, UserError
from medray.learning import bundles
from medray.learning.models.cnn1d import Cnn1dSpec
from medray.learning.models.rnn import RnnSpec
from medray.learning.objectives import BinaryObjective, MulticlassObjective, MultilabelObjective, RegressionObjective
from medray.modalities.ehr.spec import Code, EhrSpec, TaskSpec
from medray.modalities.genomics.spec import GenomicsSpec

CLOSE = {"rtol": 0, "atol": 1e-6}


def score_table(folder: Path) -> dict[tuple[str, str], float]:
    """Score the archive; (entry id, output) to value."""
    medray.score(toy.score_run(folder))
    return toy.scores(folder / "scores")


def of_table(table: pa.Table, output: str) -> dict[tuple[str, str], float]:
    return {(row["entry_id"], output): row[output] for row in table.to_pylist() if row["status"] == "scored"}


def assert_equal(found: dict[tuple[str, str], float], expected: dict[tuple[str, str], float]) -> None:
    assert found.keys() == expected.keys() and found
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=1e-6, rel=0)


# -- names


def test_importing_medray_imports_next_to_nothing():
    code = "import sys; before = set(sys.modules); import medray; print(sorted(set(sys.modules) - before))"
    listed = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert ast.literal_eval(listed) == ["medray"]


def test_every_public_name_is_there_and_editors_see_the_same():
    for name in medray.__all__:
        assert getattr(medray, name) is not None and name in dir(medray)
    typed = next(node for node in ast.parse(Path(medray.__file__).read_text()).body if isinstance(node, ast.If))
    imports = {a.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert imports == medray._HOMES and {*imports, "__version__"} == {*medray.__all__}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        medray.trian  # noqa: B018


# -- runs and engines


def test_a_run_file_is_loaded_with_other_values_of_some_keys(tmp_path):
    file = toy.write_run_file(tmp_path / "train.toml", toy.train_run(tmp_path))
    others = {"training.epochs": 7, "training": {"seed": 9}, "labels.columns": ["Größe"], "archive": tmp_path / "b"}
    run = medray.load_run(file, others)
    assert isinstance(run, medray.TrainRun)
    assert (run.training.epochs, run.training.seed, run.training.batch_size) == (7, 9, 16)
    assert (run.archive, run.labels.columns) == (str(tmp_path / "b"), ("Größe",))


def test_values_that_no_run_file_can_hold_are_refused(tmp_path):
    file = toy.write_run_file(tmp_path / "train.toml", toy.train_run(tmp_path))
    with pytest.raises(UserError, match="cannot hold") as refused:
        medray.load_run(file, {"training": {"clip_norm": None}})
    assert refused.value.where == "overrides training.clip_norm"


def test_a_run_of_another_kind_is_refused(tmp_path):
    file = toy.write_run_file(tmp_path / "score.toml", toy.score_run(tmp_path))
    with pytest.raises(RunFileError) as refused:
        medray.train(file)
    assert (refused.value.found, refused.value.expected) == ("ScoreRun", "TrainRun")
    with pytest.raises(UserError, match="keys of a run file"):
        medray.score(toy.score_run(tmp_path), overrides={"limit": 3})


class Noted:
    """A real engine that notes when it is closed."""

    def __init__(self) -> None:
        from medray.engines.local import LocalEngine

        self.inner, self.closed = LocalEngine(), 0
        self.workers, self.readers, self.run, self.fit = 1, 1, self.inner.run, self.inner.fit

    def close(self) -> None:
        self.closed += 1


def test_an_engine_that_is_given_stays_open_and_one_that_was_opened_is_closed(tmp_path, monkeypatch):
    toy.write_archive(tmp_path, 4)
    engine = Noted()
    assert medray.index(toy.train_run(tmp_path), engine=engine).entries == 4
    assert engine.closed == 0
    monkeypatch.setattr("medray.engines.opening.open_engine", lambda spec, run="": engine)
    with pytest.raises(ArchiveError):
        medray.index(toy.train_run(tmp_path, archive=str(tmp_path / "none")))
    assert engine.closed == 1


# -- images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """12 DICOM files, one of them cut short, and a bundle."""
    archive = toy.write_archive(tmp_path, 12)
    (archive / "1" / "im_0004.dcm").write_bytes((archive / "1" / "im_0004.dcm").read_bytes()[:-90])
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    return tmp_path


def test_images_by_path_have_the_values_and_reasons_of_the_score_table(images):
    expected = score_table(images)
    bundle = medray.Bundle.load(images / "bundle")
    assert bundle.id == toy.bundle().id and "imaging" in repr(bundle)
    whole = bundle.predict(images / "archive")
    assert_equal(of_table(whole, "lower"), expected)
    failed = {row["entry_id"]: row["reason"] for row in whole.to_pylist() if row["status"] == "failed"}
    assert failed == toy.failures(images / "scores") and set(failed.values()) == {"truncated"}
    files = [images / "archive" / str(i % 3) / f"im_{i:04}.dcm" for i in (0, 7)]
    for file in files:
        (row,) = bundle.predict(str(file)).to_pylist()
        assert row["lower"] == pytest.approx(expected[row["entry_id"], "lower"], abs=1e-6, rel=0)
    listed = bundle.predict([*files, images / "none.dcm"])
    assert [row["reason"] for row in listed.to_pylist() if row["status"] == "failed"] == ["missing_file"]
    assert set(listed["input"].to_pylist()) == {str(file) for file in [*files, images / "none.dcm"]}


def test_arrays_score_as_files_of_the_same_pixels(images):
    expected = score_table(images)
    bundle = medray.Bundle.load(images / "bundle")
    numbers = [number for number in range(12) if number != 4]
    by_file = [bundle.predict(images / "archive" / str(n % 3) / f"im_{n:04}.dcm")["lower"][0].as_py() for n in numbers]
    assert sorted(by_file) == pytest.approx(sorted(expected.values()), abs=1e-6)
    pixels = [toy.pixels(number, number % 2) for number in numbers]
    for data in (np.stack(pixels), np.stack(pixels)[..., None], pixels, np.stack(pixels).astype(np.float32)):
        table = bundle.predict(data)
        assert table["input"].to_pylist() == list(range(11))
        np.testing.assert_allclose(table["lower"].to_numpy(), by_file, **CLOSE)
    called = ["lower" if value >= 0.4375 else "upper" for value in by_file]
    assert bundle.predict(np.stack(pixels))["predicted"].to_pylist() == called
    assert bundle.predict(pixels[0])["lower"].to_pylist() == pytest.approx(by_file[:1], abs=1e-6)


def test_an_array_that_cannot_be_scored_is_a_row_with_a_reason(images):
    bundle = medray.Bundle.load(images / "bundle")
    good = toy.pixels(0, 0).astype(np.float32)
    table = bundle.predict([good, np.full((16, 16), np.nan, np.float32), good])
    assert table["reason"].to_pylist() == [None, "bad_values", None]
    assert table["predicted"].to_pylist()[1] is None and table["lower"].null_count == 1


def test_an_array_is_eligible_only_where_it_is_said_to_be_what_was_trained_on(tmp_path):
    spec = toy.MODALITY.model_copy(update={"trained": {"Modality": ("US",)}})
    bundles.save(toy.bundle(modality=spec), str(tmp_path / "bundle"))
    bundle = medray.Bundle.load(tmp_path / "bundle")
    image = toy.pixels(0, 0)
    assert bundle.predict(image)["status"].to_pylist() == ["not_eligible"]
    assert bundle.predict(image, facts={"Modality": "CT"})["reason"].to_pylist() == ["not_eligible"]
    assert bundle.predict(image, facts={"Modality": "US"})["status"].to_pylist() == ["scored"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((16, 16, 3), np.uint8), "another shape"),  # one in colour, or 16 that are 3 wide
        (np.zeros((2, 3, 16, 16), np.uint8), "another shape"),
        (np.zeros((0, 16, 16), np.uint8), "another shape"),
        (np.zeros((2, 16, 16), complex), "no pixels"),
        ([np.zeros((16, 16, 2), np.uint8)], "another shape"),
        ([], "nothing to predict"),
        (3, "no images"),
        (pd.DataFrame({"pixels": [1]}), "no images"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, data, message):
    bundles.save(toy.bundle(), str(tmp_path / "bundle"))
    with pytest.raises(UserError, match=message):
        medray.Bundle.load(tmp_path / "bundle").predict(data)


def test_paths_take_no_facts_and_a_folder_without_data_is_refused(images):
    bundle = medray.Bundle.load(images / "bundle")
    with pytest.raises(UserError, match="facts belong to data in memory"):
        bundle.predict(images / "archive", facts={"Modality": "US"})
    with pytest.raises(UserError, match="not below the archive"):
        bundle.predict(images / "labels.csv", archive=images / "archive")
    (images / "empty").mkdir()
    with pytest.raises(ArchiveError, match="nothing that this bundle reads"):
        bundle.predict(images / "empty")


def test_volumes_are_arrays_too(tmp_path):
    spec = toy.MODALITY.model_copy(update={"size": (4, 16, 16)})
    bundles.save(toy.bundle(modality=spec), str(tmp_path / "bundle"))
    bundle = medray.Bundle.load(tmp_path / "bundle")
    volume = np.random.default_rng(0).integers(0, 255, (20, 16, 16)).astype(np.int16)
    one, many = bundle.predict(volume), bundle.predict(np.stack([volume, volume]))
    assert one["status"].to_pylist() == ["scored"]
    np.testing.assert_allclose(many["lower"].to_numpy(), one["lower"].to_numpy().repeat(2), **CLOSE)


# -- sequences


@pytest.fixture
def sequences(tmp_path: Path) -> tuple[Path, list[str]]:
    """A FASTA file of 6 records, the last of which is a protein; a bundle of three classes; its sequences."""
    draw = np.random.default_rng(3)
    bases = ["".join(draw.choice(list("ACGT"), length)) for length in (40, 30, 55, 40, 12)] + ["MKVLAAGIVGLCAKWEEPQ"]
    (tmp_path / "archive").mkdir()
    text = "".join(f">r{i} described\n{each}\n" for i, each in enumerate(bases))
    (tmp_path / "archive" / "a.fa").write_text(text)
    bundle = toy.bundle(
        modality=GenomicsSpec(length=40),
        model=Cnn1dSpec(),
        objective=MulticlassObjective(),
        classes=("a", "b", "c"),
        thresholds=(),
    )
    bundles.save(bundle, str(tmp_path / "bundle"))
    return tmp_path, bases


def test_sequences_by_path_and_as_texts_have_the_values_of_the_score_table(sequences):
    folder, bases = sequences
    expected = score_table(folder)
    bundle = medray.Bundle.load(folder / "bundle")
    table = bundle.predict(folder / "archive" / "a.fa")
    for output in ("a", "b", "c"):
        assert_equal(of_table(table, output), {key: value for key, value in expected.items() if key[1] == output})
    assert [row["entry_id"] for row in table.to_pylist() if row["status"] == "failed"] == ["a.fa#r5"]
    frame = {"name": list("uvwxyz"), "sequence": bases}
    for data in (np.array(bases), np.array(bases, object), pd.DataFrame(frame), pl.DataFrame(frame), pa.table(frame)):
        own = bundle.predict(data)
        assert own["input"].to_pylist() == list(range(6))
        assert own["reason"].to_pylist() == [None] * 5 + ["not_dna"]
        for output in ("a", "b", "c"):
            values = [expected[f"a.fa#r{i}", output] for i in range(5)]
            np.testing.assert_allclose(own[output].to_numpy()[:5], values, **CLOSE)
        best = np.stack([own[output].to_numpy()[:5] for output in ("a", "b", "c")]).argmax(0)
        assert own["predicted"].to_pylist() == [*("abc"[i] for i in best), None]


def test_windows_of_a_text_say_which_text_they_are_of(sequences):
    folder, bases = sequences
    bundle = medray.Bundle.load(folder / "bundle")
    table = bundle.predict(np.array(bases[:3]), modality={"entries": "windows"})
    assert table["input"].to_pylist() == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array(["ACGT", "AC\n>x\nGT"]), "no sequence"),
        (np.array(["ACGT", None], object), "no sequence"),
        (np.array([1.0]), "no sequences"),
        (pd.DataFrame({"bases_of": ["ACGT"]}), "has no sequences"),
    ],
)
def test_what_is_no_sequence_is_refused(sequences, data, message):
    with pytest.raises(UserError, match=message):
        medray.Bundle.load(sequences[0] / "bundle").predict(data)


def test_a_list_of_texts_is_a_list_of_paths(sequences):
    table = medray.Bundle.load(sequences[0] / "bundle").predict(["ACGT", "GATTACA"])
    assert table["reason"].to_pylist() == ["missing_file", "missing_file"]


# -- health records


def hour(number: float) -> datetime:
    return datetime(2150, 1, 1) + timedelta(hours=number)  # noqa: DTZ001  MEDS has no time zones


EVENTS = [
    (n, hour(h), code, float(60 + 7 * n + h)) for n in (7, 8, 9) for h in range(0, 40, 3) for code in ("HR", "BP")
]
COLUMNS = {
    "subject_id": pa.int64(),
    "time": pa.timestamp("us"),
    "code": pa.string(),
    "numeric_value": pa.float32(),
}


def events() -> pa.Table:
    columns = zip(*EVENTS, strict=True)
    return pa.table({name: pa.array(list(c), COLUMNS[name]) for name, c in zip(COLUMNS, columns, strict=True)})


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A MEDS dataset of three subjects, predictions of four, and a bundle."""
    (tmp_path / "archive" / "data").mkdir(parents=True)
    pq.write_table(events(), tmp_path / "archive" / "data" / "0.parquet")
    pq.write_table(times(), tmp_path / "archive" / "labels.parquet")
    codes = (Code(code="HR", mean=80.0, std=20.0), Code(code="BP", mean=90.0, std=15.0))
    spec = EhrSpec(task=TaskSpec(labels="labels.parquet"), window="48h", vocabulary=codes, static=())
    bundles.save(toy.bundle(modality=spec, model=RnnSpec(hidden=4)), str(tmp_path / "bundle"))
    return tmp_path


def times() -> pa.Table:
    moments = pa.array([hour(10), hour(30), hour(30), hour(30)], pa.timestamp("us"))
    return pa.table({"subject_id": [7, 7, 8, 11], "prediction_time": moments})


def test_records_by_path_and_as_tables_have_the_values_of_the_score_table(records):
    expected = score_table(records)
    assert len(expected) == 3 and len(set(expected.values())) == 3
    bundle = medray.Bundle.load(records / "bundle")
    by_path = bundle.predict(records / "archive")
    assert_equal(of_table(by_path, "lower"), expected)
    assert [row["reason"] for row in by_path.to_pylist() if row["status"] == "failed"] == ["no_events"]
    frames = [(events(), times())]
    frames += [(pl.from_arrow(events()), pl.from_arrow(times())), (events().to_pandas(), times().to_pandas())]
    frames += [(events().to_pandas().sample(frac=1, random_state=0), times().to_pandas().iloc[::-1])]
    frames += [(events().to_pandas().astype({"code": "category"}), times())]
    frames += [(pl.from_arrow(events()).with_columns(pl.col("code").cast(pl.Categorical)), pl.from_arrow(times()))]
    for data, moments in frames:
        table = bundle.predict(data, prediction_times=moments)
        assert_equal(of_table(table, "lower"), expected)
        assert table["input"].to_pylist() == [7, 7, 8, 11]
        assert table["reason"].to_pylist()[-1] == "no_events"


def test_one_moment_is_the_prediction_time_of_every_subject(records):
    bundle = medray.Bundle.load(records / "bundle")
    table = bundle.predict(events(), prediction_times=hour(30))
    each = bundle.predict(events(), prediction_times=times())
    assert table["input"].to_pylist() == [7, 8, 9] and table["status"].to_pylist() == ["scored"] * 3
    np.testing.assert_allclose(table["lower"].to_numpy()[:2], each["lower"].to_numpy()[1:3], **CLOSE)


def test_a_rule_of_the_task_says_when_where_no_times_are_given(records):
    bundle = medray.Bundle.load(records / "bundle")
    ruled = bundle.predict(events(), modality={"task": {"at": "first + 30h"}})
    timed = bundle.predict(events(), prediction_times=hour(30))
    np.testing.assert_allclose(ruled["lower"].to_numpy(), timed["lower"].to_numpy(), **CLOSE)


@pytest.mark.parametrize(
    ("change", "moments", "message"),
    [
        ({}, None, "not said when"),
        ({"time": pa.timestamp("us", "UTC")}, hour(3), "no MEDS events"),
        ({"subject_id": pa.string()}, hour(3), "no MEDS events"),
        ({"code": None}, hour(3), "no MEDS events"),
        ({}, "2150-01-01", "no prediction times"),
        ({}, pa.table({"subject_id": [1]}), "no prediction times"),
    ],
)
def test_what_is_no_record_is_refused(records, change, moments, message):
    table = events()
    for name, kind in change.items():
        column = table.schema.get_field_index(name)
        table = table.drop_columns([name]) if kind is None else table.set_column(column, name, table[name].cast(kind))
    with pytest.raises(UserError, match=message):
        medray.Bundle.load(records / "bundle").predict(table, prediction_times=moments)


# -- what is called


def test_a_score_of_the_name_of_another_column_stands_beside_it(images):
    of = toy.bundle(objective=BinaryObjective(positive="reason"), classes=("upper", "reason"))
    bundles.save(of, str(images / "other"))
    expected = medray.Bundle.load(images / "bundle").predict(images / "archive")
    table = medray.Bundle.load(images / "other").predict(images / "archive")
    assert table["reason"].to_pylist() == expected["reason"].to_pylist()
    np.testing.assert_array_equal(table["reason_score"].to_numpy(), expected["lower"].to_numpy())


def test_labels_are_called_at_their_own_thresholds_and_numbers_are_not_called():
    scores = np.array([[0.2, 0.7], [0.4, 0.6], [0.3, 0.65]], np.float32)
    called = MultilabelObjective().called(scores, (0.3, 0.65), ("x", "y"))
    assert called.to_pylist() == [["y"], ["x"], ["x", "y"]]
    assert RegressionObjective(names=("age",)).called(scores[:, :1], (), ("age",)) is None


# -- the score store


def test_current_scores_leave_out_what_is_retired_and_older_attempts(images):
    medray.score(toy.score_run(images))
    store = medray.ScoreStore.open(images / "scores")
    bundle = medray.Bundle.load(images / "bundle")
    assert list(store.summary()["bundles"]) == [bundle.id]
    toy.write_image(images / "archive" / "0" / "im_0000.dcm", 99, 1)  # another image in the place of the first
    medray.score(toy.score_run(images))
    current = store.current(bundle.id)
    assert current.equals(store.current()) and len(current) == 12
    by_file = bundle.predict(images / "archive")
    assert set(current["entry_id"].to_pylist()) == set(by_file["entry_id"].to_pylist())
    values = current["value"].to_pylist()
    in_pandas, in_polars = store.current(to="pandas"), store.current(to="polars")
    assert isinstance(in_pandas, pd.DataFrame) and isinstance(in_polars, pl.DataFrame)
    assert in_polars["value"].to_list() == values and list(in_pandas) == in_polars.columns == current.column_names
    np.testing.assert_array_equal(in_pandas["value"], np.array(values, np.float32))
    assert store.summary()["bundles"][bundle.id]["entries"] == 12


# -- the tour

DECIMAL = r"\d+\.\d+"


def test_the_tour_of_the_page_runs_and_prints_what_the_page_shows(tmp_path):
    page = PROJECT / "docs" / "python.md"
    script = "\n".join(block.text for block in blocks(page, "python"))
    (tmp_path / "tour.py").write_text(script)
    ran = subprocess.run([sys.executable, "tour.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr[-2000:]
    shown = "".join(block.text for block in blocks(page, "text"))
    assert re.sub(DECIMAL, "", ran.stdout) == re.sub(DECIMAL, "", shown)
    numbers = [[float(number) for number in re.findall(DECIMAL, text)] for text in (ran.stdout, shown)]
    np.testing.assert_allclose(*numbers, atol=0.06)  # another processor rounds otherwise in training
