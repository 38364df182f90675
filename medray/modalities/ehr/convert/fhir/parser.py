"""FHIR files to rows: NDJSON line by line, Bundles and arrays whole. References are resolved, subjects keyed, outcomes
counted; which version of a resource is the newest is found later, over all files (versions.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo

import orjson
import pyarrow as pa
import xxhash

from medray.errors import SampleError
from medray.modalities.ehr.convert.codes import coding, rows, table, text
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
from medray.modalities.ehr.convert.fhir.reading import Reading
from medray.modalities.ehr.convert.fhir.references import (
    Around,
    Keys,
    Reference,
    around,
    is_of_another,
    literal,
    of_entry,
    resolve,
)
from medray.modalities.ehr.convert.fhir.resources import MAPPERS
from medray.modalities.ehr.convert.members import Member, Unit, broken_files, members
from medray.modalities.ehr.convert.settings import FhirSource
from medray.modalities.ehr.convert.times import moment

ROWS_AT_ONCE = 16_384
NDJSON = (".ndjson", ".jsonl", ".ndjson.gz", ".jsonl.gz")
JSON = (".json", ".json.gz")
NO_JSON, NO_RESOURCE, MANIFEST = "(not JSON)", "(no resource)", "(manifest)"
LINKS = ("replaced-by", "replaces", "refer", "seealso")
"""FHIR R4 Patient.link.type, required binding."""

_TYPE = re.compile(r"[A-Z][A-Za-z]{1,39}")
_NUMBER = re.compile(r"(?:W/)?\"?(\d{1,18})\"?")


class FhirParser:
    def __init__(self, source: FhirSource, key: bytes) -> None:
        self.source, self.subjects, self.keys = source, Subjects(key), Keys(key)
        self.zone = ZoneInfo(source.time_zone) if source.time_zone else None

    def __call__(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        self.resources = 0
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
                for line in json.lines(member.stream, unit.start, unit.end if unit.end < unit.size else None):
                    self._line(line, writer)
                    if len(writer) >= ROWS_AT_ONCE:
                        yield from writer.take()
        except SampleError as error:
            writer.failed(member.index, error)

    def _document(self, stream: BinaryIO, writer: Writer) -> None:
        content = json.without_mark(stream.read())
        if not content.strip():
            raise SampleError("empty_file")
        found = json.documents(content)
        if found == [[]]:
            raise SampleError("unrecognised_format", "an empty list")
        for each in found:
            self._value(each, writer)

    def _line(self, line: bytes, writer: Writer) -> None:
        if not line.strip():
            return
        try:
            found = json.load(line)
        except orjson.JSONDecodeError:
            writer.count(NO_JSON, READ)
            writer.count(NO_JSON, "not_json")
            return
        self._value(found, writer)

    def _value(self, found: Any, writer: Writer) -> None:
        for each in found if isinstance(found, list) else [found]:
            self._resource(each, writer, Around(), None)

    def _resource(self, found: Any, writer: Writer, where: Around, url: str | None) -> None:
        """Count it as read; its events, or why there are none. A Bundle is its entries."""
        kind = table(found).get("resourceType")
        if kind == "Bundle":
            self._bundle(found, writer, where.refused)
            return
        source = kind if isinstance(kind, str) and _TYPE.fullmatch(kind) else NO_RESOURCE
        if source == NO_RESOURCE and {"transactionTime", "output"} <= table(found).keys():
            self._manifest(found, writer)
            return
        writer.count(source, READ)
        if source not in MAPPERS and source != "Medication":
            writer.count(source, "no_resource" if source == NO_RESOURCE else "type_not_mapped")
            return
        self._mapped(source, found, writer, where, of_entry(url, found))

    def _manifest(self, found: dict[str, Any], writer: Writer) -> None:
        """Of a bulk export (Bulk Data Access IG): files of deletions hold Bundles that are read like any other."""
        writer.count(MANIFEST, READ)
        writer.count(MANIFEST, "manifest")
        if found.get("deleted"):
            writer.count(MANIFEST, NOTE + "names_deletions")

    # --- Bundles ----------------------------------------------------------------------------------------------------

    def _bundle(self, bundle: dict[str, Any], writer: Writer, refused: str | None) -> None:
        entries = rows(bundle.get("entry"))
        if bundle.get("implicitRules"):
            refused = "implicit_rules"
        elif json.TWICE in bundle:
            refused = "duplicate_keys"
        where = around(entries, refused)
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
            found = entry.get("resource")
            if isinstance(found, dict):
                _with_version_of_entry(found, table(entry.get("response")))
            self._resource(found, writer, where, url)

    def _deletion(self, bundle: dict[str, Any], entry: dict[str, Any], writer: Writer) -> None:
        """An entry whose request is DELETE, of a history or of an export's `deleted` (Bulk Data Access IG): takes away
        the versions that are not newer. When it was stands at the entry, else at the Bundle; else it takes all."""
        writer.count(DELETION, READ)
        urls = (text(entry.get("fullUrl")), text(table(entry.get("request")).get("url")))
        names = [found for url in urls if url and (found := literal(url)) is not None]
        if not names:
            writer.count(DELETION, "not_applied")
            return
        response, meta = table(entry.get("response")), table(bundle.get("meta"))
        updated = text(response.get("lastModified")) or text(meta.get("lastUpdated")) or text(bundle.get("timestamp"))
        version = re.search(r"/_history/(\d{1,18})$", urls[1] or "")
        key, check = self.keys.resource(names[0])
        writer.version(
            DELETION, "deletion", [], key=key, key_check=check, server=self.keys.server(names[0].server),
            resource=self._next(), time=_instant(updated),
            version=int(version[1]) if version else _number(response.get("etag")),
        )  # fmt: skip

    # --- resources --------------------------------------------------------------------------------------------------

    def _next(self) -> int:
        self.resources += 1
        return self.resources

    def _mapped(self, kind: str, found: dict[str, Any], writer: Writer, where: Around, own: Reference | None) -> None:
        source = self.source
        reading = Reading(source.dates, self.zone, source.untimed == "static", source.text, source.time)
        each = _Resource(kind, found, where, own, reading, Origin(self._next()))
        subject, outcome = None, None
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
        key, check = self.keys.resource(own)
        meta = table(found.get("meta"))
        writer.version(
            kind, outcome, [] if outcome else reading.notes, subject_id=subject and subject[0], key=key,
            key_check=check, server=self.keys.server(own.server), resource=each.origin.resource,
            time=_instant(text(meta.get("lastUpdated"))), version=_number(meta.get("versionId")),
            digest=xxhash.xxh3_64_intdigest(repr((outcome, subject, each.made)).encode()) - 2**63,
        )  # fmt: skip

    def _whose(self, each: _Resource, writer: Writer) -> Reference:
        """The patient of a resource that is understood and valid. Raises Drop: it gives no events."""
        if each.where.refused:
            raise Drop(each.where.refused)
        if json.names_twice(each.found):
            raise Drop("duplicate_keys")
        status.refuse_modifiers(each.kind, each.found)
        each.reading.suffix = status.meaning(each.kind, each.found, each.reading.notes)
        if each.kind == "Medication":
            self._look_up(each, writer)
            raise Drop("looked_up")
        who = _subject(each.found, MAPPERS[each.kind][1], each.where, each.own)
        if each.kind == "Observation" and is_of_another(each.found, who, each.where):
            raise Drop("of_another")
        return who

    def _write(self, each: _Resource, writer: Writer, subject: tuple[int, int], origin: Origin) -> None:
        """The rows of a resource; a patient of whom nothing is known is still one. Raises Drop: there are no events."""
        found = self._with_medication(each) if each.kind == "MedicationRequest" else each.found
        if each.kind == "Patient":
            links = _links(each)
            each.made += links
            writer.patient(subject, origin)
            for kind, other in links:
                writer.link(subject, origin, kind, self.subjects(other.id), self.keys.server(other.server))
        events = MAPPERS[each.kind][0](found, each.reading)
        each.made += [tuple(event._replace(ref_server=0) if event.ref else event) for event in events]
        if any(inside.get("resourceType") in MAPPERS for inside in rows(found.get("contained"))):
            each.reading.notes.append("contained_left_out")
        writer.events(each.kind, subject, events, origin)

    def _with_medication(self, each: _Resource) -> dict[str, Any]:
        """A request whose medication is a reference: the contained one's code, or the reference for the later look-up."""
        found = each.found
        if table(found.get("medicationCodeableConcept")) or "medicationReference" not in found:
            return found
        given = text(table(found["medicationReference"]).get("reference")) or ""
        if given.startswith("#"):
            inside = [each for each in rows(found.get("contained")) if each.get("id") == given[1:]]
            if inside:
                status.meaning("Medication", inside[0], [])
            return found | {"medicationCodeableConcept": inside[0].get("code") if inside else None}
        reference = resolve(found["medicationReference"], each.where)
        if reference is None or reference.type not in ("Medication", ""):
            raise Drop("unknown_medication")
        return found | {"medication_ref": (f"Medication/{reference.id}", self.keys.server(reference.server))}

    def _look_up(self, each: _Resource, writer: Writer) -> None:
        code = coding(each.found.get("code"))
        each.made.append(code)
        if each.own and code:
            origin = each.origin._replace(server=self.keys.server(each.own.server))
            writer.lookup(f"Medication/{each.own.id}", code.code, code.display, origin)


@dataclass
class _Resource:
    """One resource of a mapped type, and what is made of it."""

    kind: str
    found: dict[str, Any]
    where: Around
    own: Reference | None
    """What it is: its type, id and server."""
    reading: Reading
    origin: Origin
    made: list[Any] = field(default_factory=list)
    """Versions of which the same is made need no order."""


def _links(each: _Resource) -> list[tuple[str, Reference]]:
    """(type, other patient). Raises Drop: a type that is not of FHIR R4."""
    links = []
    for link in rows(each.found.get("link")):
        if (kind := link.get("type")) not in LINKS:
            raise Drop("unknown_status")
        other = resolve(link.get("other"), each.where)
        if other is None:
            each.reading.notes.append("link_unresolved")
        elif other.type in ("Patient", ""):
            links.append((kind, other))
    return links


def _subject(found: dict[str, Any], whose: str, where: Around, own: Reference | None) -> Reference:
    """The patient. Raises Drop."""
    if not whose:
        if own is None:
            raise Drop("no_id")
        return own
    named = table(found.get(whose))
    if not text(named.get("reference")):
        raise Drop("identifier_only" if named.get("identifier") else "no_subject")
    reference = resolve(named, where)
    if reference is None:
        raise Drop("unresolved_subject")
    if reference.type not in ("Patient", ""):
        raise Drop("subject_no_patient")
    return reference


def _refused(entry: dict[str, Any]) -> str | None:
    """Why an entry of a Bundle is not understood, whatever its resource says."""
    held = orjson.dumps(entry)
    if b'"modifierExtension":' in held:
        return "modifier_extension"
    return "duplicate_keys" if json.TWICE in entry else None


def _not_applied(request: dict[str, Any], writer: Writer) -> None:
    """A change of a part of a resource (PATCH): counted under the type that it would change."""
    named = literal(text(request.get("url")) or "")
    source = named.type if named else NO_RESOURCE
    writer.count(source, READ)
    writer.count(source, "not_applied")


def _with_version_of_entry(found: dict[str, Any], response: dict[str, Any]) -> None:
    """Bundle.entry.response of a history says of which version an entry is, where its meta does not."""
    given = {"lastUpdated": response.get("lastModified"), "versionId": response.get("etag")}
    if any(given.values()):
        found["meta"] = {name: value for name, value in given.items() if value} | table(found.get("meta"))


def _instant(value: str | None) -> int | None:
    try:
        return moment(value or "", "start", None).us
    except Drop:
        return None


def _number(value: Any) -> int | None:
    """A version that is a number, as meta.versionId or as an ETag."""
    found = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    return int(found[1]) if found else None
