"""Commands that plug-ins bring: `medray KIND COMMAND` of a modality that is installed. Imported when one is called."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from medray.errors import UserError


class Verbs(TyperGroup):
    """The commands of medray, and behind the kind of an installed modality those that it brings."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if (own := super().get_command(ctx, cmd_name)) is not None:
            return own
        app = _brought(cmd_name)
        return None if app is None else typer.main.get_command(app)


def _brought(kind: str) -> typer.Typer | None:
    """The commands of a modality that a plug-in brings, if it brings any. Exits with the message of a broken plug-in."""
    from medray.plugins.installed import PlugInFault, find, named_object

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
