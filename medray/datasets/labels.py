"""Labels from a table: a CSV or Parquet file joined onto a manifest. Labels, and optionally splits and subjects.

table row ── key ──> path of a file or its folder | entry id | subject ──> every entry that it names
"""

from __future__ import annotations

import re
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from medray.archive.entries import MANIFEST
from medray.archive.pseudonyms import pseudonym
from medray.datasets.label_table import SHOWN, LabelSettings, line_numbers, read_table, value_columns
from medray.datasets.splits import class_balance, split_name
from medray.errors import LabelError
from medray.storage import files


class LabelReport(BaseModel):
    """What a label table gave. Counts are entries, or rows where the name says so."""

    model_config = ConfigDict(frozen=True)

    rows: int
    matched: int
    """Entries that a row names."""
    labelled: int
    """Entries with a label in every column; a row with an empty cell gives none."""
    unlabelled: int
    """Entries that can be read and have no label."""
    unlabelled_first: tuple[str, ...]
    """Their entry ids, at most 20."""
    unused_rows: int = 0
    """Rows that name no entry."""
    unused_first: tuple[str, ...] = ()
    """Their rows in the table, at most 20."""
    duplicate_rows: int = 0
    """Rows that repeat an earlier one."""
    balance: tuple[dict[str, str | int | None], ...]
    """splits.class_balance of the result."""

    def notes(self) -> list[str]:
        """What a person should know of it, one line each; none when every entry and every row is used."""
        lines: list[str] = []
        if self.unlabelled:
            lines.append(f"{self.unlabelled} entries have no label, such as {self.unlabelled_first[0]}")
        if self.unused_rows:
            example = f", such as {self.unused_first[0]}" if self.unused_first else ""
            lines.append(f"{self.unused_rows} of {self.rows} rows of the label table name no entry{example}")
        if self.duplicate_rows:
            lines.append(f"{self.duplicate_rows} rows of the label table repeat an earlier one")
        return lines


def apply_labels(
    manifest: pa.Table, settings: LabelSettings, *, root: str, pseudonym_key: bytes
) -> tuple[pa.Table, LabelReport]:
    """A MANIFEST table with `label` (list<string>, one item per column), `split` and `subject_id` from the table.

    An entry that no row names has no label, whatever the archive carries; its split and subject stay. Raises
    LabelError: a table that cannot be read, a column it lacks, two rows that give one entry different labels, an
    unknown split name, no row that fits.
    """
    if settings.table is None:
        return manifest, _report(manifest, rows=0, matched=0)
    table = read_table(settings)
    keys = _keys(table.column(settings.key), settings, root, pseudonym_key)
    keys, values, origin = _distinct(keys, table.select(value_columns(settings)), settings)
    repeats = len(table) - table.column(settings.key).null_count - len(keys)
    entry, row = _pairs(manifest, keys, settings, root)
    if not len(entry) and len(manifest):
        raise LabelError(
            "no row of the label table names an entry",
            where=settings.table,
            found=_first_key(settings, keys) if len(keys) else "no rows",
            expected=_example(manifest, settings, root),
            do="set labels.key and labels.match",
        )
    row_of = _one_row_each(manifest, entry, row, values, origin, settings)
    picks = pa.array(row_of, mask=row_of < 0)
    if settings.columns:
        manifest = _with(
            manifest, "label", _label_lists([values.column(name).take(picks) for name in settings.columns])
        )
    if settings.split_column:
        split = _splits(values.column(settings.split_column), settings).take(picks)
        manifest = _with(manifest, "split", pc.coalesce(split, manifest.column("split")))
    if settings.subject_column:
        subject = _pseudonyms(values.column(settings.subject_column), pseudonym_key).take(picks)
        manifest = _with(manifest, "subject_id", pc.coalesce(subject, manifest.column("subject_id")))
    unused = np.ones(len(keys), bool)
    unused[row] = False
    return manifest, _report(
        manifest,
        rows=len(table),
        matched=int((row_of >= 0).sum()),
        unused_rows=int(unused.sum()) + table.column(settings.key).null_count,
        unused_first=tuple(f"row {n}" for n in line_numbers(settings, origin[unused][:SHOWN])),
        duplicate_rows=repeats,
    )


def _report(
    manifest: pa.Table,
    *,
    rows: int,
    matched: int,
    unused_rows: int = 0,
    unused_first: tuple[str, ...] = (),
    duplicate_rows: int = 0,
) -> LabelReport:
    labelled = manifest.column("label").is_valid()
    bare = manifest.filter(pc.and_(pc.invert(labelled), manifest.column("reason").is_null())).column("entry_id")
    return LabelReport(
        rows=rows,
        matched=matched,
        labelled=pc.sum(labelled).as_py() or 0,
        unlabelled=len(bare),
        unlabelled_first=tuple(bare.slice(0, SHOWN).to_pylist()),
        balance=tuple(class_balance(manifest)),
        unused_rows=unused_rows,
        unused_first=unused_first,
        duplicate_rows=duplicate_rows,
    )


def _with(manifest: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return manifest.set_column(manifest.schema.get_field_index(name), MANIFEST.field(name), values)


# --- from rows to entries -------------------------------------------------------------------------------------


def _keys(column: pa.ChunkedArray, settings: LabelSettings, root: str, key: bytes) -> pa.Array:
    """The table's keys as the manifest has them: relative paths, entry ids or pseudonyms."""
    if settings.match == "subject":
        column = _pseudonyms(column, key)
    if settings.match == "path":
        for place, name in files.place_names(root).items():
            top = re.escape(files.top_folder(place))
            column = pc.replace_substring_regex(column, f"^{top}(/|!/)", name)
        column = pc.replace_substring_regex(column, r"^(\./)+", "")
        column = pc.replace_substring_regex(column, files.INSIDE_PATTERN, r"\1/")  # as `relative` has members
        column = pc.utf8_rtrim(column, "/")
    return column.combine_chunks()


def _pseudonyms(column: pa.ChunkedArray, key: bytes) -> pa.ChunkedArray:
    coded = column.combine_chunks().dictionary_encode()
    words = pa.array([pseudonym(word, key) for word in coded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([words.take(coded.indices)])


def _distinct(keys: pa.Array, values: pa.Table, settings: LabelSettings) -> tuple[pa.Array, pa.Table, np.ndarray]:
    """Keys and values without rows that have no key or repeat one, and which rows of the table they are, from 0."""
    with_key = np.flatnonzero(keys.is_valid().to_numpy(zero_copy_only=False))
    codes = keys.drop_null().dictionary_encode().indices.to_numpy()
    first = np.unique(codes, return_index=True)[1]  # dictionary codes count up by first appearance
    alike = _alike(values.take(with_key))
    wrong = np.flatnonzero(alike != alike[first[codes]])
    if len(wrong):
        pairs = [(int(with_key[first[codes[i]]]), int(with_key[i])) for i in wrong.tolist()]
        _refuse(pairs, values, np.arange(len(values)), "the label table gives one key different values", settings)
    rows = pa.array(with_key[first])
    return keys.take(rows), values.take(rows), with_key[first]


def _alike(table: pa.Table) -> np.ndarray:
    """(rows,) int: equal for rows that are equal in every column."""
    alike = np.zeros(len(table), np.int64)
    for column in table.columns:
        codes = column.combine_chunks().dictionary_encode(null_encoding="encode").indices.to_numpy()
        alike = np.unique(alike * (codes.max(initial=0) + 1) + codes, return_inverse=True)[1]
    return alike


def _pairs(manifest: pa.Table, keys: pa.Array, settings: LabelSettings, root: str) -> tuple[np.ndarray, np.ndarray]:
    """(P,) entries and (P,) rows that name them, as indices."""
    if settings.match != "path":
        column = "entry_id" if settings.match == "entry" else "subject_id"
        row = pc.index_in(manifest.column(column), value_set=keys)
        entry = np.arange(len(manifest))
        return _named(entry, row)
    parts = manifest.column("parts").combine_chunks()
    entry = pc.list_parent_indices(parts).to_numpy()
    path = _below(pc.struct_field(parts.flatten(), "uri"), root)
    by_file = _named(entry, pc.index_in(path, value_set=keys))
    folder = pc.replace_substring_regex(path, "/?[^/]*$", "")
    by_folder = _named(entry, pc.index_in(folder, value_set=keys))
    others = ~np.isin(by_folder[0], by_file[0])  # a file's own row goes before its folder's
    return np.append(by_file[0], by_folder[0][others]), np.append(by_file[1], by_folder[1][others])


def _named(entry: np.ndarray, row: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    row = row.fill_null(-1).to_numpy()
    return entry[row >= 0], row[row >= 0]


def _below(uris: pa.Array, root: str) -> pa.Array:
    """files.relative of many URIs."""
    if pc.any(pc.match_substring(uris, files.INSIDE)).as_py() or files.places(root) != [files.top_folder(root)]:
        paths = [files.relative(uri, root) if files.is_below(uri, root) else uri for uri in uris.to_pylist()]
        return pa.array(paths, pa.string())
    prefix = root.rstrip("/") + "/"
    own_name = root.rsplit("/", 1)[-1]
    names = pc.if_else(pc.equal(uris, root), own_name, uris)
    return pc.if_else(pc.starts_with(uris, prefix), pc.utf8_slice_codeunits(uris, len(prefix)), names)


def _one_row_each(
    manifest: pa.Table,
    entry: np.ndarray,
    row: np.ndarray,
    values: pa.Table,
    origin: np.ndarray,
    settings: LabelSettings,
) -> np.ndarray:
    """(entries,) int: the row that names each, -1 for none. `origin`: which rows of the table `values` are."""
    row_of = np.full(len(manifest), -1)
    row_of[entry[::-1]] = row[::-1]  # the first pair of an entry is written last
    alike = _alike(values)
    wrong = alike[row] != alike[row_of[entry]]
    if wrong.any():
        pairs = sorted({(int(row_of[entry[i]]), int(row[i])) for i in np.flatnonzero(wrong).tolist()})
        _refuse(pairs, values, origin, "rows of the label table give one entry different values", settings)
    return row_of


def _label_lists(columns: list[pa.ChunkedArray]) -> pa.Array:
    """One list<string> per row of the columns' cells; null where a cell is."""
    rows, width = len(columns[0]), len(columns)
    cells = pa.concat_arrays([column.combine_chunks() for column in columns])
    by_row = np.arange(rows * width).reshape(width, rows).T.reshape(-1)
    empty = np.logical_or.reduce([column.is_null().to_numpy() for column in columns])
    return pa.ListArray.from_arrays(
        pa.array(np.arange(0, rows * width + 1, width, dtype=np.int32)),
        cells.take(pa.array(by_row)),
        mask=pa.array(empty),
    )


def _splits(column: pa.ChunkedArray, settings: LabelSettings) -> pa.ChunkedArray:
    coded = column.combine_chunks().dictionary_encode()
    words = coded.dictionary.to_pylist()
    unknown = sorted(word for word in words if split_name(word) is None)
    if unknown:
        raise LabelError(
            f"the split column {settings.split_column!r} holds names of no split",
            where=settings.table or "",
            found=", ".join(unknown[:SHOWN]),
            expected="train, validation (val, valid, dev, tuning) or test (held_out)",
        )
    names = pa.array([split_name(word) for word in words], pa.string())
    return pa.chunked_array([names.take(coded.indices)])


def _refuse(
    pairs: list[tuple[int, int]], values: pa.Table, origin: np.ndarray, what: str, settings: LabelSettings
) -> NoReturn:
    """`pairs` of rows of `values` that should be alike; `origin` (rows,): which rows of the table these are, from 0."""
    shown: list[str] = []
    for one, two in pairs[:SHOWN]:
        differ = [name for name in values.column_names if values[name][one].as_py() != values[name][two].as_py()]
        lines = line_numbers(settings, origin[[one, two]])
        shown.append(f"rows {lines[0]} and {lines[1]} differ in {', '.join(differ)}")
    more = f"; and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    raise LabelError(
        what,
        where=settings.table or "",
        found="; ".join(shown) + more,
        expected="one value for each of " + ", ".join(values.column_names),
        do="correct or remove one of the rows",
    )


def _first_key(settings: LabelSettings, keys: pa.Array) -> str:
    """The user's own text, unless it is a subject's."""
    return (
        f"row {line_numbers(settings, np.array([0]))[0]}"
        if settings.match == "subject"
        else f"{settings.key} = {keys[0]}"
    )


def _example(manifest: pa.Table, settings: LabelSettings, root: str) -> str:
    if settings.match == "entry":
        return f"entry ids such as {manifest.column('entry_id')[0]}"
    if settings.match == "subject":
        return "the subjects' identifiers as the archive's files have them, under the key that indexed them"
    parts = pc.list_flatten(manifest.column("parts").combine_chunks())
    return f"paths such as {_below(pc.struct_field(parts, 'uri'), root)[0]}"
