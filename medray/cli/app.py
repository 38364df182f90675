"""The `medray` command: the verbs for a person, with progress and tables, or one JSON object for a program.

Nothing heavy is imported until a command runs: `medray --help` answers at once.
"""

from __future__ import annotations

import json
from dataclasses import replace as changed
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import medray
from medray.cli import jobs, stores
from medray.cli.alert import alert
from medray.cli.brought import Verbs
from medray.cli.describe import describe
from medray.cli.init import init
from medray.cli.schema import schema
from medray.cli.shared import (
    OUTPUT_MODE,
    DryRun,
    Json,
    Local,
    RunFile,
    Set,
    act,
    errors,
    given,
    print_planned,
    print_seen,
    run,
    terminal,
)

if TYPE_CHECKING:
    pass

app = typer.Typer(
    cls=Verbs,
    help="Distributed training and batch scoring of medical data on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # panels of help cost as much time again as all of typer
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Exit codes: 0 done; 1 a fault of medray or its machines; 2 the command or run file is wrong; "
    "3 done, but more than max_failed of the entries failed.",
)

app.command("submit", context_settings=jobs.FORWARDED)(jobs.submit)
app.add_typer(jobs.jobs, name="jobs")
app.add_typer(alert, name="alert")
app.command("init")(init)
app.command("schema")(schema)
app.command("describe")(describe)
for of_store in (stores.status, stores.history, stores.vacuum, stores.copy, stores.forget, stores.export):
    app.command()(of_store)


class LogFormat(StrEnum):
    text = "text"
    json = "json"


class SplitName(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medray {medray.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            "--log-format", envvar="MEDRAY_LOG", help="json: progress and errors as JSON lines on stderr, for logs."
        ),
    ] = LogFormat.text,
) -> None:
    if log_format is LogFormat.json:
        OUTPUT_MODE.set(changed(OUTPUT_MODE.get(), json=True, verb=context.invoked_subcommand or ""))


@app.command()
def index(
    run_file: RunFile,
    json_: Json = False,
    set_: Set = None,
    local: Local = False,
    dry_run: DryRun = False,
    failed: Annotated[bool, typer.Option("--failed", help="List every file that cannot be read, and why.")] = False,
) -> None:
    """List an archive: its entries, subjects, and what cannot be read."""
    run(run_file, "any", "index", json_, set_, local, dry_run, failed=failed)


@app.command()
def prepare(
    run_file: RunFile, json_: Json = False, set_: Set = None, local: Local = False, dry_run: DryRun = False
) -> None:
    """Decode an archive into shards: once, for all epochs and all later trainings on the same data."""
    run(run_file, "train", "prepare", json_, set_, local, dry_run)


@app.command()
def train(
    run_file: RunFile,
    json_: Json = False,
    set_: Set = None,
    local: Local = False,
    dry_run: DryRun = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget checkpoints and a finished bundle.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Overwrite the bundle of another training, which is then lost.")
    ] = False,
) -> None:
    """Train a model into a bundle. The same command again goes on where a killed one stopped."""
    run(run_file, "train", "train", json_, set_, local, dry_run, fresh=fresh, replace=replace)


@app.command()
def evaluate(
    run_file: RunFile,
    split: Annotated[SplitName, typer.Option(help="Which split.")] = SplitName.test,
    json_: Json = False,
    set_: Set = None,
    local: Local = False,
    dry_run: DryRun = False,
) -> None:
    """Metrics of the bundle on one split, or on another archive, with confidence intervals and an HTML report."""
    run(run_file, "evaluate", "evaluate", json_, set_, local, dry_run, split=split.value)


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
    local: Local = False,
    dry_run: DryRun = False,
) -> None:
    """Score what an archive holds that the bundle has not scored yet, into the score store."""
    keys = given(deadline=deadline, order=order, limit=limit, retry=retry)
    run(run_file, "score", "score", json_, [*(set_ or []), *keys], local, dry_run)


@app.command()
def nightly(
    run_file: RunFile,
    deadline: Deadline = None,
    limit: Limit = None,
    json_: Json = False,
    set_: Set = None,
    local: Local = False,
    dry_run: DryRun = False,
) -> None:
    """Index, score what is new or changed with one or several bundles, tidy the store, write the morning page."""
    run(run_file, "nightly", "nightly", json_, [*(set_ or []), *given(deadline=deadline, limit=limit)], local, dry_run)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file, a folder, a bundle or a score store.")],
    montage: Annotated[
        str | None,
        typer.Option("--montage", metavar="PNG", help="Write the images as a picture, volumes in three planes."),
    ] = None,
    json_: Json = False,
    dry_run: DryRun = False,
) -> None:
    """What medray sees in a file, a folder, a bundle or a score store."""
    with errors():
        from medray.verbs.inspect import inspect as verb
        from medray.verbs.inspect import write_montage

        seen = verb(path)
        if montage is not None and dry_run:
            act(
                "inspect",
                lambda at: seen.model_copy(
                    update={"facts": {**seen.facts, "montage": write_montage(path, at[montage])}}
                ),
                json_,
                dry_run,
                new_files=[montage],
                reads=[path],
            )
            return
        if montage is not None:
            seen = seen.model_copy(update={"facts": {**seen.facts, "montage": write_montage(path, montage)}})
        if json_:
            typer.echo(json.dumps(seen.model_dump(mode="json")))
        else:
            print_seen(seen)


@app.command()
def plugins(json_: Json = False) -> None:
    """Which kinds of data, models, objectives, exports and sources there are, who brings them, and whether they load."""
    with errors():
        from medray.verbs.plugins import plug_ins

        rows = [each.model_dump(mode="json") for each in plug_ins()]
        if json_:
            typer.echo(json.dumps({"plugins": rows}))
            return
        from medray.cli.console import Paper

        paper = Paper()
        paper.table([{name: value for name, value in row.items() if name != "problem"} for row in rows])
        for row in rows:
            if row["problem"]:
                paper.line(f"{row['group']} {row['kind']}: {row['problem']}")


@app.command()
def doctor(
    run_file: Annotated[
        Path | None, typer.Argument(metavar="[RUN.toml]", help="A run file, to look at its places, too.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each decoder is measured so many times.")] = 7,
    json_: Json = False,
) -> None:
    """This machine in one block for a report of a fault: versions, engine, GPUs, storage, key, plug-ins, and whether decoders of images give the right pixels."""
    with errors():
        from medray.config import runs
        from medray.verbs.doctor import block
        from medray.verbs.doctor import doctor as verb

        health = verb(rounds, None if run_file is None else runs.load(run_file))
        if json_:
            typer.echo(health.model_dump_json())
        else:
            from medray.cli.console import Paper

            paper = Paper()
            paper.table([each.model_dump(mode="json") for each in health.decoders])
            paper.line(block(health))
        health.refuse()


@app.command("import")
def import_(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A model of another library: .keras, .h5, .onnx; the folder of a MONAI bundle; or tensors of a network of medray: .safetensors, .pt.",
        ),
    ],
    like: Annotated[
        Path, typer.Option("--like", metavar="RUN.toml", help="A training's run file: its modality and objective.")
    ],
    as_: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Folder of the new bundle; by default the run file's.")
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            "--expect", metavar="FILE.npz", help="Inputs, and the original's answers to them, to compare with."
        ),
    ] = None,
    json_: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Make a bundle of a model of another library, that scores as one that was trained here. No code of the file is run."""
    with errors():
        from medray.verbs.import_ import import_model, place_of

        place = place_of(like, as_)
        act(
            "import",
            lambda at: (
                import_model(file, like, at[place], expect) if dry_run else import_model(file, like, as_, expect)
            ),
            json_,
            dry_run,
            folders=[place],
            reads=[file],
        )


@app.command()
def demo(
    modality: Annotated[str, typer.Argument(help="imaging, genomics, ehr, one that a plug-in brings, or all.")] = "all",
    out: Annotated[Path, typer.Option("--out", help="Folder for everything the demo writes.")] = Path("medray-demo"),
    json_: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Offline, on real data: archive, index, train, evaluate, score, change a few entries, score only those."""
    with errors(), terminal(json_) as shown:
        from medray.demos import plan_demo, run_demo

        if dry_run:
            from medray.verbs.dry_run import DryRun as Planned

            folders = plan_demo(modality, out)
            then = tuple(f"an archive, a bundle, scores and reports in {folder}" for folder in folders.values())
            held = {f"demo {name}": 1 for name in folders}
            shown.close()
            print_planned(Planned(verb="demo", reads=(), held_back=held, then=then), json_)
            return
        summaries = run_demo(modality, out, shown)
        shown.close()
        if json_:
            typer.echo(json.dumps({name: each.as_json() for name, each in summaries.items()}))
            return
        from medray.cli.console import Paper

        paper = Paper()
        for name, each in summaries.items():
            paper.title(f"medray demo {name}")
            paper.table([dict(step) for step in each.steps])
            paper.line(f"report: {each.report}")
