"""ROWS, what every parser of a source gives: events, patients, counts, look-ups, failed files, in one schema."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from medray.archive.pseudonyms import pseudonym
from medray.errors import SampleError

EVENT, PATIENT, COUNT, LOOKUP, FAILED, VERSION, LINK = range(7)
"""Kinds of rows. PATIENT: there is such a patient. COUNT: so many of `source` had the outcome `code` (READ, a key of
DROPS, or NOTE + a key of NOTES). LOOKUP: the code that `ref` refers to. FAILED: the file (or member `seq`) ended early for the
reason `code`, with `description` for a person. VERSION: a resource with an id, or its deletion (`source` DELETION): its
outcome is counted once it is known which version is the newest. LINK: the subject is that of `key`, by `code`."""

ROWS = pa.schema(
    [
        pa.field("kind", pa.int8(), nullable=False),
        pa.field("subject_id", pa.int64()),
        pa.field("check", pa.int64()),  # 64 other bits of the keyed hash: differs where two subjects have one id
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
        pa.field("server", pa.int64()),  # keyed hash of the server of the id; 0 or null: none is named
        pa.field("resource", pa.int64()),  # which resource of the unit
        pa.field("day", pa.int32()),  # the first day as it was written, since 1970-01-01
        pa.field("days", pa.int32()),  # how many days a date without a time has; 0: a time is given
        pa.field("why", pa.string()),  # why it is no event after all
        pa.field("key", pa.int64()),  # VERSION: keyed hash of type and id. LINK: the other subject
        pa.field("key_check", pa.int64()),  # 64 other bits of it
        pa.field("key_server", pa.int64()),  # of `key`, or of `ref`
        pa.field("version", pa.int64()),  # meta.versionId, where it is a number; `time` is meta.lastUpdated
        pa.field("digest", pa.int64()),  # of what is made of it
    ]
)
BUCKET_ROWS = pa.schema(
    [field for field in ROWS if field.name not in ("description", "count", "key", "key_check", "version", "digest")]
)
"""Columns of a bucket's file: EVENT and PATIENT rows."""
CODES = pa.schema([("code", pa.string()), ("description", pa.string()), ("count", pa.int64())])
"""Codes with what they are called, and how many events or look-ups have both."""

READ, FILES, IGNORED, NOTE = "read", "files", "ignored", "note:"
DELETION = "(deletion)"
"""Source type of what a history or an export says was deleted."""

DROPS: dict[str, tuple[str, bool]] = {
    "type_not_mapped": ("a resource type that gives no events", False),
    "no_resource": ("JSON that is no FHIR resource", False),
    "looked_up": ("a Medication: gives its code to the requests that refer to it", False),
    "superseded": ("an older version of a resource, or the same one again", False),
    "deleted": ("the source says that it was deleted", False),
    "deletion": ("says that a resource was deleted, and removes it", False),
    "replaced_patient": ("facts of a patient record that another one has replaced", False),
    "entered_in_error": ("marked as entered in error", False),
    "refuted": ("a diagnosis or an allergy that was ruled out", False),
    "not_done": ("planned, cancelled, not done, not performed, forbidden, or a draft", False),
    "proposed": ("a proposal, a plan or an option, not an order", False),
    "no_result": ("registered, or expected, but without a result", False),
    "no_longer": ("a device that is no longer in use", False),
    "of_another": ("about somebody else than the subject: a fetus, a donor, a relative", False),
    "test_data": ("labelled as data of a test", False),
    "manifest": ("the manifest of an export", False),
    "no_code": ("nothing says what it is, or only free text does", False),
    "no_time": ("nothing says when it was", False),
    "nothing_known": ("a patient without a birth date, a death or a fact", False),
    "subject_no_patient": ("about a group, a device or a place, not a patient", False),
    "by_rule": ("a code that the run file drops", False),
    "missing_value": ("no value, or the number for an unknown one", False),
    "text_value": ("a value that is no number", False),
    "number_mark": ("a number with other decimal or thousands marks than the run file names", True),
    "bounded_value": ("a number with < or >: only a bound is known", True),
    "value_with_unit": ("a number followed by a unit or other text", True),
    "not_json": ("a line that is not JSON", True),
    "not_text": ("a row with bytes that are no text of the table's encoding", True),
    "bad_row": ("a row with another number of cells", True),
    "unclosed_quote": ("a cell that swallowed whole rows after a quote that is not closed; and those rows", True),
    "bad_time": ("a time that does not exist or cannot be read", True),
    "no_time_zone": ("a time that names no zone", True),
    "bad_value": ("NaN, infinite, or too large for 32 bits", True),
    "unknown_status": ("a status, an intent or a link that FHIR R4 does not have", True),
    "modifier_extension": ("an extension that may reverse its meaning", True),
    "implicit_rules": ("made by rules of its own (implicitRules)", True),
    "contradictory": ("two values, or a value and a reason for a missing one", True),
    "duplicate_keys": ("JSON that names one property twice", True),
    "unordered_versions": ("versions that differ, without anything to tell the newest", True),
    "incomplete": ("a search left elements out of it (SUBSETTED)", True),
    "not_applied": ("a change that names no resource, or only a part of one", True),
    "identifier_only": ("names its patient by a business identifier alone", True),
    "no_id": ("a resource without an id", True),
    "no_subject": ("names no patient", True),
    "bad_subject": ("an identifier that is not written as a 64-bit integer", True),
    "unresolved_subject": ("a reference that names no resource", True),
    "unknown_patient": ("of a patient who is not in the archive", True),
    "unknown_medication": ("refers to a Medication that is not in the archive", True),
}
"""Why a resource or row gives no events: (meaning, is it a fault). Faults count for max_failed, rules do not."""

NOTES: dict[str, str] = {
    "known_later": "is at the time it was recorded or issued, later than it happened",
    "before_recorded": "is at the time it happened, before it was recorded or issued",
    "no_status": "a status or intent that FHIR R4 requires is missing, taken as valid",
    "status_unknown": "the status is `unknown`, taken as valid",
    "preliminary": "a preliminary or partial result",
    "unconfirmed": "not confirmed: a code of its own",
    "inactive_patient": "a patient record that is not in active use",
    "link_unresolved": "a link to another record of the patient that names none",
    "long_code_hashed": "a code longer than 64 characters: its hash is the code",
    "long_unit_hashed": "a unit longer than 24 characters: its hash is the unit",
    "number_as_text": "a number given as text, left out",
    "unknown_comparator": "a comparator that FHIR R4 does not have: the number is left out",
    "value_absent": "a measurement whose value is masked, in the text, or no number",
    "component_left_out": "a component that was not measured or contradicts itself, left out",
    "contained_left_out": "resources inside another, left out",
    "names_deletions": "a manifest that names files of deletions: they must be in the archive",
    "planned_end_left_out": "an end of what has not ended, left out",
    "end_before_start": "an end before the start, left out",
    "date_only": "a time given as a date",
    "month_or_year_only": "a time given as a month or a year",
    "text_left_out": "a text value that was left out",
    "value_left_out": "a value of a kind that MEDS has no column for, left out",
    "bad_value_left_out": "NaN, infinite, or too large for 32 bits, left out",
    "bad_time_left_out": "a birth, death or end whose time cannot be read, left out",
    "end_left_out": "an end at an unknown time, left out",
    "death_without_time": "a death at an unknown time, left out",
    "component_without_code": "a component without a code, left out",
    "conclusion_left_out": "a report's conclusion or document, left out",
    "clock_change": "a time that clocks showed twice or never: read as the first of the two, or as the end of the gap",
    "two_digit_year": "a year of two digits, read as 1969 to 2068",
    "blanks_at_identifier": "an identifier with blanks at its ends, read without them",
    "repeated_events": "an event that occurs twice, kept",
}
"""Further remarks on resources that were converted; counted per type."""


_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")


class Drop(Exception):
    """A resource gives no events. `reason` is a key of DROPS."""

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
    ref_server: int = 0
    day: int | None = None
    """The first day as it was written, since 1970-01-01."""
    days: int = 0
    """How many days a date, a month or a year without a time has; 0: a time is given."""


class Origin(NamedTuple):
    """The resource of a unit that a row was made of, and the server that its subject's id belongs to."""

    resource: int | None = None
    server: int = 0


NOWHERE = Origin()


class Subjects:
    """Turns identifiers of a source into (subject_id, check), both int64."""

    def __init__(self, key: bytes, *, keep: bool = False) -> None:
        self.key, self.keep = key, keep
        self.known: dict[str, tuple[int, int]] = {}

    def __call__(self, identifier: str) -> tuple[int, int]:
        """63 bits of HMAC-SHA256, the last of `pseudonyms.pseudonym`. With `keep`, the
        identifier as an integer; raises Drop where it is not written as one."""
        subject = self.known.get(identifier)
        if subject is None:
            subject = self._kept(identifier) if self.keep else self._keyed(identifier)
            if len(self.known) >= 2**16:
                self.known.clear()
            self.known[identifier] = subject
        return subject

    def _keyed(self, identifier: str) -> tuple[int, int]:
        other = hmac.new(self.key, b"check\0" + identifier.encode(), hashlib.sha256).digest()[:8]
        subject = int(pseudonym(identifier, self.key), 16) & (2**63 - 1)
        return subject, int.from_bytes(other, "big", signed=True)

    def _kept(self, identifier: str) -> tuple[int, int]:
        """The identifier as an integer, where it is written in the one usual way: Python's int() would accept 1_23, 007 and
        digits of other scripts as well. Raises Drop."""
        if not _INTEGER.fullmatch(identifier) or not -(2**63) <= int(identifier) < 2**63:
            raise Drop("bad_subject")
        return int(identifier), 0


class _Row(NamedTuple):
    """One row of ROWS, field by field."""

    kind: int
    subject_id: int | None = None
    check: int | None = None
    time: int | None = None
    code: str | None = None
    numeric_value: float | None = None
    text_value: str | None = None
    unit: int = 0
    seq: int = 0
    source: str | None = None
    head: bool = False
    ref: str | None = None
    description: str | None = None
    number: int | None = None
    """The column `count`."""
    server: int | None = None
    resource: int | None = None
    day: int | None = None
    days: int | None = None
    why: str | None = None
    key: int | None = None
    key_check: int | None = None
    key_server: int | None = None
    version: int | None = None
    digest: int | None = None


class Writer:
    """Collects the rows of one unit; `take` returns them as a batch (ROWS)."""

    def __init__(self, unit: int) -> None:
        self.unit, self.seq = unit, 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self.rows: list[_Row] = []

    def __len__(self) -> int:
        return len(self.rows)

    def events(self, source: str, subject: tuple[int, int], events: list[Event], origin: Origin = NOWHERE) -> None:
        for number, e in enumerate(events):
            self.rows.append(_Row(
                EVENT, subject_id=subject[0], check=subject[1], time=e.time, code=e.code or None, numeric_value=e.value,
                text_value=e.text, unit=self.unit, source=source, head=number == 0, ref=e.ref, key_server=e.ref_server,
                day=e.day, days=e.days, description=e.description, resource=origin.resource, server=origin.server,
                seq=self.seq,
            ))  # fmt: skip
            self.seq += 1

    def patient(self, subject: tuple[int, int], origin: Origin = NOWHERE) -> None:
        self.rows.append(_Row(
            PATIENT, subject_id=subject[0], check=subject[1], unit=self.unit, resource=origin.resource,
            server=origin.server,
        ))  # fmt: skip

    def lookup(self, ref: str, code: str, description: str | None, origin: Origin = NOWHERE) -> None:
        self.rows.append(_Row(
            LOOKUP, code=code, unit=self.unit, ref=ref, description=description, resource=origin.resource,
            server=origin.server,
        ))  # fmt: skip

    def version(
        self,
        source: str,
        outcome: str | None,
        notes: list[str],
        *,
        key: tuple[int, int],
        server: int,
        resource: int | None,
        time: int | None,
        version: int | None,
        subject_id: int | None = None,
        digest: int | None = None,
    ) -> None:
        """Add a resource with an id and what became of it: a key of DROPS, or None where it gave events, with notes."""
        self.rows.append(_Row(
            VERSION, subject_id=subject_id, time=time, code=outcome, unit=self.unit, source=source,
            description=",".join(notes) or None, server=server, resource=resource, key=key[0], key_check=key[1],
            version=version, digest=digest,
        ))  # fmt: skip

    def link(self, subject: tuple[int, int], origin: Origin, kind: str, other: tuple[int, int], server: int) -> None:
        self.rows.append(_Row(
            LINK, subject_id=subject[0], check=subject[1], unit=self.unit, resource=origin.resource, server=origin.server,
            code=kind, key=other[0], key_check=other[1], key_server=server,
        ))  # fmt: skip

    def failed(self, member: int, error: SampleError) -> None:
        self.rows.append(_Row(FAILED, seq=member, code=error.reason, unit=self.unit, description=error.detail))

    def lost_file(self, start: int, error: SampleError) -> None:
        """Count a file as read and as failed, because its members, or those that follow, cannot be listed."""
        if start == 0:
            self.count("", FILES)
        self.failed(-1, error)

    def count(self, source: str, outcome: str, number: int = 1) -> None:
        self.counts[source, outcome] += number

    def finish(self) -> None:
        for (source, outcome), number in self.counts.items():
            self.rows.append(_Row(COUNT, code=outcome, unit=self.unit, source=source, number=number))
        self.counts.clear()

    def take(self) -> Iterator[pa.RecordBatch]:
        """One batch of the rows since the last call; none where there are none."""
        if self.rows:
            columns = zip(*self.rows, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, ROWS, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=ROWS)
            self.rows = []
