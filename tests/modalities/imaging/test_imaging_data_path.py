"""The short ways from a file to a sample give what the long one gives, to the bit: `conform`, `store` and float32 throughout."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydicom
import pytest
import torch
from dicom_build import CT, DX, dataset, encoded, placed
from nibabel.nifti1 import Nifti1Image

from medray.archive.entries import Entries, Entry, PartRef, digest
from medray.archive.ranges import range_of
from medray.datasets.samples import good, tensor_column, tensor_view
from medray.errors import SampleError
from medray.learning.predictor import to_device
from medray.modalities.base import read_arrays
from medray.modalities.imaging.encoding.conform import as_float32, conform, store
from medray.modalities.imaging.encoding.normalise import by_itself
from medray.modalities.imaging.encoding.stored import stored_pixels
from medray.modalities.imaging.formats.dicom import classic
from medray.modalities.imaging.formats.dicom import pixels as dicom
from medray.modalities.imaging.formats.dicom.header import parse
from medray.modalities.imaging.formats.image import Image, narrowed
from medray.modalities.imaging.formats.nifti import read_nifti
from medray.modalities.imaging.modality import Imaging
from medray.modalities.imaging.spec import ImagingSpec
from medray.storage.arrow import joined
from medray.verbs.stages import Read

BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
SIZE = (6, 8)
RAMP = np.arange(48).reshape(SIZE)
LINES: dict[str, tuple[np.ndarray, dict[str, object], str]] = {
    "as stored": (RAMP.astype("u2"), {}, "int16"),
    "of 8 bits": (RAMP.astype("u1"), {}, "int16"),
    "signed": ((RAMP - 20).astype("i2"), {}, "int16"),
    "up to 32767": ((RAMP + 32767 - 47).astype("u2"), {}, "int16"),
    "beyond int16": ((RAMP + 32768 - 47).astype("u2"), {}, "float32"),
    "HU": ((RAMP * 80).astype("u2"), {"RescaleSlope": 1, "RescaleIntercept": -1024}, "int16"),
    "HU down to -32768": ((RAMP - 31744).astype("i2"), {"RescaleSlope": 1, "RescaleIntercept": -1024}, "int16"),
    "HU below -32768": ((RAMP - 31745).astype("i2"), {"RescaleSlope": 1, "RescaleIntercept": -1024}, "float32"),
    "brought into int16": ((RAMP + 65535 - 47).astype("u2"), {"RescaleSlope": 1, "RescaleIntercept": -33000}, "int16"),
    "steps of 3": (RAMP.astype("u2"), {"RescaleSlope": 3, "RescaleIntercept": 7}, "int16"),
    "8 bits, steps of 200": (RAMP.astype("u1"), {"RescaleSlope": 200, "RescaleIntercept": 0}, "int16"),
    "8 bits, beyond int16": ((RAMP + 200).astype("u1"), {"RescaleSlope": 200, "RescaleIntercept": 0}, "float32"),
    "falling": (RAMP.astype("u2"), {"RescaleSlope": -1, "RescaleIntercept": 0}, "float32"),
    "halves": (RAMP.astype("u2"), {"RescaleSlope": 0.5, "RescaleIntercept": 0}, "float32"),
    "an intercept between": (RAMP.astype("u2"), {"RescaleSlope": 1, "RescaleIntercept": 0.25}, "float32"),
    "padded": (RAMP.astype("u2"), {"PixelPaddingValue": 47}, "int16"),
    "mirrored": (RAMP.astype("u1"), {"PhotometricInterpretation": "MONOCHROME1"}, "int16"),
}


def one_file(folder: Path, name: str, pixels: np.ndarray, **elements: object) -> Entry:
    """A radiograph where it is to be mirrored, else a CT."""
    mirrored = "PhotometricInterpretation" in elements
    made = dataset(pixels, instance=name, sop_class=DX if mirrored else CT, modality="DX" if mirrored else "CT")
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    (folder / name).write_bytes(encoded(made))
    return Entry(name, "s", bytes(16), (PartRef(str(folder / name), ""),))


def the_long_way(modality: Imaging, entry: Entry) -> np.ndarray:
    """(C, *size) in the storage dtype, through float32."""
    image, spec = modality.image(entry), modality.spec
    return store(by_itself(conform(image, spec), image, spec), spec)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def encoded_bits(modality: Imaging, samples: pa.RecordBatch) -> bytes:
    batch = to_device(modality.collate(samples), torch.device("cpu"), writes=modality.writes_to_batch)
    return bits(modality.encode(batch)["pixels"])


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize(
    "settings",
    [
        {"mean": (3.0,), "std": (7.0,)},
        {"normalise": "none"},
        {"normalise": "none", "window": (10.0, 30.0)},
        {"channels": 3, "normalise": "none"},
    ],
)
def test_the_network_sees_the_same_bits_of_narrow_samples(tmp_path, name, settings):
    pixels, elements, dtype = LINES[name]
    entry = one_file(tmp_path, "a", pixels, **elements)
    modality = Imaging(ImagingSpec(size=SIZE, **settings))
    wide, narrow = modality.read([entry]), modality.read_narrow([entry])
    assert tensor_view(wide["pixels"]).dtype == np.float32 and tensor_view(narrow["pixels"]).dtype == dtype
    assert tensor_view(wide["pixels"])[0].tobytes() == the_long_way(modality, entry).tobytes()
    assert encoded_bits(modality, wide) == encoded_bits(modality, narrow)


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_a_sample_has_the_bits_of_the_long_way_or_fails_as_it_does(tmp_path, name, dtype):
    pixels, elements, _ = LINES[name]
    entry = one_file(tmp_path, "a", pixels, **elements)
    modality = Imaging(ImagingSpec(size=SIZE, dtype=dtype))
    try:
        wanted, refusal = the_long_way(modality, entry), (None, None)
    except SampleError as error:
        wanted, refusal = None, (error.reason, error.detail)
    sample = modality.read([entry])
    assert (sample["reason"][0].as_py(), sample["detail"][0].as_py()) == refusal
    if wanted is not None:
        assert tensor_view(sample["pixels"])[0].tobytes() == wanted.tobytes()
        assert tensor_view(sample["pixels"]).dtype == wanted.dtype == dtype


def test_a_batch_is_as_wide_as_its_widest_image_and_failed_rows_hold_nothing(tmp_path):
    names = ("as stored", "signed", "halves", "HU")
    entries = [one_file(tmp_path, name, LINES[name][0], **LINES[name][1]) for name in names]
    broken = Entry("b", "s", bytes(16), (PartRef(str(tmp_path / "absent"), ""),))
    modality = Imaging(ImagingSpec(size=SIZE, normalise="none"))
    narrow = modality.read_narrow([entries[0], broken, entries[1]])
    assert tensor_view(narrow["pixels"]).dtype == np.int16 and not tensor_view(narrow["pixels"])[1].any()
    assert narrow["reason"].to_pylist() == [None, "missing_file", None]
    assert narrow["pixels"].is_null().to_pylist() == [False, True, False]
    wide = modality.read_narrow([*entries[:2], broken, *entries[2:]])
    assert tensor_view(wide["pixels"]).dtype == np.float32
    alone = [tensor_view(modality.read([entry])["pixels"])[0] for entry in entries]
    assert np.array_equal(tensor_view(wide["pixels"])[[0, 1, 3, 4]], alone)
    assert modality.read_narrow([broken, broken])["reason"].to_pylist() == ["missing_file"] * 2


def test_narrow_and_wide_batches_are_joined_as_wide_ones():
    narrow, wide = np.arange(6, dtype=np.int16).reshape(3, 2), np.array([[0.5, 1.5]], np.float32)
    nothing = tensor_column(np.zeros((1, 2), np.float32), np.array([False]))
    batches = [pa.record_batch([each], names=["x"]) for each in (tensor_column(narrow), nothing, tensor_column(wide))]
    both = joined([batches[0].slice(1), *batches[1:]])["x"]
    assert both.is_null().to_pylist() == [False, False, True, False]
    assert tensor_view(both).dtype == np.float32 and tensor_view(both)[[0, 1, 3]].tolist() == [
        [2, 3],
        [4, 5],
        [0.5, 1.5],
    ]


def test_rows_that_failed_before_leave_the_others_narrow(tmp_path, index):
    for name in ("as stored", "signed", "HU"):
        one_file(tmp_path, name, LINES[name][0], **LINES[name][1])
    (tmp_path / "broken").write_bytes(b"no image")
    spec = ImagingSpec(size=SIZE, normalise="none")
    rows = joined(index(Imaging(spec), tmp_path).to_batches())
    wide, narrow = Read(spec)(rows), Read(spec, narrow=True)(rows)
    assert sorted(filter(None, narrow["reason"].to_pylist())) == ["unrecognised_format"]
    assert tensor_view(good(narrow)["pixels"]).dtype == np.int16
    assert np.array_equal(tensor_view(good(narrow)["pixels"]), tensor_view(good(wide)["pixels"]))
    names = [name for name in wide.schema.names if name != "pixels"]
    assert narrow.select(names) == wide.select(names)


def test_how_bright_an_image_is_and_whether_it_was_replaced_is_told_of_narrow_samples_too(tmp_path):
    spec = ImagingSpec(size=SIZE, mean=(3.0,), std=(7.0,), trained_ranges={"grey_mean": range_of(np.arange(9.0))})
    modality = Imaging(spec)
    entry = one_file(tmp_path, "a", LINES["HU"][0], **LINES["HU"][1])
    wide, narrow = (modality.measures(each([entry])) for each in (modality.read, modality.read_narrow))
    assert narrow.keys() == wide.keys() and all(np.array_equal(narrow[name], wide[name]) for name in wide)
    raw = (tmp_path / "a").read_bytes()
    known = Entry("a", "s", bytes(16), (PartRef(str(tmp_path / "a"), "", digest(raw)),))
    assert modality.read_narrow([known])["reason"].to_pylist() == [None]
    for other in (raw[:-1] + b"\7", raw[:-2], b"", raw[:200]):
        (tmp_path / "a").write_bytes(other)
        assert modality.read_narrow([known])["reason"].to_pylist() == ["changed"]


def test_samples_of_a_modality_made_of_this_one_stay_as_wide_as_it_expects_them(tmp_path):
    class Own(Imaging):
        pass

    entry = one_file(tmp_path, "a", LINES["as stored"][0])
    assert tensor_view(Own(ImagingSpec(size=SIZE)).read_narrow([entry])["pixels"]).dtype == np.float32


def test_arrays_are_written_into_one_batch_that_takes_no_number_it_cannot_hold(tmp_path):
    payload = Imaging(ImagingSpec(size=(1, 2), dtype="int16")).payload
    entries = [Entry(str(n), "s", bytes(16), ()) for n in range(3)]
    arrays = {
        "0": np.array([[[1, 2]]], np.int16),
        "1": np.array([[[3, 4]]], np.uint8),
        "2": np.array([[[5, 6]]], np.int16),
    }
    rows = read_arrays(entries, lambda entry: arrays[entry.entry_id], payload)
    assert tensor_view(rows["pixels"])[:, 0, 0].tolist() == [[1, 2], [3, 4], [5, 6]]
    with pytest.raises(TypeError, match="Cannot cast"):
        read_arrays(entries, lambda entry: np.array([[[0.5, 1]]]), payload)


def test_encoding_writes_to_no_sample_and_a_network_gets_memory_of_its_own(tmp_path):
    entry = one_file(tmp_path, "a", LINES["halves"][0], RescaleSlope=0.5, RescaleIntercept=0)
    for settings in (
        {"normalise": "none"},
        {"normalise": "none", "window": (10.0, 30.0)},
        {"mean": (3.0,), "std": (7.0,)},
        {"normalise": "none", "dtype": "uint8", "resize": "nearest"},
    ):
        modality = Imaging(ImagingSpec(size=SIZE, **settings))
        samples = modality.read_narrow([entry, entry])
        before = tensor_view(samples["pixels"]).tobytes()
        given = to_device(modality.collate(samples), torch.device("cpu"), writes=modality.writes_to_batch)
        assert given["pixels"].data_ptr() == tensor_view(samples["pixels"]).ctypes.data
        modality.encode(given)["pixels"].zero_()
        assert tensor_view(samples["pixels"]).tobytes() == before


def test_what_may_write_to_its_batch_gets_a_copy():
    column = tensor_column(np.ones((2, 3), np.float32))
    given = to_device({"x": tensor_view(column)}, torch.device("cpu"))
    given["x"].zero_()
    assert tensor_view(column).all()


# --- descriptions that are remembered -----------------------------------------------------------------------------


def test_a_file_described_as_good_ones_were_is_still_looked_at(tmp_path):
    whole = encoded(dataset(RAMP.astype("u2")))
    first = dicom.read_image(whole).values
    of = classic.described(parse(whole))
    assert of is not None and of.shape == SIZE and np.array_equal(first, RAMP)
    with pytest.raises(SampleError, match="94 of 96 bytes") as caught:
        dicom.read_image(whole[:-2])
    assert caught.value.reason == "truncated"
    longer = dataset(RAMP.astype("u2"))
    longer.PixelData += b"\1\0"
    with pytest.raises(SampleError, match="rows, columns, frames and bits make 96"):
        dicom.read_image(encoded(longer))
    zeros = dataset(RAMP.astype("u2"))
    zeros.PixelData += bytes(8)
    assert np.array_equal(dicom.read_image(encoded(zeros)).values, RAMP)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"BitsStored": 17}, "corrupt"),
        ({"NumberOfFrames": 2}, "unsupported"),
        ({"SamplesPerPixel": 3}, "corrupt"),
        ({"PixelRepresentation": 2}, "corrupt"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "unsupported"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "segmentation"),
        ({"Rows": 0}, "corrupt"),
    ],
)
def test_another_description_is_found_out_anew(change, reason):
    pixels = np.zeros((2, *SIZE), "u2")
    made = dataset(pixels[0])
    assert dicom.read_image(encoded(made)).values.shape == SIZE
    made.PixelData = pixels.tobytes() if "NumberOfFrames" in change else made.PixelData
    for keyword, value in change.items():
        setattr(made, keyword, value)
    for _ in range(2):
        with pytest.raises(SampleError) as caught:
            dicom.read_image(encoded(made))
        assert caught.value.reason == reason


def test_more_descriptions_than_are_remembered_change_nothing(monkeypatch):
    monkeypatch.setattr(classic, "MOST", 2)
    files = [encoded(dataset(np.full((2, columns), columns, "u2"))) for columns in range(1, 8)]
    for _ in range(2):
        for columns, raw in enumerate(files, start=1):
            values = dicom.read_image(raw).values
            assert values.shape == (2, columns) and (values == columns).all()


# --- volumes ------------------------------------------------------------------------------------------------------


def slices(folder: Path, pixels: Sequence[np.ndarray], *rescales: tuple[float, float] | None) -> Entry:
    """A CT of these slices, each with its own rescale."""
    parts: list[PartRef] = []
    for k, (each, rescale) in enumerate(zip(pixels, rescales or [None] * len(pixels), strict=True)):
        made = placed(dataset(each, instance=k, SeriesNumber=1, FrameOfReferenceUID="1.2.3"), (0, 0, 1.0 * k))
        if rescale is not None:
            made.RescaleSlope, made.RescaleIntercept, made.RescaleType = *rescale, "HU"
        (folder / f"{k}").write_bytes(encoded(made))
        parts.append(PartRef(str(folder / f"{k}"), ""))
    return Entry("e", "s", bytes(16), tuple(parts))


LARGE = RAMP + 65535 - 47
VOLUMES = {
    "small numbers": ([RAMP.astype("u2")] * 3, ()),
    "the middle one beyond int16": ([RAMP.astype("u2"), LARGE.astype("u2"), RAMP.astype("u2")], ()),
    "the first beyond int16": ([LARGE.astype("u2"), RAMP.astype("u2"), RAMP.astype("u2")], ()),
    "HU": ([RAMP.astype("u2")] * 3, ((1, -1024),) * 3),
    "HU, one beyond int16": ([RAMP.astype("u2"), LARGE.astype("u2"), RAMP.astype("u2")], ((1, -1024),) * 3),
    "halves": ([RAMP.astype("u2")] * 3, ((0.5, -1),) * 3),
    "signed": ([(RAMP - 99).astype("i2")] * 3, ()),
    "of 8 bits": ([RAMP.astype("u1")] * 3, ()),
}


def plain_store(values: np.ndarray, spec: ImagingSpec) -> np.ndarray:
    """`store` of a whole array at once."""
    if spec.stored_window and spec.window is not None:
        values = np.clip((values - spec.window[0]) / spec.window[1] + 0.5, 0, 1) * 255
    limits = np.iinfo(spec.dtype)
    return np.rint(values).clip(limits.min, limits.max).astype(spec.dtype)


@pytest.mark.parametrize("name", VOLUMES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dtype": "int16"},
        {"dtype": "uint8"},
        {"dtype": "uint8", "window": (20.0, 70.0)},
        {"dtype": "int16", "channels": 3},
        {"dtype": "int16", "orientation": "RAS"},
        {"dtype": "float32", "orientation": "RAS", "resize": "pad"},
        {"dtype": "uint8", "window": (20.0, 70.0), "orientation": "LPS", "channels": 3},
    ],
)
def test_a_volume_has_the_bits_of_the_long_way_or_fails_as_it_does(tmp_path, name, settings):
    entry = slices(tmp_path, VOLUMES[name][0], *VOLUMES[name][1])
    modality = Imaging(ImagingSpec(size=(3, *SIZE), normalise="none", **settings))
    assert compared(modality, [entry]) == (0 if modality.read([entry])["reason"][0].as_py() else 1)
    assert compared(modality, [entry, entry]) in (0, 2)


@pytest.mark.parametrize("dtype, window", [("uint8", (20.0, 70.0)), ("uint8", (0.1, 0.3)), ("int16", None)])
def test_stored_plane_by_plane_is_stored_at_once(dtype, window):
    values = np.random.default_rng(0).normal(20, 60, (2, 3, 5, 7)).astype(np.float32)
    values[0, 0] = np.arange(35).reshape(5, 7) + 0.5  # ties
    spec = ImagingSpec(size=(3, 5, 7), dtype=dtype, window=window)
    assert store(values, spec).tobytes() == plain_store(values, spec).tobytes()
    whole = np.arange(-105, 105, dtype=np.int16).reshape(2, 3, 5, 7)
    assert store(whole, spec).tobytes() == plain_store(whole.astype(np.float32), spec).tobytes()


def test_values_beyond_the_range_are_told_from_large_ones():
    large = np.full((4, 4), 3e38)
    signs = np.array([1, -1, 1, -1], np.float32)
    for each in (large, large.astype(np.float32) * signs):
        assert np.array_equal(as_float32(each), each.astype(np.float32))
    for bad, count in (([np.nan], 1), ([np.inf, -np.inf], 2), ([1e39, 3e38], 1), ([3e38, np.nan], 1)):
        with pytest.raises(SampleError, match=f"{count} values are NaN"):
            as_float32(np.array([*bad, 1.0]))


@pytest.mark.parametrize("slope, intercept", [(0.1, -7.3), (-1.0, 0.0), (2.0, 5.0), (1e-3, 1e6)])
def test_the_line_of_a_nifti_file_is_rounded_once(slope, intercept):
    voxels = np.random.default_rng(0).integers(-3000, 3000, (5, 6, 7)).astype(np.int16)
    made = Nifti1Image(voxels, np.diag([1.5, -1.0, 2.0, 1.0]))
    made.header.set_slope_inter(slope, intercept)
    stored = voxels[::-1].transpose(2, 1, 0)  # towards left, back and head
    told = [float(np.float32(number)) for number in (slope, intercept)]
    wanted = (stored.astype(np.float64) * told[0] + told[1]).astype(np.float32)
    for raw in (made.to_bytes(), gzip.compress(made.to_bytes())):
        found = read_nifti(raw).values
        assert found.flags.c_contiguous and found.tobytes() == np.ascontiguousarray(wanted).tobytes()


# --- real files ----------------------------------------------------------------------------------------------------


def compared(modality: Imaging, entries: Sequence[Entry]) -> int:
    """How many samples were compared with the long way, read together and each alone, wide and narrow."""
    outcomes: list[np.ndarray | tuple[str, str | None]] = []
    for entry in entries:
        try:
            outcomes.append(the_long_way(modality, entry))
        except (SampleError, OSError) as error:
            outcomes.append((error.reason, error.detail) if isinstance(error, SampleError) else ("", None))
    for rows in (modality.read(entries), modality.read_narrow(entries)):
        for row, outcome in enumerate(outcomes):
            if isinstance(outcome, tuple):
                assert (rows["reason"][row].as_py(), rows["detail"][row].as_py()) == outcome
                continue
            assert rows["reason"][row].as_py() is None
            found = tensor_view(rows.slice(row, 1)["pixels"])[0]
            assert (
                np.array_equal(found, outcome)
                and not (np.signbit(outcome) & (outcome == 0) & (found.dtype != "f4")).any()
            )
    return sum(not isinstance(each, tuple) for each in outcomes)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_the_files_that_pydicom_brings_along(index, dtype):
    flat = Imaging(ImagingSpec(size=(128, 128), dtype=dtype, frames="middle", normalise="none"))
    entries = [each for each in Entries(index(flat, BUNDLED)) if each.reason is None]
    own = Imaging(ImagingSpec(size=(64, 64), dtype=dtype, frames="middle", normalise="none"))
    assert compared(flat, entries) > 50 and compared(own, entries) > 50


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_series_of_the_shared_data(shared_data, index, dtype):
    root = shared_data / "imaging" / "dicom"
    probe = Imaging(ImagingSpec(size=(4, 16, 16), volumes="each", gaps="keep"))
    for name in ("ct_philips_head5mm", "mr_transfer_syntaxes"):
        entries = [each for each in Entries(index(probe, root / name)) if each.reason is None]
        shape = probe.image(entries[0]).shape
        for orientation in ("stored", "RAS"):
            settings = {"volumes": "each", "gaps": "keep", "normalise": "none", "orientation": orientation}
            assert compared(Imaging(ImagingSpec(size=shape, dtype=dtype, **settings)), entries[:2])


@pytest.mark.parametrize("dtype", [">i2", ">u2", "<i2", "<u2"])
def test_numbers_of_either_order_of_bytes_are_the_same(dtype):
    values = np.arange(250, 262).astype(dtype).reshape(3, 4)
    assert narrowed(values).dtype == np.int16 and narrowed(values).tolist() == values.tolist()
    for stored in ("int16", "float32"):
        pixels = stored_pixels(Image(values), ImagingSpec(size=(3, 4), dtype=stored))
        assert pixels.tolist() == [values.tolist()]
