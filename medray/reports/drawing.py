"""What all pictures share: the canvas, colours and labels of the house. matplotlib, Agg; no pyplot, no global style."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Canvas
    from matplotlib.typing import LegendLocType

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F7F7F")
"""Okabe & Ito's palette: told apart by colour-blind readers; ordered for contrast on white."""
INK, FAINT, GRID = "#222222", "#767676", "#DDDDDD"


@dataclass(frozen=True)
class Figure:
    title: str
    caption: str
    alt: str
    data: bytes
    format: Literal["svg", "png"] = "svg"
    wide: bool = False
    """Takes a whole row of the page."""


def blank(
    width: float, height: float, *, rows: int = 1, columns: int = 1, heights: Sequence[float] | None = None
) -> tuple[Canvas, list[Axes]]:
    """A figure of width × height inches and its axes, in the house style."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    axes = list(np.ravel(canvas.subplots(rows, columns, height_ratios=heights)))
    for axis in axes:
        axis.set_facecolor("white")
        axis.set_axisbelow(True)
        axis.grid(True, color=GRID, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(labelsize=9, colors=INK, color=FAINT)
    return canvas, axes


def labelled(axis: Axes, x: str, y: str, *, legend: bool = False, place: LegendLocType = "best") -> None:
    axis.set_xlabel(x, fontsize=10, color=INK)
    axis.set_ylabel(y, fontsize=10, color=INK)
    if legend:
        axis.legend(loc=place, fontsize=9, frameon=True, framealpha=0.85, edgecolor="none", labelcolor=INK)


def whole_ticks(axis: Axis, most: int = 8) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=most, integer=True))


def unit_square(axis: Axes) -> None:
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    axis.set_xticks(ticks)
    axis.set_yticks(ticks)


def saved(canvas: Canvas, kind: Literal["svg", "png"] = "svg") -> bytes:
    from matplotlib import rc_context

    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "medray", "svg.fonttype": "path"}):  # ids in an SVG stay the same from run to run
        canvas.savefig(stream, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return stream.getvalue()


def shortened(name: str, most: int = 24) -> str:
    """At most `most` characters: the middle is left out, since names of one kind often differ at their ends."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"
