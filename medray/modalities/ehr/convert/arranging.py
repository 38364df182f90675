"""The last flow of a conversion: each bucket of subjects to its files of the dataset.

buckets ── Arrange ──> events of whole subjects in order ── DatasetSink ──> data files, counts, subjects
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import ArchiveError
from medray.flows.flow import Receipt, Stage
from medray.modalities.ehr.convert.buckets import write_table
from medray.modalities.ehr.convert.days import settle
from medray.modalities.ehr.convert.events import CODES, EVENT, PATIENT
from medray.modalities.ehr.convert.links import SubjectMap, owners_of
from medray.modalities.ehr.convert.lookups import looked_up
from medray.modalities.ehr.convert.settings import MedsSplit
from medray.modalities.ehr.convert.splits import split_of
from medray.modalities.ehr.convert.versions import rows_of_bucket
from medray.storage import files

ROW_GROUP = 2**17
SUBJECTS = pa.schema(
    [
        pa.field("subject_id", pa.int64()),
        pa.field("first", pa.timestamp("us")),  # of the events that have a time, birth and death left out
        pa.field("last", pa.timestamp("us")),
        pa.field("death", pa.timestamp("us")),
        pa.field("events", pa.int64()),
    ]
)


class Arrange:
    """The files of one bucket to its events: by subject, static ones first, then by time, then in the order of the
    source; at equal times a birth and the start of an encounter come first, its end and a death last.

    Adds `dropped`: why a row gives no event after all, null for events; and `repeated`: it equals an earlier row.
    Raises ArchiveError where two subjects have one id.
    """

    def __init__(
        self, lookups: tuple[str, ...], known_only: bool, lost: tuple[str, ...] = (), owners: SubjectMap | None = None
    ) -> None:
        self.lookups, self.known_only, self.lost = lookups, known_only, lost
        self.owners = owners or SubjectMap()

    def __call__(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        rows = rows_of_bucket(batch)
        if len(self.owners):  # rows of other subjects are in the owner's bucket, too
            rows = rows.filter(pa.array(owners_of(rows, self.owners)[0] == rows.column("subject_id").to_numpy()))
        _refuse_collisions(rows)
        patients = rows.filter(pc.equal(rows.column("kind"), PATIENT))
        main = pc.unique(patients.filter(patients.column("why").is_null()).column("subject_id"))
        patients = pc.unique(patients.column("subject_id"))
        rows = rows.filter(pc.equal(rows.column("kind"), EVENT)).combine_chunks()
        rows = looked_up(rows, self.lookups, self.lost)
        none = pa.scalar(None, pa.string())
        why = pc.if_else(pc.is_in(rows.column("subject_id"), main), rows.column("why"), none)
        why = pc.if_else(rows.column("code").is_valid(), why, "unknown_medication")
        if self.known_only:
            known = pc.is_in(rows.column("subject_id"), patients)
            why = pc.if_else(known, why, "unknown_patient")
        rows = rows.append_column("dropped", why)
        rows = rows.set_column(rows.schema.get_field_index("time"), "time", settle(rows))
        timed = rows.column("time").is_valid().cast(pa.int8())
        keys = ["subject_id", "timed", "time", "rank", "unit", "seq"]
        sortable = rows.append_column("timed", timed).append_column("rank", _rank(rows))
        order = pc.sort_indices(sortable, [(key, "ascending") for key in keys])
        rows = rows.take(order).combine_chunks()
        rows = rows.append_column("repeated", pa.array(_repeated(rows)))
        return rows.to_batches()


def _rank(rows: pa.Table) -> pa.Array:
    """(N,) int8: the order of events at one time."""
    code = rows.column("code").fill_null("").combine_chunks()
    first = pc.equal(code, "MEDS_BIRTH"), pc.starts_with(code, "ENCOUNTER_START")
    last = pc.starts_with(code, "ENCOUNTER_END"), pc.equal(code, "MEDS_DEATH")
    rank = pc.case_when(pc.make_struct(*first, *last), *(pa.scalar(n, pa.int8()) for n in (0, 1, 3, 4, 2)))
    return rank


def arrange(lookups: Sequence[str], known_only: bool, lost: Sequence[str], owners: SubjectMap, rows: int) -> Stage:
    """The stage. `lost`: files (versions.LOST) of lost resources that are looked up; `rows`: at least as many as one bucket
    has files."""
    return Stage(partial(Arrange, tuple(lookups), known_only, tuple(lost), owners), batch_size=max(1, rows))


def _refuse_collisions(rows: pa.Table) -> None:
    checks = rows.group_by("subject_id").aggregate([("check", "count_distinct")])
    if pc.any(pc.greater(checks.column("check_count_distinct"), 1)).as_py():
        raise ArchiveError(
            "two subjects have the same keyed id",
            found="two identifiers whose keyed hashes agree in 63 bits",
            do="convert with another pseudonym_key",
        )


def _repeated(rows: pa.Table) -> np.ndarray:
    """(N,) bool: subject, time, code and values equal an earlier row of the same subject and time."""
    names = ["subject_id", "time", "code", "numeric_value", "text_value"]
    numbered = rows.select(names).append_column("row", pa.array(np.arange(len(rows))))
    first = numbered.group_by(names).aggregate([("row", "min")]).column("row_min").to_numpy()
    repeated = np.ones(len(rows), bool)
    repeated[first] = False
    return repeated


class _DatasetPayload(TypedDict):
    """What a worker wrote of one bucket."""

    data: list[tuple[str, int, str]]
    """(split, bucket, path of the draft)"""
    codes: str | None
    subjects: str | None
    sources: list[tuple[str, str, int]]
    """(source, outcome, count)"""


@dataclass
class DatasetSink:
    """The events of one bucket to a file per split, in the columns of meds.DataSchema."""

    folder: str
    buckets: int
    split: MedsSplit | None
    data: list[tuple[str, int, str]] = field(default_factory=list[tuple[str, int, str]])
    """(split, bucket, path of the draft)"""
    codes: list[str] = field(default_factory=list[str])
    """Files of CODES: the codes that events have."""
    subjects: list[str] = field(default_factory=list[str])
    """Files of SUBJECTS."""
    sources: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Per source: converted, events, repeated, and dropped by reason ("-" + reason)."""

    def __getstate__(self) -> tuple[str, int, MedsSplit | None]:
        return self.folder, self.buckets, self.split

    def __setstate__(self, state: tuple[str, int, MedsSplit | None]) -> None:
        self.__init__(*state)

    def write(self, batches: Iterator[pa.RecordBatch]) -> _DatasetPayload:
        arrived = list(batches)
        payload: _DatasetPayload = {"sources": [], "data": [], "codes": None, "subjects": None}
        if not arrived:  # patients of whom nothing is known
            return payload
        rows = pa.Table.from_batches(arrived)
        payload["sources"] = _counts(rows)
        events = rows.filter(rows.column("dropped").is_null())
        if len(events) == 0:
            return payload
        words = events.group_by("code").aggregate([([], "count_all")])
        none = pa.nulls(len(words), pa.string())
        payload["codes"] = write_table(pa.table([words["code"], none, words["count_all"]], schema=CODES), self.folder)
        payload["subjects"] = write_table(_subject_table(events), self.folder)
        ids = events.column("subject_id").to_numpy()
        of_split, bucket = split_of(ids, self.split), int(ids[0] % self.buckets)
        for name in np.unique(of_split):
            payload["data"].append((str(name), bucket, self._file(events.filter(pa.array(of_split == name)))))
        return payload

    def _file(self, events: pa.Table) -> str:
        import pyarrow.parquet as pq
        from meds import DataSchema

        schema = DataSchema.schema()
        events = events.select(schema.names).cast(schema)
        DataSchema.validate(events)
        uri = files.join(self.folder, f"{uuid.uuid4().hex}.parquet")
        with files.new_file(uri) as stream:
            pq.write_table(events, stream, compression="zstd", row_group_size=ROW_GROUP)
        return uri

    def commit(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            payload = cast(_DatasetPayload, receipt.payload)
            self.data += payload["data"]
            self.codes += [payload["codes"]] if payload["codes"] else []
            self.subjects += [payload["subjects"]] if payload["subjects"] else []
            for source, outcome, count in payload["sources"]:
                self.sources[source][outcome] += count


def _subject_table(events: pa.Table) -> pa.Table:
    """SUBJECTS of the events. Birth is decades before the first event, and death is what may be predicted: both are no
    first or last event."""
    from meds import birth_code, death_code

    time, code, never = events["time"], events["code"], pa.scalar(None, pa.timestamp("us"))
    observed = pc.if_else(pc.is_in(code, pa.array([birth_code, death_code])), never, time)
    died = pc.if_else(pc.equal(code, death_code), time, never)
    table = pa.table({"subject_id": events["subject_id"], "observed": observed, "died": died})
    spans = table.group_by("subject_id").aggregate(
        [("observed", "min"), ("observed", "max"), ("died", "min"), ([], "count_all")]
    )
    names = ["subject_id", "observed_min", "observed_max", "died_min", "count_all"]
    return spans.select(names).rename_columns(SUBJECTS.names).cast(SUBJECTS)


def _counts(rows: pa.Table) -> list[tuple[str, str, int]]:
    """(source, outcome, count): resources by their first event, events, repeated events."""
    counts: Counter[tuple[str, str]] = Counter()
    groups = rows.group_by(["source", "dropped"]).aggregate([("head", "sum"), ([], "count_all"), ("repeated", "sum")])
    for row in groups.to_pylist():
        if row["dropped"] is not None:
            counts[row["source"], "-" + row["dropped"]] += row["head_sum"]
            continue
        counts[row["source"], "converted"] += row["head_sum"]
        counts[row["source"], "events"] += row["count_all"]
        counts[row["source"], "repeated"] += row["repeated_sum"]
    return [(source, outcome, count) for (source, outcome), count in counts.items()]
