"""What both engines share about checkpoints: where the cache lies, and reading the final one."""

from __future__ import annotations

import os
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
