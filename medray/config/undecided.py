"""Values of a run file that somebody has yet to decide: "TODO: …", as `medray init` leaves them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medray.config.problems import Problem, refusal
from medray.config.toml import RunText

UNDECIDED = "TODO:"
"""How such a value begins."""


def refuse_undecided(run: RunText) -> None:
    """Raises RunFileError that names every key whose value begins with "TODO:"."""
    wrong = [
        Problem(
            keys, "this key is still to be decided", found=text, do="replace it in the run file, or give it by --set"
        )
        for keys, text in undecided(run.settings)
    ]
    if wrong:
        raise refusal(run, wrong)


def undecided(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys, what stands there) of each value that is not decided; an item of a list is under the list's key."""
    if isinstance(value, str) and value.startswith(UNDECIDED):
        yield keys, value
    elif isinstance(value, Mapping):
        for key, below in value.items():
            yield from undecided(below, (*keys, str(key)))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from undecided(item, (*keys, f"[{number}]") if isinstance(item, Mapping) else keys)
