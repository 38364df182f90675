"""Layers of several inputs."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from medray.learning.keras.layers.base import Config, Layer
from medray.learning.keras.shapes import Shape, described
from medray.learning.refusal import Refused, shown

if TYPE_CHECKING:
    from torch import nn

NAMES = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")


class Merge(Layer):
    """Number by number; an axis of length 1 stands for any length."""

    classes: ClassVar[tuple[str, ...]] = NAMES
    many: ClassVar[bool] = True
    kind: Literal["merge"] = "merge"
    how: Literal["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"]

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        return cls.made(how=name)

    def shape(self, *inputs: Shape) -> Shape:
        wrong = len(inputs) < 2 or (self.how == "Subtract" and len(inputs) != 2)
        if wrong or len({len(each) for each in inputs}) != 1:
            raise Refused("inputs that cannot be merged", found=", ".join(map(described, inputs)))
        merged: list[int | None] = []
        for lengths in zip(*inputs, strict=True):
            different = {n for n in lengths if n != 1}
            if len(different) > 1:
                raise Refused("inputs that cannot be merged", found=", ".join(map(described, inputs)))
            merged.append(different.pop() if different else 1)
        return tuple(merged)

    def module(self, *inputs: Shape) -> nn.Module:
        import torch

        how = self.how
        pair: Any = {
            "Subtract": torch.sub, "Multiply": torch.mul, "Maximum": torch.maximum, "Minimum": torch.minimum,
        }.get(how, torch.add)  # fmt: skip

        def merged(*values):  # each (B, …)
            whole = reduce(pair, values)
            return whole / len(values) if how == "Average" else whole

        return self._module(merged)

    def written(self) -> tuple[str, dict[str, Any]]:
        return self.how, {}


class Concatenate(Layer):
    classes: ClassVar[tuple[str, ...]] = ("Concatenate",)
    many: ClassVar[bool] = True
    kind: Literal["concatenate"] = "concatenate"
    axis: int = -1
    """With the batch axis."""

    @classmethod
    def read(cls, name: str, config: Config) -> Layer:
        axis = config.take("axis", -1)
        if not isinstance(axis, int) or isinstance(axis, bool):
            raise Refused("axis is no number", found=shown(axis))
        return cls.made(axis=axis)

    def shape(self, *inputs: Shape) -> Shape:
        place = (self.axis if self.axis >= 0 else self.axis + len(inputs[0]) + 1) - 1
        rest = {(*each[:place], *each[place + 1 :]) for each in inputs if 0 <= place < len(each)}
        if len(inputs) < 2 or len({len(each) for each in inputs}) != 1 or len(rest) != 1:
            raise Refused("inputs that cannot be put together", found=", ".join(map(described, inputs)))
        lengths = [each[place] for each in inputs]
        whole = None if None in lengths else sum(n or 0 for n in lengths)
        return (*inputs[0][:place], whole, *inputs[0][place + 1 :])

    def module(self, *inputs: Shape) -> nn.Module:
        import torch

        axis = self.axis
        return self._module(lambda *values: torch.cat(values, axis))

    def written(self) -> tuple[str, dict[str, Any]]:
        return "Concatenate", {"axis": self.axis}
