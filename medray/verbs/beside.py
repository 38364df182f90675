"""Label tables beside an archive: which CSV or Parquet file names its entries, by which column, with which labels."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from medray.datasets.label_table import EMPTY
from medray.datasets.splits import split_name
from medray.modalities.drafts import FEW_CLASSES, Draft
from medray.storage import files
from medray.storage.compressed import GZIP, unpacked_head
from medray.storage.files import File, relative

TABLES = (".csv", ".tsv", ".csv.gz", ".parquet")
CANDIDATES = 20
HEAD = 2**18
"""Bytes of a table that are read."""
ROWS = 500
LABELS = ("label", "labels", "class", "target", "diagnosis", "outcome", "y", "ground_truth")
"""Names by which a column says that it is the label."""
SUBJECTS = ("subject", "subject_id", "patient", "patient_id", "patientid", "person", "person_id")


@dataclass(frozen=True)
class LabelTable:
    """A table that names entries of the archive."""

    uri: str
    key: str
    match: str
    """What `key` holds: "path", "entry" or "subject"."""
    columns: tuple[str, ...]
    """The one that is the label, or all that may be."""
    classes: tuple[str, ...]
    """Labels in the rows that were read, where one column is the label and holds no measured numbers."""
    numbers: bool
    """The one column that is the label holds measured numbers."""
    split_column: str | None
    subject_column: str | None


def label_tables(listed: Sequence[File], root: str, draft: Draft) -> tuple[list[LabelTable], int]:
    """(tables that name entries, number of other tables) in the archive's top folder and beside the archive."""
    paths = {relative(file.uri, root) for file in listed}
    paths |= {path.rpartition("/")[0] for path in paths} - {""}
    known = {"path": paths, "entry": draft.entries, "subject": draft.subjects}
    tables: list[LabelTable] = []
    others = 0
    for uri in islice(_candidates(listed, root), CANDIDATES):
        rows = _rows(uri)
        if len(rows) < 2 or len(rows[0]) < 2:
            continue
        table = _matched(uri, rows[0], rows[1:], known)
        if table is None:
            others += 1
        else:
            tables.append(table)
    return tables, others


def _candidates(listed: Sequence[File], root: str) -> Iterator[str]:
    yield from (file.uri for file in listed if file.uri.endswith(TABLES) and "/" not in relative(file.uri, root))
    if files.is_local(root):
        folder = files.local_path(root).parent
        names = (str(path) for path in sorted(folder.iterdir()) if path.name.endswith(TABLES) and path.is_file())
        yield from (name for name in names if name != root)


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
        text = (unpacked_head(head) if head.startswith(GZIP) else head).decode(
            "utf-8-sig", "strict" if whole else "ignore"
        )
        mark = max(",;\t", key=text.partition("\n")[0].count)
        rows = [row for row in islice(csv.reader(io.StringIO(text), delimiter=mark), ROWS + 1) if row]
    except (UnicodeDecodeError, csv.Error):
        return []
    rows = rows if whole else rows[:-1]  # the last one may be cut
    return [row for row in rows if len(row) == len(rows[0])]


def _parquet_rows(stream: pa.NativeFile) -> list[list[str]]:
    table = pq.ParquetFile(stream)
    flat = [column.name for column in table.schema_arrow if not pa.types.is_nested(column.type)]
    batch = next(table.iter_batches(ROWS, columns=flat), None) if flat else None
    rows = zip(*(column.to_pylist() for column in batch.columns), strict=True) if batch is not None else ()
    return [flat, *(["" if cell is None else str(cell) for cell in row] for row in rows)]


def _matched(
    uri: str, header: list[str], rows: list[list[str]], known: Mapping[str, Collection[str]]
) -> LabelTable | None:
    """The table, where half of the rows name an entry by one of its columns and another column may hold labels."""
    columns = {name: [row[number].strip() for row in rows] for number, name in enumerate(header)}
    shares = {
        (name, match): sum(value in ids for value in values) / len(values)
        for name, values in columns.items()
        for match, ids in known.items()
    }
    (key, match), share = max(shares.items(), key=lambda item: item[1])
    if share < 0.5:
        return None
    filled = {
        name: [value for value in values if value not in EMPTY] for name, values in columns.items() if name != key
    }
    split = next((name for name, values in filled.items() if values and all(map(split_name, values))), None)
    subject = next((name for name in filled if match != "subject" and name.lower() in SUBJECTS), None)
    likely = [
        name
        for name, values in filled.items()
        if name not in (split, subject) and (_classes(values) or _numbers(values))
    ]
    labels = [name for name in likely if name.lower() in LABELS]
    labels = labels if len(labels) == 1 else likely
    if not labels:
        return None
    values = filled[labels[0]] if len(labels) == 1 else []
    classes = _classes(values)
    return LabelTable(uri, key, match, tuple(labels), classes, bool(values) and not classes, split, subject)


def _classes(values: Sequence[str]) -> tuple[str, ...]:
    """The different values of a column, where they are few and each stands there again."""
    counts = Counter(values)
    return tuple(sorted(counts)) if 2 <= len(counts) <= FEW_CLASSES and min(counts.values()) > 1 else ()


def _numbers(values: Sequence[str]) -> bool:
    """Whether a column holds many different numbers, not all of them whole: no identifiers."""
    try:
        numbers = {float(value) for value in values}
    except ValueError:
        return False
    return len(numbers) > FEW_CLASSES and any(number % 1 for number in numbers)
