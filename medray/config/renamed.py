"""Keys and values of run files that have another name today. The old one stays an alias, which is said in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from medray.config.toml import RunText, put, shown
from medray.errors import RunFileError

Notice = Callable[[str], None]
"""Takes one line for a person, as `Progress.note` does."""


@dataclass(frozen=True)
class Renamed:
    """One key that had another name, or other names of its values."""

    key: str
    """As run files have it today, with its tables: "engine.stages"."""
    before: str | None = None
    """As they had it in earlier versions; None: the key is the same."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Old value to new."""
    of_kinds: tuple[str, ...] = ()
    """The table that the old key stands in has one of these as its `kind`, a * standing for anything: tables of other kinds, which
    plug-ins bring, may have a key of that name. (): any table."""


RENAMED: Sequence[Renamed] = (
    Renamed("engine.stages", values={"apart": "split"}),
    Renamed(
        "training.start_from",
        before="model.weights",
        of_kinds=("cnn", "cnn1d", "cnn_rnn", "logistic", "medicalnet", "resnet", "rnn", "python:*"),
    ),
)
"""A new entry is all that a renaming takes."""


def translate(run: RunText, notice: Notice | None = None, renamed: Sequence[Renamed] = RENAMED) -> None:
    """Old names in the settings of `run` become those of today; `notice` is told of each.

    Raises RunFileError where a key stands there under both names.
    """
    for each in renamed:
        keys, before = tuple(each.key.split(".")), tuple((each.before or each.key).split("."))
        table = _table(run.settings, before)
        if table is None or before[-1] not in table:
            continue
        if each.of_kinds and not any(fnmatchcase(str(table.get("kind")), kind) for kind in each.of_kinds):
            continue
        where = run.where(before)
        if before != keys:
            _move(run, before, keys)
            _tell(notice, f"{where}: {each.before} is called {each.key} now; the old name still works")
            table = _table(run.settings, keys) or {}
        value = table.get(keys[-1])
        if isinstance(value, str) and value in each.values:
            table[keys[-1]] = each.values[value]
            _tell(notice, f'{where}: {each.key} = "{value}" is "{each.values[value]}" now; the old value still works')


def _tell(notice: Notice | None, line: str) -> None:
    if notice is not None:
        notice(line)


def _table(settings: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any] | None:
    """The table that the last of `keys` stands in; None where there is no such table."""
    table: Any = settings
    for key in keys[:-1]:
        table = table.get(key) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else None


def _move(run: RunText, before: tuple[str, ...], keys: tuple[str, ...]) -> None:
    table = _table(run.settings, keys)
    if table is not None and keys[-1] in table:
        raise RunFileError(
            f"{'.'.join(before)} is the earlier name of {'.'.join(keys)}",
            where=run.where(before),
            found=f"both keys, {shown(table[keys[-1]])} as {keys[-1]}",
            expected="one of them",
            do=f"take {'.'.join(before)} out",
        )
    put(run.settings, keys, (_table(run.settings, before) or {}).pop(before[-1]))
    if before in run.lines:
        run.lines[keys] = run.lines[before]
