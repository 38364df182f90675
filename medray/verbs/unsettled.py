"""Unsettled: what an index found that may not hold, so that the next one looks again; and what nobody had foreseen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from medray.archive.manifest import IndexState
from medray.errors import NOT_ELIGIBLE, PASSING, ArchiveAway
from medray.faults import is_fault
from medray.progress import Progress
from medray.storage.row_files import RowFiles
from medray.storage.walk import AWAY

YOUNG_NS = 60 * 10**9
"""A file that was written to so shortly before it was indexed may have been half written."""
AWAY_FILES = 100
"""Where so many files were opened, and storage gave none of them, it is away."""


def unread(parts: RowFiles) -> pa.Array:
    """URIs of the files of these parts that storage did not give."""
    uris = [pa.array([], pa.string())]
    for batch in parts.scan(["uri", "reason"], valid="reason"):
        uris.append(batch.column("uri").filter(pc.is_in(batch.column("reason"), pa.array(sorted(PASSING)))))
    return pc.unique(pa.concat_arrays(uris))


def unsettled(state: IndexState | None, parts: RowFiles, entries: RowFiles, doubted: Collection[str]) -> pa.Array:
    """URIs of files of the last index (its state, parts and entries) of which it does not hold for good what they were found
    to be: storage did not give them, they failed and may have been half written, or entries of theirs are doubted."""
    uris = [pa.array([], pa.string())]
    seen_ns = 0 if state is None else int(state.seen_at.timestamp() * 1e9)
    for batch in parts.scan(["uri", "modified_ns", "reason"], valid="reason"):
        passing, whole = (pc.is_in(batch.column("reason"), pa.array(sorted(each))) for each in (PASSING, NOT_ELIGIBLE))
        young = pc.greater(batch.column("modified_ns"), seen_ns - YOUNG_NS)
        uris.append(batch.column("uri").filter(pc.or_(passing, pc.and_not(young, whole))))
    ids = pa.array(sorted(doubted), pa.string())
    for batch in entries.scan(["entry_id", "parts"]) if len(ids) else ():
        rows = batch.filter(pc.is_in(batch.column("entry_id"), ids))
        uris.append(rows.column("parts").flatten().field("uri"))
    return pc.unique(pa.concat_arrays(uris))


def refuse_away(root: str, opened: int, parts: RowFiles) -> None:
    """Raises ArchiveAway where storage gave none of the many files that were opened."""
    if opened >= AWAY_FILES and len(unread(parts)) == opened:
        raise ArchiveAway(
            "the archive is listed, and its storage gives no file of it",
            where=root,
            found=f"{opened:,} files that cannot be read",
            do=AWAY,
        )


def faults_of(parts: RowFiles) -> Counter[str]:
    """How many parts failed as nobody had foreseen, by kind and place."""
    details = Counter[str]()
    for batch in parts.scan(["reason", "detail"], valid="reason"):
        details.update(filter(is_fault, batch.column("detail").to_pylist()))
    return details


def tell_faults(details: Mapping[str, int], progress: Progress) -> None:
    """Tell of each kind of fault (`faults.as_sample_error`) once: what it was, where in the code, and how often."""
    for detail, count in details.items():
        kind, _, place = detail.partition(" at ")
        progress.fact("fault", "warning", error=kind, at=place, count=count)
        progress.note(
            f"{count:,} failed as nobody had foreseen, {detail}: please report it to the maintainers of medray"
        )
