"""URIs of files: local paths, and anything that `pyarrow.fs.FileSystem.from_uri` knows."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def is_local(uri: str) -> bool:
    """False where a scheme and :// stand first; a colon alone is part of a file's name ("CT:1/slice.dcm")."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    return scheme is None or scheme[1] == "file"


def local_path(uri: str) -> Path:
    """The path of a local URI. Raises ValueError for a remote one."""
    if not is_local(uri):
        raise ValueError(f"{uri} is not a local path")
    return Path(unquote(urlsplit(uri).path)) if uri.startswith("file:") else Path(uri)


def file_system(uri: str) -> tuple[FileSystem, str]:
    """The file system of a remote URI, which waits for passing faults, and the path in it."""
    from medray.storage import remote

    return remote.file_system(uri)


def absolute(uri: str | os.PathLike[str], base: Path | None = None) -> str:
    """A local path made absolute against `base` (default: the working directory); a remote URI as it is."""
    uri = os.fspath(uri)
    if not is_local(uri):
        return uri
    return os.path.realpath((base or Path.cwd()) / local_path(uri).expanduser())  # no error for a link to itself


def join(uri: str, *names: str) -> str:
    return "/".join([uri.rstrip("/"), *(name.strip("/") for name in names)])


def relative(uri: str, root: str) -> str:
    """`uri` below `root`, with `/` between names; the file's own name where `root` is that file."""
    if uri == root:
        return uri.rsplit("/", 1)[-1]
    prefix = root.rstrip("/") + "/"
    if not uri.startswith(prefix):
        raise ValueError(f"{uri} is not below {root}")
    return uri[len(prefix) :]
