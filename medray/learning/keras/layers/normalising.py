"""Normalisation: by batches, by samples, and by statistics that were measured before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from medray.learning.keras.layers.base import Config, Layer, Weight, WithMask
from medray.learning.keras.shapes import Shape, described, known
from medray.learning.refusal import Refused, shown

if TYPE_CHECKING:
    from torch import nn


def _axis(found: Any) -> int:
    """One axis, given alone or in a list."""
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, int) or isinstance(found, bool):
        raise Refused("normalisation over several axes is not supported", found=shown(found), expected="one axis")
    return found


def _place(axis: int, shape: Shape) -> int:
    """Axis of (B, …) as a positive number."""
    place = axis if axis >= 0 else axis + len(shape) + 1
    if not 1 <= place <= len(shape):
        raise Refused("there is no such axis", found=f"axis {axis} of {described(shape)}")
    return place


def _last(axis: int, shape: Shape) -> int:
    """The axis, when it is the last one. Raises Refused."""
    place = _place(axis, shape)
    if place != len(shape):
        raise Refused("normalisation of another axis than the last", found=f"axis {axis} of {described(shape)}")
    return place


class BatchNorm(Layer):
    classes: ClassVar[tuple[str, ...]] = ("BatchNormalization",)
    kind: Literal["batch_norm"] = "batch_norm"
    axis: int = -1
    """With the batch axis."""
    momentum: float = Field(ge=0, le=1)
    """Share of the old statistics that stays."""
    epsilon: float = Field(gt=0)
    center: bool = True
    scale: bool = True

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        config.only("renorm", False, None)
        config.take("renorm_clipping")
        config.take("renorm_momentum")
        config.only("fused", None, True, False)
        config.only("virtual_batch_size", None)
        config.only("adjustment", None)
        return cls.made(
            axis=_axis(config.take("axis", -1)),
            momentum=config.take("momentum", 0.99),
            epsilon=config.take("epsilon", 1e-3),
            center=config.switch("center", True),
            scale=config.switch("scale", True),
        )

    def shape(self, *inputs: Shape) -> Shape:
        self._channels(inputs[0])
        return inputs[0]

    def _channels(self, shape: Shape) -> int:
        return known(shape[_place(self.axis, shape) - 1], "the number of channels")

    @property
    def _names(self) -> tuple[tuple[str, str], ...]:
        """(Keras's name, torch's) in a file's order."""
        own = (("gamma", "weight"),) * self.scale + (("beta", "bias"),) * self.center
        return (*own, ("moving_mean", "running_mean"), ("moving_variance", "running_var"))

    def weights(self, *inputs: Shape) -> tuple[Weight, ...]:
        channels = self._channels(inputs[0])
        return tuple(Weight(name, (channels,)) for name, _ in self._names)

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.normalising import BatchNorm as Module

        return Module(
            self._channels(inputs[0]),
            axis=_place(self.axis, inputs[0]),
            momentum=self.momentum,
            epsilon=self.epsilon,
            center=self.center,
            scale=self.scale,
        )

    def to_torch(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array for (_, name), array in zip(self._names, arrays, strict=True)}

    def to_keras(self, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [state[name] for _, name in self._names]

    def written(self) -> tuple[str, dict[str, Any]]:
        return "BatchNormalization", {
            "axis": self.axis,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
        }


class LayerNorm(Layer):
    classes: ClassVar[tuple[str, ...]] = ("LayerNormalization",)
    with_mask: ClassVar[WithMask] = "kept"
    kind: Literal["layer_norm"] = "layer_norm"
    axis: int = -1
    """With the batch axis: the last one."""
    epsilon: float = Field(gt=0)
    center: bool = True
    scale: bool = True

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        config.only("rms_scaling", False)
        return cls.made(
            axis=_axis(config.take("axis", -1)),
            epsilon=config.take("epsilon", 1e-3),
            center=config.switch("center", True),
            scale=config.switch("scale", True),
        )

    def shape(self, *inputs: Shape) -> Shape:
        self._features(inputs[0])
        return inputs[0]

    def _features(self, shape: Shape) -> int:
        return known(shape[_last(self.axis, shape) - 1], "the number of features")

    @property
    def _names(self) -> tuple[tuple[str, str], ...]:
        return (("gamma", "weight"),) * self.scale + (("beta", "bias"),) * self.center

    def weights(self, *inputs: Shape) -> tuple[Weight, ...]:
        features = self._features(inputs[0])
        return tuple(Weight(name, (features,)) for name, _ in self._names)

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.normalising import LayerNorm as Module

        return Module(self._features(inputs[0]), epsilon=self.epsilon, center=self.center, scale=self.scale)

    def to_torch(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array for (_, name), array in zip(self._names, arrays, strict=True)}

    def to_keras(self, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [state[name] for _, name in self._names]

    def written(self) -> tuple[str, dict[str, Any]]:
        return "LayerNormalization", {
            "axis": -1,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "rms_scaling": False,
        }


class Normalization(Layer):
    """(x - mean) / standard deviation, of numbers that were measured before: of the last axis, or of all values."""

    classes: ClassVar[tuple[str, ...]] = ("Normalization",)
    kind: Literal["normalization"] = "normalization"
    axis: int | None = -1
    """With the batch axis: the last one; None: all values by one mean and variance."""
    mean: tuple[float, ...] | None = None
    variance: tuple[float, ...] | None = None
    """Where the file's settings give them; else its weights do."""

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        config.only("invert", False)
        axis = config.take("axis", -1)
        given = [_flat(config.take(key), key) for key in ("mean", "variance")]
        if (given[0] is None) != (given[1] is None):
            raise Refused("mean without variance, or variance without mean")
        axis = None if axis in (None, []) else _axis(axis)
        return cls.made(axis=axis, mean=given[0], variance=given[1])

    def shape(self, *inputs: Shape) -> Shape:
        features = self._shape(inputs[0])
        for given in (self.mean, self.variance):
            if given is not None and len(given) not in (1, *features):
                raise Refused("mean and variance are not as many as there are features", found=str(len(given)))
        return inputs[0]

    def _shape(self, shape: Shape) -> tuple[int, ...]:
        if self.axis is None:
            return ()
        return (known(shape[_last(self.axis, shape) - 1], "the number of features"),)

    def weights(self, *inputs: Shape) -> tuple[Weight, ...]:
        if self.mean is not None:
            return ()
        shape = self._shape(inputs[0])
        return Weight("mean", shape), Weight("variance", shape), Weight("count", ())

    def module(self, *inputs: Shape) -> nn.Module:
        from medray.learning.keras.modules.normalising import Measured

        return Measured(self._shape(inputs[0]), self.mean, self.variance)

    def to_torch(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return {} if self.mean is not None else {"mean": arrays[0], "variance": arrays[1]}

    def to_keras(self, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if self.mean is not None:
            return []
        arrays = [state["mean"], state["variance"]]  # of a bundle, where a single number is a list of one
        return [*(array.reshape(()) if self.axis is None else array for array in arrays), np.zeros((), np.int32)]

    def written(self) -> tuple[str, dict[str, Any]]:
        given = [None if each is None else list(each) for each in (self.mean, self.variance)]
        return "Normalization", {"axis": self.axis, "invert": False, "mean": given[0], "variance": given[1]}


def _flat(found: Any, key: str) -> list[float] | None:
    """Numbers in lists of length 1, or in one list."""
    while isinstance(found, list) and len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    if found is None:
        return None
    numbers = found if isinstance(found, list) else [found]
    if not numbers or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise Refused(f"{key} is not a list of numbers", found=shown(found))
    return [float(n) for n in numbers]
