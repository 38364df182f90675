"""How an alert is sent: to a command's stdin, to a webhook. Whatever goes wrong is an answer, never an error.

No message names a URL, a token or what the other side said: a URL may be a secret itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import SplitResult
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, LocationValueError, MaxRetryError, SSLError

from medray.alerts.message import Alert
from medray.alerts.settings import AlertSettings, refuse_open_http, split_url
from medray.durations import seconds_of

WAITS = 4.0
"""The first wait between two tries is a second, each further one so many times as long."""
WORTH_A_TRY = (408, 425, 429)
"""HTTP statuses below 500 of a server that may answer otherwise in a moment (RFC 9110, 6585, 8470)."""

Way = Literal["command", "webhook"]


class Delivery(NamedTuple):
    """What became of an alert on one way."""

    way: Way
    problem: str | None
    """Why it was not sent; None: it was."""


class _NotSent(Exception):
    """The reason as a sentence."""


def send(alert: Alert, settings: AlertSettings, pause: Callable[[float], object] = time.sleep) -> list[Delivery]:
    """Send it by every way that the settings name. `pause` waits between two tries."""
    content = alert.model_dump_json().encode()
    ways: list[tuple[Way, Callable[[], None]]] = []
    if settings.command:
        ways.append(("command", lambda: _start(settings, content)))
    if settings.has_webhook:
        ways.append(("webhook", lambda: _post(settings, content, pause)))
    return [Delivery(way, _problem(sending)) for way, sending in ways]


def _problem(sending: Callable[[], None]) -> str | None:
    try:
        sending()
    except _NotSent as problem:
        return str(problem)
    return None


# --- a command ------------------------------------------------------------------------------------------------


def _start(settings: AlertSettings, content: bytes) -> None:
    """Start the command in a session of its own, so that what it starts ends with it where it takes too long."""
    try:
        process = subprocess.Popen(
            settings.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise _NotSent(f"{settings.command[0]} cannot be started: {error.strerror}") from None
    try:
        process.communicate(content, timeout=seconds_of(settings.timeout))
    except subprocess.TimeoutExpired:
        raise _NotSent(f"{settings.command[0]} took longer than {settings.timeout} and was ended") from None
    finally:  # also where a signal ends the wait
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise _NotSent(f"{settings.command[0]} ended with exit code {process.returncode}")


# --- a webhook ------------------------------------------------------------------------------------------------


def _post(settings: AlertSettings, content: bytes, pause: Callable[[float], object]) -> None:
    url = _url(settings)
    headers = {"Content-Type": "application/json", "User-Agent": "medray"} | _token(settings)
    with _pool(split_url(url), seconds_of(settings.timeout)) as pool:
        for attempt in range(1, settings.tries + 1):
            problem, again = _tried(pool, url, content, headers)
            if problem is None:
                return
            if not again or attempt == settings.tries:
                raise _NotSent(problem + (f", {attempt} times" if attempt > 1 else ""))
            pause(WAITS ** (attempt - 1))


def _tried(pool: urllib3.PoolManager, url: str, content: bytes, headers: dict[str, str]) -> tuple[str | None, bool]:
    """(why it was not taken, whether another try may help)."""
    try:
        answer = pool.request("POST", url, body=content, headers=headers, redirect=False, preload_content=False)
        answer.release_conn()  # what it says does not matter, and may be without end
    except MaxRetryError as error:
        return _of_connection(error.reason), not isinstance(error.reason, SSLError)
    except HTTPError as error:
        return _of_connection(error), not isinstance(error, (SSLError, LocationValueError))
    if 200 <= answer.status < 300:
        return None, False
    if 300 <= answer.status < 400:
        return f"the webhook sends on to another place (HTTP status {answer.status}), which is not followed", False
    return (
        f"the webhook answers with HTTP status {answer.status}",
        answer.status >= 500 or answer.status in WORTH_A_TRY,
    )


def _of_connection(error: BaseException | None) -> str:
    return f"the webhook cannot be reached: {type(error).__name__}"


def _pool(parts: SplitResult, seconds: float) -> urllib3.PoolManager:
    """Connections to a webhook: by the proxy of the environment (HTTPS_PROXY, NO_PROXY), where it names one. Certificates are
    checked by those of the system, or those that SSL_CERT_FILE names."""
    timeout = urllib3.Timeout(total=seconds)
    host = parts.hostname or ""
    proxy = None if proxy_bypass(host) else getproxies().get(parts.scheme)
    if proxy:
        return urllib3.ProxyManager(proxy, timeout=timeout, retries=False)
    return urllib3.PoolManager(timeout=timeout, retries=False)


def _url(settings: AlertSettings) -> str:
    if settings.webhook is not None:
        return settings.webhook
    assert settings.webhook_file is not None
    url = _secret_of(settings.webhook_file, "webhook_file")
    try:
        refuse_open_http(split_url(url), settings.insecure_http)
    except ValueError as error:
        raise _NotSent(f"webhook_file: {error}") from None
    return url


def _token(settings: AlertSettings) -> dict[str, str]:
    if settings.token_env is not None:
        token = os.environ.get(settings.token_env, "").strip()
        if not token:
            raise _NotSent(f"the environment variable {settings.token_env} (token_env) is not set where the night runs")
    elif settings.token_file is not None:
        token = _secret_of(settings.token_file, "token_file")
    else:
        return {}
    if not token.isascii() or not token.isprintable():
        raise _NotSent("the token has characters that no header can have")
    return {settings.header: f"Bearer {token}" if settings.header.lower() == "authorization" else token}


def _secret_of(path: str, key: str) -> str:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise _NotSent(f"the file of {key} cannot be read: {why}") from None
    if not text:
        raise _NotSent(f"the file of {key} is empty")
    return text


def missing_secrets(settings: AlertSettings) -> str | None:
    """Why a webhook could not be asked, as far as this can be told without asking; None: nothing is known against it."""

    def look() -> None:
        if settings.has_webhook:
            _url(settings)
            _token(settings)

    return _problem(look)
