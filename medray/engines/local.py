"""Engine `local`: everything in this process, in order. For tests, notebooks and pdb; no scheduling of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medray import files
from medray.engines.base import Fitted, Live
from medray.engines.checkpoints import cache_folder, fitted
from medray.engines.memory import keep_freed_memory
from medray.flows import Flow, collect, in_turn
from medray.training import FitPlan, fit


class LocalEngine:
    workers = readers = 1

    def run(self, flow: Flow) -> None:
        collect(flow, in_turn(flow))

    def fit(self, plan: FitPlan, show: Live) -> Fitted:
        import torch

        keep_freed_memory()
        folder = files.local_path(files.join(plan.work, plan.name))
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = folder / "checkpoint"

        def report(live: dict[str, Any], save: Callable[[Path], None] | None) -> None:
            show(live)
            if save is not None:
                _replace(checkpoint, save)

        fit(
            plan,
            start=checkpoint if checkpoint.exists() else None,
            report=report,
            device="cuda" if torch.cuda.is_available() else "cpu",
            cache=cache_folder(plan.name),
        )
        shutil.rmtree(cache_folder(plan.name), ignore_errors=True)
        return fitted(checkpoint, workers=1)

    def close(self) -> None:
        pass


def _replace(checkpoint: Path, save: Callable[[Path], None]) -> None:
    """Write the new checkpoint beside the old one, then swap: a kill leaves one that is whole."""
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=checkpoint.parent))
    save(draft)
    old = checkpoint.with_name(".old")
    shutil.rmtree(old, ignore_errors=True)
    if checkpoint.exists():
        checkpoint.rename(old)
    draft.rename(checkpoint)
    shutil.rmtree(old, ignore_errors=True)
