"""Engine `local`: everything in this process, in order. For tests, notebooks and pdb; no scheduling of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from medray.engines.base import Fitted, Show
from medray.engines.checkpoints import cache_folder, kept
from medray.engines.memory import keep_freed_memory, objects_set_apart
from medray.flows.driver import collect, in_turn
from medray.flows.flow import Flow
from medray.learning.plan import FitPlan
from medray.learning.training import fit
from medray.progress import Live


class LocalEngine:
    workers = readers = 1

    @property
    def scores_on_gpu(self) -> bool:
        import torch

        return torch.cuda.is_available()

    def run(self, flow: Flow) -> None:
        with objects_set_apart():
            collect(flow, in_turn(flow))

    def fit(self, plans: Sequence[FitPlan], show: Show) -> list[Fitted]:
        keep_freed_memory()
        with objects_set_apart():
            return [self._fit(plan, show) for plan in plans]

    def _fit(self, plan: FitPlan, show: Show) -> Fitted:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        with kept(plan) as saved:
            start, note = saved.start()

            def report(live: Live, save: Callable[[Path], None] | None) -> None:
                show(live)
                if save is not None:
                    saved.put(save)

            cache = cache_folder(plan.name)
            try:
                fit(plan, start=start, report=report, device=device, cache=cache, note=note)
            finally:
                shutil.rmtree(cache, ignore_errors=True)
            return saved.fitted(workers=1)

    def close(self) -> None:
        pass
