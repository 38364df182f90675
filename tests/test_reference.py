"""The pages of docs/reference/ are what the code gives, the tables of decisions what the records say."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medray.cli.shared import STOPPED
from medray.config import runs
from medray.config.described import settings_types
from medray.errors import EXIT_CODES, REASONS, MedrayError
from medray.verbs.results import Result

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference() -> Any:
    sys.path.append(str(PROJECT / "docs"))  # as `python docs/make_reference.py` has it
    spec = importlib.util.spec_from_file_location("make_reference", PROJECT / "docs" / "make_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(reference: Any) -> dict[str, str]:
    """Path of each page that is made to its text."""
    return reference.pages()


MADE = [
    "docs/reference/run-files.md",
    "docs/reference/reason-codes.md",
    "docs/reference/commands.md",
    "docs/reference/exit-codes.md",
    "docs/reference/python.md",
    "docs/decisions/index.md",
    "ARCHITECTURE.md",
]


@pytest.mark.parametrize("file", MADE)
def test_a_page_is_what_the_code_and_the_records_give(made: dict[str, str], file: str):
    assert (PROJECT / file).read_text(encoding="utf-8") == made[file], "run: python docs/make_reference.py"


def test_every_page_that_is_made_is_compared(made: dict[str, str]):
    assert sorted(made) == sorted(MADE)


def test_the_exit_codes_of_the_page_are_those_that_commands_end_with():
    def kinds(kind: type[MedrayError]) -> Iterator[type[MedrayError]]:
        yield kind
        for below in kind.__subclasses__():
            yield from kinds(below)

    of_errors = {kind.exit_code for kind in kinds(MedrayError)}
    of_results = {Result(entries=1, failed=failed).exit_code(0.5) for failed in (0, 1)}
    assert of_errors | of_results | {130, STOPPED} == set(EXIT_CODES)


def test_every_option_of_a_command_has_a_row(made: dict[str, str]):
    sections = dict(
        re.findall(
            r"^## `medray ([^`]+)`$(.*?)(?=^## |\Z)", made["docs/reference/commands.md"], re.MULTILINE | re.DOTALL
        )
    )
    assert {"--deadline", "--order", "--limit", "--retry", "--set"} <= set(
        re.findall(r"`(--[\w-]+)`", sections["score"])
    )
    assert {"--follow", "--address"} <= set(re.findall(r"`(--[\w-]+)`", sections["jobs logs"]))
    assert "`RUN.toml` | required" in sections["ehr to-meds"] and "--set" in sections["ehr to-meds"]


def test_records_of_decisions_are_numbered_without_gaps_and_their_rules_are_short(reference: Any):
    records = sys.modules["decision_tables"].records()
    assert [record.number for record in records] == list(range(1, len(records) + 1))
    assert [record.file for record in records if len(record.rule) > 220] == []


def test_every_key_of_every_table_has_a_row(reference: Any):
    rows = [
        line.split("`")[1]
        for line in reference.pages()["docs/reference/run-files.md"].splitlines()
        if line.startswith("| `")
    ]
    for kind in runs.RUN_TYPES.values():
        for table in settings_types(kind):
            if table.__name__ not in (
                "Rule",
                "Range",
                "Code",
            ):  # docs/eligibility.md; what a bundle keeps of a vocabulary
                assert set(table.model_fields) <= set(rows), table


def test_every_reason_code_has_one_row(made: dict[str, str]):
    lines = made["docs/reference/reason-codes.md"].splitlines()
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
