"""The pages of docs/reference/ and the tables of decisions, made of the code and the records: python docs/make_reference.py

A test fails while a page is not what this makes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from decision_tables import page_of_decisions, with_first_decisions
from reference_commands import page_of_commands, page_of_exit_codes
from reference_python import page_of_python

from medray.cli.quick import RUN_VERBS
from medray.config.described import json_schema
from medray.config.runs import RUN_TYPES
from medray.errors import NOT_ELIGIBLE, PASSING, REASONS, remedy

PROJECT = Path(__file__).resolve().parents[1]
FOLDER = PROJECT / "docs" / "reference"
MADE = "<!-- Made by docs/make_reference.py of the types: change the text below a key in its class, then run it. -->"
TITLES = {
    "TrainRun": "Training",
    "EvaluateRun": "Evaluation on another archive",
    "ScoreRun": "Scoring",
    "NightlyRun": "A night",
    "ConvertRun": "Conversion to MEDS",
}
DEFAULT_WIDTH = 60
"""Characters of a default that is shown; a longer one is in the schema."""

Schema = Mapping[str, Any]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages().items():
        (PROJECT / file).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Path of each page in the project to its text."""
    made = {
        "docs/reference/run-files.md": run_files(),
        "docs/reference/reason-codes.md": reason_codes(),
        "docs/reference/commands.md": page_of_commands(),
        "docs/reference/exit-codes.md": page_of_exit_codes(),
        "docs/reference/python.md": page_of_python(),
        "docs/decisions/index.md": page_of_decisions(),
    }
    architecture = (PROJECT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    return {file: "\n".join(lines) for file, lines in made.items()} | {
        "ARCHITECTURE.md": with_first_decisions(architecture)
    }


# --- run files ------------------------------------------------------------------------------------------------


def run_files() -> Iterator[str]:
    yield "# Every key of a run file"
    yield ""
    yield MADE
    yield ""
    yield "[Run files](../run-files.md) tells how they work; here is each key, with its type and its default. The same for editors"
    yield "and programs: `medray schema train`. A key without a default has to be given. What is *fitted* stands in a bundle and is"
    yield "not meant to be set."
    yield ""
    yield "| run file of | keys at the top |"
    yield "|---|---|"
    for kind, title in TITLES.items():
        verbs = ", ".join(f"`medray {verb}`" for verb, of in RUN_VERBS.items() if of == kind)
        yield f"| {verbs} | [{title}](#{_anchor(title)}) |"
    tables: dict[str, tuple[str, Schema, Mapping[str, Schema]]] = {}  # by the name of their type
    for kind, title in TITLES.items():
        schema = json_schema(RUN_TYPES[kind])
        known = schema.get("$defs", {})
        yield from _section(f"## {title}", schema, known)
        for key, described in schema["properties"].items():
            for name, heading, table in _tables(key, described, known):
                tables.setdefault(name, (heading, table, known))
    yield ""
    yield "## Tables"
    headings = Counter(heading for heading, _, _ in tables.values())
    for name, (heading, table, known) in tables.items():
        of = (
            " of a conversion"
            if headings[heading] > 1 and name in json_schema(RUN_TYPES["ConvertRun"])["$defs"]
            else ""
        )
        yield from _section(f"### {heading}{of}", table, known)


def _section(heading: str, table: Schema, known: Mapping[str, Schema]) -> Iterator[str]:
    yield ""
    yield heading
    yield ""
    if "description" in table:
        yield _cell(table["description"])
        yield ""
    yield "| key | type | default | what it does |"
    yield "|---|---|---|---|"
    required = table.get("required", [])
    for key, described in sorted(table["properties"].items(), key=lambda item: item[0] != "kind"):
        default = "" if key in required else _default(described)
        yield f"| `{key}` | {_cell(type_of(described, known))} | {_cell(default)} | {_cell(described['description'])} |"


def _tables(key: str, described: Schema, known: Mapping[str, Schema]) -> Iterator[tuple[str, str, Schema]]:
    """(type, heading, table) of each table that a key holds, and of the tables in it."""
    heading = f"`[{key}]`"
    if "items" in described:
        heading, described = f"`[[{key}]]`", described["items"]
    elif isinstance(named := described.get("additionalProperties"), dict):
        heading, described = f"`[{key}.NAME]`", named
    for reference in _references(described):
        name = reference.rpartition("/")[2]
        table = known[name]
        if name in ("Rule", "Range"):
            continue  # docs/eligibility.md; what a bundle keeps
        yield name, f"{heading} with {_kind(table)}" if "kind" in table["properties"] else heading, table
        for below, described_below in table["properties"].items():
            yield from _tables(f"{key}.{below}", described_below, known)


def _kind(table: Schema) -> str:
    """What chooses this table: a name, or the beginning of all names that do."""
    kind = table["properties"]["kind"]
    return (
        f'`kind = "{kind["const"]}"`'
        if "const" in kind
        else '`kind = "' + kind["pattern"].strip("^").partition(":")[0] + ':…"`'
    )


def _references(described: Schema) -> Iterator[str]:
    if "$ref" in described:
        yield described["$ref"]
    for choice in described.get("oneOf", described.get("anyOf", [])):
        yield from _references(choice)


# --- words ----------------------------------------------------------------------------------------------------


def type_of(schema: Schema, known: Mapping[str, Schema]) -> str:
    """A JSON Schema in plain words."""
    if "$ref" in schema:
        return "table"
    if choices := schema.get("oneOf", schema.get("anyOf")):
        kinds = [known[each["$ref"].rpartition("/")[2]] for each in choices if "$ref" in each]
        if kinds and len(kinds) == len(choices):
            return "table: " + " or ".join(_kind(each) for each in kinds)
        return " or ".join(dict.fromkeys(type_of(each, known) for each in choices if each.get("type") != "null"))
    if "const" in schema:
        return f"`{_toml(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{_toml(value)}`" for value in schema["enum"])
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}: " + ", ".join(
                type_of(each, known) for each in schema["prefixItems"]
            )
        case "array":
            least = f", at least {schema['minItems']}" if "minItems" in schema else ""
            return f"list of {_plural(type_of(schema['items'], known))}{least}"
        case "object":
            values = schema.get("additionalProperties", {})
            return f"table of names to {type_of(values, known)}" if isinstance(values, dict) and values else "table"
        case "boolean":
            return "true or false"
        case "string" if schema.get("format") == "date-time":
            return "date and time"
        case "string":
            return "text"
        case "integer" | "number" as kind:
            return ("whole number" if kind == "integer" else "number") + _bounds(schema)
    return "any value"


def _bounds(schema: Schema) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[name]:g}" for name, sign in words.items() if name in schema]
    return f" {' and '.join(bounds)}" if bounds else ""


def _plural(words: str) -> str:
    first, space, rest = words.partition(" ")
    if words in ("text", "table"):
        return {"text": "texts", "table": "tables"}[words]
    if words.startswith("whole number"):
        return words.replace("whole number", "whole numbers", 1)
    return f"{first}s{space}{rest}" if first == "number" else words


def _default(described: Schema) -> str:
    if "default" not in described:
        return ""
    value = described["default"]
    if value is None:
        return "none"
    if isinstance(value, dict):
        return f'`kind = "{value["kind"]}"`' if "kind" in value else "its defaults" if value else "empty"
    text = _toml(value)
    return f"`{text}`" if len(text) <= DEFAULT_WIDTH else f"`{text[: DEFAULT_WIDTH - 1]}…`"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    """Text that stands in a table as it is: what Markdown would take for its own is escaped outside of code."""
    pieces = text.replace("|", "\\|").split("`")
    pieces[::2] = [re.sub(r"[*<]", lambda mark: f"\\{mark[0]}", piece) for piece in pieces[::2]]
    return "`".join(pieces)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


# --- reason codes ---------------------------------------------------------------------------------------------


def reason_codes() -> Iterator[str]:
    yield "# Reason codes"
    yield ""
    yield "<!-- Made by docs/make_reference.py of medray/errors.py: change REASONS there, then run it. -->"
    yield ""
    yield "An entry or sample without a score has a row in the [score table](../score-table.md) with one of these as `reason`."
    yield "Installed plug-ins may bring further ones."
    yield ""
    for title, codes in (
        ("Failed: something is wrong with it", [code for code in REASONS if code not in NOT_ELIGIBLE and code not in PASSING]),
        ("Failed, and tried again by the next run", [code for code in REASONS if code in PASSING]),
        ("Not eligible: nothing is wrong, the model is not asked about it", [code for code in REASONS if code in NOT_ELIGIBLE]),
    ):  # fmt: skip
        yield f"## {title}"
        yield ""
        not_eligible = title.startswith("Not eligible")
        yield "| code | meaning |" if not_eligible else "| code | meaning | what to do |"
        yield "|---|---|" if not_eligible else "|---|---|---|"
        for code in codes:
            yield f"| `{code}` | {_cell(REASONS[code])} |" + ("" if not_eligible else f" {_cell(remedy(code))} |")
        yield ""


if __name__ == "__main__":
    main()
