"""When a scoring run ends and what it takes first: deadlines and orders, as a run file names them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.entries import MANIFEST, by_place, place_order
from medray.archive.manifest import Manifest
from medray.storage.arrow import one_chunk

ROUND_ENTRIES = 2**19
"""So many entries of a run are in memory at once. A round costs the start of its workers."""

NEWEST, OLDEST = "newest", "oldest"
COLUMNS = tuple(field.name for field in MANIFEST if not pa.types.is_nested(field.type))
"""Columns of a manifest that a run may be ordered by."""


def check_order(text: str) -> str:
    """The order as it is. Raises ValueError for one that no manifest has."""
    _order(text)
    return text


def _order(text: str) -> tuple[str, bool]:
    """(column, descending); the column is "newest" for the time of an entry's newest part."""
    name, _, way = text.partition(" ")
    if text in (NEWEST, OLDEST):
        return NEWEST, text == NEWEST
    if name not in COLUMNS or way not in ("", "ascending", "descending"):
        known = ", ".join(COLUMNS)
        raise ValueError(f'expected "newest", "oldest", or one of {known}, alone or with " descending" behind it')
    return name, way == "descending"


def in_order(pending: pa.Table, order: str) -> pa.Table:
    """The entries in the order that a run takes them; entries that are equal in it stand by their place in files.

    So the windows of one sequence and the images of one array, which came together, are still read front to back.
    """
    return pending.take(_places(pending, order))


def _places(pending: pa.Table, order: str) -> pa.Array:
    """Where the entries stand that a run takes first, second …; (N,) uint64."""
    name, descending = _order(order)
    by, file_order = newest_part(pending) if name == NEWEST else pending.column(name), place_order(pending)
    if file_order is not None:
        by = by.take(file_order)
    order_of_rows = pc.sort_indices(
        pa.table({"by": by}), [("by", "descending" if descending else "ascending")]
    )  # stable
    return order_of_rows if file_order is None else file_order.take(order_of_rows)


def first(manifest: Manifest, numbers: np.ndarray, order: str, limit: int | None) -> np.ndarray:
    """Of the entries with these numbers those that a run takes, (N,) int64: the first `limit` of them, or all."""
    if limit is None or limit >= len(numbers):
        return numbers
    if len(numbers) > ROUND_ENTRIES:
        return _ranked(manifest, numbers, order)[:limit]
    name, _ = _order(order)
    columns = dict.fromkeys(["entry_id", "parts", "entry_id" if name == NEWEST else name])
    entries, numbers = manifest.take_numbered(numbers, list(columns))
    return numbers[_places(entries, order).to_numpy()[:limit]]


def rounds(manifest: Manifest, wanted: Sequence[np.ndarray], order: str) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Entries that several takers want, in the order that a run takes them, each once, ROUND_ENTRIES at once: MANIFEST, and
    (N,) uint64 for whom they are, bit t of each for taker t. `wanted`: of each taker, the numbers of its entries.

    Beyond one round 32 bytes an entry are held in memory, and where a run is ordered by a column of texts, these.
    """
    takers = np.zeros(max((int(numbers.max()) + 1 for numbers in wanted if len(numbers)), default=0), np.uint64)
    for taker, numbers in enumerate(wanted):
        takers[numbers] |= np.uint64(1 << taker)
    numbers = np.flatnonzero(takers)
    ranked = numbers if len(numbers) <= ROUND_ENTRIES else _ranked(manifest, numbers, order)
    for start in range(0, len(ranked), ROUND_ENTRIES):
        entries, of_entries = manifest.take_numbered(ranked[start : start + ROUND_ENTRIES])
        places = _places(entries, order)
        yield entries.take(places), takers[of_entries][places.to_numpy()]


def _ranked(manifest: Manifest, numbers: np.ndarray, order: str) -> np.ndarray:
    """These numbers in the order that a run takes their entries, without holding the entries."""
    name, descending = _order(order)
    rows: list[np.ndarray] = []
    keys: list[pa.Array] = []
    for some, batch in manifest.batches(numbers, ["parts" if name == NEWEST else name]):
        rows.append(some)
        keys.append(newest_part(pa.Table.from_batches([batch])) if name == NEWEST else batch.column(0))
    by = pa.table({"by": pa.chunked_array(keys)})
    ranks = pc.sort_indices(by, [("by", "descending" if descending else "ascending")]).to_numpy()
    return np.concatenate(rows)[ranks]


def newest_part(manifest: pa.Table) -> pa.Array:
    """(N,) int64: when the newest file of each entry was modified, ns since the epoch (UTC); 0 where it has none."""
    if len(manifest) == 0:
        return pa.array([], pa.int64())
    column = one_chunk(manifest.column("parts"))
    counts = column.value_lengths().to_numpy()
    newest = np.zeros(len(manifest), np.int64)
    filled = np.flatnonzero(counts)
    if len(filled):
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])[filled]
        newest[filled] = np.maximum.reduceat(column.flatten().field("modified_ns").to_numpy(), starts)
    return pa.array(newest)


def file_edges(pending: pa.Table) -> np.ndarray:
    """Ascending places (N,) int64 where another file begins than the one before was read from: a shard that ends there
    leaves no file to be opened, and decoded, by two workers."""
    if len(pending) < 2:
        return np.empty(0, np.int64)
    uri = pc.struct_field(pc.list_element(pending.column("parts"), 0), "uri")
    return 1 + np.flatnonzero(pc.not_equal(uri[1:], uri[:-1]).to_numpy())


def placed(plan: Sequence[pa.Table]) -> list[pa.Table]:
    """The shards of a plan, each in the order of files and places: order is kept between shards, locality within."""
    return [by_place(shard) for shard in plan]
