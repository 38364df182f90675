"""The rows that readers of a source give: events, patients, counts, look-ups, failed files. One schema for all."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from medray.errors import SampleError
from medray.manifests import pseudonym

EVENT, PATIENT, COUNT, LOOKUP, FAILED = range(5)
"""Kinds of rows. PATIENT: there is such a patient. COUNT: so many of `source` had the outcome `code` (READ, a key of
DROPS, or NOTE + a key of NOTES). LOOKUP: what `ref` stands for. FAILED: the file (or member `seq`) ended early for the
reason `code`, with `description` for a person."""

ROWS = pa.schema(
    [
        pa.field("kind", pa.int8(), nullable=False),
        pa.field("subject_id", pa.int64()),
        pa.field("check", pa.int64()),  # 64 other bits of the keyed hash: tells two subjects of one id apart
        pa.field("time", pa.timestamp("us")),  # UTC; null = static
        pa.field("code", pa.string()),
        pa.field("numeric_value", pa.float32()),
        pa.field("text_value", pa.large_string()),
        pa.field("unit", pa.int32(), nullable=False),  # which piece of the archive, in the order of names
        pa.field("seq", pa.int64(), nullable=False),  # place within it: with `unit`, the order of the source
        pa.field("source", pa.string()),  # resource type, or the table's name
        pa.field("head", pa.bool_(), nullable=False),  # first event of its resource
        pa.field("ref", pa.string()),
        pa.field("description", pa.string()),
        pa.field("count", pa.int64()),
    ]
)
KEPT = pa.schema([field for field in ROWS if field.name not in ("description", "count")])
"""What a bucket's file holds: EVENT and PATIENT rows."""

READ, FILES, IGNORED, NOTE = "read", "files", "ignored", "note:"

DROPS: dict[str, tuple[str, bool]] = {
    "type_not_mapped": ("a resource type that gives no events", False),
    "no_resource": ("JSON that is no FHIR resource", False),
    "looked_up": ("a Medication: gives its code to the requests that refer to it", False),
    "entered_in_error": ("marked as entered in error, or refuted", False),
    "not_done": ("planned, cancelled, not done, or a draft", False),
    "no_code": ("nothing says what it is, or only free text does", False),
    "no_time": ("nothing says when it was", False),
    "nothing_known": ("a patient without a birth date, a death or a fact", False),
    "subject_no_patient": ("about a group, a device or a place, not a patient", False),
    "by_rule": ("a code that the run file drops", False),
    "missing_value": ("no value, or the number for an unknown one", False),
    "text_value": ("a value that is no number", False),
    "number_mark": ("a number with other decimal or thousands marks than the run file names", True),
    "bounded_value": ("a number with < or >, of which only a bound is known", True),
    "value_with_unit": ("a number with a unit or other text behind it", True),
    "not_json": ("a line that is not JSON", True),
    "bad_row": ("a row with another number of cells", True),
    "unclosed_quote": ("a cell that holds whole rows, behind a quote that is not closed; and those rows", True),
    "bad_time": ("no time that there is", True),
    "no_time_zone": ("a time that names no zone", True),
    "bad_value": ("NaN, infinite, or too large for 32 bits", True),
    "no_id": ("a resource without an id", True),
    "no_subject": ("nothing says whose it is", True),
    "bad_subject": ("an identifier that is not written as a 64-bit integer is", True),
    "unresolved_subject": ("a reference that names no resource", True),
    "unknown_patient": ("of a patient who is not in the archive", True),
    "unknown_medication": ("refers to a Medication that is not in the archive", True),
}
"""Why a resource or row gives no events: (meaning, is it a fault). Faults count for max_failed, rules do not."""

NOTES: dict[str, str] = {
    "date_only": "a time given as a date",
    "month_or_year_only": "a time given as a month or a year",
    "text_left_out": "a text value that was left out",
    "value_left_out": "a value of a kind that MEDS has no column for, left out",
    "bad_value_left_out": "NaN, infinite, or too large for 32 bits, left out",
    "bad_time_left_out": "a birth, death or end whose time is none, left out",
    "end_left_out": "an end at an unknown time, left out",
    "death_without_time": "a death at an unknown time, left out",
    "component_without_code": "a component that nothing says what it is, left out",
    "conclusion_left_out": "a report's conclusion or document, left out",
    "clock_change": "a time that clocks showed twice, or never: the first of two, the end of the gap",
    "two_digit_year": "a year of two digits, read as 1969 to 2068",
    "blanks_at_identifier": "an identifier with blanks at its ends, read without them",
    "repeated_events": "an event that is there twice, kept",
}
"""What else a person should know of resources that were converted; counted per type."""


_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


class Drop(Exception):
    """This resource gives no events. `reason` is a key of DROPS."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Event(NamedTuple):
    time: int | None
    """Microseconds since 1970 in UTC; None: static."""
    code: str
    value: float | None = None
    text: str | None = None
    description: str | None = None
    ref: str | None = None
    """Where the code comes from, if `code` is empty: "Medication/1"."""


class Subjects:
    """Identifiers of a source to (subject_id, check), both int64."""

    def __init__(self, key: bytes, *, keep: bool = False) -> None:
        self.key, self.keep = key, keep
        self.known: dict[str, tuple[int, int]] = {}

    def __call__(self, identifier: str) -> tuple[int, int]:
        """63 bits of HMAC-SHA256, which are the last of `manifests.pseudonym`. Raises Drop for a kept id that is none."""
        found = self.known.get(identifier)
        if found is None:
            found = self._kept(identifier) if self.keep else self._keyed(identifier)
            if len(self.known) >= 2**16:
                self.known.clear()
            self.known[identifier] = found
        return found

    def _keyed(self, identifier: str) -> tuple[int, int]:
        other = hmac.new(self.key, b"check\0" + identifier.encode(), hashlib.sha256).digest()[:8]
        subject = int(pseudonym(identifier, self.key), 16) & (2**63 - 1)
        return subject, int.from_bytes(other, "big", signed=True)

    def _kept(self, identifier: str) -> tuple[int, int]:
        """One identifier, one number: Python's int() would take 1_23, 007 and digits of other scripts as well."""
        if not _INTEGER.fullmatch(identifier) or not -(2**63) <= int(identifier) < 2**63:
            raise Drop("bad_subject")
        return int(identifier), 0


class Writer:
    """Rows of one unit, event by event; `take` gives what has come in as a batch."""

    def __init__(self, unit: int) -> None:
        self.unit, self.seq = unit, 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self.columns: dict[str, list] = {}
        self._clear()

    def _clear(self) -> None:
        self.columns = {field.name: [] for field in ROWS}

    def __len__(self) -> int:
        return len(self.columns["kind"])

    def _row(self, kind: int, *values: object) -> None:
        for column, value in zip(self.columns.values(), (kind, *values), strict=True):
            column.append(value)

    def events(self, source: str, subject: tuple[int, int], events: list[Event]) -> None:
        head = True
        for e in events:
            self._row(
                EVENT, *subject, e.time, e.code or None, e.value, e.text, self.unit, self.seq, source, head, e.ref,
                e.description, None,
            )  # fmt: skip
            self.seq += 1
            head = False

    def patient(self, subject: tuple[int, int]) -> None:
        self._row(PATIENT, *subject, None, None, None, None, self.unit, self.seq, None, False, None, None, None)

    def lookup(self, ref: str, code: str, description: str | None) -> None:
        self._row(LOOKUP, None, None, None, code, None, None, self.unit, 0, None, False, ref, description, None)

    def failed(self, member: int, error: SampleError) -> None:
        detail = error.detail
        self._row(
            FAILED, None, None, None, error.reason, None, None, self.unit, member, None, False, None, detail, None
        )

    def lost_file(self, start: int, error: SampleError) -> None:
        """A file of which no (further) member can be told: one file more that was looked at, and one that failed."""
        if start == 0:
            self.count("", FILES)
        self.failed(-1, error)

    def count(self, source: str, outcome: str, number: int = 1) -> None:
        self.counts[source, outcome] += number

    def finish(self) -> None:
        for (source, outcome), number in self.counts.items():
            self._row(COUNT, None, None, None, outcome, None, None, self.unit, 0, source, False, None, None, number)
        self.counts.clear()

    def take(self) -> Iterator[pa.RecordBatch]:
        """What has come in since the last call, if anything."""
        if len(self):
            arrays = [pa.array(self.columns[field.name], field.type) for field in ROWS]
            yield pa.RecordBatch.from_arrays(arrays, schema=ROWS)
            self._clear()
