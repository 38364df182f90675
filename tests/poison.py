"""Test-only decoders that end their process: what a faulty codec does with one file of an archive.

Read and Scan as they are, but for files named so: `segfault` reads where no memory is, `glutton` takes memory until
none is given, `exit` leaves, `mood` dies the first time it is read.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from medray.flows.flow import Stage
from medray.verbs import stages


def take(uri: str) -> None:
    name = Path(uri).name
    if name.startswith("segfault"):
        ctypes.string_at(0)
    elif name.startswith("exit"):
        os._exit(3)
    elif name.startswith("mood"):
        trace = Path(uri.removeprefix("file://") + ".read")
        if not trace.exists():
            trace.touch()
            ctypes.string_at(0)
    elif name.startswith("glutton"):
        held = []
        while True:
            held.append(bytearray(os.urandom(1) * 2**24))


class Read(stages.Read):
    def _read(self, rows: pa.RecordBatch) -> Any:
        for parts in rows.column("parts").to_pylist():
            take(parts[0]["uri"])
        return super()._read(rows)


class Scan(stages.Scan):
    def _scan(self, reason: str | None = None, detail: str | None = None, **facts: Any) -> Any:
        if reason is None:
            take(facts["uri"])
        return super()._scan(reason, detail, **facts)


def reading(spec: Any, batch_size: int = 32, **how: Any) -> Stage:
    return Stage(partial(Read, spec, **how), batch_size, name="read")


def scanning(spec: Any, root: str, key: bytes) -> Stage:
    return Stage(partial(Scan, spec, root, key), batch_size=256, name="scan")


def plant(monkeypatch: Any, *, read: Callable[..., Stage] = reading, scan: Callable[..., Stage] | None = None) -> None:
    monkeypatch.setattr(stages, "read", read)
    if scan is not None:
        monkeypatch.setattr(stages, "scan", scan)
