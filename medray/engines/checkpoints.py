"""What both engines share about checkpoints: where the cache lies, and reading the final one."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import cast

from medray.engines.base import FitState, Fitted
from medray.learning import checkpoints
from medray.storage import files

LEFT_SECONDS = 86400.0
"""A cache that nobody has decoded into for so long is of a killed training. A living one would decode again."""


def cache_folder(plan_name: str) -> str:
    """This node's folder for decoded shards of a plan; workers of one node share it, and no other user enters it.

    Caches that killed trainings left a day ago are removed.
    """
    own = files.own_folder(Path(tempfile.gettempdir()), f"medray-cache-{os.getuid()}")
    with suppress(FileNotFoundError):  # by another training at the same moment
        for left in own.iterdir():
            if left.name != plan_name and time.time() - left.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    return str(own / plan_name)


def fitted(checkpoint: Path, workers: int) -> Fitted:
    """Best weights and state of a finished checkpoint folder. Raises BrokenCheckpoint."""
    state = checkpoints.read_state(checkpoint)
    weights = {name: tensor.numpy() for name, tensor in checkpoints.read_tensors(checkpoint, "best").items()}
    return Fitted(weights, cast(FitState, state), workers)


def before(checkpoint: Path) -> Path:
    """Folder of the checkpoint before the newest."""
    return checkpoint.with_name("checkpoint-before")


class Copies:
    """The two newest checkpoints of a training as folders of numbers below a URI, where nothing can be renamed.

    The state of a checkpoint holds the digests of its files and is copied last, so one whose copy was cut off is not whole.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._numbers = sorted({number for file in self._files() if (number := self._number(file)) is not None})

    def fetch(self, folder: Path) -> None:
        """Bring the newest as `checkpoint`, and the one before it, into a local folder."""
        newest = folder / "checkpoint"
        for number, target in zip(reversed(self._numbers), (newest, before(newest)), strict=False):
            target.mkdir()
            for file in self._files():
                if self._number(file) == number:
                    (target / file.rpartition("/")[2]).write_bytes(files.read_bytes(file))

    def put(self, checkpoint: Path) -> None:
        """Copy a checkpoint, and remove all but the two newest."""
        number = 1 + max(self._numbers, default=0)
        names = sorted((path.name for path in checkpoint.iterdir()), key=checkpoints.STATE.__eq__)
        for name in names:
            files.write_bytes(files.join(self._uri, f"checkpoint-{number:06}", name), (checkpoint / name).read_bytes())
        *old, last = self._numbers or [number]
        for each in old:
            files.remove_tree(files.join(self._uri, f"checkpoint-{each:06}"))
        self._numbers = sorted({last, number})

    def _files(self) -> list[str]:
        return [file.uri for file in files.list_files(self._uri)] if files.exists(self._uri) else []

    def _number(self, file: str) -> int | None:
        match = re.fullmatch(r"checkpoint-(\d+)/[^/]+", files.relative(file, self._uri))
        return int(match[1]) if match else None
