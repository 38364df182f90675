"""Decoding: the format of a file by its bytes, and the image that they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from medray.errors import SampleError
from medray.modalities.imaging.formats import arrays, nifti, pictures
from medray.modalities.imaging.formats.dicom import pixels, series
from medray.modalities.imaging.formats.dicom.inflated import from_gzip
from medray.modalities.imaging.formats.dicom.quantity import AS_RESCALED, Quantity
from medray.modalities.imaging.formats.image import Image
from medray.storage.compressed import GZIP, unpacked_head
from medray.storage.pages import Content, whole


class Chosen(NamedTuple):
    """Which frames of an entry's files are taken, what several volumes are to be, and what values are to measure."""

    selections: Sequence[Sequence[int] | None] | None = None
    """Frames (or tiles of a mosaic, or volumes of a NIfTI file) of each file, from 0; None: all."""
    channels: bool = False
    """Several volumes of a series are channels of one."""
    whole: bool = True
    """The files are those of a whole series."""
    wanted: Quantity = AS_RESCALED


EVERYTHING = Chosen()


def decode(raws: Iterable[Content], volumes: bool, chosen: Chosen = EVERYTHING) -> Image:
    """The image of an entry, from the bytes of its files in any order, which are taken once. Raises SampleError:
    `no_quantity` for a format that states no unit where the run asks for one.
    """
    remaining = iter(raws)
    raw: Content = next(remaining)
    if not raw:
        raise SampleError("empty_file")
    kind = sniff(raw)
    if kind == "dicom" and volumes:
        files = _all([raw], remaining)
        del raw
        return series.read_series(
            files, chosen.selections, channels=chosen.channels, wanted=chosen.wanted, whole=chosen.whole
        )
    if kind == "dicom":
        frames = None if chosen.selections is None else chosen.selections[0]
        return pixels.read_image(raw, None if frames is None else frames[0], chosen.wanted)
    others = sum(1 for _ in remaining)
    if others:
        raise SampleError("corrupt", f"{1 + others} files that are not a DICOM series")
    chosen.wanted.refuse("a file that states no unit")
    raw = whole(raw)
    if kind == "picture":
        return pictures.read_picture(raw)
    if kind == "nifti":
        points = None if chosen.selections is None else chosen.selections[0]
        return nifti.read_channels(raw) if chosen.channels else nifti.read_nifti(raw, points[0] if points else None)
    raise SampleError("unrecognised_format")


def _all(first: list[Content], others: Iterator[Content]) -> Iterator[Content]:
    """The files, one after the other; none is held once it has been given."""
    yield first.pop()
    yield from others


SUFFIXES = {
    **dict.fromkeys((".dcm", ".dicom", ".ima", ".dcm.gz", ".dicom.gz", ".ima.gz"), "dicom"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp"), "picture"),
    **dict.fromkeys((".nii", ".nii.gz"), "nifti"),
    ".npz": "npz",
}


def content_of(raw: bytes) -> bytes:
    """What is read of a file's bytes: of a DICOM file in gzip (.dcm.gz) what is packed, of any other the bytes themselves, for
    NIfTI and idx have readers of their own. Raises SampleError `truncated`, `corrupt`, `refused_member`."""
    if not raw.startswith(GZIP):
        return raw
    head = unpacked_head(raw, 512)
    packed = head[128:132] == b"DICM" or (not (nifti.is_nifti(head) or arrays.is_idx(head)) and _bare_dicom(head))
    return from_gzip(raw) if packed else raw


def sniff(raw: Content) -> str:
    """ "dicom", "picture", "nifti", "npz", "idx" or "" by the first bytes."""
    if raw[128:132] == b"DICM":
        return "dicom"
    raw = whole(raw)
    if raw.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *pictures.TIFF)):
        return "picture"
    if raw[:2] == b"BM" and int.from_bytes(raw[2:6], "little") == len(raw):
        return "picture"
    if raw[:4] == b"PK\x03\x04" and b".npy" in raw[:256]:
        return "npz"
    head = unpacked_head(raw, 512) if raw.startswith(GZIP) else raw[:512]
    if nifti.is_nifti(head):
        return "nifti"
    if arrays.is_idx(head):
        return "idx"
    return "dicom" if _bare_dicom(raw) else ""


def _bare_dicom(raw: bytes) -> bool:
    """Whether it is a data set without preamble and prefix: it starts with a plausible element of group 2 or 8 (PS3.5 7.1)."""
    if len(raw) < 16:
        return False
    for order in ("little", "big"):
        group, element = int.from_bytes(raw[:2], order), int.from_bytes(raw[2:4], order)
        if (group, element) not in ((0x0002, 0x0000), (0x0002, 0x0001), (0x0008, 0x0000)) and not (
            group == 0x0008 and 0x0001 <= element <= 0x0018
        ):
            continue
        explicit = raw[4:6].isalpha() and raw[4:6].isupper()
        length = int.from_bytes(raw[6:8] if explicit else raw[4:8], order)
        if length <= 1024:
            return True
    return False
