"""Convolutions and pooling on pictures, volumes and sequences laid out as Keras has them."""

# B batch, C channel, S spatial axes

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medray.learning.keras.modules.functions import Function, moved
from medray.learning.keras.shapes import Padding, padded

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
COMPUTED: tuple[Any, ...] = (functional.conv1d, functional.conv2d, functional.conv3d)
MAXIMA: tuple[Any, ...] = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
MEANS: tuple[Any, ...] = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


class Windows:
    """Where the windows of a convolution or a pooling lie."""

    def __init__(
        self,
        size: Sequence[int],
        strides: Sequence[int],
        dilation: Sequence[int],
        padding: Padding,
        channels_first: bool,
    ) -> None:
        self.size, self.strides, self.dilation = tuple(size), tuple(strides), tuple(dilation)
        self.padding: Padding = padding
        self.channels_first = channels_first

    def channels_before(self, values: Tensor) -> Tensor:
        """(B, C, S)"""
        return values if self.channels_first else moved(values, -1, 1)

    def as_it_came(self, values: Tensor) -> Tensor:
        return values if self.channels_first else moved(values, 1, -1)

    def around(self, values: Tensor) -> list[tuple[int, int]]:
        """(before, after) of each axis of (B, C, S)."""
        lengths = [int(n) for n in values.shape[2:]]
        axes = zip(lengths, self.size, self.strides, self.dilation, strict=True)
        return [padded(*axis, self.padding) for axis in axes]


def filled(values: Tensor, around: list[tuple[int, int]], fill: float = 0.0) -> Tensor:
    """(B, C, S) with `fill` around it."""
    return functional.pad(values, [n for pair in reversed(around) for n in pair], value=fill)


class UsualLayout(nn.Module):
    """A convolution that may be told to compute with channels before the positions in memory, where gradients are taken on a CPU:
    see `predictor.has_narrow_convolution`."""

    usual_layout = False

    def laid_out(self, values: Tensor) -> Tensor:
        if not self.usual_layout or values.device.type != "cpu" or not torch.is_grad_enabled():
            return values
        alike = values.shape[1] == 1 and values.stride(1) == 1  # of one channel, which torch takes for channels last
        return values.clone(memory_format=torch.contiguous_format) if alike else values.contiguous()


class _Convolution(UsualLayout):
    windows: Windows
    activation: Function | None
    weight: Tensor
    bias: Tensor | None
    groups: int

    def forward(self, input: Tensor) -> Tensor:
        values = self.laid_out(self.windows.channels_before(input))
        around = self.windows.around(values)
        zeros: list[int] = [0] * len(around)
        # volumes in a step of their own: torch 2.13.0 spoils gradients of shallow ones that a Conv3d pads (see models/stem.py)
        if len(around) < 3 and all(before == after for before, after in around):
            zeros = [before for before, _ in around]
        elif any(pair != (0, 0) for pair in around):
            values = filled(values, around)
        windows = self.windows
        values = COMPUTED[len(around) - 1](
            values, self.weight, self.bias, windows.strides, zeros, windows.dilation, self.groups
        )
        values = windows.as_it_came(values)
        return values if self.activation is None else self.activation(values)


class Convolution1d(_Convolution, nn.Conv1d):
    pass


class Convolution2d(_Convolution, nn.Conv2d):
    pass


class Convolution3d(_Convolution, nn.Conv3d):
    pass


def convolution(
    channels: int,
    filters: int,
    windows: Windows,
    *,
    groups: int = 1,
    bias: bool = True,
    activation: Function | None = None,
) -> nn.Module:
    kind = (Convolution1d, Convolution2d, Convolution3d)[len(windows.size) - 1]
    made: Any = kind(channels, filters, windows.size, groups=groups, bias=bias)  # pyright: ignore[reportArgumentType]
    made.windows, made.activation = windows, activation
    return made


class Separable(nn.Module):
    """A convolution of each channel alone, then one of single positions across channels."""

    def __init__(self, depthwise: nn.Module, pointwise: nn.Module) -> None:
        super().__init__()
        self.depthwise, self.pointwise = depthwise, pointwise

    def forward(self, values: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(values))


class Pooling(nn.Module):
    """The largest or the mean of each window; what lies around the input counts for neither."""

    def __init__(self, windows: Windows, largest: bool) -> None:
        super().__init__()
        self.windows, self.largest = windows, largest

    def forward(self, input: Tensor) -> Tensor:
        windows = self.windows
        values = windows.channels_before(input)
        around = windows.around(values)
        dims = len(around)
        alike = all(before == after for before, after in around)
        zeros = [before if alike else 0 for before, _ in around]
        if self.largest:
            values = values if alike else filled(values, around, float("-inf"))
            values = MAXIMA[dims - 1](values, windows.size, windows.strides, zeros)
        elif alike:
            values = MEANS[dims - 1](values, windows.size, windows.strides, zeros, count_include_pad=False)
        else:
            inside = filled(torch.ones_like(values[:1, :1]), around)
            share = MEANS[dims - 1](inside, windows.size, windows.strides)
            values = MEANS[dims - 1](filled(values, around), windows.size, windows.strides) / share
        return windows.as_it_came(values)
