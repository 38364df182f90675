"""Opens the engine that a run file asks for."""

from __future__ import annotations

from medray.engines.base import Engine
from medray.engines.spec import LocalSpec, RaySpec


def open_engine(spec: LocalSpec | RaySpec, run: str = "") -> Engine:
    """The engine that a run file asks for; `close` it after use. `run`: the run's name, for metrics."""
    if spec.kind == "local":
        from medray.engines.local import LocalEngine

        return LocalEngine()
    from medray.engines.ray.engine import RayEngine

    return RayEngine(spec, run)
