"""SubjectMap: ids of several servers are several subjects, linked patient records are one.

- An id means something on its server alone (FHIR R4 Bundle.entry.fullUrl). Where the archive has a patient's id under
  two named servers, each is a subject of its own, and so is the one that names no server; where it has one, they are one.
- Patient.link says that two records are of one person (FHIR R4 Patient.link): their events are those of one subject.
  The record that is `replaced-by` another must no longer be used: its facts (birth, death, gender) are dropped if
  another record of the person is there. `refer` and `seealso` name a second record that stays in use: both give facts.

    links, names ── subject_map ──> SubjectMap ── Move ──> rows of other subjects, in the buckets of their owners
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.flows.flow import Stage
from medray.modalities.ehr.convert.events import BUCKET_ROWS, ROWS, Subjects
from medray.modalities.ehr.convert.fhir.references import Keys, literal
from medray.modalities.ehr.convert.versions import rows_of_bucket, without_lost

NAMES = pa.schema([("subject_id", pa.int64()), ("server", pa.int64())])
"""Which servers name a subject's id."""
LINKS = pa.schema(
    [
        ROWS.field(name)
        for name in ("subject_id", "check", "server", "unit", "resource", "code", "key", "key_check", "key_server")
    ]
)
POSITIVE = 2**63 - 1


@dataclass(frozen=True)
class SubjectMap:
    """Owners of records whose keyed id is not their subject's. Small: few patients are linked or on two servers."""

    split: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """(S,) ids that several servers have, ascending: there, id and server together are the subject."""
    merged: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int64))
    """(M, 3): subject, ascending; the subject that owns its record; the check of that one."""
    replaced: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    """(M,): the record of the first subject has been replaced by another."""

    def __len__(self) -> int:
        return len(self.split) + len(self.merged)

    def owners(self, subject: np.ndarray, check: np.ndarray, server: np.ndarray) -> tuple[np.ndarray, ...]:
        """Three arrays (N,): the subject that owns each record, the check of its id, whether the record was replaced."""
        apart = np.isin(subject, self.split) & (server != 0)
        subject = np.where(apart, (subject ^ server) & POSITIVE, subject)
        check = np.where(apart, check ^ server, check)
        if len(self.merged) == 0:
            return subject, check, np.zeros(len(subject), bool)
        row = np.searchsorted(self.merged[:, 0], subject).clip(max=len(self.merged) - 1)
        linked = self.merged[row, 0] == subject
        return (
            np.where(linked, self.merged[row, 1], subject),
            np.where(linked, self.merged[row, 2], check),
            linked & self.replaced[row],
        )

    def buckets(self, names: pa.Table, buckets: int) -> set[int]:
        """Numbers of the buckets that hold rows of other subjects. `names`: NAMES."""
        moved = self.merged[:, 0] % buckets
        apart = names.filter(pc.is_in(names.column("subject_id"), pa.array(self.split, pa.int64())))
        # a linked subject of a split id is in the bucket of the id, which is one of these
        return {int(bucket) for bucket in (*moved, *(apart.column("subject_id").to_numpy() % buckets))}


def subject_map(names: pa.Table, links: pa.Table, lost: Mapping[int, list[str]], buckets: int) -> SubjectMap:
    """The map of an archive. `names`: NAMES, repeats allowed; `links`: LINKS; `lost`: files (versions.LOST) by bucket of
    the subject."""
    pairs = names.group_by(["subject_id", "server"]).aggregate([])
    counts = pairs.group_by("subject_id").aggregate([([], "count_all")])
    several = counts.filter(pc.greater(counts.column("count_all"), 1))
    split = np.sort(several.column("subject_id").to_numpy())
    for bucket in np.unique(links.column("subject_id").to_numpy() % buckets).tolist():
        links = without_lost(links, lost.get(bucket, []))
    if len(links) == 0:
        return SubjectMap(split)
    return _merged(SubjectMap(split), links)


def _merged(apart: SubjectMap, links: pa.Table) -> SubjectMap:
    column = {name: links.column(name).fill_null(0).to_numpy() for name in links.schema.names if name != "code"}
    here, here_check, _ = apart.owners(column["subject_id"], column["check"], column["server"])
    there, there_check, _ = apart.owners(column["key"], column["key_check"], column["key_server"])
    checks = dict(zip((*here.tolist(), *there.tolist()), (*here_check.tolist(), *there_check.tolist()), strict=True))
    replaced: set[int] = set()
    second: set[int] = set()
    root: dict[int, int] = {}

    def find(subject: int) -> int:
        while (above := root.setdefault(subject, subject)) != subject:
            root[subject] = subject = root[above]
        return subject

    for one, other, kind in zip(here.tolist(), there.tolist(), links.column("code").to_pylist(), strict=True):
        root[find(one)] = find(other)
        if one != other and kind in ("replaced-by", "replaces"):
            replaced.add(one if kind == "replaced-by" else other)
        if one != other and kind == "refer":
            second.add(one)
    people: dict[int, list[int]] = {}
    for subject in checks:
        people.setdefault(find(subject), []).append(subject)
    merged: list[tuple[int, int, int, bool]] = []
    for records in people.values():
        main = min(records, key=lambda each: (each in replaced, each in second, each))
        merged += [(each, main, checks[main], each in replaced) for each in records if each != main]
    merged.sort()
    return SubjectMap(
        apart.split,
        np.array([row[:3] for row in merged], np.int64).reshape(-1, 3),
        np.array([row[3] for row in merged], bool),
    )


class Move:
    """The files of a bucket to those rows (ROWS) that belong to another subject than their keyed id says."""

    def __init__(self, owners: SubjectMap) -> None:
        self.owners = owners

    def __call__(self, batch: pa.RecordBatch) -> Iterable[pa.RecordBatch]:
        rows = rows_of_bucket(batch)
        subject, check, replaced = owners_of(rows, self.owners)
        moved = subject != rows.column("subject_id").to_numpy()
        whole = rows.column("source").fill_null("Patient")  # there is such a patient, or it is a fact of theirs
        facts = pc.and_(pa.array(replaced), pc.equal(whole, "Patient"))
        new: dict[str, np.ndarray | pa.Array] = {
            "subject_id": subject,
            "check": check,
            "server": np.zeros(len(rows), np.int64),
            "why": pc.if_else(facts, pa.scalar("replaced_patient"), pa.scalar(None, pa.string())),
        }
        columns = [
            new.get(f.name, rows.column(f.name) if f.name in BUCKET_ROWS.names else pa.nulls(len(rows), f.type))
            for f in ROWS
        ]
        return pa.table(columns, schema=ROWS).filter(pa.array(moved)).combine_chunks().to_batches()


def owners_of(rows: pa.Table, owners: SubjectMap) -> tuple[np.ndarray, ...]:
    """SubjectMap.owners of rows (BUCKET_ROWS)."""
    server = rows.column("server").fill_null(0).to_numpy()
    return owners.owners(rows.column("subject_id").to_numpy(), rows.column("check").fill_null(0).to_numpy(), server)


def move(owners: SubjectMap, rows: int) -> Stage:
    """The stage. `rows`: at least as many as one bucket has files."""
    return Stage(partial(Move, owners), batch_size=max(1, rows))


class LinkedSubjects(Subjects):
    """Turns identifiers of a FHIR archive, whole URLs too, into (subject_id, check) of the subject that owns the record."""

    def __init__(self, key: bytes, owners: SubjectMap) -> None:
        super().__init__(key)
        self.owners, self.keys = owners, Keys(key)

    def __call__(self, identifier: str) -> tuple[int, int]:
        named = literal(identifier)
        name, server = (named.id, named.server) if named and named.type == "Patient" else (identifier, "")
        subject, check = super().__call__(name)
        of_server = np.array([self.keys.server(server)], np.int64)
        owner, owner_check, _ = self.owners.owners(np.array([subject]), np.array([check]), of_server)
        return int(owner[0]), int(owner_check[0])
