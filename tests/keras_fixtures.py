"""Files that Keras wrote, out of tests/keras_files/files.zip, and copies of them with one thing changed."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

FOLDER = Path(__file__).parent / "keras_files"
LIBRARIES = ("keras", "keras2", "keras-torch")
sys.path.insert(0, str(FOLDER))

from inputs import random_input  # noqa: E402  beside the fixtures, where their makers find it

__all__ = ["LIBRARIES", "answers", "changed", "described", "names", "random_input", "unpacked"]


@cache
def names() -> tuple[str, ...]:
    with zipfile.ZipFile(FOLDER / "files.zip") as archive:
        return tuple(archive.namelist())


def unpacked(name: str, folder: Path) -> Path:
    """One fixture as a file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(FOLDER / "files.zip") as archive:
        path = folder / name
        path.write_bytes(archive.read(name))
    return path


def described(name: str) -> dict[str, Any]:
    """[model] of a bundle with the network of a .keras fixture, whose last activation is the objective's."""
    from medray.learning.keras.graph import read_model

    with zipfile.ZipFile(FOLDER / "files.zip") as archive, zipfile.ZipFile(io.BytesIO(archive.read(name))) as whole:
        network = read_model(json.loads(whole.read("config.json")), 3).network.without_link()
    return {"kind": "keras", "network": network.model_dump(mode="json")}


@cache
def answers(library: str) -> dict[str, np.ndarray]:
    """What the library answered to `random_input`, by model."""
    with zipfile.ZipFile(FOLDER / "files.zip") as archive:
        stored = np.load(io.BytesIO(archive.read(f"answers-{library}.npz")))
        return {name: stored[name] for name in stored.files}


def changed(
    name: str,
    folder: Path,
    *,
    config: Callable[[dict[str, Any]], None] | None = None,
    weights: Callable[[h5py.File], None] | None = None,
    members: Callable[[zipfile.ZipFile], None] | None = None,
    compressed: bool = False,
) -> Path:
    """A .keras fixture with its settings, its arrays or the members of its zip changed."""
    source = unpacked(name, folder / "original")
    with zipfile.ZipFile(source) as archive:
        parts = {each: archive.read(each) for each in archive.namelist()}
    if config is not None:
        settings = json.loads(parts["config.json"])
        config(settings)
        parts["config.json"] = json.dumps(settings).encode()
    if weights is not None:
        stream = io.BytesIO(parts["model.weights.h5"])
        with h5py.File(stream, "r+") as root:
            weights(root)
        parts["model.weights.h5"] = stream.getvalue()
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for each, content in parts.items():
            archive.writestr(each, content)
        if members is not None:
            members(archive)
    return path
