"""Images to the arrays that samples hold, as `conform` and `store` make them; without a pass over numbers that stay as they are."""

from __future__ import annotations

import numpy as np

from medray.modalities.imaging.encoding.conform import conform, store
from medray.modalities.imaging.encoding.normalise import by_itself
from medray.modalities.imaging.encoding.orientation import turn
from medray.modalities.imaging.formats.image import Image, without_depth
from medray.modalities.imaging.spec import ImagingSpec

NARROW = np.dtype(np.int16)
"""Of this dtype float32 samples may be on their way to the network, where it holds their numbers."""


def stored_pixels(image: Image, spec: ImagingSpec) -> np.ndarray:
    """(C, *size) of an image in the storage dtype of the spec, or, where that is float32, in one of whole numbers of 16 bits
    and less that are the same: those of the image itself, where nothing has to be computed. May be a view of the image.

    Raises SampleError.
    """
    whole = _whole(image, spec)
    return store(by_itself(conform(image, spec), image, spec), spec) if whole is None else whole


def _whole(image: Image, spec: ImagingSpec) -> np.ndarray | None:
    """The image's own whole numbers, of 16 bits at the most, where `conform` and `store` would give the same; else None: they
    compute, or refuse."""
    image = without_depth(image, len(spec.size))
    values = image.values
    moves = spec.spacing_mm is not None or spec.max_gap_mm is not None or image.irregular
    changes = image.color or spec.normalise == "medicalnet"
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2 or moves or changes:
        return None
    if sorted(image.shape) != sorted(spec.size) or (image.channels and spec.volumes != "channels"):
        return None
    values = values if image.channels else values[None]
    values = values if spec.orientation == "stored" else turn(image, spec.orientation).of(values)
    if values.shape[1:] != spec.size or len(values) != (spec.channels if spec.volumes == "channels" else 1):
        return None
    values = _in_range(values, spec)
    if values is None or len(values) == spec.channels:
        return values
    return np.broadcast_to(values, (spec.channels, *spec.size))


def _in_range(values: np.ndarray, spec: ImagingSpec) -> np.ndarray | None:
    """Whole numbers in the storage dtype; as they are where that is float32, and None where it cannot hold them."""
    if spec.dtype == "float32":
        return values
    if spec.stored_window:
        return store(values, spec)
    limits = np.iinfo(spec.dtype)
    if not np.can_cast(values.dtype, spec.dtype) and (values.min() < limits.min or values.max() > limits.max):
        return None
    same_bytes = values.dtype.isnative and values.itemsize == limits.dtype.itemsize
    return values.view(spec.dtype) if same_bytes else values.astype(spec.dtype)
