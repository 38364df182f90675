"""Voxels of a NIfTI file at the places of a volume of ours, whatever order and direction its axes have."""

from __future__ import annotations

import nibabel
import numpy as np


def _axes(image: nibabel.Nifti1Image, affine_ras: np.ndarray) -> np.ndarray:
    """(3, 3) whole numbers: the axes of ours in theirs."""
    assert image.affine is not None
    return np.rint((np.linalg.inv(affine_ras) @ image.affine)[:3, :3]).astype(int)


def same_axes(image: nibabel.Nifti1Image, affine_ras: np.ndarray) -> bool:
    """Whether its axes are ours, in any order and direction."""
    turn = np.abs(_axes(image, affine_ras))
    return bool((turn.sum(0) == 1).all() and (turn.sum(1) == 1).all())


def at_our_places(image: nibabel.Nifti1Image, affine_ras: np.ndarray) -> tuple[np.ndarray, float]:
    """Its voxels as (D, H, W) of ours, and how far its places are from ours at the most, in mm."""
    assert same_axes(image, affine_ras) and image.affine is not None, "another set of axes"
    turn = _axes(image, affine_ras)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape[:3]])).reshape(3, -1)
    start = np.array([0 if row.sum() > 0 else image.shape[np.abs(row).argmax()] - 1 for row in turn])
    ours = turn @ corners + start[:, None]
    places = [
        matrix @ np.vstack([index, np.ones(8)]) for matrix, index in ((image.affine, corners), (affine_ras, ours))
    ]
    values = np.asarray(image.dataobj)
    values = np.transpose(values, np.abs(turn).argmax(1))
    for axis in range(3):
        if turn[axis].sum() < 0:
            values = np.flip(values, axis)
    return values.transpose(2, 1, 0), float(np.abs(places[0] - places[1]).max())


def volumes_of(image: object) -> list[nibabel.Nifti1Image]:
    """The volumes of a NIfTI image of three or four dimensions, in its order."""
    assert isinstance(image, nibabel.Nifti1Image)
    if image.ndim == 3:
        return [image]
    values = np.asarray(image.dataobj)
    return [nibabel.Nifti1Image(values[..., k], image.affine) for k in range(values.shape[3])]
