"""Formats that a later version of medray has written: refused with the version that reads them.

Each thing on disk that medray alone reads (bundle, manifest, index of shards, score store) has the number of its format, 1
where it says none. A version that changes one so that earlier ones cannot read it raises the number and writes
beside it, as READ_BY, the first version of medray that reads the new one.
"""

from __future__ import annotations

from collections.abc import Mapping

from medray.errors import UserError

FORMAT, READ_BY = "format", "read_by"


def refuse_later(facts: Mapping[str, object], known: int, what: str, where: str, error: type[UserError]) -> None:
    """Raise `error` where `facts` (FORMAT, READ_BY; numbers may be text) tell of a later format than `known`."""
    try:
        number = int(str(facts.get(FORMAT, 1)))
    except ValueError:
        return  # spoilt, which its reader says
    if number > known:
        reader = facts.get(READ_BY)
        raise error(
            f"{what} is of a later version of medray",
            where=where,
            found=f"format {number}",
            expected=f"format {known} or earlier",
            do=f"read it with medray {reader} or later" if reader else "read it with the medray that wrote it",
        )
