"""The learning curve: losses and validation metrics over the epochs of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from medray.learning.charts import COLOURS, Chart, Curve, Line, Mark, Panel
from medray.learning.objectives.base import Objective
from medray.reports.drawing import png

if TYPE_CHECKING:
    import pyarrow as pa

EpochMetrics = Mapping[str, int | float | None]
"""One epoch: `epoch`, `train_loss`, `loss` (of validation) and metrics by their names; None is a gap."""
LOSSES = {"train_loss": "train", "loss": "validation"}


def learning_curve(
    history: pa.Table | Sequence[EpochMetrics], objective: Objective, best_epoch: int | None = None
) -> bytes:
    """PNG: losses on the left, metrics of the objective on the right. Works from the first epoch on."""
    return png(learning_chart(history, objective, best_epoch))


def learning_chart(
    history: pa.Table | Sequence[EpochMetrics], objective: Objective, best_epoch: int | None = None
) -> Chart:
    """What `learning_curve` draws, for a page."""
    rows = _rows(history)
    known = [name for name in objective.scalar_metrics() if _known(rows, name)]
    shown = [name for name in objective.curve_metrics() if name in known] or known
    metrics = {name: objective.metric(name).title for name in shown}
    panels = [
        _panel(rows, {name: title for name, title in titles.items() if _known(rows, name)}, y, best_epoch)
        for titles, y in ((LOSSES, "Loss"), (metrics, "Validation metrics"))
    ]
    kept = "" if best_epoch is None else f"; the weights of epoch {best_epoch} were kept"
    caption = f"{len(rows)} epochs{kept}." if len(rows) > 1 else "1 epoch."
    alt = f"Training and validation loss and validation metrics over {caption}"
    return Chart("Learning curve", caption, alt, panels, size=(9, 3.4), wide=True)


def _rows(history: pa.Table | Sequence[EpochMetrics]) -> Sequence[EpochMetrics]:
    return cast("Sequence[EpochMetrics]", history if isinstance(history, Sequence) else history.to_pylist())


def _known(rows: Sequence[EpochMetrics], name: str) -> bool:
    return any(row.get(name) is not None for row in rows)


def _panel(rows: Sequence[EpochMetrics], titles: Mapping[str, str], y: str, best_epoch: int | None) -> Panel:
    epochs = np.array([row["epoch"] for row in rows])
    marks: list[Mark] = []
    for colour, (name, title) in enumerate(list(titles.items())[:COLOURS]):
        values = np.array([np.nan if (value := row.get(name)) is None else value for row in rows], np.float64)
        marks.append(Curve(epochs, values, colour, title, width=1.5, dots=3))
    if best_epoch is not None:
        marks.append(Line(best_epoch, "x", label=f"kept: epoch {best_epoch}", dash="dotted"))
    return Panel(marks, "Epoch", y, legend=bool(titles), whole="x")
