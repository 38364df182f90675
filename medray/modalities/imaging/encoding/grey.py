"""Grey: how bright an image is and how much that varies, of few of its pixels, to be held against the training images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from medray.archive.ranges import Ranges, range_of
from medray.modalities.imaging.encoding.conform import ranged
from medray.modalities.imaging.spec import ImagingSpec

GREY = "grey_"
"""How the names of these numbers begin."""
COLUMN = "grey"
"""Column of a summary: list of float64, the means of all channels, then their deviations."""
PIXELS = 16_384
"""Number of pixels of a channel that are looked at, about, evenly spread: all of them would cost more than decoding does."""


def moments(pixels: np.ndarray, spec: ImagingSpec) -> np.ndarray:
    """(N, C, …) stored pixels to (N, 2C) float64: mean of each channel, then standard deviation of each, after window or
    scale and before the z-score."""
    flat = pixels.reshape(*pixels.shape[:2], math.prod(pixels.shape[2:]))
    step = flat.shape[-1] // PIXELS | 1  # odd, so that it does not stay in one column of a width that is a power of two
    values = ranged(flat[..., ::step].astype(np.float64), spec)
    return np.concatenate([values.mean(-1), values.std(-1)], axis=1)


def by_name(found: np.ndarray) -> dict[str, np.ndarray]:
    """What `moments` gives as (N,) by name; the channel's number, from 1, stands in it where there are several."""
    channels = found.shape[1] // 2
    names = [
        f"{GREY}{kind}" if channels == 1 else f"{GREY}{kind}[{channel + 1}]"
        for kind in ("mean", "std")
        for channel in range(channels)
    ]
    return {name: found[:, i] for i, name in enumerate(names)}


def grey_ranges(summaries: pa.Table) -> Ranges:
    """Ranges over the images of a summary; none of one that an earlier medray made."""
    if COLUMN not in summaries.schema.names:
        return {}
    statistics = np.array(summaries.column(COLUMN).to_pylist(), np.float64)
    return {name: range_of(values) for name, values in by_name(statistics).items()}


def is_learnt(spec: ImagingSpec) -> bool:
    """Whether the bundle has such a range."""
    ranges: Mapping[str, object] = spec.trained_ranges or {}
    return any(name.startswith(GREY) for name in ranges)
