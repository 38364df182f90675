"""Resampling in world coordinates: a volume on a grid whose axes run exactly along the patient's. float32 in, float32 out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medray.modalities.imaging.encoding.resample import ON_A_TIE, weights


@dataclass(frozen=True, slots=True)
class Placement:
    """The place of a volume's voxels in the patient."""

    shape: tuple[int, ...]
    """(D, H, W)"""
    origin: np.ndarray
    """(3,) RAS mm: centre of the first voxel."""
    axes: np.ndarray
    """(3, 3) rows: unit vectors in RAS along the slice normal, H and W."""
    spacing_mm: tuple[float, ...]
    """Distances of slices along the normal, of rows, of columns."""
    slices_mm: np.ndarray
    """(D, 3): where each slice starts along the rows of `axes`, from slice 0."""

    @property
    def centre(self) -> np.ndarray:
        """(3,) RAS mm: the middle of its extent."""
        high, wide = ((n - 1) * step for n, step in zip(self.shape[1:], self.spacing_mm[1:], strict=True))
        low, top = self.slices_mm.min(0), self.slices_mm.max(0)
        return self.origin + ((low + top) / 2 + np.array([0, high / 2, wide / 2])) @ self.axes

    def index(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) RAS mm to (N, 3) fractional indices (D, H, W). Between two slices, and half a gap beyond the outer ones,
        everything is linear."""
        along = (points - self.origin) @ np.linalg.inv(self.axes)
        starts = self.slices_mm
        if len(starts) > 1:
            k = np.clip(np.searchsorted(starts[:, 0], along[:, 0], side="right") - 1, 0, len(starts) - 2)
            share = (along[:, 0] - starts[k, 0]) / (starts[k + 1, 0] - starts[k, 0])
            drift = starts[k, 1:] + share[:, None] * (starts[k + 1, 1:] - starts[k, 1:])
            depth = k + share
        else:
            depth, drift = along[:, 0] / (self.spacing_mm[0] or 1.0), np.zeros((len(points), 2))
        return np.column_stack([depth, (along[:, 1:] - drift) / self.spacing_mm[1:]])


def placement(
    shape: tuple[int, ...], affine_ras: np.ndarray, spacing_mm: tuple[float, ...], slices_mm: np.ndarray | None
) -> Placement:
    """The place of a volume (D, H, W) with the affine of indices (W, H, D); `slices_mm` as in Image."""
    along, down = (affine_ras[:3, k] / np.linalg.norm(affine_ras[:3, k]) for k in (0, 1))
    normal = np.cross(along, down)
    normal /= np.linalg.norm(normal)
    if slices_mm is None:
        step = np.sign(affine_ras[:3, 2] @ normal) or 1.0
        normal = normal * step
        slices_mm = np.arange(shape[0])[:, None] * np.array([spacing_mm[0], 0, 0])
    return Placement(shape, affine_ras[:3, 3], np.array([normal, down, along]), spacing_mm, slices_mm)


def to_patient_grid(
    values: np.ndarray,
    volume: Placement,
    *,
    directions: np.ndarray,
    to_mm: tuple[float, ...],
    size: tuple[int, ...],
    background: float,
    labels: bool = False,
) -> np.ndarray:
    """(C, D, H, W) float32 to (C, *size): voxels of exactly `to_mm` on a grid along `directions` (rows: unit vectors in RAS
    that D, H and W lead along), the centre of the volume's extent in its own.

    Trilinear at the true positions. An axis along which the new voxels are the coarser ones is smoothed first, under the
    triangle that `resample` takes, as wide as a new voxel is along that axis: sqrt(Σ (cos · to_mm)²).
    """
    values = values - np.float32(background)
    if not labels:
        values = _smoothed(values, volume, directions, to_mm)
    lines = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(size, to_mm, strict=True)]
    plane = (lines[1][:, None, None] * directions[1] + lines[2][None, :, None] * directions[2]).reshape(-1, 3)
    made = np.zeros((len(values), size[0], len(plane)), np.float32)
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    for k, along in enumerate(lines[0]):
        index = volume.index(volume.centre + along * directions[0] + plane)
        sampled = _nearest(flat, volume, index) if labels else _trilinear(flat, volume, index)
        made[:, k] = sampled * _inside(volume, index)
    return made.reshape(len(values), *size) + np.float32(background)


def _smoothed(values: np.ndarray, volume: Placement, directions: np.ndarray, to_mm: tuple[float, ...]) -> np.ndarray:
    widths = np.sqrt(((volume.axes @ directions.T * np.array(to_mm)) ** 2).sum(1))
    positions = [
        volume.slices_mm[:, 0],
        *(np.arange(n) * s for n, s in zip(volume.shape[1:], volume.spacing_mm[1:], strict=True)),
    ]
    for axis, (place, step, width) in enumerate(zip(positions, volume.spacing_mm, widths, strict=True), start=1):
        if len(place) > 1 and width > np.diff(place).max() * (1 + 1e-6):
            kernel = weights(place, step, place, float(width))
            values = np.moveaxis(np.tensordot(kernel, values, (1, axis)), 0, axis)
    return values


def _inside(volume: Placement, index: np.ndarray) -> np.ndarray:
    """(N,) bool: within the outer edges of the outer voxels."""
    top = np.array(volume.shape) - 0.5 + ON_A_TIE
    return np.asarray(((index >= -0.5 - ON_A_TIE) & (index <= top)).all(1))


def _trilinear(flat: np.ndarray, volume: Placement, index: np.ndarray) -> np.ndarray:
    """(C, N) float32 between the eight voxels around each index; the outer voxels hold to their outer edge."""
    last = np.array(volume.shape) - 1
    lower = np.clip(np.floor(index).astype(np.intp), 0, np.maximum(last - 1, 0))
    share = np.clip(index - lower, 0, 1)
    steps = np.array([volume.shape[1] * volume.shape[2], volume.shape[2], 1])
    start = lower @ steps
    beyond = np.minimum(last, 1) * steps  # no step along an axis of one voxel
    total = np.zeros((len(flat), len(index)), np.float32)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, share, 1 - share), axis=1).astype(np.float32)
        total += flat[:, start + int(np.dot(corner, beyond))] * weight
    return total


def _nearest(flat: np.ndarray, volume: Placement, index: np.ndarray) -> np.ndarray:
    """(C, N) float32 of the nearest voxel."""
    chosen = np.clip(np.ceil(index - 0.5 - ON_A_TIE).astype(np.intp), 0, np.array(volume.shape) - 1)
    return flat[:, np.ravel_multi_index(tuple(chosen.T), volume.shape)]
