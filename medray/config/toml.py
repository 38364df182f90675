"""The text of a run file: TOML and `--set` to plain settings, and where each key stands. Imports nothing heavy."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medray.errors import RunFileError

Lines = dict[tuple[str, ...], int | str]
"""Where a key stands: its line from 1, or the `--set` that gave it."""


@dataclass
class RunText:
    """A run file as it is written, unchecked."""

    path: Path
    settings: dict[str, Any]
    lines: Lines = field(default_factory=dict)

    def where(self, keys: tuple[str, ...]) -> str:
        """The key's own line, or that of the nearest table that holds it."""
        for length in range(len(keys), 0, -1):
            line = self.lines.get(keys[:length])
            if line is not None:
                return f"{self.path}:{line}" if isinstance(line, int) else f"{self.path}, {line}"
        return str(self.path)


def read(path: str | Path) -> RunText:
    """The run file at `path`. Raises RunFileError where it cannot be read or is no TOML."""
    path = Path(path)
    text = _read(path)
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(path, text, error) from None
    return RunText(path, settings, key_lines(text, settings))


def override(run: RunText, overrides: Sequence[str]) -> None:
    """Replace or add single keys, "training.epochs=3" each. Raises RunFileError."""
    for each in overrides:
        keys, value = parse_override(each)
        put(run.settings, keys, value)
        run.lines[keys] = "--set " + ".".join(keys)


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
    import difflib

    names = sorted(each.name for each in path.parent.glob("*.toml"))
    near = difflib.get_close_matches(path.name, names, 1)
    if near:
        return f"did you mean {path.parent / near[0]}?"
    return f"run files in {path.parent}: " + (listed(names) if names else "none")


def _syntax_error(path: Path, text: str, error: tomllib.TOMLDecodeError) -> RunFileError:
    mark = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
    if not mark:  # "(at end of document)"
        return RunFileError(f"no valid TOML: {error}", where=str(path))
    line, column = int(mark[1]), int(mark[2])
    line_text = text.splitlines()[line - 1].strip() if line <= len(text.splitlines()) else ""
    return RunFileError(
        f"no valid TOML: {str(error)[: mark.start()]}", where=f"{path}:{line}, column {column}", found=short(line_text)
    )


_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*\[\s*({_DOTTED})\s*\]\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED})\s*=")


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


def put(settings: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        settings = settings.setdefault(key, {})
        if not isinstance(settings, dict):
            raise RunFileError(
                f"{'.'.join(keys[: depth + 1])} is a value, no table",
                where="--set " + ".".join(keys),
                found=shown(settings),
            )
    settings[keys[-1]] = value


# --- as a person writes it ------------------------------------------------------------------------------------


def listed(names: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(name) for name in names))


def shown(value: Any) -> str:
    """A value as TOML has it, cut where it is long."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return short(f'"{value}"')
        case dict():
            return f"a table of {listed(value)}" if value else "an empty table"
        case list():
            return short("[" + ", ".join(shown(each) for each in value) + "]")
    return short(str(value))


def short(text: str, width: int = 80) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
