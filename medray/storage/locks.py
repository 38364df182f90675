"""A lock that names its holder: a small JSON file beside what it guards, taken over when its holder is gone.

It spares a second run its work and tells a person why. It does not decide who may write: the store's claims do.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from medray.errors import MachineError
from medray.storage import files, modes

BEAT_SECONDS = 60.0
STALE_SECONDS = 15 * 60.0
"""A holder that has not said so for as long is taken for dead or stopped, wherever it ran."""
SETTLE_SECONDS = 2.0
"""On an object store, which has no rename: after writing, look again who has written last."""


@dataclass(frozen=True)
class Holder:
    host: str
    pid: int
    born: str
    """When the process started, as the kernel counts it: a number of a process is used again."""
    run_id: str
    since: str
    """UTC, ISO 8601."""
    beat: float
    """When the holder last said that it is there, seconds since the epoch."""

    def __str__(self) -> str:
        return f"run {self.run_id}, process {self.pid} on {self.host}, since {self.since}"

    def is_gone(self) -> bool:
        """Its process has ended, where that can be seen from here; else it has been silent for STALE_SECONDS."""
        if time.time() - self.beat > STALE_SECONDS:
            return True
        return self.host == socket.gethostname() and _born(self.pid) != self.born


def _born(pid: int) -> str:
    """ "" where there is no such process; where the kernel does not tell (no /proc), a word for one that is there."""
    if not Path("/proc/self/stat").exists():
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            return "there"
        return ""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextmanager
def hold(uri: str, run_id: str) -> Generator[Holder | None]:
    """Hold the lock file at `uri` for the block: yields None; or who else holds it, and then the block should leave.

    The lock of a holder that is gone is taken over. Raises MachineError when the place cannot be written.
    """
    since = datetime.now(UTC).isoformat(timespec="seconds")
    mine = Holder(socket.gethostname(), os.getpid(), _born(os.getpid()), run_id, since, time.time())
    try:
        other = _take_local(uri, mine) if files.is_local(uri) else _take_remote(uri, mine)
    except OSError as error:
        raise MachineError(
            "the lock of this store cannot be written",
            where=uri,
            found=error.strerror or str(error),
            do="check the storage: the store needs it too",
        ) from error
    if other is not None:
        yield other
        return
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(uri, mine, done), name="medray-lock", daemon=True)
    beating.start()
    try:
        yield None
    finally:
        done.set()
        beating.join()
        holder = _read(uri)
        if holder is not None and holder.run_id == run_id:
            files.remove_file(uri)


def _take_local(uri: str, mine: Holder) -> Holder | None:
    """A hard link to a finished file is made whole or not at all, on network file systems too."""
    lock = files.local_path(uri)
    modes.make_below(lock.parent)
    draft = lock.with_name(f".{lock.name}.{uuid.uuid4().hex}")
    with modes.opened_new(draft) as stream:
        stream.write(_text(mine))
    try:
        while True:
            try:
                os.link(draft, lock)
                return None
            except FileExistsError:
                try:
                    holder = _parsed(files.read_bytes(uri))
                except FileNotFoundError:  # its holder let go meanwhile
                    continue
            if holder is not None and not holder.is_gone():
                return holder
            _bury(lock, holder)  # none: spoilt, as by a power cut, since a lock is made whole
    finally:
        draft.unlink()


def _bury(lock: Path, dead: Holder | None) -> None:
    """Take away the lock of a dead holder, or a spoilt one; of two that try, one finds the other's fresh lock in its hand: it is put back."""
    grave = lock.with_name(f".{lock.name}.{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        lock.rename(grave)
        if (buried := _parsed(grave.read_bytes())) is not None and (dead is None or buried.run_id != dead.run_id):
            with suppress(FileExistsError):  # a third has it by now
                os.link(grave, lock)
        grave.unlink()


def _take_remote(uri: str, mine: Holder) -> Holder | None:
    holder = _read(uri)
    if holder is not None and not holder.is_gone():
        return holder
    files.write_bytes(uri, _text(mine))
    time.sleep(SETTLE_SECONDS)
    last = _read(uri)
    return None if last is None or last.run_id == mine.run_id else last


def _beat(uri: str, mine: Holder, done: threading.Event) -> None:
    while not done.wait(BEAT_SECONDS):
        holder = _read(uri)
        if holder is None or holder.run_id != mine.run_id:  # taken over: the store's claim fences this run
            return
        with suppress(OSError):  # a passing fault of the storage costs one beat of many
            files.write_bytes(uri, _text(replace(mine, beat=time.time())))


def _text(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _read(uri: str) -> Holder | None:
    try:
        return _parsed(files.read_bytes(uri))
    except OSError:
        return None


def _parsed(text: bytes) -> Holder | None:
    """None for a file that is no lock of this version: nobody can be asked about it."""
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None
