"""Strangers' files are read by a process of their own, within limits of memory and time, that leaves what it read or why not."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from medray.errors import MachineError, UserError
from medray.learning.refusal import Refused, shown
from medray.storage import files

REFUSAL = "refusal.json"
KEPT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
"""What the process gets of the environment: no keys, no credentials."""


# --- in the process that asks ---------------------------------------------------------------------------------


def content_of(file: str, where: str, most: int) -> bytes:
    """The bytes of a file. Raises UserError for one that is missing, no plain file, of more than `most` bytes, or not readable."""
    uri = files.absolute(file)
    if files.is_local(uri):
        path = files.local_path(uri)
        if not path.is_file():
            raise UserError("there is no such file", where=where, found="no plain file" if path.exists() else "nothing")
        if (size := path.stat().st_size) > most:
            raise UserError("the file is too large", where=where, found=f"{size:,} bytes", expected=f"at most {most:,}")
    try:
        return files.read_bytes(uri)
    except OSError as error:
        raise UserError("the file cannot be read", where=where, found=error.strerror or type(error).__name__) from None


def run(module: str, arguments: Sequence[str], folder: Path, *, memory: int, seconds: int, where: str) -> None:
    """Run a module's `main(bounded)` in a process that may take so many bytes of memory and seconds of computing; it works in
    `folder`.

    Raises UserError with what the process refuses the file for, or where the file ends it; MachineError where it fails.
    """
    environment = {name: value for name, value in os.environ.items() if name in KEPT}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment |= {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL")}
    command = [sys.executable, "-m", module, str(memory), str(seconds), *arguments]
    try:
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, timeout=4 * seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError("reading the file takes too long", where=where, expected=f"{4 * seconds} s") from None
    if (folder / REFUSAL).exists():
        raise UserError(**json.loads((folder / REFUSAL).read_text()), where=where)
    if done.returncode == 0:
        return
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise UserError("reading the file takes too long", where=where, expected=f"{seconds} s of computing")
    if done.returncode < 0:
        raise UserError(
            "the file ends the process that reads it: it is broken",
            where=where,
            found=signal.Signals(-done.returncode).name,
        )
    raise MachineError(
        "the process that reads the file fails", where=where, found=done.stderr.decode(errors="replace").strip()[-500:]
    )


# --- in the process that reads --------------------------------------------------------------------------------


def within_limits(read: Callable[[Path, Sequence[str]], None]) -> None:
    """`read` the folder that the process works in, with the arguments that it was given, within its limits; leave a refusal
    where it raises one."""
    memory, seconds = int(sys.argv[1]), int(sys.argv[2])
    most = _taken() + memory  # what the libraries took that are imported by now is not the file's
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = Path.cwd()
    try:
        read(folder, sys.argv[3:])
        return
    except Refused as refusal:
        parts = refusal.parts()
    except MemoryError:
        parts = Refused("reading the file takes more memory than it may", expected=f"{memory:,} bytes").parts()
    except Exception as error:  # of libraries that parse a broken file, which have no base class for what they raise
        parts = Refused("the file is broken", found=shown(f"{type(error).__name__}: {error}")).parts()
    (folder / REFUSAL).write_text(json.dumps(parts))


def _taken() -> int:
    """Bytes of memory that count against the limit by now, where the system tells."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmData:")), 2**30)
