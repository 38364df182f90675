"""Packages that only some of medray's work needs: each comes with an extra of medray (`pip install 'medray[onnx]'`)."""

from __future__ import annotations

import importlib.util

EXTRA_OF = {
    "h5py": "keras",
    "highdicom": "dicom-sr",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "xlsxwriter": "xlsx",
}
"""Module to the extra that brings it, as pyproject.toml names it."""


def lacking(*modules: str) -> str | None:
    """Which of these modules of one extra are not installed, and what to do; None where all are."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed: pip install 'medray[{EXTRA_OF[absent[0]]}]'" if absent else None
