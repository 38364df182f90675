"""Batch normalisations in the convolutions before them: the same function, and none of them is left."""

from __future__ import annotations

import pytest
import torch
from sequence_inputs import batch, names
from torch import nn

from medray.learning.models.cnn import CnnSpec
from medray.learning.models.cnn1d import Cnn1dSpec
from medray.learning.models.folding import fold, fold_named
from medray.learning.models.medicalnet import MedicalNetSpec
from medray.learning.models.resnet import ResNetSpec
from medray.modalities.inputs import Input

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
PLANE, VOLUME = {"pixels": Input((1, 20, 20))}, {"pixels": Input((1, 9, 16, 16))}
CASES = [
    (Cnn1dSpec(channels=(6, 5), widths=(3, 4), dense=4), names("sequence", "mask")),
    (Cnn1dSpec(channels=(6,), widths=(5,), batch_norm=False), names("sequence", "mask")),
    (ResNetSpec(depth=10, width=4), PLANE),
    (ResNetSpec(depth=50, width=4), VOLUME),
    (MedicalNetSpec(depth=10), VOLUME),
    (MedicalNetSpec(depth=50), VOLUME),
    (CnnSpec(), PLANE),
]


def seeded_statistics(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with statistics, scales and shifts of batch normalisation that are no identity."""
    for module in network.modules():
        if isinstance(module, NORMS):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return network.eval()


@pytest.mark.parametrize(("spec", "inputs"), CASES, ids=lambda each: getattr(each, "kind", None))
def test_a_network_scores_as_it_was_trained(spec, inputs):
    torch.manual_seed(0)
    network = seeded_statistics(spec.build(inputs, 3))
    if "mask" in inputs:
        given, tolerance = batch(inputs), 1e-5  # sequence models compute in float32
    else:
        network, tolerance = network.double(), 1e-10
        given = {"pixels": torch.randn(4, *inputs["pixels"].shape, dtype=torch.float64)}
    with torch.inference_mode():
        expected = network(**given)
    folded = spec.for_scoring(network)
    with torch.inference_mode():
        found = folded(**given)
    assert not any(isinstance(module, NORMS) for module in folded.modules())
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_one_filter_by_hand():
    convolution, norm = nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1, eps=0.0).eval()
    assert convolution.bias is not None
    for tensor, value in ((convolution.weight, 3.0), (convolution.bias, 1.0), (norm.weight, 2.0), (norm.bias, 0.5)):
        nn.init.constant_(tensor, value)
    norm.running_mean, norm.running_var = torch.tensor([7.0]), torch.tensor([4.0])
    fold(convolution, norm)  # (3 x + 1 - 7) / 2 * 2 + 0.5 = 3 x - 5.5
    assert convolution.weight.item() == 3.0 and convolution.bias.item() == -5.5


def test_without_a_bias_and_without_scale_and_shift():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3, affine=False)).double()
    seeded = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    layers(seeded)
    expected = layers.eval()(seeded)
    torch.testing.assert_close(fold_named(layers)(seeded), expected, rtol=1e-10, atol=1e-10)


def test_what_keeps_no_statistics_is_not_folded():
    with pytest.raises(ValueError, match="no statistics"):
        fold(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1, track_running_stats=False))
