"""The way to a Ray cluster: joined by its address, or started on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import chdir, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from medray.errors import MachineError
from medray.storage import files, modes, sent


def start(address: str | None = None, *, trains_only: bool = False, **options: Any) -> None:
    """Connect to a cluster, or start Ray on this machine, without its noise on the terminal. `trains_only`: one that is started
    has neither dashboard nor autoscaler, and nothing that hands on its logs."""
    import ray

    # the core worker prints a warning at every start of a restartable actor (ray-project/ray#53727)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address is None and "RAY_ADDRESS" not in os.environ:  # a job of a cluster has it
        address = "local"  # without it, Ray joins any cluster that was started on this machine
    if address == "local":
        options["include_dashboard"] = False
        options.setdefault("_temp_dir", _session_folder())
    if address is not None and address not in ("auto", "local"):
        check_reachable(address)
    try:
        few = _without_onlookers() if trains_only and address == "local" else nullcontext()
        with _held_stderr(), _at_what_was_sent(), _closed(address), _own_handlers(), few:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except ConnectionError as error:
        raise _no_cluster(address, str(error).splitlines()[0]) from None


def _session_folder() -> str | None:
    """Where a Ray of this user keeps its sessions: sockets, logs, what is spilled. Ray opens it, and folders in it, to all users:
    it lies in a folder that they cannot enter. None, which is Ray's default, where the paths of sockets would become too
    long."""
    place = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    folder = files.own_folder(place, f"medray-ray-{os.geteuid()}") / "ray"
    return str(folder) if len(str(folder)) + len(SOCKET) <= SOCKET_PATH else None


SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
SOCKET_PATH = 107
"""The longest path of a socket on Linux (unix(7), sun_path)."""


@contextmanager
def _closed(address: str | None) -> Generator[None]:
    """In the block a Ray that is started here (address "local") listens on the loopback alone, and all that its processes write is
    this user's alone, the token too that Ray leaves in the user's home. docs/cluster.md has what listens where."""
    if address != "local":
        with _on_loopback() if address and is_on_loopback_alone(address) else nullcontext():
            yield
        return
    before = os.umask(0o077)  # Ray's processes, and the workers that they start, have it from here, and the environment
    settings = {**OF_TRAINING, **(dict.fromkeys(SOCKETS_OF_TRAINING, "lo") if sys.platform == "linux" else {})}
    added = settings.keys() - os.environ.keys()
    os.environ.update((name, settings[name]) for name in added)
    try:
        _close_token()
        with _on_loopback():
            yield
    finally:
        for name in added:
            del os.environ[name]
        os.umask(before)


@contextmanager
def _on_loopback() -> Generator[None]:
    """In the block the address of this machine is that of the loopback.

    Ray replaces it by one that others reach, also where it is given, unless it takes itself for a machine that makes no
    cluster, as on macOS and Windows (ray-project/ray#18730).
    """
    from ray._private import ray_constants

    makes_clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = makes_clusters


@contextmanager
def _without_onlookers() -> Generator[None]:
    """In the block a Ray that is started has none of the processes that look on: each takes a second of a processor to start,
    and Ray waits for the dashboard's even where it is to serve nothing (include_dashboard=False)."""
    from ray._private.node import Node

    kept = {name: vars(Node)[name] for name in ONLOOKERS if name in vars(Node)}
    for name in kept:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


ONLOOKERS = ("start_api_server", "start_monitor", "start_log_monitor")
"""Methods of Ray's node that start its dashboard, its autoscaler and what hands on its logs."""


def is_on_loopback_alone(address: str) -> bool:
    """Whether host:port is a Ray of this machine that a run has started: nothing answers there from outside."""
    from ray._private.services import (
        node_ip_address_from_perspective,  # pyright: ignore[reportAttributeAccessIssue]  # compiled, without types
    )

    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost", "[::1]"):
        return False
    try:
        socket.create_connection((node_ip_address_from_perspective(), int(port)), timeout=2).close()
    except (OSError, ValueError):
        return True
    return False


SOCKETS_OF_TRAINING = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""The network interface that training workers exchange gradients over; else one by the host's name."""

OF_TRAINING = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # how late the end of a training is noticed; each look takes workers some ms
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that asks whether this machine is about to be taken away
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # as Ray Train has it
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing of a site is told to others
}
"""What Ray Train's processes on this machine find in their environment."""


def _close_token() -> None:
    """Ray makes the token of its local clusters, by which any code can be run there, as open as the umask."""
    token = Path.home() / ".ray" / "auth_token"
    with suppress(FileNotFoundError, PermissionError):
        if token.stat().st_mode & 0o077:
            modes.set_mode(token, 0o600)


def check_reachable(address: str) -> None:
    """Raises MachineError where nothing answers at the address: Ray itself would wait minutes for a head that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str | None, reason: str) -> MachineError:
    return MachineError(
        "there is no Ray cluster at this address",
        where=f"[engine] address = {address!r}",
        found=reason,
        expected="host:port of a running head, or auto",
        do="check it with `ray status --address …`, or leave the key out to use this machine",
    )


@contextmanager
def _own_handlers() -> Generator[None]:
    """Ray puts a handler of its own for SIGTERM in a driver: put back what was there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def _at_what_was_sent() -> Generator[None]:
    """Ray has workers import first of all from where the driver stands: of a submitted job, from what was sent."""
    folder = sent.here()
    with nullcontext() if folder is None else chdir(folder.parents[1]):
        yield


@contextmanager
def _held_stderr() -> Generator[None]:
    """Hold back what native code prints to stderr; show it where the work fails."""
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:  # Ctrl-C, too: what was held back is shown, and it goes on
            os.dup2(real, 2)
            held_back.seek(0)
            os.write(2, held_back.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)


@contextmanager
def machine_errors() -> Generator[None]:
    """A failure of Ray's, or of code in a worker, as a MachineError with its cause."""
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    try:
        yield
    except (RayError, TrainingFailedError) as error:
        raise MachineError("the work failed on the cluster", found=str(error).strip()[-3000:]) from error
