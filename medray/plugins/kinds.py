"""Kinds: how a field of a run file or a recipe becomes the settings type that its `kind` names, of medray or a plug-in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Union, get_args

from pydantic import BaseModel, Discriminator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from medray.plugins import LOADED
from medray.plugins.installed import PlugInFault, find, installed


@dataclass(frozen=True)
class Kinds:
    """Metadata of an `Annotated` union of medray's own settings types: it takes those of plug-ins of `group`, too.

    A plug-in is imported when its kind is named: its keys are not in JSON Schema, which takes any for its kind.
    """

    group: str
    """A key of plugins.installed.GROUPS."""
    free: type[BaseModel] | None = None
    """Settings of kinds that are no fixed name; they begin with its `PREFIX`."""

    def schemas(self) -> list[CoreSchema]:
        """Those of the settings types beside the union's that were asked for in this process, for messages on their keys."""
        types = [spec for (group, _), spec in _LOADED.items() if group == self.group]
        return [TypeAdapter(spec).core_schema for spec in (types if self.free is None else [*types, self.free])]

    def __get_pydantic_core_schema__(self, union: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        own = own_types(union)
        inner = handler.generate_schema(Annotated[union, Field(discriminator="kind")])

        def validated(value: Any, validate: core_schema.ValidatorFunctionWrapHandler) -> Any:
            kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
            if not isinstance(kind, str) or kind in own:
                return validate(value)
            if self.free is not None and kind.startswith(getattr(self.free, "PREFIX", "\0")):
                return _free_adapter(self.free).validate_python(value)
            if find(self.group, kind) is None:
                free = () if self.free is None else (f"{getattr(self.free, 'PREFIX', '')}…",)
                known = (*own, *installed(self.group), *free)
                tags = ", ".join(f"'{each}'" for each in known)
                raise PydanticKnownError(
                    "union_tag_invalid", {"discriminator": "'kind'", "tag": kind, "expected_tags": tags}
                )
            return _adapter(self.group, kind, tuple(own.values())).validate_python(value)

        whole = core_schema.wrap_serializer_function_ser_schema(lambda value, dump: dump(value), schema=ANY)
        return core_schema.no_info_wrap_validator_function(
            validated, inner, serialization=whole, metadata={LOADED: self.schemas}
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        union = handler(schema)
        if self.free is not None:
            union["oneOf"].append(handler(TypeAdapter(self.free).core_schema))
        if brought := [kind for kind in installed(self.group) if kind not in union["discriminator"]["mapping"]]:
            table: JsonSchemaValue = {"type": "object", "properties": {"kind": {"enum": brought}}, "required": ["kind"]}
            union["oneOf"].append(table)
        return union


ANY = core_schema.any_schema()


def own_types(union: Any) -> dict[str, type[BaseModel]]:
    """kind to settings type of the members of a union."""
    types = get_args(union) or (union,)
    return {tag: each for each in types for tag in get_args(each.model_fields["kind"].annotation)}


def settings_type(group: str, kind: str) -> type[BaseModel]:
    """The settings type of a plug-in's kind. Raises PlugInFault where there is none or it cannot be used."""
    plug_in = find(group, kind)
    if plug_in is None:
        raise PlugInFault(f"no plug-in brings the kind {kind!r}")
    brought = plug_in.load()
    spec = getattr(brought, "spec", brought)
    if not (isinstance(spec, type) and issubclass(spec, BaseModel)):
        raise PlugInFault(f"the plug-in {plug_in} brings no settings type as {kind!r}: {plug_in.target} is {brought!r}")
    field = spec.model_fields.get("kind")
    if field is None or get_args(field.annotation) != (kind,):
        raise PlugInFault(
            f'{spec.__name__} of the plug-in {plug_in} needs the field kind: Literal["{kind}"] = "{kind}", as its entry point'
        )
    _LOADED[group, kind] = spec
    return spec


_LOADED: dict[tuple[str, str], type[BaseModel]] = {}


@cache
def _adapter(group: str, kind: str, own: tuple[type[BaseModel], ...]) -> TypeAdapter[Any]:
    """Adapter of the plug-in's type as a member of the union, so that a wrong key is reported as one of medray's own is."""
    union: Any = Union[(*own, settings_type(group, kind))]
    tagged: Any = Annotated[union, Field(discriminator="kind")]
    return TypeAdapter(tagged)


@cache
def _free_adapter(settings: type[BaseModel]) -> TypeAdapter[Any]:
    """Places of its errors begin with the type's name, as those of a union do with the kind."""
    tagged: Any = Annotated[Annotated[settings, Tag(settings.__name__)], Discriminator(lambda _: settings.__name__)]
    return TypeAdapter(tagged)
