"""A network as it scores: batch normalisations computed by the convolutions before them.

In evaluation a batch normalisation is one scale and one shift for each filter, which a convolution's weights and bias can hold:
w' = w · γ / √(σ² + ε), b' = (b − μ) · γ / √(σ² + ε) + β, computed in float64 and rounded once. The same function to the rounding
of float32, with a pass over the values less. Nothing of it is stored: a bundle has the weights as they were trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.conv import _ConvNd


def fold(convolution: _ConvNd, norm: _BatchNorm) -> None:
    """Change the convolution so that it gives what the two give one after the other in evaluation."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("a batch normalisation that keeps no statistics cannot be folded")
    with torch.no_grad():
        scale = (variance.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -mean.double() if convolution.bias is None else convolution.bias.double() - mean.double()
        shift = shift * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        weight = convolution.weight
        by_filter = scale.view(-1, *(1,) * (weight.ndim - 1))
        convolution.weight = nn.Parameter((weight.double() * by_filter).to(weight.dtype), requires_grad=False)
        convolution.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)


def fold_named(network: nn.Module) -> nn.Module:
    """Fold every `bn1` into the `conv1` beside it, and so on for each number, and a batch normalisation that stands behind a
    convolution in an nn.Sequential; they become nn.Identity. For residual networks, whose blocks are named so and apply the two
    one after the other: the caller vouches for that."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    for module in list(network.modules()):
        children = dict(module.named_children())
        for name, norm in children.items():
            before = children.get(f"conv{name[2:]}") if name.startswith("bn") else None
            if isinstance(module, nn.Sequential) and name.isdigit() and name != "0":
                before = children.get(str(int(name) - 1))
            if isinstance(norm, kinds) and isinstance(before, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                fold(before, norm)
                setattr(module, name, nn.Identity())
    return network
