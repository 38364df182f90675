"""What both engines share about checkpoints: where the cache lies, and reading the final one."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from medray.engines.base import Fitted


def cache_folder(plan_name: str) -> str:
    """This node's folder for decoded shards of a plan; workers of one node share it."""
    return str(Path(tempfile.gettempdir()) / f"medray-cache-{os.getuid()}" / plan_name)


def fitted(checkpoint: Path, workers: int) -> Fitted:
    """Best weights and state of a finished checkpoint folder."""
    import safetensors.numpy

    state = json.loads((checkpoint / "state.json").read_text())
    return Fitted(safetensors.numpy.load_file(checkpoint / "best.safetensors"), state, workers)
