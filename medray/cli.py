"""The `medray` command: the verbs for a person, with progress and tables, or one JSON object for a program.

Nothing heavy is imported until a command runs: `medray --help` answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import medray
from medray.errors import MedrayError, RunFileError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from medray.console import Terminal
    from medray.engines.base import Engine
    from medray.modalities.base import Inspection
    from medray.verbs.results import Result

app = typer.Typer(
    help="Distributed training and batch scoring of medical data on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 a fault of medray or its machines; 2 the command or run file is wrong; "
    "3 done, but more than max_failed of the entries failed.",
)

ehr = typer.Typer(help="Health records.", no_args_is_help=True)
app.add_typer(ehr, name="ehr")

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout, and no progress.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one key of the run file: --set training.epochs=3"),
]
LocalEngine = Annotated[bool, typer.Option("--local", help="Run in this process, whatever engine the run file names.")]


class Split(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medray {medray.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def index(run_file: RunFile, json_: Json = False, set_: Set = None, local: LocalEngine = False) -> None:
    """List an archive: its entries, subjects, and what cannot be read."""
    from medray.verbs.index import index as verb

    _run(run_file, "any", verb, json_, set_, local)


@app.command()
def prepare(run_file: RunFile, json_: Json = False, set_: Set = None, local: LocalEngine = False) -> None:
    """Decode an archive into shards: once, for all epochs and all later trainings on the same data."""
    from medray.verbs.prepare import prepare as verb

    _run(run_file, "train", verb, json_, set_, local)


@app.command()
def train(
    run_file: RunFile,
    json_: Json = False,
    set_: Set = None,
    local: LocalEngine = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget checkpoints and a finished bundle.")] = False,
) -> None:
    """Train a model into a bundle. The same command again goes on where a killed one stopped."""
    from medray.verbs.train import train as verb

    def start(run: Any, engine: Engine, terminal: Terminal) -> Result:
        return verb(run, engine, terminal, fresh=fresh)

    _run(run_file, "train", start, json_, set_, local)


@app.command()
def evaluate(
    run_file: RunFile,
    split: Annotated[Split, typer.Option(help="Which split.")] = Split.test,
    json_: Json = False,
    set_: Set = None,
    local: LocalEngine = False,
) -> None:
    """Metrics of the bundle on one split, with confidence intervals and an HTML report."""
    from medray.verbs.evaluate import evaluate as verb

    def start(run: Any, engine: Engine, terminal: Terminal) -> Result:
        return verb(run, engine, terminal, split=split.value)

    _run(run_file, "train", start, json_, set_, local)


Deadline = Annotated[
    str | None,
    typer.Option("--deadline", metavar="WHEN", help='Begin nothing after it: "06:00", or "4h" from now. Exit code 0.'),
]
Order = Annotated[
    str | None,
    typer.Option("--order", metavar="HOW", help='"newest" first, "oldest", or a column: "bytes descending".'),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Take on at most so many entries.")]
Retry = Annotated[
    list[str] | None,
    typer.Option("--retry", metavar="REASON", help='Try failed entries of this reason code again; "all": any.'),
]


@app.command()
def score(
    run_file: RunFile,
    deadline: Deadline = None,
    order: Order = None,
    limit: Limit = None,
    retry: Retry = None,
    json_: Json = False,
    set_: Set = None,
    local: LocalEngine = False,
) -> None:
    """Score what an archive holds that the bundle has not scored yet, into the score store."""
    from medray.verbs.score import score as verb

    given = _given(deadline=deadline, order=order, limit=limit, retry="all" if retry == ["all"] else retry)
    _run(run_file, "score", verb, json_, [*(set_ or []), *given], local)


@app.command()
def nightly(
    run_file: RunFile,
    deadline: Deadline = None,
    limit: Limit = None,
    json_: Json = False,
    set_: Set = None,
    local: LocalEngine = False,
) -> None:
    """Index, score what is new or changed with one or several bundles, tidy the store, write the morning page."""
    from medray.verbs.nightly import nightly as verb

    _run(run_file, "nightly", verb, json_, [*(set_ or []), *_given(deadline=deadline, limit=limit)], local)


@ehr.command("to-meds")
def to_meds(run_file: RunFile, json_: Json = False, set_: Set = None, local: LocalEngine = False) -> None:
    """FHIR R4 or long CSV to a MEDS dataset, with a report of what was read, dropped and why."""
    from medray.verbs.to_meds import to_meds as verb

    _run(run_file, "convert", verb, json_, set_, local)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file, a folder, a bundle or a score store.")],
    json_: Json = False,
) -> None:
    """What medray sees in a file, a folder, a bundle or a score store."""
    with _errors():
        from medray.verbs.inspect import inspect as verb

        seen = verb(path)
        if json_:
            typer.echo(json.dumps(seen.model_dump(mode="json")))
        else:
            _print_seen(seen)


@app.command()
def status(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A score store.")],
    json_: Json = False,
) -> None:
    """What a score store holds: how much is scored by which bundle, and what failed and why."""
    with _errors():
        from medray.verbs.inspect import inspect_store

        seen = inspect_store(store)
        if json_:
            typer.echo(json.dumps(seen.facts))
        else:
            _print_seen(seen)


@app.command()
def history(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A score store.")],
    json_: Json = False,
) -> None:
    """Who wrote to a score store and when, newest first: one row per run."""
    with _errors():
        from medray.verbs.inspect import inspect_history

        seen = inspect_history(store)
        if json_:
            typer.echo(json.dumps(seen.facts))
        else:
            _print_seen(seen)


@app.command()
def vacuum(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A score store.")],
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="12h, 7d, 2w: how long replaced files stay for readers.")
    ] = "7d",
    json_: Json = False,
) -> None:
    """Merge small files of a score store and remove those that nobody needs. Scoring may go on meanwhile."""
    with _errors():
        from medray.verbs.upkeep import vacuum as verb

        _print_model(verb(store, older_than), json_)


@app.command()
def forget(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A score store.")],
    subject: Annotated[
        str, typer.Argument(metavar="SUBJECT", help="As the archive names it, or its pseudonym; - reads it from stdin.")
    ],
    key: Annotated[
        str | None,
        typer.Option(
            "--pseudonym-key", metavar="FILE", help="The key its scores were made under. ~/.medray by default."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Remove a subject from every file of a score store, for good, and stop runs that are scoring into it."""
    with _errors():
        from medray.verbs.upkeep import forget as verb

        name = typer.get_text_stream("stdin").readline().strip() if subject == "-" else subject
        _print_model(verb(store, name, key), json_)


@app.command()
def export(
    format: Annotated[str, typer.Argument(metavar="FORMAT", help="vcf.")],
    store: Annotated[str, typer.Argument(metavar="STORE", help="A score store.")],
    source: Annotated[str, typer.Argument(metavar="FILE", help="The file that was scored.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The new file; compressed where its name says so.")],
    bundle: Annotated[str | None, typer.Option("--bundle", help="Id of the bundle, or how it begins.")] = None,
    json_: Json = False,
) -> None:
    """The file that was scored, with its scores in it: the same VCF with INFO fields."""
    with _errors():
        from medray.verbs.export import export as verb

        _print_model(verb(format, store, source, out, bundle), json_)


@app.command()
def demo(
    modality: Annotated[str, typer.Argument(help="imaging, genomics, ehr, or all.")] = "all",
    out: Annotated[Path, typer.Option("--out", help="Folder for everything the demo writes.")] = Path("medray-demo"),
    json_: Json = False,
) -> None:
    """Offline, on real data: archive, index, train, evaluate, score, change a few entries, score only those."""
    with _errors(), _terminal(json_) as terminal:
        from medray.demos import run_demo

        summary = run_demo(modality, out, terminal)
        terminal.close()
        if json_:
            typer.echo(json.dumps(summary))
            return
        from medray.console import Paper

        paper = Paper()
        for name, facts in summary.items():
            paper.title(f"medray demo {name}")
            paper.table(facts["steps"])
            paper.line(f"report: {facts['report']}")


def main() -> None:
    app()


# --- what all commands share ------------------------------------------------------------------------------------


def _run(
    run_file: Path,
    kind: str,
    verb: Callable[[Any, Engine, Terminal], Result],
    json_: bool,
    set_: list[str] | None,
    local: bool,
) -> None:
    """Load the run file, open its engine, call the verb, print its result, exit with its code."""
    with _errors(), _terminal(json_) as terminal:
        from medray.engines.base import open_engine
        from medray.verbs import settings

        run = settings.load(run_file, [*(set_ or []), *(['engine={kind="local"}'] if local else [])])
        _refuse_kind(run, kind, run_file)
        engine = open_engine(run.engine)
        try:
            result = verb(run, engine, terminal)
        finally:
            engine.close()
        terminal.close()
        if json_:
            typer.echo(json.dumps(result.model_dump(mode="json")))
        else:
            _print(result)
        raise typer.Exit(result.exit_code(run.max_failed))


def _given(**options: Any) -> list[str]:
    """Options that stand for keys of the run file, as `--set` has them."""
    return [f"{key}={json.dumps(value)}" for key, value in options.items() if value]


_COMMANDS = {"train": "train", "score": "score", "nightly": "nightly", "convert": "ehr to-meds"}
_KEYS = {
    "any": "a `bundle` key",
    "train": "[modality], [model] and [objective], and no `store` key",
    "score": "`store` and `bundle` keys",
    "nightly": "`store` and `bundles` keys",
    "convert": "a [source] table",
}


def _refuse_kind(run: Any, kind: str, run_file: Path) -> None:
    scoring = "nightly" if hasattr(run, "bundles") else "score"
    found = scoring if hasattr(run, "store") else "convert" if hasattr(run, "source") else "train"
    if found != kind and (kind != "any" or found in ("convert", "nightly")):
        raise RunFileError(
            f"this command needs a {kind} run file"
            if kind != "any"
            else "this command needs a train or score run file",
            where=str(run_file),
            found=f"a {found} run file",
            expected=_KEYS[kind],
            do=f"try: medray {_COMMANDS[found]} {run_file}",
        )


def _print(result: Result) -> None:
    """Facts, then what each holds: records as a table, metrics beside their confidence intervals."""
    from medray.console import Paper

    paper = Paper()
    found = result.model_dump(mode="json")
    intervals = found.pop("intervals", {})
    paper.facts((name, value) for name, value in found.items() if not isinstance(value, dict | list))
    for title, value in found.items():
        if isinstance(value, dict) and value:
            _print_facts(paper, title, value, intervals if title == "metrics" else {})


def _print_model(result: BaseModel, json_: bool) -> None:
    """A result that is single facts."""
    from medray.console import Paper

    found = result.model_dump(mode="json")
    if json_:
        typer.echo(json.dumps(found))
    else:
        Paper().facts(found.items())


def _print_facts(paper: Any, title: str, value: dict[str, Any], intervals: dict[str, Any]) -> None:
    """Records as one table; else the single facts, and a table of each fact that holds records."""
    if all(isinstance(facts, dict) for facts in value.values()):
        paper.title(title)
        of = title.rpartition(", ")[2].removeprefix("per ")
        head = of if of.endswith("ss") else of.removesuffix("s")
        paper.table([{head: name, **facts} for name, facts in value.items()])
        return
    single = {name: fact for name, fact in value.items() if not _records(fact)}
    if single:
        paper.title(title)
        if intervals:
            paper.table([_metric(name, number, intervals.get(name)) for name, number in single.items()])
        else:
            paper.facts(single.items())
    for name, facts in value.items():
        if name not in single and isinstance(facts, dict):
            _print_facts(paper, f"{title}, {name.replace('_', ' ')}", facts, {})


def _metric(name: str, value: Any, interval: list[float] | None) -> dict[str, Any]:
    low, high = interval or (None, None)
    return {"metric": name, "value": value, "low": low, "high": high}


def _print_seen(seen: Inspection) -> None:
    """Facts as a list, tables as tables; a fact that holds records is for `--json`, and one of the tables."""
    from medray.console import Paper

    paper = Paper()
    paper.title(seen.title)
    paper.facts((name, value) for name, value in seen.facts.items() if not _records(value))
    for title, rows in seen.tables.items():
        paper.title(title)
        paper.table(rows)


def _records(value: Any) -> bool:
    held = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return any(isinstance(each, dict) for each in held)


@contextmanager
def _terminal(json_: bool) -> Iterator[Terminal]:
    from medray.console import Terminal

    terminal = Terminal(quiet=json_)
    try:
        yield terminal
    finally:
        terminal.close()


@contextmanager
def _errors() -> Iterator[None]:
    """A fault that medray understands is a message and an exit code, never a traceback."""
    try:
        yield
    except MedrayError as error:
        from medray.console import print_error

        print_error(f"medray: {error}")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        from medray.console import print_error

        print_error("medray: stopped; the same command goes on from the last checkpoint or commit")
        raise typer.Exit(130) from None


if __name__ == "__main__":
    main()
