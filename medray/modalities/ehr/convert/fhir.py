"""FHIR files to rows: NDJSON line by line, Bundles whole. References are resolved, subjects keyed, outcomes counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo

import orjson
import pyarrow as pa

from medray.errors import SampleError
from medray.modalities.ehr.convert.codes import coding, rows, table, text
from medray.modalities.ehr.convert.events import FILES, IGNORED, NOTE, READ, Drop, Subjects, Writer
from medray.modalities.ehr.convert.fhir_resources import MAPPERS, Reading, Reference, in_error
from medray.modalities.ehr.convert.members import Member, Unit, broken_files, members
from medray.modalities.ehr.convert.settings import FhirSource

ROWS_AT_ONCE = 16_384
NDJSON = (".ndjson", ".jsonl", ".ndjson.gz", ".jsonl.gz")
JSON = (".json", ".json.gz")
NO_JSON, NO_RESOURCE = "(not JSON)", "(no resource)"

_TYPE = re.compile(r"[A-Z][A-Za-z]{1,39}")
# [base/]Type/id[/_history/version], hl7.org/fhir/R4/references.html#literal
_LITERAL = re.compile(r"(?:.*/)?([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/[^/]+)?")
_UUID = re.compile(r"urn:(?:uuid|oid):([A-Za-z0-9\-.]{1,64})")

Known = dict[str, Reference]
"""fullUrl of a Bundle's entry to what it names."""


class FhirParser:
    def __init__(self, source: FhirSource, key: bytes) -> None:
        self.source, self.subjects = source, Subjects(key)
        self.zone = ZoneInfo(source.time_zone) if source.time_zone else None

    def __call__(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        writer = Writer(unit.unit)
        try:
            for found in members(unit.uri):
                yield from self._member(unit, found, writer)
        except SampleError as error:  # of the file before its first member, or between two
            writer.lost_file(unit.start, error)
        writer.finish()
        yield from writer.take()

    def _member(self, unit: Unit, member: Member, writer: Writer) -> Iterator[pa.RecordBatch]:
        name = member.name.lower()
        if not name.endswith((*NDJSON, *JSON)):
            writer.count("", IGNORED)
            return
        if unit.start == 0:
            writer.count("", FILES)
        try:
            with broken_files():
                if name.endswith(JSON):
                    self._document(member.stream, writer)
                    return
                for line in lines(member.stream, unit.start, unit.end if unit.end < unit.size else None):
                    self._line(line, writer)
                    if len(writer) >= ROWS_AT_ONCE:
                        yield from writer.take()
        except SampleError as error:
            writer.failed(member.index, error)

    def _document(self, stream: BinaryIO, writer: Writer) -> None:
        content = stream.read()
        if not content.strip():
            raise SampleError("empty_file")
        try:
            found = orjson.loads(content)
        except orjson.JSONDecodeError:
            raise SampleError("corrupt", "not JSON") from None
        self._resource(found, writer, {})

    def _line(self, line: bytes, writer: Writer) -> None:
        if not line.strip():
            return
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError:
            writer.count(NO_JSON, READ)
            writer.count(NO_JSON, "not_json")
            return
        self._resource(found, writer, {})

    def _resource(self, found: Any, writer: Writer, known: Known) -> None:
        """Count it as read; its events, or why there are none. A Bundle is its entries."""
        kind = table(found).get("resourceType")
        if kind == "Bundle":
            entries = rows(found.get("entry"))
            known = _known(entries)
            for entry in entries:
                self._resource(entry.get("resource"), writer, known)
            return
        source = kind if isinstance(kind, str) and _TYPE.fullmatch(kind) else NO_RESOURCE
        writer.count(source, READ)
        if source == NO_RESOURCE:
            writer.count(source, "no_resource")
            return
        try:
            self._events(source, found, writer, known)
        except Drop as drop:
            writer.count(source, drop.reason)

    def _events(self, source: str, found: dict[str, Any], writer: Writer, known: Known) -> None:
        if source == "Medication":
            _look_up(found, writer)
            raise Drop("looked_up")
        if source not in MAPPERS:
            raise Drop("type_not_mapped")
        if in_error(found):
            raise Drop("entered_in_error")
        mapper, whose = MAPPERS[source]
        if source == "MedicationRequest":
            found = _with_medication(found, known)
        subject = self.subjects(_subject(found, whose, known))
        if source == "Patient":
            writer.patient(subject)
        source_ = self.source
        reading = Reading(source_.dates, self.zone, source_.untimed == "static", source_.text)
        events = mapper(found, reading)
        writer.events(source, subject, events)
        for note in reading.notes:
            writer.count(source, NOTE + note)


def lines(stream: BinaryIO, start: int, end: int | None) -> Iterator[bytes]:
    """The lines whose first byte is in start … end of the file; a packed file is one range."""
    place = start
    if start:
        _go_to(stream, start - 1)
        place += len(stream.readline()) - 1  # the rest of the line before
    while end is None or place < end:
        line = stream.readline()
        if not line:
            return
        place += len(line)
        yield line


def _go_to(stream: BinaryIO, place: int) -> None:
    if stream.seekable():
        stream.seek(place)
        return
    while place and (piece := stream.read(min(place, 2**20))):  # packed, under a plain name
        place -= len(piece)


# --- references -------------------------------------------------------------------------------------------------


def _known(entries: list[dict[str, Any]]) -> Known:
    """What the full URLs of a Bundle's entries name (hl7.org/fhir/R4/bundle.html#references)."""
    found = {}
    for entry in entries:
        url, resource = text(entry.get("fullUrl")), table(entry.get("resource"))
        kind, name = resource.get("resourceType"), text(resource.get("id"))
        if url and isinstance(kind, str):
            uuid = _UUID.fullmatch(url)
            known = name or (uuid and uuid[1])
            if known:
                found[url] = Reference(kind, known)
                if name is None:
                    resource["id"] = known
    return found


def resolve(value: Any, known: Known) -> Reference | None:
    """What a Reference names: an entry of the Bundle, or type and id. None: nothing, or only text."""
    literal = text(table(value).get("reference"))
    if literal is None:
        return None
    if literal in known:
        return known[literal]
    if found := _UUID.fullmatch(literal):
        return Reference("", found[1])
    found = _LITERAL.fullmatch(literal)
    return Reference(found[1], found[2]) if found else None


def _subject(found: dict[str, Any], whose: str, known: Known) -> str:
    """The id of the patient. Raises Drop."""
    if not whose:
        name = text(found.get("id"))
        if name is None:
            raise Drop("no_id")
        return name
    named = table(found.get(whose))
    if not text(named.get("reference")):
        raise Drop("no_subject")
    reference = resolve(named, known)
    if reference is None:
        raise Drop("unresolved_subject")
    if reference.type not in ("Patient", ""):
        raise Drop("subject_no_patient")
    return reference.id


def _with_medication(found: dict[str, Any], known: Known) -> dict[str, Any]:
    """A request whose medication is a reference: the contained one's code, or the reference for the later look-up."""
    if table(found.get("medicationCodeableConcept")) or "medicationReference" not in found:
        return found
    literal = text(table(found["medicationReference"]).get("reference")) or ""
    if literal.startswith("#"):
        inside = [each for each in rows(found.get("contained")) if each.get("id") == literal[1:]]
        return found | {"medicationCodeableConcept": inside[0].get("code") if inside else None}
    reference = resolve(found["medicationReference"], known)
    if reference is None or reference.type not in ("Medication", ""):
        raise Drop("unknown_medication")
    return found | {"medication_ref": f"Medication/{reference.id}"}


def _look_up(found: dict[str, Any], writer: Writer) -> None:
    name, code = text(found.get("id")), coding(found.get("code"))
    if name and code:
        writer.lookup(f"Medication/{name}", code.code, code.display)
