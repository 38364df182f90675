"""Bundles of Keras files by `medray import`, and Keras files of bundles by `medray export keras`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import toy
from keras_fixtures import FOLDER, answers, random_input, unpacked
from typer.testing import CliRunner

from medray.cli.app import app
from medray.config.runs import EvaluateRun, ScoreRun, TrainRun
from medray.datasets.samples import tensor_column
from medray.engines.local import LocalEngine
from medray.errors import BundleError, RunFileError, UserError
from medray.learning import bundles
from medray.learning.keras.building import KerasNetwork, answer
from medray.learning.keras.container import Opened, open_file
from medray.learning.keras.linking import with_link
from medray.learning.objectives import MulticlassObjective, RegressionObjective
from medray.learning.predictor import Predictor
from medray.modalities.registry import open_modality
from medray.verbs.evaluate import evaluate
from medray.verbs.export_model import export_model
from medray.verbs.import_ import import_model
from medray.verbs.inspect import inspect
from medray.verbs.score import score

IMAGES = {"kind": "imaging", "size": [28, 28], "normalise": "none"}


def like(folder: Path, modality: dict[str, Any], objective: dict[str, Any], **changes: Any) -> TrainRun:
    whole = {
        "name": "imported",
        "archive": str(folder / "archive"),
        "bundle": str(folder / "bundle"),
        "modality": modality,
        "model": {"kind": "keras", "file": "elsewhere.keras"},
        "objective": objective,
    }
    return TrainRun.model_validate(whole | changes)


def expected(name: str, folder: Path, port: str, shape: tuple[int, ...], shift: float = 0.0) -> str:
    """A .npz of the inputs of a fixture and the answers that Keras gave."""
    path = folder / "expected.npz"
    np.savez(path, **{port: random_input(name, 0, shape, "float32"), "outputs": answers("keras")[name] + shift})
    return str(path)


def said(opened: Opened, values: np.ndarray) -> np.ndarray:
    """What the network of a file says of its one input."""
    network = KerasNetwork(opened.model.network, {})
    state = opened.model.network.to_torch(opened.arrays)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    [port] = opened.model.network.inputs
    return answer(network, {port.name: torch.from_numpy(values)}).numpy()


@pytest.fixture
def lenet(tmp_path: Path) -> Path:
    return unpacked("keras-lenet.keras", tmp_path)


def port_of(path: Path) -> str:
    return open_file(path).model.network.inputs[0].name


def test_an_imported_bundle_says_what_the_original_said(lenet: Path, tmp_path: Path) -> None:
    run = like(tmp_path, IMAGES, {"kind": "multiclass"})
    result = import_model(str(lenet), run, expect=expected("lenet", tmp_path, port_of(lenet), (28, 28, 1)))
    assert result.compared == 100 and result.largest_difference is not None and result.largest_difference < 1e-5
    assert result.outputs == tuple("0123456789") and result.written_by.startswith("Keras 3.")
    bundle = bundles.load(result.bundle)
    assert bundle.id == result.bundle_id and bundle.graph is not None
    modality = open_modality(bundle.recipe.modality)
    pixels = np.random.default_rng(0).integers(0, 255, (7, 1, 28, 28)).astype(np.float32)
    samples = pa.record_batch([tensor_column(pixels)], schema=modality.payload)
    values = modality.encode({"pixels": torch.from_numpy(pixels)})["pixels"].numpy()
    assert Predictor(bundle, "cpu")(samples) == pytest.approx(
        said(open_file(lenet), np.moveaxis(values, 1, -1).copy()), abs=1e-6
    )
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "Imported from `keras-lenet.keras`" in card and "100 given rows were compared" in card
    assert "chosen on the validation split" not in card
    assert inspect(result.bundle).facts["imported"]["compared"] == 100


def test_other_answers_than_the_originals_leave_no_bundle(lenet: Path, tmp_path: Path) -> None:
    run = like(tmp_path, IMAGES, {"kind": "multiclass"})
    port = port_of(lenet)
    with pytest.raises(UserError, match="answers otherwise than the original did") as caught:
        import_model(str(lenet), run, expect=expected("lenet", tmp_path, port, (28, 28, 1), shift=2e-5))
    assert caught.value.exit_code == 2 and "largest difference of 2" in caught.value.found
    for wrong, message in (
        ({port: np.zeros((3, 28, 28, 1))}, "holds no answers"),
        ({"outputs": np.zeros((3, 10))}, "inputs of the model are not in the file"),
        ({port: np.zeros((3, 28, 28)), "outputs": np.zeros((3, 10))}, "another shape than the model's"),
        ({port: np.zeros((3, 28, 28, 1)), "outputs": np.zeros((2, 10))}, "not of as many rows"),
        ({port: np.zeros((3, 28, 28, 1)), "outputs": np.full((3, 10), np.nan)}, "answers otherwise"),
        ({port: np.array([None]), "outputs": np.zeros((1, 10))}, "cannot be read"),
    ):
        np.savez(tmp_path / "wrong.npz", **wrong)
        with pytest.raises(UserError, match=message):
            import_model(str(lenet), run, expect=str(tmp_path / "wrong.npz"))
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_says_that_nobody_has_compared_its_answers(lenet: Path, tmp_path: Path) -> None:
    result = import_model(str(lenet), like(tmp_path, IMAGES, {"kind": "multiclass"}), str(tmp_path / "other"))
    assert (
        result.compared == 0 and "NOT compared" in result.answers and bundles.load(result.bundle).recipe.name == "other"
    )
    assert "Its answers were not compared" in (tmp_path / "other" / "README.md").read_text()
    with pytest.raises(BundleError, match="place is taken"):
        import_model(str(lenet), like(tmp_path, IMAGES, {"kind": "multiclass"}), str(tmp_path / "other"))


def test_sequences_and_two_classes(tmp_path: Path) -> None:
    path = unpacked("keras-deepbind.keras", tmp_path)
    bases = {"kind": "genomics", "length": 60}
    file = expected("deepbind", tmp_path, "sequence", (60, 4))
    run = like(tmp_path, bases, {"kind": "binary", "names": ["bound", "free"], "positive": "bound"})
    result = import_model(str(path), run, expect=file)
    recipe = bundles.load(result.bundle).recipe
    assert recipe.classes == ("free", "bound") and recipe.outputs == ("bound",) and recipe.thresholds == (0.5,)
    assert result.largest_difference is not None and result.largest_difference < 1e-5


def test_what_does_not_fit_is_refused(lenet: Path, tmp_path: Path) -> None:
    for modality, objective, message in (
        (IMAGES, {"kind": "binary"}, "ends with another activation"),
        (IMAGES, {"kind": "multiclass", "names": ["a", "b"]}, "other outputs than the objective"),
        (IMAGES | {"size": [32, 32]}, {"kind": "multiclass"}, "takes another shape"),
        (IMAGES | {"normalise": "zscore"}, {"kind": "multiclass"}, "nobody has measured"),
    ):
        with pytest.raises((UserError, RunFileError), match=message):
            import_model(str(lenet), like(tmp_path, modality, objective))
    with pytest.raises(UserError, match=r"(?s)of this kind cannot be imported.*\.keras"):
        import_model(str(tmp_path / "model.pickle"), like(tmp_path, IMAGES, {"kind": "multiclass"}))
    assert not (tmp_path / "bundle").exists()


def test_an_imported_bundle_scores_an_archive_and_is_evaluated_on_it(tmp_path: Path) -> None:
    archive = toy.write_archive(tmp_path, 24)
    path = unpacked("keras-unet_encoder.keras", tmp_path)
    modality = {"kind": "imaging", "size": [32, 32], "normalise": "none"}
    run = like(tmp_path, modality, {"kind": "binary", "names": ["upper", "lower"]}, archive=str(archive))
    result = import_model(str(path), run)
    places = {"archive": str(archive), "bundle": result.bundle, "engine": {"kind": "local"}}
    scored = score(
        ScoreRun.model_validate(places | {"work": str(tmp_path / "score"), "store": str(tmp_path / "store")}),
        LocalEngine(),
    )
    assert (scored.scored, scored.failed) == (24, 0)
    assert {output for _, output in toy.scores(tmp_path / "store")} == {"lower"}
    labels = {"table": str(tmp_path / "labels.csv"), "key": "file", "columns": ["diagnosis"]}
    evaluation = {"labels": labels, "work": str(tmp_path / "evaluate"), "evaluation": {"resamples": 0}}
    metrics = evaluate(EvaluateRun.model_validate(places | evaluation), LocalEngine())
    assert metrics.n == 24 and "auroc" in metrics.metrics
    assert "imported from keras-unet_encoder.keras" in Path(metrics.report).read_text()


def test_the_command_says_what_it_made_and_ends_with_2_where_it_refuses(lenet: Path, tmp_path: Path) -> None:
    toml = toy.write_run_file(tmp_path / "run.toml", like(tmp_path, IMAGES, {"kind": "multiclass"}))  # pyright: ignore
    words = ["import", str(lenet), "--like", str(toml), "--as", str(tmp_path / "made"), "--json"]
    done = CliRunner().invoke(app, words)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == 0 and facts["compared"] == 0 and facts["largest_difference"] is None
    assert CliRunner().invoke(app, words).exit_code == 2
    done = CliRunner().invoke(app, ["export", "keras", str(tmp_path / "made"), str(tmp_path / "out.keras"), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["answers"] == "scores"
    assert (
        CliRunner().invoke(app, ["export", "keras", str(tmp_path / "made"), str(tmp_path / "out.keras")]).exit_code == 2
    )
    assert CliRunner().invoke(app, ["export", "vcf", "store", "file"]).exit_code == 2


# --- export ---------------------------------------------------------------------------------------------------


def test_an_exported_file_is_the_network_with_its_last_activation(lenet: Path, tmp_path: Path) -> None:
    bundle = import_model(str(lenet), like(tmp_path, IMAGES, {"kind": "multiclass"})).bundle
    export_model("keras", bundle, str(tmp_path / "scores.keras"))
    export_model("keras", bundle, str(tmp_path / "logits.keras"), logits=True)
    pictures = random_input("lenet", 0, (28, 28, 1), "float32")
    assert said(open_file(tmp_path / "scores.keras"), pictures) == pytest.approx(answers("keras")["lenet"], abs=1e-6)
    logits = said(open_file(tmp_path / "logits.keras"), pictures)
    assert torch.from_numpy(logits).softmax(1).numpy() == pytest.approx(answers("keras")["lenet"], abs=1e-6)
    again = import_model(
        str(tmp_path / "scores.keras"), like(tmp_path, IMAGES, {"kind": "multiclass"}), str(tmp_path / "2")
    )
    assert bundles.load(again.bundle).weights.keys() == bundles.load(bundle).weights.keys()


def test_calibration_and_the_unit_of_a_regression_stand_before_the_last_activation(tmp_path: Path) -> None:
    opened = open_file(unpacked("keras-lenet.keras", tmp_path))
    plain = opened.model.network.without_link()
    pictures = random_input("lenet", 0, (28, 28, 1), "float32")[:5]
    logits = said(Opened(model(opened, plain), opened.keras, opened.arrays), pictures)
    for objective in (
        MulticlassObjective(calibrator=((0.5, 0.0),) * 10),
        RegressionObjective(mean=tuple(range(10)), deviation=tuple(range(1, 11))),
    ):
        linked = with_link(plain, objective)
        found = said(Opened(model(opened, linked), opened.keras, opened.arrays), pictures)
        assert found == pytest.approx(objective.activate(torch.from_numpy(logits)).numpy(), abs=1e-5)


def model(opened: Opened, network: Any) -> Any:
    from dataclasses import replace

    return replace(opened.model, network=network)


def test_a_bundle_of_another_kind_has_no_form_in_keras(tmp_path: Path) -> None:
    bundles.save(toy.bundle(), str(tmp_path / "cnn"))
    with pytest.raises(UserError, match="no form in Keras"):
        export_model("keras", str(tmp_path / "cnn"), str(tmp_path / "out.keras"))
    assert not (tmp_path / "out.keras").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_keras_loads_exported_files_in_safe_mode_and_answers_alike(tmp_path: Path) -> None:
    """Needs a network: TensorFlow and Keras are installed into an environment of their own."""
    from medray.learning.keras.writing import written
    from medray.learning.refusal import Refused

    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "environment")], check=True)
    packages = ["tensorflow-cpu==2.21.0", "keras==3.15.1", "numpy==2.4.6"]
    subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    exported, not_written = tmp_path / "exported", []
    exported.mkdir()
    for library in ("keras", "keras2"):
        for name in answers(library):
            opened = open_file(unpacked(f"{library}-{name}.keras", tmp_path / "fixtures"))
            state = opened.model.network.to_torch(opened.arrays)
            try:
                content = written(opened.model.network, state, "model")
            except Refused:
                not_written.append(f"{library}-{name}")
                continue
            (exported / f"{library}-{name}.keras").write_bytes(content)
    hard = ("activation_hard_sigmoid", "gru_other_activations", "lstm_hard_sigmoid")
    assert not_written == [f"keras2-{name}" for name in answers("keras2") if name in hard]
    subprocess.run([str(python), str(FOLDER / "check.py"), str(exported), str(tmp_path / "said.npz")], check=True)
    stored = np.load(tmp_path / "said.npz")
    for path in exported.iterdir():
        library, _, name = path.stem.partition("-")
        of = answers(library)[name]
        assert np.abs(stored[path.stem][: len(of)] - of).max() <= 1e-5 * max(1.0, np.abs(of).max()), path.stem


def test_a_keras_file_that_is_read_back_otherwise_is_not_written(
    lenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medray.learning.keras import writing

    bundle = import_model(str(lenet), like(tmp_path, IMAGES, {"kind": "multiclass"})).bundle
    done = export_model("keras", bundle, str(tmp_path / "a.keras"))
    assert done.compared == 10 and done.largest_difference <= 1e-6 and "read it back" in done.compared_on
    honest = writing.written

    def wrong(network: Any, state: Any, name: str) -> bytes:
        last = max(key for key in state if key.endswith("dense_1.bias"))
        return honest(network, {**state, last: state[last] + np.arange(10, dtype=np.float32) / 100}, name)

    monkeypatch.setattr(writing, "written", wrong)
    with pytest.raises(UserError, match="nothing is written") as caught:
        export_model("keras", bundle, str(tmp_path / "b.keras"))
    assert "seeded inputs" in str(caught.value) and not (tmp_path / "b.keras").exists()
