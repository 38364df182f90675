"""The outline of the run types: their keys, types and choices as plain data, kept in the user's cache folder.

A wrong run file is answered from it in a tenth of a second, where the types themselves, with all that their modules
import, take ten times as long. It is made of the types, when a run file is loaded for the first time after any module of
medray has changed; where it is missing, or a module is newer, or what kind of data is meant only an installed plug-in can
say, nothing is decided here and the types answer. What keys mean together (fractions that add up to 1) is theirs as well:
it is looked at once every key is there and of its type.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medray.config import renamed, toml
from medray.config.problems import problems, refusal
from medray.config.shapes import Shape
from medray.config.undecided import refuse_undecided

if TYPE_CHECKING:
    from pydantic import BaseModel

FORMAT = 1
ANY = {"type": "any"}


def kind_of(keys: Collection[str], known: Mapping[str, Collection[str]]) -> str:
    """Which run type a file with these keys at its top is of: a NightlyRun where it names a `store` and `bundles`, a
    ScoreRun where a `store` alone, a ConvertRun where it has a [source], an EvaluateRun where it has a `bundle` and neither
    [model] nor [objective], else a TrainRun.

    Where that type does not know keys that another knows, one of those is misspelt, and the file is of the type that knows
    most: what is offered instead is then a key of it. `known`: run type to its keys.
    """
    keys = set(keys)
    scoring = "NightlyRun" if "bundles" in keys else "ScoreRun"
    alone = "bundle" in keys and not keys & {"model", "objective", "training"}
    other = "ConvertRun" if "source" in keys else "EvaluateRun" if alone else "TrainRun"
    named = scoring if "store" in keys else other
    kinds = [named, "NightlyRun", "ScoreRun", "ConvertRun", "EvaluateRun", "TrainRun"]
    return min(kinds, key=lambda kind: len(keys - set(known[kind])))  # of equals the first: as named


# --- a quick answer -------------------------------------------------------------------------------------------


def check(path: str | Path, overrides: Sequence[str] = ()) -> tuple[str, dict[str, Any]] | None:
    """(run type, settings) of a run file in which every key is there and of its type. None: not decided.

    Raises RunFileError for what the types would refuse, as `runs.load` does.
    """
    run = toml.read(path)
    renamed.translate(run)
    keys = list(run.settings)
    toml.override(run, overrides)
    renamed.translate(run)
    refuse_undecided(run)
    types = _kept()
    if types is None:
        return None
    kind = kind_of(keys, {name: Shape.of(schema).fields() for name, schema in types.items()})
    from pydantic_core import SchemaError, SchemaValidator, ValidationError

    try:
        SchemaValidator(types[kind]).validate_python(run.settings)
    except ValidationError as error:
        if any(detail["type"] == "union_tag_invalid" for detail in error.errors(include_url=False)):
            return None  # an installed plug-in may have this kind
        raise refusal(run, list(problems(error, Shape.of(types[kind])))) from None
    except SchemaError:
        return None
    return kind, run.settings


def _kept() -> dict[str, Any] | None:
    """Run type to its schema; None where there is none, or it is not of the code as it is now."""
    try:
        stored = json.loads(_path().read_bytes(), object_hook=_with_class)
        return stored["types"] if stored["made_of"] == _made_of(stored["made_of"]["files"]) else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None


def _with_class(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of a table needs a class; an empty one of the same name serves."""
    return schema | {"cls": type(schema["cls"], (), {})} if schema.get("type") == "model" else schema


def _path() -> Path:
    """In the user's cache folder, one file for each place that medray is installed in."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "medray" / f"run-types-{zlib.crc32(__file__.encode()):08x}.json"


def _made_of(files: Mapping[str, Any]) -> dict[str, Any]:
    """What the outline follows from: the version of pydantic's core, and size and time of each file."""
    import pydantic_core

    def stamp(file: str) -> list[int]:
        facts = os.stat(file)
        return [facts.st_size, facts.st_mtime_ns]

    return {"format": FORMAT, "core": pydantic_core.__version__, "files": {file: stamp(file) for file in files}}


# --- making it ------------------------------------------------------------------------------------------------


def keep(types: Collection[type[BaseModel]]) -> None:
    """Write the outline of the run types, where it is missing or old. Where nothing can be written, all stays as it is."""
    if _kept() is not None:
        return
    import tempfile

    from pydantic import TypeAdapter

    modules = list(sys.modules.items())
    files = {str(module.__file__): None for name, module in modules if name.startswith("medray") and module.__file__}
    with suppress(OSError, RuntimeError):  # no home folder, or one that is read-only
        outline = {
            "made_of": _made_of(files),
            "types": {each.__name__: plain(TypeAdapter(each).core_schema) for each in types},
        }
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, written = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump(outline, out, separators=(",", ":"))
        os.replace(written, path)


_CONSTRAINTS = (
    "ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern", "expected", "discriminator", "strict",
    "schema_ref", "ref", "variadic_item_index", "microseconds_precision", "allow_inf_nan", "custom_error_type",
    "custom_error_message",
)  # fmt: skip
_SCALARS = ("str", "int", "float", "bool", "datetime", "literal", "definition-ref", "none", "any")


def plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A core schema as JSON can hold it: classes by name, and anything where only Python code can tell what is right.

    It never refuses what the schema itself takes.
    """
    kind = schema["type"]
    rest = {name: schema[name] for name in _CONSTRAINTS if schema.get(name) is not None}
    rest |= {"type": kind}
    match kind:
        case "definitions":
            return rest | {"schema": plain(schema["schema"]), "definitions": list(map(plain, schema["definitions"]))}
        case "model":
            config = {"extra_fields_behavior": schema.get("config", {}).get("extra_fields_behavior", "ignore")}
            return rest | {"cls": schema["cls"].__name__, "schema": plain(schema["schema"]), "config": config}
        case "model-fields":
            fields = {
                name: {"type": "model-field", "schema": plain(field["schema"])}
                | ({"validation_alias": field["validation_alias"]} if "validation_alias" in field else {})
                for name, field in schema["fields"].items()
            }
            return rest | {"fields": fields, "model_name": schema.get("model_name", "")}
        case "function-after":
            inner = plain(schema["schema"])
            return inner | ({"ref": schema["ref"]} if "ref" in schema else {})
        case "function-wrap" if schema["schema"]["type"] == "tagged-union":  # further kinds, of plug-ins
            return plain(schema["schema"])
        case "default":
            return rest | {"schema": plain(schema["schema"]), "default": None}
        case "nullable":
            return rest | {"schema": plain(schema["schema"])}
        case "union":
            return rest | {
                "choices": [plain(each[0] if isinstance(each, tuple) else each) for each in schema["choices"]]
            }
        case "tagged-union":
            return rest | {"choices": {tag: plain(each) for tag, each in schema["choices"].items()}}
        case "tuple":
            return rest | {"items_schema": list(map(plain, schema["items_schema"]))}
        case "list":
            return rest | {"items_schema": plain(schema.get("items_schema", ANY))}
        case "dict":
            keys, values = schema.get("keys_schema", ANY), schema.get("values_schema", ANY)
            return rest | {"keys_schema": plain(keys), "values_schema": plain(values)}
        case _:
            return rest if kind in _SCALARS else ANY | ({"ref": schema["ref"]} if "ref" in schema else {})
