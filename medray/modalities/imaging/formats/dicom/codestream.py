"""The header of a compressed frame: size, components, precision, sign, colour. No pixel is decoded here.

JPEG (ISO/IEC 10918-1 B.2), JPEG-LS (ISO/IEC 14495-1 C.2) and JPEG 2000 with HTJ2K (ISO/IEC 15444-1 A.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medray.errors import SampleError

Process = Literal["dct", "lossless", "jpeg-ls", "jpeg-2000"]

LOSSLESS = 0xC3
JPEG_LS = 0xF7
START_OF_FRAME = {*range(0xC0, 0xD0), JPEG_LS} - {0xC4, 0xC8, 0xCC}
JPEG_PROCESSES: dict[int, Process] = {LOSSLESS: "lossless", JPEG_LS: "jpeg-ls", 0xC0: "dct", 0xC1: "dct", 0xC2: "dct"}
"""Start of frame to process: dct is baseline, extended and progressive JPEG."""
STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
"""First bytes of JPEG, JPEG 2000 and JP2."""


@dataclass(frozen=True, slots=True)
class Codestream:
    """The facts of one frame."""

    process: Process
    rows: int
    columns: int
    components: int
    precision: int
    """Bits of a sample."""
    signed: bool = False
    """Only JPEG 2000 can state this."""
    rgb: bool | None = None
    """The components are R, G and B (True), or luma and chroma (False); None: the frame does not say."""
    by_plane: bool = False
    """JPEG-LS: each component is a scan of its own."""
    transformed: bool = False
    """JPEG 2000: a component transform was applied, which decoders undo."""


def read_codestream(frame: bytes) -> Codestream:
    """Facts of a JPEG, JPEG-LS or JPEG 2000 frame. Raises SampleError `corrupt`, `truncated` or `unsupported`."""
    try:
        if frame[:2] == b"\xff\xd8":
            return _jpeg(frame)
        at = _inside_jp2(frame) if frame[:8] == STARTS[2] else 0
        if frame[at : at + 4] == STARTS[1]:
            return _jpeg_2000(frame, at)
    except IndexError:
        raise SampleError("truncated", "a compressed frame that ends within its own header") from None
    raise SampleError("corrupt", "a compressed frame that is neither JPEG, JPEG-LS nor JPEG 2000")


def _jpeg(frame: bytes) -> Codestream:
    rgb: bool | None = None
    at = 2
    while True:
        if frame[at] != 0xFF:
            raise SampleError("corrupt", "a JPEG frame without its start of frame")
        marker = frame[at + 1]
        if marker == 0xFF:  # a fill byte, B.1.1.2
            at += 1
            continue
        body, after = at + 4, at + 2 + _short(frame, at + 2)
        if marker in START_OF_FRAME:
            break
        if marker in (0xD9, 0xDA):
            raise SampleError("corrupt", "a JPEG frame without its start of frame")
        if marker == 0xE0 and frame[body : body + 4] == b"JFIF":
            rgb = False
        elif marker == 0xEE and frame[body : body + 5] == b"Adobe":
            rgb = frame[body + 11] == 0
        at = after
    process = JPEG_PROCESSES.get(marker)
    if process is None:
        raise SampleError("unsupported", "an arithmetic, hierarchical or differential JPEG frame")
    if process != "jpeg-ls" and frame.rfind(b"\xff\xd9") < after:
        raise SampleError("truncated", "a JPEG frame without its end")  # decoders fill up what is missing
    components = frame[body + 5]
    names = bytes(frame[body + 6 + 3 * k] for k in range(components))
    if names.lower() == b"rgb":
        rgb = True
    by_plane = process == "jpeg-ls" and components > 1 and _interleave(frame, after) == 0
    rows, columns = _short(frame, body + 1), _short(frame, body + 3)
    return Codestream(process, rows, columns, components, frame[body], rgb=rgb, by_plane=by_plane)


def _interleave(frame: bytes, at: int) -> int:
    """ILV of the first scan of a JPEG-LS frame: 0 by plane, 1 by line, 2 by sample (C.2.3)."""
    while frame[at + 1] != 0xDA:
        at += 2 + _short(frame, at + 2)
    return frame[at + 5 + 2 * frame[at + 4] + 1]


def _inside_jp2(frame: bytes) -> int:
    """Where the code stream starts in a JP2 file, which does not belong in DICOM but occurs (15444-1 I.4)."""
    at = 0
    while at < len(frame):
        length = int.from_bytes(frame[at : at + 4], "big")
        if frame[at + 4 : at + 8] == b"jp2c":
            return at + (16 if length == 1 else 8)
        if length < 8:
            break
        at += length
    raise SampleError("corrupt", "a JP2 file without a code stream")


def _jpeg_2000(frame: bytes, at: int) -> Codestream:
    size = at + 4  # of SIZ, from its length on, A.5.1
    right, bottom, left, top = (_long(frame, size + 4 + 4 * k) for k in range(4))
    components = _short(frame, size + 36)
    parts = [frame[size + 38 + 3 * k : size + 41 + 3 * k] for k in range(components)]
    if not parts or len(parts[-1]) < 3:
        raise SampleError("truncated", "a compressed frame that ends within its own header")
    if any(part[1:] != b"\1\1" for part in parts):
        raise SampleError("unsupported", "JPEG 2000 with components of different size")
    if len({part[0] for part in parts}) > 1:
        raise SampleError("unsupported", "JPEG 2000 with components of different precision")
    return Codestream(
        "jpeg-2000",
        rows=bottom - top,
        columns=right - left,
        components=components,
        precision=(parts[0][0] & 0x7F) + 1,
        signed=bool(parts[0][0] & 0x80),
        transformed=_component_transform(frame, size),
    )


def _component_transform(frame: bytes, at: int) -> bool:
    """Whether the coding style says that components were transformed (A.6.1); `at`: where the length of SIZ stands."""
    at += _short(frame, at)
    while frame[at + 1] != 0x90:  # the first tile
        if frame[at + 1] == 0x52:
            return frame[at + 8] == 1
        at += 2 + _short(frame, at + 2)
    return False


def _short(frame: bytes, at: int) -> int:
    return frame[at] << 8 | frame[at + 1]


def _long(frame: bytes, at: int) -> int:
    return _short(frame, at) << 16 | _short(frame, at + 2)
