"""The flows of a conversion: source to buckets of subjects, and each bucket to its file of the dataset.

units ── Parse ──> rows ── BucketSink ──> buckets/<uuid>.arrow, versions, codes, look-ups, links, counts
versions ── Newest ──> which resources are lost (versions.py); links ──> which subjects are one (links.py)
buckets ── Move ──> rows of those ── BucketSink
buckets ── Arrange ──> events of whole subjects in order ── DatasetSink ──> data files, counts, subjects
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import ArchiveError, UserError
from medray.flows.flow import Receipt, Stage
from medray.modalities.ehr.convert.buckets import HELD_ROWS, Buckets, plan_of, write_table
from medray.modalities.ehr.convert.days import settle
from medray.modalities.ehr.convert.events import COUNT, EVENT, FAILED, KEPT, LINK, LOOKUP, PATIENT, VERSION
from medray.modalities.ehr.convert.links import LINKS, NAMES, Same, whose
from medray.modalities.ehr.convert.lookups import LOOKUPS, looked_up
from medray.modalities.ehr.convert.members import Unit
from medray.modalities.ehr.convert.settings import CsvSource, FhirSource, MedsSplit, Parser, SourceBase
from medray.modalities.ehr.convert.splits import split_of
from medray.modalities.ehr.convert.versions import VERSIONS, rows_of_bucket
from medray.plugins.installed import PlugInFault, find
from medray.storage import files

ROW_GROUP = 2**17
VERSION_BUCKETS = 8
"""A bucket of versions for so many of events: their rows are small."""

UNITS = pa.schema([("unit", pa.int32()), ("uri", pa.string()), *((n, pa.int64()) for n in ("size", "start", "end"))])
CODES = pa.schema([("code", pa.string()), ("description", pa.string()), ("count", pa.int64())])
SUBJECTS = pa.schema(
    [
        pa.field("subject_id", pa.int64()),
        pa.field("first", pa.timestamp("us")),  # of the events that have a time, birth and death left out
        pa.field("last", pa.timestamp("us")),
        pa.field("death", pa.timestamp("us")),
        pa.field("events", pa.int64()),
    ]
)


def open_parser(source: SourceBase, key: bytes) -> Parser:
    """What reads units of this source. Raises UserError for a plug-in that cannot be used."""
    match source:
        case FhirSource():
            from medray.modalities.ehr.convert.fhir.parser import FhirParser

            return FhirParser(source, key)
        case CsvSource():
            from medray.modalities.ehr.convert.long_csv.parser import CsvParser

            return CsvParser(source, key)
    plug_in = find("sources", source.kind)
    if plug_in is None:
        raise UserError("no installed plug-in brings this source", where="[source] kind", found=source.kind)
    try:
        return plug_in.load().open(source, key)
    except PlugInFault as error:
        raise UserError(str(error), do="see: medray plugins") from None


class Parse:
    """Units to rows of events.ROWS, some thousand at a time."""

    def __init__(self, source: SourceBase, key: bytes) -> None:
        self.parser = open_parser(source, key)

    def __call__(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        for row in batch.to_pylist():
            yield from self.parser(Unit(**row))


def parse(source: SourceBase, key: bytes) -> Stage:
    return Stage(partial(Parse, source, key), batch_size=1)


@dataclass
class BucketSink:
    """Rows by hash of their subject into Arrow files, whose names are never used again."""

    folder: str
    buckets: int
    files: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    codes: list[str] = field(default_factory=list)
    lookups: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    versions: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed: list[tuple[int, int, str, str]] = field(default_factory=list)
    """(unit, member, reason, detail)"""

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "buckets": self.buckets}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def write(self, batches: Iterator[pa.RecordBatch]) -> dict[str, Any]:
        said: dict[str, Any] = {"counts": [], "failed": []}
        described: Counter[tuple[str, str | None]] = Counter()
        lookups: list[pa.RecordBatch] = []
        links: list[pa.RecordBatch] = []
        names = _Names()
        with ExitStack() as open_files:
            buckets = Buckets(self.folder, self.buckets, open_files, KEPT, "subject_id")
            versions = Buckets(self.folder, -(-self.buckets // VERSION_BUCKETS), open_files, VERSIONS, "key")
            for batch in batches:
                kind = batch.column("kind")
                buckets.add(batch.filter(pc.is_in(kind, pa.array([EVENT, PATIENT], pa.int8()))))
                versions.add(batch.filter(pc.equal(kind, VERSION)))
                _describe(batch, described)
                names.add(batch)
                if (found := batch.filter(pc.equal(kind, LINK))).num_rows:
                    links.append(found.select(LINKS.names).cast(LINKS))
                if (found := batch.filter(pc.equal(kind, LOOKUP))).num_rows:
                    lookups.append(found.select(LOOKUPS.names).cast(LOOKUPS))
                for row in batch.filter(pc.equal(kind, COUNT)).to_pylist():
                    said["counts"].append([row["source"], row["code"], row["count"]])
                for row in batch.filter(pc.equal(kind, FAILED)).to_pylist():
                    said["failed"].append([row["unit"], row["seq"], row["code"], row["description"] or ""])
            buckets.flush()
            versions.flush()
        said["buckets"] = [[bucket, uri] for bucket, uri in buckets.uris.items()]
        said["versions"] = [[bucket, uri] for bucket, uri in versions.uris.items()]
        said["links"] = write_table(pa.Table.from_batches(links, LINKS), self.folder) if links else None
        said["names"] = write_table(names.table(), self.folder) if names.held else None
        rows = [{"code": c, "description": d, "count": n} for (c, d), n in described.items()]
        said["codes"] = write_table(pa.Table.from_pylist(rows, schema=CODES), self.folder)
        said["lookups"] = write_table(pa.Table.from_batches(lookups, LOOKUPS), self.folder) if lookups else None
        return said

    def commit(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            said: dict[str, Any] = receipt.payload
            for bucket, uri in said["buckets"]:
                self.files[bucket].append(uri)
            for bucket, uri in said["versions"]:
                self.versions[bucket].append(uri)
            for name in ("links", "names"):
                getattr(self, name).extend([said[name]] if said[name] else [])
            self.codes.append(said["codes"])
            self.lookups += [said["lookups"]] if said["lookups"] else []
            for source, outcome, count in said["counts"]:
                self.counts[source, outcome] += count
            self.failed += [tuple(row) for row in said["failed"]]

    def plan(self, lost: Mapping[int, list[str]], only: Container[int] | None = None) -> list[pa.Table]:
        """A shard per bucket (of `only`): the files that hold its rows, and those of versions.LOST that it is without."""
        return plan_of({bucket: uris for bucket, uris in self.files.items() if only is None or bucket in only}, lost)

    def plan_of_versions(self) -> list[pa.Table]:
        return plan_of(self.versions)


class _Names:
    """Which servers name which subjects, each pair once."""

    def __init__(self) -> None:
        self.held: list[pa.Table] = []
        self.rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        named = pc.not_equal(batch.column("server").fill_null(0), 0)
        found = batch.filter(pc.and_(named, pc.is_in(batch.column("kind"), pa.array([EVENT, PATIENT], pa.int8()))))
        if found.num_rows:
            self.held.append(_distinct(pa.Table.from_batches([found.select(NAMES.names).cast(NAMES)])))
            self.rows += len(self.held[-1])
        if self.rows > HELD_ROWS and len(self.held) > 1:
            self.held, self.rows = [self.table()], 0

    def table(self) -> pa.Table:
        return _distinct(pa.concat_tables([NAMES.empty_table(), *self.held]))


def _distinct(names: pa.Table) -> pa.Table:
    return names.group_by(NAMES.names).aggregate([]).select(NAMES.names).cast(NAMES)


def _describe(batch: pa.RecordBatch, described: Counter[tuple[str, str | None]]) -> None:
    """Count (code, display) of events and look-ups."""
    rows = batch.filter(pc.is_in(batch.column("kind"), pa.array([EVENT, LOOKUP], pa.int8())))
    pairs = pa.Table.from_batches([rows.select(["code", "description"])]).group_by(["code", "description"])
    for row in pairs.aggregate([([], "count_all")]).to_pylist():
        if row["code"] is not None:
            described[row["code"], row["description"]] += row["count_all"]


# --- the second flow --------------------------------------------------------------------------------------------


class Arrange:
    """The files of one bucket to its events: by subject, static first, then by time, then in the order of the source; of
    equal times a birth and the start of an encounter come first, its end and a death last.

    Adds `dropped`: why a row is no event after all, null for the others; and `repeated`: equal to a row before it.
    Raises ArchiveError where two subjects have one id.
    """

    def __init__(
        self, lookups: tuple[str, ...], known_only: bool, lost: tuple[str, ...] = (), same: Same | None = None
    ) -> None:
        self.lookups, self.known_only, self.lost = lookups, known_only, lost
        self.same = same or Same()

    def __call__(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        rows = rows_of_bucket(batch)
        if len(self.same):  # rows of others are in the bucket of whose they are, too
            rows = rows.filter(pa.array(whose(rows, self.same)[0] == rows.column("subject_id").to_numpy()))
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
    """(N,) int8: the order of events of one time."""
    code = rows.column("code").fill_null("").combine_chunks()
    first = pc.equal(code, "MEDS_BIRTH"), pc.starts_with(code, "ENCOUNTER_START")
    last = pc.starts_with(code, "ENCOUNTER_END"), pc.equal(code, "MEDS_DEATH")
    rank = pc.case_when(pc.make_struct(*first, *last), *(pa.scalar(n, pa.int8()) for n in (0, 1, 3, 4, 2)))
    return rank


def arrange(lookups: Sequence[str], known_only: bool, lost: Sequence[str], same: Same, rows: int) -> Stage:
    """`lost`: files of versions.LOST of what is looked up; `rows`: at least as many as one bucket has files."""
    return Stage(partial(Arrange, tuple(lookups), known_only, tuple(lost), same), batch_size=max(1, rows))


def _refuse_collisions(rows: pa.Table) -> None:
    checks = rows.group_by("subject_id").aggregate([("check", "count_distinct")])
    if pc.any(pc.greater(checks.column("check_count_distinct"), 1)).as_py():
        raise ArchiveError(
            "two subjects have got the same keyed id",
            found="two identifiers with equal 63 bits of their keyed hash",
            do="convert with another pseudonym_key",
        )


def _repeated(rows: pa.Table) -> np.ndarray:
    """(N,) bool: subject, time, code and values equal an earlier row of the same subject and time."""
    names = ["subject_id", "time", "code", "numeric_value", "text_value"]
    numbered = rows.select(names).append_column("place", pa.array(np.arange(len(rows))))
    first = numbered.group_by(names).aggregate([("place", "min")]).column("place_min").to_numpy()
    repeated = np.ones(len(rows), bool)
    repeated[first] = False
    return repeated


@dataclass
class DatasetSink:
    """The events of one bucket to a file per split, in the columns of meds.DataSchema."""

    folder: str
    buckets: int
    split: MedsSplit | None
    data: list[tuple[str, int, str]] = field(default_factory=list)
    """(split, bucket, path of the draft)"""
    codes: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    sources: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Per source: converted, events, repeated, and dropped by reason ("-" + reason)."""

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "buckets": self.buckets, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def write(self, batches: Iterator[pa.RecordBatch]) -> dict[str, Any]:
        arrived = list(batches)
        said: dict[str, Any] = {"sources": [], "data": [], "codes": None, "subjects": None}
        if not arrived:  # patients of whom nothing is known
            return said
        rows = pa.Table.from_batches(arrived)
        said["sources"] = _counts(rows)
        kept = rows.filter(rows.column("dropped").is_null())
        if len(kept) == 0:
            return said
        words = kept.group_by("code").aggregate([([], "count_all")])
        none = pa.nulls(len(words), pa.string())
        said["codes"] = write_table(pa.table([words["code"], none, words["count_all"]], schema=CODES), self.folder)
        said["subjects"] = write_table(_told(kept), self.folder)
        ids = kept.column("subject_id").to_numpy()
        of_split, bucket = split_of(ids, self.split), int(ids[0] % self.buckets)
        for name in np.unique(of_split):
            said["data"].append([str(name), bucket, self._file(kept.filter(pa.array(of_split == name)))])
        return said

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
            said: dict[str, Any] = receipt.payload
            self.data += [(split, bucket, uri) for split, bucket, uri in said["data"]]
            self.codes += [said["codes"]] if said["codes"] else []
            self.subjects += [said["subjects"]] if said["subjects"] else []
            for source, outcome, count in said["sources"]:
                self.sources[source][outcome] += count


def _told(events: pa.Table) -> pa.Table:
    """SUBJECTS: birth is decades before the first event, and death is what may be predicted."""
    from meds import birth_code, death_code

    time, code, never = events["time"], events["code"], pa.scalar(None, pa.timestamp("us"))
    observed = pc.if_else(pc.is_in(code, pa.array([birth_code, death_code])), never, time)
    died = pc.if_else(pc.equal(code, death_code), time, never)
    table = pa.table({"subject_id": events["subject_id"], "observed": observed, "died": died})
    told = table.group_by("subject_id").aggregate(
        [("observed", "min"), ("observed", "max"), ("died", "min"), ([], "count_all")]
    )
    names = ["subject_id", "observed_min", "observed_max", "died_min", "count_all"]
    return told.select(names).rename_columns(SUBJECTS.names).cast(SUBJECTS)


def _counts(rows: pa.Table) -> list[list[Any]]:
    """[source, outcome, count]: resources by their first event, events, repeated ones."""
    found: Counter[tuple[str, str]] = Counter()
    groups = rows.group_by(["source", "dropped"]).aggregate([("head", "sum"), ([], "count_all"), ("repeated", "sum")])
    for row in groups.to_pylist():
        if row["dropped"] is not None:
            found[row["source"], "-" + row["dropped"]] += row["head_sum"]
            continue
        found[row["source"], "converted"] += row["head_sum"]
        found[row["source"], "events"] += row["count_all"]
        found[row["source"], "repeated"] += row["repeated_sum"]
    return [[source, outcome, count] for (source, outcome), count in found.items()]
