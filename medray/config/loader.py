"""Run files: one complete TOML file per run, loaded into a frozen pydantic type that forbids unknown keys.

Knows no concrete run type. Paths in a run file are relative to the working directory, as on a command line, so a
run file under jobs/runs/ names "data/breastmnist.npz" and not "../../data/breastmnist.npz".
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from medray.errors import RunFileError
from medray.plugins.kinds import Kinds

T = TypeVar("T", bound=BaseModel)


def load_run(path: str | Path, kind: type[T], overrides: Sequence[str] = ()) -> T:
    """The run file at `path` as a `kind`; `overrides` ("training.epochs=3") replace or add single keys.

    Raises RunFileError, which names the file, every wrong key with its line, what was found, what was expected
    and the nearest valid name.
    """
    path = Path(path)
    settings, lines = _settings(path, overrides)
    try:
        return TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        raise _report(path, list(problems(error, kind)), lines) from None


def as_written(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of a run file as they stand there, overrides applied, unchecked. Raises RunFileError."""
    return _settings(Path(path), overrides)[0]


def _settings(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], Lines]:
    text = _read(path)
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(path, text, error) from None
    lines = key_lines(text, settings)
    for override in overrides:
        keys, value = parse_override(override)
        _put(settings, keys, value)
        lines[keys] = "--set " + ".".join(keys)
    return settings, lines


# --- reading --------------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise RunFileError("there is no such run file", where=str(path), do=_nearest_file(path)) from None
    except UnicodeDecodeError as error:
        raise RunFileError(
            "the run file is no UTF-8 text", where=str(path), found=f"byte {error.start} is not UTF-8"
        ) from None
    except OSError as error:
        raise RunFileError("the run file cannot be read", where=str(path), found=error.strerror or "") from None


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"check the folder: {path.parent} does not exist"
    names = sorted(each.name for each in path.parent.glob("*.toml"))
    near = difflib.get_close_matches(path.name, names, 1)
    if near:
        return f"did you mean {path.parent / near[0]}?"
    return f"run files in {path.parent}: " + (_listed(names) if names else "none")


def _syntax_error(path: Path, text: str, error: tomllib.TOMLDecodeError) -> RunFileError:
    place = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
    if not place:  # "(at end of document)"
        return RunFileError(f"no valid TOML: {error}", where=str(path))
    line, column = int(place[1]), int(place[2])
    found = text.splitlines()[line - 1].strip() if line <= len(text.splitlines()) else ""
    return RunFileError(
        f"no valid TOML: {str(error)[: place.start()]}", where=f"{path}:{line}, column {column}", found=_short(found)
    )


_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*\[\s*({_DOTTED})\s*\]\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED})\s*=")

Lines = dict[tuple[str, ...], int | str]
"""Where a key stands: its line from 1, or the `--set` that gave it."""


def key_lines(text: str, settings: dict[str, Any]) -> Lines:
    """The line, from 1, of each table and key of a TOML text; keys inside an inline table are left out."""
    lines: Lines = {}
    table: tuple[str, ...] = ()
    fence = ""  # the quotes of the multi-line string that this line is in
    for number, line in enumerate(text.splitlines(), 1):
        if not fence:
            if (header := _HEADER.match(line)) and _holds(settings, _split(header[1])):
                table = _split(header[1])
                lines.setdefault(table, number)
            elif (key := _ASSIGNMENT.match(line)) and _holds(settings, table + _split(key[1])):
                lines.setdefault(table + _split(key[1]), number)
        for quotes in re.findall(r'"""|\'\'\'', line):
            fence = "" if fence == quotes else fence or quotes
    return lines


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(key.strip("\"'") for key in re.findall(_KEY, dotted))


def _holds(settings: Any, keys: tuple[str, ...]) -> bool:
    for key in keys:
        if not isinstance(settings, dict) or key not in settings:
            return False
        settings = settings[key]
    return True


# --- overrides ------------------------------------------------------------------------------------------------


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """ "training.epochs=3" to (("training", "epochs"), 3). The value is TOML; a bare word or path is text.

    Raises RunFileError.
    """
    name, equals, value = text.partition("=")
    keys, value = _split(name.strip()), value.strip()
    if not equals or not value or not re.fullmatch(_DOTTED, name.strip()):
        raise RunFileError("not a setting", where="--set", found=text, expected="key=value, such as training.epochs=3")
    try:
        parsed = tomllib.loads(f"value = {value}")
        if set(parsed) == {"value"}:
            return keys, parsed["value"]
    except tomllib.TOMLDecodeError:
        if value[0] not in "\"'[{":
            return keys, value
    raise RunFileError("not a TOML value", where=f"--set {name.strip()}", found=value, expected='3, "text" or [1, 2]')


def _put(settings: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        settings = settings.setdefault(key, {})
        if not isinstance(settings, dict):
            raise RunFileError(
                f"{'.'.join(keys[: depth + 1])} is a value, no table",
                where="--set " + ".".join(keys),
                found=_shown(settings),
            )
    settings[keys[-1]] = value


# --- what is wrong --------------------------------------------------------------------------------------------


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


def problems(error: ValidationError, kind: Any) -> Iterator[Problem]:
    """A validation error of `kind`, key by key in their order; what several union members expected stands in one."""
    merged: dict[tuple[tuple[str, ...], str], Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _problem(detail, kind)
        same = merged.get((problem.keys, problem.what))
        if same and problem.expected and problem.expected not in same.expected:
            problem = same._replace(expected=f"{same.expected}, or {problem.expected}", do=same.do or problem.do)
        merged[problem.keys, problem.what] = problem
    yield from merged.values()


def _problem(detail: ErrorDetails, kind: Any) -> Problem:
    location, found, context = detail["loc"], detail["input"], detail.get("ctx", {})
    keys, _ = resolve(kind, location)
    match detail["type"]:
        case "extra_forbidden":
            keys, tables = resolve(kind, location[:-1])
            name = str(location[-1])
            known = [field for table in tables for field in fields(table)]
            elsewhere = [".".join(path) for path in key_paths(kind) if path[-1] == name]
            do = _did_you_mean(name, known) or (f"did you mean {elsewhere[0]}?" if elsewhere else "")
            if ".".join((*keys, name)) in elsewhere:
                do = "take it out: it belongs to another kind of this table"
            return Problem((*keys, name), "unknown key", expected=_listed(known), do=do)
        case "missing":
            return Problem(keys, "this key is missing", do="add it to the run file")
        case "union_tag_invalid":
            names = re.findall(r"'([^']*)'", context["expected_tags"])
            keys = (*keys, context["discriminator"].strip("'"))
            tag = str(context["tag"])
            return Problem(keys, "unknown name", _shown(tag), _listed(names), _did_you_mean(tag, names))
        case "union_tag_not_found":
            key = context["discriminator"].strip("'")
            names = [n for table in resolve(kind, location)[1] for n in _literals(fields(table).get(key))]
            return Problem((*keys, key), "this key is missing", expected=_listed(names))
        case "literal_error":
            names = [n for each in resolve(kind, location)[1] for n in _literals(each)]
            shown = _listed(names) or str(context["expected"])
            return Problem(keys, "not a valid value", _shown(found), shown, _did_you_mean(found, names))
        case "value_error" | "assertion_error":
            what = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            return Problem(keys, what, "" if isinstance(found, dict) else _shown(found))
        case _:
            expected = detail["msg"].removeprefix("Input should be ")
            return Problem(keys, "not a valid value", _shown(found), _IN_TOML.get(expected, expected))


_IN_TOML = {
    "a valid tuple": 'a list, such as ["a", "b"] or [1, 2]',
    "a valid list": 'a list, such as ["a", "b"] or [1, 2]',
    "a valid dictionary": "a table, such as {key = value}",
}
"""What pydantic says in Python's words."""


def _report(path: Path, found: list[Problem], lines: Lines) -> RunFileError:
    if len(found) == 1:
        p = found[0]
        what = f"{p.dotted}: {p.what}" if p.keys else p.what
        return RunFileError(what, where=_where(path, p.keys, lines), found=p.found, expected=p.expected, do=p.do)
    blocks = [f"{len(found)} keys are wrong"]
    for p in found:
        blocks.append(f"{_where(path, p.keys, lines)}: {p.dotted}: {p.what}")
        for title, text in (("found", p.found), ("expected", p.expected), ("what to do", p.do)):
            if text:
                blocks.append(f"    {title}: {text}")
    return RunFileError("\n  ".join(blocks), where=str(path))


def _where(path: Path, keys: tuple[str, ...], lines: Lines) -> str:
    """The key's own place, or that of the nearest table that holds it."""
    for length in range(len(keys), 0, -1):
        place = lines.get(keys[:length])
        if place is not None:
            return f"{path}:{place}" if isinstance(place, int) else f"{path}, {place}"
    return str(path)


def _did_you_mean(found: Any, names: Iterable[Any]) -> str:
    near = difflib.get_close_matches(str(found), [str(name) for name in names], 1)
    return f"did you mean {near[0]}?" if near else ""


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(name) for name in names))


def _shown(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return _short(f'"{value}"')
        case dict():
            return f"a table of {_listed(value)}" if value else "an empty table"
        case list():
            return _short("[" + ", ".join(_shown(each) for each in value) + "]")
    return _short(str(value))


def _short(text: str, width: int = 80) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


# --- the type behind a key ------------------------------------------------------------------------------------


def resolve(kind: Any, location: Sequence[int | str]) -> tuple[tuple[str, ...], list[Any]]:
    """(keys, types that may stand there) of a pydantic location, whose union labels and tags are no keys."""
    keys: list[str] = []
    types = members(kind)
    for step in location:
        if isinstance(step, int):
            keys.append(f"[{step}]")
            types = [item for each in types for argument in get_args(each) for item in members(argument)]
        elif len(types) > 1 or (types and step not in fields(types[0]) and _labelled(types[0], step)):
            types = [each for each in types if _labelled(each, step)] or types
        else:
            keys.append(step)
            types = members(fields(types[0]).get(step)) if types else []
    return tuple(keys), types


def members(annotation: Any) -> list[Any]:
    """The types of a union, or the type itself; `Annotated` is opened and None left out."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [each for argument in get_args(annotation) for each in members(argument)]
    return [] if annotation in (None, NoneType) else [annotation]


def fields(kind: Any) -> dict[str, Any]:
    """Key → type of a table; a free table (`dict`) and a scalar have none."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return {}
    return {field.alias or name: _annotation(field) for name, field in kind.model_fields.items()}


def _annotation(field: FieldInfo) -> Any:
    """The type of a key; where a plug-in may bring it, with those of plug-ins that were asked for."""
    brought = tuple(each for kinds in field.metadata if isinstance(kinds, Kinds) for each in kinds.loaded())
    return Union[(field.annotation, *brought)] if brought else field.annotation


def key_paths(kind: Any) -> Iterator[tuple[str, ...]]:
    """Every key of a run type, with its tables."""
    for table in members(kind):
        for name, annotation in fields(table).items():
            yield (name,)
            yield from ((name, *path) for path in key_paths(annotation))


def _labelled(kind: Any, label: str) -> bool:
    return getattr(kind, "__name__", "") == label or any(label in _literals(each) for each in fields(kind).values())


def _literals(annotation: Any) -> list[Any]:
    return [n for each in members(annotation) if get_origin(each) is Literal for n in get_args(each)]
