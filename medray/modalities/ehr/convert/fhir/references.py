"""What a FHIR reference names: type, id, and who gives the id its meaning.

The identity of a resource is its full URL (FHIR R4 Bundle.entry.fullUrl, Reference.reference): the base of a server and
Type/id, or a URN. An id means something on its server alone, so `server` says whose it is: the base URL, the URN where
it is not made of the id, or "" where nothing names a server (NDJSON of an export). http and https, and letters of the
host in either case, are one server.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from medray.modalities.ehr.convert.codes import rows, table, text

# [base/]Type/id[/_history/version], FHIR R4 Reference.reference
_LITERAL = re.compile(r"(?:(.*)/)?([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/[^/]+)?")
_URN = re.compile(r"urn:(?:uuid|oid):([A-Za-z0-9\-.]{1,64})")
PERSONS = ("Patient", "RelatedPerson", "Person", "Practitioner", "PractitionerRole", "Group")


class Reference(NamedTuple):
    type: str
    """Empty where only a URN names it."""
    id: str
    server: str = ""


@dataclass
class Around:
    """What stands around a resource: the entries of its Bundle, and what holds for all of them."""

    by_url: dict[str, Reference] = field(default_factory=dict)
    by_name: dict[tuple[str, str], set[Reference]] = field(default_factory=dict)
    base: str = ""
    """Of the entry: relative references are of this server."""
    refused: str | None = None
    """Why no entry of the Bundle is understood."""


def server_of(base: str) -> str:
    """A base URL in one form."""
    parts = urlsplit(base)
    if parts.scheme.lower() not in ("http", "https"):
        return base.rstrip("/")
    host = (parts.hostname or "").lower()
    port = f":{parts.port}" if parts.port not in (None, 80, 443) else ""
    return f"https://{host}{port}{parts.path.rstrip('/')}"


def literal(value: str) -> Reference | None:
    """An absolute or relative URL of a resource, whole or of one version."""
    found = _LITERAL.fullmatch(value)
    if found is None:
        return None
    try:
        return Reference(found[2], found[3], server_of(found[1] or ""))
    except ValueError:  # a port that is no number
        return None


def of_entry(url: str | None, resource: dict[str, Any]) -> Reference | None:
    """What an entry of a Bundle is: the resource's type and id under its full URL. None: no id."""
    kind, name = resource.get("resourceType"), text(resource.get("id"))
    if not isinstance(kind, str):
        return None
    if url is None:
        return Reference(kind, name) if name else None
    if found := _URN.fullmatch(url):
        return Reference(kind, name or found[1], "" if name in (None, found[1]) else url)
    found = literal(url)
    if found is None or found.type != kind or name not in (None, found.id):
        return Reference(kind, name, url) if name else None
    return found


def around(entries: list[dict[str, Any]], refused: str | None) -> Around:
    """What the full URLs of a Bundle's entries name."""
    found = Around(refused=refused)
    for entry in entries:
        url, resource = text(entry.get("fullUrl")), table(entry.get("resource"))
        name = of_entry(url, resource)
        if name is not None:
            found.by_name.setdefault((name.type, name.id), set()).add(name)
            if url:
                found.by_url[url] = name
    return found


def resolve(value: Any, where: Around) -> Reference | None:
    """What a Reference names: an entry of the Bundle, or type and id. None: nothing, or only text."""
    given = text(table(value).get("reference"))
    if given is None:
        return None
    if found := where.by_url.get(given) or where.by_url.get(given.partition("/_history/")[0]):
        return found
    if urn := _URN.fullmatch(given):
        return Reference("", urn[1])
    found = literal(given)
    if found is None or found.server:
        return found
    if where.base:
        return found._replace(server=where.base)
    inside = where.by_name.get((found.type, found.id), set())
    return next(iter(inside)) if len(inside) == 1 else found


def is_of_another(found: dict[str, Any], subject: Reference, where: Around) -> bool:
    """An Observation about another person than its subject (FHIR R4 Observation.focus: a fetus, a donor, a parent)."""
    for each in rows(found.get("focus")):
        named = resolve(each, where)
        kind = named.type if named and named.type else text(each.get("type"))
        same = named is not None and named.id == subject.id and named.server in ("", subject.server)
        if kind in PERSONS and not (kind == "Patient" and same):
            return True
    return False


class Keys:
    """Keyed hashes of servers and of resources: no name of either comes along."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.servers: dict[str, int] = {"": 0}

    def server(self, server: str) -> int:
        """int64, 0 for none."""
        if server not in self.servers:
            if len(self.servers) >= 2**16:
                self.servers = {"": 0}
            self.servers[server] = self._hashed(b"server\0" + server.encode())[0] or 1
        return self.servers[server]

    def resource(self, reference: Reference) -> tuple[int, int]:
        """Of type and id: 128 bits."""
        return self._hashed(b"resource\0" + f"{reference.type}/{reference.id}".encode())

    def _hashed(self, content: bytes) -> tuple[int, int]:
        found = hmac.digest(self.key, content, hashlib.sha256)
        return int.from_bytes(found[:8], "big", signed=True), int.from_bytes(found[8:16], "big", signed=True)
