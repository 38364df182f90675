"""Two sequences that differ in their middle, as a variant's two alleles do: what they share is computed once.

A convolution sees a few neighbours of a position, so a changed position changes a stretch of what leaves each layer and
nothing else. Of the second sequence only that stretch is computed; the rest is the first one's. Whether a pair is computed so
follows from its sample alone, and all batches have one shape: no score hangs on the others of a batch (`fixed_batches.py`).
"""

# N samples, V views of a sequence, P pairs, T position, F feature, K output

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from medray.modalities.inputs import PairCodes


class ComparesPairs(Protocol):
    """A network that computes pairs."""

    def of_pairs(self, first_PTF: Tensor, second_P1F: Tensor, at: int) -> tuple[Tensor, Tensor]:
        """Logits (P, K) of sequences that are valid throughout, and of those that have `second_P1F` at position `at` instead."""
        ...


@dataclass(frozen=True)
class MiddlePairs:
    """The logits of samples that are pairs of sequences, in rows (N, 2, V)."""

    network: ComparesPairs
    pairs: int
    """P of a batch."""

    def __call__(self, given: PairCodes, others: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (N x 2 x V, K). `others` computes those of the samples (n,) int64 that have a pair which differs otherwise."""
        import torch

        codes_N2VT = given.codes
        samples, _, views, steps = codes_N2VT.shape
        place_N2V = torch.arange(samples * 2 * views).reshape(samples, 2, views)
        differs_NVT = codes_N2VT[:, 0] != codes_N2VT[:, 1]
        single_NV = differs_NVT.count_nonzero(-1) == 1
        middle = sorted({(steps - 1) // 2, steps // 2})
        apart_N = ~(single_NV & differs_NVT[..., middle].any(-1)).all(1)
        if given.padding is not None:
            apart_N |= (codes_N2VT == given.padding).flatten(1).any(1)
        logits: Tensor | None = None
        for at in middle:
            chosen_NV = differs_NVT[..., at] & ~apart_N[:, None]
            places_2P = torch.stack([place_N2V[:, 0][chosen_NV], place_N2V[:, 1][chosen_NV]])
            for places in places_2P.split(self.pairs, 1) if places_2P.numel() else ():
                logits = _placed(logits, place_N2V.numel(), places.flatten(), self._batch(given, places, at))
        if apart_N.any():
            rows = apart_N.nonzero().flatten()
            logits = _placed(logits, place_N2V.numel(), place_N2V[rows].flatten(), others(rows))
        if logits is None:
            raise ValueError("a batch without rows")
        return logits

    def _batch(self, given: PairCodes, places_2P: Tensor, at: int) -> Tensor:
        """Logits (2 x P, K), the first sequences' before the second ones'; computed with as many pairs as ever."""
        import torch
        from torch.nn.functional import embedding

        count = places_2P.shape[1]
        short = self.pairs - count
        filled = torch.cat([places_2P, places_2P[:, :1].expand(2, short)], 1) if short else places_2P
        codes_RT = given.codes.flatten(0, 2)
        first_PTF = embedding(codes_RT[filled[0]].int(), given.table)
        second_P1F = embedding(codes_RT[filled[1], at : at + 1].int(), given.table)
        both = self.network.of_pairs(first_PTF, second_P1F, at)
        return torch.cat([logits[:count] for logits in both])


def _placed(logits: Tensor | None, count: int, places: Tensor, found: Tensor) -> Tensor:
    """`found` at its places of all logits, which are made where there are none yet."""
    if logits is None:
        logits = found.new_empty((count, *found.shape[1:]))
    logits[places] = found
    return logits
