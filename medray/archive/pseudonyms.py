"""Subjects of a manifest: pseudonyms under a key, and the subject of an entry that names none."""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

import xxhash

from medray.errors import ArchiveError
from medray.storage import modes


def pseudonym_key(path: str | None) -> bytes:
    """The secret that subjects are hashed with, from `path` (default ~/.medray/pseudonym.key); made once, mode 0600,
    in a folder of mode 0700.

    Two archives indexed with one key agree on their subjects; without the key nobody can test a guess.
    """
    key_file = Path(path).expanduser() if path else Path.home() / ".medray" / "pseudonym.key"
    if not key_file.exists():
        modes.make_closed(key_file.parent)
        draft = key_file.with_name(f".{key_file.name}.{os.getpid()}.tmp")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
        with suppress(FileExistsError):  # another run made it first: its key holds
            os.link(draft, key_file)
        draft.unlink()
    if not path:
        _close(key_file)
    key = key_file.read_bytes().strip()
    if len(key) < 32:
        raise ArchiveError(
            "the pseudonym key is too short",
            where=str(key_file),
            found=f"{len(key)} characters",
            expected="at least 32",
            do="make one with: openssl rand -hex 32",
        )
    return key


def _close(key_file: Path) -> None:
    """Shut other users out of the key of this user, and of its folder, which earlier versions made as open as the umask. A group
    that was let in to the key stays."""
    with suppress(PermissionError):  # of another user: it is theirs to close
        of_key = key_file.stat().st_mode & 0o777
        if of_key & 0o007:
            modes.set_mode(key_file, of_key & 0o770)
        of_folder = key_file.parent.stat().st_mode & 0o777
        closed = 0o770 if of_key & 0o070 else 0o700
        if of_folder & ~closed:
            modes.set_mode(key_file.parent, of_folder & closed)


def pseudonym(subject: str, key: bytes) -> str:
    """HMAC-SHA256 of a subject's own identifier, 16 hex digits (64 bits): stable under one key, not reversible."""
    return hmac.digest(key, subject.encode(), "sha256").hex()[:16]


def key_mark(key: bytes) -> str:
    """16 hex digits that tell one key from another, and nothing of it: runs under one key have one."""
    return hmac.digest(key, b"medray: which key", "sha256").hex()[:16]


def own_subject(entry_id: str) -> str:
    """The subject of an entry that names none: the entry itself. Not keyed, so seeded splits repeat everywhere."""
    return "e" + xxhash.xxh3_64_hexdigest(entry_id.encode())[:15]
