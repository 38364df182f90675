"""logistic: one linear layer, the transparent floor that every network is shown beside.

It reads plain summaries, side by side in this order: pixels, averaged down to at most 32² or 16³; the sequence,
every position where lengths are fixed, else the mean, last, smallest and largest valid value of each feature; how
often each code occurs; static facts; the summary. Nothing is learned but one weight per number and output.
"""

# B batch, C channel, S the spatial axes ([D,] H, W) or static facts, T position or event, F feature, N code, K output

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from medray.errors import RunFileError
from medray.learning.models.base import ModelBase
from medray.modalities.inputs import Input, Inputs

if TYPE_CHECKING:
    from torch import Tensor, nn

READS = ("pixels", "sequence", "codes", "mask", "static", "summary")
SIDE = {2: 32, 3: 16}
"""Longest side of the averaged image, by number of spatial axes."""


class LogisticSpec(ModelBase):
    """One linear layer on plain summaries of the inputs: the simple model that every network is compared with."""

    same_bits: ClassVar[bool] = True

    kind: Literal["logistic"] = "logistic"
    """The model: logistic or linear regression on the inputs, for any modality."""
    codes: Literal["log", "count", "presence"] = "log"
    """How often a code occurs: log(1 + count), count, or 1 where it occurs at all."""
    largest_flat: int = Field(default=16_384, ge=0)
    """Numbers of a fixed-length sequence up to which every position has its own weights; above it, its summary."""

    def build(self, inputs: Inputs, outputs: int) -> nn.Module:
        """Any of `pixels`, `sequence`, `codes`, `mask`, `static`, `summary` to logits (B, outputs). Raises RunFileError."""
        import torch
        from torch import nn

        from medray.learning.models import sequences

        if set(inputs) - set(READS) or set(inputs) <= {"mask"}:
            raise RunFileError(
                f"the model {self.kind!r} has no use for these inputs",
                where="[model] kind",
                found=f"inputs {sequences.described(inputs)}",
                expected="pixels, sequence, codes, static, summary or several of them, and mask",
            )
        names = [name for name in ("pixels", "sequence", "codes", "static", "summary") if name in inputs]
        widths = {name: self._width(name, inputs[name]) for name in names}
        flat = self._flat(inputs)

        class Logistic(nn.Module):
            def __init__(self, spec: LogisticSpec) -> None:
                super().__init__()
                self.counted = spec.codes
                self.linear = nn.Linear(sum(widths.values()), outputs)
                nn.init.zeros_(self.linear.weight)  # convex: what is never seen in training keeps weight 0
                nn.init.zeros_(self.linear.bias)

            def forward(self, pixels=None, sequence=None, codes=None, mask=None, static=None, summary=None):
                parts = []
                if pixels is not None:
                    parts.append(small(pixels).flatten(1))
                if sequence is not None:
                    sequence = sequences.masked(sequence.float(), mask)
                    parts.append(sequence.flatten(1) if flat else overview(sequence, mask))
                if codes is not None:
                    parts.append(bag(codes, mask, widths["codes"], self.counted))
                if (facts := sequences.facts(static, summary)) is not None:
                    parts.append(facts)
                return self.linear(torch.cat(parts, 1))

        return Logistic(self)

    def _flat(self, inputs: Inputs) -> bool:
        """Whether every position of the sequence has its own weights."""
        shape = inputs["sequence"].shape if "sequence" in inputs else (None,)
        return all(shape) and prod(n or 0 for n in shape) <= self.largest_flat

    def _width(self, name: str, given: Input) -> int:
        """How many numbers an input becomes. Raises RunFileError for an image of unknown size."""
        if name == "pixels" and (None in given.shape or len(given.shape) not in (3, 4)):
            raise RunFileError(
                f"the model {self.kind!r} needs images of one size",
                where="[model] kind",
                found=f"pixels {given.shape}",
                expected="pixels of shape (C, H, W) or (C, D, H, W)",
            )
        channels, *size = (n or 0 for n in given.shape) if name == "pixels" else (0,)
        features = given.shape[-1] or 0
        return {
            "pixels": channels * prod(min(n, SIDE.get(len(size), 1)) for n in size),
            "sequence": prod(n or 0 for n in given.shape) if self._flat({"sequence": given}) else 4 * features,
            "codes": given.categories,
            "static": features,
            "summary": features,
        }[name]


def small(pixels: Tensor) -> Tensor:
    """(B, C, *S) to the same averaged down to the sides in SIDE, where it is larger."""
    from torch.nn import functional

    most = SIDE[pixels.ndim - 2]
    if pixels.ndim == 4:
        height, width = (min(n, most) for n in pixels.shape[2:])
        return functional.adaptive_avg_pool2d(pixels.float(), (height, width))
    depth, height, width = (min(n, most) for n in pixels.shape[2:])
    return functional.adaptive_avg_pool3d(pixels.float(), (depth, height, width))


def overview(sequence_BTF: Tensor, mask_BT: Tensor | None) -> Tensor:
    """(B, 4F): mean, last, smallest and largest valid value of each feature; zeros for a row without any."""
    import torch

    from medray.learning.models import sequences

    if sequence_BTF.shape[1] == 0:
        return sequence_BTF.new_zeros(sequence_BTF.shape[0], 4 * sequence_BTF.shape[2])
    statistics = [sequences.mean, sequences.last, lambda x, m: -sequences.largest(-x, m), sequences.largest]
    return torch.cat([each(sequence_BTF, mask_BT) for each in statistics], 1)


def bag(codes_BT: Tensor, mask_BT: Tensor | None, categories: int, counted: str) -> Tensor:
    """(B, N) float32: how often each code occurs among the valid events, in whatever order."""
    import torch

    valid_BT = torch.ones_like(codes_BT, dtype=torch.float32) if mask_BT is None else mask_BT.float()
    # zeros of as many rows; made so, an exported graph takes any number
    none_BN = torch.zeros_like(valid_BT.sum(1, keepdim=True)).expand(-1, categories)
    count_BN = none_BN.scatter_add(1, codes_BT, valid_BT)
    return count_BN.log1p() if counted == "log" else count_BN if counted == "count" else count_BN.clamp(max=1)
