"""Charts as data: what an objective has to show of an evaluation, drawn by the reports. No matplotlib here.

A `Chart` is panels of marks, drawn in their order; a `Matrix` is counts of true against called classes.
P point, K class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Colour = int | Literal["ink", "faint", "grey"]
"""A place in the palette of the house, from 0; or that of text, of what stands behind, of a curve among many."""
COLOURS = 8
"""Places in the palette."""
Dash = Literal["solid", "dashed", "dotted"]


@dataclass(frozen=True)
class Curve:
    """A line through points x (P,), y (P,)."""

    x: np.ndarray
    y: np.ndarray
    colour: Colour = 0
    label: str | None = None
    width: float = 1.6
    dash: Dash = "solid"
    steps: bool = False
    """Each y holds from the x before it to its own."""
    dots: float = 0.0
    """Size of the dots at the points; 0: none."""
    layer: int | None = None
    """What is in a higher one lies above; None: where its kind of mark usually lies."""


@dataclass(frozen=True)
class Dots:
    """Points x (P,), y (P,) without a line."""

    x: np.ndarray
    y: np.ndarray
    colour: Colour = 0
    label: str | None = None
    size: float = 3
    many: bool = False
    """Let them shine through each other."""
    layer: int | None = None


@dataclass(frozen=True)
class Line:
    """A straight line across the panel, at one value."""

    at: float
    axis: Literal["x", "y"]
    """Axis of which `at` is a value: a line at an x is upright."""
    colour: Colour = "faint"
    label: str | None = None
    width: float = 1
    dash: Dash = "solid"


@dataclass(frozen=True)
class Intervals:
    """Points x (P,), y (P,) joined by a line, with the interval from low (P,) to high (P,) of each."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    colour: Colour = 0


@dataclass(frozen=True)
class Bars:
    """Bars of one width around x (P,), from 0 to heights (P,)."""

    x: np.ndarray
    heights: np.ndarray
    width: float
    colour: Colour = "faint"


@dataclass(frozen=True)
class Histogram:
    """Counts (P,) between edges (P + 1,), as an outline over a lighter surface."""

    counts: np.ndarray
    edges: np.ndarray
    colour: Colour = 0
    label: str | None = None


Mark = Curve | Dots | Line | Intervals | Bars | Histogram


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    marks: Sequence[Mark]
    x: str
    """Says what the axis shows; "" where the panel below says it."""
    y: str
    legend: bool | str = False
    """Whether the names of its marks stand above it. A place inside of it, which plug-ins of earlier versions name, is a yes."""
    unit: bool = False
    """Both axes run from 0 to 1."""
    x_limits: tuple[float, float] | None = None
    x_numbers: bool = True
    whole: Literal["x", "y"] | None = None
    """The axis that counts: whole numbers alone stand at it."""
    most: int = 8
    """Numbers at that axis."""


@dataclass(frozen=True)
class Chart:
    """Panels with a title, a caption and a text for those who cannot see them."""

    title: str
    caption: str
    alt: str
    panels: Sequence[Panel]
    size: tuple[float, float] = (4.6, 4.3)
    """Width and height in inches."""
    heights: tuple[float, ...] | None = None
    """Parts of the height, for panels below each other; None: panels stand beside each other."""
    wide: bool = False
    """Takes a whole row of the page."""


@dataclass(frozen=True)
class Matrix:
    """Counts (K, K) with their share of the row: true classes in rows, called ones in columns."""

    title: str
    caption: str
    alt: str
    names: Sequence[str]
    counts: np.ndarray
    wide: bool = False


def shortened(name: str, most: int = 24) -> str:
    """At most `most` characters: the middle is left out, since names of one kind often differ at their ends."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"
