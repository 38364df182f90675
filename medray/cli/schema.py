"""`medray schema`: what a run file may hold, as JSON Schema."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from medray.cli.quick import RUN_VERBS
from medray.cli.shared import errors
from medray.errors import UserError


def schema(
    verb: Annotated[list[str], typer.Argument(metavar="VERB", help=", ".join(RUN_VERBS) + ".")],
) -> None:
    """JSON Schema of a verb's run file: keys, types, defaults and what they do, for editors and programs."""
    with errors():
        kind = RUN_VERBS.get(" ".join(verb))
        if kind is None:
            raise UserError("no verb that takes a run file", found=" ".join(verb), expected=", ".join(RUN_VERBS))
        from medray.config.described import json_schema
        from medray.config.runs import RUN_TYPES

        typer.echo(json.dumps(json_schema(RUN_TYPES[kind]), indent=2, ensure_ascii=False))
