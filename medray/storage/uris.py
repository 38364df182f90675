"""URIs of files: local paths, anything that `pyarrow.fs.FileSystem.from_uri` knows, and files inside a zip or tar.

A file inside a zip or tar has the URI of that container, `!/`, and its path there: `/data/ct.zip!/head/001.dcm`.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CONTAINERS = (".zip", ".tar", ".tar.gz", ".tgz")
"""Ends of the names of files whose members are files of an archive; in either case."""
INSIDE = "!/"
"""Between the URI of a container and the path in it."""
INSIDE_PATTERN = r"(?i)^(?P<container>.*?\.(?:zip|tar|tar\.gz|tgz))!/"
"""A regular expression (of Python and of RE2) for what stands before the path."""

_INSIDE = re.compile(INSIDE_PATTERN + "(?P<path>.+)$", re.DOTALL)


def is_local(uri: str) -> bool:
    """Whether it is a file or folder of this machine by itself. False where a scheme and :// stand first (a colon alone is
    part of a file's name: "CT:1/slice.dcm"), and inside a container."""
    if "://" not in uri:
        return container_of(uri) is None
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    return (scheme is None or scheme[1] == "file") and container_of(uri) is None


def is_container(uri: str) -> bool:
    """Whether the name is that of a zip or tar."""
    return uri.lower().endswith(CONTAINERS)


def container_of(uri: str) -> tuple[str, str] | None:
    """(URI of the container, path in it) of a file inside a zip or tar; None for any other."""
    return _container_of(uri) if INSIDE in uri else None


@lru_cache(maxsize=4096)
def _container_of(uri: str) -> tuple[str, str] | None:
    match = _INSIDE.match(uri)
    if match is None or os.path.isdir(match["container"] + "!"):  # a folder whose name ends so
        return None
    return match["container"], match["path"]


def file_holding(uri: str) -> str:
    """The file that storage knows: the container of a file inside one, else the file itself."""
    inside = container_of(uri)
    return inside[0] if inside else uri


def local_path(uri: str) -> Path:
    """The path of a local URI. Raises ValueError for a remote one."""
    if not is_local(uri):
        raise ValueError(f"{uri} is not a local path")
    return Path(unquote(urlsplit(uri).path)) if uri.startswith("file:") else Path(uri)


def file_system(uri: str) -> tuple[FileSystem, str]:
    """The file system of a URI of pyarrow's, which waits for passing faults, and the path in it."""
    from medray.storage import remote

    return remote.file_system(uri)


def absolute(uri: str | os.PathLike[str], base: Path | None = None) -> str:
    """A local path made absolute against `base` (default: the working directory); a remote URI as it is."""
    uri = os.fspath(uri)
    inside = container_of(uri)
    if inside is not None:
        return INSIDE.join([absolute(inside[0], base), inside[1]])
    if not is_local(uri):
        return uri
    return os.path.realpath((base or Path.cwd()) / local_path(uri).expanduser())  # no error for a link to itself


def join(uri: str, *names: str) -> str:
    """What lies below `uri`, a folder, or a zip or tar that is a file."""
    path = "/".join(name.strip("/") for name in names)
    if is_container(uri) and not (is_local(uri) and local_path(uri).is_dir()):
        return f"{uri}{INSIDE}{path}"
    return f"{uri.rstrip('/')}/{path}"


PLACES = "\n"
"""Between the URIs of an archive that lies in several places."""


def places(root: str) -> list[str]:
    """The places that an archive lies in."""
    return root.split(PLACES)


def place_of(uri: str, root: str) -> str:
    """The place of an archive that the file belongs to; the first for a file of none, such as a list elsewhere."""
    every = places(root)
    return next((place for place in every if len(every) > 1 and is_below(uri, place)), every[0])


@lru_cache(maxsize=16)
def place_names(root: str) -> dict[str, str]:
    """Each place of an archive to what its files' paths begin with: its last name, or as many of its last names as tell all
    places apart, and a slash; nothing where there is one place."""
    every = places(root)
    if len(every) == 1:
        return {root: ""}
    names = {place: re.sub(r"^[A-Za-z0-9+.-]+://", "", top_folder(place)).strip("/").split("/") for place in every}
    for count in range(1, max(map(len, names.values())) + 1):
        last = {place: "/".join(parts[-count:]) + "/" for place, parts in names.items()}
        if len(set(last.values())) == len(every):
            return last
    raise ValueError("two places of one name")


def relative(uri: str, root: str) -> str:
    """`uri` below `root`, with `/` between names; the file's own name where `root` is that file. Raises ValueError for what is
    not below it.

    A container counts as a folder of its name: `ct.zip!/head/001.dcm` is `ct.zip/head/001.dcm`. Files that a DICOMDIR
    names are below its folder. Where the archive lies in several places, the name of the place stands first.
    """
    if PLACES in root:
        place = place_of(uri, root)
        return place_names(root)[place] + relative(uri, place)
    if uri == root:
        return uri.rsplit("/", 1)[-1]
    if not is_below(uri, root):
        raise ValueError(f"{uri} is not below {root}")
    top = top_folder(root)
    path = uri[len(top) :].lstrip("/") if not uri[len(top) :].startswith(INSIDE) else uri[len(top) + len(INSIDE) :]
    inside = container_of(uri)
    return path.replace(INSIDE, "/", 1) if inside and len(top) < len(inside[0]) else path


def below(root: str, path: str) -> str:
    """The file that `relative` gives this path: the opposite of it, for what can be named by its path."""
    if PLACES in root:
        for place, name in place_names(root).items():
            if path.startswith(name):
                return below(place, path[len(name) :])
    top = top_folder(root)
    match = re.match(r"(?i)(.*?\.(?:zip|tar|tar\.gz|tgz))/(.+)$", path, re.DOTALL)
    return join(top, path) if match is None else join(join(top, match[1]), match[2])


def is_below(uri: str, root: str) -> bool:
    """Whether the file belongs to the archive `root`: lies in this folder, is this file or a member of it."""
    if PLACES in root:
        return any(is_below(uri, place) for place in places(root))
    top = top_folder(root)
    return uri == root or uri.startswith((top + "/", top + INSIDE))


@lru_cache(maxsize=64)
def top_folder(root: str) -> str:
    """What stands before the paths of an archive's files: its URI without a last slash; of a DICOMDIR its folder; of a
    DICOMweb server without the query."""
    top = root.partition("?")[0].rstrip("/") if is_dicomweb(root) else root.rstrip("/")
    return top.rpartition("/")[0] if is_media_directory(top) else top


def is_media_directory(uri: str) -> bool:
    """Whether the name is that of the directory of a DICOM medium (PS3.10 8.6), and no folder has it."""
    return uri.rpartition("/")[2].upper() == "DICOMDIR" and not (is_local(uri) and local_path(uri).is_dir())


def is_dicomweb(uri: str) -> bool:
    """Whether it is a DICOMweb server, or an instance there: dicomweb+http:// or dicomweb+https://."""
    return uri.startswith("dicomweb+")
