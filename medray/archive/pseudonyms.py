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


def key_file(path: str | None) -> Path:
    """Where the secret lies that subjects are hashed with: `path`, or that of this user. It need not be there."""
    return Path(path).expanduser() if path else Path.home() / ".medray" / "pseudonym.key"


def pseudonym_key(path: str | None) -> bytes:
    """The secret that subjects are hashed with, from `path` (default ~/.medray/pseudonym.key); made once, mode 0600,
    in a folder of mode 0700.

    Two archives indexed with one key agree on their subjects; without the key nobody can test a guess.
    """
    place = key_file(path)
    if not place.exists():
        modes.make_closed(place.parent)
        draft = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
        with suppress(FileExistsError):  # another run made it first: its key holds
            os.link(draft, place)
        draft.unlink()
    if not path:
        _close(place)
    key = place.read_bytes().strip()
    if len(key) < 32:
        raise ArchiveError(
            "the pseudonym key is too short",
            where=str(place),
            found=f"{len(key)} characters",
            expected="at least 32",
            do="make one with: openssl rand -hex 32",
        )
    return key


def _close(key: Path) -> None:
    """Shut other users out of the key of this user, and of its folder, which earlier versions made as open as the umask. A group
    that was let in to the key stays."""
    with suppress(PermissionError):  # of another user: it is theirs to close
        of_key = modes.mode_of(key)
        if of_key & 0o007:
            modes.set_mode(key, of_key & 0o770)
        of_folder = modes.mode_of(key.parent)
        closed = 0o770 if of_key & 0o070 else 0o700
        if of_folder & ~closed:
            modes.set_mode(key.parent, of_folder & closed)


def pseudonym(subject: str, key: bytes) -> str:
    """HMAC-SHA256 of a subject's own identifier, 16 hex digits (64 bits): stable under one key, not reversible."""
    return hmac.digest(key, subject.encode(), "sha256").hex()[:16]


def key_mark(key: bytes) -> str:
    """16 hex digits that tell one key from another, and nothing of it: runs under one key have one."""
    return hmac.digest(key, b"medray: which key", "sha256").hex()[:16]


def own_subject(entry_id: str) -> str:
    """The subject of an entry that names none: the entry itself. Not keyed, so seeded splits repeat everywhere."""
    return "e" + xxhash.xxh3_64_hexdigest(entry_id.encode())[:15]
