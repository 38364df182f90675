"""The pages of the documentation as test data: fenced blocks, code spans, links, headings. Read by a Markdown parser."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

PROJECT = Path(__file__).resolve().parents[1]
README = PROJECT / "README.md"
PAGES = [README, PROJECT / "AGENTS.md", *sorted((PROJECT / "docs").rglob("*.md"))]


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    """Where it begins, from 1."""
    language: str
    text: str


class Span(NamedTuple):
    """A piece of inline code, or the target of a link or picture."""

    page: Path
    line: int
    text: str


def short(file: Path) -> str:
    return str(file.relative_to(PROJECT))


def where(item: Block | Span) -> str:
    """The name of a test's case."""
    return f"{short(item.page)}:{item.line}"


@cache
def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path, *languages: str) -> list[Block]:
    """Fenced blocks of these languages; of all without any."""
    fences = [token for token in _tokens(page) if token.type == "fence" and token.map]
    found = [Block(page, token.map[0] + 1, token.info.split(" ")[0], token.content) for token in fences if token.map]
    return [block for block in found if not languages or block.language in languages]


def _inline(page: Path) -> Iterator[tuple[int, Token]]:
    for token in _tokens(page):
        for child in token.children or []:
            yield (token.map[0] + 1 if token.map else 0), child


def code_spans(page: Path) -> list[Span]:
    """Inline code, line ends as blanks."""
    return [
        Span(page, line, re.sub(r"\s+", " ", token.content))
        for line, token in _inline(page)
        if token.type == "code_inline"
    ]


def links(page: Path) -> list[Span]:
    """Targets of links and pictures that are no URL."""
    targets = [
        Span(page, line, unquote(str(token.attrs.get("href") or token.attrs.get("src") or "")))
        for line, token in _inline(page)
        if token.type in ("link_open", "image")
    ]
    return [target for target in targets if not re.match(r"[a-z]+:", target.text)]


def _heading_texts(page: Path) -> list[str]:
    tokens = _tokens(page)
    inner = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open"]
    return ["".join(child.content for child in token.children or []) for token in inner]


def github_anchors(page: Path) -> set[str]:
    """Anchors of a page's headings as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in _heading_texts(page)}


def site_anchors(page: Path) -> set[str]:
    """Anchors of a page's headings as Python-Markdown's `toc`, and so MkDocs, makes them."""
    plain = [unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode() for text in _heading_texts(page)]
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()) for text in plain}


def tables(page: Path) -> list[list[list[str]]]:
    """Tables as rows of cells, the head first; cells as they are written."""
    grids: list[list[list[str]]] = []
    cell = False
    for token in _tokens(page):
        if token.type == "table_open":
            grids.append([])
        elif token.type == "tr_open":
            grids[-1].append([])
        elif token.type in ("th_open", "td_open"):
            cell = True
        elif token.type == "inline" and cell:
            grids[-1][-1].append(token.content)
            cell = False
    return grids
