"""HTTP servers, with the patience of other storage: what fails for the moment is asked for again.

User and password come from the environment or the netrc file, never from a URI; no message names them.
"""

from __future__ import annotations

import json
import netrc
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from medray.storage.remote import patiently

CONNECTIONS = 8
"""Requests to one server at once, by one process."""
TIMEOUT = urllib3.Timeout(connect=10, read=120)
"""Seconds without an answer, after which a request counts as failed."""

USER, PASSWORD, TOKEN = "MEDRAY_DICOMWEB_USER", "MEDRAY_DICOMWEB_PASSWORD", "MEDRAY_DICOMWEB_TOKEN"


class Answer(NamedTuple):
    content: bytes
    kind: str = ""
    """Value of Content-Type."""
    warning: str = ""
    """Value of Warning."""


def get(url: str, query: Mapping[str, str] | None = None, accept: str = "application/json") -> Answer:
    """The answer to GET. Raises FileNotFoundError (404, 410), PermissionError (401, 403), OSError."""
    return _ask("GET", f"{url}?{urlencode(query)}" if query else url, accept)


def get_json(url: str, query: Mapping[str, str] | None = None, accept: str = "application/json") -> Any:
    """The answer to GET as JSON, None where it has no content. Raises as `get` does, and OSError for what is no JSON."""
    return as_json(get(url, query, accept))


def post_json(url: str, text: str) -> Any:
    """The answer to POST, as `get_json` gives it. It may be sent several times."""
    return as_json(_ask("POST", url, "application/json", text.encode()))


def as_json(answer: Answer) -> Any:
    """The content of an answer, None where it has none. Raises OSError for what is no JSON."""
    try:
        return json.loads(answer.content) if answer.content.strip() else None
    except ValueError:
        raise OSError("the answer of the server is no JSON") from None


def _ask(method: str, url: str, accept: str, body: bytes | None = None) -> Answer:
    headers = {"Accept": accept} | _credentials(urlsplit(url).hostname or "")

    def ask() -> Answer:
        try:
            answer = _pool().request(method, url, body=body, headers=headers, redirect=False)
        except HTTPError as error:  # no connection, or one that broke off before the end
            raise OSError(f"NETWORK_CONNECTION: {type(error).__name__}") from None
        if answer.status in (404, 410):
            raise FileNotFoundError(2, "the server does not have it")
        if answer.status in (401, 403):
            raise PermissionError(13, f"the server refuses, with HTTP status {answer.status}")
        if not 200 <= answer.status < 300:
            raise OSError(f"HTTP status {answer.status}")
        return Answer(answer.data, answer.headers.get("Content-Type", ""), answer.headers.get("Warning", ""))

    return patiently(ask)


@lru_cache(maxsize=1)
def _pools(process: int) -> urllib3.PoolManager:
    return urllib3.PoolManager(num_pools=4, maxsize=CONNECTIONS, timeout=TIMEOUT, retries=False)


def _pool() -> urllib3.PoolManager:
    """Connections of this process: a fork must not share them."""
    return _pools(os.getpid())


def _credentials(host: str) -> dict[str, str]:
    """The header that says who asks: of the environment, else of the netrc file (NETRC, ~/.netrc); none where neither does."""
    token, user = os.environ.get(TOKEN), os.environ.get(USER)
    if token:
        return {"Authorization": f"Bearer {token}"}
    password = os.environ.get(PASSWORD, "")
    if not user:
        user, password = _of_netrc(os.environ.get("NETRC") or os.path.expanduser("~/.netrc"), host)
    return urllib3.make_headers(basic_auth=f"{user}:{password}") if user else {}


@lru_cache(maxsize=16)
def _of_netrc(path: str, host: str) -> tuple[str, str]:
    try:
        login = netrc.netrc(path).authenticators(host)
    except FileNotFoundError:
        return "", ""
    except netrc.NetrcParseError:
        raise PermissionError(13, "the netrc file cannot be read") from None
    return (login[0], login[2] or "") if login else ("", "")
