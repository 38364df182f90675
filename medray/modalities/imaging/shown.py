"""The images and volumes at a path as montages show them: entries as an index makes them, decoded as a run does."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator

import numpy as np

from medray.archive.entries import Entries, Entry, parts_table
from medray.archive.grouping import group_parts
from medray.errors import NOT_ELIGIBLE, SampleError
from medray.modalities.base import assembler, describer
from medray.modalities.imaging.formats.decode import content_of, decode, sniff
from medray.modalities.imaging.formats.dicom.frames import Group, Stated, described, frames, stated
from medray.modalities.imaging.formats.dicom.header import Header, parse
from medray.modalities.imaging.formats.image import Image
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.montage import Shown, montage
from medray.modalities.imaging.spec import ImagingSpec
from medray.storage.files import archive_files, read_bytes

MOST = 24
"""Entries of a folder that are drawn; the others are counted."""
MODALITIES = frozenset(
    [
        "BI",
        "CR",
        "CT",
        "DX",
        "ES",
        "GM",
        "IO",
        "IVUS",
        "MG",
        "MR",
        "NM",
        "OCT",
        "OP",
        "OPT",
        "PT",
        "PX",
        "RF",
        "RG",
        "SM",
        "US",
        "XA",
        "XC",
    ]
)
"""DICOM's terms (PS3.3 C.7.3.1.1.1) that are written into a picture; what else stands there may be free text."""
SHEARED_DEGREES = 0.1
ALSO = frozenset(
    described(keyword)[0]
    for keyword in ("BurnedInAnnotation", "PatientOrientation", "WindowCenter", "WindowWidth", "VOILUTFunction")
)
"""Elements that no other reader needs."""


def montage_of(uri: str) -> bytes:
    """PNG of what lies at `uri`: each series, NIfTI file, picture or row of an array. Raises SampleError where nothing is an
    image."""
    modality = Imaging(ImagingSpec(size=(1, 1, 1), volumes="each"))
    parts = parts_table(
        (part for file in archive_files(uri) for part in modality.scan(file, uri)), secrets.token_bytes(32)
    )
    manifest = group_parts(parts, describer(modality), assemble=assembler(modality))
    entries = [each for each in Entries(manifest) if _is_image(each)]
    if not entries:
        raise SampleError("unrecognised_format", "no image is there to be shown")
    bands = [_shown(number, each, modality) for number, each in enumerate(entries[:MOST], start=1)]
    return montage(bands, more=len(entries) - len(bands))


def _is_image(entry: Entry) -> bool:
    return entry.reason != "unrecognised_format" and entry.reason not in NOT_ELIGIBLE


def _shown(number: int, entry: Entry, modality: Imaging) -> Shown:
    headers: list[Header] = []
    try:
        if entry.reason is not None:
            raise SampleError(entry.reason, entry.detail or "")
        headers = list(_headers(entry))
        if any("YES" in _texts(header, "BurnedInAnnotation") for header in headers):
            return Shown(None, f"{number}", ("states burnt-in annotation: not drawn",))
        image = _image(entry, modality)
    except (SampleError, OSError) as error:
        return Shown(None, f"{number}", (error.reason if isinstance(error, SampleError) else "unreadable",))
    kind = next((text for header in headers[:1] for text in _texts(header, "Modality") if text in MODALITIES), "")
    sizes = " x ".join(map(str, image.shape))
    spacing = "no spacing" if image.spacing_mm is None else " x ".join(f"{mm:.3g}" for mm in image.spacing_mm) + " mm"
    # what tells volumes of a series apart is codes, numbers and digests; of other formats an id is a path
    volume = entry.entry_id.rpartition("#")[2] if headers and "#" in entry.entry_id else ""
    title = "  ·  ".join(filter(None, (str(number), kind, volume, sizes, spacing)))
    window = _window(headers[0]) if headers else None
    edges = _edges(headers[0]) if headers and len(image.shape) == 2 else None
    return Shown(image, title, tuple(peculiarities(image)), window, edges)


def _headers(entry: Entry) -> Iterator[Header]:
    """Headers of the entry's DICOM files; none for other formats."""
    for uri in dict.fromkeys(part.uri for part in entry.parts):
        raw = content_of(read_bytes(uri))
        if sniff(raw) != "dicom":
            return
        yield parse(raw, ALSO)


def _image(entry: Entry, modality: Imaging) -> Image:
    try:
        return modality.image(entry)
    except SampleError as error:
        uris = [part.uri for part in entry.parts]
        if error.reason != "bad_geometry" or len(uris) > 1:
            raise
        return decode([content_of(read_bytes(uris[0]))], volumes=False)  # a radiograph has no place in the patient


def peculiarities(image: Image) -> list[str]:
    """What a person has to know of a volume's geometry before trusting its picture."""
    remarks = ["its orientation contradicts itself"] if image.turn_unsure else list[str]()
    if image.slices_mm is None:
        return remarks
    starts = image.slices_mm
    along, across = float(abs(starts[-1, 0] - starts[0, 0])), float(np.linalg.norm(starts[-1, 1:] - starts[0, 1:]))
    tilt = float(np.degrees(np.arctan2(across, along)))
    if tilt > SHEARED_DEGREES:
        remarks.append(f"sheared {tilt:.1f}°, straightened")
    if image.irregular:
        gaps = np.diff(starts[:, 0])
        remarks.append(f"uneven gaps {gaps.min():.2f} to {gaps.max():.2f} mm, filled by interpolation")
    if image.hole_mm:
        remarks.append(f"a hole of {image.hole_mm:.2f} mm")
    return remarks


def _texts(header: Header, keyword: str) -> list[str]:
    """Codes that a file states, in capitals; none where what stands there cannot be read."""
    try:
        value = stated(header, keyword, header)
    except SampleError:
        return []
    return [str(each).strip().upper() for each in (value if isinstance(value, list) else [value]) if each is not None]


def _window(header: Header) -> tuple[float, float] | None:
    """(centre, width) that the file asks for; None where it asks for none, or for a curve or mirrored grey values."""
    if header.photometric == "MONOCHROME1":
        return None
    try:
        group = frames(header)[0].group("FrameVOILUTSequence") or Group(header, header)
        centre, width = _first(group.get("WindowCenter")), _first(group.get("WindowWidth"))
        function = str(group.get("VOILUTFunction") or "LINEAR").strip()
    except (SampleError, LookupError):
        return None
    if centre is None or width is None or width <= 0 or function not in ("LINEAR", "LINEAR_EXACT"):
        return None
    return centre, width


def _first(value: Stated) -> float | None:
    first = value[0] if isinstance(value, list) and value else value
    return float(first) if isinstance(first, int | float) and math.isfinite(first) else None


def _edges(header: Header) -> tuple[str, str] | None:
    """Letters on the right and at the bottom of a picture, by Patient Orientation (PS3.3 C.7.6.1.1.1)."""
    directions = _texts(header, "PatientOrientation")
    if len(directions) != 2 or not all(text and set(text) <= set("RLAPHF") for text in directions):
        return None
    return directions[0][:2], directions[1][:2]
