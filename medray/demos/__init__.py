"""Demonstrations on real data that ships with medray: the whole way, offline, in minutes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from medray.errors import UserError
from medray.progress import Progress

if TYPE_CHECKING:
    from medray.demos.base import Demo, DemoSummary

DEMOS = ("imaging", "genomics", "ehr")


def plan_demo(name: str, out: Path) -> dict[str, Path]:
    """Each demo that `run_demo` would run, and its folder. Raises UserError as that does."""
    if name == "all":
        folders = {each: out / each for each in DEMOS}
    elif name in DEMOS or _brought(name) is not None:
        folders = {name: out}
    else:
        raise _no_such(name)
    from medray.demos.base import refuse_other

    for folder in folders.values():
        refuse_other(folder)
    return folders


def _no_such(name: str) -> UserError:
    return UserError(
        "there is no such demo",
        where=f"medray demo {name}",
        found=name,
        expected=", ".join((*DEMOS, *_kinds_with_demos(), "all")),
    )


def run_demo(name: str, out: Path, progress: Progress) -> dict[str, DemoSummary]:
    """Summaries by name, after running one demo, or "all" in a folder each. Raises UserError for an unknown name."""
    if name not in (*DEMOS, "all") and (brought := _brought(name)) is not None:
        from medray.demos.base import run_all

        return run_all({name: (brought, out)}, progress)
    if name not in (*DEMOS, "all"):
        raise _no_such(name)
    from medray.demos.base import run_all
    from medray.demos.genomics import GENOMICS
    from medray.demos.health_records import HEALTH_RECORDS
    from medray.demos.imaging import IMAGING

    demos = {"imaging": IMAGING, "genomics": GENOMICS, "ehr": HEALTH_RECORDS}
    if name != "all":
        return run_all({name: (demos[name], out)}, progress)
    return run_all({each: (demo, out / each) for each, demo in demos.items()}, progress)


def _kinds_with_demos() -> list[str]:
    """Kinds of plug-ins that bring a demo; one that cannot be used is left out."""
    from medray.plugins.installed import installed

    kinds: list[str] = []
    for kind in sorted(installed("modalities")):
        with suppress(UserError):
            kinds += [kind] if _brought(kind) is not None else []
    return kinds


def _brought(name: str) -> Demo | None:
    """The Demo of a modality of this name that a plug-in brings, if it brings one. Raises UserError."""
    from medray.plugins.installed import PlugInFault, find, named_object

    if find("modalities", name) is None:
        return None
    from medray.modalities.registry import modality_kind

    demo = modality_kind(name).demo
    try:
        return None if demo is None else named_object(demo)
    except PlugInFault as error:
        raise UserError(str(error), do="see: medray plugins") from None
