"""DICOMweb: the instances of a server as files (PS3.18: QIDO-RS lists, WADO-RS gives).

An archive `dicomweb+https://host/dicom-web?ModalitiesInStudy=CT` is all instances of the studies that the query finds. Each
is a file of the URI …/studies/STUDY/series/SERIES/instances/INSTANCE.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from medray.errors import ArchiveError
from medray.storage import http

PAGE = 1000
"""Results that are asked for at once; a server may give fewer."""
DICOM_JSON = "application/dicom+json"
WHOLE_INSTANCE = 'multipart/related; type="application/dicom"; transfer-syntax=*'
"""As the server stores it: another transfer syntax would be other bytes."""

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
SERIES_IN_STUDY, INSTANCES_IN_STUDY = "00201206", "00201208"

_OF_A_PERSON = frozenset(
    {"PatientName", "PatientID", "PatientBirthDate", "OtherPatientIDs", "00100010", "00100020", "00100030", "00101000"}
)
_UID = re.compile(r"[0-9A-Za-z.-]{1,128}")
_INSTANCE = re.compile(r"/studies/([^/?]+)/series/([^/?]+)/instances/([^/?]+)$")


class Place(NamedTuple):
    """An archive on a server."""

    uri: str
    """Of the server, without query: what the URIs of its instances begin with."""
    url: str
    filters: dict[str, str]
    """Query keys of the studies that are meant."""


class Counts(NamedTuple):
    """What a server says of a study; None where it does not."""

    series: int | None
    instances: int | None


def place_of(root: str) -> Place:
    """Where an archive lies. Raises ArchiveError for a URI that is none, or that has a password in it."""
    parts = urlsplit(root.removeprefix("dicomweb+"))
    if "@" in parts.netloc:
        raise ArchiveError(
            "a user or password in the URI would stand in logs and manifests",
            where=f"dicomweb+{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}",
            do=f"set {http.USER} and {http.PASSWORD}, or {http.TOKEN}, or give them in ~/.netrc",
        )
    filters = dict(parse_qsl(parts.query))
    if named := sorted(_OF_A_PERSON.intersection(filters)):
        raise ArchiveError(
            "a search for a person would stand in logs and manifests",
            where=f"dicomweb+{parts.scheme}://{parts.netloc}{parts.path}",
            found=", ".join(named),
            do="name the studies: StudyInstanceUID, StudyDate, ModalitiesInStudy …",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ArchiveError("no URI of a DICOMweb server", where=root, expected="dicomweb+https://host/path")
    url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    return Place(f"dicomweb+{url}", url, filters)


def is_instance(uri: str) -> bool:
    """Whether the URI is that of an instance, not of a server."""
    return _INSTANCE.search(uri) is not None


def studies(place: Place, uid: str | None = None) -> Iterator[tuple[str, Counts]]:
    """(UID, counts) of the studies that the archive means, each once; of that one alone. Raises OSError."""
    chosen = {"StudyInstanceUID", STUDY}.intersection(place.filters)  # the archive's own choice stands
    filters = place.filters | ({"StudyInstanceUID": uid} if uid and not chosen else {})
    query = {**filters, "includefield": f"{SERIES_IN_STUDY},{INSTANCES_IN_STUDY}"}
    for found in _pages(f"{place.url}/studies", query, (STUDY,)):
        study = _uid(found, STUDY)
        if uid in (None, study):
            yield study, Counts(_number(found, SERIES_IN_STUDY), _number(found, INSTANCES_IN_STUDY))


def instances(place: Place, study: str, also: Mapping[str, str] | None = None) -> Iterator[str]:
    """URIs of the instances of a study, each once. Raises FileNotFoundError, OSError."""
    query = {**(also or {}), "includefield": SERIES}
    for found in _pages(f"{place.url}/studies/{study}/instances", query, (SERIES, INSTANCE)):
        yield f"{place.uri}/studies/{study}/series/{_uid(found, SERIES)}/instances/{_uid(found, INSTANCE)}"


def is_there(uri: str) -> bool:
    """Whether a server has an instance, or answers at all where the URI is a server's. Raises OSError."""
    match = _INSTANCE.search(uri)
    place = place_of(uri[: match.start()] if match else uri)
    try:
        if match:
            return next(instances(place, match[1], {"SOPInstanceUID": match[3]}), None) is not None
        http.get(f"{place.url}/studies", {"limit": "1"}, DICOM_JSON)
    except FileNotFoundError:
        return False
    return True


def retrieve(uri: str) -> memoryview:
    """The bytes of an instance, as the server stores it. Raises FileNotFoundError, PermissionError, OSError."""
    return _only_part(http.get(uri.removeprefix("dicomweb+"), accept=WHOLE_INSTANCE))


def _only_part(answer: http.Answer) -> memoryview:
    """The body of a multipart answer with one part (RFC 2046 5.1.1); of any other answer itself."""
    content, kind = answer.content, answer.kind
    boundary = re.search(r'boundary="?([^";,]+)"?', kind)
    if not kind.lower().startswith("multipart/") or boundary is None:
        return memoryview(content)
    mark = b"--" + boundary[1].encode()
    first = content.find(mark)
    start = content.find(b"\r\n\r\n", first)
    end = content.rfind(b"\r\n" + mark)
    if first < 0 or start < 0 or end < start:
        raise OSError("NETWORK_CONNECTION: the answer of the server breaks off")
    return memoryview(content)[start + 4 : end]


def _pages(url: str, query: Mapping[str, str], keys: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """Results of a search, each once by the values of `keys`.

    It goes on until a page has nothing new: a server may give fewer than were asked for, and one that knows no pages gives the
    same again. Where the page before it was full, that is not believed: Orthanc gives nothing but the first page of a
    search by ModalitiesInStudy. All results are then asked for at once, in ever larger numbers. Raises OSError where results are
    missing by what the server says itself.
    """
    seen: set[tuple[str, ...]] = set()
    limit, offset, full, more = PAGE, 0, False, False
    while True:
        answer = http.get(url, {**query, "limit": str(limit), "offset": str(offset)}, DICOM_JSON)
        page = http.as_json(answer) or []
        if not isinstance(page, list) or not all(isinstance(each, dict) for each in page):
            raise OSError("the answer of the server is no list of DICOM JSON")
        before = len(seen)
        for found in page:
            uids = tuple(_uid(found, key) for key in keys)
            if uids not in seen:
                seen.add(uids)
                yield found
        if len(seen) == before and (not full or limit > PAGE):
            if more:
                raise OSError(f"the server says that it has more results than {before}, and does not give them")
            return
        more = "additional results" in answer.warning  # PS3.18 8.3.4.4.1
        if len(seen) == before or limit > PAGE:
            limit, offset = 2 * len(seen) + PAGE, 0
        else:
            offset, full = len(seen), len(page) >= limit


def _uid(found: Mapping[str, Any], tag: str) -> str:
    value = str(_value(found, tag) or "")
    if _UID.fullmatch(value) is None:
        raise OSError(f"a result of the server is without a UID in {tag}")
    return value


def _number(found: Mapping[str, Any], tag: str) -> int | None:
    value = _value(found, tag)
    try:
        return None if value is None else int(value)
    except ValueError:
        return None


def _value(found: Mapping[str, Any], tag: str) -> Any:
    values = (found.get(tag) or {}).get("Value") or [None]
    return values[0]
