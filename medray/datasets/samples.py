"""Samples: Arrow rows made from entries, their key columns, tensor columns and failed rows.

A sample row has the KEYS columns and the payload columns of its modality. A row whose `reason` is set has nothing to
score, because it failed or is not eligible (errors.NOT_ELIGIBLE): its payload is null and it takes part in nothing but
the count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from medray.storage.arrow import null_column

KEYS = pa.schema(
    [
        pa.field("entry_id", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),  # unique within its entry
        pa.field("subject_id", pa.string(), nullable=False),  # a keyed pseudonym, never a record number
        pa.field("fingerprint", pa.binary(16), nullable=False),  # xxh3_128 of the entry's content
        pa.field("split", pa.string()),
        pa.field("target", pa.list_(pa.float32())),  # class index, 0/1 per label, or value; null = unlabelled
        pa.field("reason", pa.string()),  # null = a good sample; else a key of errors.REASONS
        pa.field("detail", pa.string()),
        pa.field("facts", pa.string()),  # of its entry, JSON object (`archive/eligibility.py`)
    ]
)


def sample_schema(payload: pa.Schema) -> pa.Schema:
    """The schema of sample rows of a modality: KEYS, then the payload, nullable."""
    return pa.schema([*KEYS, *(field.with_nullable(True) for field in payload)])


def tensor_field(name: str, shape: Sequence[int], dtype: np.dtype | str, *, dims: str, unit: str = "") -> pa.Field:
    """A fixed-shape tensor column; `dims` names the axes ("C H W"), `unit` is the physical unit if there is one."""
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(np.dtype(dtype)), tuple(shape))
    return pa.field(name, kind, metadata={"dims": dims, "unit": unit})


def tensor_column(array: np.ndarray, valid: np.ndarray | None = None) -> pa.Array:
    """(N, *shape) array to a fixed-shape tensor column of N rows, without a copy; rows not `valid` (N,) are null."""
    array = np.ascontiguousarray(array)
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(array.dtype), array.shape[1:])
    values = pa.array(array.reshape(-1))
    width = int(np.prod(array.shape[1:]))
    mask = None if valid is None or bool(np.all(valid)) else pa.array(~np.asarray(valid, bool))
    if mask is None:
        storage = pa.FixedSizeListArray.from_arrays(values, width)
    else:
        storage = pa.FixedSizeListArray.from_arrays(values, width, mask=mask)
    return pa.ExtensionArray.from_storage(kind, storage)


def tensor_view(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A fixed-shape tensor column to its (N, *shape) array, read-only, without a copy where it is one chunk.

    Null rows hold unspecified numbers: select the good rows first.
    """
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks > 1:
            return np.concatenate([tensor_view(chunk) for chunk in column.chunks])
        column = column.chunk(0) if column.num_chunks else null_column(column.type, 0)
    storage = column.storage
    shape = tuple(column.type.shape)
    width = storage.type.list_size
    flat = storage.values.to_numpy(zero_copy_only=True)
    return flat[storage.offset * width : (storage.offset + len(storage)) * width].reshape(len(storage), *shape)


def good(samples: pa.RecordBatch) -> pa.RecordBatch:
    """The rows that are not failed; the same object when all are good."""
    reasons = samples.column("reason")
    return samples if reasons.null_count == len(samples) else samples.filter(reasons.is_null())


def failed(samples: pa.RecordBatch) -> pa.RecordBatch:
    """The failed rows."""
    return samples.filter(samples.column("reason").is_valid())


def stacked(targets: pa.ListArray) -> np.ndarray:
    """A list<float32> column of equal lengths to (B, T) float32."""
    values = np.array(targets.flatten().to_numpy(zero_copy_only=False), np.float32)
    return values.reshape(len(targets), -1)
