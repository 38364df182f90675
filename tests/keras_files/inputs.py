"""Random inputs of the fixtures, the same wherever NumPy draws them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

ROWS = 100
KEPT = 12
"""Rows whose answers are kept here of models of one layer; of architectures all are."""


def random_input(name: str, number: int, shape: Sequence[int | None], dtype: str) -> np.ndarray:
    """(100, *shape) of a model's input, by its number: standard normal, pictures' bytes for EfficientNet, codes below 11."""
    draw = np.random.default_rng(zlib.crc32(f"{name} {number}".encode()))
    size = (ROWS, *(int(n or 0) for n in shape))
    if "int" in dtype:
        return draw.integers(0, 11, size).astype(np.int32)
    if name == "efficientnet":
        return draw.uniform(0, 255, size).astype(np.float32)
    return draw.normal(0, 1, size).astype(np.float32)
