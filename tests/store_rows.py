"""Rows, manifests and small runs for tests of the score store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from medray.scores import GIVEN, ScoreSink, ScoreStore

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Receipt:
    payload: dict[str, Any]


def content(version: int) -> bytes:
    return version.to_bytes(16, "big")


def manifest(entries: dict[str, int]) -> pa.Table:
    """Entry id to content version."""
    return pa.table(
        {
            "entry_id": pa.array(entries, pa.string()),
            "fingerprint": pa.array([content(v) for v in entries.values()], pa.binary(16)),
            "bytes": pa.array(range(len(entries)), pa.int64()),
        }
    )


def rows(
    entries: dict[str, int], *, outputs: Sequence[str] = ("malignant",), reason: str | None = None
) -> pa.RecordBatch:
    found = []
    for entry_id, version in entries.items():
        key = {"entry_id": entry_id, "subject_id": f"s-{entry_id}", "fingerprint": content(version)}
        if reason:
            found.append(key | {"sample_id": "", "reason": reason})
        else:
            found += [key | {"sample_id": "0", "output": name, "value": version / 8} for name in outputs]
    return pa.RecordBatch.from_pylist(found, schema=GIVEN)


class Hours:
    """A clock that is one hour later each time it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> datetime:
        self.asked += 1
        return EPOCH + timedelta(hours=self.asked, microseconds=1_500)


def score(store: ScoreStore, bundle_id: str, *batches: pa.RecordBatch, clock: Any = None) -> ScoreSink:
    """One run that writes one file and commits it."""
    sink = store.sink(store.claim(bundle_id))
    sink.clock = clock or sink.clock
    sink.commit([Receipt(sink.write(iter(batches)))])
    return sink


def ids(table: pa.Table) -> list[str]:
    return table.column("entry_id").to_pylist()


def seen(store: ScoreStore) -> list[str]:
    """Entry ids as a reader without medray sees them."""
    return sorted(ids(DeltaTable(store.uri).to_pyarrow_table()))
