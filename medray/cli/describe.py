"""`medray describe`: all that a program or an agent needs to drive medray, as one JSON object."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import typer
from typer.core import TyperGroup

import medray
from medray.cli.brought import OWN
from medray.cli.forms import FORMATS, FORMS, THINGS, Form
from medray.cli.quick import RUN_VERBS
from medray.cli.shared import Json, errors
from medray.plugins.installed import installed

VERSION = 1
"""Of what is told: raised when a key goes or means something else; new keys may come."""

RUN_OF = {"TrainRun": "train_run", "EvaluateRun": "evaluate_run", "ScoreRun": "score_run", "NightlyRun": "nightly_run",
          "ConvertRun": "convert_run"}  # fmt: skip


def describe(context: typer.Context, json_: Json = False) -> None:
    """What medray can do, for a program or an agent: commands, run files, exit codes, reason codes, formats, plug-ins."""
    with errors():
        if json_:
            typer.echo(json.dumps(description(context.find_root().command), ensure_ascii=False))
            return
        from medray.cli.console import Paper

        paper = Paper()
        paper.title(f"medray {medray.__version__}")
        paper.table([{"command": form.template, "what it does": form.what} for form in FORMS])
        paper.line(
            "options: medray COMMAND --help; keys of run files: medray schema VERB; all of it as JSON: medray describe --json"
        )


def description(root: Any) -> dict[str, Any]:
    """The object of `--json`; the same for the same installation. Keys are told in docs/programs.md."""
    from medray.config.described import json_schema
    from medray.config.runs import RUN_TYPES
    from medray.errors import EXIT_CODES
    from medray.verbs.plugins import plug_ins

    commands = dict(_commands(root))
    return {
        "describe": VERSION,
        "medray": medray.__version__,
        "things": THINGS,
        "verbs": [_verb(name, command) for name, command in sorted(commands.items())],
        "global_options": [_option(each) for each in root.params if _is_own(each)],
        "run_files": {
            kind: {
                "thing": RUN_OF[kind],
                "verbs": [verb for verb, of in RUN_VERBS.items() if of == kind],
                "schema": json_schema(run_type),
            }
            for kind, run_type in RUN_TYPES.items()
        },
        "exit_codes": {str(code): meaning for code, meaning in EXIT_CODES.items()},
        "reason_codes": reason_codes(),
        "formats": [{"modality": kind, "format": name, "how": how} for kind, name, how in FORMATS],
        "plugins": [each.model_dump(mode="json") for each in plug_ins()],
    }


def reason_codes() -> dict[str, dict[str, str]]:
    """Code to its meaning, the status of its rows, and what to do."""
    from medray.errors import NOT_ELIGIBLE, REASONS, remedy

    return {
        code: {
            "meaning": REASONS[code],
            "status": "not_eligible" if code in NOT_ELIGIBLE else "failed",
            "do": remedy(code),
        }
        for code in REASONS
    }


def _commands(group: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Name to command, of all that are no groups; those that modalities bring included."""
    brought: dict[str, Any] = {}
    for kind in () if name else (*OWN, *sorted(installed("modalities"))):
        with suppress(typer.Exit):  # of a broken plug-in: `plugins` says why
            brought[kind] = group.get_command(None, kind)
    for word, command in {
        **group.commands,
        **{kind: each for kind, each in brought.items() if each is not None},
    }.items():
        whole = f"{name} {word}".strip()
        if isinstance(command, TyperGroup):
            yield from _commands(command, whole)
        else:
            yield whole, command


def _verb(name: str, command: Any) -> dict[str, Any]:
    forms = [form for form in FORMS if _is_of(form, name)]
    flags = {option for each in command.params for option in each.opts}
    return {
        "name": name,
        "what": " ".join((command.help or "").split("\f")[0].split()),
        "arguments": [_argument(each) for each in command.params if not _is_option(each)],
        "options": [_option(each) for each in command.params if _is_option(each) and _is_own(each)],
        "json": "--json" in flags,
        "dry_run": "--dry-run" in flags,
        "writes": sorted({thing for form in forms for thing in form.writes}),
        "forms": [
            {
                "template": form.template, "what": form.what, "reads": list(form.reads), "writes": list(form.writes),
                "tells": list(form.tells),
            }
            for form in forms
        ],
    }  # fmt: skip


def _is_of(form: Form, name: str) -> bool:
    return form.template.removeprefix("medray ").split()[: len(name.split())] == name.split()


def _is_option(parameter: Any) -> bool:
    return parameter.opts[0].startswith("-")


def _is_own(parameter: Any) -> bool:
    """No --help."""
    return "--help" not in parameter.opts


def _argument(parameter: Any) -> dict[str, Any]:
    return {
        "name": parameter.metavar or parameter.name,
        **_type(parameter),
        "required": bool(parameter.required),
        "default": _plain(parameter.default),
        "what": parameter.help or "",
    }


def _option(parameter: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"flags": list(parameter.opts), **_type(parameter)}
    if facts["type"] != "flag":
        facts["metavar"] = parameter.metavar
    return {
        **facts,
        "required": bool(parameter.required),
        "default": _plain(parameter.default),
        "environment": parameter.envvar,
        "what": parameter.help or "",
    }


def _type(parameter: Any) -> dict[str, Any]:
    """type: flag, text, path, integer, number or choice; many: it may be given several times."""
    kind = parameter.type_descriptor.annotation
    many = bool(getattr(parameter, "multiple", False)) or parameter.nargs == -1
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(each for each in get_args(kind) if each is not type(None))
    if get_origin(kind) is list:
        kind = get_args(kind)[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"type": "choice", "choices": [each.value for each in kind], "many": many}
    least = getattr(parameter, "min", None)
    names: dict[Any, str] = {bool: "flag", Path: "path", int: "integer", float: "number"}
    return {"type": names.get(kind, "text"), "many": many, **({} if least is None else {"minimum": least})}


def _plain(default: Any) -> Any:
    return default.value if isinstance(default, Enum) else str(default) if isinstance(default, Path) else default
