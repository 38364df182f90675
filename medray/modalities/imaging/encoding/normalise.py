"""Normalisation of an image by its own values, as published networks were trained with it."""

from __future__ import annotations

import numpy as np
import xxhash

from medray.errors import SampleError
from medray.modalities.imaging.formats.image import Image
from medray.modalities.imaging.spec import ImagingSpec


def by_itself(values: np.ndarray, image: Image, spec: ImagingSpec) -> np.ndarray:
    """(C, *size) float32 of an image, windowed and normalised where the spec has each image normalised by itself; else as
    they are. Raises SampleError."""
    if spec.normalise != "medicalnet":
        return values
    if spec.window is not None:
        centre, width = spec.window
        values = np.clip((values - centre) / width + 0.5, 0, 1)
    return over_positive(values, seed_of(image.values))


def over_positive(values: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """float32 of any shape to the same: minus the mean and by the deviation (of a population) of the values above 0; what is
    exactly 0 becomes noise of N(0, 1) that the seed (4,) uint32 draws. As MedicalNet (Chen et al. 2019).

    Raises SampleError `bad_values` where nothing, or one value only, lies above 0.
    """
    positive = values[values > 0].astype(np.float64)
    deviation = positive.std() if positive.size else 0.0
    if not deviation > 0:
        raise SampleError("bad_values", f"{positive.size} values above 0 without a deviation to divide by")
    # a draw for each voxel: rounding that makes one voxel 0 moves no other's. RandomState's stream is frozen for good
    # (NEP 19), that of newer generators is not
    noise = np.random.RandomState(seed).standard_normal(values.shape)
    return np.where(values == 0, noise, (values - positive.mean()) / deviation).astype(np.float32)


def seed_of(values: np.ndarray) -> np.ndarray:
    """(4,) uint32 of an image's decoded values: the same in any batch, on any worker, under any name and in any dtype that
    holds them. Not of resampled values, whose last bit may differ between machines."""
    whole = xxhash.xxh3_128(repr(values.shape).encode())
    whole.update(np.ascontiguousarray(values, "<f4").data)
    return np.frombuffer(whole.digest(), ">u4").astype(np.uint32)
