"""docs/reference/commands.md and exit-codes.md, made of the command line and the error tree. Run docs/make_reference.py."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

import typer.main

from medray.cli.app import app
from medray.cli.brought import OWN
from medray.errors import EXIT_CODES, REASONS, MedrayError

EXAMPLES = {
    "demo": "medray demo imaging --out medray-demo",
    "init": "medray init imaging ARCHIVE --output train.toml",
    "schema": "medray schema train",
    "index": "medray index jobs/runs/breast_train.toml --failed",
    "prepare": "medray prepare jobs/runs/breast_train.toml",
    "train": "medray train jobs/runs/breast_train.toml --set training.epochs=3",
    "evaluate": "medray evaluate jobs/runs/breast_train.toml --split validation",
    "score": "medray score jobs/runs/breast_score.toml --deadline 06:00 --order newest",
    "nightly": "medray nightly jobs/runs/breast_nightly.toml --deadline 4h",
    "inspect": "medray inspect scan.dcm --montage scan.png",
    "status": "medray status scores/ultrasound",
    "history": "medray history scores/ultrasound --json",
    "alert test": "medray alert test jobs/runs/breast_nightly.toml",
    "alert check": "medray alert check jobs/runs/breast_nightly.toml --within 26h",
    "copy": "medray copy scores/ultrasound backups/ultrasound",
    "vacuum": "medray vacuum scores/ultrasound --older-than 7d",
    "forget": "medray forget scores/ultrasound -",
    "export": "medray export xlsx scores/ultrasound scores.xlsx",
    "import": "medray import model.keras --like jobs/runs/breast_train.toml --expect answers.npz",
    "describe": "medray describe --json",
    "plugins": "medray plugins",
    "doctor": "medray doctor --rounds 3",
    "ehr to-meds": "medray ehr to-meds jobs/runs/physionet_to_meds.toml",
    "submit": "medray submit train jobs/runs/breast_train.toml --root /shared/medray",
    "jobs list": "medray jobs list",
    "jobs status": "medray jobs status ID",
    "jobs logs": "medray jobs logs ID --follow",
    "jobs stop": "medray jobs stop ID",
}
"""A command without `medray` to one example; the page has them in this order."""


def commands() -> dict[str, Any]:
    """Each command of medray without sub-commands, by its words after `medray`; those of its own modalities included."""
    top: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}

    def walk(words: str, command: Any) -> None:
        inner = getattr(command, "commands", None)
        if inner is None:
            found[words] = command
        for name, below in (inner or {}).items():
            walk(f"{words} {name}".strip(), below)

    walk("", top)
    for kind in OWN:
        walk(kind, top.get_command(None, kind))
    return found


def page_of_commands() -> Iterator[str]:
    known = commands()
    if known.keys() != EXAMPLES.keys():
        raise ValueError(f"EXAMPLES lacks or has too much: {sorted(known.keys() ^ EXAMPLES.keys())}")
    yield "# Every command"
    yield ""
    yield "<!-- Made by docs/make_reference.py of the command line: change medray/cli, or the examples, then run it. -->"
    yield ""
    yield "Each command of `medray` with its arguments and options, as its `--help` shows them. Installed plug-ins may bring"
    yield "further ones. What a command ends with: [exit codes](exit-codes.md)."
    yield ""
    yield "| command | what it does |"
    yield "|---|---|"
    for words, command in known.items():
        yield f"| [`medray {words}`](#medray-{words.replace(' ', '-')}) | {_cell(_first(command.help))} |"
    yield ""
    yield "Two options stand before the command, as in `medray --log-format json score jobs/runs/breast_score.toml`:"
    yield ""
    top: Any = typer.main.get_command(app)
    yield from _options(top.params)
    for words, example in EXAMPLES.items():
        command = known[words]
        yield ""
        yield f"## `medray {words}`"
        yield ""
        yield from _paragraphs(command.help)
        yield "```bash"
        yield example
        yield "```"
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        if arguments:
            yield ""
            yield "| argument | | what it is |"
            yield "|---|---|---|"
            for each in arguments:
                needed = "required" if each.required else "optional"
                yield f"| `{each.metavar or each.name.upper()}` | {needed} | {_cell(each.help or '')} |"
        options = [each for each in command.params if each.param_type_name == "option"]
        if options:
            yield ""
            yield from _options(options)
    yield ""


def _options(options: list[Any]) -> Iterator[str]:
    yield "| option | default | what it does |"
    yield "|---|---|---|"
    for each in options:
        names = ", ".join(f"`{name}`" for name in [*each.opts, *each.secondary_opts])
        value = "" if each.is_flag else f" `{each.metavar or _values(each)}`"
        yield f"| {names}{value} | {_default(each)} | {_cell(_described(each))} |"


def _values(option: Any) -> str:
    """What stands for the value of an option without a metavar: its choices, or the kind of value."""
    kind = _base(option)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "\\|".join(str(each.value) for each in kind)
    return {int: "NUMBER", float: "NUMBER"}.get(kind, "TEXT")


def _base(option: Any) -> Any:
    return option.type_descriptor.annotation


def _default(option: Any) -> str:
    if option.required:
        return "required"
    value = option.default
    if value is None or value is False:
        return "off" if option.is_flag else "none"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _described(option: Any) -> str:
    """The help of an option, and what else it says of itself."""
    said = [option.help or ""]
    if option.multiple:
        said.append("May be given several times.")
    if option.min is not None:
        said.append(f"At least {option.min}.")
    if option.envvar:
        names = [option.envvar] if isinstance(option.envvar, str) else option.envvar
        said.append("Also from the environment: " + ", ".join(f"`{name}`" for name in names) + ".")
    return " ".join(f"{each}." if each and each[-1] not in ".:" and len(said) > 1 else each for each in said)


def _first(help_: str) -> str:
    """The first paragraph of a help text, as one line."""
    return " ".join(help_.split("\n\n")[0].split())


def _paragraphs(help_: str) -> Iterator[str]:
    for paragraph in help_.split("\n\n"):
        yield _cell(" ".join(paragraph.split()))
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")


def page_of_exit_codes() -> Iterator[str]:
    yield "# Exit codes"
    yield ""
    yield "<!-- Made by docs/make_reference.py of medray/errors.py: change EXIT_CODES there, then run it. -->"
    yield ""
    yield "What a command ends with, for scripts and schedulers. `medray submit` ends with the code of its job."
    yield ""
    yield "| exit code | meaning |"
    yield "|---|---|"
    for code, meaning in EXIT_CODES.items():
        yield f"| {code} | {_cell(meaning)} |"
    yield ""
    yield "## Errors in Python"
    yield ""
    yield "From Python the same faults are exceptions. Each kind has the exit code that the command line ends with where it is not"
    yield "caught; `medray.MedrayError` and `medray.UserError` are the two that most callers need."
    yield ""
    yield "| error | is a | exit code |"
    yield "|---|---|---|"
    for kind in _tree(MedrayError):
        yield f"| `{kind.__name__}` | `{kind.__mro__[1].__name__}` | {kind.exit_code} |"
    yield ""
    yield "`SampleError` ends no command: it is one entry that cannot be read, which becomes a row with one of the"
    yield f"{len(REASONS)} [reason codes](reason-codes.md)."
    yield ""


def _tree(kind: type[MedrayError]) -> Iterator[type[MedrayError]]:
    """The error types of medray.errors, each before those below it."""
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == MedrayError.__module__:
            yield from _tree(below)
