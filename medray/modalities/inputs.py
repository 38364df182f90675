"""What stands between a modality and a model: the names and shapes of a network's inputs.

Images give `pixels` (B, C, [D,] H, W) float32. Whatever is sequential gives some of

    sequence (B, T, F) float32   features of each position or event
    codes    (B, T) int64        category of each event; 0 is padding or unknown
    mask     (B, T) bool         where there is a position or event: first all of them, then padding
    static   (B, S) float32      facts of the sample as a whole
    summary  (B, M) float32      its events in a few numbers
"""

from __future__ import annotations

from typing import NamedTuple


class Input(NamedTuple):
    shape: tuple[int | None, ...]
    """Without the batch axis; None where a length varies."""
    categories: int = 0
    """Above 0: integer codes 0 to categories - 1; else float32 or bool."""


Inputs = dict[str, Input]
