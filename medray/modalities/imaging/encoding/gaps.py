"""Gaps: a volume of uneven slices to one of even slices, by their true positions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.image import Image


def even(image: Image, max_gap_mm: float) -> Image:
    """A volume with uneven gaps as one with slices every median gap, from the first slice on: each a mean of the two slices
    beside it, weighted by distance. Values are float32.

    Rows and columns stay where they are, so a sheared stack stays as sheared, where its slices lie on a line. Raises
    SampleError `bad_geometry` for a gap above `max_gap_mm`, and where slices do not lie on a line.
    """
    if not image.irregular or image.slices_mm is None:
        return image
    places = image.slices_mm - image.slices_mm[0]
    depths, gaps = places[:, 0], np.diff(places[:, 0])
    if gaps.max() > max_gap_mm + 1e-3:
        raise SampleError(
            "bad_geometry", f"a gap of {gaps.max():.2f} mm between two slices, more than max_gap_mm = {max_gap_mm:g}"
        )
    drift = places[-1, 1:] / depths[-1]
    if np.abs(places[:, 1:] - depths[:, None] * drift).max() > 0.01:
        raise SampleError("bad_geometry", "slices that do not lie on a line, which no even grid meets")
    step = float(np.median(gaps))
    targets = np.arange(int(np.floor(depths[-1] / step + 1e-6)) + 1) * step
    below = np.clip(np.searchsorted(depths, targets, side="right") - 1, 0, len(depths) - 2)
    share = ((targets - depths[below]) / gaps[below]).astype(np.float32)
    values = image.values if image.channels else image.values[None]
    resampled = np.empty((len(values), len(targets), *values.shape[2:]), np.float32)
    for k, (low, weight) in enumerate(zip(below, share, strict=True)):
        resampled[:, k] = values[:, low] if weight == 0 else values[:, low] * (1 - weight) + values[:, low + 1] * weight
    slices_mm = targets[:, None] * np.array([1.0, *drift])
    affine = None if image.affine_ras is None else image.affine_ras.copy()
    if affine is not None:
        affine[:3, 2] *= step * (len(depths) - 1) / depths[-1]
    return replace(
        image,
        values=resampled if image.channels else resampled[0],
        spacing_mm=None if image.spacing_mm is None else (step, *image.spacing_mm[1:]),
        slices_mm=slices_mm if np.abs(drift).max() > 1e-3 else None,
        irregular=False,
        hole_mm=0.0,
        affine_ras=affine,
    )
