"""medicalnet: names, sizes and function of the published networks, against a second one written from their description."""

from __future__ import annotations

import math
from pathlib import Path

import medicalnet_reference as reference
import numpy as np
import pytest
import torch

from medray.errors import RunFileError
from medray.learning import pretrained
from medray.learning.models.medicalnet import MedicalNetSpec
from medray.learning.start_from import StartFrom
from medray.modalities.inputs import Input

VOLUME = {"pixels": Input((1, 16, 16, 16))}
LARGE = [pytest.param(depth, marks=pytest.mark.slow if depth not in (10, 18, 50) else ()) for depth in reference.DEPTHS]


def build(depth: int, outputs: int = 2) -> torch.nn.Module:
    return MedicalNetSpec(depth=depth).build(VOLUME, outputs)  # type: ignore[arg-type]


def backbone(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}


@pytest.mark.parametrize("depth", reference.DEPTHS)
def test_names_shapes_and_numbers_of_tensors_are_the_published_ones(depth):
    with torch.device("meta"):
        network = build(depth)
    tensors = backbone(network)
    published = reference.shapes(depth)
    weights = {name.removesuffix(".weight"): tuple(t.shape) for name, t in tensors.items() if name.endswith(".weight")}
    assert weights == published
    assert len(tensors) == reference.KEYS[depth]
    count = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("fc."))
    assert count == sum(math.prod(shape) * (1 if len(shape) == 5 else 2) for shape in published.values())
    assert count == reference.PARAMETERS.get(depth, count)
    downsampled = [int(name[5]) for name in published if name.endswith("downsample.0")]
    assert downsampled == {10: [2, 3, 4], 18: [], 34: []}.get(depth, [1, 2, 3, 4])


@pytest.mark.parametrize("depth", LARGE)
def test_a_published_checkpoint_loads_whole_and_computes_what_its_description_says(depth, tmp_path):
    values = reference.state(depth, seed=depth, counters=depth != 34, heads=depth == 50)
    path = tmp_path / f"resnet_{depth}.pth"
    # torch's format from before 1.6, as the published files are, and today's
    torch.save({"state_dict": values}, path, _use_new_zipfile_serialization=depth > 18)
    published = pretrained.read(StartFrom(file=str(path)))
    path.unlink()
    network, spec = build(depth), MedicalNetSpec
    taken = pretrained.chosen(published, network, StartFrom(file=""), spec.head_names, spec.other_heads)
    assert taken.unused == (("conv_seg.0.weight", "conv_seg.0.bias") if depth == 50 else ())
    network.load_state_dict(dict(taken.tensors), strict=False)
    network.eval()
    pixels = torch.randn(2, 1, 17, 24, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference.features(values, depth, pixels)
        features = network.features(pixels)  # type: ignore[operator]
        logits = network(pixels)
        by_hand = expected.mean((2, 3, 4)) @ network.fc.weight.T + network.fc.bias  # type: ignore[union-attr]
    assert features.shape == expected.shape == (2, 512 * (4 if depth >= 50 else 1), 3, 3, 2)
    size = float(expected.abs().max())
    assert 0.01 < size < 1e4
    assert float((features - expected).abs().max()) < 1e-5 * size
    assert float((logits - by_hand).abs().max()) < 1e-5 * max(1.0, size)


def test_an_eighth_of_the_size_leaves_the_fourth_stage():
    with torch.inference_mode():
        assert build(10).eval().features(torch.zeros(1, 1, 64, 64, 64)).shape == (1, 512, 8, 8, 8)  # type: ignore[operator]


@pytest.mark.parametrize("shape", [(3, 16, 16, 16), (1, 32, 32)])
def test_pictures_and_colour_are_refused(shape):
    with pytest.raises(RunFileError, match="volumes of one channel"):
        MedicalNetSpec().build({"pixels": Input(shape)}, 2)


# --- files of weights -----------------------------------------------------------------------------------------


def refusal(path: Path, depth: int = 10, **changes: object) -> str:
    with pytest.raises(RunFileError) as refused:
        settings = StartFrom(file=str(path), **changes)  # type: ignore[arg-type]
        published = pretrained.read(settings)
        with torch.device("meta"):
            network = build(depth)
        pretrained.chosen(published, network, settings, MedicalNetSpec.head_names, MedicalNetSpec.other_heads)
    return str(refused.value)


def toy_state() -> dict[str, torch.Tensor]:
    return {"module.conv1.weight": torch.zeros(64, 1, 7, 7, 7), "module.bn1.weight": torch.ones(64)}


def test_a_file_that_would_run_code_is_refused_without_running_it(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for name, new in (("old.pth", False), ("new.pth", True)):
        torch.save({"state_dict": toy_state(), "best": Evil()}, tmp_path / name, _use_new_zipfile_serialization=new)
        assert "more than tensors" in refusal(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_file_of_another_network_names_what_differs(tmp_path):
    torch.save(
        {"state_dict": toy_state() | {"module.bn1.bias": torch.zeros(32), "module.odd": torch.ones(1)}},
        tmp_path / "a.pt",
    )
    text = refusal(tmp_path / "a.pt")
    assert "1 of another shape: bn1.bias [32] instead of [64]" in text
    assert "1 unknown: odd" in text
    # 72 tensors, of which 13 are counters that may lack, and 3 are there
    assert f"{72 - reference_norms(10) - 3} missing: bn1.running_mean" in text
    assert "num_batches_tracked" not in text


def reference_norms(depth: int) -> int:
    return sum(len(shape) == 1 for shape in reference.shapes(depth).values())


def test_a_file_without_a_state_dict_is_refused_by_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "state": torch.zeros(2)}, tmp_path / "a.pth")
    assert "a table of 2: epoch (int), state (Tensor)" in refusal(tmp_path / "a.pth")
    torch.save(torch.zeros(2), tmp_path / "b.pth")
    assert "found: Tensor" in refusal(tmp_path / "b.pth")
    torch.save({}, tmp_path / "c.pth")
    assert "no state_dict" in refusal(tmp_path / "c.pth")


def test_broken_missing_and_swapped_files_are_refused(tmp_path):
    torch.save(toy_state(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for name, content in {
        "cut.pth": whole[:-500],
        "empty.pth": b"",
        "text.pth": b"weights",
        "cut.safetensors": b"\5",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert "not whole" in refusal(tmp_path / name) or "more than tensors" in refusal(tmp_path / name)
    assert "cannot be read" in refusal(tmp_path / "absent.pth")
    (tmp_path / "weights.h5").write_bytes(b"")
    assert "a name that ends in .pth" in refusal(tmp_path / "weights.h5")
    text = refusal(tmp_path / "whole.pth", sha256="0" * 64)
    assert "another one than the run file says" in text and "0" * 64 in text


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    torch.save(toy_state() | {"module.bn1.bias": torch.full((64,), float("nan"))}, tmp_path / "a.pth")
    assert "no finite numbers" in refusal(tmp_path / "a.pth") and "bn1.bias" in refusal(tmp_path / "a.pth")


def test_safetensors_and_torch_give_the_same_tensors_and_half_precision_becomes_float32(tmp_path):
    import safetensors.torch

    values = {"module.conv1.weight": torch.randn(64, 1, 7, 7, 7).half()}
    torch.save(values, tmp_path / "a.pth")
    safetensors.torch.save_file(values, tmp_path / "a.safetensors")
    first, second = (pretrained.read(StartFrom(file=str(tmp_path / f"a.{end}"))) for end in ("pth", "safetensors"))
    assert first.tensors.keys() == second.tensors.keys() == {"conv1.weight"}
    assert torch.equal(first.tensors["conv1.weight"], second.tensors["conv1.weight"])
    stem = torch.nn.Module()
    stem.conv1 = torch.nn.Conv3d(1, 64, 7, bias=False)
    taken = pretrained.chosen(first, stem, StartFrom(file=""), (), ()).tensors
    assert taken["conv1.weight"].dtype == torch.float32
    assert np.array_equal(taken["conv1.weight"].numpy(), values["module.conv1.weight"].float().numpy())
