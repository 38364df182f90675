"""The plug-ins that are installed: entry points of other distributions. Their names are read once, their code is imported
when one of them is named, never before. Imports nothing of medray, so that every layer may ask it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any

GROUPS = {
    "modalities": "modality",
    "models": "model",
    "objectives": "objective",
    "exports": "export",
    "sources": "source",
}
"""Group to what one of it is called. The entry-point groups are `medray.modalities`, `medray.models` …"""


class PlugInFault(ValueError):
    """A plug-in that is installed and cannot be used."""


@dataclass(frozen=True)
class PlugIn:
    """One kind that an installed distribution brings."""

    group: str
    """A key of GROUPS."""
    kind: str
    """What a run file names it by."""
    target: str
    """module:object"""
    distribution: str
    version: str
    point: EntryPoint
    rivals: tuple[str, ...] = ()
    """Other distributions that bring the same kind; then none of them is loaded."""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"

    def load(self) -> Any:
        """The object, imported at the first call. Raises PlugInFault."""
        return _loaded(self)


@cache
def installed(group: str) -> Mapping[str, PlugIn]:
    """The plug-ins of one group by their kind, none of them imported."""
    brought: dict[str, PlugIn] = {}
    for point in importlib.metadata.entry_points(group=f"medray.{group}"):
        name, version = ("?", "?") if point.dist is None else (point.dist.name, point.dist.version)
        other = brought.get(point.name)
        rivals = () if other is None else (*other.rivals, str(other))
        brought[point.name] = PlugIn(group, point.name, point.value, name, version, point, rivals)
    return brought


def find(group: str, kind: str) -> PlugIn | None:
    """The plug-in that brings this kind, if one is installed."""
    return installed(group).get(kind)


def named_object(name: str) -> Any:
    """What "package.module:object" names, imported. Raises PlugInFault."""
    try:
        return EntryPoint(name, name, "medray").load()
    except Exception as error:  # of others' code, whatever it raises
        raise PlugInFault(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error


@cache
def _loaded(plug_in: PlugIn) -> Any:
    what = f"the plug-in {plug_in} for {GROUPS[plug_in.group]} {plug_in.kind!r}"
    if plug_in.rivals:
        raise PlugInFault(f"{what} cannot be used: {', '.join(plug_in.rivals)} brings the same kind; uninstall one")
    try:
        return plug_in.point.load()
    except Exception as error:  # of others' code, whatever it raises
        raise PlugInFault(f"{what} cannot be loaded: {type(error).__name__}: {error}") from error
