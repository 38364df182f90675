"""Commands that modalities bring: `medray KIND COMMAND`. A modality is imported when one of its commands is called."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from medray.errors import UserError

OWN = {"ehr": ("medray.cli.ehr:ehr", "Health records.")}
"""Commands of medray's own modalities, as `Kind.commands` has those of plug-ins, and their line in `medray --help`: help is
shown without the modality, which imports much."""


class Verbs(TyperGroup):
    """The commands of medray, and behind the kind of a modality those that it brings."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if (own := super().get_command(ctx, cmd_name)) is not None:
            return own
        app = _brought(cmd_name)
        return None if app is None else typer.main.get_command(app)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        super().format_commands(ctx, formatter)
        with formatter.section("Commands of modalities"):
            formatter.write_dl([(kind, line) for kind, (_, line) in OWN.items()])


def _brought(kind: str) -> typer.Typer | None:
    """The commands that a modality brings, if it brings any. Exits with the message of a broken plug-in."""
    from medray.plugins.installed import PlugInFault, find, named_object

    if kind in OWN:
        return named_object(OWN[kind][0])
    if find("modalities", kind) is None:
        return None
    from medray.cli.shared import errors
    from medray.modalities.registry import modality_kind

    with errors():
        commands = modality_kind(kind).commands
        if commands is None:
            return None
        try:
            app = named_object(commands)
        except PlugInFault as error:
            raise UserError(str(error), do="see: medray plugins") from None
        if not isinstance(app, typer.Typer):
            raise UserError("the commands of a plug-in are no typer.Typer", where=commands, found=type(app).__name__)
        return app
