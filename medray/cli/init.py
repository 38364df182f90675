"""`medray init`: a run file to begin with."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.shared import DryRun, Json, act, errors
from medray.errors import UserError

if TYPE_CHECKING:
    from medray.verbs.init import NewRunFile


class Purpose(StrEnum):
    train = "train"
    score = "score"
    nightly = "nightly"
    convert = "convert"


def init(
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help="imaging, ehr, genomics, or one that a plug-in brings.")
    ] = None,
    archive: Annotated[str | None, typer.Argument(metavar="ARCHIVE", help="A folder or a file; local or s3://")] = None,
    verb: Annotated[
        Purpose | None,
        typer.Option(
            "--verb", help="What the run file is for. Default: train; convert for FHIR and CSV, score for VCF."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The new run file. Default: ARCHIVE_VERB.toml."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
    bundle: Annotated[
        str | None, typer.Option("--bundle", metavar="FOLDER", help="Where the trained model is.")
    ] = None,
    store: Annotated[str | None, typer.Option("--store", metavar="FOLDER", help="Where scores go.")] = None,
    example: Annotated[
        str | None, typer.Option("--example", metavar="NAME", help="Print one of medray's own run files instead.")
    ] = None,
    json_: Json = False,
    dry_run: DryRun = False,
) -> None:
    """A commented run file for an archive, by what medray sees in it. Nothing is overwritten."""
    with errors():
        from medray.verbs import init as verbs

        if example is not None:
            typer.echo(verbs.example(example), nl=False)
            return
        if kind is None or archive is None:
            raise UserError(
                "KIND and ARCHIVE are missing",
                expected="medray init KIND ARCHIVE, such as: medray init imaging scans; or --example NAME",
            )
        new = verbs.init(kind, archive, verb and verb.value, bundle, store)
        out = output or Path(f"{verbs.name_of(archive)}_{new.verb}.toml")
        if dry_run:
            act(
                "init",
                lambda at: verbs.write(new, Path(at[str(out)]), force),
                json_,
                dry_run,
                new_files=[str(out)],
                reads=[archive],
            )
            return
        new = verbs.write(new, out, force)
        if json_:
            typer.echo(json.dumps(new.model_dump(mode="json", exclude={"text"})))
        else:
            _print(new)


def _print(new: NewRunFile) -> None:
    from medray.cli.console import Paper

    paper = Paper()
    paper.title("saw")
    for line in new.saw:
        paper.line(line)
    paper.title("chose")
    paper.facts(new.chose.items())
    if new.undecided:
        paper.title("left for you to decide")
        paper.facts(new.undecided.items())
    paper.title("next")
    paper.line(f"{new.run_file}: look at it{', replace each TODO' if new.undecided else ''}, then: {new.next}")
