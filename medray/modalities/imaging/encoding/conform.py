"""Images to the arrays that are stored: channels, size, spacing, dtype, and the range of the stored values."""

from __future__ import annotations

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.encoding import resample
from medray.modalities.imaging.encoding.orientation import affine, directions, turn
from medray.modalities.imaging.encoding.patient_grid import placement, to_patient_grid
from medray.modalities.imaging.formats.image import Image, without_depth
from medray.modalities.imaging.spec import ImagingSpec

EXACT = 1 << 24
"""Every whole number up to this is exact in float32."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""R G B to luma, ITU-R BT.601."""


def conform(image: Image, spec: ImagingSpec) -> np.ndarray:
    """An image to (C, *size) float32: channels, then geometry. Raises SampleError."""
    image = without_depth(image, len(spec.size))
    if len(image.shape) != len(spec.size):
        raise SampleError(
            "bad_shape", f"{len(image.shape)}D of shape {list(image.shape)}; the run asks for {len(spec.size)}D"
        )
    if 0 in image.shape:
        raise SampleError("bad_shape", f"no pixels in shape {list(image.shape)}")
    values = as_float32(image.values)
    if spec.volumes == "channels":
        values = _as_channels(values, image, spec.channels)
    elif not image.color:
        values = values[None]
    elif spec.channels == 1:
        values = (values @ LUMA)[None]
    else:
        values = np.moveaxis(values, -1, 0)
    values = np.ascontiguousarray(_to_size(values, image, spec))
    return values if len(values) == spec.channels else np.repeat(values, spec.channels, axis=0)


def conform_labels(labels: Image, spec: ImagingSpec) -> np.ndarray:
    """A mask (D, H, W) or (H, W) of whole numbers to `size`, on the grid that `conform` brings its image to; same dtype.

    Each voxel takes the label of the nearest one, so that no label comes about between two others; outside of the mask
    it is 0. Raises SampleError as `conform` does, and `bad_values` for labels that are no whole numbers.
    """
    labels = without_depth(labels, len(spec.size))
    if labels.color or len(labels.shape) != len(spec.size) or 0 in labels.shape:
        raise SampleError(
            "bad_shape", f"a mask of shape {list(labels.values.shape)}; the run asks for {len(spec.size)}D"
        )
    values = as_float32(labels.values)
    if (values != np.rint(values)).any():
        raise SampleError("bad_values", "labels that are no whole numbers")
    return _to_size(values[None], labels, spec, labels=True)[0].astype(labels.values.dtype)


def _as_channels(values: np.ndarray, image: Image, channels: int) -> np.ndarray:
    """Volumes of one series as (C, D, H, W). Raises SampleError `bad_shape` for another number of them than the run has."""
    count = 1 if not image.channels else len(values)
    if count != channels or image.color:
        what = "a colour volume" if image.color else f"{count} volumes"
        raise SampleError("bad_shape", f'{what}; volumes = "channels" asks for {channels}, as many as channels')
    return values if image.channels else values[None]


def as_float32(values: np.ndarray) -> np.ndarray:
    """Any real array as float32. Raises SampleError `bad_values` for NaN and infinite values, for numbers beyond the
    range of float32, and for whole numbers that it cannot hold (beyond 2^24): nothing is rounded to another integer.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        converted = values.astype(np.float32, copy=False)
        # one pass: a sum that is finite is of finite numbers; one that is not may be of large ones
        finite = values.dtype.kind != "f" or bool(np.isfinite(converted.sum()))
    if values.dtype.kind == "f":
        bad = 0 if finite else int((~np.isfinite(converted)).sum())
        if bad:
            raise SampleError("bad_values", f"{bad} values are NaN, infinite or beyond the range of float32")
    elif values.dtype.kind in "iu" and values.dtype.itemsize > 2:
        low, high = int(values.min()), int(values.max())
        most = max(-low, high)
        if most > EXACT and (most > 1 << 53 or (converted.astype(np.float64) != values.astype(np.float64)).any()):
            raise SampleError("bad_values", f"whole numbers from {low} to {high}: float32 holds them up to {EXACT}")
    return converted


def _to_size(values: np.ndarray, image: Image, spec: ImagingSpec, *, labels: bool = False) -> np.ndarray:
    """(C, [D,] H, W) of an image to (C, *size); `labels`: by the nearest voxel, with 0 as the background."""

    def background() -> float:
        if labels:
            return 0.0
        return float(values.min()) if spec.background == "minimum" else spec.background

    turned = turn(image, spec.orientation)
    if spec.spacing_mm is not None or spec.max_gap_mm is not None:
        _refuse_hole(image, spec.max_gap_mm)
    if spec.spacing_mm is not None:
        if image.spacing_mm is None:
            raise SampleError("bad_geometry", "the run sets spacing_mm, but the file does not state its spacing")
        if spec.grid == "patient":
            return _to_patient_grid(values, image, spec, background(), labels=labels)
        resampled = resample.resample(
            values,
            image.spacing_mm,
            image.slices_mm,
            to_mm=turned.before(spec.spacing_mm),
            size=turned.before(spec.size),
            background=background(),
            labels=labels,
        )
        return turned.of(resampled)  # afterwards, since slices may lie unevenly along the old depth alone
    if image.irregular and image.slices_mm is not None:
        gaps = np.diff(image.slices_mm[:, 0])
        raise SampleError(
            "bad_geometry",
            f"slice gaps from {gaps.min():.2f} to {gaps.max():.2f} mm cannot be stacked as even: "
            "set spacing_mm to resample by the true positions",
        )
    if spec.resize == "nearest":
        return resample.resize_nearest(turned.of(values), spec.size)
    if spec.resize == "pad":
        return resample.resize_and_pad(turned.of(values), spec.size, background(), labels=labels)
    return resample.resize(turned.of(values), spec.size, labels=labels)


def _to_patient_grid(
    values: np.ndarray, image: Image, spec: ImagingSpec, background: float, *, labels: bool
) -> np.ndarray:
    """`to_patient_grid` by the image's own geometry. Raises SampleError `bad_geometry`."""
    assert image.spacing_mm is not None and spec.spacing_mm is not None  # looked at before
    if image.turn_unsure:
        raise SampleError(
            "bad_geometry", f"grid = 'patient' needs to know how the volume is turned: {image.turn_unsure}"
        )
    return to_patient_grid(
        values,
        placement(image.shape, affine(image), image.spacing_mm, image.slices_mm),
        directions=directions(spec.orientation),
        to_mm=spec.spacing_mm,
        size=spec.size,
        background=background,
        labels=labels,
    )


def _refuse_hole(image: Image, max_gap_mm: float | None) -> None:
    """Raises SampleError `bad_geometry` for a volume with a gap between slices that is too wide to be filled."""
    if len(image.shape) != 3 or image.spacing_mm is None or image.shape[0] == 1:
        return
    gap = image.spacing_mm[0] if image.slices_mm is None else float(np.diff(image.slices_mm[:, 0]).max())
    hole = image.hole_mm if max_gap_mm is None else gap if gap > max_gap_mm + 1e-3 else 0.0
    if hole:
        limit = "1.5 times the median gap" if max_gap_mm is None else f"max_gap_mm = {max_gap_mm:g}"
        raise SampleError(
            "bad_geometry",
            f"a hole of {hole:.2f} mm between two slices, more than {limit}: the anatomy in between is unknown",
        )


def divisor(spec: ImagingSpec) -> float:
    """The number that divides stored pixels before the z-score, where no window is applied on the device."""
    return 255.0 if spec.dtype == "uint8" and (spec.stored_window or spec.scale == "auto") else 1.0


def ranged(values: np.ndarray, spec: ImagingSpec) -> np.ndarray:
    """Stored pixels after window or scale, before the z-score; float64 stays float64."""
    if spec.window is not None and not spec.stored_window:
        centre, width = spec.window
        return np.clip((values - centre) / width + 0.5, 0, 1)
    return values / divisor(spec)


def store(values: np.ndarray, spec: ImagingSpec) -> np.ndarray:
    """(…, H, W) float32 values, or whole numbers of 16 bits at the most, in the storage dtype: rounded to whole numbers for
    integers, windowed first where 8 bits are asked for with a window. Raises SampleError `bad_values` outside the dtype's
    range: nothing wraps around.
    """
    if spec.dtype == "float32":
        return np.ascontiguousarray(values, np.float32)
    stored = np.empty(values.shape, spec.dtype)
    limits = np.iinfo(spec.dtype)
    low, high = np.inf, -np.inf
    for place in np.ndindex(values.shape[:-2]):  # what is computed on the way is of a plane, not of a volume
        plane = values[place].astype(np.float32)
        if spec.stored_window and spec.window is not None:
            centre, width = spec.window
            plane -= centre
            plane /= width
            plane += 0.5
            np.clip(plane, 0, 1, out=plane)
            plane *= 255
        else:
            low, high = min(low, float(plane.min())), max(high, float(plane.max()))
            np.clip(plane, limits.min, limits.max, out=plane)
        stored[place] = np.rint(plane, out=plane)
    if low < limits.min - 0.5 or high > limits.max + 0.5:
        raise SampleError(
            "bad_values",
            f"values from {low:g} to {high:g} do not fit dtype {spec.dtype}: "
            "set dtype = 'int16' or 'float32', or a window",
        )
    return stored
