"""What stands between a modality and a model: the names and shapes of a network's inputs.

Images give `pixels` (B, C, [D,] H, W) float32. Whatever is sequential gives some of

    sequence (B, T, F) float32   features of each position or event
    codes    (B, T) int64        category of each event; 0 is padding or unknown
    mask     (B, T) bool         where there is a position or event: first all of them, then padding
    static   (B, S) float32      facts of the sample as a whole
    summary  (B, M) float32      its events in a few numbers
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Input(NamedTuple):
    shape: tuple[int | None, ...]
    """Without the batch axis; None where a length varies."""
    categories: int = 0
    """Above 0: integer codes 0 to categories - 1; else float32 or bool."""


Inputs = dict[str, Input]


class PairCodes(NamedTuple):
    """Samples that are pairs of sequences, before they become `sequence` and `mask`."""

    codes: Tensor
    """(N, 2, V, T) uint8: of N samples two sequences, V views of each, T positions."""
    table: Tensor
    """(256, F) float32: the features of each code."""
    padding: int | None
    """The code of a position that is none; None: all are."""
