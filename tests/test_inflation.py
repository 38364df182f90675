"""What is unpacked is bounded by what a header asks for: inputs that declare a small image and hold tens of MB of zeros.

Each is refused with a reason, and the process takes no more memory than for a small one, as the kernel counts it.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medray.errors import SampleError
from medray.modalities.imaging.formats.arrays import idx_array, npz_rows
from medray.modalities.imaging.formats.decode import content_of, decode
from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom
from medray.storage import files, inflating
from medray.storage.compressed import one_member
from medray.storage.inflating import unpacked

MORE = 48 * 2**20
"""Bytes of zeros that the inputs hold beyond what they declare; about 50 kB when they are packed."""
ROOM = 24 * 2**20
"""What a decoder may take beside what the process has."""
SMALL = np.arange(256, dtype=np.uint8).reshape(16, 16)


def dicom(behind: int = 0) -> bytes:
    """A DICOM image of 16 x 16 with so many zeros behind the pixels."""
    names = {
        "study_uid": uid("i", 1, "study"),
        "series_uid": uid("i", 1, "series"),
        "instance_uid": uid("i", 1, "image"),
    }
    return write_dicom(SMALL, patient_id="S1", **names) + bytes(behind)


def deflated(behind: int = 0) -> bytes:
    """The same under the deflated transfer syntax, by zlib itself, since pydicom writes nothing behind a data set."""
    made = pydicom.dcmread(io.BytesIO(dicom()))
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = io.BytesIO()
    made.save_as(whole)
    head = whole.getvalue()
    length = 132 + 12 + struct.unpack("<I", head[140:144])[0]
    inner = zlib.decompress(head[length:], -15)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return head[:length] + packer.compress(inner + bytes(behind)) + packer.flush()


def idx(behind: int = 0) -> bytes:
    return gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">III", 1, 16, 16) + SMALL.tobytes() + bytes(behind))


def npz(behind: int = 0, labels: int = 1) -> bytes:
    """An .npz whose images end where their header says, or with zeros behind them; `labels` rows of labels."""
    content = io.BytesIO()
    np.lib.format.write_array(content, SMALL[None])
    others = io.BytesIO()
    np.lib.format.write_array(others, np.zeros((labels, 1), np.uint8))
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content.getvalue() + bytes(behind))
        archive.writestr("labels.npy", others.getvalue())
    return whole.getvalue()


def nifti(behind: int = 0) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 16, 16, 1, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 2, 8)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352.0)
    struct.pack_into("<hh", header, 252, 0, 2)
    struct.pack_into("<12f", header, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    header[344:348] = b"n+1\0"
    return gzip.compress(bytes(header) + SMALL.tobytes() + bytes(behind))


def png(behind: int = 0, depth: int = 8) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + bytes(16 * depth // 8) for _ in range(16))
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, depth, 0, 0, 0, 0))]
    if behind:
        parts.append(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(behind))))
        parts.append(chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(behind))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [*parts, chunk(b"IDAT", zlib.compress(rows + bytes(behind))), chunk(b"IEND", b"")]
    )


def tiff(tile: int = 0) -> bytes:
    """A deflated TIFF of 16 x 16 in one strip, or in one tile of `tile` x `tile`."""
    content = zlib.compress(bytes(tile * tile) if tile else SMALL.tobytes())
    place = (
        [(322, tile), (323, tile), (324, 8), (325, len(content))]
        if tile
        else [(273, 8), (278, 16), (279, len(content))]
    )
    tags = sorted([(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), *place])
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(tags)) + entries + bytes(4)


def rle(behind: int = 0) -> bytes:
    """A DICOM image of 16 x 16 in run lengths, with zeros behind its one segment."""
    from pydicom.encaps import encapsulate
    from pydicom.uid import RLELossless

    def runs(count: int) -> bytes:
        return b"\x81\0" * (count // 128)

    segment = struct.pack("<16I", 1, 64, *[0] * 14) + runs(256) + runs(behind)
    made = pydicom.dcmread(io.BytesIO(dicom()))
    made.file_meta.TransferSyntaxUID = RLELossless
    made.PixelData = encapsulate([segment])
    made["PixelData"].VR = "OB"
    whole = io.BytesIO()
    made.save_as(whole)
    return whole.getvalue()


def image(raw: bytes) -> np.ndarray:
    return decode([content_of(raw)], volumes=False).values


def volume(raw: bytes) -> np.ndarray:
    return decode([content_of(raw)], volumes=True).values


CASES: dict[str, tuple[Callable[[bytes], object], Callable[[int], bytes]]] = {
    "deflated DICOM": (image, deflated),
    "DICOM in gzip": (image, lambda more: gzip.compress(dicom(more))),
    "deflated DICOM in gzip": (image, lambda more: gzip.compress(deflated(more))),
    "RLE of DICOM": (image, rle),
    "NIfTI in gzip": (volume, nifti),
    "idx in gzip": (idx_array, idx),
    "npz": (npz_rows, npz),
    "PNG": (image, png),
    "PNG of 16 bits": (image, lambda more: png(more, 16)),
    "tiles of a TIFF": (image, lambda more: tiff(7168 if more else 0)),
}
IGNORED = ("NIfTI in gzip", "npz", "PNG", "PNG of 16 bits")
"""What stands behind the pixels is never unpacked, so the image is read as it is."""


def peak(work: Callable[[], object]) -> int:
    """Bytes of resident memory that the work takes beside what there was, at the most (proc(5), clear_refs and VmHWM)."""

    def now(name: str) -> int:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")
    before = now("VmRSS")
    work()
    return now("VmHWM") - before


@pytest.mark.parametrize("case", CASES)
def test_an_image_that_unpacks_to_more_than_its_header_says_takes_no_memory_for_it(case: str) -> None:
    read, made = CASES[case]
    read(made(0))  # as it should be; and what the reader imports is there
    bomb = made(MORE)
    assert len(bomb) < MORE // 20
    answers: list[object] = []

    def work() -> None:
        try:
            answers.append(read(bomb))
        except SampleError as error:
            answers.append(error.reason)

    assert peak(work) < ROOM
    assert case in IGNORED or answers == ["corrupt"]


@pytest.mark.parametrize("behind", [0, 100, 10_000])
def test_a_little_behind_the_pixels_changes_no_value(behind: int) -> None:
    """Padding of a writer: what was read before is read."""
    assert np.array_equal(image(deflated(behind - behind % 2)), SMALL)
    assert np.array_equal(image(gzip.compress(dicom(behind))), SMALL)
    assert np.array_equal(idx_array(idx(behind))[0], SMALL)


def test_a_long_header_before_the_pixels_is_read() -> None:
    """Private elements of 6 MB that deflate well, and pixels that do, too: 48 MB of them, as the header says."""
    made = pydicom.dcmread(io.BytesIO(dicom()))
    made.private_block(0x0029, "maker", create=True).add_new(1, "OB", bytes(6 * 2**20))
    made.Rows, made.Columns, made.PixelData = 6144, 8192, bytes(MORE)
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = io.BytesIO()
    made.save_as(whole)
    assert len(whole.getvalue()) < 2**18
    assert image(whole.getvalue()).shape == (6144, 8192)
    assert image(gzip.compress(whole.getvalue())).shape == (6144, 8192)


def test_labels_that_are_not_those_of_the_images_are_not_unpacked() -> None:
    bomb = npz(labels=MORE)

    def work() -> None:
        with pytest.raises(SampleError, match="1 images"):
            npz_rows(bomb)

    assert peak(work) < ROOM


@pytest.mark.parametrize("axes", [(2**31, 16, 16), (2**20, 2**10, 2**10)])
def test_an_array_that_is_declared_larger_than_it_is_takes_no_memory(axes: tuple[int, ...]) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": axes, "fortran_order": False, "descr": "|u1"})
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("images.npy", header.getvalue() + SMALL.tobytes())
    with pytest.raises(SampleError) as refused:
        npz_rows(whole.getvalue())
    assert refused.value.reason == "truncated"


def test_a_member_of_a_zip_gives_no_more_than_its_directory_says(tmp_path: Path) -> None:
    """The directory says 1,000 bytes; the stream holds 48 MB."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(MORE))
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02")
    struct.pack_into("<I", raw, at + 24, 1000)
    path.write_bytes(raw)

    def work() -> None:
        with pytest.raises(SampleError) as refused:
            files.read_bytes(f"{path}!/a.dcm")
        assert refused.value.reason == "corrupt"

    work()  # what it imports is there
    assert peak(work) < ROOM


def test_an_empty_or_broken_stream_has_its_reason() -> None:
    for raw, reason in (
        (b"", "empty_file"),
        (gzip.compress(b"abc")[:-4], "truncated"),
        (b"\x1f\x8bnothing more", "corrupt"),
    ):
        with pytest.raises(SampleError) as refused:
            unpacked(raw)
        assert refused.value.reason == reason


def test_content_by_position_is_the_same_whatever_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    content = np.random.default_rng(0).integers(0, 4, 2**20, np.uint8).tobytes() + bytes(8 * 2**20) + b"end"
    raw = gzip.compress(content)
    assert unpacked(raw) == content
    monkeypatch.setattr(inflating, "_CHUNK", 2048)
    assert unpacked(raw) == content


def test_a_line_of_ndjson_that_never_ends_takes_no_memory_and_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from medray.modalities.ehr.convert.fhir import json
    from medray.modalities.ehr.convert.members import Member

    monkeypatch.setattr(json, "LONGEST_LINE", 2**20)
    packed = gzip.compress(b'{"a": 1}\n{"b": "' + b"x" * MORE + b'"}\n{"c": 1}\n')
    member = Member(-1, "", lambda: io.BufferedReader(io.BytesIO(packed)))  # type: ignore[arg-type]
    lines: list[bytes] = []

    def work() -> None:
        lines.extend(line[:20] for line in json.lines(member.open(), 0, None))

    assert peak(work) < ROOM
    assert lines == [b'{"a": 1}\n', b'{"b": "xxxxxxxxxxxxx', b'{"c": 1}\n']


# --- a gzip file at once ------------------------------------------------------------------------------------------

CONTENT = np.random.default_rng(0).integers(0, 50, 5000, dtype=np.uint8).tobytes()
ONE = gzip.compress(CONTENT)


def test_a_gzip_file_of_one_member_is_unpacked_at_once():
    assert one_member(ONE, len(CONTENT)) == CONTENT
    assert one_member(ONE, len(CONTENT) - 1) is None
    named = io.BytesIO()
    with gzip.GzipFile("name of a file", "wb", fileobj=named) as stream:
        stream.write(CONTENT)
    assert one_member(named.getvalue(), 10**6) == CONTENT


@pytest.mark.parametrize(
    "raw",
    [
        ONE + ONE,
        gzip.compress(CONTENT[::-1]) + ONE,
        ONE + gzip.compress(b""),
        ONE + b"\0",
        ONE + b"behind",
        ONE + ONE[-8:],
        ONE[:-1],
        ONE[:-8] + bytes(4) + ONE[-4:],
        ONE[:-4] + struct.pack("<I", len(CONTENT) + 1),
        ONE[:-4] + struct.pack("<I", len(CONTENT) - 1),
        ONE[:-4] + b"\xff\xff\xff\x3f",
        ONE[: len(ONE) // 2] + ONE[-8:],
        ONE[:2],
        b"",
    ],
    ids=lambda raw: f"{len(raw)} bytes",
)
def test_any_other_is_left_to_whoever_unpacks_it_piece_by_piece(raw):
    assert one_member(raw, 10**6) is None


def test_no_change_of_a_byte_gives_other_content():
    for at in range(len(ONE)):
        changed = bytearray(ONE)
        changed[at] ^= 0x40
        assert one_member(bytes(changed), 10**6) in (None, CONTENT)
