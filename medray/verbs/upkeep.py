"""vacuum, forget and copy: upkeep of a score store, by hand. A nightly run does the first by itself."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from medray.archive import pseudonyms
from medray.archive.pseudonyms import key_mark, own_subject, pseudonym, pseudonym_key
from medray.durations import seconds_of
from medray.errors import ArchiveError, StoreError, UserError
from medray.scores import ScoreStore
from medray.scores.copying import refuse_place
from medray.storage import files
from medray.verbs.results import CopyResult, ForgetResult, VacuumResult


def vacuum(store: str, older_than: str = "7d", audit_older_than: str | None = None) -> VacuumResult:
    """Merge small files, then remove files that no reader needs: replaced longer ago than that, or left by killed runs. And, where
    that is asked for, rows of the audit table of runs that began longer ago.

    Raises StoreError where no score store is; UserError for an age that is none.
    """
    started = time.monotonic()
    age = _age(older_than, "--older-than")
    audit_age = None if audit_older_than is None else _age(audit_older_than, "--audit-older-than")
    scores = ScoreStore.open(store)
    compacted, vacuumed = scores.compact(), scores.vacuum(age)
    rows = 0 if audit_age is None else scores.forget_runs(datetime.now(UTC) - audit_age)
    seconds = time.monotonic() - started
    return VacuumResult(store=scores.uri, **compacted, **vacuumed, audit_rows_removed=rows, seconds=seconds)


def _age(text: str, option: str) -> timedelta:
    try:
        return timedelta(seconds=seconds_of(text))
    except ValueError:
        raise UserError("this is no age", where=option, found=text, expected="such as 12h, 7d, 2w") from None


def copy(store: str, to: str) -> CopyResult:
    """Copy a store as it is now to a new or empty place. Raises StoreError where no score store is, or something is there."""
    started = time.monotonic()
    scores = ScoreStore.open(store)
    done = scores.copy(to)
    place = files.absolute(to)
    return CopyResult(store=scores.uri, copy_of_it=place, **done._asdict(), seconds=time.monotonic() - started)


def files_to_copy(store: str, to: str) -> int:
    """How many files of scores `copy` would copy, beside artefacts and logs. Raises StoreError where it does."""
    scores = ScoreStore.open(store)
    refuse_place(scores.uri, to)
    return len(scores.live_files())


def forget(store: str, subject: str, key_file: str | None = None) -> ForgetResult:
    """Remove a subject, given as in the archive or as its pseudonym, from every file of the store, for good.

    Raises StoreError where no score store is, or the subject is not in it; ArchiveError where there is no key file.
    """
    started = time.monotonic()
    scores = ScoreStore.open(store)
    key = _key(key_file)
    keys, looked_with = scores.keys(), set[str]() if key is None else {key_mark(key)}
    done = scores.forget(_pseudonyms(subject, key))
    if not any(done.values()):
        raise StoreError(
            "no row of this subject is in the store; nothing was changed",
            where=scores.uri,
            found="scores under other keys than this one" if keys and looked_with and not keys & looked_with else "",
            expected="the subject as the archive names it, with the key its scores were made under, or its pseudonym",
            do="check the spelling and --pseudonym-key; `subject_id` of the score table holds pseudonyms. Where neither the "
            "format nor modality.subject_pattern named subjects, each entry is its own subject, by its entry_id",
        )
    others = max(0, len(keys | looked_with) - 1)
    return ForgetResult(store=scores.uri, **done, other_keys=others, seconds=time.monotonic() - started)


def _pseudonyms(subject: str, key: bytes | None) -> set[str]:
    """What the score table may call a subject: what was given, and what is made of it."""
    keyed = set[str]() if key is None else {pseudonym(subject, key)}
    return keyed | {subject, own_subject(subject)}


def _key(path: str | None) -> bytes | None:
    """The key in a file, or this user's; None where this user has none."""
    place = pseudonyms.key_file(path)
    if place.exists():
        return pseudonym_key(str(place))
    if path is None:
        return None
    raise ArchiveError("there is no such file with a pseudonym key", where=path, do="check --pseudonym-key")
