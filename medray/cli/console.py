"""What a person sees: progress and errors on stderr, results on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from medray.progress import Live

if TYPE_CHECKING:
    from pydantic import JsonValue

LOG_WIDTH = 10_000
NEVER_WRAPPED = 20  # characters; an identifier of this length stays whole


class Terminal:
    """Progress as bars and lines on a terminal; elsewhere only notes, which tell what a person must know; or nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and not quiet
        self.bars: Bars | None = None
        self.task = TaskID(0)
        self.failed = 0
        self.shown_epochs = 0
        self.last_note = ""

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

    def training(self, live: Live) -> None:
        self._note_once(live.get("note", ""))
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
            if self.live:
                self.line(epoch_line(row, live.get("metrics", ())))
        self.shown_epochs = len(history)
        if live["stopped"]:
            self._end()

    def note(self, text: str) -> None:
        self.line(text)

    def _note_once(self, note: str) -> None:
        """Show the note that comes with the position of a training, unless it is the last one shown."""
        if note and note != self.last_note:
            self.last_note = note
            self.fact("checkpoint_broken", "warning")
            self.note(note)

    def about(self, **facts: str) -> None:
        """Nothing: names of the run are for JSON lines; a person sees them at the end."""

    def fact(self, event: str, level: str = "info", /, **facts: object) -> None:
        """Nothing: facts are for JSON lines."""

    def done(self, result: dict[str, JsonValue], exit_code: int) -> None:
        """Nothing: the result is printed on stdout."""

    def failed_with(self, error: BaseException) -> None:
        """Nothing: the message is printed where the error is caught."""

    def line(self, text: str) -> None:
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


class Log(Terminal):
    """Progress as plain lines: what begins, then how far it is every `every` seconds, and every epoch."""

    def __init__(self, every: float = 10.0) -> None:
        super().__init__()
        self.live, self.every = False, every
        self.console.width = LOG_WIDTH
        self.name, self.total, self.finished = "", 0, 0
        self.began = self.last_line = 0.0  # monotonic seconds

    def begin(self, name: str, total: int) -> None:
        self._end()
        self.failed, self.name, self.total, self.finished = 0, name, total, 0
        self.began = self.last_line = time.monotonic()
        if total:
            self.tell(f"{name}: {readable(total)} to do", "begin", work=name, total=total)

    def advance(self, done: int, failed: int) -> None:
        self.failed += failed
        self.finished += done
        if self.finished >= self.total or time.monotonic() - self.last_line >= self.every:
            self._tell_progress()

    def training(self, live: Live) -> None:
        self._note_once(live.get("note", ""))
        history = live["history"]
        self.shown_epochs = min(self.shown_epochs, len(history))  # resumed from an earlier checkpoint after a failure
        for row in history[self.shown_epochs :]:
            self.tell(
                f"{epoch_line(row, live.get('metrics', ()))}  of {live['epochs']}",
                "epoch",
                epochs=live["epochs"],
                **row,
            )
            self.last_line = time.monotonic()
        self.shown_epochs = len(history)
        if time.monotonic() - self.last_line >= self.every and not live["stopped"]:
            self.last_line = time.monotonic()
            at = {name: live[name] for name in ("epoch", "epochs", "step", "steps")}
            self.tell(
                f"epoch {live['epoch'] + 1:>3}  step {readable(live['step'])} of {readable(live['steps'])}",
                "step",
                **at,
            )

    def tell(self, text: str, event: str, /, **facts: object) -> None:
        """One line for a person; `event` and `facts` are the same for JSON lines."""
        self.line(text)

    def line(self, text: str) -> None:
        self.console.print(f"{datetime.now(UTC):%H:%M:%SZ} {text}", markup=False)

    def _tell_progress(self) -> None:
        self.last_line = time.monotonic()
        speed = self.finished / max(self.last_line - self.began, 1e-9)
        failed = f", {readable(self.failed)} failed" if self.failed else ""
        self.tell(
            f"{self.name}: {readable(self.finished)} of {readable(self.total)}{failed}, {readable(speed)} a second",
            "progress", work=self.name, done=self.finished, total=self.total, failed=self.failed, per_second=speed,
        )  # fmt: skip


def epoch_line(row: Mapping[str, object], metrics: Sequence[str]) -> str:
    """One epoch as a line: its number, losses, these metrics where they are known, speed."""
    names = ("train_loss", "loss", *metrics, "samples_per_second")
    shown = [f"{name} {readable(row[name])}" for name in names if row.get(name) is not None]
    return f"epoch {row['epoch']:>3}  " + "  ".join(shown)


def readable(value: object) -> str:
    """A value as a person reads it: thousands grouped, four significant digits below them, lists without brackets."""
    if value is None or value in ("", [], {}):
        return "–"
    if isinstance(value, dict):
        members = cast("dict[str, object]", value)
        return ", ".join(f"{name} {readable(each)}" for name, each in members.items())
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[object]", value)
        nested = any(isinstance(each, (list, tuple)) for each in items)
        return ("; " if nested else ", ").join(readable(each) for each in items)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,d}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


class Paper:
    """stdout for a person: titles, facts and tables. In a pipe or a log lines are as long as they need to be."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = LOG_WIDTH

    def title(self, text: str) -> None:
        self.console.print()
        self.console.print(text, style="bold", markup=False, soft_wrap=True)

    def line(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def facts(self, rows: Iterable[tuple[str, object]]) -> None:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(escape(name), escape(readable(value)))
        self.console.print(table)

    def table(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Records, with a column for every key that one of them has."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in names:
            numeric = any(isinstance(row.get(name), (int, float)) for row in rows)
            short = all(len(readable(row.get(name))) <= NEVER_WRAPPED for row in rows)
            justify = "right" if numeric else "left"
            table.add_column(escape(name), justify=justify, no_wrap=short, overflow="fold")
        for row in rows:
            table.add_row(*(escape(readable(row.get(name))) for name in names))
        self.console.print(table)


def print_error(text: str) -> None:
    Console(file=sys.stderr, highlight=False, soft_wrap=True).print(text, markup=False)
