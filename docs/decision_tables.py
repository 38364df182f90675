"""The tables of decisions, made of the records in docs/decisions/. Run docs/make_reference.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent / "decisions"
BEGIN, END = "<!-- first decisions: made by docs/make_reference.py -->", "<!-- end of first decisions -->"
FIRST = (
    "parts-before-entries",
    "change-table",
    "two-tier-fingerprints",
    "keyed-pseudonyms",
    "data-in-memory-become-files",
    "eligibility-at-index",
    "encode-beside-collate",
    "named-inputs",
    "global-batches",
    "own-checkpoints",
    "one-shape-one-order-of-sums",
    "refusals-travel-as-data",
    "what-ends-a-worker",
    "scores-are-long-rows",
    "rows-are-retired",
    "the-claim-is-the-guard",
    "facts-not-lines",
)
"""Records that a new maintainer reads first, by the names of their files: those that ARCHITECTURE.md lists."""


class Record(NamedTuple):
    number: int
    slug: str
    file: str
    """Its name in docs/decisions/."""
    title: str
    area: str
    rule: str
    """In one line."""


def records() -> list[Record]:
    """All records, by number. Raises ValueError for one that has another shape than the rest."""
    found = []
    for file in sorted(FOLDER.glob("[0-9]*.md")):
        number, _, slug = file.stem.partition("-")
        parts = file.read_text(encoding="utf-8").split("\n\n")
        title = re.fullmatch(rf"# {int(number)}\. (.+)", parts[0])
        area = re.fullmatch(r"(.+) · \[all decisions\]\(index\.md\)", parts[1])
        headings = [part for part in parts if part.startswith("## ")]
        if title is None or area is None or headings[:2] != ["## Why", "## In the code"] or parts[3] != "## Why":
            raise ValueError(f"{file.name}: a record has a title, its area, its rule, why, and where in the code it is")
        found.append(Record(int(number), slug, file.name, title[1], area[1], " ".join(parts[2].split())))
    return found


def page_of_decisions() -> Iterator[str]:
    yield "# Decisions"
    yield ""
    yield "<!-- Made by docs/make_reference.py of the records in this folder: change a record, then run it. -->"
    yield ""
    yield "Why medray is as it is. Each record has one rule, the reason for it with the other choice, and where in the code it is."
    yield "Numbers that were measured stand apart from the rule, with the script that measures them. Paths in a record count from"
    yield "`medray/`, or from the top of the repository. A new record takes the next number; one that no longer holds says which"
    yield "record replaces it, and keeps its number."
    area = ""
    for record in sorted(records(), key=_by_area()):
        if record.area != area:
            area = record.area
            yield ""
            yield f"## {area}"
            yield ""
            yield "| number | decision | rule |"
            yield "|---|---|---|"
        yield f"| {record.number} | [{record.title}]({record.file}) | {_cell(record.rule)} |"
    yield ""


def _by_area():
    """A key that keeps records of one area together, areas in the order of their first record."""
    areas = list(dict.fromkeys(record.area for record in records()))
    return lambda record: (areas.index(record.area), record.number)


def with_first_decisions(architecture: str) -> str:
    """ARCHITECTURE.md with the table of those records that are read first. Raises ValueError where its marks are missing."""
    before, begin, rest = architecture.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"ARCHITECTURE.md has to hold {BEGIN} and {END}")
    known = {record.slug: record for record in records()}
    rows = ["| number | rule | record |", "|---|---|---|"]
    for slug in FIRST:
        record = known[slug]
        rows.append(f"| {record.number} | {_cell(record.rule)} | [{record.title}](docs/decisions/{record.file}) |")
    return before + BEGIN + "\n\n" + "\n".join(rows) + "\n\n" + END + after


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
