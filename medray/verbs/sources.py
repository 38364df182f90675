"""What of an archive of health records `medray ehr to-meds` would convert: FHIR, long CSV, or tables that it does not read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import translate
from itertools import islice
from typing import Any

from medray.errors import SampleError
from medray.modalities.drafts import counted, spread
from medray.modalities.ehr.convert.members import members
from medray.storage.files import File
from medray.verbs.recognise import HEAD, resource_type, table_columns

MEMBERS = 50
"""Members of a tar or zip that are looked at."""
FILES = 50
ROWS = 20
SUBJECT = ("subject_id", "subject", "patient_id", "patientid", "patient", "person_id", "mrn", "stay_id", "hadm_id")
TIME = ("time", "timestamp", "datetime", "date_time", "charttime", "event_time", "effective_time", "date", "start")
CODE = ("code", "parameter", "concept", "item", "itemid", "loinc", "test", "variable")
VALUE = ("value", "valuenum", "numeric_value", "result", "result_value", "value_as_number")
UNIT = ("unit", "units", "valueuom", "uom")
OMOP = ("person_id", "_concept_id")


@dataclass(frozen=True)
class RecordSource:
    """What lies there, and the [source] of a run file that converts it."""

    seen: tuple[str, ...]
    format: str
    """ "fhir", "csv" or "omop"."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys of [source]."""


@dataclass(frozen=True)
class _TableHead:
    """The beginning of a file, or of a member of a tar or zip."""

    name: str
    text: bytes


def source_of(files: Sequence[File]) -> RecordSource | None:
    """What lies there; None where it is nothing to convert."""
    sample = spread(files, FILES)
    heads = [head for file in sample for head in _heads(file.uri)]
    kinds: Counter[str] = Counter()
    tables: dict[tuple[str, ...], list[_TableHead]] = {}
    for head in heads:
        if resource := resource_type(head.text):
            kinds[resource] += 1
        elif columns := table_columns(head.name, head.text):
            tables.setdefault(tuple(columns), []).append(head)
    looked = counted(len(files), len(sample))
    if kinds:
        types = ", ".join(sorted(kinds))
        return RecordSource((f"{looked}: FHIR; the first resources are {types}.",), "fhir", {"kind": "fhir"})
    if not tables:
        return None
    columns = {column.lower() for names in tables for column in names}
    if OMOP[0] in columns and sum(column.endswith(OMOP[1]) for column in columns) >= 3:
        return RecordSource((f"{looked}: tables of OMOP.",), "omop", {"kind": "omop"})
    seen = f"{looked}: CSV, {len(tables)} kinds of tables." if len(tables) > 1 else f"{looked}: CSV, one kind of table."
    described = list(_tables(tables))
    unnamed = [each["name"] for each in described if "subject_column" not in each]
    more = [f"No column of {', '.join(unnamed)} names the subject: the names of the files have to."] if unnamed else []
    return RecordSource((seen, *more), "csv", {"kind": "csv", "tables": described})


def _heads(uri: str) -> Iterator[_TableHead]:
    """The beginnings of what a file holds; of what is broken as far as it can be read."""
    try:
        for member in islice(members(uri), MEMBERS):
            yield _TableHead(member.name.rsplit("/", 1)[-1], member.head(HEAD))
    except (SampleError, OSError):
        return


# --- long CSV -------------------------------------------------------------------------------------------------


def _tables(tables: Mapping[tuple[str, ...], Sequence[_TableHead]]) -> Iterator[dict[str, Any]]:
    """A table of [[source.tables]] for each set of columns, the one of most files first."""
    ordered = sorted(tables.items(), key=lambda item: -len(item[1]))
    for number, (columns, heads) in enumerate(ordered, 1):
        mark = _delimiter(heads[0].text)
        table: dict[str, Any] = {"name": "rows" if len(ordered) == 1 else f"rows{number}"}
        table["files"] = _glob(
            [head.name for head in heads], [h.name for other, hs in ordered if other != columns for h in hs]
        )
        if mark != ",":
            table["delimiter"] = mark
        subject = _column(columns, SUBJECT)
        if subject is not None:
            table["subject_column"] = subject
        elif len(heads) == 1:
            table["subject_column"] = _which("the subject's identifier", columns)
        table |= _times(columns, heads[0].text, mark)
        table["code_column"] = _column(columns, CODE) or _which("the code", columns)
        value = _column(columns, VALUE)
        used = {subject, table.get("time_column"), table["code_column"]}
        if value is not None:
            table["value_column"] = value
        elif set(columns) - used:
            table["value_column"] = _which("the value; or take this key out: rows are codes alone", columns)
        if (unit := _column(columns, UNIT)) is not None:
            table["unit_column"] = unit
        yield table


def _column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column that is called by the first of the names."""
    return next((column for name in names for column in columns if column.lower() == name), None)


def _which(what: str, columns: Sequence[str]) -> str:
    return f"TODO: which column is {what}: {', '.join(columns)}"


def _glob(names: Sequence[str], others: Sequence[str]) -> str:
    """A pattern on names that takes these and not the others: by how they end, else one name; else left to decide.

    A name with a digit may be a patient's, and is not written.
    """
    ends = {re.sub(r"^[^.]*", "*", name) for name in names}
    candidates = [*ends] if len(ends) == 1 else []
    candidates += [name for name in names if len(names) == 1 and not re.search(r"\d", name)]
    for glob in candidates:
        if not any(re.match(translate(glob), other) for other in others):
            return glob
    return "TODO: which files hold this table, by a pattern on their names"


def _delimiter(text: bytes) -> str:
    first = text.split(b"\n", 1)[0]
    return max(",;\t", key=lambda mark: first.count(mark.encode()))


def _times(columns: Sequence[str], text: bytes, mark: str) -> dict[str, Any]:
    """The column of the time, and how times are written in its first rows."""
    column = _column(columns, TIME)
    if column is None:
        return {"time_column": _which("the time", columns)}
    rows = [row.split(mark) for row in text.decode("utf-8", "ignore").splitlines()[1 : ROWS + 1]]
    position = list(columns).index(column)
    cells = [row[position].strip().strip('"') for row in rows if len(row) == len(columns)]
    cells = [cell for cell in cells if cell]
    if cells and all(re.fullmatch(r"\d+:\d\d", cell) for cell in cells):
        return {"time_column": column, "time_format": "hh:mm"}
    if cells and all(map(_is_iso, cells)):
        return {"time_column": column, "time_format": "iso"}
    return {
        "time_column": column,
        "time_format": "TODO: how times are written: iso, hh:mm, days … or as %d.%m.%Y %H:%M",
    }


def _is_iso(cell: str) -> bool:
    try:
        datetime.fromisoformat(cell)
    except ValueError:
        return False
    return bool(re.match(r"\d{4}-\d\d-\d\d", cell))
