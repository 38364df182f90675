"""An Orthanc with DICOMweb on the loopback, from Debian's packages: unpacked into a folder, nothing is installed.

Orthanc 1.10 listens on every interface, so it runs in a network of its own (`own_network.py`).
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from own_network import reached

PACKAGES = ("orthanc", "orthanc-dicomweb")
PORT = 8042


class Server(NamedTuple):
    """A running server."""

    url: str
    user: str
    password: str

    @property
    def dicomweb(self) -> str:
        return f"dicomweb+{self.url}/dicom-web"

    def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The JSON that Orthanc's own interface answers."""
        request = urllib.request.Request(f"{self.url}{path}", body, method=method)
        word = f"{self.user}:{self.password}".encode()
        request.add_header("Authorization", f"Basic {base64.b64encode(word).decode()}")
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read() or b"null")


def unpack(folder: Path) -> Path | None:
    """A folder that Orthanc, its plug-in and the libraries it lacks here are unpacked into; None where they cannot be had.
    What an earlier session has unpacked in `folder` is taken."""
    if (folder / "whole").exists():
        return folder / "root"
    shutil.rmtree(folder, ignore_errors=True)
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return None
    packages, root = folder / "packages", folder / "root"
    packages.mkdir(parents=True)
    waiting, seen = list(PACKAGES), set[str]()
    while waiting:
        seen.update(waiting)
        if subprocess.run(["apt-get", "download", *waiting], cwd=packages, capture_output=True).returncode:
            return None
        needed = {name for package in waiting for name in _libraries(packages, package)} - seen
        waiting = _to_be_had(sorted(name for name in needed if not _is_installed(name)))
    for package in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    (folder / "whole").touch()
    return root


def _libraries(packages: Path, package: str) -> list[str]:
    """Names of the libraries that a package depends on."""
    (path,) = packages.glob(f"{package}_*.deb")
    depends = subprocess.run(["dpkg", "-f", str(path), "Depends"], check=True, capture_output=True, text=True).stdout
    return re.findall(r"(?:^|, )(lib[a-z0-9.+-]+)", depends)


def _is_installed(package: str) -> bool:
    return subprocess.run(["dpkg", "-s", package], capture_output=True).returncode == 0


def _to_be_had(packages: list[str]) -> list[str]:
    """Those that are packages; a name may also be of what several packages provide."""
    if not packages:
        return []
    told = subprocess.run(["apt-cache", "policy", *packages], check=True, capture_output=True, text=True).stdout
    return re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (?!\(none\))", told, re.MULTILINE)


@contextmanager
def orthanc(root: Path, folder: Path, alone: list[str]) -> Iterator[Server]:
    """A running server of what `unpack` gave, with its data in `folder`; it overwrites instances that come again.

    `alone`: how a command is run in a network of its own (`own_network`).
    """
    user, password = "medray", secrets.token_hex(8)
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "Plugins": [str(path) for path in root.glob("usr/lib/orthanc/libOrthancDicomWeb.so*")][:1],
        "HttpPort": PORT,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {user: password},
        "OverwriteInstances": True,
        "SyncStorageArea": False,
        "DicomWeb": {"Enable": True},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(settings))
    libraries = [
        str(path) for path in (*root.glob("usr/lib/*-linux-gnu"), *root.glob("lib/*-linux-gnu"), root / "usr/lib")
    ]
    dictionary = next(root.glob("usr/share/libdcmtk*/dicom.dic"))
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(libraries), "DCMDICTPATH": str(dictionary)}
    command = [str(root / "usr/sbin/Orthanc"), str(folder / "orthanc.json")]
    with (
        open(folder / "log", "wb") as log,
        reached(alone, command, PORT, environment=environment, log=log) as (port, process),
    ):
        server = Server(f"http://127.0.0.1:{port}", user, password)
        _wait(server, process, folder / "log")
        yield server


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        try:
            server.ask("GET", "/system")
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise RuntimeError(f"Orthanc did not start: {log.read_text(errors='replace')[-2000:]}")
