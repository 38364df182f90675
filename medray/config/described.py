"""What the run types say of themselves, for people and for editors: JSON Schema, and the description of every key.

A key is described by the text below it in its class. It is read from the source when somebody asks: pydantic's
`use_attribute_docstrings` would read it whenever a class is made, an eighth of a second in every process of a run.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter

from medray.plugins.kinds import Kinds

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the run files of one type, each key described."""
    schema = TypeAdapter(kind).json_schema()
    _name_tables(schema)
    tables = {each.__name__: each for each in settings_types(kind)}
    for name, table in [(kind.__name__, schema), *schema.get("$defs", {}).items()]:
        texts = descriptions(tables[name])
        for key, described in table.get("properties", {}).items():
            if key in texts:
                described.setdefault("description", texts[key])
        if "description" in table:
            table["description"] = _one_line(table["description"].split("\n\n")[0])
    return {"$schema": DRAFT, **schema}


def _name_tables(schema: dict[str, Any]) -> None:
    """Put tables that a key's schema holds inline, since they are no members of its union, beside those that are."""
    for described in schema["properties"].values():
        choices = described.get("oneOf", [])
        for number, choice in enumerate(choices):
            if "title" in choice:
                schema["$defs"][choice["title"]] = choice
                choices[number] = {"$ref": f"#/$defs/{choice['title']}"}


def descriptions(kind: type[BaseModel]) -> dict[str, str]:
    """Key to what it does, on one line, of a settings type and the types it inherits from; what is not said is left out."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if issubclass(each, BaseModel) and each is not BaseModel:
            texts |= _own(each)
    own = {name: field.description for name, field in kind.model_fields.items() if field.description}
    return {name: _one_line(text) for name, text in (texts | own).items() if name in kind.model_fields}


def _own(kind: type[BaseModel]) -> dict[str, str]:
    """The strings that stand below the fields in the source of the class."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    except (OSError, TypeError):  # made in a console
        return {}
    assert isinstance(body, ast.ClassDef)
    texts: dict[str, str] = {}
    for statement, below in zip(body.body, body.body[1:], strict=False):
        match statement, below:
            case (ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text)))):
                texts[name] = text
    return texts


def _one_line(text: str) -> str:
    return " ".join(text.split())


def settings_types(kind: Any, known: set[type[BaseModel]] | None = None) -> Iterator[type[BaseModel]]:
    """A run type and the types of all its tables, each once, in the order of the keys."""
    known = set() if known is None else known
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if kind not in known:
            known.add(kind)
            yield kind
            for field in kind.model_fields.values():
                yield from settings_types(field.annotation, known)
                for kinds in (each for each in field.metadata if isinstance(each, Kinds) and each.free is not None):
                    yield from settings_types(kinds.free, known)
    else:
        for each in get_args(kind):
            yield from settings_types(each, known)
