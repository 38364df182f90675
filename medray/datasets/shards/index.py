"""ShardSink writes shards and their index; ShardSet is an opened index."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypedDict, cast

import pyarrow as pa
import pyarrow.compute as pc

from medray.datasets.samples import KEYS, failed, good
from medray.datasets.shards.parquet import read_samples, write_samples
from medray.errors import ArchiveError
from medray.flows.flow import Receipt
from medray.storage import files
from medray.storage.versions import refuse_later

Summarise = Callable[[pa.RecordBatch], pa.Table]

INDEX = pa.schema(
    [
        pa.field("path", pa.string()),  # below the folder; null where every entry failed
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("split", pa.string()),
        pa.field("first", pa.string(), nullable=False),  # smallest entry id: the order of the index
        pa.field("entries", pa.int64(), nullable=False),  # good and failed
        pa.field("failed_path", pa.string()),
        pa.field("failed_entries", pa.int64(), nullable=False),
        pa.field("summary", pa.binary()),  # Arrow IPC stream of what `summarise` gave
    ]
)
INDEX_NAME, FORMAT = "index.parquet", 1


class ShardFacts(TypedDict):
    """A row of INDEX as a receipt has it: JSON-ready, the summary as base64."""

    path: str | None
    rows: int
    bytes: int
    split: str | None
    first: str
    entries: int
    failed_path: str | None
    failed_entries: int
    summary: str | None


@dataclass
class ShardSink:
    """The flows.Sink of prepared samples: a Parquet file per shard, failed rows apart, and one index of all."""

    folder: str
    schema: pa.Schema
    """samples.sample_schema of the modality."""
    summarise: Summarise | None = None
    """Run on each batch of good rows; the tables of all shards stand in the index (`ShardSet.summaries`)."""
    planned: int | None = None
    """Entries of the whole plan: until the index has them all, `ShardSet.open` refuses it."""
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the shards were made from; stands in the index."""
    _rows: dict[str, dict[str, object]] = field(default_factory=dict[str, dict[str, object]], repr=False)

    def __post_init__(self) -> None:
        self.folder = files.absolute(self.folder)  # a worker has another working directory

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_rows": {}}

    def write(self, batches: Iterator[pa.RecordBatch]) -> ShardFacts:
        """Samples of one shard to files nobody names yet. Returns their row of INDEX."""
        name = uuid.uuid4()
        lost: list[pa.RecordBatch] = []
        summaries: list[pa.Table] = []
        entries: set[str] = set()
        splits: set[str | None] = set()

        def usable() -> Iterator[pa.RecordBatch]:
            for batch in batches:
                entries.update(batch.column("entry_id").to_pylist())
                lost.append(failed(batch).select(KEYS.names))
                rows = good(batch)
                if len(rows):
                    splits.update(rows.column("split").unique().to_pylist())
                    if self.summarise is not None:
                        summaries.append(self.summarise(rows))
                    yield rows

        path, rows, size, split = None, 0, 0, None
        samples = usable()
        start = next(samples, None)
        if start is not None:
            path = f"shard-{name}.parquet"
            rows, size = write_samples(chain([start], samples), files.join(self.folder, path), self.schema)
            if len(splits) > 1:
                raise ValueError(
                    f"a shard holds one split, found {sorted(map(str, splits))}: plan each split by itself"
                )
            split = splits.pop()
        bad = [batch for batch in lost if len(batch)]
        failed_path, failed_entries = None, set[str]()
        if bad:
            failed_path = f"failed-{name}.parquet"
            failed_entries = {entry for batch in bad for entry in batch.column("entry_id").to_pylist()}
            write_samples(bad, files.join(self.folder, failed_path), KEYS)
        return {
            "path": path,
            "rows": rows,
            "bytes": size,
            "split": split,
            "first": min(entries, default=""),
            "entries": len(entries),
            "failed_path": failed_path,
            "failed_entries": len(failed_entries),
            "summary": base64.b64encode(_to_ipc(pa.concat_tables(summaries))).decode() if summaries else None,
        }

    def commit(self, receipts: Sequence[Receipt]) -> None:
        """Write the index of all shards committed so far, in the order of their entries. Readers see all or none."""
        for receipt in receipts:
            facts = cast(ShardFacts, receipt.payload)
            path = facts["path"] or facts["failed_path"]
            if path is not None:
                summary = None if facts["summary"] is None else base64.b64decode(facts["summary"])
                self._rows[path] = {**facts, "summary": summary}
        rows = sorted(self._rows.values(), key=lambda row: str(row["first"]))
        about = {"facts": json.dumps(dict(self.facts), sort_keys=True), "planned": json.dumps(self.planned)}
        table = pa.Table.from_pylist(rows, schema=INDEX.with_metadata(about))
        files.write_bytes(files.join(self.folder, INDEX_NAME), _to_parquet(table))


def _to_parquet(table: pa.Table) -> bytes:
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@dataclass(frozen=True)
class Shard:
    """One Parquet file of good samples."""

    uri: str
    rows: int
    bytes: int
    split: str | None


@dataclass(frozen=True)
class ShardSet:
    """An opened index; `open` is the way in."""

    folder: str
    index: pa.Table
    """INDEX, in the order of the entries."""
    facts: Mapping[str, str]
    complete: bool
    """All planned entries are in it."""

    @classmethod
    def open(cls, folder: str, *, partial: bool = False) -> ShardSet:
        """Raises ArchiveError when there is no index, or one of a later version of medray, or not yet all of the planned
        entries and not `partial`."""
        import pyarrow.parquet as pq

        index_uri = files.join(folder, INDEX_NAME)
        again = f"remove the folder {folder}: the next `medray prepare` makes its shards again"
        try:
            with files.whole("the index of the shards is spoilt", index_uri, again):
                index = pq.read_table(pa.BufferReader(files.read_bytes(index_uri)))
        except FileNotFoundError:
            raise ArchiveError("there are no prepared shards here", where=folder, do="run `medray prepare`") from None
        about = index.schema.metadata
        written = {key.decode(): value.decode() for key, value in about.items()}
        refuse_later(written, FORMAT, "the index of the shards", index_uri, ArchiveError)
        planned, entries = json.loads(about[b"planned"]), pc.sum(index.column("entries")).as_py() or 0
        if planned is not None and entries < planned and not partial:
            raise ArchiveError(
                "the preparation of these shards did not end",
                where=folder,
                found=f"{entries} entries",
                expected=f"{planned} entries",
                do="run `medray prepare` again",
            )
        return cls(folder, index, json.loads(about[b"facts"]), planned is None or entries >= planned)

    def is_whole(self) -> bool:
        """Whether every file is there, those of samples in their full length. One listing, nothing is opened."""
        sizes = {files.relative(file.uri, self.folder): file.size for file in files.list_files(self.folder)}
        rows = self.index.select(["path", "bytes", "failed_path"]).to_pylist()
        return all(
            (row["path"] is None or sizes.get(row["path"]) == row["bytes"])
            and (row["failed_path"] is None or sizes.get(row["failed_path"], 0) > 0)
            for row in rows
        )

    def split(self, name: str | None) -> list[Shard]:
        """Shards of a split, in the order of their entries."""
        return [
            Shard(files.join(self.folder, row["path"]), row["rows"], row["bytes"], row["split"])
            for row in self.index.select(["path", "rows", "bytes", "split"]).to_pylist()
            if row["path"] is not None and row["split"] == name
        ]

    def rows(self, name: str | None) -> int:
        """Samples of a split."""
        return sum(shard.rows for shard in self.split(name))

    @property
    def splits(self) -> dict[str | None, int]:
        """Samples per split."""
        names = [row["split"] for row in self.index.select(["path", "split"]).to_pylist() if row["path"] is not None]
        return {name: self.rows(name) for name in sorted(set(names), key=str)}

    @property
    def entries(self) -> int:
        """Good and failed."""
        return pc.sum(self.index.column("entries")).as_py() or 0

    @property
    def failed_entries(self) -> int:
        return pc.sum(self.index.column("failed_entries")).as_py() or 0

    def summaries(self, name: str | None) -> pa.Table:
        """What `summarise` gave for the shards of a split, one below the other. Raises ArchiveError when nothing."""
        summaries = [r["summary"] for r in self.index.select(["summary", "split"]).to_pylist() if r["split"] == name]
        tables = [pa.ipc.open_stream(summary).read_all() for summary in summaries if summary is not None]
        if not tables:
            raise ArchiveError(
                "these shards have no summary of this split", where=self.folder, expected=f"samples in split {name}"
            )
        return pa.concat_tables(tables)

    def failed(self) -> pa.Table:
        """Failed rows (KEYS), in the order of the entries."""
        paths = [path for path in self.index.column("failed_path").to_pylist() if path is not None]
        batches = [read_samples(files.join(self.folder, path)) for path in paths]
        return pa.Table.from_batches(batches, schema=KEYS)
