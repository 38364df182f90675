"""What computes the scores of a run, and how it is told."""

from __future__ import annotations

from medray.config.runs import EvaluateRun, StoreRun, TrainRun
from medray.engines.base import Engine
from medray.learning.backend import Backend, choose
from medray.learning.bundles import TrainedModel
from medray.progress import Progress


def chosen_backend(
    run: TrainRun | EvaluateRun | StoreRun, bundle: TrainedModel, engine: Engine, progress: Progress
) -> Backend:
    """What scores, as the run's engine asks for; said where it is not torch by default. Raises UserError, BundleError."""
    asked = run.engine.backend
    backend = choose(bundle, asked, on_gpu=asked == "auto" and engine.scores_on_gpu)
    if asked != "torch":
        progress.fact("backend", backend=backend.title)
        progress.note(f"scores are computed by {backend.title}")
    return backend
