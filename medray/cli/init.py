"""`medray init`: a run file to begin with."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medray.cli.shared import errors
from medray.errors import UserError


class Purpose(StrEnum):
    train = "train"
    score = "score"
    nightly = "nightly"


def init(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="imaging, genomics or ehr.")] = None,
    archive: Annotated[str | None, typer.Argument(metavar="ARCHIVE", help="A folder or a file.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The new run file; - prints it.")] = None,
    purpose: Annotated[Purpose, typer.Option("--for", help="What the run file is for.")] = Purpose.train,
    example: Annotated[
        str | None, typer.Option("--example", metavar="NAME", help="Print one of medray's own run files instead.")
    ] = None,
) -> None:
    """A commented run file for an archive, by what medray sees in it. Nothing is overwritten."""
    with errors():
        from medray.verbs import init as verb

        if example is not None:
            typer.echo(verb.example(example), nl=False)
            return
        if kind is None or archive is None:
            raise UserError(
                "what is the archive, and what is in it?",
                expected=f"medray init KIND ARCHIVE, with {', '.join(verb.kinds())} as KIND; or --example NAME",
            )
        text = verb.init(kind, archive, purpose.value)
        if str(out) == "-":
            typer.echo(text, nl=False)
            return
        name = verb.name_of(archive)
        file = verb.write(text, out or Path(f"{name}_{purpose.value}.toml"))
        for line in text.split("\n\n")[0].splitlines():
            typer.echo(line.removeprefix("# "))
        typer.echo(f"{file}: look at it and change what is wrong. Then:")
        typer.echo(f"medray {'index' if purpose is Purpose.train else purpose.value} {file}")
