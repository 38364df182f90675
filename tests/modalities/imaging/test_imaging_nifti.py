"""NIfTI: units, axes, scale and types, by nifti1.h and beside nibabel."""

from __future__ import annotations

import gzip
import itertools
import struct
import tracemalloc
import zlib

import nibabel
import numpy as np
import phantom
import pytest

from medray.errors import SampleError
from medray.modalities.imaging.encoding.conform import conform
from medray.modalities.imaging.facts import of_nifti
from medray.modalities.imaging.formats.decode import sniff
from medray.modalities.imaging.formats.nifti import grid, is_nifti, read_channels, read_nifti
from medray.modalities.imaging.spec import ImagingSpec

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def nifti(voxels: np.ndarray = VOXELS, affine: np.ndarray = LPS, kind=nibabel.Nifti1Image, **fields) -> bytes:
    image = kind(voxels, affine, dtype=voxels.dtype)
    raw = bytearray(image.to_bytes())
    header = kind.header_class(bytes(raw[: kind.header_class.sizeof_hdr]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[: kind.header_class.sizeof_hdr] = header.binaryblock
    return bytes(raw)


def reason(raw: bytes) -> str:
    with pytest.raises(SampleError) as caught:
        read_nifti(raw)
    return caught.value.reason


def test_axes_to_the_left_the_back_and_the_head_are_those_of_the_file():
    image = read_nifti(nifti())
    assert np.array_equal(image.values, VOXELS.transpose(2, 1, 0)) and image.spacing_mm == (1, 1, 1)


@pytest.mark.parametrize("unit, factor", [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001), (3 | 8, 0.001), (2 | 16, 1.0)])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_spacing_is_in_mm_whatever_the_unit_of_the_file(unit, factor, kind):
    affine = np.diag([-25.0, -30.0, 40.0, 1.0])
    image = read_nifti(nifti(affine=affine, kind=kind, xyzt_units=unit))
    assert image.spacing_mm == pytest.approx((40 * factor, 30 * factor, 25 * factor))


def test_a_unit_that_there_is_not_is_corrupt():
    assert reason(nifti(xyzt_units=5)) == "corrupt"


def test_microns_are_resampled_as_microns():
    image = read_nifti(nifti(affine=np.diag([-25.0, -25.0, 25.0, 1.0]), xyzt_units=3))
    spec = ImagingSpec(size=(7, 6, 5), spacing_mm=(0.025, 0.025, 0.025), normalise="none")
    assert np.allclose(conform(image, spec)[0], VOXELS.transpose(2, 1, 0), atol=1e-3)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_real_type_is_read_exactly_in_either_byte_order(dtype, order):
    kind = np.dtype(dtype)
    low, high = (np.iinfo(kind).min, np.iinfo(kind).max) if kind.kind in "iu" else (-1e6, 1e6)
    voxels = np.random.default_rng(3).uniform(low, high, (3, 4, 5)).astype(kind)
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(kind)
    image = nibabel.Nifti1Image(voxels, LPS, header)
    raw = image.to_bytes()
    assert raw[:4] == struct.pack(order + "i", 348)
    read = read_nifti(raw)
    assert np.array_equal(read.values, voxels.transpose(2, 1, 0)) and read.values.dtype.itemsize == kind.itemsize


def test_whole_numbers_that_float32_cannot_hold_are_refused_and_others_kept():
    spec = ImagingSpec(size=(5, 4, 3), normalise="none")
    big = np.full((3, 4, 5), 1 << 24, np.int64)
    assert (conform(read_nifti(nifti(big)), spec) == 1 << 24).all()
    for more in (1, 3, (1 << 30) + 1, 1 << 53):
        wrong = big.copy()
        wrong[0, 0, 0] += more
        with pytest.raises(SampleError, match="float32") as caught:
            conform(read_nifti(nifti(wrong)), spec)
        assert caught.value.reason == "bad_values"
    wide = np.full((3, 4, 5), 1e300)
    with pytest.raises(SampleError, match="float32"):
        conform(read_nifti(nifti(wide)), spec)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_numbers_are_unsupported(dtype):
    assert reason(nifti(VOXELS.astype(dtype))) == "unsupported"


def test_128_bits_are_unsupported():
    assert reason(nifti(datatype=1536, bitpix=128)) in ("unsupported", "corrupt")  # as nibabel knows it here, or not


@pytest.mark.parametrize("order", ["<", ">"])
def test_colours_are_red_green_blue_and_the_scale_does_not_count(order):
    voxels = np.zeros((2, 3, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    voxels["R"], voxels["G"], voxels["B"] = 10, np.arange(24).reshape(2, 3, 4), 200
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(voxels.dtype)
    raw = bytearray(nibabel.Nifti1Image(voxels, LPS, header).to_bytes())
    raw[112:120] = struct.pack(order + "2f", 2.0, 1.0)  # scl_slope, scl_inter
    read = read_nifti(bytes(raw))
    assert read.color and read.shape == (4, 3, 2) and read.values.dtype == np.uint8
    assert read.values[3, 1, 0].tolist() == [10, 7, 200]
    deep = ImagingSpec(size=(4, 3, 2), channels=3, normalise="none")
    assert conform(read, deep)[:, 3, 1, 0].tolist() == [10, 7, 200]
    assert conform(read, deep.model_copy(update={"channels": 1}))[0, 3, 1, 0] == pytest.approx(
        0.299 * 10 + 0.587 * 7 + 0.114 * 200
    )


def test_opacity_of_colours_is_over_black():
    voxels = np.zeros((1, 1, 2), [(letter, "u1") for letter in "RGBA"])
    voxels["R"], voxels["B"], voxels["A"] = 100, 40, [[[255, 51]]]
    assert read_nifti(nifti(voxels)).values[:, 0, 0].tolist() == [[100, 0, 40], [20, 0, 8]]


@pytest.mark.parametrize("slope, intercept, scaled", [
    (0.0, 5.0, False), (float("nan"), 5.0, False), (1.0, 0.0, False), (2.0, -1.0, True), (-0.5, 0.0, True), (1.0, 3.0, True),
])  # fmt: skip
def test_a_slope_of_0_or_nan_is_no_scale(slope, intercept, scaled):
    read = read_nifti(nifti(scl_slope=slope, scl_inter=intercept))
    stored = VOXELS.transpose(2, 1, 0)
    assert np.array_equal(read.values, stored * slope + intercept if scaled else stored)


@pytest.mark.parametrize("slope, intercept", [(float("inf"), 0.0), (1.0, float("nan")), (1.0, float("inf"))])
def test_a_scale_that_is_not_finite_is_corrupt(slope, intercept):
    assert reason(nifti(scl_slope=slope, scl_inter=intercept)) == "corrupt"


def test_a_scale_of_32_bit_numbers_is_rounded_once():
    voxels = np.array([[[2_000_000_001]], [[2_000_000_004]]], np.int32)
    read = read_nifti(nifti(voxels, scl_slope=1.0, scl_inter=-2_000_000_000.0))
    assert read.values.ravel().tolist() == [1.0, 4.0]


# --- where the axes run ---------------------------------------------------------------------------------------


def test_without_qform_and_sform_nothing_says_which_side_is_left():
    assert reason(nibabel.Nifti1Image(VOXELS, None).to_bytes()) == "bad_geometry"


def with_both(sform: np.ndarray, qform: np.ndarray) -> bytes:
    image = nibabel.Nifti1Image(VOXELS, sform)
    image.set_sform(sform, 4)
    image.set_qform(qform, 1)
    return image.to_bytes()


def test_sform_goes_before_qform_and_both_have_to_agree_which_way_the_axes_run():
    moved = LPS.copy()
    moved[:3, 3] = 30
    assert np.array_equal(read_nifti(with_both(LPS, moved)).values, VOXELS.transpose(2, 1, 0))
    assert reason(with_both(LPS, np.diag([1.0, -1.0, 1.0, 1.0]))) == "bad_geometry"  # left is right


def test_qform_alone_is_read():
    image = nibabel.Nifti1Image(VOXELS, None)
    image.set_qform(np.diag([2.0, -3.0, 4.0, 1.0]), 1)
    read = read_nifti(image.to_bytes())
    assert read.spacing_mm == (4, 3, 2) and np.array_equal(read.values, VOXELS[::-1].transpose(2, 1, 0))


def test_voxels_of_sform_and_pixdim_of_different_size_are_bad_geometry():
    raw = with_both(LPS * [2, 2, 2, 1], LPS)
    assert reason(raw) == "bad_geometry"


def test_a_negative_pixdim_is_a_length():
    read = read_nifti(nifti(pixdim=[1, -1, -1, -1, 1, 1, 1, 1]))
    assert read.spacing_mm == (1, 1, 1)


@pytest.mark.parametrize("length", [0.0, -2.0])
def test_a_pixdim_of_0_is_no_length_of_1_mm_and_one_below_0_no_length_of_a_qform(length):
    """nibabel 5.4 takes 0 as 1 and -2 as 2; ITK 5.4 takes -2 as 2 and mirrors the axis."""
    image = nibabel.Nifti1Image(VOXELS, None)
    image.set_qform(np.diag([-2.0, -3.0, 4.0, 1.0]), 1)
    raw = bytearray(image.to_bytes())
    raw[80:84] = struct.pack("<f", length)  # pixdim[1]
    assert reason(bytes(raw)) == "bad_geometry"
    assert read_nifti(nifti(pixdim=[1, 0, 0, 0, 0, 0, 0, 0])).spacing_mm == (1, 1, 1)  # the sform says it


@pytest.mark.parametrize(
    "qfac, wanted", [(1.0, "read"), (0.0, "read"), (-1.0, "mirrored"), (-2.0, "bad_geometry"), (5.0, "bad_geometry")]
)
def test_qfac_is_1_or_minus_1_and_0_means_1(qfac, wanted):
    """Of another number nibabel makes 1, and nifti_clib its sign: the slices would run to the head or to the feet."""
    image = nibabel.Nifti1Image(VOXELS, None)
    image.set_qform(LPS, 1)
    raw = bytearray(image.to_bytes())
    raw[76:80] = struct.pack("<f", qfac)
    if wanted == "bad_geometry":
        assert reason(bytes(raw)) == wanted
    else:
        voxels = VOXELS if wanted == "read" else VOXELS[..., ::-1]
        assert np.array_equal(read_nifti(bytes(raw)).values, voxels.transpose(2, 1, 0))


@pytest.mark.parametrize("codes, unsure", [((1, 1), True), ((4, 1), True), ((2, 0), False), ((0, 1), False)])
def test_where_qform_and_sform_are_turned_against_each_other_the_turn_is_unsure(codes, unsure):
    turned = phantom.rotation((0, 0, 7)) @ LPS[:3, :3]
    image = nibabel.Nifti1Image(VOXELS, LPS)
    image.set_sform(LPS, codes[0])
    image.set_qform(phantom.centred(turned, (1, 1, 1), VOXELS.shape), codes[1])
    read = read_nifti(image.to_bytes())
    assert bool(read.turn_unsure) == unsure
    upright = ImagingSpec(size=(7, 6, 5), spacing_mm=(1, 1, 1), orientation="LPS", normalise="none")
    assert conform(read, upright).shape == (1, 7, 6, 5)  # the closest axes are the same
    patient = upright.model_copy(update={"grid": "patient"})
    if not unsure:
        assert conform(read, patient).shape == (1, 7, 6, 5)
        return
    with pytest.raises(SampleError, match=r"turned by 7\.0°") as caught:
        conform(read, patient)
    assert caught.value.reason == "bad_geometry"


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("unit, factor", [(1, 1000.0), (2, 1.0), (3, 0.001)])
def test_the_affine_is_in_mm_and_of_the_turned_voxels(kind, unit, factor):
    affine = phantom.centred(phantom.rotation((5, -12, 20)) @ phantom.ALL_AXES[17], (2.0, 3.0, 4.0), VOXELS.shape)
    image = read_nifti(nifti(affine=affine, kind=kind, xyzt_units=unit))
    assert image.affine_ras is not None
    d, h, w = np.unravel_index(image.values.argmax(), image.values.shape)
    i, j, k = np.unravel_index(VOXELS.argmax(), VOXELS.shape)
    assert np.allclose(image.affine_ras @ [w, h, d, 1], [*(affine @ [i, j, k, 1])[:3] * factor, 1], atol=1e-3 * factor)


def test_shear_between_slices_is_given_as_a_gantry_tilt_is():
    sheared = LPS @ np.array([[1, 0, 0, 0], [0, 1, 0.5, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]])
    image = read_nifti(nifti(affine=sheared))
    assert image.spacing_mm == (2.0, 1.0, 1.0) and image.slices_mm is not None
    assert image.slices_mm[3].tolist() == pytest.approx([6.0, 1.5, 0.0])  # normal, towards the back, to the left


def test_a_sheared_volume_is_straightened_by_its_slices():
    """A rod along the body: slice k of the sheared file has it k / 2 voxels further in front."""
    voxels = np.zeros((9, 21, 9), np.float32)
    for k in range(9):
        voxels[4, 14 - k // 2, k] = 2 if k % 2 == 0 else 1
        voxels[4, 13 - k // 2, k] = 0 if k % 2 == 0 else 1
    sheared = LPS @ np.array([[1, 0, 0, 0], [0, 1, 0.5, 0], [0, 0, 1.0, 0], [0, 0, 0, 1]])
    spec = ImagingSpec(size=(9, 25, 9), spacing_mm=(1, 1, 1), normalise="none")
    straight = conform(read_nifti(nifti(voxels, sheared)), spec)[0]
    rows = {int(plane[:, 4].argmax()) for plane in straight[::2]}
    assert len(rows) == 1


def test_shear_within_a_slice_and_slices_in_one_plane_are_bad_geometry():
    within = LPS @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert reason(nifti(affine=within)) == "bad_geometry"
    flat = LPS.copy()
    flat[:, 2] = [-1, 0, 0, 0]
    assert reason(nifti(affine=flat)) in ("bad_geometry", "corrupt")


# --- shapes and other formats ---------------------------------------------------------------------------------


def test_four_dimensions_with_one_volume_are_that_volume_and_others_are_refused():
    assert np.array_equal(read_nifti(nifti(VOXELS[..., None])).values, VOXELS.transpose(2, 1, 0))
    assert reason(nifti(np.stack([VOXELS] * 2, -1))) == "unsupported"
    assert reason(nifti(VOXELS[..., None, None].repeat(3, -1))) == "unsupported"  # vectors


def test_voxels_beyond_the_dimensions_are_a_contradiction():
    raw = nifti()
    header = nibabel.Nifti1Header(raw[:348])
    header["dim"][3] = 5
    assert reason(header.binaryblock + raw[348:]) == "corrupt"
    assert np.array_equal(read_nifti(raw + bytes(64)).values, read_nifti(raw).values)


@pytest.mark.parametrize("code, wanted", [
    (1002, "segmentation"), (1003, "segmentation"), (1006, "not_an_image"), (1007, "not_an_image"), (1008, "not_an_image"),
    (2003, "not_an_image"), (2006, "not_an_image"), (3006, "not_an_image"),
])  # fmt: skip
def test_labels_vectors_and_meshes_are_no_images_by_their_intent(code, wanted):
    assert reason(nifti(intent_code=code)) == wanted


@pytest.mark.parametrize("code", [0, 3, 5, 1001, 2001])
def test_statistics_are_read_and_say_so(code):
    raw = nifti(intent_code=code)
    assert np.array_equal(read_nifti(raw).values, VOXELS.transpose(2, 1, 0)) and grid(raw).intent == code
    assert of_nifti(raw, True).get("intent") == (code or None)


@pytest.mark.parametrize("offset", [0, 348, 351.5, 352.5, -16, float("nan"), float("inf")])
def test_voxels_that_begin_within_the_header_are_corrupt(offset):
    assert reason(nifti(vox_offset=offset)) == "corrupt"


def test_what_stands_between_header_and_voxels_is_skipped():
    raw = nifti()
    extension = struct.pack("<4B2i", 1, 0, 0, 0, 32, 4) + b"<x/>".ljust(24, b"\0")
    header = nibabel.Nifti1Header(raw[:348])
    header["vox_offset"] = 352 + 32
    assert np.array_equal(read_nifti(header.binaryblock + extension + raw[352:]).values, read_nifti(raw).values)


def film(points: int = 4, **fields) -> tuple[np.ndarray, bytes]:
    voxels = np.random.default_rng(2).integers(-99, 99, (5, 6, 7, points)).astype(np.int16)
    return voxels, nifti(voxels, **fields)


def test_each_volume_of_a_film_is_read_for_itself():
    voxels, raw = film(scl_slope=2.0, scl_inter=1.0)
    zipped = gzip.compress(raw[:4000]) + gzip.compress(raw[4000:])  # of two members
    for content in (raw, zipped):
        assert grid(content).points == 4
        for point in range(4):
            assert np.array_equal(read_nifti(content, point).values, voxels[..., point].transpose(2, 1, 0) * 2.0 + 1)
        assert reason(content) == "unsupported"
    with pytest.raises(SampleError, match="not there any more"):
        read_nifti(raw, 4)
    every = read_channels(zipped)
    assert (
        every.channels
        and every.shape == (7, 6, 5)
        and np.array_equal(every.values, voxels.transpose(3, 2, 1, 0) * 2.0 + 1)
    )


def test_the_first_volume_is_read_without_the_rest_of_the_file():
    """Of a file that is cut in its third volume the first two are whole."""
    _, raw = film()
    cut = raw[: 352 + 2 * 420 + 100]
    for content in (cut, gzip.compress(cut)):
        assert np.array_equal(read_nifti(content, 1).values, read_nifti(raw, 1).values)
        with pytest.raises(SampleError) as caught:
            read_nifti(content, 2)
        assert caught.value.reason == "truncated"
    half = gzip.compress(raw, 0)[:1200]  # cut in its first volume
    assert reason(half) in ("truncated", "unsupported")
    with pytest.raises(SampleError) as caught:
        read_nifti(half, 1)
    assert caught.value.reason == "truncated"


def test_no_more_is_unpacked_than_the_header_asks_for():
    """A file with 64 MiB of zeros behind 420 bytes of voxels, zipped; and a header that asks for far more than there is."""
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(1 << 20)
    bomb = packer.compress(nifti()) + b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush()
    tracemalloc.start()
    assert np.array_equal(read_nifti(bomb).values, read_nifti(nifti()).values)
    header = nibabel.Nifti1Header(nifti()[:348])
    header["dim"][1:4] = 30000
    wide = gzip.compress(header.binaryblock + nifti()[348:])
    assert reason(wide) == "truncated" and reason(header.binaryblock + nifti()[348:]) == "truncated"
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_negative_dimensions_are_corrupt():
    header = nibabel.Nifti1Header(nifti()[:348])
    header["dim"][1] = -5
    assert reason(header.binaryblock + nifti()[348:]) == "corrupt"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("magic", [b"ni1\0", b"\0\0\0\0"])
def test_analyze_and_pairs_are_told_by_name(order, magic):
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_shape((5, 6, 7))
    raw = header.binaryblock[:344] + magic
    assert is_nifti(raw) and sniff(raw) == "nifti"
    with pytest.raises(SampleError, match="pair" if magic[0] else "ANALYZE") as caught:
        read_nifti(raw)
    assert caught.value.reason == "unsupported"


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_file_that_ends_within_its_header_is_truncated(kind):
    raw = nifti(kind=kind)
    whole = kind.header_class.sizeof_hdr
    assert {reason(raw[:length]) for length in (whole - 1, whole, whole + 4)} <= {"truncated", "unsupported"}
    assert reason(raw[:whole]) == "truncated"


def test_a_zipped_file_is_the_same_file():
    assert np.array_equal(read_nifti(gzip.compress(nifti())).values, read_nifti(nifti()).values)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_headers_are_refused_or_read_and_nothing_is_printed(seed, capfd, caplog):
    local = np.random.default_rng(seed)
    for _ in range(40):
        raw = bytearray(nifti())
        for at in local.integers(0, 352, 3):
            raw[at] = local.integers(256)
        try:
            assert read_nifti(bytes(raw)).values.ndim == 3
        except SampleError as error:
            assert error.reason in ("corrupt", "unsupported", "truncated", "bad_geometry")
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_all_48_ways_that_axes_can_run_give_the_volume_that_nibabel_gives(axes):
    """nibabel's closest canonical volume runs to the right, the front and the head; ours to the left, the back, the head."""
    for signs in itertools.product((-1, 1), repeat=3):
        affine = np.zeros((4, 4))
        for column, (row, sign) in enumerate(zip(axes, signs, strict=True)):
            affine[row, column] = sign * (2 + column)
        affine[:, 3] = 5, -6, 7, 1
        raw = nifti(affine=affine, scl_slope=0.5, scl_inter=-3)
        canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(raw))
        read = read_nifti(raw)
        assert np.array_equal(read.values, canonical.get_fdata()[::-1, ::-1].transpose(2, 1, 0))
        assert read.spacing_mm == canonical.header.get_zooms()[::-1]
