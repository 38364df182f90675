"""A run as JSON lines on stderr, one object a line, for what collects logs: what `Log` tells a person.

Every line has `time` (UTC), `level`, `event`, `id` (of this command), `verb` and `run` (its name); of scoring also `run_id`
and `bundle_id`, as in the score table. What follows are counts, codes and names of the run file. Nothing is of an entry:
no id, no path of the archive, no text of an error that quotes what was found. `medray history` and a person's
terminal tell more.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import medray
from medray.cli.console import Log
from medray.errors import BundleError, MedrayError, RunFileError, StoreError

if TYPE_CHECKING:
    from pydantic import JsonValue

LOGGED_TEXTS = ("run_id", "bundle_id", "night", "split", "stopped", "level")
"""Keys of a result whose texts a log may hold."""
OWN = {"level": "drift_level", "time": "time_", "event": "event_", "id": "id_", "verb": "verb_", "run": "run_"}
"""Keys of every line, and what a fact of that name is called in it."""
FRAMES = 8


class JsonLog(Log):
    """Progress as JSON lines; `every` as in Log."""

    def __init__(self, verb: str, every: float = 10.0) -> None:
        super().__init__(every)
        self.known: dict[str, object] = {"id": uuid.uuid4().hex, "verb": verb}

    def about(self, **facts: str) -> None:
        first = "run" not in self.known
        self.known |= facts
        if first:
            self.fact("start", version=medray.__version__)

    def fact(self, event: str, level: str = "info", /, **facts: object) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        renamed = {OWN.get(name, name): value for name, value in facts.items()}
        line = {"time": time, "level": level, "event": event, **self.known, **renamed}
        print(json.dumps(line, allow_nan=False, default=str), file=sys.stderr, flush=True)

    def tell(self, text: str, event: str, /, **facts: object) -> None:
        self.fact(event, **{name: _number(value) for name, value in facts.items()})

    def note(self, text: str) -> None:
        """Nothing: a note may name an entry. What a log should hold of it comes by `fact`."""

    def line(self, text: str) -> None:
        """Nothing, as for a note."""

    def done(self, result: dict[str, JsonValue], exit_code: int) -> None:
        self.fact("done", "warning" if exit_code else "info", exit_code=exit_code, **counts(result))

    def failed_with(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):  # and SIGTERM
            self.fact("stopped", "warning")
        else:
            self.fact("failed", "error", **of_error(error))


def counts(result: dict[str, JsonValue]) -> dict[str, object]:
    """Numbers, tables of numbers (by reason, by stage) and ids of a result."""
    logged: dict[str, object] = {}
    for name, value in result.items():
        if name in LOGGED_TEXTS or isinstance(value, int | float):
            logged[name] = _number(value)
        elif isinstance(value, dict):
            numbers = {key: _number(each) for key, each in value.items() if isinstance(each, int | float)}
            if numbers:
                logged[name] = numbers
    return logged


def of_error(error: BaseException) -> dict[str, object]:
    """What a log may hold of an error: its kind, what medray says, where it came up in the code. Not what was found."""
    facts: dict[str, object] = {"error": type(error).__name__}
    if not isinstance(error, MedrayError):
        return facts | {"at": _places("".join(traceback.format_tb(error.__traceback__)))}
    facts |= {"message": error.what, "exit_code": error.exit_code}
    if error.do:
        facts["do"] = error.do
    if error.where and isinstance(
        error, RunFileError | BundleError | StoreError
    ):  # a key of the run file, or its places
        facts["where"] = error.where
    places = _places(error.found)  # of a worker
    if places:
        causes = re.findall(r"^([A-Za-z_][\w.]*)(?::|$)", error.found, re.MULTILINE)
        facts |= {"cause": causes[-1] if causes else None, "at": places}
    return facts


def _places(trace: str) -> list[str]:
    frames = re.findall(r'File "[^"\n]*?([^"/\n]+/[^"/\n]+)", line (\d+), in (\S+)', trace)
    return [f"{file}:{line} {function}" for file, line, function in frames[-FRAMES:]]


def _number(value: object) -> object:
    """The value, a float rounded to six decimals; None for infinity and NaN, which JSON does not have."""
    if isinstance(value, float):
        return round(value, 6) if value - value == 0 else None
    return value
