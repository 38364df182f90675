"""Layers that move numbers, leave some out, or put some around; and single steps in turn."""

# B batch, S spatial axes, C channel

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from medray.learning.keras.layers.base import Config, Layer, WithMask
from medray.learning.keras.shapes import MOST, Shape, Size, Sizes, described, joined, known, numbers, rank, split
from medray.learning.refusal import Refused, shown

if TYPE_CHECKING:
    from torch import nn


def _first(channels_first: bool) -> str:
    return "channels_first" if channels_first else "channels_last"


class Dropout(Layer):
    classes: ClassVar[tuple[str, ...]] = ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D")
    with_mask: ClassVar[WithMask] = "kept"
    kind: Literal["dropout"] = "dropout"
    rate: float = Field(ge=0, lt=1)
    spatial: int = Field(default=0, ge=0, le=3)
    """Axes of which all positions are left out together: whole channels; 0: single numbers."""
    channels_first: bool = False

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        config.only("noise_shape", None)
        spatial = 0 if name == "Dropout" else int(name[-2])
        first = config.channels_first() if spatial > 1 else False
        return cls.made(rate=config.needed("rate"), spatial=spatial, channels_first=first)

    def shape(self, *inputs: Shape) -> Shape:
        return rank(inputs[0], self.spatial + 1) if self.spatial else inputs[0]

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.shaping import Dropout as Module

        start = 2 if self.channels_first else 1
        return Module(self.rate, tuple(range(start, start + self.spatial)))

    def written(self) -> tuple[str, dict[str, Any]]:
        if not self.spatial:
            return "Dropout", {"rate": self.rate}
        first = {"data_format": _first(self.channels_first)} if self.spatial > 1 else {}
        return f"SpatialDropout{self.spatial}D", {"rate": self.rate, **first}


class Flatten(Layer):
    """In the order of channels last, whatever the order of axes."""

    classes: ClassVar[tuple[str, ...]] = ("Flatten",)
    with_mask: ClassVar[WithMask] = "dropped"
    kind: Literal["flatten"] = "flatten"
    channels_first: bool = False

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        return cls.made(channels_first=config.channels_first())

    def shape(self, *inputs: Shape) -> Shape:
        for length in inputs[0]:
            known(length, "the size of what is flattened")
        return (numbers(inputs[0]),)

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.functions import moved

        first = self.channels_first and len(inputs[0]) > 1

        def flat(values):  # (B, …)
            return (moved(values, 1, -1) if first else values).flatten(1)

        return self._module(flat)

    def written(self) -> tuple[str, dict[str, Any]]:
        return "Flatten", {"data_format": _first(self.channels_first)}


class Reshape(Layer):
    classes: ClassVar[tuple[str, ...]] = ("Reshape",)
    kind: Literal["reshape"] = "reshape"
    target: Annotated[tuple[Annotated[int, Field(ge=-1, le=MOST)], ...], Field(max_length=8)]

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        return cls.made(target=config.needed("target_shape"))

    def shape(self, *inputs: Shape) -> Shape:
        for length in inputs[0]:
            known(length, "the size of what is reshaped")
        whole, free = numbers(inputs[0]), self.target.count(-1)
        rest = math.prod(n for n in self.target if n != -1)
        if free > 1 or rest == 0 or (whole % rest if free else whole != rest):
            raise Refused("the shape does not fit", found=f"{described(inputs[0])} into {list(self.target)}")
        return tuple(whole // rest if n == -1 else n for n in self.target)

    def module(self, *inputs: Shape) -> nn.Module:
        shape = self.shape(*inputs)
        return self._module(lambda values: values.reshape(values.shape[0], *shape))

    def written(self) -> tuple[str, dict[str, Any]]:
        return "Reshape", {"target_shape": list(self.target)}


class Permute(Layer):
    classes: ClassVar[tuple[str, ...]] = ("Permute",)
    kind: Literal["permute"] = "permute"
    axes: Annotated[tuple[Annotated[int, Field(ge=1, le=8)], ...], Field(min_length=1, max_length=8)]
    """From 1 on: 0 is the batch."""

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        return cls.made(axes=config.needed("dims"))

    def shape(self, *inputs: Shape) -> Shape:
        if sorted(self.axes) != list(range(1, len(inputs[0]) + 1)):
            raise Refused("the axes are not those of the input", found=f"{self.axes} of {described(inputs[0])}")
        return tuple(inputs[0][axis - 1] for axis in self.axes)

    def module(self, *inputs: Shape) -> nn.Module:
        return self._module(lambda values: values.permute(0, *self.axes))

    def written(self) -> tuple[str, dict[str, Any]]:
        return "Permute", {"dims": list(self.axes)}


class RepeatVector(Layer):
    classes: ClassVar[tuple[str, ...]] = ("RepeatVector",)
    kind: Literal["repeat"] = "repeat"
    times: Size

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        return cls.made(times=config.needed("n"))

    def shape(self, *inputs: Shape) -> Shape:
        return (self.times, *rank(inputs[0], 1))

    def module(self, *inputs: Shape) -> nn.Module:
        return self._module(lambda values: values.unsqueeze(1).expand(-1, self.times, -1))

    def written(self) -> tuple[str, dict[str, Any]]:
        return "RepeatVector", {"n": self.times}


Margin = Annotated[int, Field(ge=0, le=MOST)]


class ZeroPadding(Layer):
    classes: ClassVar[tuple[str, ...]] = ("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D")
    kind: Literal["zero_padding"] = "zero_padding"
    around: Annotated[tuple[tuple[Margin, Margin], ...], Field(min_length=1, max_length=3)]
    """(before, after) of each axis."""
    channels_first: bool = False

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        dims = int(name[-2])
        found = config.take("padding", 1)
        if isinstance(found, int):
            found = [found] * dims
        if dims == 1 and isinstance(found, list | tuple) and len(found) == 2 and all(isinstance(n, int) for n in found):
            found = [found]
        if not isinstance(found, list | tuple) or len(found) != dims:
            raise Refused("padding is wrong", found=shown(found))
        around = [[each, each] if isinstance(each, int) else each for each in found]
        return cls.made(around=around, channels_first=config.channels_first())

    def shape(self, *inputs: Shape) -> Shape:
        spatial, channels = split(rank(inputs[0], len(self.around) + 1), self.channels_first)
        pairs = zip(spatial, self.around, strict=True)
        wide = tuple(None if length is None else before + length + after for length, (before, after) in pairs)
        return joined(wide, channels, self.channels_first)

    def module(self, *inputs: Shape) -> nn.Module:
        from torch.nn import functional

        flat = [n for pair in reversed(self.around) for n in pair]
        margins = flat if self.channels_first else [0, 0, *flat]
        return self._module(lambda values: functional.pad(values, margins))

    def written(self) -> tuple[str, dict[str, Any]]:
        dims = len(self.around)
        padding = [list(pair) for pair in self.around]
        return f"ZeroPadding{dims}D", {
            "padding": padding[0] if dims == 1 else padding,
            "data_format": _first(self.channels_first),
        }


class UpSampling(Layer):
    """Each position several times, or numbers between them."""

    classes: ClassVar[tuple[str, ...]] = ("UpSampling1D", "UpSampling2D", "UpSampling3D")
    kind: Literal["up_sampling"] = "up_sampling"
    times: Sizes
    bilinear: bool = False
    channels_first: bool = False

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        dims = int(name[-2])
        bilinear = False
        if dims == 2:
            config.only("interpolation", "nearest", "bilinear")
            bilinear = config.settings.get("interpolation") == "bilinear"
        times = config.sizes("size", dims, 2)
        return cls.made(times=times, bilinear=bilinear, channels_first=config.channels_first())

    def shape(self, *inputs: Shape) -> Shape:
        spatial, channels = split(rank(inputs[0], len(self.times) + 1), self.channels_first)
        pairs = zip(spatial, self.times, strict=True)
        return joined(
            tuple(None if length is None else length * times for length, times in pairs), channels, self.channels_first
        )

    def module(self, *inputs: Shape) -> nn.Module:
        from torch.nn import functional

        from medray.learning.keras.modules.functions import moved

        first, times, bilinear = self.channels_first, self.times, self.bilinear

        def repeated(values):  # (B, …)
            if bilinear:
                larger = values if first else moved(values, -1, 1)
                larger = functional.interpolate(larger, scale_factor=list(map(float, times)), mode="bilinear")
                return larger if first else moved(larger, 1, -1)
            for axis, count in enumerate(times, 2 if first else 1):
                values = values.repeat_interleave(count, axis) if count > 1 else values
            return values

        return self._module(repeated)

    def written(self) -> tuple[str, dict[str, Any]]:
        dims = len(self.times)
        if dims == 1:
            return "UpSampling1D", {"size": self.times[0]}
        settings = {"size": list(self.times), "data_format": _first(self.channels_first)}
        if dims == 2:
            settings["interpolation"] = "bilinear" if self.bilinear else "nearest"
        return f"UpSampling{dims}D", settings


class Masking(Layer):
    """Steps whose numbers are all `value` become zeros, and are left out by layers behind it that read masks."""

    classes: ClassVar[tuple[str, ...]] = ("Masking",)
    with_mask: ClassVar[WithMask] = "read"
    kind: Literal["masking"] = "masking"
    value: float = 0.0

    @property
    def makes_mask(self) -> bool:
        return True

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        return cls.made(value=config.take("mask_value", 0.0))

    def shape(self, *inputs: Shape) -> Shape:
        return rank(inputs[0], 2)

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.shaping import Masking as Module

        return Module(self.value)

    def written(self) -> tuple[str, dict[str, Any]]:
        return "Masking", {"mask_value": self.value}


class Rescaling(Layer):
    """Values of the last axis by a scale and an offset: one, or one of each."""

    classes: ClassVar[tuple[str, ...]] = ("Rescaling",)
    kind: Literal["rescaling"] = "rescaling"
    scale: Annotated[tuple[float, ...], Field(min_length=1, max_length=65536)]
    offset: Annotated[tuple[float, ...], Field(min_length=1, max_length=65536)] = (0.0,)

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        scale, offset = config.needed("scale"), config.take("offset", 0.0)
        return cls.made(
            scale=scale if isinstance(scale, list) else [scale], offset=offset if isinstance(offset, list) else [offset]
        )

    def shape(self, *inputs: Shape) -> Shape:
        last = inputs[0][-1] if len(inputs[0]) > 0 else None
        if {len(self.scale), len(self.offset)} - {1, last}:
            raise Refused("scale and offset are not as many as the last axis is long", found=described(inputs[0]))
        return inputs[0]

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.shaping import Scaled

        return Scaled(list(self.scale), list(self.offset))

    def written(self) -> tuple[str, dict[str, Any]]:
        scale, offset = (each[0] if len(each) == 1 else list(each) for each in (self.scale, self.offset))
        return "Rescaling", {"scale": scale, "offset": offset}
