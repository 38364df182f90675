"""ResourceId: what a FHIR reference names: type, id, and the server on which the id is valid.

The identity of a resource is its full URL (FHIR R4 Bundle.entry.fullUrl, Reference.reference): the base of a server and
Type/id, or a URN. An id is only valid on its server, so `server` names it: the base URL, the URN where
it is not made of the id, or "" where nothing names a server (NDJSON of an export). http and https, and letters of the
host in either case, are one server.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from medray.modalities.ehr.convert.fhir.codes import rows, table, text
from medray.modalities.ehr.convert.fhir.json import JsonObject, JsonValue

# [base/]Type/id[/_history/version], FHIR R4 Reference.reference
_LITERAL = re.compile(r"(?:(.*)/)?([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/[^/]+)?")
_URN = re.compile(r"urn:(?:uuid|oid):([A-Za-z0-9\-.]{1,64})")
PERSONS = ("Patient", "RelatedPerson", "Person", "Practitioner", "PractitionerRole", "Group")


class ResourceId(NamedTuple):
    """What identifies a resource: the target of a reference, or the resource itself."""

    type: str
    """Empty where only a URN names it."""
    id: str
    server: str = ""


@dataclass
class BundleContext:
    """The Bundle around a resource: what its entries are called, and what holds for all of them."""

    by_url: dict[str, ResourceId] = field(default_factory=dict[str, ResourceId])
    """Full URL of an entry to what it is."""
    by_name: dict[tuple[str, str], set[ResourceId]] = field(default_factory=dict[tuple[str, str], set[ResourceId]])
    """(type, id) to every entry of that name."""
    base: str = ""
    """Server of the entry at hand, and so of its relative references."""
    refused: str | None = None
    """Why no entry of the Bundle can be understood: a key of events.DROPS."""


def server_of(base: str) -> str:
    """Normal form of a base URL."""
    parts = urlsplit(base)
    if parts.scheme.lower() not in ("http", "https"):
        return base.rstrip("/")
    host = (parts.hostname or "").lower()
    port = f":{parts.port}" if parts.port not in (None, 80, 443) else ""
    return f"https://{host}{port}{parts.path.rstrip('/')}"


def literal(value: str) -> ResourceId | None:
    """The resource of an absolute or relative URL, with or without a version; None for any other text."""
    match = _LITERAL.fullmatch(value)
    if match is None:
        return None
    try:
        return ResourceId(match[2], match[3], server_of(match[1] or ""))
    except ValueError:  # a port that is no number
        return None


def of_entry(url: str | None, resource: JsonObject) -> ResourceId | None:
    """The identity of a Bundle's entry: the resource's type and id, and the server in its full URL. None without an id."""
    kind, name = resource.get("resourceType"), text(resource.get("id"))
    if not isinstance(kind, str):
        return None
    if url is None:
        return ResourceId(kind, name) if name else None
    if urn := _URN.fullmatch(url):
        return ResourceId(kind, name or urn[1], "" if name in (None, urn[1]) else url)
    named = literal(url)
    if named is None or named.type != kind or name not in (None, named.id):
        return ResourceId(kind, name, url) if name else None
    return named


def bundle_context(entries: list[JsonObject], refused: str | None) -> BundleContext:
    """The context that a Bundle's entries share: what their full URLs name."""
    context = BundleContext(refused=refused)
    for entry in entries:
        url, resource = text(entry.get("fullUrl")), table(entry.get("resource"))
        name = of_entry(url, resource)
        if name is not None:
            context.by_name.setdefault((name.type, name.id), set()).add(name)
            if url:
                context.by_url[url] = name
    return context


def resolve(value: JsonValue, where: BundleContext) -> ResourceId | None:
    """The resource that a Reference names, in the Bundle or elsewhere; None where it names none, or only gives text."""
    written = text(table(value).get("reference"))
    if written is None:
        return None
    if target := where.by_url.get(written) or where.by_url.get(written.partition("/_history/")[0]):
        return target
    if urn := _URN.fullmatch(written):
        return ResourceId("", urn[1])
    target = literal(written)
    if target is None or target.server:
        return target
    if where.base:
        return target._replace(server=where.base)
    inside = where.by_name.get((target.type, target.id), set())
    return next(iter(inside)) if len(inside) == 1 else target


def is_of_another(observation: JsonObject, subject: ResourceId, where: BundleContext) -> bool:
    """Whether an Observation is about another person than its subject (FHIR R4 Observation.focus: a fetus, a donor, a parent)."""
    for each in rows(observation.get("focus")):
        named = resolve(each, where)
        kind = named.type if named and named.type else text(each.get("type"))
        same = named is not None and named.id == subject.id and named.server in ("", subject.server)
        if kind in PERSONS and not (kind == "Patient" and same):
            return True
    return False


class Keys:
    """Keyed hashes of servers and resources, from which neither name can be read."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.servers: dict[str, int] = {"": 0}

    def server(self, server: str) -> int:
        """int64 hash of a server; 0 where none is named."""
        if server not in self.servers:
            if len(self.servers) >= 2**16:
                self.servers = {"": 0}
            self.servers[server] = self._hashed(b"server\0" + server.encode())[0] or 1
        return self.servers[server]

    def resource(self, reference: ResourceId) -> tuple[int, int]:
        """128 bits that stand for type and id, as two int64."""
        return self._hashed(b"resource\0" + f"{reference.type}/{reference.id}".encode())

    def _hashed(self, content: bytes) -> tuple[int, int]:
        digest = hmac.digest(self.key, content, hashlib.sha256)
        return int.from_bytes(digest[:8], "big", signed=True), int.from_bytes(digest[8:16], "big", signed=True)
