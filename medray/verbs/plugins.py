"""plugins: which kinds of data, models, objectives, exports and sources there are, whose they are, and whether they load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from pydantic import BaseModel

import medray
from medray import exports
from medray.errors import UserError
from medray.learning.models import ModelSpec
from medray.learning.models.base import ModelBase
from medray.learning.objectives import ObjectiveSpec
from medray.learning.objectives.base import Objective
from medray.modalities import registry
from medray.modalities.ehr.convert.settings import SourceBase, SourceKind, SourceSpec
from medray.plugins.installed import GROUPS, PlugIn, PlugInFault, installed
from medray.plugins.kinds import own_types, settings_type


class Brings(BaseModel):
    """One kind, and who brings it."""

    group: str
    """modalities, models, objectives, exports or sources: the entry-point group without `medray.`"""
    kind: str
    name: str
    """The distribution."""
    version: str
    loads: bool
    problem: str | None = None


def plug_ins() -> list[Brings]:
    """medray's own kinds and those of installed plug-ins, group by group; each plug-in is imported to see whether it loads."""
    rows: list[Brings] = []
    for group in GROUPS:
        own = _own(group)
        rows += [Brings(group=group, kind=kind, name="medray", version=medray.__version__, loads=True) for kind in own]
        rows += [_row(each, own) for each in sorted(installed(group).values(), key=lambda each: each.kind)]
    return rows


def _own(group: str) -> tuple[str, ...]:
    unions = {
        "modalities": registry.ModalitySpec,
        "models": ModelSpec,
        "objectives": ObjectiveSpec,
        "sources": SourceSpec,
    }
    return exports.OWN if group == "exports" else tuple(own_types(get_args(unions[group])[0]))


def _row(plug_in: PlugIn, own: tuple[str, ...]) -> Brings:
    problem = None
    try:
        if plug_in.kind in own:
            raise PlugInFault("medray has a kind of this name, which is the one that is used")
        _CHECKS[plug_in.group](plug_in)
    except (PlugInFault, UserError) as error:
        problem = str(error)
    return Brings(
        group=plug_in.group,
        kind=plug_in.kind,
        name=plug_in.distribution,
        version=plug_in.version,
        loads=problem is None,
        problem=problem,
    )


def _settings_of(base: type[BaseModel]) -> Callable[[PlugIn], None]:
    def check(plug_in: PlugIn) -> None:
        brought: Any = settings_type(plug_in.group, plug_in.kind)
        if not issubclass(brought, base):
            raise PlugInFault(f"{brought.__name__} is no {base.__module__}.{base.__name__}")

    return check


def _check_export(plug_in: PlugIn) -> None:
    if not callable(brought := plug_in.load()):
        raise PlugInFault(f"{brought!r} cannot be called")


def _check_source(plug_in: PlugIn) -> None:
    if not isinstance(plug_in.load(), SourceKind):
        raise PlugInFault(f"{plug_in.target} is no {SourceKind.__module__}.{SourceKind.__name__}")
    _settings_of(SourceBase)(plug_in)


_CHECKS: dict[str, Callable[[PlugIn], object]] = {
    "modalities": lambda plug_in: registry.modality_kind(plug_in.kind),
    "models": _settings_of(ModelBase),
    "objectives": _settings_of(Objective),
    "exports": _check_export,
    "sources": _check_source,
}
