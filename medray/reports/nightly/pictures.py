"""Pictures of the morning page: scores tonight and before, and the nights one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medray.learning.charts import shortened
from medray.reports.drawing import COLOURS, FAINT, Figure, blank, labelled, legend_above, saved, whole_ticks
from medray.reports.nightly.words import LEVEL_WORDS
from medray.reports.numbers import score_text
from medray.scores.drift import OutputDrift
from medray.scores.nights import NightBefore


def distribution(output: OutputDrift) -> Figure:
    """Histogram of one output's scores: tonight's as bars, the reference's as a line; shares, so that sizes compare."""
    shares = output["histogram"]
    edges = np.array(shares["edges"])
    canvas, (axis,) = blank(4.6, 3.2)
    axis.stairs(shares["tonight"], edges, fill=True, color=COLOURS[0], alpha=0.35)
    axis.stairs(shares["tonight"], edges, color=COLOURS[0], linewidth=1.2, label=f"tonight  ({output['n']:,})")
    if output["reference_n"]:
        before = f"before  ({output['reference_n']:,})"
        axis.stairs(shares["reference"], edges, color=COLOURS[1], linewidth=1.6, label=before)
    axis.set_xlim(edges[0], edges[-1])
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    labelled(axis, f"Score: {shortened(output['output'], 36)}", "Share of the scores")
    legend_above(axis, 2)
    median, before = output["quantiles"]["0.5"], output["reference_quantiles"]["0.5"]
    drift = LEVEL_WORDS[output["level"]] + ("" if output["psi"] is None else f", PSI {score_text(output['psi'])}")
    alt = f"Histogram of {output['output']}: median {score_text(median)} tonight, {score_text(before)} before; {drift}."
    return Figure(output["output"], f"Drift: {drift}.", alt, saved(canvas))


def nights(runs: Sequence[NightBefore]) -> Figure:
    """Entries and failed fraction of each run, oldest first; the last is tonight's."""
    done = np.array([run["entries"] for run in runs])
    part = np.array([run["failed"] for run in runs]) / done
    positions = np.arange(len(runs))
    colours = [FAINT] * (len(runs) - 1) + [COLOURS[0]]
    canvas, (above, below) = blank(9.4, 3.2, rows=2, heights=(1, 1))
    above.bar(positions, done, color=colours, width=0.7)
    wide = done.max() > 30 * np.median(done)  # the first run of a bundle is the whole archive
    if wide:
        above.set_yscale("log")
    below.plot(positions, part, color=COLOURS[1], marker="o", markersize=3.5)
    below.set_ylim(0, max(0.01, 1.15 * part.max()))
    below.yaxis.set_major_formatter(lambda share, _: f"{share:.1%}")
    for axis in (above, below):
        axis.set_xlim(-0.7, max(len(runs) - 0.3, 5))
    step = -(-len(runs) // 12)
    shown = positions[::-1][::step][::-1]
    above.set_xticks(shown, [])
    below.set_xticks(shown, [runs[int(i)]["began"][5:10] for i in shown])
    if not wide:
        whole_ticks(above.yaxis, 4)
    labelled(above, "", "Entries")
    labelled(below, "Month-day, UTC", "Failed")
    last = f"tonight {done[-1]:,} entries, {part[-1]:.1%} failed"
    before = (
        f"; before, {int(np.median(done[:-1])):,} entries and {np.median(part[:-1]):.1%} failed in the median"
        if len(runs) > 1
        else ""
    )
    scale = " Entries on a logarithmic scale." if wide else ""
    return Figure(
        "Entries and failures by night",
        f"Runs that scored anything; the last is tonight's.{scale}",
        f"Runs: {last}{before}.",
        saved(canvas),
        wide=True,
    )
