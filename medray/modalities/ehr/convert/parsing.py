"""The first flow of a conversion: the source to rows, and those to buckets of subjects.

units ── Parse ──> rows ── BucketSink ──> buckets/<uuid>.arrow, versions, codes, look-ups, links, counts

Then versions.py finds the resources that are lost, links.py the subjects that are one, and arranging.py makes the files
of the dataset.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TypedDict, cast

import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import UserError
from medray.flows.flow import Receipt, Stage
from medray.modalities.ehr.convert.buckets import BUFFERED_ROWS, Buckets, plan_of, write_table
from medray.modalities.ehr.convert.events import (
    BUCKET_ROWS,
    CODES,
    COUNT,
    EVENT,
    FAILED,
    LINK,
    LOOKUP,
    PATIENT,
    VERSION,
)
from medray.modalities.ehr.convert.links import LINKS, NAMES
from medray.modalities.ehr.convert.lookups import LOOKUPS
from medray.modalities.ehr.convert.members import Unit
from medray.modalities.ehr.convert.settings import CsvSource, FhirSource, Parser, SourceBase
from medray.modalities.ehr.convert.versions import VERSIONS
from medray.plugins.installed import PlugInFault, find

VERSION_BUCKETS = 8
"""A bucket of versions for so many of events: their rows are small."""

UNITS = pa.schema([("unit", pa.int32()), ("uri", pa.string()), *((n, pa.int64()) for n in ("size", "start", "end"))])


def open_parser(source: SourceBase, key: bytes) -> Parser:
    """The parser of this source. Raises UserError for a plug-in that cannot be used."""
    match source:
        case FhirSource():
            from medray.modalities.ehr.convert.fhir.parser import FhirParser

            return FhirParser(source, key)
        case CsvSource():
            from medray.modalities.ehr.convert.long_csv.parser import CsvParser

            return CsvParser(source, key)
        case _:
            pass
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


class _BucketPayload(TypedDict):
    """What a worker wrote of one shard of units: URIs of Arrow files, counts and failed files."""

    buckets: list[tuple[int, str]]
    versions: list[tuple[int, str]]
    links: str | None
    names: str | None
    codes: str
    lookups: str | None
    counts: list[tuple[str, str, int]]
    """(source, outcome, count)"""
    failed: list[tuple[int, int, str, str]]
    """(unit, member, reason, detail)"""


@dataclass
class BucketSink:
    """Rows by hash of their subject into Arrow files, whose names are never used again."""

    folder: str
    buckets: int
    files: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Bucket to its files of BUCKET_ROWS."""
    codes: list[str] = field(default_factory=list[str])
    """Files of CODES: (code, display) as the source has them."""
    lookups: list[str] = field(default_factory=list[str])
    links: list[str] = field(default_factory=list[str])
    names: list[str] = field(default_factory=list[str])
    versions: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Bucket of type and id to its files of VERSIONS."""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """(source, outcome) to how many."""
    failed: list[tuple[int, int, str, str]] = field(default_factory=list[tuple[int, int, str, str]])
    """(unit, member, reason, detail)"""

    def __getstate__(self) -> tuple[str, int]:
        return self.folder, self.buckets

    def __setstate__(self, state: tuple[str, int]) -> None:
        self.__init__(*state)

    def write(self, batches: Iterator[pa.RecordBatch]) -> _BucketPayload:
        counts: list[tuple[str, str, int]] = []
        failed: list[tuple[int, int, str, str]] = []
        described: Counter[tuple[str, str | None]] = Counter()
        lookups: list[pa.RecordBatch] = []
        links: list[pa.RecordBatch] = []
        names = _ServerNames()
        with ExitStack() as open_files:
            buckets = Buckets(self.folder, self.buckets, open_files, BUCKET_ROWS, "subject_id")
            versions = Buckets(self.folder, -(-self.buckets // VERSION_BUCKETS), open_files, VERSIONS, "key")
            for batch in batches:
                kind = batch.column("kind")
                buckets.add(batch.filter(pc.is_in(kind, pa.array([EVENT, PATIENT], pa.int8()))))
                versions.add(batch.filter(pc.equal(kind, VERSION)))
                _describe(batch, described)
                names.add(batch)
                if (matching := batch.filter(pc.equal(kind, LINK))).num_rows:
                    links.append(matching.select(LINKS.names).cast(LINKS))
                if (matching := batch.filter(pc.equal(kind, LOOKUP))).num_rows:
                    lookups.append(matching.select(LOOKUPS.names).cast(LOOKUPS))
                for row in batch.filter(pc.equal(kind, COUNT)).to_pylist():
                    counts.append((row["source"], row["code"], row["count"]))
                for row in batch.filter(pc.equal(kind, FAILED)).to_pylist():
                    failed.append((row["unit"], row["seq"], row["code"], row["description"] or ""))
            buckets.flush()
            versions.flush()
        rows = [{"code": c, "description": d, "count": n} for (c, d), n in described.items()]
        return {
            "buckets": list(buckets.uris.items()),
            "versions": list(versions.uris.items()),
            "links": write_table(pa.Table.from_batches(links, LINKS), self.folder) if links else None,
            "names": write_table(names.table(), self.folder) if names.pending else None,
            "codes": write_table(pa.Table.from_pylist(rows, schema=CODES), self.folder),
            "lookups": write_table(pa.Table.from_batches(lookups, LOOKUPS), self.folder) if lookups else None,
            "counts": counts,
            "failed": failed,
        }

    def commit(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            payload = cast(_BucketPayload, receipt.payload)
            for bucket, uri in payload["buckets"]:
                self.files[bucket].append(uri)
            for bucket, uri in payload["versions"]:
                self.versions[bucket].append(uri)
            self.codes.append(payload["codes"])
            self.links += [payload["links"]] if payload["links"] else []
            self.names += [payload["names"]] if payload["names"] else []
            self.lookups += [payload["lookups"]] if payload["lookups"] else []
            for source, outcome, count in payload["counts"]:
                self.counts[source, outcome] += count
            self.failed += payload["failed"]

    def plan(self, lost: Mapping[int, list[str]], only: Container[int] | None = None) -> list[pa.Table]:
        """A shard per bucket (of `only`): the files of its rows, and the files (versions.LOST) of the resources to leave out."""
        return plan_of({bucket: uris for bucket, uris in self.files.items() if only is None or bucket in only}, lost)

    def plan_of_versions(self) -> list[pa.Table]:
        return plan_of(self.versions)


class _ServerNames:
    """Collects which servers name which subjects (NAMES), each pair once."""

    def __init__(self) -> None:
        self.pending: list[pa.Table] = []
        self.rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        named = pc.not_equal(batch.column("server").fill_null(0), 0)
        matching = batch.filter(pc.and_(named, pc.is_in(batch.column("kind"), pa.array([EVENT, PATIENT], pa.int8()))))
        if matching.num_rows:
            self.pending.append(_distinct(pa.Table.from_batches([matching.select(NAMES.names).cast(NAMES)])))
            self.rows += len(self.pending[-1])
        if self.rows > BUFFERED_ROWS and len(self.pending) > 1:
            self.pending, self.rows = [self.table()], 0

    def table(self) -> pa.Table:
        return _distinct(pa.concat_tables([NAMES.empty_table(), *self.pending]))


def _distinct(names: pa.Table) -> pa.Table:
    return names.group_by(NAMES.names).aggregate([]).select(NAMES.names).cast(NAMES)


def _describe(batch: pa.RecordBatch, described: Counter[tuple[str, str | None]]) -> None:
    """Count (code, display) of events and look-ups."""
    rows = batch.filter(pc.is_in(batch.column("kind"), pa.array([EVENT, LOOKUP], pa.int8())))
    pairs = pa.Table.from_batches([rows.select(["code", "description"])]).group_by(["code", "description"])
    for row in pairs.aggregate([([], "count_all")]).to_pylist():
        if row["code"] is not None:
            described[row["code"], row["description"]] += row["count_all"]
