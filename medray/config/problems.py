"""What is wrong with a run file: a validation error as a person reads it, with the key, its line and the nearest name.

Imports pydantic for its types alone, so that a quick refusal does not wait for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from medray.config.shapes import Shape, key_paths, resolve
from medray.config.toml import RunText, listed, shown
from medray.errors import RunFileError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails, ValidationError


class Problem(NamedTuple):
    """One wrong key of a run file."""

    keys: tuple[str, ...]
    """Tables, then the key; an item of an array is "[2]"."""
    what: str
    found: str = ""
    expected: str = ""
    do: str = ""

    @property
    def dotted(self) -> str:
        return ".".join(self.keys).replace(".[", "[")


def problems(error: ValidationError, shape: Shape) -> Iterator[Problem]:
    """A validation error, key by key in their order; what several members of a union expected stands in one."""
    merged: dict[tuple[tuple[str, ...], str], Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _problem(detail, shape)
        same = merged.get((problem.keys, problem.what))
        if same and problem.expected and problem.expected not in same.expected:
            problem = same._replace(expected=f"{same.expected}, or {problem.expected}", do=same.do or problem.do)
        merged[problem.keys, problem.what] = problem
    yield from merged.values()


def _problem(detail: ErrorDetails, shape: Shape) -> Problem:
    location, value, context = detail["loc"], detail["input"], detail.get("ctx", {})
    keys, _ = resolve(shape, location)
    match detail["type"]:
        case "extra_forbidden":
            keys, tables = resolve(shape, location[:-1])
            name = str(location[-1])
            known = [field for table in tables for field in table.fields()]
            elsewhere = [".".join(path) for path in key_paths(shape) if path[-1] == name]
            do = _did_you_mean(name, known) or (f"did you mean {elsewhere[0]}?" if elsewhere else "")
            if ".".join((*keys, name)) in elsewhere:
                do = "take it out: it belongs to another kind of this table"
            return Problem((*keys, name), "unknown key", expected=listed(known), do=do)
        case "missing":
            return Problem(keys, "this key is missing", do="add it to the run file")
        case "union_tag_invalid":
            names = re.findall(r"'([^']*)'", context["expected_tags"])
            keys = (*keys, context["discriminator"].strip("'"))
            tag = str(context["tag"])
            return Problem(keys, "unknown name", shown(tag), listed(names), _did_you_mean(tag, names))
        case "union_tag_not_found":
            key = context["discriminator"].strip("'")
            names = [n for table in resolve(shape, location)[1] for n in _literals(table.fields().get(key))]
            return Problem((*keys, key), "this key is missing", expected=listed(names))
        case "literal_error":
            names = [n for each in resolve(shape, location)[1] for n in _literals(each)]
            expected = listed(names) or str(context["expected"])
            return Problem(keys, "not a valid value", shown(value), expected, _did_you_mean(value, names))
        case "value_error" | "assertion_error":
            what = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            return Problem(keys, what, "" if isinstance(value, dict) else shown(value))
        case _:
            expected = detail["msg"].removeprefix("Input should be ")
            return Problem(keys, "not a valid value", shown(value), _IN_TOML.get(expected, expected))


_IN_TOML = {
    "a valid tuple": 'a list, such as ["a", "b"] or [1, 2]',
    "a valid list": 'a list, such as ["a", "b"] or [1, 2]',
    "a valid dictionary": "a table, such as {key = value}",
}
"""What pydantic says in Python's words."""


def refusal(run: RunText, wrong: Sequence[Problem]) -> RunFileError:
    """The error that names every wrong key of a run file."""
    if len(wrong) == 1:
        p = wrong[0]
        what = f"{p.dotted}: {p.what}" if p.keys else p.what
        return RunFileError(what, where=run.where(p.keys), found=p.found, expected=p.expected, do=p.do)
    blocks = [f"{len(wrong)} keys are wrong"]
    for p in wrong:
        blocks.append(f"{run.where(p.keys)}: {p.dotted}: {p.what}")
        for title, text in (("found", p.found), ("expected", p.expected), ("what to do", p.do)):
            if text:
                blocks.append(f"    {title}: {text}")
    return RunFileError("\n  ".join(blocks), where=str(run.path))


def _did_you_mean(written: Any, names: Iterable[Any]) -> str:
    import difflib

    near = difflib.get_close_matches(str(written), [str(name) for name in names], 1)
    return f"did you mean {near[0]}?" if near else ""


def _literals(shape: Shape | None) -> list[Any]:
    return [value for each in (shape.members() if shape else []) for value in each.literals]
