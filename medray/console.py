"""What a person sees on the terminal: progress bars, tables and errors, all on stderr; stdout is for results."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

METRICS = ("train_loss", "loss", "auroc", "accuracy", "balanced_accuracy", "rmse", "samples_per_second")
"""Columns of the epoch table, in this order, where training reports them."""


class Terminal:
    """Progress as bars on a terminal, as plain lines elsewhere (`verbose`), or as nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and not quiet
        self.bars: Bars | None = None
        self.task: Any = None
        self.failed = 0
        self.shown_epochs = 0

    def begin(self, name: str, total: int) -> None:
        self._end()
        self.failed = 0
        if self.live and total:
            self._bar(name, total)

    def advance(self, done: int, failed: int) -> None:
        self.failed += failed
        if self.bars is not None:
            note = f"{self.failed} failed" if self.failed else ""
            self.bars.update(self.task, advance=done, note=note)

    def training(self, live: dict[str, Any]) -> None:
        total = live["epochs"] * live["steps"]
        if self.live and (self.bars is None or self.bars.tasks[0].description != "train"):
            self._end()
            self._bar("train", total)
        if self.bars is not None:
            done = live["epoch"] * live["steps"] + live["step"]
            note = f"epoch {min(live['epoch'] + 1, live['epochs'])} of {live['epochs']}"
            self.bars.update(self.task, completed=done, note=note)
        history = live["history"]
        if len(history) < self.shown_epochs:  # resumed from an earlier checkpoint after a failure
            self.shown_epochs = len(history)
        for row in history[self.shown_epochs :]:
            self.line(epoch_line(row))
        self.shown_epochs = len(history)
        if live["stopped"]:
            self._end()

    def note(self, text: str) -> None:
        self.line(text)

    def line(self, text: str) -> None:
        if self.live:
            self.console.print(text, markup=False)

    def close(self) -> None:
        self._end()

    def _bar(self, name: str, total: int) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bars = Bars(*columns, console=self.console, transient=False)
        self.task = self.bars.add_task(name, total=total, note="")
        self.bars.start()

    def _end(self) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = None


def epoch_line(row: dict[str, Any]) -> str:
    """One epoch as a line: its number, losses, the field's usual metrics, speed."""
    shown = [f"{name} {number(row[name])}" for name in METRICS if row.get(name) is not None]
    return f"epoch {row['epoch']:>3}  " + "  ".join(shown)


def number(value: Any) -> str:
    """A number as a person reads it: thousands grouped, four significant digits below them."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def facts_table(title: str, rows: list[tuple[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(name, number(value))
    return table


def rows_table(title: str, rows: list[dict[str, Any]]) -> Table:
    """A list of equal records as a table."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in rows[0] if rows else []:
        table.add_column(name, justify="right" if isinstance(rows[0][name], (int, float)) else "left")
    for row in rows:
        table.add_row(*(number(value) for value in row.values()))
    return table


def print_error(text: str) -> None:
    Console(file=sys.stderr, highlight=False, soft_wrap=True).print(text, markup=False)
