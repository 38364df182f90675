from __future__ import annotations

import io

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_has_tag, dictionary_VR

from medray.errors import REASONS, SampleError
from medray.modalities.imaging.formats.dicom import pixels as dicom
from medray.modalities.imaging.formats.dicom.elements import walk
from medray.modalities.imaging.formats.dicom.header import parse, parse_by_pydicom
from medray.modalities.imaging.formats.dicom.writer import uid, write_dicom

EXPLICIT = "1.2.840.10008.1.2.1"
rng = np.random.default_rng(0)
DEEP = (np.add.outer(np.arange(16), np.arange(24)) * 100).astype(np.uint16)  # 0 … 3800, 12 bits
SMOOTH = np.stack([np.tile(np.linspace(0, 250, 24), (16, 1)), np.full((16, 24), 90), np.full((16, 24), 30)], -1)
RGB = SMOOTH.astype(np.uint8)


def color(photometric: str, planar: int = 0):
    def change(dataset):
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, photometric, planar
        dataset.PixelData = (RGB if planar == 0 else np.moveaxis(RGB, -1, 0)).tobytes()

    return change


def values(raw: bytes) -> np.ndarray:
    return dicom.read_image(raw).values


def reason(raw: bytes) -> str:
    with pytest.raises(SampleError) as caught:
        dicom.read_image(raw)
    return caught.value.reason


def test_nine_transfer_syntaxes_give_equal_pixels(shared_data):
    folder = shared_data / "imaging" / "dicom" / "mr_transfer_syntaxes" / "In"
    images = [dicom.stored(parse((folder / f"{n}.dcm").read_bytes()))[0] for n in range(1, 10)]
    assert images[0].shape == (384, 384) and images[0].max() == 2362
    assert all(np.array_equal(images[0], each) for each in images)


@pytest.mark.parametrize("frame, syntax", [
    (imagecodecs.jpegls_encode(DEEP), "1.2.840.10008.1.2.4.80"),
    (imagecodecs.jpeg2k_encode(DEEP, codecformat="j2k", reversible=True), "1.2.840.10008.1.2.4.90"),
    (imagecodecs.htj2k_encode(DEEP), "1.2.840.10008.1.2.4.201"),
    (imagecodecs.ljpeg_encode(DEEP, bitspersample=12), "1.2.840.10008.1.2.4.57"),
])  # fmt: skip
def test_a_lossless_frame_comes_back_exactly(dicom_bytes, frame, syntax):
    raw = dicom_bytes(DEEP, bits_stored=12, frames=[frame], syntax=syntax)
    assert np.array_equal(values(raw), DEEP)


def test_jpeg_extended_of_12_bits_is_decoded(dicom_bytes):
    frame = imagecodecs.jpeg_encode(DEEP, level=100, bitspersample=12)
    raw = dicom_bytes(DEEP, bits_stored=12, frames=[frame], syntax="1.2.840.10008.1.2.4.51")
    assert np.abs(values(raw).astype(int) - DEEP).max() <= 4


@pytest.mark.parametrize("frame, syntax, photometric, error", [
    (imagecodecs.jpeg_encode(RGB, level=100, subsampling="444"), "1.2.840.10008.1.2.4.50", "YBR_FULL_422", 3),
    (imagecodecs.jpeg2k_encode(RGB, codecformat="j2k", reversible=True, mct=True), "1.2.840.10008.1.2.4.90", "YBR_RCT", 0),
    (imagecodecs.jpegls_encode(RGB), "1.2.840.10008.1.2.4.80", "RGB", 0),
])  # fmt: skip
def test_compressed_colour_becomes_rgb(dicom_bytes, frame, syntax, photometric, error):
    raw = dicom_bytes(RGB[..., 0], change=color(photometric), frames=[frame], syntax=syntax)
    image = dicom.read_image(raw)
    assert image.color and image.shape == (16, 24)
    assert np.abs(image.values.astype(int) - RGB).max() <= error


@pytest.mark.parametrize("planar", [0, 1])
def test_plain_rgb_by_pixel_and_by_plane_are_equal(dicom_bytes, planar):
    assert np.array_equal(values(dicom_bytes(RGB[..., 0], change=color("RGB", planar))), RGB)


def test_ybr_becomes_rgb_as_pydicom_has_it(dicom_bytes):
    raw = dicom_bytes(RGB[..., 0], change=color("YBR_FULL"))
    assert np.array_equal(values(raw), pydicom.dcmread(io.BytesIO(raw)).pixel_array)


def test_subsampled_ybr_doubles_its_colours_along_the_row(dicom_bytes):
    def change(dataset):
        color("YBR_FULL_422")(dataset)
        dataset.PixelData = np.tile(np.array([10, 200, 128, 128], np.uint8), 16 * 12).tobytes()

    grey = values(dicom_bytes(RGB[..., 0], change=change))
    assert np.array_equal(grey[:, ::2], np.full((16, 12, 3), 10)) and np.array_equal(
        grey[:, 1::2], np.full((16, 12, 3), 200)
    )


def test_a_palette_of_16_bit_entries_becomes_16_bit_rgb(dicom_bytes):
    def change(dataset):
        dataset.PhotometricInterpretation = "PALETTE COLOR"
        for number, name in enumerate(("Red", "Green", "Blue")):
            dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [4, 0, 16])
            table = (np.arange(4, dtype="<u2") + number) * 0x1000
            setattr(dataset, f"{name}PaletteColorLookupTableData", table.tobytes())

    image = dicom.read_image(dicom_bytes(np.array([[0, 1], [2, 3]], np.uint8), change=change))
    assert (image.values // 256).tolist() == [[[0, 16, 32], [16, 32, 48]], [[32, 48, 64], [48, 64, 80]]]
    assert image.values.dtype == np.uint16 and image.values.max() == 0x5000


def test_hounsfield_units_come_from_slope_and_intercept(dicom_bytes):
    raw = dicom_bytes(np.array([[0, 1000], [2000, 4000]], np.uint16), rescale=(0.5, -1024.0))
    assert values(raw).tolist() == [[-1024.0, -524.0], [-24.0, 976.0]]


def test_monochrome1_is_mirrored_within_the_stored_bits(dicom_bytes):
    pixels = np.array([[0, 1], [4094, 4095]], np.uint16)
    assert values(dicom_bytes(pixels, photometric="MONOCHROME1", bits_stored=12)).tolist() == [[4095, 4094], [1, 0]]
    signed = np.array([[-2048, 2047], [-1, 0]], np.int16)
    mirrored = values(dicom_bytes(signed, photometric="MONOCHROME1", bits_stored=12))
    assert mirrored.tolist() == [[2047, -2048], [0, -1]]


def test_bits_above_the_stored_ones_are_cut_and_the_sign_extended(dicom_bytes):
    pixels = np.array([[0xF001, 0x0FFF], [0x8000, 0x0800]], np.uint16)  # old overlays in the upper 4 bits
    assert values(dicom_bytes(pixels, bits_stored=12)).tolist() == [[1, 4095], [0, 2048]]

    def signed(dataset):
        dataset.PixelRepresentation = 1

    assert values(dicom_bytes(pixels, bits_stored=12, change=signed)).tolist() == [[1, -1], [0, -2048]]


def test_signed_pixels_stay_signed(dicom_bytes):
    pixels = np.array([[-1000, 5], [32767, -32768]], np.int16)
    assert np.array_equal(values(dicom_bytes(pixels)), pixels)


def test_padding_takes_the_least_real_value(dicom_bytes):
    def padded(dataset):
        dataset.add_new("PixelPaddingValue", "SS", -2000)

    pixels = np.array([[-2000, -1000], [40, -2000]], np.int16)
    assert values(dicom_bytes(pixels, change=padded)).tolist() == [[-1000, -1000], [40, -1000]]

    def ranged(dataset):
        dataset.add_new("PixelPaddingValue", "SS", -3000)
        dataset.add_new("PixelPaddingRangeLimit", "SS", -1500)

    assert values(dicom_bytes(pixels, change=ranged)).tolist() == [[-1000, -1000], [40, -1000]]


@pytest.mark.parametrize("implicit, little", [(True, True), (False, False), (False, True)])
@pytest.mark.parametrize("pixels", [DEEP, DEEP.astype(np.int16), (DEEP // 16).astype(np.uint8)[:, :23]])
def test_byte_orders_and_explicitness_do_not_change_pixels(dicom_bytes, pixels, implicit, little):
    plain = pydicom.Dataset()
    plain.update(pydicom.dcmread(io.BytesIO(dicom_bytes(pixels))))
    plain.file_meta = pydicom.dataset.FileMetaDataset()
    syntax = "1.2.840.10008.1.2" if implicit else EXPLICIT if little else "1.2.840.10008.1.2.2"
    plain.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    if not little:  # 8-bit pixels in words travel in swapped pairs
        plain.PixelData = np.frombuffer(pixels.tobytes(), np.uint16).byteswap().tobytes()
        plain["PixelData"].VR = "OW"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, plain, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    raw = stream.getvalue()
    assert walk(raw) is not None
    assert np.array_equal(values(raw), pixels)


def test_a_deflated_file_is_read(dicom_bytes):
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(DEEP)))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    stream = io.BytesIO()
    dataset.save_as(stream)
    assert np.array_equal(values(stream.getvalue()), DEEP)


def test_one_bit_pixels_are_unpacked(dicom_bytes):
    def change(dataset):
        dataset.BitsAllocated = dataset.BitsStored = 1
        dataset.HighBit = 0
        dataset.PixelData = bytes([0b00000101, 0])

    assert values(dicom_bytes(np.zeros((2, 4), np.uint8), change=change)).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]


def test_float_pixels_are_read(dicom_bytes):
    def change(dataset):
        del dataset.PixelData
        dataset.BitsAllocated = 32
        dataset.FloatPixelData = np.array([[0.5, -1.5]], "<f4").tobytes()

    assert values(dicom_bytes(np.zeros((1, 2), np.uint8), change=change)).tolist() == [[0.5, -1.5]]


def test_the_quick_walk_and_pydicom_agree_on_real_headers(shared_data):
    checked = 0
    for path in sorted((shared_data / "imaging" / "dicom").rglob("*"))[::5]:
        raw = path.read_bytes() if path.is_file() else b""
        if raw[128:132] != b"DICM":
            continue
        quick = walk(raw)
        assert quick is not None, path.name
        _, slow, _ = parse_by_pydicom(raw)
        assert quick.at == slow.at and quick.syntax == slow.syntax
        sequences = {tag for tag in quick.values if dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"}
        assert quick.values.keys() == slow.values.keys()
        assert all(
            quick.values[tag].strip() == value.strip() for tag, value in slow.values.items() if tag not in sequences
        )
        checked += 1
    assert checked > 100


def test_nested_sequences_of_undefined_length_are_hopped_over(dicom_bytes):
    def change(dataset):
        inner = pydicom.Dataset()
        inner.CodeValue, inner.CodeMeaning = "1", "x"
        outer = pydicom.Dataset()
        outer.ConceptNameCodeSequence = [inner, inner]
        dataset.ProcedureCodeSequence = [outer]
        for item in (dataset["ProcedureCodeSequence"], outer["ConceptNameCodeSequence"]):
            item.is_undefined_length = True
        outer.is_undefined_length_sequence_item = inner.is_undefined_length_sequence_item = True

    raw = dicom_bytes(DEEP, change=change)
    assert b"\xfe\xff\x0d\xe0" in raw and walk(raw) is not None
    assert np.array_equal(values(raw), DEEP)


def test_the_end_missing_is_truncated_wherever_it_is_cut(dicom_bytes):
    whole = dicom_bytes(DEEP)
    start = parse(whole).start
    for length in (140, 300, start - 20, start - 4, start, start + 1, len(whole) - 1):
        assert reason(whole[:length]) == "truncated", length
    packed = dicom_bytes(DEEP, frames=[imagecodecs.jpegls_encode(DEEP)], syntax="1.2.840.10008.1.2.4.80")
    assert reason(packed[:-60]) == "truncated"


def test_damage_inside_a_compressed_frame_is_corrupt(dicom_bytes):
    raw = dicom_bytes(DEEP, frames=[b"\0" * 100], syntax="1.2.840.10008.1.2.4.80")
    assert reason(raw) == "corrupt"


def test_an_unknown_transfer_syntax_and_a_film_are_unsupported(dicom_bytes):
    assert reason(dicom_bytes(DEEP, frames=[b"\0" * 8], syntax="1.2.840.10008.1.2.4.102")) == "unsupported"

    def film(dataset):
        dataset.NumberOfFrames = 2
        dataset.PixelData = DEEP.tobytes() * 2

    assert reason(dicom_bytes(DEEP, change=film)) == "unsupported"


def test_a_slope_that_is_no_number_is_corrupt(dicom_bytes):
    raw = dicom_bytes(DEEP, rescale=(2.0, 0.0))
    at = raw.index(b"\x28\x00\x53\x10DS")
    assert reason(raw[: at + 8] + b"nan " + raw[at + 12 :]) == "corrupt"


def test_no_message_holds_what_the_file_says_of_the_patient(dicom_bytes, caplog):
    def change(dataset):
        dataset.PatientName = "Secret^Name"

    raw = bytearray(dicom_bytes(DEEP, patient="SECRET-17", change=change))
    for at in range(140, len(raw) - 800, 7):
        hurt = bytes(raw[:at]) + b"\xff" + bytes(raw[at + 1 :])
        try:
            dicom.read_image(hurt)
        except SampleError as error:
            assert "ecret" not in str(error).lower() and error.reason in REASONS
            assert error.__cause__ is None
    assert "ecret" not in caplog.text.lower()


@pytest.mark.parametrize("seed", range(30))
def test_damaged_files_of_every_syntax_fail_with_a_reason_or_are_read(shared_data, seed):
    local = np.random.default_rng(seed)
    folder = shared_data / "imaging" / "dicom" / "mr_transfer_syntaxes" / "In"
    raw = bytearray((folder / f"{1 + seed % 9}.dcm").read_bytes())
    start = parse(bytes(raw)).start
    for at in local.integers(start, min(len(raw), start + 4000), 20):
        raw[at] = local.integers(256)
    try:
        assert dicom.stored(parse(bytes(raw))).shape == (1, 384, 384)
    except SampleError as error:
        assert error.reason in ("corrupt", "truncated", "unsupported")


def test_the_writer_makes_the_same_valid_bytes_each_time():
    names = {"patient_id": "P", "study_uid": uid("a"), "series_uid": uid("b"), "instance_uid": uid("c")}
    raw = write_dicom(DEEP, **names, spacing_mm=(0.5, 0.25))
    assert raw == write_dicom(DEEP, **names, spacing_mm=(0.5, 0.25))
    dataset = pydicom.dcmread(io.BytesIO(raw))
    assert np.array_equal(dataset.pixel_array, DEEP) and dataset.PatientID == "P"
    assert dicom.read_image(raw).spacing_mm == (0.5, 0.25)
    assert uid("a") == uid("a") != uid("b") and len(uid("a")) <= 64
    with pytest.raises(ValueError, match="uint16"):
        write_dicom(DEEP.astype(float), **names)
