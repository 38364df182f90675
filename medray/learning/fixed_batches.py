"""Batches of one shape: a row's numbers depend neither on how many rows are computed with it nor on which.

Libraries choose their kernels, and with them the order of sums, by the shape of a batch. Here every batch has the same
number of rows: the last one is filled up with its own first row. Where lengths vary, a row is padded to a class that follows
from its own length alone.
"""

# B batch, T position or event, K output

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from medray.modalities.inputs import Inputs

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "dict[str, Tensor]"
NUMBER_BYTES = 4
TYPICAL_LENGTH = 128
"""Events that a batch is sized for where their number varies."""
LEAST_LENGTH = 8
BLOCK = 64
"""Samples whose scores are made of logits at once: a multiple of every vector unit, so that no row is left to scalar code,
which rounds otherwise."""


def fixed_rows(inputs: Inputs, most: int, most_bytes: int) -> int:
    """Rows of a batch by what the network reads alone: a power of two, at most `most`, and `most_bytes` of inputs."""
    numbers = sum(math.prod(TYPICAL_LENGTH if n is None else n for n in each.shape) for each in inputs.values())
    fitting = max(1, min(most, most_bytes // max(1, NUMBER_BYTES * numbers)))
    return 1 << (fitting.bit_length() - 1)


def length_class(length: int) -> int:
    """The least of 8, 12, 16, 24, 32, 48 … that is not below `length`: at most half as long again."""
    power = LEAST_LENGTH
    while power < length:
        if power * 3 // 2 >= length:
            return power * 3 // 2
        power *= 2
    return power


def varying_axes(inputs: Inputs) -> dict[str, int]:
    """Inputs whose length varies to the axis, of the whole batch, along which it does."""
    return {name: each.shape.index(None) + 1 for name, each in inputs.items() if None in each.shape}


@dataclass(frozen=True)
class FixedBatches:
    """How a network's inputs are cut into batches of one shape."""

    rows: int
    axes: dict[str, int]
    """As `varying_axes` gives them; not empty: the inputs have a `mask`, which tells each row's length."""
    apart: bool = False
    """Rows that are valid throughout, by their `mask`, share no batch with others: a network may leave the mask out for
    them."""

    def __call__(self, given: Tensors, forward: Callable[[Tensors], Tensor]) -> Tensor:
        """Logits (B, K) of inputs (B, …), which `forward` computes `rows` at a time."""
        count = len(next(iter(given.values())))
        logits: Tensor | None = None
        for places, inputs in self._groups(given, count):
            for start in range(0, len(places), self.rows):
                taken = places[start : start + self.rows]
                found = forward(self._batch(inputs, taken))[: len(taken)]
                if logits is None:
                    logits = found.new_empty((count, *found.shape[1:]))
                logits[taken] = found
        if logits is None:
            raise ValueError("a batch without rows")
        return logits

    def _groups(self, given: Tensors, count: int) -> Iterator[tuple[Tensor, Tensors]]:
        """Places (N,) of rows that may share a batch, and the inputs of all rows as long as these need them."""
        import torch

        everywhere = torch.arange(count)
        if self.axes:
            classes = [length_class(length) for length in given["mask"].sum(1).tolist()]
            for steps in sorted(set(classes)):
                places = torch.tensor([place for place, each in enumerate(classes) if each == steps])
                yield places, {name: self._of_length(name, value, steps) for name, value in given.items()}
        elif self.apart and "mask" in given:
            whole = given["mask"].flatten(1).all(1).cpu()
            yield from ((everywhere[each], given) for each in (whole, ~whole) if each.any())
        else:
            yield everywhere, given

    def _of_length(self, name: str, value: Tensor, steps: int) -> Tensor:
        """(B, …) cut or padded with zeros to so many steps, where the input's length varies."""
        import torch

        axis = self.axes.get(name)
        if axis is None or value.shape[axis] == steps:
            return value
        if value.shape[axis] > steps:
            return value.narrow(axis, 0, steps)
        behind = value.new_zeros([steps - n if i == axis else n for i, n in enumerate(value.shape)])
        return torch.cat([value, behind], axis)

    def _batch(self, inputs: Tensors, places: Tensor) -> Tensors:
        import torch

        first, short = int(places[0]), self.rows - len(places)
        if not short and int(places[-1]) - first == self.rows - 1:  # places ascend: these are rows side by side
            return {name: value.narrow(0, first, self.rows) for name, value in inputs.items()}
        filled = torch.cat([places, places[:1].expand(short)]) if short else places
        return {name: value.index_select(0, filled.to(value.device)) for name, value in inputs.items()}


def in_blocks(logits: Tensor, samples: int, scores: Callable[[Tensor], Tensor | None]) -> Tensor | None:
    """`scores` of logits (samples x views, K), computed for BLOCK samples at a time, the last filled up with its first one."""
    import torch

    views = len(logits) // samples
    found: list[Tensor] = []
    for start in range(0, samples, BLOCK):
        piece = logits[start * views : (start + BLOCK) * views]
        count = len(piece) // views
        filled = torch.cat([piece, *[piece[:views]] * (BLOCK - count)]) if count < BLOCK else piece
        made = scores(filled)
        if made is None:
            return None
        found.append(made[: len(made) * count // BLOCK])
    return torch.cat(found)
