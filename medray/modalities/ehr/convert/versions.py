"""Which version of a resource is the newest, over all files: the others, and what was deleted, are no events.

    VERSION rows of a bucket (by hash of type and id) ── Newest ──> lost resources, counts of outcomes ── VersionSink

Meta.versionId names a version and Meta.lastUpdated says when it came to be (FHIR R4 Meta); ids of versions have no
order unless they are numbers. So the newest has the latest lastUpdated, of equals (or where one has none) the greatest
number. Versions of which the same is made are one. Where they differ and nothing says which is the newest, all are dropped.
A deletion takes all versions that are not newer; one that says neither time nor version takes all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.flows.flow import Receipt, Stage
from medray.modalities.ehr.convert.buckets import Buckets, read_all, write_table
from medray.modalities.ehr.convert.events import DELETION, KEPT, NOTE, ROWS

HELD = ("key", "key_check", "server", "unit", "resource", "subject_id", "source", "time", "version", "digest", "code",
        "description")  # fmt: skip
VERSIONS = pa.schema([ROWS.field(name) for name in HELD])
"""`code`: why it gives no events, null: it gives some, with the notes of `description`."""
OUTCOMES = pa.schema(
    [
        pa.field("unit", pa.int32()),  # null: a count
        pa.field("resource", pa.int64()),
        pa.field("subject_id", pa.int64()),  # null: it has no events
        pa.field("source", pa.string()),
        pa.field("outcome", pa.string()),
        pa.field("count", pa.int64()),
    ]
)
LOST = pa.schema([OUTCOMES.field(name) for name in ("unit", "resource", "subject_id", "source")])


class Version(NamedTuple):
    row: int
    server: int
    updated: int | None
    number: int | None
    digest: int | None
    gone: bool
    """A deletion."""


def lost(versions: list[Version]) -> dict[int, str]:
    """Row to reason, of all but the newest version of one type and id.

    Where one server alone is named, what names none is of that server; a deletion that names none is of every server.
    """
    named = {each.server for each in versions if each.server}
    if len(named) < 2:
        return _lost_of_one(versions)
    found: dict[int, str] = {}
    for server in sorted(named | {0}):
        found |= _lost_of_one([v for v in versions if v.server == server or (v.gone and not v.server)])
    return found


def _lost_of_one(versions: list[Version]) -> dict[int, str]:
    gone, there = [v for v in versions if v.gone], [v for v in versions if not v.gone]
    found = {v.row: "deleted" for v in there if not all(_is_newer(v, each) for each in gone)}
    left = [v for v in there if v.row not in found]
    if not left:
        return found
    newest = _newest(left)
    older = [v.row for v in left if v not in newest]
    if len({v.digest for v in newest}) == 1:
        older += sorted(v.row for v in newest)[1:]
    else:
        found |= dict.fromkeys((v.row for v in newest), "unordered_versions")
    return found | dict.fromkeys(older, "superseded")


def _is_newer(version: Version, deletion: Version) -> bool:
    """Certainly so."""
    if version.updated is not None and deletion.updated is not None:
        return version.updated > deletion.updated
    return version.number is not None and deletion.number is not None and version.number > deletion.number


def _newest(versions: list[Version]) -> list[Version]:
    """The newest, several where nothing tells them apart."""
    left = versions
    times = [v.updated for v in left]
    if None not in times:
        left = [v for v in left if v.updated == max(times)]  # type: ignore[type-var]  # none is None
    numbers = [v.number for v in left]
    if None not in numbers:
        left = [v for v in left if v.number == max(numbers)]  # type: ignore[type-var]  # none is None
    return left


class Newest:
    """The files of one bucket of VERSIONS to OUTCOMES: every resource that is lost, and counts of all that is decided:
    what gave no events, what is lost, and the notes of what gives events."""

    def __call__(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        rows = read_all(batch.column("uri").to_pylist(), VERSIONS).combine_chunks()
        why = _why(rows)
        reasons = pa.array([why.get(row) for row in range(len(rows))], pa.string())
        is_lost = reasons.is_valid()
        gone = rows.filter(is_lost).append_column("outcome", reasons.filter(is_lost))
        names = ("unit", "resource", "subject_id", "source", "outcome")
        table = gone.select(names).append_column("count", pa.nulls(len(gone), pa.int64())).cast(OUTCOMES)
        return [*table.combine_chunks().to_batches(), _counts(rows, reasons)]


def newest(rows: int) -> Stage:
    return Stage(Newest, batch_size=max(1, rows))


def _why(rows: pa.Table) -> dict[int, str]:
    """Row to reason, for those that are lost. Only ids that are there more than once are looked at."""
    key, check = (rows.column(name).to_numpy() for name in ("key", "key_check"))
    order = np.lexsort((rows.column("resource").to_numpy(), rows.column("unit").to_numpy(), check, key))
    same = (np.diff(key[order]) == 0) & (np.diff(check[order]) == 0)
    ends = np.flatnonzero(~np.append(same, False)) + 1
    starts = np.append(0, ends[:-1])
    found: dict[int, str] = {}
    for start, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
        places = order[start:end]
        held = rows.select(["server", "time", "version", "digest", "source"]).take(pa.array(places)).to_pylist()
        versions = [
            Version(int(place), row["server"] or 0, _us(row["time"]), row["version"], row["digest"],
                    row["source"] == DELETION)
            for place, row in zip(places, held, strict=True)
        ]  # fmt: skip
        # rows stand in the order of the source here, so that of equal versions the first is kept
        rank = {int(place): i for i, place in enumerate(places)}
        reasons = lost([v._replace(row=rank[v.row]) for v in versions])
        found |= {int(places[i]): reason for i, reason in reasons.items()}
    return found


def _us(time: Any) -> int | None:
    return None if time is None else int(np.datetime64(time, "us").astype(np.int64))


def _counts(rows: pa.Table, reasons: pa.Array) -> pa.RecordBatch:
    found: Counter[tuple[str, str]] = Counter()
    outcome = pc.coalesce(reasons, rows.column("code").combine_chunks())
    notes = pc.if_else(outcome.is_valid(), pa.scalar(None, pa.string()), rows.column("description").combine_chunks())
    table = pa.table({"source": rows.column("source"), "outcome": outcome, "notes": notes})
    for row in table.group_by(table.schema.names).aggregate([([], "count_all")]).to_pylist():
        if row["outcome"] is not None:
            found[row["source"], row["outcome"]] += row["count_all"]
        for note in (row["notes"] or "").split(",") if row["notes"] else ():
            found[row["source"], NOTE + note] += row["count_all"]
    counts = [{"source": source, "outcome": name, "count": count} for (source, name), count in found.items()]
    return pa.RecordBatch.from_pylist(counts, schema=OUTCOMES)


@dataclass
class VersionSink:
    """Lost resources to files by the bucket of their subject, and counts."""

    folder: str
    buckets: int
    lost: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Files of LOST, by the bucket of the subject."""
    of_nobody: list[str] = field(default_factory=list)
    """Of what has no subject: a Medication."""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "buckets": self.buckets}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def write(self, batches: Iterator[pa.RecordBatch]) -> dict[str, Any]:
        said: dict[str, Any] = {"counts": [], "of_nobody": None}
        of_nobody: list[pa.RecordBatch] = []
        with ExitStack() as open_files:
            buckets = Buckets(self.folder, self.buckets, open_files, LOST, "subject_id")
            for batch in batches:
                for row in batch.filter(batch.column("count").is_valid()).to_pylist():
                    said["counts"].append([row["source"], row["outcome"], row["count"]])
                gone = batch.filter(batch.column("count").is_null())
                buckets.add(gone.filter(gone.column("subject_id").is_valid()))
                of_nobody.append(gone.filter(gone.column("subject_id").is_null()).select(LOST.names))
            buckets.flush()
        said["lost"] = [[bucket, uri] for bucket, uri in buckets.uris.items()]
        if sum(map(len, of_nobody)):
            said["of_nobody"] = write_table(pa.Table.from_batches(of_nobody, LOST), self.folder)
        return said

    def commit(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            said: dict[str, Any] = receipt.payload
            for bucket, uri in said["lost"]:
                self.lost[bucket].append(uri)
            self.of_nobody += [said["of_nobody"]] if said["of_nobody"] else []
            for source, outcome, count in said["counts"]:
                self.counts[source, outcome] += count


def rows_of_bucket(batch: pa.RecordBatch) -> pa.Table:
    """The rows (KEPT) of a bucket's shard as `buckets.plan_of` makes it, without lost resources."""
    lost = batch.column("lost")
    held = read_all(batch.filter(pc.invert(lost)).column("uri").to_pylist(), KEPT)
    return without_lost(held.combine_chunks(), batch.filter(lost).column("uri").to_pylist())


def without_lost(rows: pa.Table, uris: Iterable[str]) -> pa.Table:
    """`rows` (unit, resource) but those of lost resources. `uris`: files of LOST."""
    gone = read_all(uris, LOST)
    if len(gone) == 0:
        return rows
    lost = np.isin(_place(rows), _place(gone))
    return rows.filter(pa.array(~lost)) if lost.any() else rows


def _place(rows: pa.Table) -> np.ndarray:
    """(N,) int64: unit and resource in one number; negative where there is no resource."""
    resource = rows.column("resource").fill_null(-1).to_numpy()
    return np.where(resource < 0, -1, rows.column("unit").to_numpy().astype(np.int64) * 2**40 + resource)
