"""Images in memory to .npz files that the scan takes: one array of many, or a list of arrays of any size."""

# Anything may be given; what it is, is found out here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from medray.errors import UserError

STACK = "array"
"""Name of the file of one array that holds all images."""


def write_images(data: object, folder: Path, volumes: bool) -> Callable[[str], int | None]:
    """Write images, and give the number of the image that an entry id is of.

    `data`: (N, H, W[, 3]) or one image (H, W); of volumes (N, D, H, W[, 3]) or one (D, H, W); or a list of single ones,
    whose sizes may differ. Values are taken as stored pixels of a file are (HU for CT). Raises UserError.
    """
    axes, shape = (3, "D, H, W") if volumes else (2, "H, W")
    if isinstance(data, np.ndarray):
        np.savez(folder / f"{STACK}.npz", images=_stack(data, axes, shape))
        return lambda entry_id: _number(entry_id.rpartition("#")[2])
    if not isinstance(data, list | tuple) or not all(isinstance(each, np.ndarray) for each in data):
        raise UserError(
            "these are no images",
            found=type(data).__name__,
            expected=f"a NumPy array (N, {shape}[, 3]), a list of arrays ({shape}[, 3]), or paths",
        )
    for number, image in enumerate(data):
        if image.ndim not in (axes, axes + 1) or (image.ndim == axes + 1 and image.shape[-1] not in (1, 3)):
            raise _wrong_shape(image, f"({shape}) or ({shape}, 3) in a list", "")
        np.savez(folder / f"{number}.npz", images=_numbers(_one_channel(image, axes)[None]))
    return lambda entry_id: _number(entry_id.partition(".")[0])


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _stack(array: np.ndarray, axes: int, shape: str) -> np.ndarray:
    """(N, …) of what may be a single image."""
    expected = f"(N, {shape}), (N, {shape}, 3), or one image ({shape})"
    if array.ndim == axes:
        array = array[None]
    elif array.ndim == axes + 1 and array.shape[-1] in (1, 3, 4):
        raise _wrong_shape(
            array, expected, "it may be one image with channels or many narrow ones: give one as array[None]"
        )
    elif array.ndim != axes + 1 and (array.ndim != axes + 2 or array.shape[-1] not in (1, 3)):
        raise _wrong_shape(array, expected, "channels come last: np.moveaxis(array, 1, -1)")
    if not len(array):
        raise _wrong_shape(array, expected, "")
    return _numbers(np.stack([_one_channel(image, axes) for image in array]) if array.ndim == axes + 2 else array)


def _one_channel(image: np.ndarray, axes: int) -> np.ndarray:
    """Without its last axis where that is a single channel."""
    return image[..., 0] if image.ndim == axes + 1 and image.shape[-1] == 1 else image


def _numbers(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iufb":
        raise UserError("the array holds no pixels", found=f"dtype {array.dtype}", expected="integers or floats")
    return array


def _wrong_shape(array: np.ndarray, expected: str, do: str) -> UserError:
    return UserError("the array has another shape than images", found=str(array.shape), expected=expected, do=do)
