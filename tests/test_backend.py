"""Back ends of scoring: what exports and agrees with torch, the same bits whatever a sample is scored with, refusals."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import kinds
import numpy as np
import pyarrow as pa
import pytest
import toy

from medray import extras
from medray.errors import BundleError, UserError
from medray.learning import backend, bundles, graphs
from medray.learning.backend import choose, make_graph, require_agreement, with_graph
from medray.learning.fixed_batches import FixedBatches, fixed_rows, length_class
from medray.learning.objectives import MulticlassObjective, RegressionObjective
from medray.learning.predictor import Predictor
from medray.modalities.inputs import Input

pytest.importorskip("onnxruntime")
SIZES = (1, 2, 3, 7, 8, 9, 64, 65, 100, 256)


def different_bits(predict: Predictor, samples: pa.RecordBatch) -> int:
    """Numbers that are not the same to the bit when the samples come in other batches and in another order."""
    whole, count = predict(samples), len(samples)
    assert np.isfinite(whole).all() and len(np.unique(whole[:, 0])) > count // 4
    different = 0
    for size in (size for size in SIZES if size < 2 * count):
        parts = [predict(samples.slice(start, size)) for start in range(0, min(count, 3 * size), size)]
        found = np.concatenate(parts)
        different += int((found.view(np.uint32) != whole[: len(found)].view(np.uint32)).sum())
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(count)
        found = predict(samples.take(pa.array(order)))
        different += int((found.view(np.uint32) != whole[order].view(np.uint32)).sum())
    return different


# --- every kind of model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", kinds.KINDS)
def test_each_kind_of_model_has_a_graph_that_agrees_and_repeats_to_the_bit(name):
    made = kinds.bundle(name)
    samples = kinds.samples(made.recipe.modality, 8 if made.recipe.model.kind == "medicalnet" else 100)
    carrying, reason = with_graph(made, samples)
    assert reason == "" and carrying.graph is not None and carrying.id == made.id
    by_torch, by_graph = Predictor(made, "cpu"), Predictor(made, "cpu", graph=carrying.graph)
    np.testing.assert_allclose(by_graph(samples), by_torch(samples), rtol=0, atol=1e-5)
    assert different_bits(by_graph, samples) == 0
    if made.recipe.same_bits:
        assert different_bits(by_torch, samples) == 0


def test_every_kind_of_medray_is_among_them():
    from medray.learning.models import CnnSpec, ModelSpec

    union = ModelSpec.__origin__.__args__  # type: ignore[attr-defined]
    assert CnnSpec in union
    of_medray = {each.model_fields["kind"].default for each in union} - {"onnx"}  # a graph itself
    assert of_medray == {model["kind"] for _, model in kinds.KINDS.values()}


@pytest.mark.parametrize(
    ("objective", "classes"),
    [
        (MulticlassObjective(), ("a", "b", "c")),
        (RegressionObjective(), ("age",)),
    ],
)
def test_other_objectives_repeat_to_the_bit(objective, classes):
    made = kinds.bundle("cnn", objective=objective, classes=classes, thresholds=())
    samples = kinds.samples(made.recipe.modality, 120)
    graph = with_graph(made, samples)[0].graph
    assert graph is not None
    assert different_bits(Predictor(made, "cpu", graph=graph), samples) == 0
    assert different_bits(Predictor(made, "cpu"), samples) == 0


@pytest.mark.parametrize("name", ["cnn1d", "cnn1d, both strands", "cnn_rnn"])
def test_variants_keep_their_exact_log_odds(name):
    made = kinds.bundle(name)
    site = made.recipe.modality.model_copy(update={"entries": "variants", "reference": "reference.fa"})
    samples = kinds.samples(site, 120)
    graph = make_graph(made)
    by_torch, by_graph = (Predictor(made, "cpu", spec=site, graph=each) for each in (None, graph))
    assert by_graph.score_names == by_torch.score_names and "lower_log_odds" in by_graph.score_names
    np.testing.assert_allclose(by_graph(samples), by_torch(samples), rtol=0, atol=1e-5)
    assert different_bits(by_graph, samples) == 0


def test_log_odds_of_certain_scores_are_exact_by_both_back_ends():
    """float32 probabilities of logits beyond 17 are all 1: their log-odds come from float64 logits."""
    plain = kinds.bundle("cnn1d")
    weights = dict(plain.weights)
    last = max(name for name in weights if name.startswith("head.") and name.endswith("bias"))
    weights[last] = weights[last] + 40
    made = bundles.make_bundle(plain.recipe, weights)
    site = made.recipe.modality.model_copy(update={"entries": "variants", "reference": "reference.fa"})
    samples = kinds.samples(site, 20)
    by_torch, by_graph = (Predictor(made, "cpu", spec=site, graph=each)(samples) for each in (None, make_graph(made)))
    assert (by_graph[:, :2] == 1).all() and (by_graph[:, 3] != 0).all()
    np.testing.assert_allclose(by_graph[:, 3], by_torch[:, 3], rtol=0, atol=2e-5)  # 40 in float32 has steps of 4e-6


def test_a_padded_row_does_not_hang_on_how_long_its_neighbours_are():
    for name in ("cnn1d of events", "rnn gru", "rnn elman", "rnn lstm", "cnn_rnn of events"):
        made = kinds.bundle(name)
        samples = kinds.samples(made.recipe.modality, 60)
        lengths = samples.column("codes").value_lengths().to_numpy()
        predict = Predictor(made, "cpu", graph=make_graph(made))
        for row in (int(np.argmin(lengths)), int(np.argmax(lengths)), 5):
            alone = predict(samples.slice(row, 1))
            for other in range(0, 60, 7):
                beside = predict(samples.take(pa.array([other, row, 59 - other])))
                np.testing.assert_array_equal(beside[1], alone[0], err_msg=name)


# --- batches of one shape -------------------------------------------------------------------------------------


def test_classes_of_length_follow_from_the_length_alone():
    assert [length_class(n) for n in (0, 1, 8, 9, 12, 13, 16, 17, 24, 25, 1000, 1025)] == [
        8, 8, 8, 12, 12, 16, 16, 24, 24, 32, 1024, 1536,
    ]  # fmt: skip
    assert all(n <= length_class(n) <= max(8, 1.5 * n) for n in range(1, 3000))


def test_rows_of_a_batch_are_a_power_of_two_by_what_the_network_reads():
    assert fixed_rows({"pixels": Input((1, 512, 512))}, 16, 2**22) == 4
    assert fixed_rows({"pixels": Input((1, 28, 28))}, 16, 2**22) == 16
    assert fixed_rows({"pixels": Input((1, 128, 128, 128))}, 16, 2**22) == 1
    assert fixed_rows({"sequence": Input((None, 4)), "mask": Input((None,))}, 8, 2**20) == 8


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11])
def test_all_batches_have_one_shape_and_rows_come_back_in_their_order(count):
    import torch

    steps = torch.arange(count) % 20
    given = {"sequence": torch.arange(count * 20.0).reshape(count, 20, 1), "mask": torch.arange(20) < steps[:, None]}
    shapes = set()

    def forward(batch):
        shapes.add(tuple(batch["sequence"].shape))
        assert (batch["mask"].sum(1) <= batch["sequence"].shape[1]).all()
        return batch["sequence"][:, 0]

    found = FixedBatches(4, {"sequence": 1, "mask": 1})(given, forward)
    assert torch.equal(found, given["sequence"][:, 0])
    assert all(shape[0] == 4 and shape[1] in (8, 12, 16, 24) for shape in shapes)


def test_whole_rows_share_no_batch_with_padded_ones_where_they_are_kept_apart():
    import torch

    mask = torch.ones(10, 6, dtype=torch.bool)
    mask[3, 2:] = mask[8, 5:] = False
    batches = []

    def forward(batch):
        batches.append(batch["mask"].all(1).tolist())
        return batch["mask"].sum(1, keepdim=True).float()

    found = FixedBatches(4, {}, apart=True)({"mask": mask}, forward)
    assert found[:, 0].tolist() == [6, 6, 6, 2, 6, 6, 6, 6, 5, 6]
    assert batches == [[True] * 4, [True] * 4, [False] * 4]


# --- what bundles carry ---------------------------------------------------------------------------------------


@pytest.fixture
def carrying():
    made = toy.bundle()
    return with_graph(made, kinds.samples(made.recipe.modality, 8))[0]


def test_a_bundle_carries_its_graph_under_the_id_that_it_had(carrying, tmp_path):
    bundles.save(carrying, str(tmp_path / "with"))
    bundles.save(toy.bundle(), str(tmp_path / "without"))
    loaded, plain = bundles.load(str(tmp_path / "with")), bundles.load(str(tmp_path / "without"))
    assert loaded.graph == carrying.graph and plain.graph is None and loaded.id == plain.id
    assert (tmp_path / "with" / bundles.GRAPH).read_bytes() == carrying.graph.nodes
    cards = [(tmp_path / name / bundles.CARD).read_text() for name in ("with", "without")]
    assert "one version of onnxruntime, by `network.onnx`" in cards[0] and "network.onnx" not in cards[1]
    assert all("one version of torch, with one thread per worker" in card for card in cards)
    bundles.save(toy.bundle(), str(tmp_path / "with"))
    assert not (tmp_path / "with" / bundles.GRAPH).exists()


def test_the_graph_holds_no_trained_number(carrying):
    import onnx

    model = onnx.load_model_from_string(carrying.graph.nodes)
    outside = [each for each in model.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL]
    assert {each.name.removeprefix("network.") for each in outside} == set(carrying.weights)
    assert len(carrying.graph.nodes) < 4000


def test_a_changed_graph_is_noticed_when_the_bundle_is_loaded(carrying, tmp_path):
    folder = tmp_path / "bundle"
    bundles.save(carrying, str(folder))
    content = bytearray((folder / bundles.GRAPH).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / bundles.GRAPH).write_bytes(content)
    with pytest.raises(BundleError, match=r"network\.onnx: the bundle was altered after it was made"):
        bundles.load(str(folder))


def test_without_its_graph_a_bundle_is_what_it_was(carrying, tmp_path):
    folder = tmp_path / "bundle"
    bundles.save(carrying, str(folder))
    (folder / bundles.GRAPH).unlink()
    loaded = bundles.load(str(folder))
    assert loaded.graph is None and loaded.id == carrying.id
    assert choose(loaded, "onnx").graph is not None  # exported again


def test_a_graph_beside_a_bundle_that_names_none_is_not_read(carrying, tmp_path):
    folder = tmp_path / "bundle"
    bundles.save(toy.bundle(), str(folder))
    (folder / bundles.GRAPH).write_bytes(carrying.graph.nodes)
    assert bundles.load(str(folder)).graph is None


def test_samples_that_are_valid_throughout_have_a_graph_without_masks(tmp_path):
    made = kinds.bundle("cnn1d")
    carrying = with_graph(made, kinds.samples(kinds.BASES, 30))[0]
    bundles.save(carrying, str(tmp_path / "bundle"))
    loaded = bundles.load(str(tmp_path / "bundle"))
    assert loaded.graph == carrying.graph and loaded.graph.whole is not None
    network = graphs.OnnxNetwork(loaded.graph, loaded.weights, {"sequence": Input((60, 5)), "mask": Input((60,))})
    assert (network.masked.reads, network.whole.reads) == (["sequence", "mask"], ["sequence"])
    (tmp_path / "bundle" / bundles.WHOLE).write_bytes(loaded.graph.nodes)
    with pytest.raises(BundleError, match=r"network-whole\.onnx: the bundle was altered"):
        bundles.load(str(tmp_path / "bundle"))
    (tmp_path / "bundle" / bundles.WHOLE).unlink()
    assert bundles.load(str(tmp_path / "bundle")).graph == graphs.Graph(carrying.graph.nodes)


# --- which back end -------------------------------------------------------------------------------------------


def test_a_graph_that_disagrees_with_torch_scores_nothing(carrying):
    import onnx

    model = onnx.load_model_from_string(carrying.graph.nodes)
    (last,) = [node for node in model.graph.node if node.output[0] == "logits"]
    (attribute,) = [each for each in last.attribute if each.name == "alpha"]
    attribute.f = 1.001
    altered = replace(carrying, graph=graphs.Graph(model.SerializeToString()))
    with pytest.raises(BundleError, match=r"differ from torch's, by up to"):
        choose(altered, "onnx")
    stays = choose(altered, "auto")
    assert stays.graph is None and stays.title.startswith("torch ") and "differ from torch's" in stays.title


def test_a_graph_of_another_network_scores_nothing(carrying):
    for name in ("cnn1d", "resnet 50", "medicalnet"):
        with pytest.raises(BundleError, match="no ONNX graph that may score"):
            choose(replace(carrying, graph=make_graph(kinds.bundle(name))), "onnx")
    more = make_graph(toy.bundle(objective=MulticlassObjective(), classes=("a", "b", "c"), thresholds=()))
    with pytest.raises(BundleError, match="no ONNX graph that may score"):
        choose(replace(carrying, graph=more), "onnx")


def test_inputs_that_a_graph_does_not_take_are_refused_in_words(carrying):
    import torch

    network = graphs.OnnxNetwork(carrying.graph, carrying.weights, {"pixels": Input((1, 16, 16))})
    with pytest.raises(BundleError, match="cannot compute what the modality gives it"):
        network({"pixels": torch.zeros(4, 1, 16, 16, dtype=torch.float64)})


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x08"])
def test_what_is_no_graph_is_refused_in_words(carrying, content):
    with pytest.raises(BundleError, match="has no ONNX graph that may score"):
        choose(replace(carrying, graph=graphs.Graph(content)), "onnx")


def test_a_bundle_that_was_saved_without_a_graph_gives_one_when_it_scores():
    chosen = choose(toy.bundle(), "onnx")
    assert chosen.graph is not None and chosen.title == graphs.runtime()
    assert choose(toy.bundle(), "auto").graph == chosen.graph
    assert choose(toy.bundle(), "torch").graph is None and choose(toy.bundle(), "torch").title.startswith("torch ")


def test_a_network_that_does_not_export_stays_on_torch_and_says_why():
    made = toy.bundle(modality=kinds.ODD, model={"kind": "logistic"})  # averaged from 40 to 32 pixels
    with pytest.raises(BundleError, match=r"it cannot be exported: .*adaptive_avg_pool2d"):
        choose(made, "onnx")
    stays = choose(made, "auto")
    assert stays.graph is None and "it cannot be exported" in stays.title
    same, reason = with_graph(made, kinds.samples(kinds.ODD, 3))
    assert same == made and "it cannot be exported" in reason


def test_scores_of_validation_samples_decide_too(monkeypatch):
    made = toy.bundle()
    monkeypatch.setattr(backend.graphs, "close", lambda found, expected: found.shape[0] != 5)
    same, reason = with_graph(made, kinds.samples(made.recipe.modality, 5))
    assert same.graph is None and "validation samples differ" in reason


def test_a_score_that_hangs_on_its_place_in_the_batch_is_refused(carrying, monkeypatch):
    from medray.learning.graphs import OnnxNetwork

    plain = OnnxNetwork._computed

    def uneven(self, batch):
        import torch

        return plain(self, batch) + 1e-7 * torch.arange(self.batches.rows)[:, None]

    monkeypatch.setattr(OnnxNetwork, "_computed", uneven)
    with pytest.raises(graphs.NoGraph, match="hangs on its place in the batch"):
        require_agreement(carrying, carrying.graph)


def test_without_onnxruntime_onnx_is_refused_and_auto_is_torch(carrying, monkeypatch):
    find = extras.importlib.util.find_spec
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name))
    with pytest.raises(UserError, match=r"onnxruntime not installed: pip install 'medray\[onnx\]'"):
        choose(carrying, "onnx")
    assert "onnxruntime not installed" in choose(carrying, "auto").title
    assert with_graph(toy.bundle(), kinds.samples(kinds.PICTURES, 2))[1].startswith(
        "onnx and onnxruntime not installed"
    )


def test_auto_leaves_a_gpu_to_torch_where_onnxruntime_cannot_use_it(carrying, monkeypatch):
    monkeypatch.setattr(graphs, "runs_on_gpu", lambda: False)
    assert "uses no GPU here" in choose(carrying, "auto", on_gpu=True).title
    assert choose(carrying, "onnx", on_gpu=True).graph is not None
    monkeypatch.setattr(graphs, "runs_on_gpu", lambda: True)
    assert choose(carrying, "auto", on_gpu=True).graph is not None


def test_a_bundle_predicts_by_the_back_end_that_it_was_loaded_for(carrying, tmp_path):
    from medray.api import Bundle

    bundles.save(carrying, str(tmp_path / "bundle"))
    shutil.copytree(tmp_path / "bundle", tmp_path / "copy")
    pictures = np.stack([toy.pixels(i, i % 2) for i in range(5)])
    facts = {"Modality": "US"}
    by_torch = Bundle.load(tmp_path / "bundle").predict(pictures, facts=facts)
    by_graph = Bundle.load(tmp_path / "copy", backend="onnx").predict(pictures, facts=facts)
    assert by_graph.column_names == by_torch.column_names
    np.testing.assert_allclose(by_graph["lower"].to_numpy(), by_torch["lower"].to_numpy(), atol=1e-5)


def test_onnxruntime_keeps_no_record_of_its_use(tmp_path):
    program = "from medray.learning.onnx_runtime import onnxruntime; print(onnxruntime().__version__)"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == importlib.metadata.version("onnxruntime")
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in str(path)]
