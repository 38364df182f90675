"""Parts to entries again, of those entries of which a part came, went or changed; and what that changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.choice import Choose, add_units, choosing, find_passed_over
from medray.archive.entries import MANIFEST, PARTS, entry_keys
from medray.archive.grouping import Assemble, Describe, Judge, group_parts
from medray.archive.manifest import CHANGES
from medray.errors import PASSING
from medray.storage.arrow import one_chunk
from medray.storage.queries import execute, query
from medray.storage.row_files import AT, RowFiles, new_rows

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PIECE_PARTS = 131_072
"""Parts that are grouped at once."""

ORDERED = "replace(entry_id, '#', chr(1))"
"""What parts and entries are ordered by (`order_key`)."""

Grouping = Callable[[pa.Table], pa.Table]
"""`grouping.group_parts`, with what the modality has to say of it."""

COMPARED = [name for name in CHANGES.names if name not in ("key_hi", "key_lo", "change", "seen_at")]


@dataclass
class Regrouped:
    """What an index found."""

    parts: RowFiles
    entries: RowFiles
    kinds: dict[str, int]
    """How many entries are new, changed, updated, vanished; a kind without any is left out."""


def regroup(
    db: DuckDBPyConnection,
    old: RowFiles,
    new: RowFiles,
    entries: RowFiles,
    seen_at: datetime,
    describe: Describe | None = None,
    judge: Judge | None = None,
    free_text: Collection[str] = (),
    assemble: Assemble | None = None,
    choose: Choose | None = None,
    *,
    afresh: bool,
) -> Regrouped:
    """`old` parts without those of the table `touched_uris` (uri) of `db`, with `new` ones; `entries` with what that changes.
    Of files of the table `unread_uris`, of which storage gave nothing now, old parts stay that it gave before.

    `describe`, `judge`, `free_text` and `assemble`: as for `group_parts`. `choose`: of which entries one is chosen; with an
    entry that a file touches, all others of its unit are looked at. `afresh`: every file was read, so `old` parts hold no more
    and every entry is looked at.
    """
    kept, among = RowFiles(old.folder, (), PARTS), ""
    if not afresh:
        sql = """create table affected as
                 select entry_id from old semi join touched_uris using (uri) union select entry_id from new"""
        execute(db, sql, old=old.scan(["uri", "entry_id"]), new=new.scan(["entry_id"]))
        if choose is not None:
            add_units(db, old, new, choose)
        if assemble is not None:
            _add_assembled(db, entries)
        kept, among = without_touched(db, old), "semi join affected using (entry_id)"
    sql = f"select * from (select * from kept {among} union all by name select * from new) order by {ORDERED}"
    known = f"select * from entries {among} order by {ORDERED}"
    earlier = entries.scan([name for name in CHANGES.names if name != "seen_at"], at=True)
    kinds: dict[str, int] = {}
    superseded = np.zeros(entries.places, bool)
    group: Grouping = partial(group_parts, describe=describe, judge=judge, free_text=free_text, assemble=assemble)
    if choose is not None:
        with query(db, sql, kept=kept.scan(PARTS.names), new=new.scan(PARTS.names)) as parts:
            find_passed_over(db, grouped(parts, group), choose)
        group = choosing(db, group, choose)
    with (
        query(db, sql, kept=kept.scan(PARTS.names), new=new.scan(PARTS.names)) as parts,
        query(db, known, entries=earlier) as before,
        new_rows(entries.folder, "entries", CHANGES) as writer,
    ):
        for change in _changes(
            grouped(parts, group),
            _Sorted(before, earlier.schema),
            seen_at,
        ):
            superseded[change.superseded] = True
            writer.write(change.rows)
            for kind, count in _kinds(change.rows):
                kinds[kind] = kinds.get(kind, 0) + count
    after = entries.marked(superseded).added(writer.file)
    return Regrouped(RowFiles(kept.folder, [*kept.files, *new.files], PARTS), after, kinds)


def _add_assembled(db: DuckDBPyConnection, entries: RowFiles) -> None:
    """Entries that parts with the id of an affected entry have made, to the table `affected`: their parts' id, # and a key.

    An entry of that form may as well have parts under its own id (a file with # in its name). Then these are looked at,
    too, and give it again as it was; and so for what they make, until nothing is added.
    """
    sql = """insert into affected select distinct entry_id from entries
             where contains(entry_id, '#') and regexp_replace(entry_id, '#[^#]*$', '') in (select entry_id from affected)
             and entry_id not in (select entry_id from affected)"""
    before, after = -1, _count(db, "affected")
    while after > before:
        execute(db, sql, entries=entries.scan(["entry_id"]))
        before, after = after, _count(db, "affected")


def _count(db: DuckDBPyConnection, table: str) -> int:
    with query(db, f"select count(*) from {table}") as rows:
        return rows.read_all().column(0)[0].as_py()


def without_touched(db: DuckDBPyConnection, old: RowFiles) -> RowFiles:
    """Parts without those of files of the table `touched_uris` of `db`, and of `unread_uris` those that could not be read."""
    where = np.zeros(old.places, bool)
    passing = ", ".join(f"'{reason}'" for reason in sorted(PASSING))
    sql = f"""select {AT} from old where uri in (select uri from touched_uris)
              or reason in ({passing}) and uri in (select uri from unread_uris)"""
    with query(db, sql, old=old.scan(["uri", "reason"], at=True)) as rows:
        for batch in rows:
            where[batch.column(0).to_numpy()] = True
    return old.marked(where)


def grouped(parts: Iterable[pa.RecordBatch], group: Grouping = group_parts) -> Iterator[pa.Table]:
    """Parts in the order of ORDERED to manifest rows in that order, some at a time; an entry is in memory whole.

    Entries that parts make together (GROUP#key) are held back until no row of parts can come before them.
    """
    waiting: list[pa.Table] = []
    for entries, following in _in_pieces(parts, group):
        rows = pa.concat_tables([*waiting, entries])
        keys = order_keys(rows.column("entry_id"))
        rows = rows.take(pc.sort_indices(keys))
        count = len(rows) if following is None else pc.sum(pc.less(keys, order_key(following))).as_py() or 0
        if count:
            yield rows.slice(0, count)
        waiting = [rows.slice(count)] if count < len(rows) else []


def order_key(entry_id: str) -> str:
    """What entry ids are ordered by, here and in SQL: # comes before any other character, so that the entries of a group
    follow the id of the group."""
    return entry_id.replace("#", "\x01")


def order_keys(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """`order_key` of each."""
    return pc.replace_substring(ids, "#", "\x01")


def _in_pieces(parts: Iterable[pa.RecordBatch], group: Grouping) -> Iterator[tuple[pa.Table, str | None]]:
    """(entries, the id of the parts that follow; None: none do) of some parts at a time."""
    waiting: list[pa.RecordBatch] = []
    for batch in parts:
        waiting.append(batch)
        if sum(map(len, waiting)) < PIECE_PARTS:
            continue
        piece = pa.Table.from_batches(waiting)
        ids = piece.column("entry_id")
        cut = pc.index(ids, ids[-1]).as_py()  # the last entry may go on
        if cut:
            yield _entries(piece.slice(0, cut), group), ids[-1].as_py()
        waiting = piece.slice(cut).combine_chunks().to_batches()
    if waiting:
        yield _entries(pa.Table.from_batches(waiting), group), None


def _entries(parts: pa.Table, group: Grouping) -> pa.Table:
    """CHANGES without `change` and `seen_at`."""
    made = group(parts.select(PARTS.names).cast(PARTS))
    part_lists = one_chunk(made.column("parts"))
    modified = part_lists.flatten().field("modified_ns").to_numpy()
    newest = np.maximum.reduceat(modified, part_lists.offsets.to_numpy()[:-1])
    keys = entry_keys(made)
    columns = {name: made.column(name) for name in MANIFEST.names}
    columns |= {"key_hi": pa.array(keys[:, 0]), "key_lo": pa.array(keys[:, 1]), "modified_ns": pa.array(newest)}
    return pa.table({name: columns[name] for name in CHANGES.names if name in columns})


@dataclass
class _Change:
    rows: pa.Table
    """CHANGES."""
    superseded: np.ndarray
    """Places of rows that hold no more."""


class _Sorted:
    """A stream of earlier rows in the order of entry ids, taken as far as asked for."""

    def __init__(self, rows: pa.RecordBatchReader, schema: pa.Schema) -> None:
        self.rows, self.schema = rows, pa.schema([f.remove_metadata() for f in schema])
        self.rest: pa.Table = self.schema.empty_table()

    def up_to(self, entry_id: str | None) -> pa.Table:
        """The rows not taken yet, until this id; None: all."""
        batches = [self.rest]
        last = None if entry_id is None else order_key(entry_id)
        while last is None or len(batches[-1]) == 0 or order_key(batches[-1].column("entry_id")[-1].as_py()) <= last:
            batch = next(self.rows, None)
            if batch is None:
                break
            batches.append(pa.Table.from_batches([batch]).select(self.schema.names).cast(self.schema))
        rows = pa.concat_tables(batches)
        keys = order_keys(rows.column("entry_id"))
        count = len(rows) if last is None else pc.sum(pc.less_equal(keys, last)).as_py() or 0
        self.rest = rows.slice(count)
        return rows.slice(0, count).combine_chunks()


def _changes(pieces: Iterable[pa.Table], before: _Sorted, seen_at: datetime) -> Iterator[_Change]:
    for piece in pieces:
        yield _compared(piece, before.up_to(piece.column("entry_id")[-1].as_py()), seen_at)
    rest = before.up_to(None)
    if len(rest):
        yield _compared(rest.slice(0, 0).select([*COMPARED, "key_hi", "key_lo"]), rest, seen_at)


def _compared(now: pa.Table, old: pa.Table, seen_at: datetime) -> _Change:
    """Rows of CHANGES for what differs between entries of one range of ids as they are and as they were."""
    was = pc.index_in(now.column("entry_id"), old.column("entry_id")) if len(now) else pa.chunked_array([], pa.int32())
    known = was.is_valid().to_numpy()
    row_before = was.fill_null(0).to_numpy()
    present = pc.not_equal(old.column("change"), "vanished").to_numpy(zero_copy_only=False)
    matched = np.flatnonzero(known & (present[row_before] if len(old) else False))
    ours, theirs = now.take(pa.array(matched)), old.take(pa.array(row_before[matched]))
    kinds = np.full(len(now), "new", object)
    kinds[matched] = np.where(same(ours, theirs, ["fingerprint"]), "updated", "changed")
    as_before = np.zeros(len(now), bool)
    as_before[matched] = same(ours, theirs, COMPARED)
    differing = np.flatnonzero(~as_before)
    vanished = np.flatnonzero(
        present & ~pc.is_in(old.column("entry_id"), now.column("entry_id").combine_chunks()).to_numpy()
    )
    rows = pa.concat_tables(
        [
            change_rows(now.take(pa.array(differing)), pa.array(kinds[differing], pa.string()), seen_at),
            change_rows(tombstones(old.take(pa.array(vanished))), pa.repeat("vanished", len(vanished)), seen_at),
        ]
    )
    superseded = np.concatenate([row_before[differing[known[differing]]], vanished]).astype(np.int64)
    return _Change(rows, old.column(AT).to_numpy()[superseded])


def change_rows(rows: pa.Table, kinds: pa.Array, seen_at: datetime) -> pa.Table:
    when = pa.repeat(pa.scalar(seen_at, CHANGES.field("seen_at").type), len(rows))
    columns = {name: rows.column(name) for name in rows.schema.names} | {"change": kinds, "seen_at": when}
    return pa.table({name: columns[name] for name in CHANGES.names}).cast(CHANGES)


def tombstones(rows: pa.Table) -> pa.Table:
    """Rows of entries that are no more: who they were, their last content and where it lay; no label."""
    for name in ("label", "split", "reason", "detail", "facts"):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.nulls(len(rows), CHANGES.field(name).type))
    return rows.set_column(
        rows.schema.get_field_index("bytes"), "bytes", pa.repeat(pa.scalar(0, pa.int64()), len(rows))
    )


def _kinds(rows: pa.Table) -> Iterator[tuple[str, int]]:
    for row in pc.value_counts(rows.column("change")).to_pylist():
        yield row["values"], row["counts"]


def same(one: pa.Table, two: pa.Table, columns: Iterable[str]) -> np.ndarray:
    """(N,) bool: rows that are equal in all of these columns; null equals null."""
    equal = np.ones(len(one), bool)
    for name in columns:
        equal &= _same(one_chunk_of(one, name), one_chunk_of(two, name))
    return equal


def one_chunk_of(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return one_chunk(column) if column.num_chunks else pa.array([], column.type)


def _same(one: pa.Array, two: pa.Array) -> np.ndarray:
    if pa.types.is_struct(one.type):
        fields = [_same(a, b) for a, b in zip(one.flatten(), two.flatten(), strict=True)]
        return np.logical_and.reduce(fields)
    both = (one.is_null().to_numpy(zero_copy_only=False), two.is_null().to_numpy(zero_copy_only=False))
    if not pa.types.is_list(one.type):
        return pc.equal(one, two).fill_null(False).to_numpy(zero_copy_only=False) | (both[0] & both[1])
    lengths = [pc.fill_null(a.value_lengths(), 0).to_numpy() for a in (one, two)]
    equal = (both[0] == both[1]) & (lengths[0] == lengths[1])
    rows = np.flatnonzero(equal & (lengths[0] > 0))
    if len(rows):
        values = _same(one.take(pa.array(rows)).flatten(), two.take(pa.array(rows)).flatten())
        ends = np.cumsum(lengths[0][rows])
        equal[rows] = np.logical_and.reduceat(values, ends - lengths[0][rows])
    return equal
