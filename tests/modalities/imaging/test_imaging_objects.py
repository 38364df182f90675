"""What is an image: by SOP class (PS3.4 B.5), and no mosaic."""

from __future__ import annotations

import io
import re
import struct
import warnings

import numpy as np
import pytest
from dicom_build import (
    DOSE,
    ENHANCED_MR,
    GSPS,
    MR,
    PDF,
    ROOT,
    SC,
    SEG,
    SR,
    dataset,
    encoded,
    enhanced,
    frame,
    item,
    placed,
)
from pydicom._uid_dict import UID_dictionary

from medray.errors import NOT_ELIGIBLE, SampleError
from medray.modalities.imaging.formats.dicom import pixels, series
from medray.modalities.imaging.formats.dicom.header import parse
from medray.modalities.imaging.formats.dicom.objects import IMAGES, csa_number, is_mosaic, kind
from medray.modalities.imaging.inspection import inspect
from medray.modalities.imaging.spec import ImagingSpec
from medray.modalities.registry import open_modality
from medray.storage.files import File

GREY = np.arange(64, dtype=np.uint16).reshape(8, 8)


def scanned(raw: bytes, tmp_path, size) -> list:
    path = tmp_path / "file.dcm"
    path.write_bytes(raw)
    return list(open_modality(ImagingSpec(size=size)).scan(File(str(path), len(raw), 1), str(tmp_path)))


def test_the_image_classes_are_those_that_the_standard_calls_image_storage():
    """pydicom's copy of PS3.6 annex A: every class named so, but of security, of materials and of printing."""
    named = {
        uid
        for uid, (name, what, _, _, _) in UID_dictionary.items()
        if what == "SOP Class" and "Image Storage" in name and not re.match(r"DICOS|Eddy|Hardcopy", name)
    }
    also = {ROOT + "6.2", ROOT + "77.1.9"}  # Enhanced US Volume, Confocal Microscopy Tiled Pyramidal
    assert named - IMAGES == set() and IMAGES - named == also - named


def test_every_other_storage_class_has_a_reason_of_its_own_kind():
    kinds = {name: kind(uid) for uid, (name, what, *_) in UID_dictionary.items() if what == "SOP Class" and kind(uid)}
    for name, reason in kinds.items():
        assert reason in NOT_ELIGIBLE
        if (
            re.search(r" SR Storage|Procedure Log|Encapsulated (PDF|CDA)| Report Storage$", name)
            and "DICOS" not in name
        ):
            assert reason == "report", name
        elif "Presentation State" in name and "Storage" in name:
            assert reason == "presentation_state", name
        elif re.search(r"Segmentation Storage", name):
            assert reason == "segmentation", name
        elif name == "RT Dose Storage":
            assert reason == "dose"
        else:
            assert reason == "not_an_image", name
    for name in (
        "Parametric Map Storage",
        "RT Structure Set Storage",
        "RT Plan Storage",
        "Raw Data Storage",
        "Spatial Registration Storage",
        "Key Object Selection Document Storage",
        "Real World Value Mapping Storage",
        "12-lead ECG Waveform Storage",
        "Surface Scan Mesh Storage",
        "MR Spectroscopy Storage",
        "Ophthalmic Thickness Map Storage",
        "Encapsulated STL Storage",
    ):
        assert kinds[name] == "not_an_image"


@pytest.mark.parametrize(
    "sop_class, reason",
    [
        (SEG, "segmentation"),
        (ROOT + "66.5", "segmentation"),
        (ROOT + "66.7", "segmentation"),
        (DOSE, "dose"),
        (SR, "report"),
        (PDF, "report"),
        (GSPS, "presentation_state"),
        (ROOT + "30", "not_an_image"),  # parametric map
        (ROOT + "481.3", "not_an_image"),  # structure set
        (ROOT + "66", "not_an_image"),  # raw data
        ("1.3.12.2.1107.5.9.1", "not_an_image"),  # Siemens CSA non-image
        ("1.3.46.670589.11.0.0.12.2", "not_an_image"),  # Philips private MR series data
    ],
)
@pytest.mark.parametrize("size", [(8, 8), (4, 8, 8)])
def test_pixels_do_not_make_an_image_in_2d_or_3d_when_scanned_or_read(tmp_path, sop_class, reason, size):
    raw = encoded(placed(dataset(GREY, sop_class=sop_class), (0, 0, 0)))
    (part,) = scanned(raw, tmp_path, size)
    assert (part.entry_id, part.reason) == ("file.dcm", reason) and reason in NOT_ELIGIBLE
    assert part.facts is not None and part.facts["SOPClassUID"] == sop_class
    with pytest.raises(SampleError) as caught:
        series.read_series([raw]) if len(size) == 3 else pixels.read_image(raw)
    assert caught.value.reason == reason


def test_a_segmentation_in_the_series_of_its_scan_is_no_slice_of_it(tmp_path):
    spec = open_modality(ImagingSpec(size=(2, 8, 8)))
    for k in range(2):
        (tmp_path / f"{k}").write_bytes(encoded(placed(dataset(GREY, instance=k), (0, 0, k))))
    (tmp_path / "seg").write_bytes(encoded(placed(dataset(GREY, instance=9, sop_class=SEG), (0, 0, 5))))
    parts = [p for k in ("0", "1", "seg") for p in spec.scan(File(str(tmp_path / k), 1, 1), str(tmp_path))]
    assert len({p.entry_id for p in parts}) == 2 and [p.reason for p in parts] == [None, None, "segmentation"]


def test_what_has_no_pixels_is_named_by_its_class_and_a_cut_image_is_truncated(tmp_path):
    empty = dataset(None, sop_class="1.2.3.4.5")
    assert scanned(encoded(empty), tmp_path, (8, 8))[0].reason == "no_pixels"
    assert scanned(encoded(dataset(None, sop_class=SR)), tmp_path, (8, 8))[0].reason == "report"
    assert scanned(encoded(dataset(None)), tmp_path, (8, 8))[0].reason == "truncated"


def test_a_secondary_capture_is_an_image_and_so_is_a_file_that_states_no_class(tmp_path):
    assert scanned(encoded(dataset(GREY, sop_class=SC)), tmp_path, (8, 8))[0].reason is None
    made = dataset(GREY)
    del made.SOPClassUID, made.file_meta.MediaStorageSOPClassUID
    made.preamble = b"\0" * 128
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=False)
    (part,) = scanned(stream.getvalue(), tmp_path, (8, 8))
    assert part.reason is None and "SOPClassUID" not in part.facts


def test_inspect_shows_what_a_segmentation_is(tmp_path):
    path = tmp_path / "seg.dcm"
    path.write_bytes(encoded(dataset(GREY, sop_class=SEG)))
    shown = inspect(str(path)).facts
    assert shown["sop_class"] == "Segmentation Storage" and shown["reason"] == "segmentation"


# --- mosaics --------------------------------------------------------------------------------------------------


def csa(second: bool = True, **numbers: int) -> bytes:
    """A Siemens CSA header of whole numbers: of version 2 ("SV10"), or 1."""
    out = (b"SV10\4\3\2\1" if second else b"") + struct.pack("<II", len(numbers), 77)
    for name, number in numbers.items():
        text = str(number).encode() + b"\0"
        length = (len(text), len(text)) if second else (len(text) + 6, 0)
        out += struct.pack("<64si4siii", name.encode(), 1, b"IS\0\0", 6, 6, 77)
        out += struct.pack("<4i", *length, 77, len(text)) + text + b"\0" * (-len(text) % 4)
        out += struct.pack("<4i", *((0, 0) if second else (6, 0)), 77, 0) * 5
    return out


def test_a_csa_header_is_read_as_nibabel_reads_it():
    raw = csa(UsedChannelMask=1, NumberOfImagesInMosaic=36, ProtocolSliceNumber=4)
    with warnings.catch_warnings(action="ignore"):  # that its DICOM readers are experimental
        from nibabel.nicom import csareader
    truth = csareader.read(raw)
    for name in ("UsedChannelMask", "NumberOfImagesInMosaic", "ProtocolSliceNumber"):
        assert [csa_number(raw, name.encode())] == truth["tags"][name]["items"]
    assert csa_number(raw, b"Absent") == 0
    assert all(csa_number(raw[:end], b"ProtocolSliceNumber") in (0, 4) for end in range(len(raw)))


def test_an_old_csa_header_is_read_as_spm_reads_it():
    """spm_dicom_headers: the length of an item is its first integer without the number of items of the first tag."""
    raw = csa(False, UsedChannelMask=1, NumberOfImagesInMosaic=36)
    assert (csa_number(raw, b"UsedChannelMask"), csa_number(raw, b"NumberOfImagesInMosaic")) == (1, 36)


def tagged(made, block: int, creator: str, element: int, vr: str, value):
    made.private_block(block, creator, create=True).add_new(element, vr, value)
    return made


def mosaics():
    plain = {"sop_class": MR, "modality": "MR", "image_type": ("ORIGINAL", "PRIMARY", "M", "ND")}
    yield "by image type", dataset(GREY, **(plain | {"image_type": ("ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC")}))
    yield "by the number of its tiles", tagged(dataset(GREY, **plain), 0x19, "SIEMENS MR HEADER", 0x0A, "US", 36)
    header = csa(UsedChannelMask=1, NumberOfImagesInMosaic=36)
    yield "by its CSA header", tagged(dataset(GREY, **plain), 0x29, "SIEMENS CSA HEADER", 0x10, "OB", header)
    old = csa(False, UsedChannelMask=1, NumberOfImagesInMosaic=36)
    yield "by an old CSA header", tagged(dataset(GREY, **plain), 0x29, "SIEMENS CSA HEADER", 0x10, "OB", old)
    yield "of UIH", tagged(dataset(GREY, **plain), 0x65, "Image Private Header", 0x50, "DS", "24")
    kinds = item(FrameType=["ORIGINAL", "PRIMARY", "FMRI", "MOSAIC"])
    own = frame((0, 0, 0), (1.0, 0.0), MRImageFrameTypeSequence=kinds)
    yield "enhanced, by its frame type", enhanced(GREY[None], [own], sop_class=ENHANCED_MR, modality="MR")


@pytest.mark.parametrize("name, made", [pytest.param(name, made, id=name) for name, made in mosaics()])
@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
def test_a_mosaic_is_refused_in_2d_and_in_3d(tmp_path, name, made, syntax):
    raw = encoded(made, syntax)
    for size in ((8, 8), (4, 8, 8)):
        (part,) = scanned(raw, tmp_path, size)
        assert (
            part.reason is None and "spacing_mm" not in part.facts
        )  # whether it is asked for is known before it is read
    for read in (pixels.read_image, lambda raw: series.read_series([raw])):
        with pytest.raises(SampleError, match="a mosaic") as caught:
            read(raw)
        assert caught.value.reason == "unsupported"


def test_one_tile_or_a_number_of_another_vendor_is_no_mosaic():
    plain = {"sop_class": MR, "modality": "MR"}
    for made in (
        tagged(dataset(GREY, **plain), 0x29, "SIEMENS CSA HEADER", 0x10, "OB", csa(NumberOfImagesInMosaic=1)),
        tagged(dataset(GREY, **plain), 0x29, "SIEMENS CSA HEADER", 0x10, "OB", csa(ProtocolSliceNumber=36)),
        tagged(dataset(GREY, **plain), 0x19, "ANOTHER VENDOR", 0x0A, "US", 36),
        tagged(dataset(GREY, **plain), 0x29, "SIEMENS CSA HEADER", 0x10, "OB", b"NumberOfImagesInMosaic\0"),
    ):
        assert not is_mosaic(parse(encoded(made)))


def test_real_mosaics_are_found_without_their_image_type(shared_data):
    folder = shared_data / "imaging" / "dicom"
    paths = [
        *(folder / "mr_transfer_syntaxes" / "In").glob("*.dcm"),
        *(folder / "mr_ge_siemens_nih/In/20180918Si").rglob("*"),
    ]
    checked = 0
    for path in (path for path in paths if path.is_file()):
        raw = path.read_bytes()
        if raw[128:132] != b"DICM":
            continue
        assert is_mosaic(parse(raw.replace(b"MOSAIC ", b"ND     ").replace(b"\\MOSAIC", b"\\ND    "))), path.name
        checked += 1
    assert checked == 17
