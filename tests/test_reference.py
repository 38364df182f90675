"""The pages of docs/reference/ are what the types give."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from medray.config import runs
from medray.config.described import settings_types
from medray.errors import REASONS

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference() -> Any:
    spec = importlib.util.spec_from_file_location("make_reference", PROJECT / "docs" / "make_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["run-files.md", "reason-codes.md"])
def test_a_page_of_the_reference_is_what_the_types_give(reference: Any, name: str):
    written = (PROJECT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert written == reference.pages()[name], "run: python docs/make_reference.py"


def test_every_key_of_every_table_has_a_row(reference: Any):
    rows = [line.split("`")[1] for line in reference.pages()["run-files.md"].splitlines() if line.startswith("| `")]
    for kind in runs.RUN_TYPES.values():
        for table in settings_types(kind):
            if table.__name__ not in (
                "Rule",
                "Range",
                "Code",
            ):  # docs/eligibility.md; what a bundle keeps of a vocabulary
                assert set(table.model_fields) <= set(rows), table


def test_every_reason_code_has_one_row(reference: Any):
    lines = reference.pages()["reason-codes.md"].splitlines()
    assert sorted(line.split("`")[1] for line in lines if line.startswith("| `")) == sorted(REASONS)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "whole number ≥ 1"),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, "number > 0 and < 1"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text"),
        ({"enum": ["a", "b"], "type": "string"}, '`"a"` or `"b"`'),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, "list of whole numbers, at least 1"),
        ({"type": "array", "prefixItems": [{"type": "number"}, {"const": "x"}]}, 'list of 2: number, `"x"`'),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "table of names to text"),
        ({}, "any value"),
    ],
)
def test_a_type_is_told_in_plain_words(reference: Any, schema: dict[str, Any], words: str):
    assert reference.type_of(schema, {}) == words
