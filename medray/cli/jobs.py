"""`medray submit` and `medray jobs`: verbs as jobs of a cluster, followed, found again, stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from typer.core import TyperGroup, TyperOption

from medray.cli.quick import VERBS, refuse_kind
from medray.cli.shared import RESULT, DryRun, errors, given, print_planned, print_result
from medray.errors import UserError

if TYPE_CHECKING:
    from pydantic import JsonValue

    from medray.engines.ray.job_server import Job, JobServer
    from medray.verbs.submit import Parcel

FORWARDED = {"ignore_unknown_options": True}
"""Options of the verb stand among those of `submit`."""
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="Job server: http://127.0.0.1:8265, https://…, or host:port of the head. "
        "Else RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else a cluster of this machine.",
    ),
]
Certificates = Annotated[
    str | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        envvar=["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"],
        help="Certificates to check https with.",
    ),
]
InsecureHttp = Annotated[
    bool, typer.Option("--insecure-http", help="Send token and job over plain http to another machine.")
]
Id = Annotated[str, typer.Argument(metavar="ID", help="Of the job, as `submit` and `jobs list` show it.")]
JsonLine = Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")]

jobs = typer.Typer(help="Jobs of a cluster: list, logs, status, stop.", no_args_is_help=True, rich_markup_mode=None)


def submit(
    ctx: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="VERB RUN.toml", help="As without submit, with the options of the verb.")
    ],
    address: Address = None,
    root: Annotated[
        str | None,
        typer.Option(
            "--root", metavar="FOLDER", help="Folder that all nodes share: relative paths of the run file start there."
        ),
    ] = None,
    id: Annotated[
        str | None,
        typer.Option("--id", help="Id of the job. Submitted again, the same job is followed instead of started."),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the id, and leave.")] = False,
    pip: Annotated[
        str | None, typer.Option("--pip", metavar="FILE", help="Requirements that Ray installs on every node first.")
    ] = None,
    unpinned: Annotated[
        bool, typer.Option("--unpinned", help="Run with other versions of Python, Ray and torch than here.")
    ] = False,
    ca: Certificates = None,
    insecure_http: InsecureHttp = False,
    dry_run: DryRun = False,
    json_: JsonLine = False,
) -> None:
    """Run a verb on a Ray cluster: medray submit score RUN.toml --limit 100. Follows it, and ends with its exit code.

    Sent are the run file and the code of medray and its plug-ins, never data. RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH is the token.
    """
    with errors():
        if pip is not None and not Path(pip).is_file():
            raise UserError("there is no such file of requirements", where="--pip", found=pip)
        made = _parcel(ctx, words, root, id, unpinned)
        if dry_run:
            from medray.verbs.dry_run import DryRun as Planned

            facts: dict[str, JsonValue] = {"id": made.id, "command": made.command, "notes": list(made.notes)}
            then = ("the run file and the code of medray and its plug-ins, sent to the cluster",)
            print_planned(
                Planned(verb="submit", reads=(str(made.run_file),), held_back={"job": 1}, then=then, result=facts),
                json_,
            )
            return
        server = _server(address, ca, insecure_http)
        if not unpinned:
            _refuse_other_ray(server)
        from medray.verbs.packing import packed, packed_plug_ins

        for note in made.notes:
            _say(f"note: {note}")
        try:
            with packed(made.run_file, made.own) as package, packed_plug_ins() as brought:
                new = server.submit(made.id, made.command, [package, *brought], env=made.env, pip=pip, facts=made.facts)
        except KeyboardInterrupt:
            _say(f"medray: whether the job was started is not known: medray jobs status {made.id}")
            raise typer.Exit(130) from None
        name = f"job {made.id}" if new else f"job {made.id} was submitted before: it is not started again"
        if not no_wait:
            raise typer.Exit(_follow(server, made.id, json_, name))
        _say(name)
        typer.echo(json.dumps({"id": made.id, "submitted": new}) if json_ else made.id)


@jobs.command("list")
def list_(
    address: Address = None, ca: Certificates = None, insecure_http: InsecureHttp = False, json_: JsonLine = False
) -> None:
    """What was submitted to the cluster, newest first."""
    with errors():
        rows = [_facts(job) for job in _server(address, ca, insecure_http).jobs()]
        if json_:
            typer.echo(json.dumps({"jobs": rows}))
            return
        from medray.cli.console import Paper

        paper = Paper()
        if rows:
            paper.table([{name: value for name, value in row.items() if name != "command"} for row in rows])
        else:
            paper.line("no jobs")


@jobs.command()
def status(
    id: Id,
    address: Address = None,
    ca: Certificates = None,
    insecure_http: InsecureHttp = False,
    json_: JsonLine = False,
) -> None:
    """One job: what it is, since when, how it ended."""
    with errors():
        facts = _facts(_server(address, ca, insecure_http).job(id))
        if json_:
            typer.echo(json.dumps(facts))
            return
        from medray.cli.console import Paper

        Paper().facts(facts.items())


@jobs.command()
def logs(
    id: Id,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as `submit` does, to the end: its result, its exit code.")
    ] = False,
    address: Address = None,
    ca: Certificates = None,
    insecure_http: InsecureHttp = False,
    json_: JsonLine = False,
) -> None:
    """What a job has printed: on stdout; with --follow on stderr, and its result on stdout."""
    with errors():
        server = _server(address, ca, insecure_http)
        server.job(id)
        if follow:
            raise typer.Exit(_follow(server, id, json_))
        shown = _Shown(lambda line: typer.echo(line, err=json_))
        shown.all(server.log(id).splitlines())
        shown.result(json_)


@jobs.command()
def stop(
    id: Id,
    address: Address = None,
    ca: Certificates = None,
    insecure_http: InsecureHttp = False,
    json_: JsonLine = False,
    dry_run: DryRun = False,
) -> None:
    """Stop a job, and wait until it has ended: a scoring run commits what it has, and the same command goes on later."""
    with errors():
        server = _server(address, ca, insecure_http)
        if dry_run:
            from medray.verbs.dry_run import DryRun as Planned

            print_planned(
                Planned(verb="jobs stop", reads=(server.url,), held_back={"job": 1}, result=_facts(server.job(id))),
                json_,
            )
            return
        job = server.stop(id)
        typer.echo(json.dumps(_facts(job)) if json_ else f"{job.id}: {job.status}")


# --- what is sent ---------------------------------------------------------------------------------------------


def _parcel(ctx: typer.Context, words: list[str], root: str | None, id: str | None, unpinned: bool) -> Parcel:
    """The job, after the verb's own command line has taken its words and the run file is loaded whole."""
    verb = next((verb for verb in VERBS if tuple(words[: len(verb)]) == verb), None)
    if verb is None:
        raise UserError(
            "no verb that runs on a cluster",
            where="medray submit",
            found=words[0],
            expected=", ".join(" ".join(verb) for verb in VERBS),
            do="the verb comes first, then its run file and options",
        )
    command = ctx.find_root().command
    for word in verb:
        assert isinstance(command, TyperGroup)
        inner = command.get_command(ctx, word)
        assert inner is not None  # of VERBS
        command = inner
    taken = command.make_context(" ".join(("medray", *verb)), words[len(verb) :], parent=ctx.find_root())
    if taken.params["local"]:
        raise UserError("a submitted job runs on the cluster", where="medray submit", found="--local")
    asked = {name: taken.params.get(name) for name in ("deadline", "order", "limit", "retry")}
    overrides: list[str] = [*(taken.params["set_"] or []), *given(**asked)]

    from medray.config import runs
    from medray.verbs.submit import parcel

    run_file = Path(taken.params["run_file"])
    run = runs.load(run_file, overrides)
    refuse_kind(type(run).__name__, VERBS[verb], run_file)
    return parcel(
        verb,
        run_file,
        run,
        _options(taken.command.params, taken.params),
        overrides,
        root=root,
        id=id,
        unpinned=unpinned,
    )


def _options(declared: Iterable[object], values: Mapping[str, object]) -> list[str]:
    """The options that were given to a command, in one way of writing them."""
    words: list[str] = []
    for option in declared:
        if not isinstance(option, TyperOption):
            continue
        value = values.get(option.name or "")
        if not value or value == option.default:
            continue
        for each in cast("Sequence[object]", value) if isinstance(value, list | tuple) else [value]:
            words += (
                [option.opts[0]]
                if each is True
                else [option.opts[0], str(each.value if isinstance(each, Enum) else each)]
            )
    return words


def _server(address: str | None, ca: str | None, insecure_http: bool) -> JobServer:
    from medray.engines.ray.job_server import JobServer

    return JobServer(address, ca=ca, insecure_http=insecure_http)


def _refuse_other_ray(server: JobServer) -> None:
    """Before anything is sent: the other versions are compared where the job starts."""
    from medray.verbs.submit import pins

    if server.ray_version != pins()["ray"]:
        raise UserError(
            "the cluster runs another Ray",
            where=server.url,
            found=f"ray {server.ray_version}",
            expected=f"ray {pins()['ray']}, as here",
            do="use the same version at both ends, or --unpinned",
        )


# --- what comes back ------------------------------------------------------------------------------------------


class _Shown:
    """Lines of a log as they come, without the one that holds the result."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.show = show
        self.answer: dict[str, JsonValue] | None = None

    def all(self, lines: Iterable[str]) -> None:
        for line in lines:
            before, mark, text = line.partition(RESULT)
            if mark and text.startswith("{"):
                self.answer = json.loads(text)
            if not mark or before:
                self.show(before)

    def result(self, json_: bool) -> None:
        if self.answer is not None and json_:
            typer.echo(json.dumps(self.answer))
        elif self.answer is not None:
            print_result(self.answer)


def _follow(server: JobServer, id: str, json_: bool, name: str = "") -> int:
    """The log to stderr, the result to stdout; the exit code of the job. `name` is told first."""
    from medray.engines.ray.job_log import Following

    following, shown = Following(server, id, lambda text: _say(f"medray: {text}")), _Shown(_say)
    try:
        if name:
            _say(name)
        shown.all(following.lines())
    except KeyboardInterrupt:
        if not _is_to_stop(id):
            return 130
        _say(f"stopping {id}")
        server.stop(id)
        shown.all(following.lines())
    job = server.job(id)
    shown.result(json_)
    if job.status != "SUCCEEDED" and shown.answer is None:
        _say(f"medray: job {id}: {job.status}, exit code {job.exit_code}" + _why(job))
    return job.exit_code or 0


def _is_to_stop(id: str) -> bool:
    """Asked on a terminal. Elsewhere, and at a second Ctrl-C, the job goes on."""
    left = f"job {id} goes on: medray jobs logs {id} --follow, medray jobs stop {id}"
    try:
        answer = (
            typer.confirm("\nstop the job? (no: it goes on)", default=False, err=True) if sys.stdin.isatty() else False
        )
    except (typer.Abort, KeyboardInterrupt):
        answer = False
    if not answer:
        _say(left)
    return answer


def _why(job: Job) -> str:
    """Ray's words for a job that could not be started; for one that ran they only quote its log."""
    quotes = "Job entrypoint command failed" in job.message or job.status == "STOPPED"
    return "" if quotes or not job.message else f": {job.message.strip()[:1000]}"


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _facts(job: Job) -> dict[str, JsonValue]:
    ended = job.ended or None
    return {
        "id": job.id,
        "verb": job.facts.get("verb", ""),
        "status": job.status,
        "exit_code": job.exit_code,
        "began": job.began and job.began.isoformat(timespec="seconds"),
        "ended": ended and ended.isoformat(timespec="seconds"),
        "command": job.command,
    }
