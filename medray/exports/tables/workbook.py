"""Scores as an Excel workbook (Office Open XML, ISO/IEC 29500) of three sheets: Scores, Failed, About.

Rows go to disk as they come (XlsxWriter's `constant_memory`). Texts are cells of type string, which no spreadsheet computes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medray.errors import UserError
from medray.exports.tables.columns import ABOUT, Cell

SUFFIX = ".xlsx"
MOST_ROWS = 1_048_576
"""Of a sheet, its header included: Excel's limit."""
MOST_LETTERS = 32_767
"""UTF-16 units of a cell: Excel's limit."""
TOO_LONG = "longer than a cell of Excel can be: medray export csv has it whole"
FORMULAS = "texts are cells of type text: a spreadsheet shows them and computes nothing"


def uris_of(out: str) -> list[str]:
    return [out]


class Workbook:
    """The three sheets, open for writing."""

    escaped = 0
    """No text needs a sign before it here."""

    def __init__(self, failed: Sequence[str], scored: Sequence[str], book: Any) -> None:
        self._bold: Any = book.add_format({"bold": True})
        self._sheets: dict[str, Any] = {name: book.add_worksheet(name) for name in ("Scores", "Failed", "About")}
        self._rows = dict.fromkeys(self._sheets, 0)
        for name, columns in (("Scores", scored), ("Failed", failed), ("About", ABOUT)):
            self._sheets[name].set_column(0, len(columns) - 1, 24)
            self._sheets[name].freeze_panes(1, 0)
            self._add(name, columns, self._bold)

    def scored(self, row: Sequence[Cell]) -> None:
        self._add("Scores", row)

    def failed(self, row: Sequence[Cell]) -> None:
        self._add("Failed", row)

    def about(self, rows: Iterable[tuple[str, Cell]]) -> None:
        for row in rows:
            self._add("About", row)

    def _add(self, name: str, row: Sequence[Cell], style: Any = None) -> None:
        number = self._rows[name]
        if number >= MOST_ROWS:
            raise UserError(
                "a sheet of Excel does not hold so many rows",
                where=f"sheet {name}",
                found=f"more than {MOST_ROWS - 1:,} rows",
                expected=f"at most {MOST_ROWS - 1:,} and a header",
                do="medray export csv writes any number; or export one bundle: --bundle ID",
            )
        self._rows[name] += 1
        sheet = self._sheets[name]
        for column, cell in enumerate(row):
            if isinstance(cell, str):
                sheet.write_string(number, column, cell if _fits(cell) else TOO_LONG, style)
            elif cell is not None:
                sheet.write_number(number, column, cell, style)


def _fits(text: str) -> bool:
    return 2 * len(text) <= MOST_LETTERS or len(text.encode("utf-16-le")) // 2 <= MOST_LETTERS


@contextmanager
def workbook(failed: Sequence[str], scored: Sequence[str], drafts: Sequence[Path]) -> Generator[Workbook]:
    """Writes sheets with these columns to the one path; the file is whole after the block."""
    from xlsxwriter import Workbook as Book  # pyright: ignore[reportMissingTypeStubs]
    from xlsxwriter.exceptions import FileCreateError  # pyright: ignore[reportMissingTypeStubs]

    with tempfile.TemporaryDirectory(prefix="medray-") as scratch:
        book: Any = Book(str(drafts[0]), {"constant_memory": True, "tmpdir": scratch})
        book.use_zip64()
        try:
            yield Workbook(failed, scored, book)
            book.close()
        except FileCreateError as error:  # it wraps what the disk says
            cause: object = error.args[0] if error.args else None
            raise cause if isinstance(cause, OSError) else error from None
        finally:
            for sheet in book.worksheets():  # of a workbook that was not finished
                sheet.row_data_fh.close()
