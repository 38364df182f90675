"""Decoding: the format of a file by its bytes, and the image that they hold."""

from __future__ import annotations

from medray.errors import SampleError
from medray.modalities.imaging.formats import arrays, nifti, pictures
from medray.modalities.imaging.formats.dicom import pixels, series
from medray.modalities.imaging.formats.image import Image
from medray.storage.compressed import GZIP, unpacked_head
from medray.storage.inflating import unpacked


def decode(raws: list[bytes], volumes: bool) -> Image:
    """The image of an entry, from the bytes of its files in any order. Raises SampleError."""
    raw = raws[0]
    if not raw:
        raise SampleError("empty_file")
    kind = sniff(raw)
    if kind == "dicom":
        return series.read_series(raws) if volumes else pixels.read_image(raw)
    if len(raws) > 1:
        raise SampleError("corrupt", f"{len(raws)} files that are not a DICOM series")
    if kind == "picture":
        return pictures.read_picture(raw)
    if kind == "nifti":
        return nifti.read_nifti(raw)
    raise SampleError("unrecognised_format")


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
    return unpacked(raw) if packed else raw


def sniff(raw: bytes) -> str:
    """ "dicom", "picture", "nifti", "npz", "idx" or "" by the first bytes."""
    if raw[128:132] == b"DICM":
        return "dicom"
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
