"""File systems by URI: those of pyarrow, with patience; members of containers; instances of DICOMweb servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import pyarrow as pa
from pyarrow import fs

from medray.storage import containers, dicomweb, remote
from medray.storage.uris import container_of, is_dicomweb


def file_system(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI that is not local, which waits for passing faults, and the path in it."""
    if container_of(uri) is not None:
        return fs.PyFileSystem(Members()), uri
    if is_dicomweb(uri):
        return fs.PyFileSystem(Instances()), uri
    return remote.file_system(uri)


class ReadOnly(fs.FileSystemHandler):
    """A file system that nothing is written to, nor listed through. Paths are URIs."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        raise NotImplementedError("listed by storage.archives")

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def create_dir(self, path: str, recursive: bool) -> NoReturn:
        self._refuse(path)

    def delete_dir(self, path: str) -> NoReturn:
        self._refuse(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> NoReturn:
        self._refuse(path)

    def delete_root_dir_contents(self) -> NoReturn:
        self._refuse("/")

    def delete_file(self, path: str) -> NoReturn:
        self._refuse(path)

    def move(self, src: str, dest: str) -> NoReturn:
        self._refuse(dest)

    def copy_file(self, src: str, dest: str) -> NoReturn:
        self._refuse(dest)

    def open_output_stream(self, path: str, metadata: object) -> NoReturn:
        self._refuse(path)

    def open_append_stream(self, path: str, metadata: object) -> NoReturn:
        self._refuse(path)

    def _refuse(self, path: str) -> NoReturn:
        raise PermissionError(1, "medray writes into no zip, tar or DICOMweb server", path)


class Members(ReadOnly):
    """Files inside zip and tar."""

    def get_type_name(self) -> str:
        return "members"

    def get_file_info(self, paths: Sequence[str]) -> list[fs.FileInfo]:
        return [_info(path) for path in paths]

    def open_input_file(self, path: str) -> pa.NativeFile:
        inside = container_of(path)
        if inside is None:
            raise FileNotFoundError(path)
        return containers.open_member(*inside)


def _info(uri: str) -> fs.FileInfo:
    inside = container_of(uri)
    if inside is None:
        return fs.FileInfo(uri, fs.FileType.NotFound)
    try:
        modified_ns = containers.size_and_time(inside[0])[1]
        listed = containers.directory(inside[0])
    except FileNotFoundError:
        return fs.FileInfo(uri, fs.FileType.NotFound)
    entry = listed.members.get(inside[1])
    if entry is None:
        return fs.FileInfo(uri, fs.FileType.Directory if inside[1] in listed.folders else fs.FileType.NotFound)
    return fs.FileInfo(uri, fs.FileType.File, size=entry.size, mtime_ns=modified_ns)


class Instances(ReadOnly):
    """Instances of DICOMweb servers, which tell neither their size nor their time."""

    def get_type_name(self) -> str:
        return "dicomweb"

    def get_file_info(self, paths: Sequence[str]) -> list[fs.FileInfo]:
        return [fs.FileInfo(path, self._type(path)) for path in paths]

    def _type(self, uri: str) -> fs.FileType:
        if not dicomweb.is_there(uri):
            return fs.FileType.NotFound
        return fs.FileType.File if dicomweb.is_instance(uri) else fs.FileType.Directory

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.BufferReader(dicomweb.retrieve(path))
