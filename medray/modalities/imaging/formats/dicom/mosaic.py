"""Mosaics: the slices of a volume as tiles of one image (Siemens MR), or as a grid (UIH), and where each of them lies.

The number of tiles, the direction from one to the next, and positions stand in the vendors' own elements. What a header
does not state is not guessed: such a mosaic is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.elements import numbers, one_number, sequence
from medray.modalities.imaging.formats.dicom.frames import Group, private, stated
from medray.modalities.imaging.formats.dicom.header import IMPLICIT, Header
from medray.modalities.imaging.formats.dicom.objects import csa_texts, tiles_stated

RUN_PIXELS = 2**18
"""Pixels that are brought to real values at once: what a processor's cache holds."""


@dataclass(frozen=True, slots=True)
class Mosaic:
    """How tiles lie in an image: row by row from the upper left, the last row may have empty places."""

    count: int
    across: int
    """Tiles in a row, and rows of tiles."""
    rows: int
    columns: int
    """Pixels of a tile."""

    def tile(self, pixels: np.ndarray, number: int) -> np.ndarray:
        """Tile `number`, from 0, of the image (H, W), a view."""
        down, right = divmod(number, self.across)
        top, left = down * self.rows, right * self.columns
        return pixels[top : top + self.rows, left : left + self.columns]

    def unfolded(self, pixels: np.ndarray) -> np.ndarray:
        """(N, H, W) all tiles of the image, a copy."""
        places = pixels.reshape(self.across, self.rows, self.across, self.columns).swapaxes(1, 2)
        return places.reshape(-1, self.rows, self.columns)[: self.count]

    def tiles(self, pixels: np.ndarray, first: int, count: int) -> np.ndarray:
        """(N, H, W) tiles of one row of tiles, from number `first` on, of the image, a view."""
        down, right = divmod(first, self.across)
        top, left = down * self.rows, right * self.columns
        row = pixels[top : top + self.rows, left : left + count * self.columns]
        return row.reshape(self.rows, count, self.columns).swapaxes(0, 1)

    def runs(self, numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(index of its first, count) of each run of tiles that follow each other in one row of tiles, of up to RUN_PIXELS."""
        first, longest = 0, max(1, RUN_PIXELS // (self.rows * self.columns))
        for index in range(1, len(numbers) + 1):
            follows = index < len(numbers) and numbers[index] == numbers[index - 1] + 1
            if not follows or numbers[index] % self.across == 0 or index - first == longest:
                yield first, index - first
                first = index


def mosaic(header: Header) -> Mosaic:
    """The layout of a file that `is_mosaic`. Raises SampleError `unsupported` where its tiles cannot be told apart."""
    if header.frames > 1 or header.samples != 1:
        raise SampleError("unsupported", "a mosaic of several frames, or in colour")
    count = tiles_stated(header)
    across = math.isqrt(max(0, count - 1)) + 1
    if count < 2 or header.rows % across or header.columns % across:
        raise SampleError(
            "unsupported", f"a mosaic, many slices tiled into one image, whose header does not say how: {count} tiles"
        )
    return Mosaic(count, across, header.rows // across, header.columns // across)


def tile_positions(header: Header, layout: Mosaic) -> np.ndarray:
    """(N, 3) LPS mm: where the first pixel of each tile lies. Raises SampleError.

    Of Siemens' mosaics ImagePositionPatient is where the mosaic would begin if it were one slice with the same centre
    (nibabel.nicom.dicomwrappers.MosaicWrapper.image_position; SPM's spm_dicom_convert), and tiles follow each other along
    the SliceNormalVector of the CSA header. A UIH grid has a list of its slices.
    """
    csa = private(header, "CSAImageHeader", "SIEMENS CSA HEADER")
    if csa is None:
        return _listed_positions(header, layout)
    top = Group(header, header)
    start, turned = numbers(top.get("ImagePositionPatient")), numbers(top.get("ImageOrientationPatient"))
    spacing, step = numbers(top.get("PixelSpacing")), one_number(top.get("SpacingBetweenSlices"))
    normal = _vector(csa)
    if not start or not turned or not spacing or len(spacing) != 2 or not step or normal is None:
        raise SampleError("bad_geometry", "a mosaic that does not say where its slices lie")
    if len(start) != 3 or len(turned) != 6:
        raise SampleError("bad_geometry", "a position that is not three numbers, or an orientation that is not six")
    along, down = np.array(turned).reshape(2, 3)
    if abs(abs(float(np.cross(along, down) @ normal)) - 1) > 1e-2:
        raise SampleError("bad_geometry", "a mosaic whose slices do not follow each other along their normal")
    first = (
        np.array(start)
        + down * spacing[0] * (header.rows - layout.rows) / 2
        + along * spacing[1] * (header.columns - layout.columns) / 2
    )
    return first + np.arange(layout.count)[:, None] * step * normal


def _vector(csa: bytes) -> np.ndarray | None:
    """(3,) the SliceNormalVector of a CSA header."""
    try:
        vector = np.array([float(text) for text in csa_texts(csa, b"SliceNormalVector")])
    except ValueError:
        return None
    return vector if vector.shape == (3,) and np.isfinite(vector).all() else None


def _listed_positions(header: Header, layout: Mosaic) -> np.ndarray:
    """(N, 3) LPS mm from the list of slices of a UIH grid, one item each."""
    listed = private(header, "UIHFrames", "Image")
    try:
        slices = (
            [] if listed is None or not header.walked else sequence(listed, header.syntax == IMPLICIT, header.little)
        )
    except ValueError:
        raise SampleError("corrupt", "the list of a grid's slices is not made of items") from None
    positions = [numbers(stated(each, "ImagePositionPatient", header)) for each in slices]
    known = [each for each in positions if each is not None and len(each) == 3]
    if len(known) != layout.count:
        raise SampleError("bad_geometry", "a mosaic without its vendor's statement of where its slices lie")
    return np.array(known)
