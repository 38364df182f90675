"""Run files: one complete TOML file per run, loaded into a frozen pydantic type that forbids unknown keys.

Knows no concrete run type. Paths in a run file are relative to the working directory, as on a command line, so a
run file under jobs/runs/ names "data/breastmnist.npz" and not "../../data/breastmnist.npz".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from medray.config import toml
from medray.config.problems import problems, refusal
from medray.config.shapes import Shape
from medray.config.toml import RunText
from medray.config.undecided import refuse_undecided

T = TypeVar("T", bound=BaseModel)


def load_run(path: str | Path, kind: type[T], overrides: Sequence[str] = ()) -> T:
    """The run file at `path` as a `kind`; `overrides` ("training.epochs=3") replace or add single keys.

    Raises RunFileError, which names the file, every wrong key with its line, what was found, what was expected
    and the nearest valid name.
    """
    run = toml.read(path)
    toml.override(run, overrides)
    refuse_undecided(run)
    return checked(run, kind)


def checked(run: RunText, kind: type[T]) -> T:
    """The settings of a run file as a `kind`. Raises RunFileError."""
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(run.settings)
    except ValidationError as error:
        raise refusal(run, list(problems(error, Shape.of(adapter.core_schema)))) from None


def as_written(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of a run file as they stand there, overrides applied, unchecked. Raises RunFileError."""
    run = toml.read(path)
    toml.override(run, overrides)
    return run.settings
