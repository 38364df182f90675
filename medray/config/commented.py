"""A run file as a newcomer reads it: settings as TOML, each key with its description, and the keys left out as comments.

A line of prose begins with "# ". A key that is left out begins with "#" alone, so taking that mark away turns it on, at
its default.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from medray.config.described import descriptions
from medray.config.undecided import UNDECIDED
from medray.plugins.installed import PlugInFault
from medray.plugins.kinds import Kinds, settings_type

WIDTH = 110
"""Characters of a line of prose."""

SHORTEST = 20
"""Characters of a first sentence that says something."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class FreeTable:
    """What may stand in a table that a run type leaves free: some of the keys of a settings type."""

    kind: type[BaseModel]
    keys: Collection[str]
    otherwise: str
    """What holds for a key that is left out, in the place of its default."""


@dataclass(frozen=True)
class Commented:
    """Writes run files of one type."""

    kind: type[BaseModel]
    notes: Mapping[str, str] = field(default_factory=dict)
    """Dotted key to what else is said about the value that was chosen."""
    free: Mapping[str, FreeTable] = field(default_factory=dict)
    """Keys at the top whose tables the run type leaves free."""

    def lines(self, settings: Settings) -> Iterator[str]:
        """The run file, line by line. A required key that `settings` lacks is written as undecided."""
        yield from self._table((), self.kind, settings)

    def _table(self, path: tuple[str, ...], kind: type[BaseModel] | None, settings: Settings) -> Iterator[str]:
        """The keys of a table, those that are given first, then its tables."""
        texts = {} if kind is None else descriptions(kind)
        fields = {} if kind is None else kind.model_fields
        if not path or path[0] not in self.free:
            keys = [name for name in fields if not _is_no_setting(texts.get(name, ""))]
        else:
            keys = [
                name for name in fields if name in self.free[path[0]].keys and not _is_no_setting(texts.get(name, ""))
            ]
        missing = {
            name: f"{UNDECIDED} {_first_sentence(texts.get(name, ''))}"
            for name in keys
            if fields[name].is_required() and not self._is_table((*path, name), fields[name]) and name not in settings
        }
        written = {**settings, **missing}
        order = [name for name in ("kind", *keys, *written) if name in written]
        below: list[str] = []
        for name in dict.fromkeys(order):
            if isinstance(written[name], Mapping) or _is_array_of_tables(written[name]):
                below.append(name)
                continue
            prose = " ".join(filter(None, (texts.get(name), self.notes.get(".".join((*path, name))))))
            yield from _prose(prose)
            yield f"{name} = {toml_value(written[name])}"
        optional = [name for name in keys if name not in written]
        scalars = [name for name in optional if not self._is_table((*path, name), fields[name])]
        if scalars:
            yield ""
            yield f"# Optional, with {self._otherwise(path) or 'defaults'}:"
            yield from (self._left_out((*path, name), fields[name], texts.get(name, "")) for name in scalars)
        tables = [name for name in optional if name not in scalars]
        for name in (*sorted(below, key=list(written).index), *tables):
            prose = " ".join(filter(None, (texts.get(name), self.notes.get(".".join((*path, name))))))
            if name in fields:
                yield from self._below((*path, name), fields[name], written.get(name), prose)
            else:
                yield from self._headed((*path, name), None, written[name], prose)

    def _below(self, path: tuple[str, ...], field: FieldInfo, settings: Any, text: str) -> Iterator[str]:
        """The table at a key: with settings, or as comments."""
        if isinstance(settings, Mapping):
            kind = self.free[path[0]].kind if path[0] in self.free else _kind_of(field, settings)
            yield from self._headed(path, kind, settings, text)
        elif settings is not None:
            for each in settings:
                yield ""
                yield from _prose(text)
                yield f"[[{'.'.join(path)}]]"
                yield from self._table(path, _kind_of(field, each), each)
        else:
            kind = self.free[path[0]].kind if path[0] in self.free else _kind_of(field, None)
            yield ""
            yield from _prose(text)
            fields = {} if kind is None else kind.model_fields
            # a table that cannot stand without a value of the user's own is told of, not to be turned on as it is
            mark = "# " if any(each.is_required() for each in fields.values()) else "#"
            heading = ".".join(path)
            yield f"{mark}[[{heading}]]" if get_origin(field.annotation) is tuple else f"{mark}[{heading}]"
            texts = {} if kind is None else descriptions(kind)
            for name, below in fields.items():
                if _is_no_setting(texts.get(name, "")) or self._is_table((*path, name), below):
                    continue
                if path[0] not in self.free or name in self.free[path[0]].keys:
                    line = self._left_out((*path, name), below, texts.get(name, ""))
                    yield line if line.startswith("# ") else mark + line.removeprefix("#")

    def _headed(
        self, path: tuple[str, ...], kind: type[BaseModel] | None, settings: Settings, text: str
    ) -> Iterator[str]:
        yield ""
        yield from _prose(text)
        yield f"[{'.'.join(path)}]"
        yield from self._table(path, kind, settings)

    def _is_table(self, path: tuple[str, ...], field: FieldInfo) -> bool:
        return (len(path) == 1 and path[0] in self.free) or bool(_members(field.annotation))

    def _otherwise(self, path: tuple[str, ...]) -> str:
        """What stands in for the default of keys in a free table."""
        return self.free[path[0]].otherwise if path and path[0] in self.free else ""

    def _left_out(self, path: tuple[str, ...], field: FieldInfo, text: str) -> str:
        """A key that is not given, on one line: its default, and how its description begins."""
        default = field.get_default(call_default_factory=True)
        if otherwise := self._otherwise(path):
            shown = f"# {path[-1]}: {otherwise}"
        elif default is None or default is PydanticUndefined:
            shown = f"# {path[-1]}: {'none' if default is None else 'no default'}"
        else:
            shown = f"#{path[-1]} = {toml_value(default)}"
        begin = textwrap.shorten(_first_sentence(text), WIDTH - 30, placeholder=" …")
        return f"{shown:<24}  # {begin}" if text else shown


# --- types ----------------------------------------------------------------------------------------------------


def _members(annotation: Any) -> list[type[BaseModel]]:
    """The settings types among which a key chooses."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [] if get_origin(annotation) is dict else [each for arg in get_args(annotation) for each in _members(arg)]


def _kind_of(field: FieldInfo, settings: Settings | None) -> type[BaseModel] | None:
    """The settings type of a table: that of its `kind`, else of the default, else the only one. None: not known yet."""
    members = _members(field.annotation)
    kind = None if settings is None else settings.get("kind")
    if isinstance(kind, str) and not kind.startswith(UNDECIDED):
        for each in members:
            if kind in get_args(each.model_fields["kind"].annotation):
                return each
        for group in (each.group for each in field.metadata if isinstance(each, Kinds)):
            try:
                return settings_type(group, kind)
            except PlugInFault:
                return None
    if isinstance(field.default, BaseModel) and (settings is None or "kind" not in settings):
        return type(field.default)
    return members[0] if len(members) == 1 else None


def _is_no_setting(text: str) -> bool:
    """Whether a key is there for bundles alone, by its description."""
    return text.startswith(("Fitted", "Without effect")) or "not to be set in a run file" in text


# --- text -----------------------------------------------------------------------------------------------------


def _first_sentence(text: str) -> str:
    """How a description begins: a sentence, or two where the first is a word."""
    end = text.find(". ", SHORTEST)
    return text if end < 0 else text[: end + 1]


def _prose(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False)]


def _is_array_of_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, Mapping) for each in value)


def toml_value(value: Any) -> str:
    """A value of a run file as TOML writes it on one line."""
    match value:
        case bool():
            return str(value).lower()
        case str() if re.fullmatch(r"[^'\x00-\x1f\x7f]*[\"\\][^'\x00-\x1f\x7f]*", value):
            return f"'{value}'"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case datetime():
            return value.isoformat()
        case Mapping():
            pairs = [f"{json.dumps(str(key))} = {toml_value(each)}" for key, each in value.items()]
            return "{ " + ", ".join(pairs) + " }" if pairs else "{}"
        case list() | tuple():
            return "[" + ", ".join(map(toml_value, value)) + "]"
    return str(value)
