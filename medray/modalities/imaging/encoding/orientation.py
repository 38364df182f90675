"""Orientation: the axes of a volume in a named order, and the directions of a grid that lies along the patient's axes."""

# nibabel gives some of its values no types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product
from typing import NamedTuple, TypeVar

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.image import Image

Number = TypeVar("Number", int, float)
LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
"""Letters of where the x, y and z axis of RAS come from and lead to: left to right, back to front, foot to head."""
UNITS = {
    letter: sign * np.eye(3)[axis]
    for axis, pair in enumerate(LETTERS)
    for sign, letter in zip((-1, 1), pair, strict=True)
}
"""(3,) unit vector in RAS that each letter leads along."""
CODES = tuple("".join(letters) for order in permutations(LETTERS) for letters in product(*order))
"""The 48 orientations, such as RAS: where W, H and D lead, in that order (NIfTI's i, j, k)."""


class Turn(NamedTuple):
    """How the axes of an image become those of another orientation: moved first, then mirrored."""

    axes: tuple[int, ...]
    """The old spatial axis (of D, H, W; or of H, W) that becomes each new one."""
    mirrored: tuple[int, ...] = ()
    """New axes that run the other way."""

    def of(self, values: np.ndarray) -> np.ndarray:
        """(C, [D,] H, W) of the old orientation as one of the new orientation; a view."""
        moved = values.transpose(0, *(axis + 1 for axis in self.axes))
        return np.flip(moved, tuple(axis + 1 for axis in self.mirrored))

    def before(self, numbers: Sequence[Number]) -> tuple[Number, ...]:
        """Numbers of the new axes in the order of the old ones."""
        return tuple(numbers[self.axes.index(old)] for old in range(len(self.axes)))


def turn(image: Image, code: str) -> Turn:
    """How an image is turned to the orientation whose axes are closest to its own; nothing is interpolated.

    Raises SampleError `bad_geometry` where the file does not say how its axes lie in the patient.
    """
    if code == "stored":
        return Turn(tuple(range(len(image.shape))))
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    change = ornt_transform(io_orientation(affine(image)), axcodes2ornt(tuple(code)))  # old W, H, D: (new axis, sign)
    old_of = {2 - int(new): 2 - old for old, (new, _) in enumerate(change)}
    mirrored = sorted(2 - int(new) for new, sign in change if sign < 0)
    return Turn((old_of[0], old_of[1], old_of[2]), tuple(mirrored))


def affine(image: Image) -> np.ndarray:
    """(4, 4) index (W, H, D) to RAS mm. Raises SampleError `bad_geometry` where the file does not say."""
    if image.affine_ras is None:
        raise SampleError(
            "bad_geometry", "the run sets orientation, but the file does not say how its axes lie in the patient"
        )
    return image.affine_ras


def directions(code: str) -> np.ndarray:
    """(3, 3) unit vectors in RAS along which D, H and W of an orientation lead."""
    return np.array([UNITS[letter] for letter in reversed(code)])
