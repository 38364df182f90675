"""Jobs of a cluster, through Ray's job server: submit, list, stop. `job_log.py` follows one.

A request may be repeated without harm: a job is started under an id that the client chose, and Ray takes an id once.
The token is read and sent by Ray itself (RAY_AUTH_MODE=token); nothing here knows it, and no message holds it.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from medray.engines.ray.job_errors import TOKEN, Exists, Missing, Unreachable, answered
from medray.errors import MachineError, UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for an answer. Ray itself waits for ever."""
SUBMIT_SECONDS = 120.0
"""A job is sent again for so long while no answer comes."""
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


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

        with answered(address or "the cluster of this machine"):
            self.url = _url(address, insecure_http=insecure_http)
        # By name, not True: of Ray's client requests then go by certifi's list, and logs by that of the system.
        self.verify = ca or DEFAULT_CA_BUNDLE_PATH
        if not os.path.exists(self.verify):
            raise UserError("there is no such file of certificates", where="--ca", found=self.verify)
        with answered(self.url):
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
        environment: dict[str, object] = {"py_modules": list(packages), "env_vars": dict(env)}
        if pip:
            environment["pip"] = pip
        until, sent = time.monotonic() + SUBMIT_SECONDS, False
        while True:
            try:
                if sent and (existing := self.find(id)) is not None:
                    return _same(existing, facts)
                sent = True
                with answered(self.url):
                    self.client.submit_job(
                        entrypoint=command, runtime_env=environment, submission_id=id, metadata=dict(facts)
                    )
                return True
            except Exists:
                return _same(self.job(id), facts)
            except Unreachable:
                if time.monotonic() > until:
                    raise
                time.sleep(1)

    def job(self, id: str) -> Job:
        """Raises UserError where there is none of this id."""
        job = self.find(id)
        if job is None:
            raise UserError("the cluster knows no such job", where=id, do="medray jobs list")
        return job

    def find(self, id: str) -> Job | None:
        try:
            with answered(self.url):
                return _job(self.client.get_job_info(id))
        except Missing:
            return None

    def jobs(self) -> list[Job]:
        """Those that were submitted, newest first."""
        with answered(self.url):
            jobs = [_job(details) for details in self.client.list_jobs() if details.submission_id]
        return sorted(jobs, key=lambda job: job.began or datetime.max.replace(tzinfo=UTC), reverse=True)

    def log(self, id: str) -> str:
        """All that the job has printed until now."""
        try:
            with answered(self.url):
                return self.client.get_job_logs(id)
        except Missing:
            raise UserError("the cluster knows no such job", where=id, do="medray jobs list") from None

    def stop(self, id: str, *, seconds: float = 60.0) -> Job:
        """Ask it to end, and wait until it has: what it holds is committed first. A job that is over stays as it is."""
        job = self.job(id)
        until = time.monotonic() + seconds
        if not job.over:
            with answered(self.url):
                self.client.stop_job(id)
        while not job.over:
            if time.monotonic() > until:
                raise MachineError("the job has not ended", where=id, found=job.status, do=f"medray jobs stop {id}")
            time.sleep(0.3)
            job = self.job(id)
        return job


# --- where it is ----------------------------------------------------------------------------------------------


def _url(address: str | None, *, insecure_http: bool) -> str:
    """http(s)://host:port. An address that was given wins over the environment, which with Ray it would not."""
    address = address or next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)
    if address is None or "://" not in address:
        from ray.dashboard.utils import ray_address_to_api_server_url

        from medray.engines.ray.connection import check_reachable

        if address not in (None, "auto", "local"):
            _refuse_plain(f"http://{address}", insecure_http)  # a token would go to the head in the clear as well
            check_reachable(address)
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
