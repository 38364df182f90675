"""Timeline of a patient as a picture: one line per code, a dot per event, coloured by how high its number is."""

from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from medray.errors import SampleError
from medray.modalities.ehr.inspection import HOUR_US, INSPECTED, first_time, patient_rows
from medray.modalities.ehr.meds.archive import MedsArchive
from medray.modalities.ehr.meds.file import STATIC

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, GRID = "#222222", "#767676", "#DDDDDD"
"""As in medray.reports, which modalities must not import."""
LINES = 24


def timeline_figure(uri: str) -> bytes:
    """PNG of PATH#subject_id: the most frequent codes from the top, hours (or days) since the first event.

    Colour: a number's place between the least (blue) and the greatest (red) of its code for this patient; black: no
    number. Codes beyond the first 24 are counted in the title. Same input, same bytes. Raises SampleError.
    """
    path, _, piece = uri.partition("#")
    archive = MedsArchive(INSPECTED)
    rows = patient_rows(archive, path, piece)
    first = first_time(archive, rows)
    rows = rows.take((rows.time != STATIC) & (rows.time >= first))
    if not len(rows.code):
        raise SampleError("no_events", "only static facts, so there is no timeline to draw")
    names = archive.codes.names
    counts: Counter[int] = Counter(rows.code.tolist())
    lines = sorted(counts, key=lambda code: (-counts[code], names[code]))[:LINES]
    hours = (rows.time - first) / HOUR_US
    days = bool(hours.max() > 14 * 24)
    return _drawn(
        [names[code] for code in lines],
        [(hours[rows.code == code] / (24 if days else 1), rows.value[rows.code == code]) for code in lines],
        "Days since the first event" if days else "Hours since the first event",
        len(counts) - len(lines),
    )


def _drawn(names: list[str], events: list[tuple[np.ndarray, np.ndarray]], unit: str, left_out: int) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9.4, 1.1 + 0.24 * len(names)), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    axis = canvas.subplots()
    for line, (time, value) in enumerate(events):
        known = np.isfinite(value)
        axis.plot(time[~known], np.full(np.count_nonzero(~known), line), "|", color=INK, markersize=9)
        if known.any():
            low, high = float(value[known].min()), float(value[known].max())
            shade = (value[known] - low) / (high - low) if high > low else np.full(np.count_nonzero(known), 0.5)
            axis.scatter(
                time[known], np.full(np.count_nonzero(known), line), c=shade, cmap="coolwarm", vmin=0, vmax=1, s=14
            )
            axis.text(1.01, line, f"{low:.4g} to {high:.4g}", transform=axis.get_yaxis_transform(), va="center",
                      fontsize=7, color=FAINT)  # fmt: skip
    _styled(axis, names, unit)
    if left_out:
        axis.set_title(f"{left_out} further codes are not drawn", fontsize=9, color=FAINT, loc="left")
    stream = io.BytesIO()
    canvas.savefig(stream, format="png", dpi=150, metadata={"Software": None})
    return stream.getvalue()


def _styled(axis: Axes, names: list[str], unit: str) -> None:
    axis.set_yticks(range(len(names)), [name if len(name) <= 40 else f"{name[:28]}…{name[-11:]}" for name in names])
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(unit, fontsize=10, color=INK)
    axis.set_axisbelow(True)
    axis.grid(True, color=GRID, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(FAINT)
    axis.tick_params(labelsize=8, colors=INK, color=FAINT)
