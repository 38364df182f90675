"""Pooling: of windows, and of all positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from medray.learning.keras.layers.base import Config, Layer, WithMask
from medray.learning.keras.shapes import Shape, Sizes, joined, rank, split, windows

if TYPE_CHECKING:
    from torch import nn


class Pool(Layer):
    classes: ClassVar[tuple[str, ...]] = tuple(f"{of}Pooling{dims}D" for of in ("Max", "Average") for dims in (1, 2, 3))
    with_mask: ClassVar[WithMask] = "dropped"
    kind: Literal["pool"] = "pool"
    largest: bool
    size: Sizes
    strides: Sizes
    padding: Literal["valid", "same"] = "valid"
    channels_first: bool = False

    @model_validator(mode="after")
    def _alike(self) -> Pool:
        if len(self.size) != len(self.strides):
            raise ValueError("one number for each axis")
        return self

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        dims = int(name[-2])
        size = config.sizes("pool_size", dims, 2)
        config.take("strides")
        strides = size if config.settings.get("strides") is None else config.sizes("strides", dims)
        return cls.made(
            largest=name.startswith("Max"),
            size=size,
            strides=strides,
            padding=config.take("padding", "valid"),
            channels_first=config.channels_first(),
        )

    def shape(self, *inputs: Shape) -> Shape:
        dims = len(self.size)
        spatial, channels = split(rank(inputs[0], dims + 1), self.channels_first)
        axes = zip(spatial, self.size, self.strides, strict=True)
        pooled = tuple(windows(length, size, stride, 1, self.padding) for length, size, stride in axes)
        return joined(pooled, channels, self.channels_first)

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.convolution import Pooling, Windows

        ones = (1,) * len(self.size)
        return Pooling(Windows(self.size, self.strides, ones, self.padding, self.channels_first), self.largest)

    def written(self) -> tuple[str, dict[str, Any]]:
        return f"{'Max' if self.largest else 'Average'}Pooling{len(self.size)}D", {
            "pool_size": list(self.size),
            "strides": list(self.strides),
            "padding": self.padding,
            "data_format": "channels_first" if self.channels_first else "channels_last",
        }


class GlobalPool(Layer):
    classes: ClassVar[tuple[str, ...]] = tuple(
        f"Global{of}Pooling{dims}D" for of in ("Max", "Average") for dims in (1, 2, 3)
    )
    with_mask: ClassVar[WithMask] = "read"
    kind: Literal["global_pool"] = "global_pool"
    largest: bool
    dims: int = Field(ge=1, le=3)
    channels_first: bool = False
    keep_axes: bool = False

    @property
    def refuses_mask(self) -> bool:
        return self.channels_first or self.dims > 1

    @property
    def reads_mask(self) -> bool:
        return not self.largest

    @property
    def gives_mask(self) -> bool:
        return False

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        return cls.made(
            largest="Max" in name,
            dims=int(name[-2]),
            channels_first=config.channels_first(),
            keep_axes=config.switch("keepdims", False),
        )

    def shape(self, *inputs: Shape) -> Shape:
        spatial, channels = split(rank(inputs[0], self.dims + 1), self.channels_first)
        return joined((1,) * len(spatial), channels, self.channels_first) if self.keep_axes else (channels,)

    def module(self, *inputs: Shape) -> nn.Module:
        axes = tuple(range(2, 2 + self.dims)) if self.channels_first else tuple(range(1, 1 + self.dims))
        largest, keep = self.largest, self.keep_axes

        def pooled(values):  # (B, …)
            return values.amax(axes, keepdim=keep) if largest else values.mean(axes, keepdim=keep)

        return self._module(pooled)

    def masked_module(self, *inputs: Shape) -> nn.Module:
        """The mean of steps that count: no number where there is none, as in Keras."""
        keep = self.keep_axes

        def pooled(values, mask):  # (B, T, F), (B, T)
            counts = mask.unsqueeze(-1)
            return values.masked_fill(~counts, 0).sum(1, keepdim=keep) / counts.to(values.dtype).sum(1, keepdim=keep)

        return self._module(pooled)

    def written(self) -> tuple[str, dict[str, Any]]:
        return f"Global{'Max' if self.largest else 'Average'}Pooling{self.dims}D", {
            "data_format": "channels_first" if self.channels_first else "channels_last",
            "keepdims": self.keep_axes,
        }
