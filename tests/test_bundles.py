"""Bundles: what a trained model keeps, what is noticed, and what is refused."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import toy

from medray.datasets.samples import tensor_column
from medray.errors import BundleError
from medray.learning.bundles import CARD, SEEN, SPEC, WEIGHTS, load, make_bundle, save
from medray.learning.models.cnn import CnnSpec
from medray.learning.objectives import BinaryObjective, RegressionObjective
from medray.learning.predictor import Predictor, build_network
from medray.modalities.ehr.spec import Code, EhrSpec, TaskSpec


def samples(count: int) -> pa.RecordBatch:
    pixels = np.stack([toy.pixels(i, i % 2)[None] for i in range(count)])
    return pa.RecordBatch.from_arrays([tensor_column(pixels)], names=["pixels"])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(toy.bundle(), str(tmp_path / "bundle"))
    return tmp_path / "bundle"


def edit_spec(folder: Path, **changes) -> None:
    spec = json.loads((folder / SPEC).read_text())
    (folder / SPEC).write_text(json.dumps(spec | changes))


# --- round trip -----------------------------------------------------------------------------------------------


def test_a_loaded_bundle_is_the_saved_one(saved):
    bundle, loaded = toy.bundle(), load(str(saved))
    assert loaded.recipe == bundle.recipe and loaded.id == bundle.id
    assert {file.name for file in saved.iterdir()} == {WEIGHTS, SPEC, CARD}
    assert loaded.weights.keys() == bundle.weights.keys()
    for name, array in bundle.weights.items():
        np.testing.assert_array_equal(loaded.weights[name], array)


def test_a_loaded_bundle_gives_the_same_scores_to_the_bit(saved):
    before, after = Predictor(toy.bundle(), "cpu")(samples(4)), Predictor(load(str(saved)), "cpu")(samples(4))
    assert before.shape == (4, 1) and before.dtype == np.float32
    np.testing.assert_array_equal(before, after)


def test_the_batch_changes_no_score():
    predict = Predictor(toy.bundle(), "cpu")
    whole = predict(samples(7))
    single = np.concatenate([predict(samples(7).slice(row, 1)) for row in range(7)])
    np.testing.assert_allclose(single, whole, atol=1e-6)


def test_a_bundle_has_one_id_wherever_it_lies(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "elsewhere" / "copy")
    assert load(str(tmp_path / "elsewhere" / "copy")).id == load(str(saved)).id


def test_the_id_follows_what_decides_a_score_and_nothing_else():
    first = toy.bundle()
    same = [{"name": "other"}, {"created": "2027-01-01T00:00:00+00:00"}, {"metrics": {}}, {"training": {"epochs": 9}}]
    assert {toy.bundle(**changes).id for changes in same} == {first.id}
    others = [
        toy.bundle(modality=toy.MODALITY.model_copy(update={"mean": (51.25,)})),
        toy.bundle(thresholds=(0.5,)),
        toy.bundle(model=CnnSpec(channels=(4,), dense=9)),
        make_bundle(first.recipe, toy.weights(first.recipe, seed=1)),
        make_bundle(first.recipe, {f"{name}.renamed": array for name, array in first.weights.items()}),
    ]
    assert len({bundle.id for bundle in [first, *others]}) == 6


def test_a_regression_keeps_its_loss_and_the_statistics_of_its_targets(tmp_path):
    objective = RegressionObjective(loss_function="huber", names=("age",))
    objective = objective.fitted(np.array([[30.1], [50.3], [70.7]]))
    bundle = toy.bundle(objective=objective, classes=("age",), thresholds=())
    save(bundle, str(tmp_path))
    kept = load(str(tmp_path)).recipe.objective
    assert isinstance(kept, RegressionObjective) and kept == objective
    assert (kept.loss_function, kept.mean, kept.deviation) == ("huber", objective.mean, objective.deviation)
    np.testing.assert_array_equal(
        Predictor(load(str(tmp_path)), "cpu")(samples(3)), Predictor(bundle, "cpu")(samples(3))
    )


# --- refusals -------------------------------------------------------------------------------------------------


def test_an_altered_weight_is_noticed(saved):
    content = bytearray((saved / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (saved / WEIGHTS).write_bytes(content)
    with pytest.raises(BundleError, match="altered after it was made"):
        load(str(saved))


def test_an_altered_recipe_is_noticed(saved):
    edit_spec(saved, thresholds=[0.25])
    with pytest.raises(BundleError, match="altered after it was made"):
        load(str(saved))


OTHER = {
    "format": 2, "name": "other", "modality": {}, "model": {}, "objective": {}, "classes": ["lower", "upper"],
    "thresholds": [0.5], "outputs": ["upper"], "data": {"manifest_digest": "f" * 16}, "training": {"epochs": 99},
    "metrics": {"auroc": 0.99}, "versions": {"medray": "9"}, "created": "2030-01-01T00:00:00+00:00", "id": "0" * 16,
}  # fmt: skip


def test_each_field_of_the_recipe_is_missed_when_it_is_changed_on_disk(saved):
    fields = set(json.loads((saved / SPEC).read_text()))
    assert fields == OTHER.keys()  # a new field has to be looked at here
    whole = (saved / SPEC).read_bytes()
    for name, value in OTHER.items():
        before = json.loads(whole)[name]
        edit_spec(saved, **{name: {**before, **value} if isinstance(value, dict) and value else value})
        with pytest.raises(BundleError):
            load(str(saved))
        (saved / SPEC).write_bytes(whole)
    assert load(str(saved)).id == toy.bundle().id


def leaves(value, path=()):
    """Path of each number, text and truth value below `value`."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from leaves(each, (*path, name))
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from leaves(each, (*path, place))
    else:
        yield path


CALIBRATED = BinaryObjective(positive="lower", calibration="validation", calibrator=((1.25, -0.5),))
WORDS = (Code(code="LAB//1", mean=0.5, std=2.0), Code(code="LAB//2", quantiles=(1.0, 2.0)))
RECORDS = EhrSpec(window="48h", task=TaskSpec(labels="labels.parquet"), vocabulary=WORDS, static=WORDS[:1])


@pytest.mark.parametrize("changes", [{}, {"objective": CALIBRATED}, {"modality": RECORDS}])
def test_each_value_within_the_recipe_is_missed_when_it_is_changed_on_disk(tmp_path, changes):
    """Fitted statistics, vocabularies, thresholds, calibrators: whatever stands at a leaf of spec.json."""
    folder = tmp_path / "bundle"
    save(make_bundle(toy.recipe(**changes), {"weight": np.zeros(2, np.float32)}), str(folder))
    whole = json.loads((folder / SPEC).read_text())
    paths = [path for path in leaves(whole) if path != ("id",)]
    assert len(paths) > 40
    for path in paths:
        spec = json.loads(json.dumps(whole))
        *above, last = path
        place = spec
        for name in above:
            place = place[name]
        value = place[last]
        place[last] = (
            not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else f"{value}x"
        )
        (folder / SPEC).write_text(json.dumps(spec))
        with pytest.raises(BundleError):
            load(str(folder))


@pytest.mark.parametrize(
    "spoil",
    [lambda content: content[:-8], lambda content: content[:-3], lambda content: b"", lambda content: content[::-1]],
)
def test_subjects_that_a_bundle_has_seen_are_missed_when_some_are_gone(tmp_path, spoil):
    folder = tmp_path / "bundle"
    seen = np.array([7, *range(100, 120)], "<u8").tobytes()
    save(toy.bundle(), str(folder), seen)
    assert load(str(folder)).id == toy.bundle().id
    (folder / SEEN).write_bytes(spoil(seen))
    with pytest.raises(BundleError, match="altered after it was made") as refused:
        load(str(folder))
    assert SEEN in refused.value.where
    (folder / SEEN).unlink()  # whoever hands a bundle on may take it away
    assert load(str(folder)).id == toy.bundle().id


def test_a_model_card_is_for_people_who_may_add_to_it(saved):
    (saved / CARD).write_text((saved / CARD).read_text() + "\nValidated at the second site.\n")
    assert load(str(saved)).id == toy.bundle().id


def test_a_bundle_that_takes_the_place_of_another_does_not_keep_whom_that_has_seen(tmp_path):
    save(toy.bundle(), str(tmp_path), np.array([7, 8], "<u8").tobytes())
    save(toy.bundle(thresholds=(0.5,)), str(tmp_path))
    assert not (tmp_path / SEEN).exists()


def test_a_bundle_of_an_earlier_version_has_no_digest_of_the_rest_and_is_read(saved):
    import safetensors.numpy

    bundle = toy.bundle()
    weights = {name: np.ascontiguousarray(array) for name, array in bundle.weights.items()}
    (saved / WEIGHTS).write_bytes(safetensors.numpy.save(weights, metadata={"bundle_id": bundle.id}))
    edit_spec(saved, name="renamed")
    assert load(str(saved)).id == bundle.id


def test_weights_that_were_cut_off_are_refused(saved):
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:-10])
    with pytest.raises(BundleError, match="weights cannot be read"):
        load(str(saved))


class Bomb:
    """Pickled, it makes a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("name", ["model.pt", "weights.PTH", "pytorch_model.bin", "extra.pkl", "a.ckpt", "a.joblib"])
def test_a_pickle_in_the_folder_is_refused_and_not_opened(saved, tmp_path, name):
    (saved / name).write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    with pytest.raises(BundleError, match="would unpickle is refused"):
        load(str(saved))
    assert not (tmp_path / "trace").exists()


def test_a_pickle_named_as_the_bundle_is_refused(tmp_path):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    with pytest.raises(BundleError, match="would unpickle is refused"):
        load(str(tmp_path / "model.pt"))
    assert not (tmp_path / "trace").exists()


def test_a_pickle_that_calls_itself_safetensors_is_refused_and_not_opened(saved, tmp_path):
    (saved / WEIGHTS).write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    with pytest.raises(BundleError, match="weights cannot be read"):
        load(str(saved))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("lost", [SPEC, WEIGHTS])
def test_half_a_bundle_says_what_is_missing(saved, lost):
    (saved / lost).unlink()
    with pytest.raises(BundleError, match="not a bundle") as refused:
        load(str(saved))
    assert lost in refused.value.found


def test_a_place_without_a_bundle_says_so(tmp_path):
    (tmp_path / "file").touch()
    for place in ("gone", "file"):
        with pytest.raises(BundleError, match="not a bundle"):
            load(str(tmp_path / place))


def test_a_newer_format_is_refused_with_the_versions_that_made_it(saved):
    edit_spec(saved, format=2, versions={"medray": "7.0"})
    with pytest.raises(BundleError, match="another format") as refused:
        load(str(saved))
    assert (refused.value.found, refused.value.expected) == ("format 2", "format 1")
    assert "7.0" in refused.value.do


@pytest.mark.parametrize("text", ["[]", "{}", "not json"])
def test_a_recipe_that_is_none_is_refused(saved, text):
    (saved / SPEC).write_text(text)
    with pytest.raises(BundleError, match=r"another format|not JSON"):
        load(str(saved))


def test_a_recipe_with_an_unknown_key_names_it(saved):
    edit_spec(saved, colour="blue")
    with pytest.raises(BundleError, match="does not fit this version") as refused:
        load(str(saved))
    assert "colour" in refused.value.where


def test_weights_of_another_network_are_refused():
    of = toy.recipe()
    bundle = make_bundle(of, toy.weights(toy.recipe(model=CnnSpec(channels=(5,), dense=8))))
    with pytest.raises(BundleError, match="do not fit the model"):
        build_network(bundle.recipe, bundle.weights)


# --- the model card -------------------------------------------------------------------------------------------


def test_the_model_card_says_what_a_reader_must_know(saved):
    card = (saved / CARD).read_text()
    for part in (
        "# toy",
        f"Bundle `{toy.bundle().id}`",
        "Not a medical device",
        "Input: imaging; model: cnn; objective: binary",
        "Scores: lower",
        "threshold (chosen on the validation split): 0.4375",
        "manifest digest `0123456789abcdef`",
        "| train | 24 | 20 | upper 12, lower 12 |",
        "| auroc | 0.9688 |",
        "so they flatter the",
        "- torch ",
    ):
        assert part in card
    assert "confusion_matrix" not in card
