"""Orthanc: what its own REST interface tells beyond DICOMweb: which instances came, and the stored file of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import xxhash

from medray.storage import http

CHANGES = 1000
"""Changes that are asked for at once."""
_TOUCHED = ("NewInstance", "UpdatedAttachment")


class Stored(NamedTuple):
    """The stored file of an instance."""

    size: int
    """Bytes."""
    modified_ns: int
    """When it was listed, ns since the epoch (UTC), whose part below a second is a digest of the name that the server has given
    the file: another file has another one."""


@dataclass(frozen=True)
class Orthanc:
    """The REST interface at `url`."""

    url: str

    @classmethod
    def beside(cls, dicomweb: str) -> Orthanc | None:
        """The interface of the server whose DICOMweb is there, where it is an Orthanc that offers it. Raises OSError."""
        url = dicomweb.rpartition("/")[0]
        try:
            system = http.get_json(f"{url}/system")
            http.get(f"{url}/changes", {"limit": "1"})
        except (FileNotFoundError, PermissionError):
            return None
        except OSError as error:
            if "no JSON" in str(error) or "HTTP status 4" in str(error) or "HTTP status 3" in str(error):
                return None
            raise
        return cls(url) if isinstance(system, dict) and "DicomAet" in system else None

    def last_change(self) -> int:
        """The number of the newest change. Raises OSError."""
        return int(http.get_json(f"{self.url}/changes?last")["Last"])

    def touched_studies(self, since: int) -> set[str] | None:
        """UIDs of the studies of which an instance came or was written anew after change `since`; None where the server has
        forgotten some of the changes since then. Raises OSError."""
        oldest = http.get_json(f"{self.url}/changes", {"since": "0", "limit": "1"})["Changes"]
        if since and (not oldest or int(oldest[0]["Seq"]) > since + 1):
            return None
        instances: dict[str, None] = {}
        done = False
        while not done:
            page = http.get_json(f"{self.url}/changes", {"since": str(since), "limit": str(CHANGES)})
            for change in page["Changes"]:
                if change["ChangeType"] in _TOUCHED and change["ResourceType"] == "Instance":
                    instances[change["ID"]] = None
            done, since = bool(page["Done"]) or not page["Changes"], int(page["Last"])
        studies, known = set[str](), set[str]()
        for each in instances:
            if each in known:
                continue
            try:
                study = http.get_json(f"{self.url}/instances/{each}/study")
                members = http.get_json(f"{self.url}/studies/{study['ID']}/instances")
            except FileNotFoundError:  # removed since
                continue
            studies.add(study["MainDicomTags"]["StudyInstanceUID"])
            known.update(member["ID"] for member in members)
        return studies

    def stored(self, study: str, now_ns: int) -> dict[str, Stored]:
        """The stored files of a study by SOPInstanceUID, as of `now_ns`; none where it is no longer there. Raises OSError."""
        files_of_study: dict[str, Stored] = {}
        for resource in http.post_json(f"{self.url}/tools/lookup", study) or []:
            if resource.get("Type") != "Study":
                continue
            try:
                members = http.get_json(f"{self.url}/studies/{resource['ID']}/instances")
            except FileNotFoundError:
                continue
            files_of_study |= {member["MainDicomTags"]["SOPInstanceUID"]: _stored(member, now_ns) for member in members}
        return files_of_study


def _stored(member: Mapping[str, Any], now_ns: int) -> Stored:
    part = xxhash.xxh3_64_intdigest(str(member["FileUuid"]).encode()) % 10**9
    return Stored(int(member["FileSize"]), now_ns // 10**9 * 10**9 + part)


def is_same_file(one: int, other: int) -> bool:
    """Whether two `modified_ns` are of one stored file."""
    return one % 10**9 == other % 10**9
