"""Subjects of a manifest: pseudonyms under a key, and the subject of an entry that names none."""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

import xxhash

from medray.errors import ArchiveError


def pseudonym_key(path: str | None) -> bytes:
    """The secret that subjects are hashed with, from `path` (default ~/.medray/pseudonym.key); made once, mode 0600.

    Two archives indexed with one key agree on their subjects; without the key nobody can test a guess.
    """
    key_file = Path(path).expanduser() if path else Path.home() / ".medray" / "pseudonym.key"
    if not key_file.exists():
        key_file.parent.mkdir(parents=True, exist_ok=True)
        draft = key_file.with_name(f".{key_file.name}.{os.getpid()}.tmp")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(32) + "\n")
        with suppress(FileExistsError):  # another run made it first: its key holds
            os.link(draft, key_file)
        draft.unlink()
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


def pseudonym(subject: str, key: bytes) -> str:
    """HMAC-SHA256 of a subject's own identifier, 16 hex digits (64 bits): stable under one key, not reversible."""
    return hmac.digest(key, subject.encode(), "sha256").hex()[:16]


def own_subject(entry_id: str) -> str:
    """The subject of an entry that names none: the entry itself. Not keyed, so seeded splits repeat everywhere."""
    return "e" + xxhash.xxh3_64_hexdigest(entry_id.encode())[:15]
