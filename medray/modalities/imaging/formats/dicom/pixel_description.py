"""Whether a header's description of its pixels can be true (PS3.3 C.7.6.3, PS3.5 8.1.1). No pixel is decoded."""

from __future__ import annotations

from medray.errors import SampleError
from medray.modalities.imaging.formats.dicom.header import Header, fragments, native_bytes, uid_name
from medray.modalities.imaging.formats.dicom.transfer_syntaxes import COMPRESSED, ELSEWHERE, NATIVE

REQUIRED = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
)
"""Type 1 for integer pixels: guessing one of them could silently give other values."""
GREY = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})
COLOR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"})
ONLY_COMPRESSED = frozenset({"YBR_RCT", "YBR_ICT"})
RETIRED = frozenset({"HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB"})
"""Defined, but not read here."""


def check(header: Header) -> None:
    """Raises SampleError: `no_pixels` for an object without an image, `truncated` when its pixels are not all there,
    `corrupt` when their description contradicts itself or them, `unsupported`.
    """
    end = len(header.raw)
    if header.start < 0:
        if header.syntax in ELSEWHERE:
            raise SampleError("unsupported", f"transfer syntax {uid_name(header.syntax)}: the pixels lie elsewhere")
        image_class = "Image Storage" in uid_name(header.sop_class)
        if image_class or header.rows:
            raise SampleError("truncated", f"an image object that ends after {end} bytes, before its pixels")
        if not header.sop_class:
            raise SampleError("corrupt", "a DICOM file that states no SOP class and has no pixels")
        raise SampleError("no_pixels", f"SOP class {uid_name(header.sop_class)}")
    refuse_contradictions(header)
    if header.encapsulated:
        fragments(header)
        return
    have, need = min(header.length, end - header.start), native_bytes(header)
    if have < need:
        raise SampleError("truncated", f"{have} of {need} bytes of pixels")
    if any(header.raw[header.start + need + need % 2 : header.start + have]):
        raise SampleError("corrupt", f"{have} bytes of pixels; rows, columns, frames and bits make {need}")


def refuse_contradictions(header: Header) -> None:
    """Raises SampleError `corrupt` for a contradiction, `unsupported` for what is legal but not read here."""
    if header.float_type:
        _require(header, ("Rows", "Columns"))
        _size(header)
        if header.samples != 1 or header.photometric != "MONOCHROME2":
            raise SampleError("corrupt", "float pixels that are not MONOCHROME2")
    else:
        _require(header, REQUIRED)
        _size(header)
        _colors(header)
        _bits(header)
    if header.number("NumberOfFrames", 1) < 0:
        raise SampleError("corrupt", "a negative number of frames")
    if not header.encapsulated and header.syntax not in NATIVE and not header.syntax.startswith(COMPRESSED):
        raise SampleError("unsupported", "pixels under a transfer syntax that is not DICOM's")
    if header.encapsulated == (header.syntax in NATIVE):
        which = "uncompressed" if header.syntax in NATIVE else "compressed"
        raise SampleError("corrupt", f"pixels that are not stored as their {which} transfer syntax requires")


def _require(header: Header, keywords: tuple[str, ...]) -> None:
    missing = [keyword for keyword in keywords if header.get(keyword) is None]
    if missing:
        raise SampleError("corrupt", f"pixels without {', '.join(missing)}")


def _size(header: Header) -> None:
    if header.rows * header.columns == 0:
        raise SampleError("corrupt", f"an image of {header.rows} x {header.columns} pixels")


def _colors(header: Header) -> None:
    samples, photometric = header.samples, header.photometric
    if samples not in (1, 3):
        raise SampleError("unsupported", f"{samples} samples per pixel; expected 1 or 3")
    if photometric not in (GREY if samples == 1 else COLOR):
        if photometric in RETIRED:
            raise SampleError("unsupported", f"photometric interpretation {photometric}")
        name = photometric if photometric in GREY | COLOR else "of no known value"
        raise SampleError("corrupt", f"photometric interpretation {name} with {samples} samples per pixel")
    if samples == 1:
        return
    planar = header.get("PlanarConfiguration")
    if planar not in (None, 0, 1) or (planar is None and header.syntax in NATIVE):
        raise SampleError("corrupt", "a PlanarConfiguration that is neither 0 nor 1")
    if photometric in ONLY_COMPRESSED and header.syntax in NATIVE:
        raise SampleError("corrupt", f"photometric interpretation {photometric} of uncompressed pixels")
    if photometric == "YBR_FULL_422" and header.syntax in NATIVE and (header.columns % 2 or planar == 1):
        raise SampleError("corrupt", "YBR_FULL_422 by plane, or with an odd number of columns")


def _bits(header: Header) -> None:
    allocated, stored = header.number("BitsAllocated", 0), header.number("BitsStored", 0)
    high = header.number("HighBit", stored - 1)
    if allocated not in (1, 8, 16, 32):
        raise SampleError("unsupported", f"{allocated} bits allocated; expected 1, 8, 16 or 32")
    if not 1 <= stored <= allocated:
        raise SampleError("corrupt", f"{stored} bits stored of {allocated} allocated")
    if not stored - 1 <= high < allocated:
        raise SampleError("corrupt", f"HighBit {high} with {stored} bits stored of {allocated} allocated")
    if header.get("PixelRepresentation") not in (0, 1):
        raise SampleError("corrupt", "a PixelRepresentation that is neither 0 nor 1")
    if allocated == 1 and (header.samples != 1 or header.signed):
        raise SampleError("unsupported", "single bits with a sign or colour")
