"""Samples: tensor columns without copies, failed rows, batches of any size. And errors that cross processes."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from medray.datasets.samples import KEYS, failed, good, sample_schema, tensor_column, tensor_field, tensor_view
from medray.errors import REASONS, RunFileError, SampleError
from medray.storage.arrow import joined, null_column, rebatch

IMAGE = tensor_field("image", (1, 2, 3), np.uint8, dims="C H W")


def samples(rows: int, reasons: dict[int, str] | None = None) -> pa.RecordBatch:
    """`rows` samples; sample i is an image of all i, or failed where `reasons` names it."""
    why = [(reasons or {}).get(i) for i in range(rows)]
    pixels = np.repeat(np.arange(rows, dtype=np.uint8), 6).reshape(rows, 1, 2, 3)
    columns = {
        "entry_id": pa.array([f"e{i}" for i in range(rows)], pa.string()),
        "sample_id": pa.array(["0"] * rows, pa.string()),
        "subject_id": pa.array(["s"] * rows, pa.string()),
        "fingerprint": pa.array([b"0" * 16] * rows, pa.binary(16)),
        "split": pa.nulls(rows, pa.string()),
        "target": pa.nulls(rows, pa.list_(pa.float32())),
        "reason": pa.array(why, pa.string()),
        "detail": pa.nulls(rows, pa.string()),
        "facts": pa.nulls(rows, pa.string()),
        "image": tensor_column(pixels, np.array([reason is None for reason in why], bool)),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=sample_schema(pa.schema([IMAGE])))


def ids(batches: list[pa.RecordBatch]) -> list[list[str]]:
    return [batch.column("entry_id").to_pylist() for batch in batches]


# --- tensor columns -------------------------------------------------------------------------------------------


def test_an_array_becomes_a_column_and_back_without_a_copy():
    pixels = np.arange(24, dtype=np.int16).reshape(4, 1, 2, 3)
    view = tensor_view(tensor_column(pixels))
    assert np.shares_memory(view, pixels)
    np.testing.assert_array_equal(view, pixels)


def test_a_slice_of_a_column_is_the_slice_of_the_array():
    pixels = np.arange(24, dtype=np.float32).reshape(4, 1, 2, 3)
    view = tensor_view(tensor_column(pixels).slice(1, 2))
    assert np.shares_memory(view, pixels)
    np.testing.assert_array_equal(view, pixels[1:3])


def test_chunks_are_joined_in_order():
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 1, 2, 3)
    chunks = pa.chunked_array([tensor_column(pixels[:1]), tensor_column(pixels[1:])])
    np.testing.assert_array_equal(tensor_view(chunks), pixels)


@pytest.mark.parametrize("chunks", [0, 1])
def test_a_column_without_rows_keeps_its_shape(chunks: int):
    kind = IMAGE.type
    column = pa.chunked_array([null_column(kind, 0)] * chunks, kind)
    assert tensor_view(column).shape == (0, 1, 2, 3)
    assert tensor_view(column).dtype == np.uint8


def test_a_tensor_field_names_its_dims_and_unit():
    field = tensor_field("volume", (4, 5), "float32", dims="D H", unit="HU")
    assert field.metadata == {b"dims": b"D H", b"unit": b"HU"}
    assert list(field.type.shape) == [4, 5]


def test_rows_that_are_not_valid_are_null():
    column = samples(3, {1: "truncated"}).column("image")
    assert column.is_null().to_pylist() == [False, True, False]
    assert null_column(IMAGE.type, 2).null_count == 2
    assert null_column(pa.string(), 2).to_pylist() == [None, None]


# --- failed rows ----------------------------------------------------------------------------------------------


def test_good_and_failed_rows_part_without_a_rest():
    batch = samples(4, {1: "truncated", 3: "empty_file"})
    assert ids([good(batch), failed(batch)]) == [["e0", "e2"], ["e1", "e3"]]
    np.testing.assert_array_equal(tensor_view(good(batch).column("image"))[:, 0, 0, 0], [0, 2])


def test_a_batch_of_good_rows_is_not_copied():
    batch = samples(2)
    assert good(batch) is batch


def test_sample_columns_are_the_keys_then_the_payload():
    assert sample_schema(pa.schema([IMAGE])).names == [*KEYS.names, "image"]


# --- batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[10], [0, 10, 0], [1] * 10, [3, 4, 3], [4, 4, 2]])
@pytest.mark.parametrize("rows", [1, 3, 4, 10, 11])
def test_rebatching_keeps_every_row_once_and_in_order(pieces: list[int], rows: int):
    whole = samples(10)
    starts = np.cumsum([0, *pieces])
    batches = list(rebatch((whole.slice(s, n) for s, n in zip(starts, pieces, strict=False)), rows))
    assert [len(batch) for batch in batches[:-1]] == [rows] * (len(batches) - 1)
    assert 0 < len(batches[-1]) <= rows
    assert pa.Table.from_batches(batches).column("entry_id").to_pylist() == [f"e{i}" for i in range(10)]
    pixels = np.concatenate([tensor_view(batch.column("image")) for batch in batches])
    np.testing.assert_array_equal(pixels, tensor_view(whole.column("image")))


def test_rebatching_nothing_gives_nothing():
    assert list(rebatch([], 3)) == []
    assert list(rebatch([samples(0)], 3)) == []


def test_rebatching_takes_no_more_than_it_needs():
    taken = []

    def source():
        for i in range(4):
            taken.append(i)
            yield samples(2)

    next(rebatch(source(), 3))
    assert taken == [0, 1]


def test_a_batch_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="at least one row, found 0"):
        next(rebatch([samples(1)], 0))


def test_joining_one_batch_does_not_copy_it():
    batch = samples(2)
    assert joined([batch]) is batch


# --- errors ---------------------------------------------------------------------------------------------------


def test_errors_come_back_whole_from_another_process():
    error = RunFileError("unknown key", where="a.toml:3", found="x", expected="y", do="z")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.exit_code) == (RunFileError, str(error), 2)
    assert str(copy) == "a.toml:3: unknown key\n  found: x\n  expected: y\n  what to do: z"

    sample = pickle.loads(pickle.dumps(SampleError("truncated", "12 of 20 bytes")))
    assert (sample.reason, sample.detail, str(sample)) == ("truncated", "12 of 20 bytes", "truncated: 12 of 20 bytes")


def test_a_reason_without_a_meaning_is_refused():
    assert str(SampleError("empty_file")) == f"empty_file: {REASONS['empty_file']}"
    with pytest.raises(ValueError, match="unknown reason code 'oops'"):
        SampleError("oops")
