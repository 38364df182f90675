"""Two sequences that differ in their middle, as a variant's two alleles do: what they share is computed once.

A convolution sees a few neighbours of a position, so a changed position changes a stretch of what leaves each layer and
nothing else. Of the second sequence only that stretch is computed; the rest is the first one's. Whether a pair is computed so
follows from that pair alone, and all batches have one shape: no score hangs on the others of a batch (`fixed_batches.py`).
"""

# R rows, N samples, V views of a sequence, P pairs, T position, F feature, K output

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from medray.learning.fixed_batches import Tensors

if TYPE_CHECKING:
    from torch import Tensor


class ComparesPairs(Protocol):
    """A network that computes pairs."""

    def of_pairs(self, first_PTF: Tensor, second_P1F: Tensor, at: int) -> tuple[Tensor, Tensor]:
        """Logits (P, K) of sequences that are valid throughout, and of those that have `second_P1F` at position `at` instead."""
        ...


@dataclass(frozen=True)
class MiddlePairs:
    """The logits of rows that come in pairs, sample by sample: (N, 2, V) rows."""

    network: ComparesPairs
    views: int
    """V."""
    pairs: int
    """P of a batch."""

    def __call__(self, given: Tensors, others: Callable[[Tensors], Tensor]) -> Tensor:
        """Logits (R, K) of `sequence` (R, T, F) and `mask` (R, T). `others` computes the rows of pairs that differ otherwise."""
        import torch

        sequence, mask = given["sequence"], given["mask"]
        count, steps = mask.shape
        paired = sequence.unflatten(0, (-1, 2, self.views))
        differs_NVT = (paired[:, 0] != paired[:, 1]).any(-1)
        whole_NV = mask.unflatten(0, (-1, 2, self.views)).all(-1).all(1)
        single_NV = whole_NV & (differs_NVT.sum(-1) == 1)
        place_N2V = torch.arange(count).unflatten(0, (-1, 2, self.views))
        logits: Tensor | None = None
        left = torch.ones_like(single_NV)
        for at in sorted({(steps - 1) // 2, steps // 2}):
            chosen_NV = single_NV & differs_NVT[..., at]
            left &= ~chosen_NV
            places_2P = torch.stack([place_N2V[:, 0][chosen_NV], place_N2V[:, 1][chosen_NV]])
            for places in places_2P.split(self.pairs, 1) if places_2P.numel() else ():
                logits = _placed(logits, count, places.flatten(), self._batch(sequence, places, at))
        if left.any():
            places = place_N2V[left.unsqueeze(1).expand_as(place_N2V)]
            rest = given if len(places) == count else {name: value[places] for name, value in given.items()}
            logits = _placed(logits, count, places, others(rest))
        if logits is None:
            raise ValueError("a batch without rows")
        return logits

    def _batch(self, sequence: Tensor, places_2P: Tensor, at: int) -> Tensor:
        """Logits (2 x P, K), the first sequences' before the second ones'; computed with as many pairs as ever."""
        import torch

        count = places_2P.shape[1]
        short = self.pairs - count
        filled = torch.cat([places_2P, places_2P[:, :1].expand(2, short)], 1) if short else places_2P
        both = self.network.of_pairs(sequence[filled[0]], sequence[filled[1], at : at + 1], at)
        return torch.cat([logits[:count] for logits in both])


def _placed(logits: Tensor | None, count: int, places: Tensor, found: Tensor) -> Tensor:
    """`found` at its places of all logits, which are made where there are none yet."""
    if logits is None:
        logits = found.new_empty((count, *found.shape[1:]))
    logits[places] = found
    return logits
