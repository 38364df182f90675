"""DICOM objects that are images of a patient, by their SOP class (PS3.4 B.5), and images that are mosaics."""

from __future__ import annotations

import struct

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.dose import RT_DOSE, Doses
from medray.modalities.imaging.formats.dicom.elements import PRIVATE, texts
from medray.modalities.imaging.formats.dicom.frames import GROUPS, frame_types, has_groups, private
from medray.modalities.imaging.formats.dicom.header import Header, uid_name

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_CR_DX_MG_IO = "1 1.1 1.1.1 1.2 1.2.1 1.3 1.3.1"
_CT_MR = "2 2.1 2.2 4 4.1 4.3 4.4"  # classic, enhanced, in colour, legacy converted
_US = "3 3.1 6 6.1 6.2 6.3"  # 3 and 6 are retired; enhanced volume, photoacoustic
_NM_PET = "5 20 128 128.1 130"  # 5 is retired
_CAPTURE = "7 7.1 7.2 7.3 7.4"
_X_RAY = (
    "12.1 12.1.1 12.2 12.2.1 12.3 13.1.1 13.1.2 13.1.3 13.1.4 13.1.5"  # angiography, fluoroscopy, 3D, tomosynthesis
)
_LIGHT = (
    "14.1 14.2 77.1 77.2 77.1.1 77.1.1.1 77.1.2 77.1.2.1 77.1.3 77.1.4 77.1.4.1 77.1.5.1 77.1.5.2 77.1.5.4 77.1.5.5 "
    "77.1.5.6 77.1.5.7 77.1.6 77.1.7 77.1.8 77.1.9"  # intravascular, visible light, ophthalmic
)
_THERAPY = "481.1 481.23 481.24"
IMAGES = frozenset(
    _STORAGE + suffix
    for suffixes in (_CR_DX_MG_IO, _CT_MR, _US, _NM_PET, _CAPTURE, _X_RAY, _LIGHT, _THERAPY)
    for suffix in suffixes.split()
)
"""Storage SOP classes of images of a patient. Computed maps (parametric, thickness, topography) are not among them."""

CAPTURES = frozenset(_STORAGE + suffix for suffix in _CAPTURE.split())
"""Secondary captures: pictures of any origin, with or without a place in the patient (PS3.3 A.8)."""

KINDS = {
    _STORAGE + "66.4": "segmentation",
    _STORAGE + "66.5": "segmentation",
    _STORAGE + "66.7": "segmentation",  # label maps
    _STORAGE + "66.8": "segmentation",  # height maps
    RT_DOSE: "dose",
    _STORAGE + "78.6": "report",  # spectacle prescription
    _STORAGE + "79.1": "report",  # macular grid
    _STORAGE + "104.1": "report",  # encapsulated PDF
    _STORAGE + "104.2": "report",  # encapsulated CDA
    _STORAGE + "88.59": "not_an_image",  # key objects: a list of other objects
}
"""SOP classes that are not images: their reason code."""
FAMILIES = {_STORAGE + "88.": "report", _STORAGE + "11.": "presentation_state"}
"""The same for whole branches: structured reports, presentation states."""


def kind(sop_class: str, doses: Doses = "apart") -> str:
    """The reason code of a SOP class that is not an image; empty for an image, and where no class is stated. `doses`: whether
    the run reads doses as volumes."""
    if not sop_class or sop_class in IMAGES or (sop_class == RT_DOSE and doses != "apart"):
        return ""
    family = next((reason for branch, reason in FAMILIES.items() if sop_class.startswith(branch)), "not_an_image")
    return KINDS.get(sop_class, family)


def refuse_other_objects(header: Header, doses: Doses = "apart") -> None:
    """Raises SampleError for an object that is not an image by its SOP class, with a reason of errors.NOT_ELIGIBLE; a dose is
    none unless `doses` are asked for.

    Pixels do not make it one: segmentations and doses have some. A class that PS3.4 B.5 does not list (a private one)
    is not an image either, since the meaning of its pixels is not known; without pixels it is `no_pixels`.
    """
    reason = kind(header.sop_class, doses)
    if not reason:
        return
    name = uid_name(header.sop_class)
    if reason == "not_an_image" and header.start < 0 and name == header.sop_class:
        reason = "no_pixels"
    raise SampleError(reason, f"SOP class {name}")


def is_mosaic(header: Header) -> bool:
    """Whether one image holds the slices of a volume as tiles: by its image or frame type or, where a rewritten header lost
    that, by the number of tiles that Siemens and UIH state in their own elements.
    """
    if not has_groups(header) and not _MOSAIC_TAGS & header.values.keys():
        kinds = header.values.get(0x00080008, b"").upper()
        if b"MOSAIC" not in kinds and b"GRID" not in kinds:
            return False
    types = [*(texts(header.get("ImageType")) or []), *(part for each in frame_types(header) for part in each)]
    return any(str(part).upper() in ("MOSAIC", "GRID") for part in types) or tiles_stated(header) > 1


def tiles_stated(header: Header) -> int:
    """The number of tiles that Siemens or UIH state in their own elements; 0 where none does."""
    for name, creator in (("NumberOfImagesInMosaic", "SIEMENS MR HEADER"), ("UIHImagesInGrid", "Image")):
        count = private(header, name, creator)
        if count is not None and (number := _whole(count, header.little)) > 1:
            return number
    csa = private(header, "CSAImageHeader", "SIEMENS CSA HEADER")
    return 0 if csa is None else csa_number(csa, b"NumberOfImagesInMosaic")


_MOSAIC_TAGS = {PRIVATE[name][1] for name in ("NumberOfImagesInMosaic", "UIHImagesInGrid", "CSAImageHeader")}

DESCRIBED_ELSEWHERE = _MOSAIC_TAGS | GROUPS
"""Elements of files whose frames are described by more than the file's top level."""


def _whole(value: bytes, little: bool) -> int:
    """A whole number written as US or as text: in implicit files the VR of a private element is not known."""
    text = value.strip(b" \0")
    if text.replace(b".", b"", 1).isdigit():
        return int(float(text))
    return int.from_bytes(value[:2], "little" if little else "big")


def csa_number(csa: bytes, name: bytes) -> int:
    """A whole number of a Siemens CSA header; 0 if there is none."""
    return next((int(text) for text in csa_texts(csa, name) if text.isdigit()), 0)


def csa_texts(csa: bytes, name: bytes) -> list[bytes]:
    """The values of a name in a Siemens CSA header that are not empty, six at the most. Read as SPM and nibabel do.

    Tags are name[64], vm, vr[4], syngo dt, n, 77 or 205, then n items of four integers and text in steps of four bytes.
    The length of a text is the second integer after "SV10", else the first one less the n of the first tag.
    """
    second = csa.startswith(b"SV10")
    at = csa.find(name + b"\0")
    if at < 0 or at + 84 > len(csa):
        return []
    too_much = 0 if second else struct.unpack_from("<i", csa, 8 + 76)[0]
    items = struct.unpack_from("<i", csa, at + 76)[0]
    at += 84
    texts_of_items: list[bytes] = []
    for _ in range(min(items, 6)):
        if at + 16 > len(csa):
            break
        length = max(0, struct.unpack_from("<i", csa, at + (4 if second else 0))[0] - too_much)
        text = csa[at + 16 : at + 16 + length].strip(b" \0")
        if text:
            texts_of_items.append(text)
        at += 16 + (length + 3) // 4 * 4
    return texts_of_items
