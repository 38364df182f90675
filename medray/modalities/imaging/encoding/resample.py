"""Geometry of arrays: resize, pad, resample to a spacing. float32 in, float32 out; deterministic; antialiased.

Everything is done for values (linear) and for labels (the nearest voxel, so that there is no new label) on the same grid.
"""

from __future__ import annotations

import numpy as np

ON_A_TIE = 1e-6
"""Share of a voxel within which a place counts as halfway between two: the lower one is nearest, however it is rounded."""


def resize(values: np.ndarray, size: tuple[int, ...], *, labels: bool = False) -> np.ndarray:
    """(C, [D,] H, W) float32 stretched to `size`: linear, antialiased, half-pixel centres; itself when it fits."""
    if values.shape[1:] == size:
        return values
    import torch
    from torch.nn.functional import interpolate

    def stretch(planes: torch.Tensor, to: tuple[int, int]) -> torch.Tensor:
        if planes.shape[-2:] == to:
            return planes
        if labels:
            return interpolate(planes, to, mode="nearest-exact")
        return interpolate(planes, to, mode="bilinear", antialias=True)

    planes = torch.from_numpy(np.ascontiguousarray(values))  # pyright: ignore[reportUnknownMemberType]
    if len(size) == 2:
        return stretch(planes[None], (size[0], size[1]))[0].numpy()
    channels, depth = values.shape[:2]
    planes = stretch(planes, (size[1], size[2])).reshape(channels, 1, depth, -1)  # the linear filter is separable
    return stretch(planes, (size[0], planes.shape[-1])).reshape(channels, *size).numpy()


def resize_nearest(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(C, [D,] H, W) stretched to `size`, each voxel the nearest one of the input; the centres of the outermost voxels lie
    on each other, halves go up.

    These are the voxels of scipy.ndimage.zoom with order 0, but for its last plane, which rounding makes 0 for some sizes.
    """
    for axis, new in enumerate(size, start=1):
        old = values.shape[axis]
        step = (old - 1) / (new - 1) if new > 1 else 0.0
        places = np.minimum(np.floor(np.arange(new) * step + 0.5).astype(np.intp), old - 1)
        values = values.take(places, axis=axis)
    return values


def resize_and_pad(values: np.ndarray, size: tuple[int, ...], background: float, *, labels: bool = False) -> np.ndarray:
    """(C, [D,] H, W) float32 resized by one factor for all axes so that it fits into `size`, centred, padded."""
    shape = values.shape[1:]
    factor = min(new / old for new, old in zip(size, shape, strict=True))
    inner = tuple(min(new, max(1, round(old * factor))) for new, old in zip(size, shape, strict=True))
    padded = np.full((values.shape[0], *size), background, np.float32)
    starts = [(new - old) // 2 for new, old in zip(size, inner, strict=True)]
    inside = tuple(slice(start, start + length) for start, length in zip(starts, inner, strict=True))
    padded[(slice(None), *inside)] = resize(values, inner, labels=labels)
    return padded


def resample(
    values: np.ndarray,
    spacing_mm: tuple[float, ...],
    slices_mm: np.ndarray | None,
    *,
    to_mm: tuple[float, ...],
    size: tuple[int, ...],
    background: float,
    labels: bool = False,
) -> np.ndarray:
    """(C, [D,] H, W) float32 with voxels of `spacing_mm` to (C, *size) with voxels of exactly `to_mm`.

    The output grid is rectangular, lies along the volume's own axes, and has the centre of the input's extent in its own
    centre: cropping and padding are part of it. `slices_mm` (D, 3) are the true starts of slices along (normal, height,
    width), so uneven gaps are interpolated where they are and a sheared (tilted) stack is straightened.
    """
    values = values - np.float32(background)  # places that no voxel covers stay 0 and become the background below
    shape = values.shape[1:]
    axes: list[np.ndarray] = [np.arange(n) * step for n, step in zip(shape, spacing_mm, strict=True)]
    drift = np.zeros((shape[0], 2)) if slices_mm is None else slices_mm[:, 1:] - slices_mm[:1, 1:]
    if slices_mm is not None:
        axes[0] = slices_mm[:, 0] - slices_mm[0, 0]
    sheared = bool(len(shape) == 3 and np.abs(drift).max() > 1e-3)
    centres: list[float] = [(axis[0] + axis[-1]) / 2 for axis in axes]
    if sheared:
        centres[1] += (drift[:, 0].min() + drift[:, 0].max()) / 2
        centres[2] += (drift[:, 1].min() + drift[:, 1].max()) / 2
    grids: list[np.ndarray] = [
        centre + (np.arange(n) - (n - 1) / 2) * step for centre, n, step in zip(centres, size, to_mm, strict=True)
    ]
    weigh = nearest if labels else weights
    if sheared:
        plane = np.empty((values.shape[0], shape[0], *size[1:]), np.float32)
        for k in range(shape[0]):
            rows = weigh(axes[1] + drift[k, 0], spacing_mm[1], grids[1], to_mm[1])
            columns = weigh(axes[2] + drift[k, 1], spacing_mm[2], grids[2], to_mm[2])
            plane[:, k] = rows @ values[:, k] @ columns.T
    else:
        columns = weigh(axes[-1], spacing_mm[-1], grids[-1], to_mm[-1])
        rows = weigh(axes[-2], spacing_mm[-2], grids[-2], to_mm[-2])
        plane = rows @ (values @ columns.T)
    if len(shape) == 3:
        depth = weigh(axes[0], spacing_mm[0], grids[0], to_mm[0])
        plane = np.einsum("od,cdx->cox", depth, plane.reshape(*plane.shape[:2], -1), optimize=True)
    return plane.reshape(values.shape[0], *size) + np.float32(background)


def weights(voxels: np.ndarray, step: float, centres: np.ndarray, centre_step: float) -> np.ndarray:
    """(len(centres), len(voxels)) float32: linear interpolation between `voxels` (mm, ascending) at `centres`, or, where the
    new step is the coarser one, the mean under a triangle of that step; each voxel counts with its own width.

    Rows add up to 1 inside the extent (to the outer edge of the outer voxels) and are 0 outside of it. A ramp is kept; where
    the new step is coarser by other than a whole factor, within 0.06 of a voxel.
    """
    inside = _covered(voxels, step, centres)
    if len(voxels) == 1:
        return inside[:, None].astype(np.float32)
    gaps = np.diff(voxels)
    if centre_step <= gaps.max() * (1 + 1e-6):
        left = np.clip(np.searchsorted(voxels, centres, side="right") - 1, 0, len(voxels) - 2)
        share = np.clip((centres - voxels[left]) / gaps[left], 0, 1)
        weights = np.zeros((len(centres), len(voxels)))
        rows = np.arange(len(centres))
        weights[rows, left] = 1 - share
        weights[rows, left + 1] += share
    else:
        width = np.concatenate([gaps[:1], (gaps[:-1] + gaps[1:]) / 2, gaps[-1:]])
        weights = np.maximum(0, 1 - np.abs(centres[:, None] - voxels[None, :]) / centre_step) * width
        total = weights.sum(1, keepdims=True)
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return (weights * inside[:, None]).astype(np.float32)


def nearest(voxels: np.ndarray, step: float, centres: np.ndarray, centre_step: float) -> np.ndarray:
    """(len(centres), len(voxels)) float32: 1 at the voxel nearest to each centre, 0 outside of the extent, as `weights`."""
    middles = (voxels[1:] + voxels[:-1]) / 2
    chosen = np.searchsorted(middles, centres - ON_A_TIE * step)
    ones = np.zeros((len(centres), len(voxels)), np.float32)
    ones[np.arange(len(centres)), chosen] = _covered(voxels, step, centres)
    return ones


def _covered(voxels: np.ndarray, step: float, centres: np.ndarray) -> np.ndarray:
    """(len(centres),) bool: whether a place is within the outer edges of the outer voxels."""
    return (centres >= voxels[0] - step / 2 - 1e-6) & (centres <= voxels[-1] + step / 2 + 1e-6)
