"""A Keras file opened: .keras (a zip of JSON and HDF5) or .h5. Used in a child process alone."""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from medray.learning.keras import hdf5
from medray.learning.keras.graph import Model, read_model
from medray.learning.keras.hdf5 import Wanted
from medray.learning.refusal import Refused, shown, table

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
MOST = {CONFIG: 2**25, METADATA: 2**16, WEIGHTS: 2**30}
"""Bytes of each member, unpacked."""
HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"


@dataclass
class Opened:
    """What a file holds."""

    model: Model
    keras: str
    """Version that wrote it."""
    arrays: dict[str, list[np.ndarray]]


def open_file(path: Path) -> Opened:
    """Raises Refused for what is no such file, or holds what medray does not take."""
    with open(path, "rb") as stream:
        head = stream.read(8)
    if head.startswith(ZIP):
        return _keras(path)
    if head == HDF5:
        return _h5(path)
    raise Refused("this is no Keras file", expected="a .keras file, or a .h5 file of a whole model")


def _keras(path: Path) -> Opened:
    members = _members(path)
    version = table(_json(members[METADATA], METADATA), METADATA).get("keras_version")
    major = _major(version)
    model = read_model(_json(members[CONFIG], CONFIG), major)
    wanted = _wanted(model, old=False)
    _refuse_short(wanted, len(members[WEIGHTS]))
    with _hdf5(io.BytesIO(members[WEIGHTS])) as root:
        return Opened(model, str(version), hdf5.read_new(root, wanted))


def _h5(path: Path) -> Opened:
    with _hdf5(path) as root:
        text, version = hdf5.model_config(root)
        model = read_model(_json(text.encode(), "model_config"), _major(version))
        if nested := [name for name in model.groups if len(model.groups[name]) > 2]:
            raise Refused(
                "a model within a model is not read from .h5", found=shown(nested[0]), do="save it as a .keras file"
            )
        wanted = _wanted(model, old=True)
        _refuse_short(wanted, os.path.getsize(path))
        return Opened(model, version, hdf5.read_old(root, wanted))


def _members(path: Path) -> dict[str, bytes]:
    """The three members of a .keras file. Nothing is unpacked to a disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            names = [info.filename for info in infos]
            strange = [name for name in names if name not in MOST]
            if strange:
                raise Refused(
                    "the file holds what does not belong into a model of layers",
                    found=shown(strange[0]),
                    expected=", ".join(MOST),
                )
            if sorted(names) != sorted(MOST):
                raise Refused("the file is not whole", found=shown(", ".join(names)), expected=", ".join(MOST))
            for info in infos:
                if info.flag_bits & 1:
                    raise Refused("the file is encrypted", found=info.filename)
                if info.file_size > MOST[info.filename]:
                    raise Refused(
                        "a part of the file is too large", found=f"{info.filename}, {info.file_size:,} bytes",
                        expected=f"at most {MOST[info.filename]:,}",
                    )  # fmt: skip
                packed_well = info.compress_type == zipfile.ZIP_STORED or (
                    info.compress_type == zipfile.ZIP_DEFLATED and info.filename != WEIGHTS
                )
                if not packed_well:
                    raise Refused(
                        "the weights are compressed", found=info.filename, expected="as Keras writes them: stored",
                        do="load the model with Keras and save it again",
                    )  # fmt: skip
                if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
                    raise Refused("the file is not whole", found=info.filename)
            return {name: _read(archive, name) for name in MOST}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise Refused("the file is no whole zip", found=type(error).__name__) from None


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as stream:
        content = stream.read(MOST[name] + 1)
    if len(content) > MOST[name]:
        raise Refused("a part of the file is too large", found=name)
    return content


def _json(content: bytes, name: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            raise ValueError("a key that is there twice")
        return made

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(content, object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{name} is no JSON that can be read", found=shown(str(error))) from None


def _major(version: Any) -> int:
    first = version.partition(".")[0] if isinstance(version, str) else ""
    if first not in ("2", "3"):
        raise Refused("the file does not say which Keras wrote it", found=shown(version), expected="Keras 2 or 3")
    return int(first)


def _wanted(model: Model, *, old: bool) -> list[Wanted]:
    found: list[Wanted] = []
    for shaped in model.network.shaped({}):
        name = shaped.node.name
        if shaped.weights and shaped.node.shares is None:
            found.append(Wanted(name, (name,) if old else model.groups[name], shaped.weights))
    return found


def _refuse_short(wanted: Sequence[Wanted], size: int) -> None:
    needed = hdf5.total_bytes(wanted)
    if needed > size:
        raise Refused("the file is smaller than its weights", found=f"{size:,} bytes", expected=f"{needed:,} or more")


def _hdf5(source: Path | io.BytesIO) -> h5py.File:
    try:
        return h5py.File(source, "r")
    except (OSError, ValueError, RuntimeError) as error:
        raise Refused("the weights are no HDF5 file that can be read", found=shown(type(error).__name__)) from None
