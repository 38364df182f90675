"""FHIR files to rows: NDJSON line by line, Bundles and arrays whole. References are resolved, subjects keyed, outcomes
counted; which version of a resource is the newest is found later, over all files (versions.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO
from zoneinfo import ZoneInfo

import orjson
import pyarrow as pa
import xxhash

from medray.errors import SampleError
from medray.modalities.ehr.convert.events import (
    DELETION,
    FILES,
    IGNORED,
    NOTE,
    READ,
    Drop,
    Origin,
    Subjects,
    Writer,
)
from medray.modalities.ehr.convert.fhir import json, status
from medray.modalities.ehr.convert.fhir.codes import coding, rows, table, text
from medray.modalities.ehr.convert.fhir.json import JsonObject, JsonValue
from medray.modalities.ehr.convert.fhir.reading import Reading
from medray.modalities.ehr.convert.fhir.references import (
    BundleContext,
    Keys,
    ResourceId,
    bundle_context,
    is_of_another,
    literal,
    of_entry,
    resolve,
)
from medray.modalities.ehr.convert.fhir.resources import MAPPERS
from medray.modalities.ehr.convert.fhir.times import moment
from medray.modalities.ehr.convert.members import Member, Unit, broken_files, members
from medray.modalities.ehr.convert.settings import FhirSource

ROWS_AT_ONCE = 16_384
NDJSON = (".ndjson", ".jsonl", ".ndjson.gz", ".jsonl.gz")
JSON = (".json", ".json.gz")
NO_JSON, NO_RESOURCE, MANIFEST = "(not JSON)", "(no resource)", "(manifest)"
LINKS = ("replaced-by", "replaces", "refer", "seealso")
"""FHIR R4 Patient.link.type, required binding."""

_TYPE = re.compile(r"[A-Z][A-Za-z]{1,39}")
_NUMBER = re.compile(r"(?:W/)?\"?(\d{1,18})\"?")


class FhirParser:
    """Units of FHIR files to rows (events.ROWS)."""

    def __init__(self, source: FhirSource, key: bytes) -> None:
        self.source, self.subjects, self.keys = source, Subjects(key), Keys(key)
        self.zone = ZoneInfo(source.time_zone) if source.time_zone else None

    def __call__(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        self.resources = 0
        writer = Writer(unit.unit)
        try:
            for member in members(unit.uri):
                yield from self._member(unit, member, writer)
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
                stream = member.open()
                if name.endswith(JSON):
                    self._document(stream, writer)
                    return
                for line in json.lines(stream, unit.start, unit.end if unit.end < unit.size else None):
                    self._line(line, writer)
                    if len(writer) >= ROWS_AT_ONCE:
                        yield from writer.take()
        except SampleError as error:
            writer.failed(member.number, error)

    def _document(self, stream: BinaryIO, writer: Writer) -> None:
        content = json.without_mark(stream.read())
        if not content.strip():
            raise SampleError("empty_file")
        values, broken = json.documents(content)
        if values == [[]]:
            raise SampleError("unrecognised_format", "an empty list")
        for each in values:
            self._value(each, writer)
        if broken:
            writer.count(NO_JSON, READ, broken)
            writer.count(NO_JSON, "not_json", broken)

    def _line(self, line: bytes, writer: Writer) -> None:
        if not line.strip():
            return
        try:
            value = json.load(line)
        except orjson.JSONDecodeError:
            writer.count(NO_JSON, READ)
            writer.count(NO_JSON, "not_json")
            return
        self._value(value, writer)

    def _value(self, value: JsonValue, writer: Writer) -> None:
        for each in value if isinstance(value, list) else [value]:
            self._resource(each, writer, BundleContext(), None)

    def _resource(self, value: JsonValue, writer: Writer, where: BundleContext, url: str | None) -> None:
        """Count a JSON value as read, and write its events or why there are none. A Bundle is read entry by entry."""
        content = table(value)
        kind = content.get("resourceType")
        if kind == "Bundle":
            self._bundle(content, writer, where.refused)
            return
        source = kind if isinstance(kind, str) and _TYPE.fullmatch(kind) else NO_RESOURCE
        if source == NO_RESOURCE and {"transactionTime", "output"} <= content.keys():
            self._manifest(content, writer)
            return
        writer.count(source, READ)
        if source not in MAPPERS and source != "Medication":
            writer.count(source, "no_resource" if source == NO_RESOURCE else "type_not_mapped")
            return
        self._mapped(source, content, writer, where, of_entry(url, content))

    def _manifest(self, manifest: JsonObject, writer: Writer) -> None:
        """Count the manifest of a bulk export (Bulk Data Access IG); files of deletions hold Bundles, read as any other."""
        writer.count(MANIFEST, READ)
        writer.count(MANIFEST, "manifest")
        if manifest.get("deleted"):
            writer.count(MANIFEST, NOTE + "names_deletions")

    # --- Bundles ----------------------------------------------------------------------------------------------------

    def _bundle(self, bundle: JsonObject, writer: Writer, refused: str | None) -> None:
        entries = rows(bundle.get("entry"))
        if bundle.get("implicitRules"):
            refused = "implicit_rules"
        elif json.TWICE in bundle:
            refused = "duplicate_keys"
        where = bundle_context(entries, refused)
        for entry in entries:
            request = table(entry.get("request"))
            method, url = request.get("method"), text(entry.get("fullUrl"))
            if method == "DELETE":
                self._deletion(bundle, entry, writer)
                continue
            if method == "PATCH" and bundle.get("type") != "history":
                _not_applied(request, writer)
                continue
            own = literal(url) if url else None
            where.base = own.server if own else ""
            around_it = {name: value for name, value in entry.items() if name != "resource"}
            where.refused = refused or _refused(around_it)
            resource = entry.get("resource")
            if isinstance(resource, dict):
                _add_version_of_entry(resource, table(entry.get("response")))
            self._resource(resource, writer, where, url)

    def _deletion(self, bundle: JsonObject, entry: JsonObject, writer: Writer) -> None:
        """Write a deletion: an entry whose request is DELETE, of a history or of an export's `deleted` (Bulk Data Access
        IG). It removes the versions that are not newer. Its time is the entry's, else the Bundle's; without either it
        removes every version."""
        writer.count(DELETION, READ)
        urls = (text(entry.get("fullUrl")), text(table(entry.get("request")).get("url")))
        names = [name for url in urls if url and (name := literal(url)) is not None]
        if not names:
            writer.count(DELETION, "not_applied")
            return
        response, meta = table(entry.get("response")), table(bundle.get("meta"))
        updated = text(response.get("lastModified")) or text(meta.get("lastUpdated")) or text(bundle.get("timestamp"))
        version = re.search(r"/_history/(\d{1,18})$", urls[1] or "")
        writer.version(
            DELETION, "deletion", [], key=self.keys.resource(names[0]), server=self.keys.server(names[0].server),
            resource=self._next(), time=_instant(updated),
            version=int(version[1]) if version else _number(response.get("etag")),
        )  # fmt: skip

    # --- resources --------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        self.resources += 1
        return self.resources

    def _mapped(
        self, kind: str, content: JsonObject, writer: Writer, where: BundleContext, own: ResourceId | None
    ) -> None:
        """Write a resource of a mapped type, or why it gives no events."""
        source = self.source
        reading = Reading(source.dates, self.zone, source.untimed == "static", source.text, source.time)
        each = _Resource(kind, content, where, own, reading, Origin(self._next()))
        subject: tuple[int, int] | None = None
        outcome: str | None = None
        try:
            who = self._whose(each, writer)
            subject = self.subjects(who.id)
            self._write(each, writer, subject, each.origin._replace(server=self.keys.server(who.server)))
        except Drop as drop:
            outcome = drop.reason
        if own is None:
            for name in [outcome] if outcome else [NOTE + note for note in reading.notes]:
                writer.count(kind, name)
            return
        meta = table(content.get("meta"))
        writer.version(
            kind, outcome, [] if outcome else reading.notes, subject_id=subject and subject[0],
            key=self.keys.resource(own), server=self.keys.server(own.server), resource=each.origin.resource,
            time=_instant(text(meta.get("lastUpdated"))), version=_number(meta.get("versionId")),
            digest=xxhash.xxh3_64_intdigest(repr((outcome, subject, each.made)).encode()) - 2**63,
        )  # fmt: skip

    def _whose(self, each: _Resource, writer: Writer) -> ResourceId:
        """The patient of a resource that is valid and fully understood. Raises Drop where it gives no events."""
        if each.where.refused:
            raise Drop(each.where.refused)
        if json.names_twice(each.content):
            raise Drop("duplicate_keys")
        status.refuse_modifiers(each.kind, each.content)
        each.reading.suffix = status.meaning(each.kind, each.content, each.reading.notes)
        if each.kind == "Medication":
            self._look_up(each, writer)
            raise Drop("looked_up")
        who = _subject(each.content, MAPPERS[each.kind][1], each.where, each.own)
        if each.kind == "Observation" and is_of_another(each.content, who, each.where):
            raise Drop("of_another")
        return who

    def _write(self, each: _Resource, writer: Writer, subject: tuple[int, int], origin: Origin) -> None:
        """Write the rows of a resource; a patient about whom nothing is known is still one. Raises Drop where it gives no
        events."""
        content = self._with_medication(each) if each.kind == "MedicationRequest" else each.content
        if each.kind == "Patient":
            links = _links(each)
            each.made += links
            writer.patient(subject, origin)
            for kind, other in links:
                writer.link(subject, origin, kind, self.subjects(other.id), self.keys.server(other.server))
        events = MAPPERS[each.kind][0](content, each.reading)
        each.made += [tuple(event._replace(ref_server=0) if event.ref else event) for event in events]
        if any(inside.get("resourceType") in MAPPERS for inside in rows(content.get("contained"))):
            each.reading.notes.append("contained_left_out")
        writer.events(each.kind, subject, events, origin)

    def _with_medication(self, each: _Resource) -> JsonObject:
        """The request with the code of its contained Medication; a reference to another one goes to `reading.medication`
        for the later look-up. Raises Drop."""
        request = each.content
        if table(request.get("medicationCodeableConcept")) or "medicationReference" not in request:
            return request
        target = text(table(request["medicationReference"]).get("reference")) or ""
        if target.startswith("#"):
            inside = [each for each in rows(request.get("contained")) if each.get("id") == target[1:]]
            if inside:
                status.meaning("Medication", inside[0], [])
            return request | {"medicationCodeableConcept": inside[0].get("code") if inside else None}
        reference = resolve(request["medicationReference"], each.where)
        if reference is None or reference.type not in ("Medication", ""):
            raise Drop("unknown_medication")
        each.reading.medication = f"Medication/{reference.id}", self.keys.server(reference.server)
        return request

    def _look_up(self, each: _Resource, writer: Writer) -> None:
        code = coding(each.content.get("code"))
        each.made.append(code)
        if each.own and code:
            origin = each.origin._replace(server=self.keys.server(each.own.server))
            writer.lookup(f"Medication/{each.own.id}", code.code, code.display, origin)


@dataclass
class _Resource:
    """One resource of a mapped type, and what is made of it."""

    kind: str
    content: JsonObject
    where: BundleContext
    own: ResourceId | None
    """Its own identity, where it has an id."""
    reading: Reading
    origin: Origin
    made: list[object] = field(default_factory=list[object])
    """Events, links or the code made of it: versions that make the same need no order."""


def _links(each: _Resource) -> list[tuple[str, ResourceId]]:
    """(type, other patient) of each Patient.link. Raises Drop for a type that is not of FHIR R4."""
    links: list[tuple[str, ResourceId]] = []
    for link in rows(each.content.get("link")):
        kind = link.get("type")
        if not isinstance(kind, str) or kind not in LINKS:
            raise Drop("unknown_status")
        other = resolve(link.get("other"), each.where)
        if other is None:
            each.reading.notes.append("link_unresolved")
        elif other.type in ("Patient", ""):
            links.append((kind, other))
    return links


def _subject(content: JsonObject, element: str, where: BundleContext, own: ResourceId | None) -> ResourceId:
    """The patient that an element names; the resource itself where `element` is empty. Raises Drop."""
    if not element:
        if own is None:
            raise Drop("no_id")
        return own
    named = table(content.get(element))
    if not text(named.get("reference")):
        raise Drop("identifier_only" if named.get("identifier") else "no_subject")
    reference = resolve(named, where)
    if reference is None:
        raise Drop("unresolved_subject")
    if reference.type not in ("Patient", ""):
        raise Drop("subject_no_patient")
    return reference


def _refused(entry: JsonObject) -> str | None:
    """Why an entry of a Bundle cannot be understood, whatever its resource says: a key of DROPS, or None."""
    if b'"modifierExtension":' in orjson.dumps(entry):
        return "modifier_extension"
    return "duplicate_keys" if json.TWICE in entry else None


def _not_applied(request: JsonObject, writer: Writer) -> None:
    """Count a change of a part of a resource (PATCH) under the type that it would change."""
    named = literal(text(request.get("url")) or "")
    source = named.type if named else NO_RESOURCE
    writer.count(source, READ)
    writer.count(source, "not_applied")


def _add_version_of_entry(resource: JsonObject, response: JsonObject) -> None:
    """Add to `resource.meta` the version that Bundle.entry.response of a history names; what meta says itself stays."""
    stated = {"lastUpdated": response.get("lastModified"), "versionId": response.get("etag")}
    if any(stated.values()):
        resource["meta"] = {name: value for name, value in stated.items() if value} | table(resource.get("meta"))


def _instant(value: str | None) -> int | None:
    """Microseconds since 1970 in UTC of a FHIR time; None where it cannot be read."""
    try:
        return moment(value or "", "start", None).us
    except Drop:
        return None


def _number(value: JsonValue) -> int | None:
    """A meta.versionId or an ETag as a number; None where it is not numeric."""
    match = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    return int(match[1]) if match else None
