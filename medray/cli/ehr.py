"""`medray ehr`: the commands that health records bring, beside the verbs that every modality has."""

from __future__ import annotations

import typer

from medray.cli.shared import DryRun, Json, Local, RunFile, Set, run

ehr = typer.Typer(help="Health records.", no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@ehr.callback()
def records() -> None:
    """Health records."""


@ehr.command("to-meds")
def to_meds(
    run_file: RunFile, json_: Json = False, set_: Set = None, local: Local = False, dry_run: DryRun = False
) -> None:
    """FHIR R4 or long CSV to a MEDS dataset, with a report of what was read, dropped and why."""
    run(run_file, "convert", "to_meds", json_, set_, local, dry_run)
