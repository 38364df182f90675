"""Training that starts from a file of weights: frozen or trained further, through the verbs."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy

from medray.config.runs import TrainRun, load
from medray.engines.local import LocalEngine
from medray.engines.spec import RaySpec
from medray.errors import BundleError, RunFileError
from medray.learning import bundles, pretrained
from medray.learning.optimizers import TrainingSettings, make_optimizer, set_learning_rate
from medray.learning.start_from import StartFrom
from medray.progress import Silent
from medray.verbs.evaluate import evaluate
from medray.verbs.inspect import inspect
from medray.verbs.score import score
from medray.verbs.train import train

SIZE = (6, 12, 14)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    """Volumes of 0 with a bright block, in front or behind, as a MedMNIST file."""
    folder = tmp_path_factory.mktemp("volumes")
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 12), ("val", 6), ("test", 4)):
        images = np.zeros((count, 8, 16, 16), np.uint8)
        labels = np.arange(count) % 2
        for image, label in zip(images, labels, strict=True):
            image[1 + 3 * label : 4 + 3 * label, 4:12, 4:12] = random.integers(50, 250, (3, 8, 8))
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, None]}
    np.savez(folder / "volumes.npz", **arrays)
    return folder


@pytest.fixture(scope="module")
def checkpoint(volumes) -> Path:
    """A published file of depth 10 as fine-tuned ones are: a segmentation head, and no counters."""
    sys.path.insert(0, str(Path(__file__).parent / "models"))
    import medicalnet_reference as reference

    path = volumes / "resnet_10.pth"
    torch.save({"state_dict": reference.state(10, counters=False, heads=True)}, path)
    return path


def medicalnet_run(volumes: Path, folder: Path, weights: object, **changes) -> TrainRun:
    settings = {
        "name": "volumes",
        "archive": str(volumes / "volumes.npz"),
        "bundle": str(folder / "bundle"),
        "work": str(folder / "work"),
        "engine": {"kind": "local"},
        "modality": {"kind": "imaging", "size": SIZE, "resize": "nearest", "normalise": "medicalnet"},
        "split": {"by": "given"},
        "model": {"kind": "medicalnet", "depth": 10},
        "objective": {"kind": "binary", "positive": "1"},
        "training": {"epochs": 1, "batch_size": 6, "learning_rate": 0.01, "optimizer": "sgd", "start_from": weights},
        "floor": False,
    }
    return TrainRun.model_validate(settings | changes)


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_frozen_weights_stay_as_published_and_the_bundle_needs_the_file_no_more(volumes, checkpoint, tmp_path):
    notes = Notes()
    copy = tmp_path / "resnet_10.pth"
    copy.write_bytes(checkpoint.read_bytes())
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    run = medicalnet_run(volumes, tmp_path, {"file": str(copy), "sha256": digest, "frozen": True})
    result = train(run, LocalEngine(), notes)
    assert any(
        "resnet_10.pth" in line and "2 left out (conv_seg.0.weight, conv_seg.0.bias)" in line for line in notes.said
    )
    bundle = bundles.load(run.bundle_uri)
    published = pretrained.read(run.training.start_from).tensors
    trained = {name for name in bundle.weights if not name.endswith("num_batches_tracked") and name not in published}
    assert trained == {"fc.weight", "fc.bias"}
    for name, value in published.items():
        assert name.startswith("conv_seg.") or np.array_equal(bundle.weights[name], value.numpy()), name
    assert bundle.weights["bn1.num_batches_tracked"].item() == 0

    spec = json.loads((tmp_path / "bundle" / "spec.json").read_text())
    assert spec["model"] == {"kind": "medicalnet", "depth": 10, "dropout": 0.0}
    facts = spec["training"]["pretrained"]
    assert (facts["file"], facts["sha256"], facts["frozen"]) == ("resnet_10.pth", digest, True)
    assert str(tmp_path) not in json.dumps(spec)
    assert f"`resnet_10.pth` (SHA-256 `{digest}`)" in (tmp_path / "bundle" / "README.md").read_text()

    moved = copy.rename(tmp_path / "elsewhere.pth")  # the same content at another place is the same training
    assert train(medicalnet_run(volumes, tmp_path, {"file": str(moved), "frozen": True}), LocalEngine()).reused
    moved.unlink()
    scoring = toy.score_run(tmp_path, archive=str(volumes / "volumes.npz"))
    assert score(scoring, LocalEngine()).scored == 22
    assert result.bundle_id == bundle.id


def test_weights_that_are_trained_further_begin_as_published(volumes, checkpoint, tmp_path):
    run = medicalnet_run(volumes, tmp_path, {"file": str(checkpoint), "learning_rate_factor": 1e-4})
    train(run, LocalEngine())
    weights, published = bundles.load(run.bundle_uri).weights, pretrained.read(run.training.start_from).tensors
    moved = np.abs(weights["layer4.0.conv2.weight"] - published["layer4.0.conv2.weight"].numpy()).max()
    assert 0 < moved < 1e-4
    assert not np.array_equal(weights["bn1.running_mean"], published["bn1.running_mean"].numpy())
    assert weights["bn1.num_batches_tracked"].item() == 2  # 12 volumes in batches of 6
    assert run.training.start_from.frozen is False


def test_a_file_of_another_depth_is_refused_before_training(volumes, checkpoint, tmp_path):
    run = medicalnet_run(volumes, tmp_path, str(checkpoint), model={"kind": "medicalnet", "depth": 18})
    with pytest.raises(RunFileError, match="not those of this model") as refused:
        train(run, LocalEngine())
    assert "missing: layer1.1.conv1.weight" in str(refused.value)
    assert "unknown: layer2.0.downsample.0.weight" in str(refused.value)


def test_a_missing_file_is_refused_before_anything_is_read(volumes, tmp_path):
    run = medicalnet_run(volumes, tmp_path, str(tmp_path / "absent.pth"))
    with pytest.raises(RunFileError, match="cannot be read"):
        train(run, LocalEngine())
    assert not (tmp_path / "work").exists()


# --- any model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    toy.write_archive(folder, 40)
    return folder


RESNET = {"kind": "resnet", "depth": 10, "width": 4}


def resnet_run(archive: Path, folder: Path, **changes) -> TrainRun:
    return toy.train_run(
        archive, **{"bundle": str(folder / "bundle"), "work": str(folder / "work"), "model": RESNET} | changes
    )


@pytest.fixture(scope="module")
def first(archive, tmp_path_factory):
    run = resnet_run(archive, tmp_path_factory.mktemp("first"), training={"epochs": 1})
    train(run, LocalEngine())
    return Path(run.bundle_uri) / "weights.safetensors"


def frozen_run(archive: Path, folder: Path, first: Path, **changes) -> TrainRun:
    training = {"start_from": {"file": str(first), "frozen": True}, **changes.pop("training", {})}
    return resnet_run(archive, folder, training=training, **changes)


def test_a_network_of_any_kind_starts_from_a_bundle(archive, first, tmp_path):
    run = frozen_run(archive, tmp_path, first, training={"epochs": 1, "average_weights": 0.9})
    train(run, LocalEngine())
    before, after = bundles.load(str(first.parent)).weights, bundles.load(run.bundle_uri).weights
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"resnet.fc.weight", "resnet.fc.bias"}
    assert evaluate(run, LocalEngine()).bundle_id == bundles.load(run.bundle_uri).id
    assert inspect(run.bundle_uri).facts["pretrained"]["file"] == "weights.safetensors"


def test_a_frozen_training_stopped_in_mid_way_goes_on_to_the_same_bundle(archive, first, tmp_path):
    settings = {"epochs": 2}

    class Stop(BaseException):
        pass

    class StopAfterAnEpoch(Silent):
        def training(self, live):
            if live["epoch"] == 1:
                raise Stop

    whole = train(frozen_run(archive, tmp_path / "whole", first, training=settings), LocalEngine())
    run = frozen_run(archive, tmp_path / "cut", first, training=settings)
    with pytest.raises(Stop):
        train(run, LocalEngine(), StopAfterAnEpoch())
    assert train(run, LocalEngine()).bundle_id == whole.bundle_id


@pytest.mark.slow
def test_workers_of_a_cluster_train_a_frozen_network_as_one_process_does(archive, first, tmp_path, ray_session):
    from medray.engines.ray.engine import RayEngine

    settings = {"epochs": 1, "learning_rate": 0.1}
    alone = frozen_run(archive, tmp_path / "local", first, training=settings)
    many = frozen_run(archive, tmp_path / "ray", first, training=settings)
    results = [train(alone, LocalEngine()), train(many, RayEngine(RaySpec(workers=2)))]
    one, other = (bundles.load(run.bundle_uri).weights for run in (alone, many))
    assert max(float(np.abs(one[name] - other[name]).max()) for name in one) < 1e-5
    assert results[0].metrics["auroc"] == pytest.approx(results[1].metrics["auroc"])


def test_frozen_weights_without_a_last_layer_leave_nothing_to_learn(archive, tmp_path):
    model = {"kind": "cnn", "channels": [4], "dense": 4}
    run = resnet_run(archive, tmp_path, model=model, training={"epochs": 1})
    train(run, LocalEngine())
    start = {"file": run.bundle_uri, "frozen": True, "head": True}
    again = resnet_run(archive, tmp_path / "again", model=model, training={"start_from": start})
    with pytest.raises(RunFileError, match="nothing is left to learn"):
        train(again, LocalEngine())


def test_what_the_file_gave_learns_at_its_own_rate():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    optimizer = make_optimizer(network, TrainingSettings(), {"0.weight": 0.25, "0.bias": 0.25})
    set_learning_rate(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(p)] for p in network.parameters()] == [0.125, 0.125, 0.5, 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0, 1e-4, 0.0]


# --- the run file ---------------------------------------------------------------------------------------------


def test_a_run_file_names_the_file_alone_or_in_a_table(archive, tmp_path):
    text = toy.write_run_file(tmp_path / "a.toml", resnet_run(archive, tmp_path)).read_text()
    (tmp_path / "b.toml").write_text(text.replace("[training]", '[training]\nstart_from = "s3://models/a.pth"'))
    (tmp_path / "c.toml").write_text(text + '[training.start_from]\nfile = "s3://models/a.pth"\n')
    (tmp_path / "earlier.toml").write_text(text + '[model.weights]\nfile = "s3://models/a.pth"\n')
    told: list[str] = []
    runs = [load(tmp_path / name, notice=told.append) for name in ("b.toml", "c.toml", "earlier.toml")]
    assert len(told) == 1 and "model.weights is called training.start_from now" in told[0]
    assert runs[0].training == runs[1].training == runs[2].training
    assert runs[0].training.start_from.file == "s3://models/a.pth"
    (tmp_path / "d.toml").write_text(text + '[training.start_from]\nfile = "a.pth"\nfrozn = true\n')
    with pytest.raises(RunFileError, match="frozn") as refused:
        load(tmp_path / "d.toml")
    assert "frozen" in str(refused.value)


def test_a_run_without_a_file_keeps_the_name_that_its_training_had(archive, tmp_path):
    assert "start_from" not in resnet_run(archive, tmp_path).training.model_dump(mode="json")


# --- parts of a file ------------------------------------------------------------------------------------------


def published(**tensors: torch.Tensor) -> pretrained.Published:
    return pretrained.Published("a.safetensors", "0" * 64, tensors)


def taken(network: torch.nn.Module, state: dict[str, torch.Tensor], heads: tuple[str, ...] = (), **settings: Any):
    file = published(**state)
    return pretrained.chosen(file, network, StartFrom(file="a.safetensors", **settings), heads, ())


def small() -> torch.nn.Sequential:
    """Two convolutions with a normalisation between them, and a last layer: tensors 0.*, 1.*, 2.*, 3.*."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 4, 3), torch.nn.Linear(4, 2)
    )


def test_a_file_for_other_classes_gives_all_but_the_last_layer():
    other = torch.nn.Sequential(*list(small())[:3], torch.nn.Linear(4, 7)).state_dict()
    found = taken(small(), other, ("3.",))
    assert found.new == ("3.weight", "3.bias") == found.unused
    with pytest.raises(RunFileError, match=r"2 of another shape: 3.weight \[7, 4\] instead of \[2, 4\]"):
        taken(small(), other, ("3.",), head=True)
    assert taken(small(), small().state_dict(), ("3.",), head=True).new == ()


def test_what_fits_is_taken_where_a_run_file_says_so_and_nothing_is_refused():
    state = small().state_dict()
    del state["2.bias"]
    state |= {"0.bias": torch.zeros(9), "odd": torch.zeros(1)}
    found = taken(small(), state, ("3.",), partial=True)
    assert found.new == ("0.bias", "2.bias", "3.weight", "3.bias")
    assert found.unused == ("0.bias", "3.weight", "3.bias", "odd")
    with pytest.raises(RunFileError, match="nothing in the file fits"):
        taken(small(), {"odd": torch.zeros(1)}, partial=True)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_first_convolution_for_other_channels_gives_what_it_gave_of_equal_ones(channels):
    torch.manual_seed(0)
    before = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    after = torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 3))
    found = taken(after, before.state_dict(), adapt_channels=True)
    assert found.adapted == ("0.weight",)
    after.load_state_dict(dict(found.tensors))
    grey = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(after(grey.expand(-1, channels, -1, -1)), before(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(RunFileError, match="of another shape"):
        taken(after, before.state_dict())


def test_patterns_choose_what_is_kept_and_depth_how_fast_the_rest_learns():
    network = small()
    found = taken(
        network, network.state_dict(), ("3.",), freeze=["0.*"], learning_rate_decay=0.5, learning_rate_factor=0.2
    )
    assert found.frozen == ("0.weight", "0.bias")
    # layers: 0 with the normalisation 1, then 2, then 3, which begins at random and learns at the full rate
    assert found.factors == pytest.approx({"1.weight": 0.05, "1.bias": 0.05, "2.weight": 0.1, "2.bias": 0.1})
    rows = pretrained.table(published(**network.state_dict()), network, found).to_pylist()
    by_name = {row["tensor"]: row for row in rows}
    assert by_name["0.weight"] == {
        "tensor": "0.weight", "shape": "4x1x3x3", "file_shape": "4x1x3x3", "use": "loaded", "frozen": True,
        "learning_rate_factor": None,
    }  # fmt: skip
    assert by_name["3.bias"]["use"] == "new" and by_name["3.bias"]["learning_rate_factor"] == 1
    assert by_name["1.running_mean"]["learning_rate_factor"] is None and "1.num_batches_tracked" not in by_name
    with pytest.raises(RunFileError, match=r"(?s)a pattern fits none of the tensors.*layer9"):
        taken(network, network.state_dict(), freeze=["0.*", "layer9.*"])


@pytest.mark.parametrize(
    "settings",
    [{"frozen": True, "learning_rate_decay": 0.5}, {"frozen": True, "freeze": ["a"]}, {"learning_rate_decay": 2}],
)
def test_settings_that_contradict_each_other_are_refused(settings):
    with pytest.raises(ValueError):
        StartFrom(file="a.pt", **settings)


def test_a_bundle_with_part_of_it_frozen_names_its_parent_and_keeps_that_part(archive, first, tmp_path):
    parent = bundles.load(str(first.parent))
    start = {"file": str(first.parent), "freeze": ["resnet.conv1.*", "resnet.bn1.*"], "learning_rate_decay": 0.7}
    run = resnet_run(archive, tmp_path, training={"epochs": 1, "start_from": start})
    notes = Notes()
    train(run, LocalEngine(), notes)
    [said] = [line for line in notes.said if "training starts from" in line]
    assert parent.id in said and "2 new (resnet.fc.weight, resnet.fc.bias)" in said
    made = bundles.load(run.bundle_uri)
    kept = {name for name in parent.weights if np.array_equal(parent.weights[name], made.weights[name])}
    assert kept >= {f"resnet.{name}" for name in ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean")}
    assert "resnet.layer1.0.conv1.weight" not in kept and "resnet.layer1.0.bn1.running_mean" not in kept
    assert made.recipe.training["pretrained"]["bundle_id"] == parent.id
    card = (Path(run.bundle_uri) / "README.md").read_text()
    assert f"of bundle `{parent.id}`" in card and "2 began at random (`resnet.fc.weight`, `resnet.fc.bias`)" in card
    [table] = tmp_path.rglob(pretrained.TABLE)
    assert table.read_text().splitlines()[0] == '"tensor","shape","file_shape","use","frozen","learning_rate_factor"'


def test_a_bundle_that_was_altered_is_no_start(archive, first, tmp_path):
    copy = shutil.copytree(first.parent, tmp_path / "copy")
    spec = json.loads((copy / "spec.json").read_text())
    (copy / "spec.json").write_text(json.dumps(spec | {"classes": ["x", "y"]}))
    with pytest.raises(BundleError):
        train(resnet_run(archive, tmp_path, training={"start_from": str(copy)}), LocalEngine())


@pytest.mark.slow
def test_a_related_task_is_learnt_in_half_the_epochs_or_fewer(tmp_path):
    sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
    import start_from

    [(epoch, reached)] = start_from.compare(tmp_path, epochs=8, seeds=1)
    assert reached is not None and 2 * reached <= epoch
