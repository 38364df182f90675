"""Normalisation as Keras computes it."""

# B batch, C channel

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medray.learning.keras.modules.functions import moved

TINY = 1e-7
"""Least standard deviation that `Normalization` divides by (keras.config.epsilon)."""


class BatchNorm(nn.Module):
    """Of one axis. In training by the batch, whose mean and biased variance move the statistics; else by these."""

    running_mean: Tensor
    running_var: Tensor
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, channels: int, *, axis: int, momentum: float, epsilon: float, center: bool, scale: bool) -> None:
        super().__init__()
        self.axis, self.momentum, self.epsilon = axis, momentum, epsilon
        self.weight = nn.Parameter(torch.ones(channels)) if scale else None
        self.bias = nn.Parameter(torch.zeros(channels)) if center else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.always_measured = False
        """A layer that is not to be trained keeps its statistics and normalises by them, in training, too."""

    def forward(self, input: Tensor) -> Tensor:
        values = moved(input, self.axis, 1)
        count = values.numel() // values.shape[1]
        # one value has no variance: it is normalised by the statistics
        learns = self.training and not self.always_measured and count > 1
        before = self.running_var.clone() if learns else None
        normal = functional.batch_norm(
            values, self.running_mean, self.running_var, self.weight, self.bias, learns, 1 - self.momentum, self.epsilon
        )
        if before is not None:  # torch has moved it by the unbiased variance
            with torch.no_grad():
                stays = before * self.momentum
                self.running_var.copy_(stays + (self.running_var - stays) * ((count - 1) / count))
        return moved(normal, 1, self.axis)


class LayerNorm(nn.Module):
    """Of the last axis."""

    def __init__(self, features: int, *, epsilon: float, center: bool, scale: bool) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(features)) if scale else None
        self.bias = nn.Parameter(torch.zeros(features)) if center else None

    def forward(self, values: Tensor) -> Tensor:
        return functional.layer_norm(values, values.shape[-1:], self.weight, self.bias, self.epsilon)


class Measured(nn.Module):
    """(x - mean) / standard deviation of the last axis, or of all values."""

    mean: Tensor
    variance: Tensor

    def __init__(self, shape: Sequence[int], mean: Sequence[float] | None, variance: Sequence[float] | None) -> None:
        super().__init__()
        given = mean is not None
        self.register_buffer("mean", _filled(shape, mean, 0.0), persistent=not given)
        self.register_buffer("variance", _filled(shape, variance, 1.0), persistent=not given)

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.variance.sqrt().clamp(min=TINY)


def _filled(shape: Sequence[int], given: Sequence[float] | None, otherwise: float) -> Tensor:
    if given is None:
        return torch.full(tuple(shape), otherwise)
    return torch.tensor(list(given)).expand(tuple(shape)).clone() if len(given) > 1 or shape else torch.tensor(given[0])
