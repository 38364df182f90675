"""Checkpoints of training: safetensors and a state.json that has their digests and its own, so that one cut short or spoilt
is known.

A folder holds `last`, `best`, `optimizer` and, where weights are averaged, `averaged.safetensors`, and state.json, which
is written last. Two are kept: where the newest is not whole, the one before it is taken.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from medray.errors import MachineError
from medray.learning.plan import State
from medray.storage import files

if TYPE_CHECKING:
    import torch

STATE, SUFFIX = "state.json", ".safetensors"
AFRESH = "train again from the start: medray train RUN.toml --fresh"


class BrokenCheckpoint(MachineError):
    """A folder that holds no whole checkpoint."""


GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""What tells that a file is not there. Any other OSError is of the storage, which may give the file the next time."""


def write(folder: Path, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """State (JSON-ready) and tensors, by the name of their file, into an empty folder; all of it fsynced."""
    import safetensors.torch

    digests: dict[str, str] = {}
    for name, group in tensors.items():
        content = safetensors.torch.save({key: value.detach().contiguous() for key, value in group.items()})
        digests[name + SUFFIX] = xxhash.xxh3_128_hexdigest(content)
        files.write_bytes(str(folder / (name + SUFFIX)), content)
    state = json.loads(json.dumps(state))  # as it will be read: keys are text, tuples lists
    digests[STATE] = _digest(state, digests)
    files.write_bytes(str(folder / STATE), json.dumps({**state, "digests": digests}).encode())


def _digest(state: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """Of all that state.json says; equal for what json.loads makes of it."""
    return xxhash.xxh3_128_hexdigest(json.dumps([state, digests], sort_keys=True).encode())


def read_state(folder: Path) -> dict[str, Any]:
    """The state, once all files are what it says. Raises BrokenCheckpoint, and MachineError for storage that does not answer."""
    try:
        with _storage(folder):
            state = json.loads((folder / STATE).read_bytes())
        digests = dict(
            state.pop("digests", {})
        )  # checkpoints of medray 0.1 have none: safetensors checks their lengths
        own = digests.pop(STATE, None)  # of medray 0.1 there is none
        if own is not None and own != _digest(state, digests):
            raise BrokenCheckpoint("the state of the checkpoint is not as it was written", where=str(folder), do=AFRESH)
        for name, expected in digests.items():
            with _storage(folder):
                content = (folder / name).read_bytes()
            if xxhash.xxh3_128_hexdigest(content) != expected:
                raise BrokenCheckpoint(
                    "a file of the checkpoint is not as it was written", where=str(folder / name), do=AFRESH
                )
        if unknown := sorted(set(state) - {"plan", *(field.name for field in fields(State))}):
            raise BrokenCheckpoint(
                "the state of the checkpoint has keys that nobody knows",
                where=str(folder / STATE),
                found=f"{len(unknown)} keys",
                do=f"use the version of medray that wrote it, or {AFRESH}",
            )
    except (ValueError, TypeError, AttributeError, *GONE) as error:
        raise BrokenCheckpoint(
            "the checkpoint is not whole", where=str(folder), found=f"{type(error).__name__}: {error}", do=AFRESH
        ) from None
    return state


@contextmanager
def _storage(folder: Path) -> Generator[None]:
    """An OSError inside the block as a MachineError, but for what is not there: a checkpoint that cannot be read at the
    moment is not taken for a broken one, which would be given up."""
    try:
        yield
    except GONE:
        raise
    except OSError as error:
        raise MachineError(
            "the storage does not give the checkpoint",
            where=str(folder),
            found=error.strerror or type(error).__name__,
            do="look after the storage, and run the same command again: nothing was removed",
        ) from error


@contextmanager
def writing(where: str) -> Generator[None]:
    """An OSError inside the block, which writes a checkpoint, as a MachineError: a full disk, or one that is read-only."""
    try:
        yield
    except OSError as error:
        raise MachineError(
            "the checkpoint cannot be written",
            where=where,
            found=error.strerror or str(error) or type(error).__name__,
            do="make room there, and run the same command again: it goes on from the checkpoint before",
        ) from error


def read_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Raises as `read_state`."""
    import safetensors
    import safetensors.torch

    path = folder / (name + SUFFIX)
    try:
        with _storage(folder):
            content = path.read_bytes()
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, *GONE) as error:
        raise BrokenCheckpoint(
            "a file of the checkpoint cannot be read", where=str(path), found=str(error), do=AFRESH
        ) from None


def check(folder: Path) -> None:
    """Raises BrokenCheckpoint where the folder cannot be gone on from, and as `read_state`."""
    state = read_state(folder)
    if "plan" not in state or "epoch" not in state:
        raise BrokenCheckpoint("the state of the checkpoint lacks its plan or its epoch", where=str(folder / STATE))
    for name in ("last", "best", "optimizer"):
        read_tensors(folder, name)


def newest_whole(folders: Iterable[Path]) -> tuple[Path | None, list[Path]]:
    """(the first that is whole, those before it that are not) of checkpoints from the newest to the oldest."""
    broken: list[Path] = []
    for folder in folders:
        try:
            check(folder)
        except BrokenCheckpoint:
            broken.append(folder)
        else:
            return folder, broken
    return None, broken


def broken_note(broken: Iterable[Path], start: Path | None) -> str:
    """What a person should know of it; "" where nothing is broken."""
    names = ", ".join(folder.name for folder in broken)
    if not names:
        return ""
    return f"the checkpoint {names} is not whole: training " + (
        "begins again from the start" if start is None else f"goes on from the one before it, {start.name}"
    )
