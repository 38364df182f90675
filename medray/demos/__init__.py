"""Demonstrations on real data that ships with medray: the whole way, offline, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medray.errors import UserError
from medray.progress import Progress

DEMOS = ("imaging",)


def run_demo(modality: str, out: Path, progress: Progress) -> dict[str, Any]:
    """Run one demo, or all; returns each one's summary. Raises UserError for a name that is none."""
    if modality not in (*DEMOS, "all"):
        raise UserError(
            "there is no such demo",
            where=f"medray demo {modality}",
            found=modality,
            expected=", ".join((*DEMOS, "all")),
        )
    from medray.demos.imaging import imaging

    return {"imaging": imaging(out / "imaging" if modality == "all" else out, progress)}
