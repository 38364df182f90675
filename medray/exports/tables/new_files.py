"""New files that are there whole or not at all, under names that nothing has."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from medray.errors import UserError
from medray.storage import files, modes

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What a file system says that has no hard links."""


def refuse_there(uris: list[str]) -> None:
    """Raises UserError where something lies at one of these."""
    for uri in uris:
        if files.exists(uri):
            raise UserError(
                "new files are written, and something is there", where=uri, do="name another file, or remove this one"
            )


@contextmanager
def new_files(uris: list[str], mode: int) -> Generator[list[Path]]:
    """A path to write at for each URI. After the block all of them are there, the last one last, with this `mode`; when it
    raises, none. Raises UserError where something lies at one."""
    refuse_there(uris)
    with tempfile.TemporaryDirectory(prefix="medray-") as scratch:
        drafts: list[Path] = []
        try:
            for number, uri in enumerate(uris):
                drafts.append(_draft(uri, Path(scratch) / str(number)))
                modes.opened_new(drafts[-1], mode).close()
            yield drafts
            _publish(drafts, uris)
        finally:
            for draft in drafts:
                draft.unlink(missing_ok=True)


def _draft(uri: str, elsewhere: Path) -> Path:
    """Beside the file that it becomes, or `elsewhere` where that lies in a bucket."""
    if not files.is_local(uri):
        return elsewhere
    path = files.local_path(uri)
    modes.make_below(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    draft.unlink(missing_ok=True)  # of a killed process that had this number
    return draft


def _publish(drafts: list[Path], uris: list[str]) -> None:
    done: list[str] = []
    try:
        for draft, uri in zip(drafts, uris, strict=True):
            if files.is_local(uri):
                files.sync_file(draft)
                _named(draft, files.local_path(uri))
            else:
                with open(draft, "rb") as content, files.new_file(uri) as stream:
                    shutil.copyfileobj(content, stream)
            done.append(uri)
    except BaseException:  # Ctrl-C, too: some of the files do not stay without the others; it is raised again
        for uri in done:
            with suppress(OSError):
                files.remove_file(uri)
        raise


def _named(draft: Path, path: Path) -> None:
    """Give a whole file its name, which nothing has: also where another process took it just now."""
    try:
        os.link(draft, path)
    except FileExistsError:
        refuse_there([files.absolute(str(path))])
        raise
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        refuse_there([files.absolute(str(path))])
        os.rename(draft, path)
    files.sync_folder(path.parent)
