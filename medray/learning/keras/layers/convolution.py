"""Convolutions: plain, of each channel alone (depthwise), and both in turn (separable)."""

# S spatial axes, C channel, F filter, M multiplier

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from medray.learning.keras.activations import Activation
from medray.learning.keras.layers.base import Config, Layer, Weight, WithMask
from medray.learning.keras.shapes import Padding, Shape, Size, Sizes, joined, rank, split, windows
from medray.learning.refusal import Refused

if TYPE_CHECKING:
    from torch import nn

    from medray.learning.keras.modules.convolution import Windows


class _Windowed(Layer):
    size: Sizes
    strides: Sizes
    dilation: Sizes
    padding: Padding = "valid"
    channels_first: bool = False
    bias: bool = True
    activation: Activation = Activation()

    @model_validator(mode="after")
    def _alike(self) -> _Windowed:
        if not len(self.size) == len(self.strides) == len(self.dilation):
            raise ValueError("one number for each axis")
        if self.padding == "causal" and (len(self.size) != 1 or self.channels_first):
            raise ValueError("causal is of sequences with channels last")
        if max(self.strides) > 1 and max(self.dilation) > 1:
            raise ValueError("strides and dilation together")
        return self

    @property
    def dims(self) -> int:
        return len(self.size)

    @staticmethod
    def _read(config: Config, dims: int) -> dict[str, Any]:
        return {
            "size": config.sizes("kernel_size", dims),
            "strides": config.sizes("strides", dims),
            "dilation": config.sizes("dilation_rate", dims),
            "padding": config.take("padding", "valid"),
            "channels_first": config.channels_first(),
            "bias": config.switch("use_bias", True),
            "activation": config.activation(),
        }

    def _written(self) -> dict[str, Any]:
        return {
            "kernel_size": list(self.size),
            "strides": list(self.strides),
            "padding": self.padding,
            "data_format": "channels_first" if self.channels_first else "channels_last",
            "dilation_rate": list(self.dilation),
            "activation": self.activation.written(),
            "use_bias": self.bias,
        }

    def _spatial(self, shape: Shape) -> tuple[Shape, int]:
        """(S of what comes out, channels of what comes in)"""
        spatial, channels = split(rank(shape, self.dims + 1), self.channels_first)
        axes = zip(spatial, self.size, self.strides, self.dilation, strict=True)
        return tuple(windows(*axis, self.padding) for axis in axes), channels

    def _windows(self) -> Windows:
        from medray.learning.keras.modules.convolution import Windows

        return Windows(self.size, self.strides, self.dilation, self.padding, self.channels_first)

    def _bias(self, filters: int) -> tuple[Weight, ...]:
        return (Weight("bias", (filters,)),) if self.bias else ()


class Conv(_Windowed):
    """Kernel (S, C / groups, F) in a file, (F, C / groups, S) in torch."""

    classes: ClassVar[tuple[str, ...]] = ("Conv1D", "Conv2D", "Conv3D")
    with_mask: ClassVar[WithMask] = "dropped"
    kind: Literal["conv"] = "conv"
    filters: Size
    groups: Size = 1

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        shared = cls._read(config, int(name[4]))
        config.only("lora_rank", None)
        config.only("lora_alpha", None)
        config.only("quantization_config", None)
        return cls.made(filters=config.needed("filters"), groups=config.take("groups", 1), **shared)

    def shape(self, *inputs: Shape) -> Shape:
        spatial, channels = self._spatial(*inputs)
        if channels % self.groups or self.filters % self.groups:
            raise Refused("channels and filters do not divide into groups", found=f"{channels}, {self.filters}")
        return joined(spatial, self.filters, self.channels_first)

    def weights(self, *inputs: Shape) -> tuple[Weight, ...]:
        _, channels = self._spatial(*inputs)
        return (Weight("kernel", (*self.size, channels // self.groups, self.filters)), *self._bias(self.filters))

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.convolution import convolution

        _, channels = self._spatial(*inputs)
        return convolution(
            channels,
            self.filters,
            self._windows(),
            groups=self.groups,
            bias=self.bias,
            activation=self.activation.function(),
        )

    def to_torch(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        dims = self.dims
        kernel = arrays[0].transpose(dims + 1, dims, *range(dims))
        return {"weight": kernel} | ({"bias": arrays[1]} if self.bias else {})

    def to_keras(self, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        kernel = state["weight"].transpose(*range(2, self.dims + 2), 1, 0)
        return [kernel, *([state["bias"]] if self.bias else [])]

    def written(self) -> tuple[str, dict[str, Any]]:
        return f"Conv{self.dims}D", {"filters": self.filters, "groups": self.groups, **self._written()}


def _depthwise_to_torch(kernel: np.ndarray) -> np.ndarray:
    """(S, C, M) to (C · M, 1, S)"""
    dims = kernel.ndim - 2
    return kernel.transpose(dims, dims + 1, *range(dims)).reshape(-1, 1, *kernel.shape[:dims])


def _depthwise_to_keras(weight: np.ndarray, multiplier: int) -> np.ndarray:
    """(C · M, 1, S) to (S, C, M)"""
    size = weight.shape[2:]
    apart = weight.reshape(-1, multiplier, *size)
    return apart.transpose(*range(2, 2 + len(size)), 0, 1)


class DepthwiseConv(_Windowed):
    """Kernel (S, C, M) in a file, (C · M, 1, S) in torch."""

    classes: ClassVar[tuple[str, ...]] = ("DepthwiseConv1D", "DepthwiseConv2D")
    kind: Literal["depthwise"] = "depthwise"
    multiplier: Size = 1
    size: Annotated[Sizes, Field(max_length=2)]

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        shared = cls._read(config, int(name[-2]))
        config.only("groups", 1, None)
        config.take("filters")  # of Keras 2, without meaning
        return cls.made(multiplier=config.take("depth_multiplier", 1), **shared)

    def shape(self, *inputs: Shape) -> Shape:
        spatial, channels = self._spatial(*inputs)
        return joined(spatial, channels * self.multiplier, self.channels_first)

    def weights(self, *inputs: Shape) -> tuple[Weight, ...]:
        _, channels = self._spatial(*inputs)
        return (Weight("kernel", (*self.size, channels, self.multiplier)), *self._bias(channels * self.multiplier))

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.convolution import convolution

        _, channels = self._spatial(*inputs)
        return convolution(
            channels,
            channels * self.multiplier,
            self._windows(),
            groups=channels,
            bias=self.bias,
            activation=self.activation.function(),
        )

    def to_torch(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return {"weight": _depthwise_to_torch(arrays[0])} | ({"bias": arrays[1]} if self.bias else {})

    def to_keras(self, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        kernel = _depthwise_to_keras(state["weight"], self.multiplier)
        return [kernel, *([state["bias"]] if self.bias else [])]

    def written(self) -> tuple[str, dict[str, Any]]:
        return f"DepthwiseConv{self.dims}D", {"depth_multiplier": self.multiplier, **self._written()}


class SeparableConv(_Windowed):
    """Kernels (S, C, M) and (1, C · M, F) in a file."""

    classes: ClassVar[tuple[str, ...]] = ("SeparableConv1D", "SeparableConv2D")
    kind: Literal["separable"] = "separable"
    filters: Size
    multiplier: Size = 1
    size: Annotated[Sizes, Field(max_length=2)]

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        shared = cls._read(config, int(name[-2]))
        config.only("groups", 1, None)
        return cls.made(filters=config.needed("filters"), multiplier=config.take("depth_multiplier", 1), **shared)

    def shape(self, *inputs: Shape) -> Shape:
        return joined(self._spatial(*inputs)[0], self.filters, self.channels_first)

    def weights(self, *inputs: Shape) -> tuple[Weight, ...]:
        _, channels = self._spatial(*inputs)
        wide = channels * self.multiplier
        return (
            Weight("depthwise_kernel", (*self.size, channels, self.multiplier)),
            Weight("pointwise_kernel", (*(1,) * self.dims, wide, self.filters)),
            *self._bias(self.filters),
        )

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.convolution import Separable, Windows, convolution

        _, channels = self._spatial(*inputs)
        wide, ones = channels * self.multiplier, (1,) * self.dims
        return Separable(
            convolution(channels, wide, self._windows(), groups=channels, bias=False),
            convolution(
                wide,
                self.filters,
                Windows(ones, ones, ones, "valid", self.channels_first),
                bias=self.bias,
                activation=self.activation.function(),
            ),
        )

    def to_torch(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        dims = self.dims
        state = {
            "depthwise.weight": _depthwise_to_torch(arrays[0]),
            "pointwise.weight": arrays[1].transpose(dims + 1, dims, *range(dims)),
        }
        return state | ({"pointwise.bias": arrays[2]} if self.bias else {})

    def to_keras(self, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        arrays = [
            _depthwise_to_keras(state["depthwise.weight"], self.multiplier),
            state["pointwise.weight"].transpose(*range(2, self.dims + 2), 1, 0),
        ]
        return [*arrays, *([state["pointwise.bias"]] if self.bias else [])]

    def written(self) -> tuple[str, dict[str, Any]]:
        settings = {"filters": self.filters, "depth_multiplier": self.multiplier, **self._written()}
        return f"SeparableConv{self.dims}D", settings
