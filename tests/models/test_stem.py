"""The first convolution: gradients of shallow volumes are those of the sum that it is, computed in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medray.learning.models.resnet import ResNetSpec
from medray.learning.models.stem import Stem
from medray.modalities.inputs import Input


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 7, 8, 12])
def test_gradients_of_a_shallow_volume_are_right(depth):
    torch.manual_seed(depth)
    stem, pixels = Stem(1, 8, 7, 2, padding=3, bias=False), torch.randn(2, 1, depth, 12, 14)
    exact = nn.Conv3d(1, 8, 7, 2, padding=3, bias=False).double()
    exact.load_state_dict(stem.state_dict())
    for _ in range(3):
        junk = [torch.full((stem.weight.numel(),), 1e30) for _ in range(8)]  # what freed memory may hold
        del junk
        stem.zero_grad()
        found, expected = stem(pixels), exact(pixels.double())
        assert torch.allclose(found.double(), expected, atol=1e-5)
        found.square().sum().backward()
        exact.zero_grad()
        expected.square().sum().backward()
        assert stem.weight.grad is not None and exact.weight.grad is not None
        assert torch.allclose(stem.weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1e-3)


def test_a_resnet_keeps_its_names_and_first_weights():
    torch.manual_seed(3)
    network = ResNetSpec(depth=10, width=4).build({"pixels": Input((1, 6, 16, 16))}, 2)
    first = network.get_submodule("resnet.conv1")
    assert isinstance(first, Stem) and first.weight.shape == (4, 1, 7, 7, 7) and not first.weight.is_meta
    assert "resnet.conv1.weight" in network.state_dict()
    network(pixels=torch.randn(2, 1, 6, 16, 16)).sum().backward()
    assert first.weight.grad is not None and torch.isfinite(first.weight.grad).all()
