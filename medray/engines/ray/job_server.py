"""Jobs of a cluster, through Ray's job server: submit, follow, list, stop.

A request may be repeated without harm: a job is started under an id that the client chose, and Ray takes an id once.
The token is read and sent by Ray itself (RAY_AUTH_MODE=token); nothing here knows it, and no message holds it.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from medray.errors import MachineError, UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for an answer. Ray itself waits for ever."""
SUBMIT_SECONDS = 120.0
"""A job is sent again for so long while no answer comes."""
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TOKEN = "export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE with the token of this cluster"


class Unreachable(MachineError):
    """No answer: whether a request was heard is not known."""


@dataclass(frozen=True)
class Job:
    id: str
    status: str
    """PENDING, RUNNING; SUCCEEDED, FAILED, STOPPED."""
    began: datetime | None
    ended: datetime | None
    exit_code: int | None
    """What the command ended with; 143 for a stopped job, 1 for one that never ran; None while it runs."""
    message: str
    command: str
    facts: Mapping[str, str]
    """What the one who submitted it said of it."""

    @property
    def over(self) -> bool:
        return self.exit_code is not None


class JobServer:
    """The job server at `address`: http(s)://, host:port of the head, `auto`; None: by environment, else this machine's.

    Raises UserError for plain http to another machine, for a certificate or token that is not accepted; MachineError
    where nothing answers.
    """

    def __init__(self, address: str | None = None, *, ca: str | None = None, insecure_http: bool = False) -> None:
        from requests.utils import DEFAULT_CA_BUNDLE_PATH

        with _answered(address or "the cluster of this machine"):
            self.url = _url(address, insecure_http=insecure_http)
        # By name, not True: of Ray's client requests then go by certifi's list, and logs by that of the system.
        self.verify = ca or DEFAULT_CA_BUNDLE_PATH
        if not os.path.exists(self.verify):
            raise UserError("there is no such file of certificates", where="--ca", found=self.verify)
        with _answered(self.url):
            self.client = _client(self.url, self.verify)

    @property
    def ray_version(self) -> str:
        return str(self.client._server_ray_version)

    def submit(
        self,
        id: str,
        command: str,
        packages: Sequence[str],
        *,
        env: Mapping[str, str],
        pip: str | None,
        facts: Mapping[str, str],
    ) -> bool:
        """Start `command` where copies of the folders `packages` can be imported, as they can by all that it starts; False
        where the same job is there already, by its id and `facts`.

        Raises UserError where another job has this id.
        """
        # Not as `working_dir`: Ray removes that folder and unpacks it again for each raylet, also under those that run.
        environment: dict[str, Any] = {"py_modules": list(packages), "env_vars": dict(env)} | (
            {"pip": pip} if pip else {}
        )
        until, sent = time.monotonic() + SUBMIT_SECONDS, False
        while True:
            try:
                if sent and (found := self.find(id)) is not None:
                    return _same(found, facts)
                sent = True
                with _answered(self.url):
                    self.client.submit_job(
                        entrypoint=command, runtime_env=environment, submission_id=id, metadata=dict(facts)
                    )
                return True
            except _Exists:
                return _same(self.job(id), facts)
            except Unreachable:
                if time.monotonic() > until:
                    raise
                time.sleep(1)

    def job(self, id: str) -> Job:
        """Raises UserError where there is none of this id."""
        found = self.find(id)
        if found is None:
            raise UserError("the cluster knows no such job", where=id, do="medray jobs list")
        return found

    def find(self, id: str) -> Job | None:
        try:
            with _answered(self.url):
                return _job(self.client.get_job_info(id))
        except _Missing:
            return None

    def jobs(self) -> list[Job]:
        """Those that were submitted, newest first."""
        with _answered(self.url):
            found = [_job(details) for details in self.client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.began or datetime.max.replace(tzinfo=UTC), reverse=True)

    def log(self, id: str) -> str:
        """All that the job has printed until now."""
        try:
            with _answered(self.url):
                return self.client.get_job_logs(id)
        except _Missing:
            raise UserError("the cluster knows no such job", where=id, do="medray jobs list") from None

    def stop(self, id: str, *, seconds: float = 60.0) -> Job:
        """Ask it to end, and wait until it has: what it holds is committed first. A job that is over stays as it is."""
        job = self.job(id)
        until = time.monotonic() + seconds
        if not job.over:
            with _answered(self.url):
                self.client.stop_job(id)
        while not job.over:
            if time.monotonic() > until:
                raise MachineError("the job has not ended", where=id, found=job.status, do=f"medray jobs stop {id}")
            time.sleep(0.3)
            job = self.job(id)
        return job


class Following:
    """The log of a job from its beginning, each character once, through lost connections, until the job is over."""

    SILENCE = 60.0
    """Seconds without a word, after which the connection is taken for dead and made anew."""

    def __init__(
        self, server: JobServer, id: str, note: Callable[[str], None] = print, *, patience: float = 900.0
    ) -> None:
        """`note` is told of lost connections; after `patience` seconds without one it gives up."""
        self.server, self.id, self.note, self.patience = server, id, note, patience
        self.seen, self.rest = 0, ""
        """Characters of the log that were given out, as Ray sends it from its beginning to whoever asks; of them a line
        without its end."""

    def lines(self) -> Iterator[str]:
        """Whole lines. Raises MachineError when the cluster stays out of reach; the job may go on then."""
        for text in self.pieces():
            *whole, self.rest = (self.rest + text).split("\n")
            yield from whole
        if self.rest:
            yield self.rest

    def pieces(self) -> Iterator[str]:
        heard, pause, lost = time.monotonic(), 0.5, False
        while True:
            try:
                over = self.server.job(self.id).over
                for text in () if over else self._stream():  # Ray takes seconds to end the stream of a finished job
                    if lost:
                        self.note("connected again")
                    heard, pause, lost = time.monotonic(), 0.5, False
                    yield text
                if over or self.server.job(self.id).over:
                    yield from self._given_out(self.server.log(self.id))
                    return
                heard = time.monotonic()
            except MachineError as error:
                if time.monotonic() - heard > self.patience:
                    raise _given_up(self.id, error) from None
                if not lost and pause > 0.5:  # the second time in a row: a person may wonder
                    self.note(f"the connection is lost ({error.found or error.what}); the job goes on; trying again")
                    lost = True
            time.sleep(pause)
            pause = min(2 * pause, 10.0)

    def _given_out(self, whole: str) -> Iterator[str]:
        """What of the log was not given out yet."""
        text = whole[self.seen :]
        self.seen = max(self.seen, len(whole))
        if text:
            yield text

    def _stream(self) -> Iterator[str]:
        """What of the log is new, as it comes, until Ray ends the stream. Raises Unreachable."""
        passed = 0
        with _heard(self.server.client.tail_job_logs(self.id)) as pieces:
            while True:
                with _answered(self.server.url):
                    try:
                        text = pieces.get(timeout=self.SILENCE)
                    except Empty:
                        raise TimeoutError from None
                    if isinstance(text, Exception):
                        raise text
                if text is None:
                    return
                new = text[max(0, self.seen - passed) :]
                passed += len(text)
                self.seen = max(self.seen, passed)
                if new:
                    yield new


@contextmanager
def _heard(stream: AsyncIterator[str]) -> Iterator[SimpleQueue[str | Exception | None]]:
    """The pieces of a stream as they come, its error or None as the last. It is read in a thread: Ctrl-C cuts the wait
    for a piece, and never aiohttp at work, which would lose the signal or fail by it."""
    import asyncio

    pieces: SimpleQueue[str | Exception | None] = SimpleQueue()
    begun: SimpleQueue[Callable[[], object]] = SimpleQueue()

    async def read() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        begun.put(lambda: task and loop.call_soon_threadsafe(task.cancel))
        try:
            async for text in stream:
                pieces.put(text)
            pieces.put(None)
        except Exception as error:  # raised where the pieces are waited for
            pieces.put(error)

    def run() -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(read())

    thread = Thread(target=run, name="medray-job-log", daemon=True)
    thread.start()
    cancel = begun.get()
    try:
        yield pieces
    finally:
        with suppress(RuntimeError):  # the stream has ended, and its loop is closed
            cancel()
        thread.join(timeout=5)


def _given_up(id: str, error: MachineError) -> MachineError:
    return MachineError(
        "the cluster stays out of reach; the job may go on there",
        where=id,
        found=error.found or error.what,
        do=f"medray jobs logs {id} --follow",
    )


# --- where it is ----------------------------------------------------------------------------------------------


def _url(address: str | None, *, insecure_http: bool) -> str:
    """http(s)://host:port. An address that was given wins over the environment, which with Ray it would not."""
    address = address or next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)
    if address is None or "://" not in address:
        from ray.dashboard.utils import ray_address_to_api_server_url

        from medray.engines.ray.connection import knock

        if address not in (None, "auto", "local"):
            _refuse_plain(f"http://{address}", insecure_http)  # a token would go to the head in the clear as well
            knock(address)
        address = str(ray_address_to_api_server_url(None if address == "local" else address))
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UserError(
            "no address of a job server",
            where="--address",
            found=f"{url.scheme}://…",
            expected="http://127.0.0.1:8265, https://…, or host:port of the head",
        )
    if url.username or url.password:
        raise UserError("an address with a password in it", where="--address", do=TOKEN)
    if url.scheme == "http":
        _refuse_plain(address, insecure_http)
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"


def _refuse_plain(url: str, insecure_http: bool) -> None:
    host = urlsplit(url).hostname or ""
    if not insecure_http and not _is_loopback(host):
        raise UserError(
            "plain http to another machine: whoever listens on the way reads the token, and can run code on the cluster",
            where="--address",
            found=f"http://{host}",
            expected="https://, or a tunnel to this machine",
            do=f"ssh -L 8265:127.0.0.1:8265 {host}, then --address http://127.0.0.1:8265; "
            "or --insecure-http on a network that you trust",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _client(url: str, verify: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            options.setdefault("timeout", TIMEOUT)
            return super()._do_request(method, endpoint, **options)

    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
    before = os.environ.get(ADDRESSES[0])
    os.environ[ADDRESSES[0]] = url  # Ray takes it before the address that it is given
    try:
        return Client(url, verify=verify)
    finally:
        if before is None:
            del os.environ[ADDRESSES[0]]
        else:
            os.environ[ADDRESSES[0]] = before


# --- what it says ---------------------------------------------------------------------------------------------


class _Missing(MachineError):
    """There is no such job."""


class _Exists(MachineError):
    """There is a job of this id."""


@contextmanager
def _answered(url: str) -> Iterator[None]:
    """Ray's errors as ours, without what may hold a token. Raises UserError, Unreachable, MachineError."""
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise _refused(url, str(error)) from None
    except (requests.exceptions.InvalidHeader, UnicodeError):  # their text quotes it
        raise UserError(
            "the token cannot be sent: it holds characters that no token has", where=url, do=TOKEN
        ) from None
    except aiohttp.WSServerHandshakeError as error:
        raise _by_status(url, error.status, error.message) from None
    except (requests.exceptions.RequestException, aiohttp.ClientError, OSError) as error:  # ConnectionError, timeouts
        if _is_about_tls(error):
            plain = "VERIFY_FAILED" not in str(error.__context__ or "") + str(error)
            raise UserError(
                "no safe connection to the job server",
                where=url,
                found="it speaks no TLS" if plain else "its certificate is not accepted",
                do="" if plain else "--ca FILE with the certificate of the authority that signed it",
            ) from None
        raise Unreachable(
            "the job server does not answer",
            where=url,
            found=type(error).__name__,
            do="check the address, and that the head of the cluster runs with its dashboard",
        ) from None
    except (RuntimeError, ValueError, KeyError) as error:
        if type(error) is not RuntimeError:
            raise MachineError("no job server of Ray answers here", where=url, found=str(error)[:200]) from None
        status = re.search(r"status code (\d+)", str(error))
        raise _by_status(url, int(status[1]) if status else 0, str(error)) from None


def _by_status(url: str, status: int, text: str) -> Exception:
    if status in (401, 403):
        return _refused(url, "Authentication required" if status == 401 else "Authentication failed")
    if "already exists" in text:
        return _Exists("there is a job of this id", where=url)
    if status == 404 and "not exist" in text:
        return _Missing("there is no such job", where=url)
    last = text.strip().splitlines()[-1] if text.strip() else ""
    kind = Unreachable if status in (0, 502, 503, 504) else MachineError
    return kind("the job server answers with a fault", where=url, found=f"{status or ''} {last[:300]}".strip())


def _refused(url: str, said: str) -> UserError:
    """401, 403, or a client that is to send a token and finds none."""
    found = (
        "none was sent" if "required" in said else "another one was sent" if "failed" in said else "there is none here"
    )
    return UserError("the cluster asks for its token; nothing was started", where=url, found=found, do=TOKEN)


def _is_about_tls(error: BaseException | None) -> bool:
    import aiohttp
    import requests

    kinds = (requests.exceptions.SSLError, aiohttp.ClientSSLError)
    return error is not None and (isinstance(error, kinds) or _is_about_tls(error.__context__))


def _same(job: Job, facts: Mapping[str, str]) -> bool:
    """False: the job is the one that was to be submitted. Raises UserError where it is another."""
    if all(job.facts.get(name) == value for name, value in facts.items()):
        return False
    raise UserError(
        "another job has this id",
        where=job.id,
        found=f"{job.facts.get('verb', 'a job')} of {_shown(job.began)}, {job.status}",
        do="submit under another --id",
    )


def _job(details: JobDetails) -> Job:
    status = str(details.status.value)
    over = {"SUCCEEDED": 0, "STOPPED": 143, "FAILED": 1}.get(status)
    code = details.driver_exit_code if over is not None and details.driver_exit_code is not None else over
    return Job(
        id=str(details.submission_id),
        status=status,
        began=_time(details.start_time),
        ended=_time(details.end_time),
        exit_code=128 - code if code is not None and code < 0 else code,  # ended by a signal: as the shell has it
        message=details.message or "",
        command=details.entrypoint,
        facts=details.metadata or {},
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _shown(moment: datetime | None) -> str:
    return moment.isoformat(timespec="seconds") if moment else "no time"
