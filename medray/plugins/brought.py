"""Which plug-ins settings are of, and what a bundle keeps of them: a number of a plug-in is only worth its version."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict

from medray.plugins.installed import GROUPS, find
from medray.plugins.kinds import settings_type


class Numbers:
    """What every settings type says of the numbers that come of it; medray's own leave it as it is."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version may change a number; a bundle keeps the versions that it was trained with."""
    same_numbers_since: ClassVar[str | None] = None
    """The oldest version of the plug-in whose bundles this one gives the very same scores for. None: only its own."""


class Brought(BaseModel):
    """The plug-in that a part of a recipe is of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str
    kind: str
    distribution: str
    version: str


class Mismatch(NamedTuple):
    """Why a bundle cannot be used with what is installed."""

    what: str
    found: str
    expected: str
    do: str


def brought(*settings: BaseModel) -> tuple[Brought, ...]:
    """The plug-ins that these modality, model and objective settings are of; those of medray itself are none."""
    groups = ("modalities", "models", "objectives")
    kinds = [(group, getattr(each, "kind", ""), type(each)) for each in settings for group in groups]
    plug_ins = [find(group, kind) for group, kind, settings_of in kinds if _is_of(group, kind, settings_of)]
    return tuple(
        Brought(group=each.group, kind=each.kind, distribution=each.distribution, version=each.version)
        for each in plug_ins
        if each is not None
    )


def _is_of(group: str, kind: str, settings: type[BaseModel]) -> bool:
    """The plug-in of this kind is where the settings type comes from, not a kind of medray with the same name."""
    return (
        find(group, kind) is not None
        and not settings.__module__.startswith("medray.")
        and (settings_type(group, kind) is settings)
    )


def mismatch(recorded: Brought) -> Mismatch | None:
    """What is wrong where the installed plug-in may give other numbers than the one recorded; None: nothing.

    Raises PlugInFault where it cannot be loaded.
    """
    here = find(recorded.group, recorded.kind)
    of = f"{GROUPS.get(recorded.group, recorded.group)} {recorded.kind!r}"
    want = f"{recorded.distribution} {recorded.version}"
    do = f"pip install '{recorded.distribution}=={recorded.version}'"
    if here is None:
        return Mismatch(f"its {of} is of a plug-in that is not installed", "none", want, do)
    if here.distribution != recorded.distribution:
        return Mismatch(f"its {of} is of another plug-in than the one installed", str(here), want, do)
    if here.version == recorded.version:
        return None
    since = getattr(settings_type(recorded.group, recorded.kind), "same_numbers_since", None)
    if since is not None and _between(since, recorded.version, here.version):
        return None
    do += ", or train again: other versions may give other scores"
    return Mismatch(f"its {of} was made with another version of the plug-in", str(here), want, do)


def _between(oldest: str, version: str, newest: str) -> bool:
    try:
        return Version(oldest) <= Version(version) <= Version(newest)
    except InvalidVersion:
        return False


def libraries(*settings: BaseModel) -> tuple[str, ...]:
    """Names of the distributions, beside medray's own, that decide numbers of these settings."""
    return tuple(dict.fromkeys(name for each in settings for name in getattr(each, "libraries", ())))
