"""Image: one decoded entry, before it is brought to the run's shape; and the guard around third-party decoders."""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from medray.errors import SampleError
from medray.storage.compressed import unpacking


@dataclass(frozen=True, slots=True)
class Image:
    """Real-world values of one entry and where they lie."""

    values: np.ndarray
    """(H, W) or (D, H, W), with a last axis of 3 (R G B) when `color`; any real dtype."""
    color: bool = False
    spacing_mm: tuple[float, ...] | None = None
    """Distance of voxel centres on each spatial axis; in depth the median gap. None: the file does not say."""
    slices_mm: np.ndarray | None = None
    """(D, 3) float64: where slice k starts along (normal, height, width) from slice 0. None: evenly, unsheared."""
    irregular: bool = False
    """The gaps between slices differ: only resampling by `slices_mm` places them right."""
    hole_mm: float = 0.0
    """The widest gap between slices that is a hole (over 1.5 times the median gap); 0 where there is none."""
    affine_ras: np.ndarray | None = None
    """(4, 4) float64: index (W, H, D) of `values` to the centre of its voxel, mm towards the right, the front and the head
    (NIfTI's convention). Of uneven slices the first and the last are met. None: the file does not say, or in 2D."""
    channels: bool = False
    """`values` has a first axis of C volumes of one series, which become channels."""
    turn_unsure: str = ""
    """Why `affine_ras` may be turned by some degrees against the patient, where the file contradicts itself."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the spatial axes."""
        if self.channels:
            return self.values.shape[1:]
        return self.values.shape[:-1] if self.color else self.values.shape


def without_depth(image: Image, axes: int) -> Image:
    """A NIfTI file of one slice is an image, where the run asks for images: of two axes."""
    if image.spacing_mm and len(image.shape) == 3 and axes == 2 and image.shape[0] == 1:
        return Image(image.values[0], image.color, image.spacing_mm[1:])
    return image


def narrowed(values: np.ndarray) -> np.ndarray:
    """Whole numbers of up to 16 bits as int16 where that holds all of them; any other values as they are."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2 or values.dtype == np.int16:
        return values
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if values.dtype.itemsize == 1:
        return values.astype(np.int16)
    return values.view(np.int16) if int(values.max()) < 1 << 15 else values


MALFORMED = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    OSError,
    RuntimeError,
    SyntaxError,
    AssertionError,
    struct.error,
)
"""Exceptions that decoders raise on malformed bytes, besides those that `unpacking` catches and their own. Caught only
around calls of decoders."""


@contextmanager
def decoding(what: str, *also: type[Exception]) -> Generator[None]:
    """A guard around third-party decoding of `what`: errors (MALFORMED and `also`) become SampleError, warnings are dropped.

    Errors, warnings and pydicom's log may all quote the file, so of an error only the class is kept.
    """
    log = logging.getLogger("pydicom")
    silent, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings(), unpacking(f"{what}: the data"):
            warnings.simplefilter("ignore")
            yield
    except SampleError:
        raise
    except MemoryError:
        raise SampleError("corrupt", f"{what}: it states a size that does not fit into memory") from None
    except (*MALFORMED, *also) as error:
        ended = isinstance(error, OSError) and "truncated" in str(error)
        raise SampleError("truncated" if ended else "corrupt", f"{what}: {type(error).__name__}") from None
    finally:
        log.disabled = silent
