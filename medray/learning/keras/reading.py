"""A Keras file to a Network and its weights, read by a child process, so that nothing of the file is opened in this one."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from medray.errors import UserError
from medray.extras import lacking
from medray.learning.bounded import content_of, run
from medray.learning.keras.network import Network

SUFFIXES = (".keras", ".h5", ".hdf5")
MOST_BYTES = 2**30
MEMORY, SECONDS = 2**30, 5
"""Of the child, for a small file."""
BYTES_A_SECOND = 50_000_000
MODULE = "medray.learning.keras.child"
NETWORK, WEIGHTS = "network.json", "weights.safetensors"


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


def read(file: str, where: str) -> KerasFile:
    """The model in a .keras or .h5 file; no code of it is run. `where` is for messages: the key that names it.

    Raises UserError for a file that is missing, too large, broken, or holds what medray does not take.
    """
    if (absent := lacking("h5py")) is not None:
        raise UserError("Keras files are read by h5py", where=where, found=absent)
    content = content_of(file, where, MOST_BYTES)
    with tempfile.TemporaryDirectory(prefix="medray-keras-") as name:
        folder = Path(name)
        (folder / "model").write_bytes(content)
        limits = {"memory": MEMORY + 4 * len(content), "seconds": SECONDS + len(content) // BYTES_A_SECOND}
        run(MODULE, ["model"], folder, **limits, where=where)
        import safetensors.numpy

        facts = json.loads((folder / NETWORK).read_text())
        weights = safetensors.numpy.load_file(folder / WEIGHTS)
    return KerasFile(
        name=PurePosixPath(file).name,
        sha256=hashlib.sha256(content).hexdigest(),
        keras=facts["keras"],
        network=Network.model_validate(facts["network"]),
        weights=weights,
        notes=tuple(facts["notes"]),
    )
