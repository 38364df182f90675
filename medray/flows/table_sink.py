"""A sink for flows whose result is one table that the driver wants: parts of an index, predictions of a split."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import TypedDict, cast

import pyarrow as pa

from medray.flows.flow import Receipt
from medray.storage import files


class _Payload(TypedDict):
    uri: str


class TableSink:
    """Batches into Arrow files of a draft folder; `take` reads them back as one table. Leaving it removes the folder."""

    def __init__(self, work: str, schema: pa.Schema) -> None:
        self.folder, self.schema = files.join(work, f"draft-{uuid.uuid4().hex}"), schema
        self.uris: list[str] = []

    def __enter__(self) -> TableSink:
        files.make_closed_folder(self.folder)
        return self

    def __exit__(self, *error: object) -> None:
        files.remove_tree(self.folder)

    def write(self, batches: Iterator[pa.RecordBatch]) -> _Payload:
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, self.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        uri = files.join(self.folder, f"{uuid.uuid4().hex}.arrow")
        files.write_bytes(uri, buffer.getvalue().to_pybytes())
        return {"uri": uri}

    def commit(self, receipts: Sequence[Receipt]) -> None:
        self.uris += [cast(_Payload, receipt.payload)["uri"] for receipt in receipts]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, in no particular order; one shard's are in memory at once."""
        for uri in self.uris:
            with pa.ipc.open_stream(files.read_bytes(uri)) as reader:
                yield from reader

    def take(self) -> pa.Table:
        """All rows, in no particular order."""
        return pa.Table.from_batches(self.batches(), self.schema)
