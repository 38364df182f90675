"""Arrays of images: MedMNIST .npz and MNIST idx."""

from __future__ import annotations

import gzip
import io
import re
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from medray.errors import SampleError
from medray.modalities.imaging.formats.image import Image, decoding
from medray.storage.compressed import GZIP
from medray.storage.files import exists, read_bytes, size_and_time

LONGER = 4
"""How many times longer than an axis of channels both other axes must be."""
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def unzipped(raw: bytes) -> bytes:
    """A gzip file's content; other bytes as they are. Raises SampleError `truncated` or `corrupt`."""
    if not raw.startswith(GZIP):
        return raw
    with decoding("gzip"):
        return gzip.decompress(raw)


# --- arrays of images -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ImageArray:
    """One array of images with its labels."""

    images: np.ndarray
    """(N, H, W[, 3]) or (N, D, H, W[, 3])"""
    labels: np.ndarray | None
    """(N, L)"""
    split: str | None

    def label(self, row: int) -> tuple[str, ...]:
        """One class, or one string per column of a multi-label table."""
        return () if self.labels is None else tuple(str(value) for value in self.labels[row].tolist())

    def content(self, row: int) -> bytes:
        """The bytes that the fingerprint of a row covers: pixels, then labels."""
        label = b"" if self.labels is None else self.labels[row].tobytes()
        return self.images[row].tobytes() + label


NPZ_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test", "": None}


def npz_rows(raw: bytes) -> dict[str, ImageArray]:
    """MedMNIST layout: {name: ImageArray} for arrays `{name}_images` and `{name}_labels`; "" for plain `images`.

    Pickled arrays are refused, never loaded. Raises SampleError.
    """
    arrays: dict[str, ImageArray] = {}
    with decoding(".npz archive"), np.load(io.BytesIO(raw), allow_pickle=False) as archive:
        for key in archive.files:
            match = re.fullmatch(r"(?:(train|val|validation|test)_)?images", key)
            if match is None:
                continue
            name = match.group(1) or ""
            images = archive[key]
            labels_key = key.removesuffix("images") + "labels"
            labels = archive[labels_key] if labels_key in archive.files else None
            if images.ndim < 3 or images.dtype.kind not in "iufb":
                raise SampleError("unrecognised_format", f"array {key} of shape {list(images.shape)} holds no images")
            if labels is not None and len(labels) != len(images):
                raise SampleError("corrupt", f"{len(images)} images, but {len(labels)} labels")
            labels = None if labels is None else labels.reshape(len(images), -1)
            arrays[name] = ImageArray(images, labels, NPZ_SPLITS[name])
    if not arrays:
        raise SampleError("unrecognised_format", "an .npz without an array named images or {train,val,test}_images")
    return arrays


def idx_array(raw: bytes) -> np.ndarray:
    """An idx file (MNIST): two zero bytes, type, number of axes, big-endian lengths, values. Raises SampleError."""
    raw = unzipped(raw)
    axes = raw[3]
    dtype = np.dtype(IDX_TYPES[raw[2]])
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", axes, 4))
    start = 4 + 4 * axes
    need, have = int(np.prod(shape)) * dtype.itemsize, len(raw) - start
    if have < need:
        raise SampleError("truncated", f"{have} of {need} bytes of values")
    if any(raw[start + need :]):
        raise SampleError("corrupt", f"{have} bytes of values; the lengths make {need}")
    values = np.frombuffer(raw, dtype, int(np.prod(shape)), start).reshape(shape)
    return values if dtype.isnative or dtype.itemsize == 1 else values.astype(dtype.newbyteorder("="))


def is_idx(head: bytes) -> bool:
    """The first bytes are an idx header of 1 to 5 axes of plausible lengths."""
    if len(head) < 8 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES or not 1 <= head[3] <= 5:
        return False
    if len(head) < 4 + 4 * head[3]:
        return False
    lengths = np.frombuffer(head, ">u4", head[3], 4)
    return bool((lengths > 0).all()) and float(np.prod(lengths.astype(float))) < 2**40


def idx_rows(raw: bytes, uri: str) -> ImageArray:
    """The images of an idx file at `uri`, with the labels beside it, where there are any. Raises SampleError, OSError."""
    images, labels_uri = idx_array(raw), idx_labels_uri(uri)
    labels = idx_array(read_bytes(labels_uri)) if labels_uri and exists(labels_uri) else None
    if labels is not None and len(labels) != len(images):
        raise SampleError("corrupt", f"{len(images)} images, but {len(labels)} labels")
    labels = None if labels is None else labels.reshape(len(images), -1)
    return ImageArray(images, labels, idx_split(uri))


def idx_labels_uri(uri: str) -> str | None:
    """The labels file of an idx images file by MNIST's naming; None where the name does not tell."""
    folder, _, name = uri.rpartition("/")
    partner = re.sub(r"images([-.]?)idx\d", r"labels\1idx1", name)
    return None if partner == name else f"{folder}/{partner}" if folder else partner


def idx_images_uri(uri: str) -> str | None:
    """The images file of an idx labels file by MNIST's naming; None where the name does not tell."""
    folder, _, name = uri.rpartition("/")
    partner = re.sub(r"labels([-.]?)idx1", r"images\1idx3", name)
    return None if partner == name else f"{folder}/{partner}" if folder else partner


def idx_partners(uri: str) -> tuple[str, ...]:
    """The labels of an idx images file; the images, of two or three dimensions, of a labels file; else nothing."""
    labels, images = idx_labels_uri(uri), idx_images_uri(uri)
    if images is not None:
        return (images, re.sub(r"idx3(?=[^/]*$)", "idx4", images))
    return () if labels is None else (labels,)


def idx_split(uri: str) -> str | None:
    name = uri.rpartition("/")[2]
    if name.startswith("train"):
        return "train"
    return "test" if name.startswith(("t10k", "test")) else None


class ArrayCache:
    """The arrays of the last few files, so that 10,000 rows do not load their file 10,000 times.

    A local file that changed is loaded again; a remote one is kept until newer ones replace it.
    """

    def __init__(self, files: int = 4) -> None:
        self._files = files
        self._cached: OrderedDict[tuple[str, int, int], dict[str, ImageArray]] = OrderedDict()

    def rows(self, uri: str) -> dict[str, ImageArray]:
        """{name: ImageArray} of an .npz, or {"": ImageArray} of an idx images file. Raises SampleError."""
        key = (uri, *size_and_time(uri))
        if key in self._cached:
            self._cached.move_to_end(key)
            return self._cached[key]
        raw = read_bytes(uri)
        arrays = npz_rows(raw) if raw[:2] == b"PK" else {"": idx_rows(raw, uri)}
        self._cached[key] = arrays
        while len(self._cached) > self._files:
            self._cached.popitem(last=False)
        return arrays


def read_row(rows: ImageArray, row: int, volumes: bool) -> Image:
    """One row as an image: a last axis of 3 beyond the spatial ones is R G B. Raises SampleError: `bad_shape` for a
    picture in a run that asks for volumes, `missing_file`.
    """
    if not 0 <= row < len(rows.images):
        raise SampleError("missing_file", f"the array has {len(rows.images)} rows; row {row} is no longer there")
    values = rows.images[row]
    if volumes and values.ndim == 3 and holds_channels(values.shape):
        raise SampleError(
            "bad_shape", f"a picture with channels, of shape {list(values.shape)}; the run asks for volumes"
        )
    color = values.ndim == (4 if volumes else 3) and values.shape[-1] == 3
    return Image(values, color=color)


def holds_channels(shape: tuple[int, ...]) -> bool:
    """The first or the last of three axes are channels (1, 3 or 4), not voxels: the other two are far longer."""
    return any(
        channels in (1, 3, 4) and min(plane) >= LONGER * channels
        for channels, plane in ((shape[0], shape[1:]), (shape[-1], shape[:-1]))
    )
