"""Bundles of ONNX files by `medray import`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
import toy
from imports import IMAGES, encoded, exported, images, like, made, network, scores
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from typer.testing import CliRunner

from medray.cli.app import app
from medray.config.runs import ScoreRun
from medray.datasets.samples import tensor_column
from medray.engines.local import LocalEngine
from medray.errors import BundleError, RunFileError, UserError
from medray.learning import bundles
from medray.learning.backend import choose, make_graph
from medray.learning.graphs import NoGraph
from medray.learning.predictor import Predictor
from medray.modalities.registry import open_modality
from medray.verbs.import_ import import_model
from medray.verbs.inspect import inspect
from medray.verbs.score import score
from medray.verbs.train import train

# --- what is taken --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [None, nn.Softmax(1)], ids=["logits", "softmax"])
@pytest.mark.parametrize("fixed", [None, 1, 5])
def test_scores_are_the_originals_and_hang_on_no_batch(tmp_path, link, fixed):
    model = network(link=link)
    settings = {} if fixed is None else {"batch": fixed, "dynamic_axes": {}}
    bundle = made(tmp_path, exported(tmp_path / "a.onnx", model, **settings))
    found = scores(bundle, images())
    with torch.inference_mode():
        expected = model(encoded(bundle, images()))
        expected = expected if link else expected.softmax(1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-6)
    for size in (1, 7, 64):
        np.testing.assert_array_equal(scores(bundle, images(), size), found)


def test_one_output_for_yes_or_no_with_its_sigmoid_taken_off(tmp_path):
    model = network(1, nn.Sigmoid())
    bundle = made(
        tmp_path,
        exported(tmp_path / "a.onnx", model),
        objective={"kind": "binary", "names": ["no", "yes"], "positive": "yes"},
    )
    with torch.inference_mode():
        expected = model(encoded(bundle, images())).numpy()
    np.testing.assert_allclose(scores(bundle, images()), expected, rtol=0, atol=1e-6)


def test_a_bundle_of_it_scores_an_archive_and_says_what_it_is(tmp_path):
    toy.write_archive(tmp_path, 12)
    file = exported(tmp_path / "a.onnx", network(link=nn.Softmax(1)))
    result = import_model(file, like(tmp_path))
    assert result.compared == 0 and result.answers.startswith("NOT compared") and result.outputs == ("a", "b", "c")
    assert result.written_by.startswith("pytorch")
    run = ScoreRun(
        name="s", archive=str(tmp_path / "archive"), bundle=result.bundle, store=str(tmp_path / "store"),
        work=str(tmp_path / "w"), engine={"kind": "local", "backend": "onnx"},
    )  # fmt: skip
    found = score(run, LocalEngine())
    assert (found.scored, found.failed) == (12, 0)
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "Imported from `a.onnx`" in card and "not compared" in card
    assert "Scores by onnxruntime" in card and "Scores by torch" not in card
    bundle = bundles.load(result.bundle)
    assert choose(bundle, "torch").title.startswith("onnxruntime")
    with pytest.raises(NoGraph, match="of its own"):
        make_graph(bundle)
    assert inspect(result.bundle).facts["imported"]["file"] == "a.onnx"
    kept = {path.name for path in (tmp_path / "bundle").iterdir()}
    assert kept == {"weights.safetensors", "spec.json", "README.md"}


def test_answers_of_the_original_are_held_against_it(tmp_path):
    model = network(link=nn.Softmax(1))
    file = exported(tmp_path / "a.onnx", model)
    values = np.random.default_rng(1).normal(0, 1, (100, 1, 16, 16)).astype(np.float32)
    with torch.inference_mode():
        said = model(torch.from_numpy(values)).numpy()
    np.savez(tmp_path / "good.npz", image=values, outputs=said)
    result = import_model(file, like(tmp_path), expect=str(tmp_path / "good.npz"))
    assert result.compared == 100 and result.largest_difference is not None and result.largest_difference < 1e-6
    np.savez(tmp_path / "other.npz", image=values, outputs=said + 2e-5)
    with pytest.raises(UserError, match="answers otherwise than the original did") as refused:
        import_model(file, like(tmp_path), str(tmp_path / "second"), expect=str(tmp_path / "other.npz"))
    assert refused.value.exit_code == 2 and not (tmp_path / "second").exists()


class ChannelsLast(nn.Module):
    """As TensorFlow's models are: images (B, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image.permute(0, 3, 1, 2))


def test_channels_are_where_the_shape_says_or_the_run_file(tmp_path):
    model, three = ChannelsLast().eval(), IMAGES | {"channels": 3}
    bundle = made(tmp_path, exported(tmp_path / "a.onnx", model, (16, 16, 3)), modality=three)
    with torch.inference_mode():
        expected = model(encoded(bundle, images(5, 3)).movedim(1, -1)).softmax(1).numpy()
    np.testing.assert_allclose(scores(bundle, images(5, 3)), expected, rtol=0, atol=1e-6)

    open_axes = {"dynamic_axes": {"image": {0: "N", 1: "a", 2: "b", 3: "c"}}}
    file = exported(tmp_path / "open.onnx", model, (16, 16, 3), **open_axes)
    with pytest.raises(UserError, match="not clear where the model has its channels"):
        import_model(file, like(tmp_path / "open", modality=three))
    told = made(tmp_path / "told", file, modality=three, model={"layout": "channels_last"})
    np.testing.assert_allclose(scores(told, images(5, 3)), expected, rtol=0, atol=1e-6)


def test_probabilities_are_not_taken_for_logits(tmp_path):
    class Hidden(nn.Module):
        """Ends with a softmax that is not the last operation."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = network(link=nn.Softmax(1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.layers(image) * 1.0000001

    model = Hidden().eval()
    file = exported(tmp_path / "a.onnx", model)
    with pytest.raises(RunFileError, match="look like probabilities"):
        import_model(file, like(tmp_path))
    assert not (tmp_path / "bundle").exists()
    bundle = made(tmp_path, file, model={"answers": "probabilities"})
    with torch.inference_mode():
        expected = model(encoded(bundle, images())).numpy()
    np.testing.assert_allclose(scores(bundle, images()), expected, rtol=0, atol=1e-6)
    with pytest.raises(RunFileError, match="no probabilities of this objective"):
        import_model(exported(tmp_path / "l.onnx", network()), like(tmp_path / "l", {"answers": "probabilities"}))


def test_sequences_go_in_with_their_mask(tmp_path):
    class Bases(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Conv1d(4, 3, 5)

        def forward(self, sequence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.layer((sequence * mask.unsqueeze(2).float()).transpose(1, 2)).amax(2)

    model, names = Bases().eval(), ["sequence", "mask"]
    given = (torch.zeros(2, 30, 4), torch.ones(2, 30, dtype=torch.bool))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {name: {0: "N"} for name in names}
        torch.onnx.export(model, given, tmp_path / "a.onnx", dynamo=False, input_names=names, dynamic_axes=axes)
    bundle = made(tmp_path, str(tmp_path / "a.onnx"), modality={"kind": "genomics", "length": 30})
    bases = np.random.default_rng(0).integers(0, 4, (9, 30)).astype(np.uint8)
    samples = pa.record_batch([tensor_column(bases)], names=["bases"])
    with torch.inference_mode():
        inputs = open_modality(bundle.recipe.modality).encode({"bases": torch.from_numpy(bases)})
        expected = model(**inputs).softmax(1).numpy()
    np.testing.assert_allclose(Predictor(bundle, "cpu")(samples), expected, rtol=0, atol=1e-6)


# --- what is refused ------------------------------------------------------------------------------------------


def graph_of(
    *nodes: onnx.NodeProto,
    initializers: list[onnx.TensorProto] | None = None,
    opsets: dict[str, int] | None = None,
    outputs: tuple[str, ...] = ("out",),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 16, 16])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        initializers or [],
    )
    versions = {"": 17} | (opsets or {})
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*each) for each in versions.items()], ir_version=8
    )


def pooled(of: str = "image", to: str = "flat") -> list[onnx.NodeProto]:
    return [helper.make_node("GlobalAveragePool", [of], ["mean"]), helper.make_node("Flatten", ["mean"], [to])]


def foreign() -> onnx.ModelProto:
    return graph_of(
        *pooled(), helper.make_node("Gelu", ["flat"], ["out"], domain="com.example"), opsets={"com.example": 1}
    )


def looping() -> onnx.ModelProto:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, [])],
    )
    return graph_of(*pooled(), helper.make_node("Loop", ["n", "", "flat"], ["out"], body=inner))


def random() -> onnx.ModelProto:
    return graph_of(
        *pooled(),
        helper.make_node("RandomNormalLike", ["flat"], ["noise"]),
        helper.make_node("Add", ["flat", "noise"], ["out"]),
    )


def elsewhere() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((1, 3), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "numbers.bin"
    return graph_of(*pooled(), helper.make_node("MatMul", ["flat", "w"], ["out"]), initializers=[weight])


def of_another_size() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((1, 3), np.float32), "w")
    weight.dims[1] = 4
    return graph_of(*pooled(), helper.make_node("MatMul", ["flat", "w"], ["out"]), initializers=[weight])


def beyond_measure() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((1, 3), np.float32), "w")
    weight.dims[1] = 2**40
    return graph_of(*pooled(), helper.make_node("MatMul", ["flat", "w"], ["out"]), initializers=[weight])


def no_numbers() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.full((1, 3), np.nan, np.float32), "w")
    return graph_of(*pooled(), helper.make_node("MatMul", ["flat", "w"], ["out"]), initializers=[weight])


def over_the_batch() -> onnx.ModelProto:
    """Each row less the mean of all."""
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
    mean = helper.make_node("ReduceMean", ["wide"], ["of_all"], axes=[0], keepdims=1)
    weight = numpy_helper.from_array(np.ones((1, 3), np.float32), "w")
    return graph_of(
        *pooled(), helper.make_node("MatMul", ["flat", "w"], ["wide"]), mean, helper.make_node("Sub", ["wide", "of_all"], ["out"]),
        initializers=[weight, axes],
    )  # fmt: skip


def two_outputs() -> onnx.ModelProto:
    return graph_of(*pooled(to="out"), helper.make_node("Identity", ["out"], ["features"]), outputs=("out", "features"))


def a_picture() -> onnx.ModelProto:
    return graph_of(helper.make_node("Relu", ["image"], ["out"]))


def without_input() -> onnx.ModelProto:
    three = numpy_helper.from_array(np.ones((1, 3), np.float32), "three")
    return graph_of(helper.make_node("Identity", ["three"], ["out"]), initializers=[three])


def unknown_operation() -> onnx.ModelProto:
    return graph_of(*pooled(), helper.make_node("Frobnicate", ["flat"], ["out"]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (foreign, "not of the ONNX standard.*Gelu of com.example"),
        (looping, "loops and conditions are not taken.*Loop"),
        (random, "draws at random.*RandomNormalLike"),
        (elsewhere, "numbers that lie in another file.*w"),
        (of_another_size, "not what its shape says.*w"),
        (beyond_measure, "more numbers than a model may have.*w"),
        (no_numbers, "no finite numbers.*w"),
        (over_the_batch, "hangs on the other rows"),
        (two_outputs, "several outputs.*out, features"),
        (a_picture, "not one row of numbers"),
        (without_input, "an input that the answers do not depend on.*image"),
        (unknown_operation, "onnxruntime cannot load the model.*Frobnicate"),
    ],
)
def test_what_is_not_taken_is_named_and_leaves_nothing(tmp_path, build: Callable[[], onnx.ModelProto], message):
    file = tmp_path / "a.onnx"
    file.write_bytes(build().SerializeToString())
    with pytest.raises(UserError, match=f"(?s){message}") as refused:
        import_model(str(file), like(tmp_path))
    assert refused.value.exit_code == 2 and refused.value.where == str(file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx"]


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x08"])
def test_a_file_that_is_no_model_is_said_to_be_none(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(UserError, match="no ONNX model, or not whole"):
        import_model(str(tmp_path / "a.onnx"), like(tmp_path))
    with pytest.raises(UserError, match="no such file"):
        import_model(str(tmp_path / "absent.onnx"), like(tmp_path))


def test_a_model_for_other_inputs_outputs_or_objectives_is_refused(tmp_path):
    file = exported(tmp_path / "a.onnx", network(link=nn.Softmax(1)))
    for changes, kind, message in (
        ({"modality": IMAGES | {"size": [20, 20]}}, UserError, "takes another shape"),
        ({"objective": {"kind": "multiclass", "names": ["a", "b"]}}, RunFileError, "other outputs than the objective"),
        ({"objective": {"kind": "multilabel", "names": ["a", "b", "c"]}}, RunFileError, "another activation"),
        ({"model": {"inputs": {"picture": "pixels"}}}, UserError, "no such input"),
        ({"model": {"inputs": {"image": "voxels"}}}, UserError, "no input of this name"),
        ({"model": {"output": "features"}}, UserError, "no such output"),
        ({"model": {"answers": "logits"}}, RunFileError, "what the graph gives is clear"),
    ):
        with pytest.raises(kind, match=message):
            import_model(file, like(tmp_path, **changes))
    assert not (tmp_path / "bundle").exists()


def test_it_is_not_trained(tmp_path):
    toy.write_archive(tmp_path, 8)
    with pytest.raises(RunFileError, match="not trained"):
        train(like(tmp_path), LocalEngine())


def test_the_command_says_it_in_a_sentence(tmp_path):
    file = tmp_path / "a.onnx"
    file.write_bytes(foreign().SerializeToString())
    run = toy.write_run_file(tmp_path / "run.toml", like(tmp_path))
    done = CliRunner().invoke(app, ["import", str(file), "--like", str(run)])
    assert done.exit_code == 2 and "com.example" in done.output and "Traceback" not in done.output
    good = exported(tmp_path / "b.onnx", network())
    done = CliRunner().invoke(app, ["import", good, "--like", str(run), "--as", str(tmp_path / "named"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bundle"] == str(tmp_path / "named")


def test_an_altered_bundle_of_a_graph_is_refused(tmp_path):
    bundle = import_model(exported(tmp_path / "a.onnx", network()), like(tmp_path)).bundle
    spec = Path(bundle) / "spec.json"
    whole = json.loads(spec.read_text())
    whole["model"]["network"]["batch"] = 3
    spec.write_text(json.dumps(whole))
    with pytest.raises(BundleError):
        bundles.load(bundle)
