"""Checkpoints of training: safetensors and a state.json that has their digests, so that one cut short or spoilt is known.

A folder holds `last`, `best`, `optimizer` and, where weights are averaged, `averaged.safetensors`, and state.json, which
is written last. Two are kept: where the newest is not whole, the one before it is taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from medray.errors import MachineError
from medray.storage import files

if TYPE_CHECKING:
    import torch

STATE, SUFFIX = "state.json", ".safetensors"
AFRESH = "train again from the start: medray train RUN.toml --fresh"


class BrokenCheckpoint(MachineError):
    """A folder that holds no whole checkpoint."""


def write(folder: Path, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """State (JSON-ready) and tensors, by the name of their file, into an empty folder; all of it fsynced."""
    import safetensors.torch

    digests: dict[str, str] = {}
    for name, group in tensors.items():
        content = safetensors.torch.save({key: value.detach().contiguous() for key, value in group.items()})
        digests[name + SUFFIX] = xxhash.xxh3_128_hexdigest(content)
        files.write_bytes(str(folder / (name + SUFFIX)), content)
    files.write_bytes(str(folder / STATE), json.dumps({**state, "digests": digests}).encode())


def read_state(folder: Path) -> dict[str, Any]:
    """The state, once all files are what it says. Raises BrokenCheckpoint."""
    try:
        state = json.loads((folder / STATE).read_bytes())
        digests = dict(
            state.pop("digests", {})
        )  # checkpoints of medray 0.1 have none: safetensors checks their lengths
        for name, expected in digests.items():
            if xxhash.xxh3_128_hexdigest((folder / name).read_bytes()) != expected:
                raise BrokenCheckpoint(
                    "a file of the checkpoint is not as it was written", where=str(folder / name), do=AFRESH
                )
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise BrokenCheckpoint(
            "the checkpoint is not whole", where=str(folder), found=f"{type(error).__name__}: {error}", do=AFRESH
        ) from None
    return state


def read_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Raises BrokenCheckpoint."""
    import safetensors
    import safetensors.torch

    path = folder / (name + SUFFIX)
    try:
        return safetensors.torch.load(path.read_bytes())
    except (safetensors.SafetensorError, ValueError, KeyError, OSError) as error:
        raise BrokenCheckpoint(
            "a file of the checkpoint cannot be read", where=str(path), found=str(error), do=AFRESH
        ) from None


def check(folder: Path) -> None:
    """Raises BrokenCheckpoint where the folder cannot be gone on from."""
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
