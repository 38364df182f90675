"""Formats without DICOM: pictures (Pillow), NIfTI (nibabel), MedMNIST .npz and MNIST idx arrays."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from medray.errors import SampleError
from medray.files import is_local, local_path, read_bytes
from medray.modalities.imaging.image import Image, decoding

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


# --- pictures -------------------------------------------------------------------------------------------------


def read_picture(raw: bytes) -> Image:
    """PNG, JPEG, TIFF or BMP: (H, W) grey of 1, 8, 16 or 32 bits, or (H, W, 3) uint8 RGB, turned as EXIF says.

    Transparent pixels are laid over black. Raises SampleError.
    """
    import PIL.Image
    import PIL.ImageOps

    try:
        with decoding("picture"):
            picture = PIL.Image.open(io.BytesIO(raw))
            pages = getattr(picture, "n_frames", 1)
            if pages > 1:
                raise SampleError("unsupported", f"{pages} pages in one file; expected one image")
            picture.load()
            picture = PIL.ImageOps.exif_transpose(picture)
            if picture.mode == "P":
                picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
            if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
                black = PIL.Image.new("RGBA", picture.size, (0, 0, 0, 255))
                picture = PIL.Image.alpha_composite(black, picture.convert("RGBA")).convert("RGB")
            if picture.mode == "1":
                picture = picture.convert("L")
            color = picture.mode not in ("L", "I", "F") and not picture.mode.startswith("I;16")
            values = np.asarray(picture.convert("RGB") if color else picture)
    except PIL.Image.DecompressionBombError:
        raise SampleError("unsupported", "a picture of more pixels than Pillow's limit against bombs") from None
    values = values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
    return Image(values, color=color)


# --- NIfTI ----------------------------------------------------------------------------------------------------


def is_nifti(head: bytes) -> bool:
    """The first 352 bytes are a NIfTI-1 or NIfTI-2 header in a single file."""
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def read_nifti(raw: bytes) -> Image:
    """A volume as (D, H, W) with D towards the head, H towards the back, W towards the left of the patient.

    These are the axes of an axial DICOM series, so that both give one array. Scaled by scl_slope and scl_inter:
    float32, or the stored integers without scaling. Raises SampleError.
    """
    from nibabel.filebasedimages import ImageFileError
    from nibabel.nifti1 import Nifti1Image
    from nibabel.nifti2 import Nifti2Image
    from nibabel.orientations import (
        OrientationError,
        apply_orientation,
        axcodes2ornt,
        inv_ornt_aff,
        io_orientation,
        ornt_transform,
    )
    from nibabel.spatialimages import HeaderDataError

    raw = unzipped(raw)
    with decoding("NIfTI", ImageFileError, HeaderDataError, OrientationError):
        kind = Nifti2Image if raw[4:8] == b"n+2\0" else Nifti1Image
        header = kind.header_class(raw[: kind.header_class.sizeof_hdr], check=True)
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype = header.get_data_dtype()
        start = int(header.get_data_offset())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        raise SampleError("unsupported", f"NIfTI data of shape {list(shape)}; expected one volume")
    shape = shape if len(shape) == 3 else (*shape, 1)
    if dtype.kind not in "iuf":
        raise SampleError("unsupported", f"NIfTI data of type {dtype}; expected real numbers")
    need, have = int(np.prod(shape)) * dtype.itemsize, len(raw) - start
    if have < need:
        raise SampleError("truncated", f"{max(0, have)} of {need} bytes of voxels")
    with decoding("NIfTI", ImageFileError, HeaderDataError, OrientationError):
        values = np.frombuffer(raw, dtype, int(np.prod(shape)), start).reshape(shape, order="F")
        slope, intercept = header.get_slope_inter()
        affine = header.get_best_affine()
        turn = ornt_transform(io_orientation(affine), axcodes2ornt(("L", "P", "S")))
        values = apply_orientation(values, turn)
        affine = affine @ inv_ornt_aff(turn, shape)
    values = np.ascontiguousarray(values.transpose(2, 1, 0))
    values = values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
    if (slope, intercept) not in ((None, None), (1.0, 0.0)):
        values = values.astype(np.float32) * np.float32(slope) + np.float32(intercept or 0.0)
    spacing = tuple(float(v) for v in np.linalg.norm(affine[:3, :3], axis=0)[::-1])
    return Image(values, spacing_mm=spacing if min(spacing) > 0 else None)


def unzipped(raw: bytes) -> bytes:
    """A gzip file's content; other bytes as they are. Raises SampleError `truncated` or `corrupt`."""
    if raw[:2] != b"\x1f\x8b":
        return raw
    with decoding("gzip"):
        return gzip.decompress(raw)


def unzipped_head(raw: bytes, length: int = 512) -> bytes:
    """The first bytes of a gzip file's content, as many as can be had."""
    try:
        return zlib.decompressobj(31).decompress(raw, length)
    except zlib.error:
        return b""


# --- arrays of images -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rows:
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
        """What the fingerprint of a row covers: pixels, then labels."""
        label = b"" if self.labels is None else self.labels[row].tobytes()
        return self.images[row].tobytes() + label


NPZ_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test", "": None}


def npz_rows(raw: bytes) -> dict[str, Rows]:
    """MedMNIST layout: {name: Rows} for arrays `{name}_images` and `{name}_labels`; "" for plain `images`.

    Pickled arrays are refused, never loaded. Raises SampleError.
    """
    found: dict[str, Rows] = {}
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
            found[name] = Rows(images, labels, NPZ_SPLITS[name])
    if not found:
        raise SampleError("unrecognised_format", "an .npz without an array named images or {train,val,test}_images")
    return found


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
    values = np.frombuffer(raw, dtype, int(np.prod(shape)), start).reshape(shape)
    return values if dtype.isnative or dtype.itemsize == 1 else values.astype(dtype.newbyteorder("="))


def is_idx(head: bytes) -> bool:
    """The first bytes are an idx header of 1 to 5 axes of plausible lengths."""
    if len(head) < 8 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES or not 1 <= head[3] <= 5:
        return False
    lengths = np.frombuffer(head[4 : 4 + 4 * head[3]], ">u4")
    return len(lengths) == head[3] and bool((lengths > 0).all()) and float(np.prod(lengths.astype(float))) < 2**40


def idx_labels_uri(uri: str) -> str | None:
    """The labels file that belongs to an idx images file by MNIST's naming; None where the name does not say."""
    folder, _, name = uri.rpartition("/")
    partner = re.sub(r"images([-.]?)idx\d", r"labels\1idx1", name)
    return None if partner == name else f"{folder}/{partner}" if folder else partner


def idx_images_uri(uri: str) -> str | None:
    """The images file that belongs to an idx labels file; None where the name does not say."""
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

    A local file that changed is loaded again; a remote one is kept until others push it out.
    """

    def __init__(self, files: int = 4) -> None:
        self._files = files
        self._held: OrderedDict[tuple[str, int, int], dict[str, Rows]] = OrderedDict()

    def rows(self, uri: str) -> dict[str, Rows]:
        """{name: Rows} of an .npz, or {"": Rows} of an idx images file (labels are left out). Raises SampleError."""
        modified_ns, size = 0, 0
        if is_local(uri):
            stat = local_path(uri).stat()
            modified_ns, size = stat.st_mtime_ns, stat.st_size
        key = (uri, modified_ns, size)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        raw = read_bytes(uri)
        found = npz_rows(raw) if raw[:2] == b"PK" else {"": Rows(idx_array(raw), None, None)}
        self._held[key] = found
        while len(self._held) > self._files:
            self._held.popitem(last=False)
        return found


def read_row(rows: Rows, row: int, volumes: bool) -> Image:
    """One row as an image: a last axis of 3 beyond the spatial ones is R G B. Raises SampleError."""
    if not 0 <= row < len(rows.images):
        raise SampleError("missing_file", f"the array has {len(rows.images)} rows; row {row} is no longer there")
    values = rows.images[row]
    color = values.ndim == (4 if volumes else 3) and values.shape[-1] == 3
    return Image(values, color=color)
