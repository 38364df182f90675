"""How pictures are drawn: charts in the canvas, colours and labels of the house. matplotlib, Agg; no pyplot, no global style.

Same input, same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from medray.learning.charts import (
    Bars,
    Chart,
    Colour,
    Curve,
    Dots,
    Histogram,
    Intervals,
    Line,
    Mark,
    Matrix,
    Panel,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Canvas

COLOURS = ("#0072B2", "#C75300", "#00875F", "#B4558B", "#A87000", "#2A8FCB", "#8C564B", "#767676")
"""Okabe & Ito's palette, which colour-blind readers tell apart, as dark as 3 to 1 on white asks for."""
INK, FAINT, GRID, GREY = "#1C1F23", "#6E6E6E", "#DDDDDD", "#949494"
CELL, STRONG = "#08306B", "#FFFFFE"
"""The cells of a matrix, and the numbers in full ones; not quite white, which is the page."""
NAMED = {
    **{colour.lower(): f"c{place}" for place, colour in enumerate(COLOURS[:7])},
    INK.lower(): "ink", FAINT.lower(): "faint", GRID.lower(): "grid", GREY.lower(): "grey", "#767676": "c7",
    CELL.lower(): "cell", STRONG.lower(): "strong", "#ffffff": "back",
}  # fmt: skip
"""Colour to its name in page.css, whose value follows the reader's choice of light or dark."""
DASHES = {"solid": "-", "dashed": "--", "dotted": ":"}
MANY = 2000
"""Dots above which they are a picture within the picture, which stays small."""


@dataclass(frozen=True)
class Figure:
    title: str
    caption: str
    alt: str
    svg: bytes
    wide: bool = False
    """Takes a whole row of the page."""


def figure(chart: Chart | Matrix) -> Figure:
    """A chart as SVG."""
    canvas = _matrix(chart) if isinstance(chart, Matrix) else _panels(chart)
    return Figure(chart.title, chart.caption, chart.alt, saved(canvas), wide=chart.wide)


def png(chart: Chart) -> bytes:
    """A chart as PNG, without its words."""
    return saved(_panels(chart), "png")


# --- charts -----------------------------------------------------------------------------------------------------


def _panels(chart: Chart) -> Canvas:
    count = len(chart.panels)
    below = chart.heights is not None
    width, height = chart.size
    columns = 1 if below else count
    rows = max((_legend_rows(panel, width / columns) for panel in chart.panels), default=0)
    canvas, axes = blank(
        width, height + 0.2 * max(0, rows - 1), rows=count if below else 1, columns=columns, heights=chart.heights
    )
    for axis, panel in zip(axes, chart.panels, strict=True):
        _panel(axis, panel, width / columns)
    return canvas


def _legend_names(panel: Panel) -> list[str]:
    return [mark.label for mark in panel.marks if not isinstance(mark, Bars | Intervals) and mark.label]


def _legend_columns(names: Sequence[str], width: float) -> int:
    """Columns of a legend in a panel of `width` inches."""
    each = 0.55 + 0.085 * max(map(len, names))  # handle and letters of 9 points, as wide as the widest fonts have them
    return max(1, min(len(names), int((width - 0.5) / each)))


def _legend_rows(panel: Panel, width: float) -> int:
    names = _legend_names(panel) if panel.legend else []
    return -(-len(names) // _legend_columns(names, width)) if names else 0


def _panel(axis: Axes, panel: Panel, width: float) -> None:
    for mark in panel.marks:
        _mark(axis, mark)
    if panel.unit:
        unit_square(axis)
    if not panel.x_numbers:
        axis.set_xticklabels([])
    if panel.x_limits is not None:
        axis.set_xlim(*panel.x_limits)
    if panel.whole is not None:
        whole_ticks(axis.xaxis if panel.whole == "x" else axis.yaxis, panel.most)
    labelled(axis, panel.x, panel.y)
    if panel.legend and (names := _legend_names(panel)):
        legend_above(axis, _legend_columns(names, width))


def _mark(axis: Axes, mark: Mark) -> None:
    colour = shade(mark.colour)
    match mark:
        case Curve():
            axis.plot(
                mark.x,
                mark.y,
                color=colour,
                label=mark.label,
                linewidth=mark.width,
                linestyle=DASHES[mark.dash],
                drawstyle="steps-pre" if mark.steps else "default",
                marker="o" if mark.dots else None,
                markersize=mark.dots,
                zorder=2 if mark.layer is None else mark.layer,
            )
        case Dots():
            axis.plot(
                mark.x,
                mark.y,
                color=colour,
                label=mark.label,
                linestyle="none",
                marker="o",
                markersize=mark.size,
                alpha=0.4 if mark.many else None,
                markeredgewidth=0 if mark.many else 1,
                rasterized=mark.many and len(mark.x) > MANY,
                zorder=2 if mark.layer is None else mark.layer,
            )
        case Line():
            across = axis.axvline if mark.axis == "x" else axis.axhline
            across(mark.at, color=colour, linestyle=DASHES[mark.dash], linewidth=mark.width, label=mark.label)
        case Intervals():
            reach = np.clip([mark.y - mark.low, mark.high - mark.y], 0, None)
            axis.errorbar(
                mark.x, mark.y, reach, fmt="o-", color=colour, markersize=5, capsize=2, linewidth=1.4, elinewidth=1
            )
        case Bars():
            axis.bar(mark.x, mark.heights, mark.width, color=colour)
        case Histogram():
            axis.stairs(mark.counts, mark.edges, fill=True, color=colour, alpha=0.25)
            axis.stairs(mark.counts, mark.edges, color=colour, linewidth=1.6, label=mark.label)


def _fullness(part: float) -> float:
    """Opacity of a cell. Between 0.4 and 0.68 neither dark nor light numbers could be read, so that no cell is there."""
    return 0.8 * part if part <= 0.5 else 0.68 + 0.64 * (part - 0.5)


def _matrix(matrix: Matrix) -> Canvas:
    from matplotlib.patches import Rectangle

    width = len(matrix.names)
    counts, rows = matrix.counts, matrix.counts.sum(axis=1, keepdims=True)
    parts = np.divide(counts, rows, out=np.zeros(counts.shape), where=rows > 0)
    side = min(9.0, max(4.3, 1.6 + 0.52 * width))
    canvas, (axis,) = blank(side + 0.3, side)
    for (row, column), part in np.ndenumerate(parts):
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=CELL, alpha=_fullness(part), linewidth=0))
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(width - 0.5, -0.5)
    axis.set_aspect("equal")
    axis.grid(False)
    size = 12 if width <= 3 else 9 if width <= 12 else 8 if width <= 20 else 5
    for i, j in zip(*np.nonzero(counts), strict=True):
        label = f"{counts[i, j]}\n{parts[i, j]:.0%}" if width <= 12 else str(counts[i, j])
        colour = STRONG if parts[i, j] > 0.5 else INK
        axis.text(j, i, label, ha="center", va="center", fontsize=size, color=colour)
    shown = [shortened(name, 18) for name in matrix.names]
    turned = max(map(len, shown)) * width > 40
    axis.set_xticks(range(width), shown, rotation=40 if turned else 0, ha="right" if turned else "center")
    axis.set_yticks(range(width), shown)
    labelled(axis, "Called", "True")
    return canvas


def shade(colour: Colour) -> str:
    """The colour of a place in the palette, or of what it is for."""
    return COLOURS[colour] if isinstance(colour, int) else {"ink": INK, "faint": FAINT, "grey": GREY}[colour]


# --- the canvas -------------------------------------------------------------------------------------------------


def blank(
    width: float, height: float, *, rows: int = 1, columns: int = 1, heights: Sequence[float] | None = None
) -> tuple[Canvas, list[Axes]]:
    """A figure of width × height inches and its axes, in the house style."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    axes: list[Axes] = list(canvas.subplots(rows, columns, squeeze=False, height_ratios=heights).ravel())
    for axis in axes:
        axis.set_facecolor("white")
        axis.set_axisbelow(True)
        axis.grid(True, color=GRID, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(labelsize=9, colors=INK, color=FAINT)
    return canvas, axes


def labelled(axis: Axes, x: str, y: str) -> None:
    """Say what the axes show."""
    axis.set_xlabel(x, fontsize=10, color=INK)
    axis.set_ylabel(y, fontsize=10, color=INK)


def legend_above(axis: Axes, columns: int) -> None:
    """The legend between the top of the figure and the axes, where it hides nothing."""
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=9, frameon=False, labelcolor=INK)


def whole_ticks(axis: Axis, most: int = 8) -> None:
    """Whole numbers alone at an axis, about `most` of them."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=most, integer=True))


def unit_square(axis: Axes) -> None:
    """Both axes from 0 to 1."""
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    axis.set_xticks(ticks)
    axis.set_yticks(ticks)


def saved(canvas: Canvas, kind: Literal["svg", "png"] = "svg") -> bytes:
    """The picture as a file: SVG or PNG bytes."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "medray", "svg.fonttype": "none"}):  # ids in an SVG stay the same from run to run
        canvas.savefig(stream, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return stream.getvalue()
