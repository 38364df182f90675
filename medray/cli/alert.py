"""`medray alert`: whether the people that a night would tell can be told, and whether there was a night at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medray.cli.quick import refuse_kind
from medray.cli.shared import Json, RunFile, Set, errors, print_model, terminal

if TYPE_CHECKING:
    from medray.cli.console import Terminal
    from medray.config.runs import NightlyRun
    from medray.verbs.results import AlertTestResult, LastNight

alert = typer.Typer(
    help="Alerts of nights: a trial, and whether there was a night.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@alert.command("test")
def test(run_file: RunFile, json_: Json = False, set_: Set = None) -> None:
    """Send a trial alert by every way of [alert]. Exit code 1 where one does not take it."""
    from medray.verbs.alerts import try_alert

    _call(run_file, set_, json_, try_alert)


@alert.command("check")
def check(
    run_file: RunFile,
    within: Annotated[
        str | None,
        typer.Option("--within", metavar="AGE", help="26h, 2d: how long ago the last night may have ended."),
    ] = None,
    json_: Json = False,
    set_: Set = None,
) -> None:
    """Send an alert, and exit with code 1, where no night of the run's store has ended lately. For a scheduler of its own."""
    from medray.verbs.alerts import check_night

    _call(run_file, set_, json_, lambda run, progress: check_night(run, within, progress))


def _call(
    run_file: Path,
    overrides: list[str] | None,
    json_: bool,
    verb: Callable[[NightlyRun, Terminal], AlertTestResult | LastNight],
) -> None:
    with errors(), terminal(json_) as shown:
        from medray.config import runs

        settled = runs.load(run_file, overrides or [], shown.note)
        refuse_kind(type(settled).__name__, "nightly", run_file)
        assert isinstance(settled, runs.NightlyRun)
        shown.about(run=settled.name)
        result = verb(settled, shown)
        shown.close()
        print_model(result, json_)
        if result.code:
            raise typer.Exit(result.code)
