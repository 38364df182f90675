"""Random access to samples for training: one memory-mapped file per shard and node, and batches gathered from many."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pyarrow as pa

from medray.datasets.samples import KEYS
from medray.datasets.shards.index import Shard, ShardSet
from medray.datasets.shards.parquet import bitmap, read_samples
from medray.errors import LabelError
from medray.storage import files, modes

BATCH_KEYS = ("entry_id", "sample_id", "subject_id", "target")
"""Key columns that a gathered batch has by default; the payload follows."""


# --- the cache of a node --------------------------------------------------------------------------------------


def cached(shard: Shard, folder: str | Path) -> pa.RecordBatch:
    """The samples of a shard, memory-mapped from an uncompressed Arrow file in `folder` on this machine.

    The first process that asks decodes the Parquet file, the others wait for it: once per node, not once per worker
    and epoch. All of them share its pages. A shard's name is never reused, so a file that is there is right.
    """
    batch = _cached(shard, Path(folder), wait=True)
    assert batch is not None
    return batch


def _cached(shard: Shard, folder: Path, *, wait: bool) -> pa.RecordBatch | None:
    """As `cached`; without `wait`, None while another process decodes this shard."""
    import fcntl

    copy = folder / (shard.uri.rsplit("/", 1)[-1].removesuffix(".parquet") + ".arrow")
    if copy.exists():
        with suppress(pa.ArrowInvalid, OSError):  # spoilt, as on a full disk: it is decoded again below
            return _mapped(copy)
        copy.unlink(missing_ok=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with modes.opened_new(copy.with_suffix(".lock")) as lock:  # the kernel frees it when its holder is killed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return None
        if not copy.exists():
            _decode(shard, copy)
    return _mapped(copy)


def _decode(shard: Shard, copy: Path) -> None:
    samples = read_samples(shard.uri)
    draft = copy.with_name(f"{copy.stem}.{uuid.uuid4().hex}.tmp")
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # of patients: nobody else reads it
        with pa.OSFile(str(draft), "wb") as stream, pa.ipc.new_file(stream, samples.schema) as writer:
            writer.write_batch(samples)
        files.sync_file(draft)
        os.replace(draft, copy)
    finally:
        draft.unlink(missing_ok=True)


def _mapped(copy: Path) -> pa.RecordBatch:
    with pa.memory_map(str(copy)) as source:
        return pa.ipc.open_file(source).get_batch(0)


# --- rows from many shards ------------------------------------------------------------------------------------


class _Fixed(NamedTuple):
    """A column whose values have one width: (N, width) bytes, and (N,) valid where some are null."""

    data: np.ndarray
    valid: np.ndarray | None


class _Varied(NamedTuple):
    """A column of strings or flat lists: (N + 1,) offsets into (M, width) bytes."""

    offsets: np.ndarray
    data: np.ndarray
    valid: np.ndarray | None


def _width(kind: pa.DataType) -> int | None:
    """Bytes of a value of fixed width; None for any other type."""
    if pa.types.is_fixed_size_binary(kind):
        return kind.byte_width
    if pa.types.is_primitive(kind) and kind.bit_width % 8 == 0:
        return kind.bit_width // 8
    return None


def _bytes(values: pa.Array, width: int, buffer: int = 1) -> np.ndarray:
    """(N, width) uint8 view of a column of fixed width."""
    data = values.buffers()[buffer]
    if data is None:
        return np.empty((0, width), np.uint8)
    whole = np.frombuffer(data, np.uint8)
    return whole[values.offset * width : (values.offset + len(values)) * width].reshape(len(values), width)


def _view(column: pa.Array) -> _Fixed | _Varied | None:
    """The memory of a column, without a copy; None for a type or nulls that need Arrow's own `take`."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    kind = column.type
    valid = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None
    if (width := _width(kind)) is not None:
        return _Fixed(_bytes(column, width), valid)
    if pa.types.is_fixed_size_list(kind):
        width, items = _width(kind.value_type), kind.list_size
        values = column.values.slice(column.offset * items, len(column) * items)
        if width is None or values.null_count:
            return None
        return _Fixed(_bytes(values, width).reshape(len(column), items * width), valid)
    large = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind) or pa.types.is_large_list(kind)
    if large or pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_list(kind):
        buffers = column.buffers()
        offsets = np.frombuffer(buffers[1] or b"\0" * 8, np.int64 if large else np.int32)
        offsets = offsets[column.offset : column.offset + len(column) + 1]
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            return _Varied(offsets, np.frombuffer(buffers[2] or b"", np.uint8)[:, None], valid)
        width = _width(kind.value_type)
        if width is not None and not column.values.null_count:
            return _Varied(offsets, _bytes(column.values, width), valid)
    return None


class Gatherer:
    """Batches of one schema, and any rows of them in any order. Their memory is looked at once, never copied whole."""

    def __init__(
        self, batches: Sequence[pa.RecordBatch] | Mapping[int, pa.RecordBatch], columns: Sequence[str]
    ) -> None:
        self.batches, self.columns = batches, tuple(columns)
        self._views: dict[int, list[_Fixed | _Varied | None]] = {}

    def gather(self, shard: np.ndarray, row: np.ndarray) -> pa.RecordBatch:
        """Row `row[i]` of batch `shard[i]` for each i, in this order; (n,) integers each, n at least 1.

        One copy from the mapped file into the new batch. Raises IndexError, or KeyError for an unknown batch.
        """
        shards, rows = np.asarray(shard).tolist(), np.asarray(row).tolist()
        if min(rows) < 0:
            raise IndexError("a row number is negative")
        first = self.batches[shards[0]].select(self.columns)
        for i in set(shards) - self._views.keys():
            batch = self.batches[i].select(self.columns)
            if not batch.schema.equals(first.schema):
                raise ValueError(f"batch {i} has another schema than batch {shards[0]}")
            self._views[i] = [_view(column) for column in batch.columns]
        picked = [self._views[i] for i in shards]
        arrays: list[pa.Array] = []
        for c, field in enumerate(first.schema):
            views = [views[c] for views in picked]
            if all(type(view) is _Fixed for view in views):
                arrays.append(_gather_fixed(cast("list[_Fixed]", views), rows, field.type))
            elif all(type(view) is _Varied for view in views):
                arrays.append(_gather_varied(cast("list[_Varied]", views), rows, field.type))
            else:
                arrays.append(self._take(field.name, np.asarray(shard), np.asarray(row)))
        return pa.RecordBatch.from_arrays(arrays, schema=first.schema)

    def _take(self, name: str, shard: np.ndarray, row: np.ndarray) -> pa.Array:
        """Any type, by Arrow's `take`: shard by shard, then into the order asked for."""
        order = np.argsort(shard, kind="stable")
        parts = [
            self.batches[int(i)].column(name).take(pa.array(row[order][shard[order] == i])) for i in np.unique(shard)
        ]
        return pa.concat_arrays(parts).take(pa.array(np.argsort(order)))


def _gather_fixed(views: list[_Fixed], rows: list[int], kind: pa.DataType) -> pa.Array:
    data = np.empty((len(rows), views[0].data.shape[1]), np.uint8)
    numbers_of: dict[int, list[int]] = {}
    for i, view in enumerate(views):
        numbers_of.setdefault(id(view), []).append(i)
    if 2 * len(numbers_of) < len(rows):  # several rows of a shard: one call for them all
        picked = np.asarray(rows)
        for numbers in numbers_of.values():
            data[numbers] = views[numbers[0]].data[picked[numbers]]
    else:
        for i, (view, row) in enumerate(zip(views, rows, strict=True)):
            data[i] = view.data[row]
    storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    bits, buffer = _gathered_bits(views, rows), pa.py_buffer(data)
    if pa.types.is_fixed_size_list(storage):
        values = pa.Array.from_buffers(storage.value_type, len(rows) * storage.list_size, [None, buffer])
        array = pa.Array.from_buffers(storage, len(rows), [bits], children=[values])
    else:
        array = pa.Array.from_buffers(storage, len(rows), [bits, buffer])
    return pa.ExtensionArray.from_storage(kind, array) if isinstance(kind, pa.BaseExtensionType) else array


def _gather_varied(views: list[_Varied], rows: list[int], kind: pa.DataType) -> pa.Array:
    pieces = [view.data[view.offsets[r] : view.offsets[r + 1]] for view, r in zip(views, rows, strict=True)]
    ends = np.cumsum([0, *map(len, pieces)])
    dtype = views[0].offsets.dtype
    if ends[-1] > np.iinfo(dtype).max:
        raise ValueError(f"{ends[-1]} values in one batch: take fewer rows")
    bits, offsets = _gathered_bits(views, rows), pa.py_buffer(ends.astype(dtype))
    data = pa.py_buffer(np.concatenate(pieces))
    if not pa.types.is_list(kind) and not pa.types.is_large_list(kind):
        return pa.Array.from_buffers(kind, len(rows), [bits, offsets, data])
    values = pa.Array.from_buffers(kind.value_type, int(ends[-1]), [None, data])
    return pa.Array.from_buffers(kind, len(rows), [bits, offsets], children=[values])


def _gathered_bits(views: Sequence[_Fixed | _Varied], rows: list[int]) -> pa.Buffer | None:
    if all(view.valid is None for view in views):
        return None
    pairs = zip(views, rows, strict=True)
    return bitmap(np.array([view.valid is None or bool(view.valid[row]) for view, row in pairs]))


def gather(
    batches: Sequence[pa.RecordBatch] | Mapping[int, pa.RecordBatch],
    shard: np.ndarray,
    row: np.ndarray,
    columns: Sequence[str] | None = None,
) -> pa.RecordBatch:
    """Row `row[i]` of `batches[shard[i]]` for each i, in this order. Many times from the same batches: use a Gatherer."""
    return Gatherer(batches, columns or batches[int(shard[0])].schema.names).gather(shard, row)


class ShardReader:
    """The shards of a folder, as a training worker reads them: opened when first needed, through the node's cache."""

    def __init__(self, folder: str, cache: str | Path, keys: Sequence[str] = BATCH_KEYS) -> None:
        """`keys`: which of KEYS stand in a gathered batch, before the payload."""
        self.shards, self.cache, self.keys = ShardSet.open(folder), Path(cache), tuple(keys)
        self._splits: dict[str, _Split] = {}

    def rows(self, split: str) -> list[int]:
        """Samples of each shard of a split, in the index's order."""
        return [shard.rows for shard in self.shards.split(split)]

    def targets(self, split: str) -> np.ndarray:
        """(N, T) float32 of a split, in the index's order; NaN for a label that is missing among others.

        Reads this column alone. Raises LabelError when a sample has no target or another number of labels.
        """
        columns = [read_samples(shard.uri, ["target"]).column("target") for shard in self.shards.split(split)]
        target = pa.concat_arrays(columns) if columns else pa.array([], pa.list_(pa.float32()))
        lengths = np.unique(target.value_lengths().fill_null(0).to_numpy())
        if len(lengths) > 1 or 0 in lengths:
            raise LabelError(
                "training needs the same number of labels for every sample",
                where=f"{self.shards.folder}, split {split}",
                found=f"{target.null_count} of {len(target)} samples without a target; numbers of labels {lengths}",
                do="leave unlabelled entries out of the training, validation and test splits",
            )
        values = target.flatten().fill_null(float("nan")).to_numpy().astype(np.float32)
        return values.reshape(len(target), -1) if len(target) else values.reshape(0, 0)

    def batches(self, split: str) -> Iterator[pa.RecordBatch]:
        """The shards of a split, memory-mapped, in the index's order."""
        for number in range(len(self._split(split).shards)):
            yield self._split(split).batch(number)

    def _split(self, name: str) -> _Split:
        if name not in self._splits:
            self._splits[name] = _Split(self.shards.split(name), self.cache, self.keys)
        return self._splits[name]

    def gather(self, split: str, rows: np.ndarray) -> pa.RecordBatch:
        """Samples at (n, 2) (shard, row), in this order: the keys and the payload."""
        return self._split(split).gather(rows)


class _Split:
    def __init__(self, shards: list[Shard], cache: Path, keys: tuple[str, ...]) -> None:
        self.shards, self.cache, self.keys = shards, cache, keys
        self.batches: dict[int, pa.RecordBatch] = {}
        self.samples: Gatherer | None = None

    def gather(self, rows: np.ndarray) -> pa.RecordBatch:
        self._open([int(i) for i in np.unique(rows[:, 0]) if int(i) not in self.batches])
        if self.samples is None:
            names = next(iter(self.batches.values())).schema.names
            payload = [name for name in names if name not in KEYS.names]
            self.samples = Gatherer(self.batches, [*self.keys, *payload])
        return self.samples.gather(rows[:, 0], rows[:, 1])

    def batch(self, number: int) -> pa.RecordBatch:
        """One shard, all columns."""
        self._open([number] if number not in self.batches else [])
        return self.batches[number]

    def _open(self, wanted: list[int]) -> None:
        """First what no other worker is decoding: so the workers of a node share the decoding between them."""
        busy: list[int] = []
        for i in wanted:
            batch = _cached(self.shards[i], self.cache, wait=False)
            if batch is None:
                busy.append(i)
            else:
                self.batches[i] = batch
        for i in busy:
            self.batches[i] = cached(self.shards[i], self.cache)
