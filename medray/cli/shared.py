"""What all commands share: their options, what they print where, and their exit codes.

Nothing heavy is imported until a command runs: `medray --help` answers at once.
"""

from __future__ import annotations

import atexit
import errno
import importlib
import json
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar, cast

import typer

from medray.cli.quick import LOCAL, refuse_kind, tell_refused
from medray.errors import MachineError, MedrayError
from medray.stopping import Stopped, on_signals

if TYPE_CHECKING:
    from pydantic import BaseModel, JsonValue

    from medray.cli.console import Paper, Terminal
    from medray.modalities.base import Inspection
    from medray.verbs.dry_run import DryRun as Planned
    from medray.verbs.results import Result

ModelResult = TypeVar("ModelResult", bound="BaseModel")
RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout, and no progress.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one key of the run file: --set training.epochs=3"),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would be read, done and changed; write nothing. Exit code as without."),
]
Local = Annotated[bool, typer.Option("--local", help="Run in this process, whatever engine the run file names.")]


@dataclass(frozen=True)
class OutputMode:
    """How a command reports: on a terminal, as a plain log, as JSON lines, or for `medray submit`."""

    log: bool = False
    """Progress as a plain line now and then, where stderr is no terminal."""
    marked: bool = False
    """For `medray submit`: the result is one line of JSON behind RESULT, among the lines of the log."""
    json: bool = False
    """For what collects logs: JSON lines on stderr, in the place of progress and messages."""
    verb: str = ""


OUTPUT_MODE: ContextVar[OutputMode] = ContextVar("output_mode", default=OutputMode())  # noqa: B039  frozen
RESULT = "medray-result "
STOPPED = 143
"""Exit code of a run that SIGTERM stopped, as the shell has it; Ctrl-C is 130."""


def run(
    run_file: Path,
    kind: str,
    verb: Callable[..., Result] | str,
    json_: bool,
    set_: list[str] | None,
    local: bool,
    dry_run: bool = False,
    **options: object,
) -> None:
    """Load the run file, open its engine, call the verb, print its result, exit with its code.

    `verb` takes (run, engine, progress) and `options`; a name is that of a function in medray/verbs, in the module of that
    name, which is imported when the run file is right.
    """
    overrides = [*(set_ or []), *([LOCAL] if local else [])]
    with errors(), terminal(json_) as shown:
        from medray.config import runs
        from medray.engines.opening import open_engine
        from medray.verbs.alerts import telling

        try:
            settled = runs.load(run_file, overrides, shown.note)
            refuse_kind(type(settled).__name__, kind, run_file)
        except MedrayError as error:
            if not dry_run:
                tell_refused(kind, run_file, overrides, error)
            raise
        call_verb = _verb(verb) if isinstance(verb, str) else verb
        shown.about(run=settled.name)
        if dry_run:
            from medray.verbs.dry_run import rehearse_run

            planned = rehearse_run(
                verb if isinstance(verb, str) else verb.__name__, settled, call_verb, shown, **options
            )
            shown.close()
            print_planned(planned, json_)
            raise typer.Exit(planned.code)
        with telling(settled, shown):
            engine = open_engine(settled.engine, settled.name)
        try:
            with on_signals():  # after Ray has put its own handler
                result = call_verb(settled, engine, shown, **options)
        finally:
            engine.close()
        shown.close()
        answer, code = result.model_dump(mode="json"), result.exit_code(settled.max_failed)
        shown.done(answer, code)
        if OUTPUT_MODE.get().marked:
            typer.echo(RESULT + json.dumps(answer))
        elif json_:
            typer.echo(json.dumps(answer))
        else:
            print_result(answer)
        raise typer.Exit(code)


def call(app: typer.Typer, arguments: list[str] | None = None) -> NoReturn:
    """Run a command, and end this process with its exit code.

    What Python does at its end is done (atexit), and the process then leaves before the destructors of native libraries:
    a thread of Arrow, DuckDB or Ray that met them has ended a refusal with SIGABRT, exit code 134.
    """
    try:
        app(arguments)
        code: int | str | None = 0
    except SystemExit as end:
        code = end.code
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # whoever read it has gone
            code = code or 1
    os._exit(code or 0)


def given(
    *,
    deadline: str | None = None,
    order: str | None = None,
    limit: int | None = None,
    retry: list[str] | None = None,
) -> list[str]:
    """Options that stand for keys of the run file, as `--set` has them."""
    options = {"deadline": deadline, "order": order, "limit": limit, "retry": "all" if retry == ["all"] else retry}
    return [f"{key}={json.dumps(value)}" for key, value in options.items() if value]


def _verb(name: str) -> Callable[..., Result]:
    return getattr(importlib.import_module(f"medray.verbs.{name}"), name)


FAILED_SHOWN = 20


def print_result(result: dict[str, JsonValue]) -> None:
    """Facts, then what each holds: records as a table, metrics beside their confidence intervals."""
    from medray.cli.console import Paper

    paper = Paper()
    intervals, archives = _members(result.get("intervals")), _members(result.get("by_archive"))
    result = {name: value for name, value in result.items() if name not in ("intervals", "by_archive")}
    paper.facts((name, value) for name, value in result.items() if not isinstance(value, dict | list))
    for title, value in result.items():
        if isinstance(value, dict) and value:
            _print_facts(paper, title, value, intervals if title == "metrics" else {})
    if len(mixture := _records(result.get("mixture"))) > 1:
        paper.title("what the entries are")
        paper.table(mixture)
    if archives:
        paper.title("by archive, with intervals")
        paper.table(_by_archive({name: _members(figures) for name, figures in archives.items()}))
    if alerts := _records(result.get("alerts")):
        paper.title("alerts")
        paper.table(alerts)
    if entries := _records(result.get("failed_entries")):
        paper.title("entries that cannot be read")
        paper.table(entries)
    elif result.get("failed_entries") is None and "scanned" in result and result["failed"]:
        paper.line("which they are: the same command with --failed")
    if failed := _records(result.get("failed_files")):
        paper.title("failed files, by their place in the order of names")
        paper.table(failed[:FAILED_SHOWN])


def print_model(result: BaseModel, json_: bool) -> None:
    """A result that is single facts."""
    from medray.cli.console import Paper

    facts = result.model_dump(mode="json")
    if json_:
        typer.echo(json.dumps(facts))
    else:
        Paper().facts(facts.items())


def act(
    verb: str,
    call: Callable[[Mapping[str, str]], ModelResult],
    json_: bool,
    dry_run: bool,
    *,
    folders: Sequence[str] = (),
    new_files: Sequence[str] = (),
    reads: Sequence[str] = (),
) -> ModelResult | None:
    """Call a verb that takes no run file, and print its single facts; of a dry run what it would do, and None.

    `call` gets where to write in the place of each of `folders` and `new_files`: these themselves, but in a dry run.
    """
    if not dry_run:
        result = call({place: place for place in (*folders, *new_files)})
        print_model(result, json_)
        return result
    from medray.verbs.dry_run import rehearse

    planned = rehearse(verb, call, folders=folders, new_files=new_files, reads=reads)
    print_planned(planned, json_)
    if planned.code:
        raise typer.Exit(planned.code)
    return None


def print_planned(planned: Planned, json_: bool) -> None:
    """What a dry run tells."""
    if json_:
        typer.echo(json.dumps(planned.model_dump(mode="json")))
        return
    from medray.cli.console import Paper

    paper = Paper()
    paper.title(f"dry run of medray {planned.verb.replace('_', '-')}: nothing was written")
    paper.facts([*(("reads", place) for place in planned.reads), *planned.held_back.items()])
    for line in planned.then:
        paper.line(f"would write: {line}")
    if planned.changes:
        paper.title("files that would change")
        paper.table([each.model_dump(mode="json") for each in planned.changes])
    if planned.result is not None:
        paper.title("what it would answer")
        print_result(planned.result)


def _print_facts(paper: Paper, title: str, value: dict[str, JsonValue], intervals: dict[str, JsonValue]) -> None:
    """Records as one table; else the single facts, and a table of each fact that holds records."""
    records = {name: facts for name, facts in value.items() if isinstance(facts, dict)}
    if len(records) == len(value):
        paper.title(title)
        of = title.rpartition(", ")[2].removeprefix("per ")
        head = of if of.endswith("ss") else of.removesuffix("s")
        paper.table([{head: name, **facts} for name, facts in records.items()])
        return
    single = {name: fact for name, fact in value.items() if not _holds_records(fact)}
    if single:
        paper.title(title)
        if intervals:
            paper.table([_metric(name, number, intervals.get(name)) for name, number in single.items()])
        else:
            paper.facts(single.items())
    for name, facts in records.items():
        if name not in single:
            _print_facts(paper, f"{title}, {name.replace('_', ' ')}", facts, {})


def _by_archive(archives: dict[str, dict[str, JsonValue]]) -> list[dict[str, JsonValue]]:
    """A row for each figure, a column for each archive."""
    from medray.cli.console import readable

    rows = [
        {"": name} | {archive: figures[name] for archive, figures in archives.items()} for name in ("n", "subjects")
    ]
    for metric in _members(next(iter(archives.values()))["metrics"]):
        row: dict[str, JsonValue] = {"": metric}
        for archive, figures in archives.items():
            low, high = _bounds(_members(figures["intervals"]).get(metric))
            between = "" if low is None else f" ({readable(low)}, {readable(high)})"
            row[archive] = readable(_members(figures["metrics"])[metric]) + between
        rows.append(row)
    return rows


def _metric(name: str, value: JsonValue, interval: JsonValue) -> dict[str, JsonValue]:
    low, high = _bounds(interval)
    return {"metric": name, "value": value, "low": low, "high": high}


def _bounds(interval: JsonValue) -> tuple[JsonValue, JsonValue]:
    """Low and high of a confidence interval; None where there is none."""
    if not isinstance(interval, list) or not interval:
        return None, None
    low, high = interval
    return low, high


def print_seen(seen: Inspection) -> None:
    """Facts as a list, tables as tables; a fact that holds records is for `--json`, and one of the tables."""
    from medray.cli.console import Paper

    paper = Paper()
    paper.title(seen.title)
    paper.facts((name, value) for name, value in seen.facts.items() if not _holds_records(value))
    for title, rows in seen.tables.items():
        paper.title(title)
        paper.table(rows)


def _members(value: JsonValue) -> dict[str, JsonValue]:
    """A JSON object's members; none where the value is absent."""
    return value if isinstance(value, dict) else {}


def _records(value: JsonValue) -> list[dict[str, JsonValue]]:
    """A JSON array's objects; none where the value is absent."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _holds_records(value: object) -> bool:
    if isinstance(value, dict):
        return any(isinstance(each, dict) for each in cast("dict[str, object]", value).values())
    return isinstance(value, list) and any(isinstance(each, dict) for each in cast("list[object]", value))


@contextmanager
def terminal(json_: bool) -> Generator[Terminal, None, None]:
    from medray.cli.console import Log, Terminal

    mode = OUTPUT_MODE.get()
    shown = Terminal(quiet=json_)
    if mode.json:
        from medray.cli.logs import JsonLog

        shown = JsonLog(mode.verb)
    elif mode.marked or (mode.log and not json_ and not shown.live):
        shown = Log()
    try:
        yield shown
    except typer.Exit:
        raise
    except BaseException as error:
        shown.failed_with(error)
        raise
    finally:
        shown.close()


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What a disk says that takes nothing more."""


@contextmanager
def errors() -> Generator[None, None, None]:
    """A fault that medray understands is a message and an exit code, never a traceback."""
    try:
        yield
    except MedrayError as error:
        from medray.cli.console import print_error

        if not OUTPUT_MODE.get().json:  # it may quote what was found; the log has the rest
            print_error(f"medray: {error}")
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        from medray.cli.console import print_error

        if not OUTPUT_MODE.get().json:
            place = f"{error.filename}: " if error.filename else ""
            print_error(f"medray: {place}{error.strerror}; make room there, and run the same command again")
        raise typer.Exit(MachineError.exit_code) from None
    except KeyboardInterrupt as stop:
        from medray.cli.console import print_error

        if not OUTPUT_MODE.get().json:
            print_error("medray: stopped; the same command goes on from the last checkpoint or commit")
        raise typer.Exit(STOPPED if isinstance(stop, Stopped) else 130) from None
