"""What stands in the tables that are handed on: their columns, and how a cell is written."""

from __future__ import annotations

from collections.abc import Sequence

OWN_ID = "own_subject_id"
"""Column of the subjects' own ids, where they are asked for."""
SCORED = (
    "entry_id", "sample_id", "subject_id", OWN_ID, "output", "value", "threshold", "bundle_id", "model", "scored_at", "run_id",
    "facts", "artefact",
)  # fmt: skip
"""Columns of the scores, in order."""
FAILED = (
    "entry_id", "sample_id", "subject_id", OWN_ID, "status", "reason", "meaning", "detail", "bundle_id", "model", "scored_at",
    "run_id", "facts",
)  # fmt: skip
"""Columns of the rows without a score: failed ones, and those that the model is not asked about, as `status` says."""
ABOUT = ("about", "is")

Cell = str | float | None
"""A number stays one; nothing is an empty cell."""

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""How a text begins that a spreadsheet may compute when it opens a CSV file
(https://owasp.org/www-community/attacks/CSV_Injection)."""


def inert(cell: Cell) -> Cell:
    """The cell as a CSV file has it: a ' stands before a text that a spreadsheet would take for a formula. Numbers stay as
    they are, negative ones too."""
    return "'" + cell if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def without_own_ids(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name != OWN_ID)
