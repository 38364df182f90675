"""How samples are drawn: strips of letters, shares along a sequence, timelines; pixels become thumbnails elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medray.learning.charts import shortened
from medray.modalities.pictures import Colour, Shares, Strip, Timeline
from medray.reports.drawing import FAINT, INK, blank, labelled, legend_above, saved, shade

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH = 4.6
"""Inches, so that letters of 8 points can be read at the width of a phone."""
NAME = 20
"""Letters of a line's name."""
FINE = 300
"""Steps in which an event's place in a line is told apart: those closer than can be seen are drawn once."""
TALL = 0.8
"""Part of a line that its cells or events take up."""
LEGEND_COLUMNS = 5

Box = tuple[float, float, float, float]
"""x, y, width, height."""


def drawn(picture: Strip | Shares | Timeline) -> bytes:
    """SVG of a sample. Same input, same bytes."""
    match picture:
        case Strip():
            return saved(_strip(picture))
        case Shares():
            return saved(_shares(picture))
        case Timeline():
            return saved(_timeline(picture))


def cells(strip: Strip) -> dict[int, list[Box]]:
    """The cells of each kind: columns and lines from 0, a cell from its left to its right edge."""
    found: dict[int, list[Box]] = {}
    for line, (_, kinds) in enumerate(strip.lines):
        for column, kind in enumerate(kinds.tolist()):
            if kind >= 0:
                found.setdefault(kind, []).append((column + 0.06, line - TALL / 2, 0.88, TALL))
    return found


def heights(values: np.ndarray) -> np.ndarray:
    """(E,) numbers to places in a line, from 0.4 below its middle (the least) to 0.4 above; alone, and NaN, in the middle. As y
    runs downwards the greatest is -0.4."""
    known = np.isfinite(values)
    placed = np.zeros(len(values))
    if known.any():
        low, high = values[known].min(), values[known].max()
        if high > low:
            placed[known] = TALL / 2 - TALL * (values[known] - low) / (high - low)
    return placed


def _strip(strip: Strip) -> Canvas:
    canvas, (axis,) = blank(WIDTH, 1.0 + 0.2 * max(1, len(strip.lines)))
    found = cells(strip)
    for kind, boxes in sorted(found.items()):
        _boxes(axis, boxes, strip.kinds[kind][1], strip.kinds[kind][0])
    axis.set_xlim(0, max([len(kinds) for _, kinds in strip.lines], default=1))
    _lines(axis, [name for name, _ in strip.lines])
    axis.set_xticks([])
    axis.grid(False)
    axis.spines[["left", "bottom"]].set_visible(False)
    labelled(axis, strip.x, "")
    if found:
        legend_above(axis, LEGEND_COLUMNS)
    return canvas


def _shares(shares: Shares) -> Canvas:
    canvas, (axis,) = blank(WIDTH, 2.4)
    below = np.cumsum(shares.shares, axis=1) - shares.shares
    shown = np.flatnonzero(shares.shares.sum(axis=0) > 0).tolist()
    for kind in shown:
        boxes = zip(shares.edges[:-1], below[:, kind], np.diff(shares.edges), shares.shares[:, kind], strict=True)
        _boxes(axis, [box for box in boxes if box[3] > 0], shares.kinds[kind][1], shares.kinds[kind][0])
    axis.set_xlim(shares.edges[0], shares.edges[-1])
    axis.set_ylim(0, 1)
    axis.xaxis.set_major_formatter(lambda base, _: f"{base:,.0f}")
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    labelled(axis, shares.x, "Share")
    legend_above(axis, LEGEND_COLUMNS)
    return canvas


def _timeline(timeline: Timeline) -> Canvas:
    canvas, (axis,) = blank(WIDTH, 0.8 + 0.24 * len(timeline.lines))
    longest = max([float(before.max()) for _, before, _ in timeline.lines if len(before)], default=0.0) or 1.0
    for line, (_, before, values) in enumerate(timeline.lines):
        numbered = np.isfinite(values)
        places = np.column_stack([before / longest, heights(values)])
        for with_number in (True, False):
            seen = np.unique((places[numbered == with_number] * FINE).round(), axis=0) / FINE
            wide, tall = (0.012, 0.2) if with_number else (0.006, 0.5)
            _boxes(axis, [(longest * (x - wide / 2), line + y - tall / 2, longest * wide, tall) for x, y in seen.tolist()],
                   0 if with_number else "grey")  # fmt: skip
        if numbered.any():
            low, high = float(values[numbered].min()), float(values[numbered].max())
            said = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
            axis.text(1.02, line, said, transform=axis.get_yaxis_transform(), va="center", fontsize=8, color=FAINT)
    axis.set_xlim(1.02 * longest, -0.02 * longest)
    _lines(axis, [name for name, _, _ in timeline.lines])
    labelled(axis, timeline.x, "")
    return canvas


def _boxes(axis: Axes, boxes: Iterable[Box], colour: Colour, label: str | None = None) -> None:
    """All boxes of one colour, as one path."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners = [((x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)) for x, y, w, h in boxes]
    if corners:
        codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(corners)
        path = Path(np.array(corners, float).reshape(-1, 2), codes)
        axis.add_patch(PathPatch(path, facecolor=shade(colour), linewidth=0, label=label))


def _lines(axis: Axes, names: Sequence[str]) -> None:
    """A name on the left of each line, from the top."""
    axis.set_ylim(max(1, len(names)) - 0.5, -0.5)
    axis.set_yticks(range(len(names)), [shortened(name, NAME) for name in names])
    axis.tick_params(labelsize=8, colors=INK, color=FAINT)
