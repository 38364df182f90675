"""Engine `local`: everything in this process, in order. For tests, notebooks and pdb; no scheduling of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from medray.engines.base import Fitted, Show
from medray.engines.checkpoints import cache_folder, fitted
from medray.engines.memory import keep_freed_memory
from medray.flows.driver import collect, in_turn
from medray.flows.flow import Flow
from medray.learning.checkpoints import broken_note, newest_whole
from medray.learning.plan import FitPlan
from medray.learning.training import fit
from medray.progress import Live
from medray.storage import files


class LocalEngine:
    workers = readers = 1

    def run(self, flow: Flow) -> None:
        collect(flow, in_turn(flow))

    def fit(self, plan: FitPlan, show: Show) -> Fitted:
        import torch

        keep_freed_memory()
        folder = files.local_path(files.join(plan.work, plan.name))
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = folder / "checkpoint"
        kept = [each for each in (checkpoint, before(checkpoint)) if each.exists()]
        start, broken = newest_whole(kept)
        note = broken_note(broken, start)
        for candidate in broken:  # not in the way of whole ones
            shutil.rmtree(candidate)

        def report(live: Live, save: Callable[[Path], None] | None) -> None:
            show(live)
            if save is not None:
                _replace(checkpoint, save)

        cache = cache_folder(plan.name)
        try:
            fit(
                plan,
                start=start,
                report=report,
                device="cuda" if torch.cuda.is_available() else "cpu",
                cache=cache,
                note=note,
            )
        finally:
            shutil.rmtree(cache, ignore_errors=True)
        return fitted(checkpoint, workers=1)

    def close(self) -> None:
        pass


def before(checkpoint: Path) -> Path:
    """Folder of the checkpoint before the newest."""
    return checkpoint.with_name("checkpoint-before")


def _replace(checkpoint: Path, save: Callable[[Path], None]) -> None:
    """Write the new checkpoint beside the old one, which stays as the one before: a kill leaves one that is whole."""
    for left in checkpoint.parent.glob(".draft-*"):  # by a killed run
        shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=checkpoint.parent))
    save(draft)
    if checkpoint.exists():
        shutil.rmtree(before(checkpoint), ignore_errors=True)
        checkpoint.rename(before(checkpoint))
    draft.rename(checkpoint)
    files.sync_folder(checkpoint.parent)
