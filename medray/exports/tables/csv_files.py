"""Scores as CSV (RFC 4180, UTF-8): three files, since a CSV file holds one table.

NAME.csv          the scores
NAME.failed.csv   rows without a score, and why
NAME.about.csv    what the scores are of: two columns
"""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from medray.exports.tables.columns import ABOUT, Cell, inert

SUFFIX = ".csv"
FORMULAS = "a ' stands before a text that begins with = + - @, tab or a line break: a spreadsheet would compute it"


def uris_of(out: str) -> list[str]:
    """Failed rows, what the scores are of, scores: the last one is the file that was named."""
    stem = out.removesuffix(SUFFIX)
    return [f"{stem}.failed{SUFFIX}", f"{stem}.about{SUFFIX}", out]


class CsvFiles:
    """The three files, open for writing."""

    escaped = 0
    """Cells that a ' was put before."""

    def __init__(self, failed: Sequence[str], scored: Sequence[str], streams: Sequence[Path], stack: ExitStack) -> None:
        opened = [stack.enter_context(path.open("w", newline="", encoding="utf-8")) for path in streams]
        self._failed, self._about, self._scored = map(csv.writer, opened)
        self._failed.writerow(failed)
        self._scored.writerow(scored)

    def scored(self, row: Sequence[Cell]) -> None:
        self._scored.writerow(self._inert(row))

    def failed(self, row: Sequence[Cell]) -> None:
        self._failed.writerow(self._inert(row))

    def about(self, rows: Iterable[tuple[str, Cell]]) -> None:
        self._about.writerow(ABOUT)
        self._about.writerows(self._inert(row) for row in rows)

    def _inert(self, row: Sequence[Cell]) -> list[Cell]:
        cells = [inert(cell) for cell in row]
        self.escaped += sum(cell is not given for cell, given in zip(cells, row, strict=True))
        return cells


@contextmanager
def csv_files(failed: Sequence[str], scored: Sequence[str], drafts: Sequence[Path]) -> Generator[CsvFiles]:
    """Writes tables with these columns to the paths, which are in the order of `uris_of`."""
    with ExitStack() as stack:
        yield CsvFiles(failed, scored, drafts, stack)
