"""Arrays of images: MedMNIST .npz and MNIST idx."""

from __future__ import annotations

import gzip
import io
import math
import re
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medray.archive.entries import PartRef, digest
from medray.errors import SampleError
from medray.modalities.imaging.formats.image import Image, decoding
from medray.storage.compressed import GZIP, one_member
from medray.storage.files import FileStamp, exists, is_local, read_bytes, stamp_of

LONGER = 4
"""How many times longer than an axis of channels both other axes must be."""
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


BEHIND = 2**16
"""Bytes that may stand behind the values of an idx file, where they are zero: padding."""


def unzipped(raw: bytes) -> bytes:
    """The content of an idx file in gzip, as far as its header makes it, and BEHIND bytes more; of another file, its bytes.
    Raises SampleError `truncated` or `corrupt`."""
    if not raw.startswith(GZIP):
        return raw
    with decoding("gzip"), gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
        head = stream.read(LONGEST_HEADER)
        if not is_idx(head):
            return head
        need, content = _idx_bytes(head) + BEHIND, [head]
        if (whole := one_member(raw, need)) is not None:
            return whole
        while (have := sum(map(len, content))) < need and (piece := stream.read(min(need - have, 2**20))):
            content.append(piece)
        if stream.read(1):
            raise SampleError("corrupt", f"an idx file of more than {need:,} bytes, which is all that its lengths make")
        return b"".join(content)


LONGEST_HEADER = 4 + 4 * 5
"""Bytes of an idx header of five axes."""


def _idx_bytes(head: bytes) -> int:
    """Bytes of a whole idx file by its header."""
    values = math.prod(int(n) for n in np.frombuffer(head, ">u4", head[3], 4))
    return 4 + 4 * head[3] + values * np.dtype(IDX_TYPES[head[2]]).itemsize


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
            labels_key = key.removesuffix("images") + "labels"
            labelled = labels_key in archive.files
            _refuse_unlike(archive.zip, [key, *([labels_key] if labelled else [])])
            images, labels = archive[key], archive[labels_key] if labelled else None
            if images.ndim < 3 or images.dtype.kind not in "iufb":
                raise SampleError("unrecognised_format", f"array {key} of shape {list(images.shape)} holds no images")
            if labels is not None and len(labels) != len(images):
                raise SampleError("corrupt", f"{len(images)} images, but {len(labels)} labels")
            labels = None if labels is None else labels.reshape(len(images), -1)
            arrays[name] = ImageArray(images, labels, NPZ_SPLITS[name])
    if not arrays:
        raise SampleError("unrecognised_format", "an .npz without an array named images or {train,val,test}_images")
    return arrays


def _refuse_unlike(archive: zipfile.ZipFile, keys: Sequence[str]) -> None:
    """Raises SampleError for arrays (images, then labels) whose headers make more than the zip says that there is, or whose
    lengths differ, before memory is taken for them: numpy takes what a header says."""
    lengths: list[int] = []
    for key in keys:
        info = archive.getinfo(f"{key}.npy")
        with archive.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
            start = stream.tell()
        size = start + math.prod(shape) * dtype.itemsize
        if not dtype.hasobject and size > info.file_size:
            raise SampleError(
                "truncated", f"array {key} of {list(shape)} makes {size:,} bytes, of which {info.file_size:,} are there"
            )
        lengths.append(shape[0] if shape else 0)
    if len(set(lengths)) > 1:
        raise SampleError("corrupt", f"{lengths[0]} images, but {lengths[1]} labels")


MOST_IDX_HEADER = 4 + 4 * 5
"""Bytes of the header with as many axes as are read."""


def idx_array(raw: bytes) -> np.ndarray:
    """An idx file (MNIST): two zero bytes, type, number of axes, big-endian lengths, values. Raises SampleError."""
    raw = unzipped(raw)
    if not is_idx(raw[:MOST_IDX_HEADER]):
        raise SampleError("corrupt", "no header of an idx file with its type, and lengths above 0")
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


def idx_rows(uri: str, images: np.ndarray) -> ImageArray:
    """The images of the idx file at `uri` with the labels beside it. Raises SampleError, OSError."""
    labels_uri = idx_labels_uri(uri)
    labels = idx_array(read_bytes(labels_uri)) if labels_uri and exists(labels_uri) else None
    if labels is not None and len(labels) != len(images):
        raise SampleError("corrupt", f"{len(images)} images, but {len(labels)} labels")
    labels = None if labels is None else labels.reshape(len(images), -1)
    return ImageArray(images, labels, idx_split(uri))


def is_idx(head: bytes) -> bool:
    """The first bytes are an idx header of 1 to 5 axes of plausible lengths."""
    if len(head) < 8 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES or not 1 <= head[3] <= 5:
        return False
    if len(head) < 4 + 4 * head[3]:
        return False
    lengths = np.frombuffer(head, ">u4", head[3], 4)
    return bool((lengths > 0).all()) and float(np.prod(lengths.astype(float))) < 2**40


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

    A local file that changed is loaded again; a remote one once more where a row is not as it was indexed.
    """

    def __init__(self, files: int = 4) -> None:
        self._files = files
        self._cached: OrderedDict[tuple[str, FileStamp | None], dict[str, ImageArray]] = OrderedDict()
        self._again: set[str] = set()
        """Remote files that were loaded once more."""

    def row(self, part: PartRef) -> tuple[ImageArray, int]:
        """The array that a part is a row of, and which row. Raises SampleError: `changed` where the row is not as it was
        indexed, `missing_file` where it is there no more."""
        name, _, number = part.locator.rpartition("/")
        row = int(number)
        arrays = self.rows(part.uri)
        if not _holds(arrays.get(name), row, part.digest) and not is_local(part.uri) and part.uri not in self._again:
            self._again.add(part.uri)
            self._cached.pop((part.uri, None), None)
            arrays = self.rows(part.uri)
        if name not in arrays:
            raise SampleError("missing_file", f"the archive has no array {name}_images any more")
        images = arrays[name].images
        if not 0 <= row < len(images):
            raise SampleError("missing_file", f"the array has {len(images)} rows; row {row} is no longer there")
        if not _holds(arrays[name], row, part.digest):
            raise SampleError("changed", "the row differs from when it was indexed")
        return arrays[name], row

    def rows(self, uri: str) -> dict[str, ImageArray]:
        """{name: ImageArray} of an .npz, or {"": ImageArray} of an idx images file with its labels. Raises SampleError."""
        key = (uri, stamp_of(uri))
        if key in self._cached:
            self._cached.move_to_end(key)
            return self._cached[key]
        raw = read_bytes(uri)
        arrays = npz_rows(raw) if raw[:2] == b"PK" else {"": idx_rows(uri, idx_array(raw))}
        self._cached[key] = arrays
        while len(self._cached) > self._files:
            self._cached.popitem(last=False)
        return arrays


def _holds(rows: ImageArray | None, row: int, known: bytes) -> bool:
    """Whether the row is there, with this digest where that is known."""
    if rows is None or not 0 <= row < len(rows.images):
        return False
    return not known or digest(rows.content(row)) == known


def read_row(rows: ImageArray, row: int, volumes: bool) -> Image:
    """One row as an image: a last axis of 3 beyond the spatial ones is R G B. Raises SampleError: `bad_shape` for a
    picture in a run that asks for volumes.
    """
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
