"""A Keras file to a Network and its weights, read by a child process, so that nothing of the file is opened in this one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from medray.errors import MachineError, UserError
from medray.learning.keras.network import Network
from medray.storage import files

SUFFIXES = (".keras", ".h5", ".hdf5")
MOST_BYTES = 2**30
MEMORY, SECONDS = 2**30, 5
"""Of the child, for a small file."""
BYTES_A_SECOND = 50_000_000
NETWORK, WEIGHTS, REFUSAL = "network.json", "weights.safetensors", "refusal.json"


@dataclass(frozen=True)
class KerasFile:
    """A Keras file as it was read."""

    name: str
    """The file's, without its folder."""
    sha256: str
    keras: str
    """Version of Keras that wrote it."""
    network: Network
    weights: dict[str, np.ndarray]
    """State of the torch network."""
    notes: tuple[str, ...]
    """Settings of layers that are not taken over: regularisers, constraints."""


def lacking() -> str | None:
    """What is not installed that reading and writing need; None where all is."""
    return "h5py not installed: pip install 'medray[keras]'" if importlib.util.find_spec("h5py") is None else None


def read(file: str, where: str) -> KerasFile:
    """The model in a .keras or .h5 file; no code of it is run. `where` is for messages: the key that names it.

    Raises UserError for a file that is missing, too large, broken, or holds what medray does not take.
    """
    if (absent := lacking()) is not None:
        raise UserError("Keras files are read by h5py", where=where, found=absent)
    uri = files.absolute(file)
    content = _content(uri, where)
    with tempfile.TemporaryDirectory(prefix="medray-keras-") as name:
        folder = Path(name)
        copy = folder / "model"
        copy.write_bytes(content)
        _run(copy, folder, len(content), where)
        if (folder / REFUSAL).exists():
            raise UserError(**json.loads((folder / REFUSAL).read_text()), where=where)
        import safetensors.numpy

        facts = json.loads((folder / NETWORK).read_text())
        weights = safetensors.numpy.load_file(folder / WEIGHTS)
    return KerasFile(
        name=PurePosixPath(uri).name,
        sha256=hashlib.sha256(content).hexdigest(),
        keras=facts["keras"],
        network=Network.model_validate(facts["network"]),
        weights=weights,
        notes=tuple(facts["notes"]),
    )


def _content(uri: str, where: str) -> bytes:
    if files.is_local(uri):
        path = files.local_path(uri)
        if not path.is_file():
            raise UserError(
                "there is no such file", where=where, found="nothing" if not path.exists() else "no plain file"
            )
        if path.stat().st_size > MOST_BYTES:
            raise UserError(
                "the file is too large",
                where=where,
                found=f"{path.stat().st_size:,} bytes",
                expected=f"at most {MOST_BYTES:,}",
            )
    try:
        return files.read_bytes(uri)
    except OSError as error:
        raise UserError("the file cannot be read", where=where, found=error.strerror or type(error).__name__) from None


def _run(copy: Path, folder: Path, size: int, where: str) -> None:
    """The child. Raises UserError where the file ends it."""
    memory, seconds = MEMORY + 4 * size, SECONDS + size // BYTES_A_SECOND
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
    }
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "medray.learning.keras.child", str(copy), str(folder), str(memory), str(seconds)]
    try:
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, timeout=4 * seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError("reading the file takes too long", where=where, expected=f"{4 * seconds} s") from None
    written = (folder / REFUSAL).exists() or (folder / NETWORK).exists()
    if done.returncode == 0 and written:
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
        "the process that reads Keras files fails",
        where=where,
        found=done.stderr.decode(errors="replace").strip()[-500:],
    )
