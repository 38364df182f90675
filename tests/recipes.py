"""The recipes of docs/score-table.md, run as they stand there on a store."""

from __future__ import annotations

import ast
from typing import Any

import pyarrow as pa
from pages import PROJECT, blocks

READERS = ("polars", "DuckDB", "pandas", "PyArrow")
PLACE = "scores/ultrasound"
"""The store that the page reads."""


def value_of_last_line(text: str) -> Any:
    """Run a block, and give what its last expression is."""
    *body, last = ast.parse(text).body
    assert isinstance(last, ast.Expr)
    names: dict[str, Any] = {}
    exec(compile(ast.Module(body, []), "block", "exec"), names)
    return eval(compile(ast.Expression(last.value), "block", "eval"), names)


def current_rows(reader: str, store: str) -> list[dict[str, Any]]:
    """The current rows of a store by the recipe for one of READERS."""
    (block,) = [each for each in blocks(PROJECT / "docs" / "score-table.md", "python") if f"# {reader}\n" in each.text]
    assert PLACE in block.text
    current = value_of_last_line(block.text.replace(PLACE, store))
    return {
        "polars": lambda: current.to_arrow(),
        "DuckDB": lambda: current.to_arrow_table(),
        "pandas": lambda: pa.Table.from_pandas(current, preserve_index=False),
        "PyArrow": lambda: current,
    }[reader]().to_pylist()
