"""The shape of a settings type: which keys it has, and what may stand there, from pydantic's core schema of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medray.plugins import LOADED

_WRAPS = ("default", "nullable", "function-after", "function-before", "function-wrap")
"""Schemas that stand around another without being a step of their own in a location."""


@dataclass(frozen=True)
class Shape:
    """What may stand at one place of a run file."""

    schema: Mapping[str, Any]
    definitions: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, schema: Mapping[str, Any]) -> Shape:
        """The shape of a whole core schema, as `TypeAdapter(kind).core_schema` gives it."""
        if schema["type"] == "definitions":
            return cls(schema["schema"], {each["ref"]: each for each in schema["definitions"]})
        return cls(schema, {})

    @property
    def name(self) -> str:
        """A table's type by name; of all others the schema's type: "int", "tuple" …"""
        named = self.schema.get("cls", self.schema["type"])
        return named if isinstance(named, str) else named.__name__

    @property
    def literals(self) -> list[Any]:
        return list(self.schema["expected"]) if self.schema["type"] == "literal" else []

    def members(self) -> list[Shape]:
        """The members of a union, or the shape itself; defaults, None and validators around it are opened."""
        kind = self.schema["type"]
        if kind in _WRAPS:
            brought = (self.schema.get("metadata") or {}).get(LOADED, tuple)()
            return self._at(self.schema["schema"]).members() + [Shape.of(schema) for schema in brought]
        if kind == "definition-ref":
            return self._at(self.definitions[self.schema["schema_ref"]]).members()
        if kind == "union":
            choices = [each[0] if isinstance(each, tuple) else each for each in self.schema["choices"]]
            return [member for each in choices for member in self._at(each).members()]
        if kind == "tagged-union":
            return [member for each in self.schema["choices"].values() for member in self._at(each).members()]
        return [] if kind == "none" else [self]

    def fields(self) -> dict[str, Shape]:
        """Key to shape of a table; a free table (`dict`) and a scalar have none."""
        schema = self.schema
        while schema["type"] == "model" or schema["type"] in _WRAPS:
            schema = schema["schema"]
        if schema["type"] != "model-fields":
            return {}
        return {_key(name, field): self._at(field["schema"]) for name, field in schema["fields"].items()}

    def items(self) -> list[Shape]:
        """What the items of a list may be."""
        schema = self.schema.get("items_schema", [])
        return [self._at(each) for each in (schema if isinstance(schema, list) else [schema])]

    def labelled(self, label: str) -> bool:
        """Whether pydantic calls this member of a union `label`: by the name of its type, or by a tag that it has."""
        return self.name == label or any(
            label in each.literals for key in self.fields().values() for each in key.members()
        )

    def _at(self, schema: Mapping[str, Any]) -> Shape:
        return Shape(schema, self.definitions)


def _key(name: str, field: Mapping[str, Any]) -> str:
    alias = field.get("validation_alias")
    return alias if isinstance(alias, str) else name


def resolve(shape: Shape, location: Sequence[int | str]) -> tuple[tuple[str, ...], list[Shape]]:
    """(keys, what may stand there) of a pydantic location, whose union labels and tags are no keys."""
    keys: list[str] = []
    shapes = shape.members()
    for step in location:
        if isinstance(step, int):
            keys.append(f"[{step}]")
            shapes = [member for each in shapes for item in each.items() for member in item.members()]
        elif len(shapes) > 1 or (shapes and step not in shapes[0].fields() and shapes[0].labelled(step)):
            shapes = [each for each in shapes if each.labelled(step)] or shapes
        else:
            keys.append(step)
            below = shapes[0].fields().get(step) if shapes else None
            shapes = below.members() if below else []
    return tuple(keys), shapes


def key_paths(shape: Shape) -> Iterator[tuple[str, ...]]:
    """Every key of a run type, with its tables; those of tables in arrays are left out."""
    for table in shape.members():
        for name, below in table.fields().items():
            yield (name,)
            yield from ((name, *path) for path in key_paths(below))
