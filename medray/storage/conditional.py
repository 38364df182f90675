"""Whether an object store keeps what commits rest on: of two writers that create one name, one is refused.

Delta's log has one file for each version, made by PUT with `If-None-Match: *` (RFC 9110, section 13.1.2). A storage that passes over
the header lets two writers commit the same version, and the rows of one are lost without a word. Nobody says so unasked, and
delta-rs and pyarrow have no call for such a request alone: it is made and signed here (AWS Signature Version 4).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from medray.errors import StoreError
from medray.storage import files
from medray.storage.remote import ATTEMPTS, PAUSE

REFUSED = 412
"""Precondition Failed: the name is there, as it should be at the second request."""
_CREATED = (200, 201, 204)
_PASSING = (409, 429, 500, 502, 503, 504)
"""The storage may give another answer soon; what it was asked for may have been done."""
_OF_AMAZON = (".amazonaws.com", ".amazonaws.com.cn")


def refuse_unconditional(store: str) -> None:
    """Create one name twice below an s3:// URI: raises StoreError where the storage lets both succeed.

    Not asked are Amazon's own S3, which keeps it, and other kinds of storage; nor a storage whose keys are not in the environment
    (a role, a profile), since no request can be signed. Raises OSError where the storage does not answer.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    parts = urlsplit(store)
    if parts.scheme != "s3" or not endpoint or not key or not secret:
        return
    if (urlsplit(endpoint).hostname or "").endswith(_OF_AMAZON):
        return
    name = files.join(store, "_medray", f"probe-{uuid.uuid4().hex}")
    url = f"{endpoint.rstrip('/')}/{quote(name.removeprefix('s3://'), safe='/-_.~')}"
    created = 0
    try:
        for turn in range(ATTEMPTS):
            status = _create(url, key, secret)
            created += status in _CREATED
            if status == REFUSED:
                return
            if created == 2:
                raise StoreError(
                    "this storage cannot hold a score store: it lets two writers create the same file",
                    where=store,
                    found="two conditional PUTs of one name (If-None-Match: *), and both succeeded",
                    expected=f"the second refused ({REFUSED} Precondition Failed), so that of two runs that commit at once one waits",
                    do="use a storage, or a version or setting of it, that supports conditional writes; or a local or mounted folder",
                )
            if status not in _CREATED:
                if status not in _PASSING:
                    raise OSError(f"the storage answers a conditional PUT with HTTP status {status}")
                time.sleep(PAUSE * 2**turn)
        raise OSError("the storage is busy")
    finally:
        files.remove_file(name)


def _create(url: str, key: str, secret: str) -> int:
    """The HTTP status of a PUT of nothing, if there is nothing of that name. Raises OSError."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    headers = signed("PUT", url, {"If-None-Match": "*"}, key, secret, region, datetime.now(UTC))
    request = urllib.request.Request(url, data=b"", headers=headers, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def signed(
    method: str, url: str, headers: Mapping[str, str], key: str, secret: str, region: str, now: datetime
) -> dict[str, str]:
    """Headers of an S3 request without content and query, signed by AWS Signature Version 4 (Amazon S3 API Reference,
    "Authenticating Requests: Using the Authorization Header"). The URL is quoted as it is sent."""
    parts, moment = urlsplit(url), now.strftime("%Y%m%dT%H%M%SZ")
    empty = hashlib.sha256(b"").hexdigest()
    token = os.environ.get("AWS_SESSION_TOKEN")
    sent = dict(headers) | {"Host": parts.netloc, "X-Amz-Date": moment, "X-Amz-Content-SHA256": empty}
    sent |= {"X-Amz-Security-Token": token} if token else {}
    lines = {name.lower(): value for name, value in sent.items()}
    names = ";".join(sorted(lines))
    canonical = "".join(f"{name}:{lines[name]}\n" for name in sorted(lines))
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    request = hashlib.sha256(f"{method}\n{parts.path}\n\n{canonical}\n{names}\n{empty}".encode()).hexdigest()
    signing = f"AWS4{secret}".encode()
    for word in scope.split("/"):
        signing = hmac.digest(signing, word.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{request}"
    signature = hmac.new(signing, text.encode(), "sha256").hexdigest()
    credential = f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return sent | {"Authorization": credential}
