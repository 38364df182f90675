"""Label tables beside an archive: which CSV or Parquet file names its entries, by which column, with which labels."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from medray.datasets.splits import split_name
from medray.modalities.drafts import Draft
from medray.storage import files
from medray.storage.files import File, relative

TABLES = (".csv", ".tsv", ".csv.gz", ".parquet")
CANDIDATES = 20
HEAD = 2**18
"""Bytes of a table that are read."""
ROWS = 500
FEW = 20
"""More different values than this are no classes."""


@dataclass(frozen=True)
class LabelTable:
    """A table that names entries of the archive."""

    uri: str
    key: str
    match: str
    """What `key` holds: "path", "entry" or "subject"."""
    columns: tuple[str, ...]
    """Those that may be labels, the likeliest first."""
    classes: tuple[str, ...]
    """Values of the likeliest, in the rows that were read; none where it holds numbers."""
    split_column: str | None


def label_tables(listed: Sequence[File], root: str, draft: Draft) -> tuple[list[LabelTable], list[str]]:
    """(tables that name entries, names of others) among the files of the archive's top folder and beside the archive."""
    paths = {relative(file.uri, root) for file in listed}
    paths |= {path.rpartition("/")[0] for path in paths} - {""}
    known = {"path": paths, "entry": {*draft.entries}, "subject": {*draft.subjects}}
    tables: list[LabelTable] = []
    others: list[str] = []
    for uri in islice(_candidates(listed, root), CANDIDATES):
        rows = _rows(uri)
        if len(rows) < 2 or len(rows[0]) < 2:
            continue
        table = _matched(uri, rows[0], rows[1:], known)
        if table is None:
            others.append(uri.rpartition("/")[2])
        else:
            tables.append(table)
    return tables, others


def _candidates(listed: Sequence[File], root: str) -> Iterator[str]:
    yield from (file.uri for file in listed if file.uri.endswith(TABLES) and "/" not in relative(file.uri, root))
    if files.is_local(root):
        folder = files.local_path(root.rstrip("/").rpartition("/")[0] or "/")
        yield from (str(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name.endswith(TABLES))


def _rows(uri: str) -> list[list[str]]:
    """The first rows as text, the header first; none of a file that is no table."""
    try:
        with files.open_input(uri) as stream:
            if uri.endswith(".parquet"):
                return _parquet_rows(stream)
            head = stream.read(HEAD)
    except (OSError, pa.ArrowInvalid):
        return []
    whole = len(head) < HEAD
    try:
        if head[:2] == b"\x1f\x8b":
            head = zlib.decompressobj(31).decompress(head, HEAD)
        text = head.decode("utf-8-sig", "strict" if whole else "ignore")
    except (zlib.error, UnicodeDecodeError):
        return []
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    try:
        rows = [row for row in islice(csv.reader(io.StringIO(text), delimiter=delimiter), ROWS + 1) if row]
    except csv.Error:
        return []
    rows = rows if whole else rows[:-1]  # the last one may be cut
    return [row for row in rows if len(row) == len(rows[0])]


def _parquet_rows(stream: pa.NativeFile) -> list[list[str]]:
    table = pq.ParquetFile(stream)
    flat = [field.name for field in table.schema_arrow if not pa.types.is_nested(field.type)]
    batch = next(table.iter_batches(ROWS, columns=flat), None) if flat else None
    rows = zip(*(column.to_pylist() for column in batch.columns), strict=True) if batch is not None else ()
    return [flat, *(["" if cell is None else str(cell) for cell in row] for row in rows)]


def _matched(
    uri: str, header: list[str], rows: list[list[str]], known: Mapping[str, Collection[str]]
) -> LabelTable | None:
    columns = {name: [row[i].strip() for row in rows] for i, name in enumerate(header)}
    shares = {
        (name, match): sum(value in ids for value in values) / len(values)
        for name, values in columns.items()
        for match, ids in known.items()
    }
    (key, match), share = max(shares.items(), key=lambda item: item[1])
    if share < 0.5:
        return None
    splits = [name for name, values in columns.items() if name != key and all(map(split_name, filter(None, values)))]
    split = next((name for name in splits if any(columns[name])), None)
    labels = {name: {*filter(None, values)} for name, values in columns.items() if name not in (key, split)}
    likely = sorted((name for name in labels if len(labels[name]) > 1), key=lambda name: len(labels[name]) > FEW)
    if not likely:
        return None
    values = labels[likely[0]]
    classes = tuple(sorted(values)) if len(values) <= FEW else ()
    return LabelTable(uri, key, match, tuple(likely), classes, split)
