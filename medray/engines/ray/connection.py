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
from contextlib import chdir, contextmanager, nullcontext
from typing import Any

from medray.errors import MachineError
from medray.storage import sent


def start(address: str | None = None, **options: Any) -> None:
    """Connect to a cluster, or start Ray on this machine, without its noise on the terminal."""
    import ray

    # the core worker prints a warning at every start of a restartable actor (ray-project/ray#53727)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address is None and "RAY_ADDRESS" not in os.environ:  # a job of a cluster has it
        address = "local"  # without it, Ray joins any cluster that was started on this machine
    if address == "local":
        options["include_dashboard"] = False
    if address is not None and address not in ("auto", "local"):
        check_reachable(address)
    try:
        with _held_stderr(), _at_what_was_sent(), _own_handlers():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except ConnectionError as error:
        raise _no_cluster(address, str(error).splitlines()[0]) from None


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
