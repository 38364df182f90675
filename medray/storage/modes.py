"""Who may read what medray writes to local disks: modes of folders and files, whatever the umask of the user is.

A folder that a run makes for itself (work, store, bundle, …) is closed to all but its user, or its user and group. All that
is written below it follows the folder that it lies in, in workers too: so a folder that was there before, and is shared in
another way, stays as it is, and so does what its readers can read.
"""

from __future__ import annotations

import errno
import functools
import operator
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

Readers = Literal["owner", "group"]

FOLDER_OF: dict[Readers, int] = {"owner": 0o700, "group": 0o750}

_PERMISSIONS, _FILE, _SPECIAL = 0o775, 0o664, 0o7000
"""Others never write."""
_NO_MODES = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""A file system without modes of its own (SMB, FUSE): its mount says who may read."""


def folder_like(folder: Path) -> int:
    """Mode of a new folder in `folder`."""
    return 0o700 | (os.stat(folder).st_mode & _PERMISSIONS)


def file_in(folder: Path) -> int:
    """Mode of a new file in `folder`."""
    return folder_like(folder) & _FILE


def mode_of(place: Path) -> int:
    """Permissions of a folder or a file."""
    return os.stat(place).st_mode & 0o777


def set_mode(place: Path | int, mode: int) -> None:
    """Give a folder or a file (its path, or an open handle) these permissions; what it inherits (setgid) stays."""
    with _where_there_are_modes():
        os.chmod(place, (os.stat(place).st_mode & _SPECIAL) | mode)


@contextmanager
def _where_there_are_modes() -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_MODES:
            raise


def make_closed(folder: Path, readers: Readers = "owner") -> None:
    """Make a folder, and those above it that are missing, which no others can enter. One that is there stays as it is."""
    _make(folder, FOLDER_OF[readers])


def make_below(folder: Path, *, closed: bool = False) -> None:
    """Make a folder, and those above it that are missing, as open as the first that is there; `closed`: never to others."""
    above = folder
    while not above.exists() and above != above.parent:
        above = above.parent
    if above != folder:
        with suppress(FileNotFoundError):  # removed meanwhile: the making says so
            _make(folder, folder_like(above) & (0o770 if closed else 0o775))
            return
    folder.mkdir(parents=True, exist_ok=True)


def _make(folder: Path, mode: int) -> None:
    missing = [folder]
    while not missing[-1].parent.exists() and missing[-1] != missing[-1].parent:
        missing.append(missing[-1].parent)
    for each in reversed(missing):
        try:
            each.mkdir(mode=mode & 0o700)
        except FileExistsError:  # also of another process at this moment
            if not each.is_dir():
                raise
            continue
        set_mode(each, mode)


def opened_new(path: Path, mode: int | None = None) -> IO[bytes]:
    """A file for writing, emptied where it is there; `mode`, or as open as its folder, where it is new."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return open(path, "wb")
    try:
        set_mode(handle, file_in(path.parent) if mode is None else mode)
    except BaseException:  # raised again
        os.close(handle)
        raise
    return open(handle, "wb")


@contextmanager
def following(folder: Path) -> Generator[None]:
    """What other libraries make in the block is as open as `folder`, whatever the umask. That is of the whole process: where blocks
    of several threads overlap, what all of them leave open is open."""
    mask = 0o777 & ~folder_like(folder)
    _masks.enter(mask)
    try:
        yield
    finally:
        _masks.leave(mask)


class _Masks:
    """The umask of this process while blocks of `following` are open."""

    def __init__(self) -> None:
        self._lock, self._open, self._outside = threading.Lock(), list[int](), 0

    def enter(self, mask: int) -> None:
        with self._lock:
            before = os.umask(functools.reduce(operator.or_, self._open, mask))
            if not self._open:
                self._outside = before
            self._open.append(mask)

    def leave(self, mask: int) -> None:
        with self._lock:
            self._open.remove(mask)
            os.umask(functools.reduce(operator.or_, self._open) if self._open else self._outside)


_masks = _Masks()


def follow(folder: Path) -> None:
    """Make all below `folder` as open as it is: what others have written there, of which some may be another user's."""
    mode = folder_like(folder)
    for place, _, names in os.walk(folder):
        with suppress(FileNotFoundError, PermissionError):
            if Path(place) != folder:
                set_mode(Path(place), mode)
        for name in names:
            path = Path(place, name)
            with suppress(FileNotFoundError, PermissionError):
                if not path.is_symlink():
                    set_mode(path, mode & _FILE)
