"""Engine `local`: everything in this process, in order. For tests, notebooks and pdb; no scheduling of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from medray.engines.base import Fitted, Show
from medray.engines.checkpoints import Copies, before, cache_folder, fitted
from medray.engines.memory import keep_freed_memory
from medray.flows.driver import collect, in_turn
from medray.flows.flow import Flow
from medray.learning.checkpoints import broken_note, newest_whole
from medray.learning.plan import FitPlan
from medray.learning.training import fit
from medray.progress import Live
from medray.storage import files, modes


class LocalEngine:
    workers = readers = 1

    def run(self, flow: Flow) -> None:
        collect(flow, in_turn(flow))

    def fit(self, plan: FitPlan, show: Show) -> Fitted:
        keep_freed_memory()
        uri = files.join(plan.work, plan.name)
        if files.is_local(uri):
            folder = files.local_path(uri)
            modes.make_below(folder)
            return self._fit(plan, show, folder, None)
        with tempfile.TemporaryDirectory(prefix="medray-training-") as scratch:
            copies = Copies(uri)
            copies.fetch(Path(scratch))
            return self._fit(plan, show, Path(scratch), copies)

    def _fit(self, plan: FitPlan, show: Show, folder: Path, copies: Copies | None) -> Fitted:
        """Train with checkpoints in `folder`, and `copies` of them where the work folder is in a bucket."""
        import torch

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
                if copies is not None:
                    copies.put(checkpoint)

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


def _replace(checkpoint: Path, save: Callable[[Path], None]) -> None:
    """Write the new checkpoint beside the old one, which stays as the one before: a kill leaves one that is whole."""
    for left in checkpoint.parent.glob(".draft-*"):  # by a killed run
        shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=checkpoint.parent))
    modes.set_mode(draft, modes.folder_like(checkpoint.parent))  # which is the user's alone else
    save(draft)
    if checkpoint.exists():
        shutil.rmtree(before(checkpoint), ignore_errors=True)
        checkpoint.rename(before(checkpoint))
    draft.rename(checkpoint)
    files.sync_folder(checkpoint.parent)
