"""Newest: which version of a resource is the newest, over all files. Older and deleted ones give no events.

    VERSION rows of a bucket (by hash of type and id) ── Newest ──> lost resources, counts of outcomes ── VersionSink

Meta.versionId names a version and Meta.lastUpdated says when it came to be (FHIR R4 Meta); ids of versions have no
order unless they are numbers. So the newest has the latest lastUpdated, of equals (or where one has none) the greatest
number. Versions of which the same is made count as one. Where they differ and nothing says which is the newest, all are dropped.
A deletion removes all versions that are not newer; one that says neither time nor version removes all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.flows.flow import Receipt, Stage
from medray.modalities.ehr.convert.buckets import Buckets, read_all, write_table
from medray.modalities.ehr.convert.events import BUCKET_ROWS, DELETION, NOTE, ROWS

VERSION_COLUMNS = ("key", "key_check", "server", "unit", "resource", "subject_id", "source", "time", "version", "digest", "code",
        "description")  # fmt: skip
VERSIONS = pa.schema([ROWS.field(name) for name in VERSION_COLUMNS])
"""`code`: why the version gives no events; null: it gives some, with the notes in `description`."""
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
    """A version of a resource, or its deletion."""

    row: int
    server: int
    updated: int | None
    number: int | None
    digest: int | None
    deletion: bool


def lost(versions: list[Version]) -> dict[int, str]:
    """Row to reason, for all but the newest version of one type and id.

    Where only one server is named, versions that name none are of that server; a deletion that names none is of every
    server.
    """
    named = {each.server for each in versions if each.server}
    if len(named) < 2:
        return _lost_of_one(versions)
    reasons: dict[int, str] = {}
    for server in sorted(named | {0}):
        reasons |= _lost_of_one([v for v in versions if v.server == server or (v.deletion and not v.server)])
    return reasons


def _lost_of_one(versions: list[Version]) -> dict[int, str]:
    deletions, resources = [v for v in versions if v.deletion], [v for v in versions if not v.deletion]
    reasons = {v.row: "deleted" for v in resources if not all(_is_newer(v, each) for each in deletions)}
    left = [v for v in resources if v.row not in reasons]
    if not left:
        return reasons
    newest = _newest(left)
    older = [v.row for v in left if v not in newest]
    if len({v.digest for v in newest}) == 1:
        older += sorted(v.row for v in newest)[1:]
    else:
        reasons |= dict.fromkeys((v.row for v in newest), "unordered_versions")
    return reasons | dict.fromkeys(older, "superseded")


def _is_newer(version: Version, deletion: Version) -> bool:
    """Whether the version is certainly newer than the deletion."""
    if version.updated is not None and deletion.updated is not None:
        return version.updated > deletion.updated
    return version.number is not None and deletion.number is not None and version.number > deletion.number


def _newest(versions: list[Version]) -> list[Version]:
    """The newest version; several where nothing orders them."""
    left = versions
    times = [v.updated for v in left if v.updated is not None]
    if len(times) == len(left):
        left = [v for v in left if v.updated == max(times)]
    numbers = [v.number for v in left if v.number is not None]
    if len(numbers) == len(left):
        left = [v for v in left if v.number == max(numbers)]
    return left


class Newest:
    """The files of one bucket of VERSIONS to OUTCOMES: every lost resource, and the counts that are final now: resources
    without events, lost ones, and the notes of those with events."""

    def __call__(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        rows = read_all(batch.column("uri").to_pylist(), VERSIONS).combine_chunks()
        why = _why(rows)
        reasons = pa.array([why.get(row) for row in range(len(rows))], pa.string())
        is_lost = reasons.is_valid()
        lost_rows = rows.filter(is_lost).append_column("outcome", reasons.filter(is_lost))
        names = ("unit", "resource", "subject_id", "source", "outcome")
        table = lost_rows.select(names).append_column("count", pa.nulls(len(lost_rows), pa.int64())).cast(OUTCOMES)
        return [*table.combine_chunks().to_batches(), _counts(rows, reasons)]


def newest(rows: int) -> Stage:
    return Stage(Newest, batch_size=max(1, rows))


def _why(rows: pa.Table) -> dict[int, str]:
    """Row to reason, for lost resources. Only ids that occur more than once are looked at."""
    key, check = (rows.column(name).to_numpy() for name in ("key", "key_check"))
    order = np.lexsort((rows.column("resource").to_numpy(), rows.column("unit").to_numpy(), check, key))
    same = (np.diff(key[order]) == 0) & (np.diff(check[order]) == 0)
    ends = np.flatnonzero(~np.append(same, False)) + 1
    starts = np.append(0, ends[:-1])
    why: dict[int, str] = {}
    for start, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
        numbers = order[start:end]
        facts = rows.select(["server", "time", "version", "digest", "source"]).take(pa.array(numbers)).to_pylist()
        versions = [
            Version(int(number), row["server"] or 0, _us(row["time"]), row["version"], row["digest"],
                    row["source"] == DELETION)
            for number, row in zip(numbers, facts, strict=True)
        ]  # fmt: skip
        # rows are in the order of the source here, so that of equal versions the first is kept
        rank = {int(number): i for i, number in enumerate(numbers)}
        reasons = lost([v._replace(row=rank[v.row]) for v in versions])
        why |= {int(numbers[i]): reason for i, reason in reasons.items()}
    return why


def _us(time: datetime | None) -> int | None:
    return None if time is None else int(np.datetime64(time, "us").astype(np.int64))


def _counts(rows: pa.Table, reasons: pa.Array) -> pa.RecordBatch:
    counted: Counter[tuple[str, str]] = Counter()
    outcome = pc.coalesce(reasons, rows.column("code").combine_chunks())
    notes = pc.if_else(outcome.is_valid(), pa.scalar(None, pa.string()), rows.column("description").combine_chunks())
    table = pa.table({"source": rows.column("source"), "outcome": outcome, "notes": notes})
    for row in table.group_by(table.schema.names).aggregate([([], "count_all")]).to_pylist():
        if row["outcome"] is not None:
            counted[row["source"], row["outcome"]] += row["count_all"]
        for note in (row["notes"] or "").split(",") if row["notes"] else ():
            counted[row["source"], NOTE + note] += row["count_all"]
    counts = [{"source": source, "outcome": name, "count": count} for (source, name), count in counted.items()]
    return pa.RecordBatch.from_pylist(counts, schema=OUTCOMES)


class _VersionPayload(TypedDict):
    """What a worker wrote of one bucket of versions."""

    lost: list[tuple[int, str]]
    """(bucket of the subject, URI)"""
    of_nobody: str | None
    counts: list[tuple[str, str, int]]
    """(source, outcome, count)"""


@dataclass
class VersionSink:
    """Lost resources to files by the bucket of their subject, and counts."""

    folder: str
    buckets: int
    lost: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Files of LOST, by the bucket of the subject."""
    of_nobody: list[str] = field(default_factory=list[str])
    """Files of LOST, for resources without a subject: a Medication."""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])

    def __getstate__(self) -> tuple[str, int]:
        return self.folder, self.buckets

    def __setstate__(self, state: tuple[str, int]) -> None:
        self.__init__(*state)

    def write(self, batches: Iterator[pa.RecordBatch]) -> _VersionPayload:
        payload: _VersionPayload = {"counts": [], "of_nobody": None, "lost": []}
        of_nobody: list[pa.RecordBatch] = []
        with ExitStack() as open_files:
            buckets = Buckets(self.folder, self.buckets, open_files, LOST, "subject_id")
            for batch in batches:
                for row in batch.filter(batch.column("count").is_valid()).to_pylist():
                    payload["counts"].append((row["source"], row["outcome"], row["count"]))
                lost_rows = batch.filter(batch.column("count").is_null())
                buckets.add(lost_rows.filter(lost_rows.column("subject_id").is_valid()))
                of_nobody.append(lost_rows.filter(lost_rows.column("subject_id").is_null()).select(LOST.names))
            buckets.flush()
        payload["lost"] = list(buckets.uris.items())
        if sum(map(len, of_nobody)):
            payload["of_nobody"] = write_table(pa.Table.from_batches(of_nobody, LOST), self.folder)
        return payload

    def commit(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            payload = cast(_VersionPayload, receipt.payload)
            for bucket, uri in payload["lost"]:
                self.lost[bucket].append(uri)
            self.of_nobody += [payload["of_nobody"]] if payload["of_nobody"] else []
            for source, outcome, count in payload["counts"]:
                self.counts[source, outcome] += count


def rows_of_bucket(batch: pa.RecordBatch) -> pa.Table:
    """Rows (BUCKET_ROWS) of a bucket, without lost resources; `batch`: a shard of `buckets.plan_of`."""
    lost = batch.column("lost")
    rows = read_all(batch.filter(pc.invert(lost)).column("uri").to_pylist(), BUCKET_ROWS)
    return without_lost(rows.combine_chunks(), batch.filter(lost).column("uri").to_pylist())


def without_lost(rows: pa.Table, uris: Iterable[str]) -> pa.Table:
    """`rows` (unit, resource) except those of lost resources. `uris`: files of LOST."""
    lost_rows = read_all(uris, LOST)
    if len(lost_rows) == 0:
        return rows
    lost = np.isin(_resource_number(rows), _resource_number(lost_rows))
    return rows.filter(pa.array(~lost)) if lost.any() else rows


def _resource_number(rows: pa.Table) -> np.ndarray:
    """(N,) int64: unit and resource in one number; negative where there is no resource."""
    resource = rows.column("resource").fill_null(-1).to_numpy()
    return np.where(resource < 0, -1, rows.column("unit").to_numpy().astype(np.int64) * 2**40 + resource)
