"""What is to be seen of a sample, as data: an array of pixels, a strip of letters, shares along a sequence, events over time.

Reports draw them (`medray.reports.samples`). No id, no date and no free text is in them. L letter, P piece, K kind, E event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Colour = int | Literal["ink", "faint", "grey"]
"""A place in the palette of the reports, from 0; or that of text, of what stands behind, of what is not known."""


@dataclass(frozen=True)
class Strip:
    """Lines of cells, a cell for each letter, coloured by its kind."""

    lines: Sequence[tuple[str, np.ndarray]]
    """What stands on the left of a line, and its cells: (L,) int, a place in `kinds`; -1: nothing is there."""
    kinds: Sequence[tuple[str, Colour]]
    """Name and colour of each kind."""
    x: str
    """Says what a line is."""
    alt: str
    """For those who cannot see it."""


@dataclass(frozen=True)
class Shares:
    """The share of each kind in the pieces of something long, one above the other."""

    edges: np.ndarray
    """(P + 1,) where the pieces begin and end, ascending."""
    shares: np.ndarray
    """(P, K) float, each row adds up to 1."""
    kinds: Sequence[tuple[str, Colour]]
    x: str
    alt: str


@dataclass(frozen=True)
class Timeline:
    """Events before a moment: a line for each kind of event, higher in it where the number is greater."""

    lines: Sequence[tuple[str, np.ndarray, np.ndarray]]
    """Name, (E,) how long before the moment each event was, in the unit of `x`, and (E,) its number; NaN: it has none."""
    x: str
    alt: str


SamplePicture = np.ndarray | Strip | Shares | Timeline
"""An array is uint8 (H, W) or (H, W, 3)."""
