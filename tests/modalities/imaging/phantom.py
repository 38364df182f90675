"""A phantom at a known place in the patient, as any scanner would store it: DICOM series and NIfTI files of one object."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import dicom_build as build
import nibabel
import numpy as np

BLOBS = (((14.0, -9.0, 21.0), 6.0, 1000.0), ((-17.0, 12.0, -8.0), 4.5, 700.0), ((3.0, 22.0, 4.0), 5.0, 400.0))
"""Centre in RAS mm, sigma in mm and height of each Gaussian: no mirror and no turn leaves them where they are."""
AXES = {
    "axial": ([1, 0, 0], [0, 1, 0]),
    "sagittal": ([0, 1, 0], [0, 0, -1]),
    "coronal": ([1, 0, 0], [0, 0, -1]),
}
"""Along the columns and down the rows, LPS, as scanners acquire them."""


def density(points: np.ndarray) -> np.ndarray:
    """(…, 3) RAS mm to (…) values of the phantom."""
    return sum(
        height * np.exp(-((points - np.array(centre)) ** 2).sum(-1) / (2 * sigma**2)) for centre, sigma, height in BLOBS
    )


CENTROID = np.sum([np.array(c) * h * s**3 for c, s, h in BLOBS], 0) / sum(h * s**3 for _, s, h in BLOBS)
"""(3,) RAS mm: the centre of mass of all three together."""


def rotation(degrees: Sequence[float]) -> np.ndarray:
    """(3, 3) turns about x, y, z, one after the other."""
    made = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        a, b = [k for k in range(3) if k != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        made = turn @ made
    return made


def places(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(W, H, D, 3) RAS mm of every voxel."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def nifti(affine: np.ndarray, shape: Sequence[int]) -> bytes:
    """The phantom in float32 voxels of this affine (RAS mm)."""
    return nibabel.Nifti1Image(density(places(affine, shape)).astype(np.float32), affine).to_bytes()


def centred(axes: np.ndarray, spacing: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """(4, 4) whose columns are `axes` times `spacing`, with the middle of the volume at (0, 0, 0)."""
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array(spacing)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def series(
    plane: str = "axial",
    *,
    size: tuple[int, int] = (56, 60),
    spacing: tuple[float, float] = (1.75, 1.5),
    depths: Sequence[float] | None = None,
    turned: Sequence[float] = (0, 0, 0),
    tilt_degrees: float = 0.0,
) -> list[bytes]:
    """The phantom as slices of rows and columns `size`, at `depths` (mm from the middle, along the normal); `turned` about the
    axes of the patient; tilted slices are shifted along their rows' direction as those of a tilted gantry are.
    """
    depths = np.arange(-41.25, 41.3, 2.5) if depths is None else np.asarray(depths, float)
    turn = rotation(turned)
    along, down = (turn @ np.array(axis, float) for axis in AXES[plane])  # LPS
    normal = np.cross(along, down)
    files: list[bytes] = []
    for number, depth in enumerate(depths):
        centre = normal * depth + down * np.tan(np.radians(tilt_degrees)) * depth
        start = centre - along * spacing[1] * (size[1] - 1) / 2 - down * spacing[0] * (size[0] - 1) / 2
        rows, columns = np.indices(size)
        points = start + rows[..., None] * spacing[0] * down + columns[..., None] * spacing[1] * along
        stored = np.rint(density(points * [-1, -1, 1]) * 16).astype(np.uint16)
        made = build.dataset(stored, instance=number, RescaleSlope="0.0625", RescaleIntercept="0", modality="MR",
                             sop_class=build.MR)  # fmt: skip
        build.placed(made, [round(float(n), 6) for n in start], spacing)
        made.ImageOrientationPatient = [round(float(n), 9) for n in (*along, *down)]
        made.SliceThickness = 2.5
        files.append(build.encoded(made))
    return files


def centroid(values: np.ndarray, spacing: Sequence[float], directions: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """(3,) RAS mm: centre of mass of (D, H, W) on a grid that leads along the rows of `directions` around `centre`."""
    weights = values.astype(np.float64)
    offsets = [
        ((np.arange(n) - (n - 1) / 2) * step * np.moveaxis(weights, k, -1)).sum() / weights.sum()
        for k, (n, step) in enumerate(zip(values.shape, spacing, strict=True))
    ]
    return centre + np.array(offsets) @ directions


ALL_AXES = [
    np.array([[sign if row == axis else 0.0 for axis, sign in zip(order, signs, strict=True)] for row in range(3)])
    for order in itertools.permutations(range(3))
    for signs in itertools.product((-1.0, 1.0), repeat=3)
]
"""(3, 3) each: the 48 ways in which stored axes may lie along those of the patient."""
