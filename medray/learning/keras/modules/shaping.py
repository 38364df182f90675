"""Dense layers, embeddings, dropout, and what has no numbers of its own."""

# B batch

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medray.learning.keras.modules.functions import Function


class Apply(nn.Module):
    """A function of its inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*values)


class Dense(nn.Linear):
    def __init__(self, features: int, units: int, bias: bool, activation: Function | None) -> None:
        super().__init__(features, units, bias)
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        values = super().forward(input)
        return values if self.activation is None else self.activation(values)


class Embedding(nn.Embedding):
    """Codes may be whole numbers of any type."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.long())

    def mask_of(self, input: Tensor) -> Tensor:
        return input != 0


class Masking(nn.Module):
    """(B, T, F) with zeros in the steps whose numbers are all `value`."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def mask_of(self, input: Tensor) -> Tensor:
        return (input != self.value).any(-1)

    def forward(self, input: Tensor) -> Tensor:
        return input.masked_fill(~self.mask_of(input).unsqueeze(-1), 0)


class Dropout(nn.Module):
    """Leaves numbers out in training; `together`: axes of (B, …) that have one draw for all their positions."""

    def __init__(self, rate: float, together: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.rate, self.together = rate, together

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return values
        if not self.together:
            return functional.dropout(values, self.rate)
        kept = values.new_ones([1 if axis in self.together else n for axis, n in enumerate(values.shape)])
        return values * functional.dropout(kept, self.rate)


class TimeDistributed(nn.Module):
    """A layer on each step (B, T, …) alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: Tensor) -> Tensor:
        steps = self.layer(values.flatten(0, 1))
        return steps.unflatten(0, values.shape[:2])


class Scaled(nn.Module):
    """The last axis by scale and offset."""

    scale: Tensor
    offset: Tensor

    def __init__(self, scale: list[float], offset: list[float]) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale if len(scale) > 1 else scale[0]), persistent=False)
        self.register_buffer("offset", torch.tensor(offset if len(offset) > 1 else offset[0]), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        return values * self.scale + self.offset
