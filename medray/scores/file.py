"""Files of scores: one Parquet file of rows under a name never used before, and what the log says of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NotRequired, Self, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from medray.scores.artefacts import ShardArtefacts
from medray.scores.table import ADDED, IN_FILE, OF_SUBJECTS, Claim
from medray.storage import files
from medray.storage.delta import storing

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    from deltalake.transaction import AddAction

_BOUNDED = ("key_hi", "key_lo", "output", "value", "run_id", "scored_at", "status", "reason")
# Of a column without bounds delta-rs tells PyArrow "at least null", and a filter on it then finds nothing. Those of
# texts that may point to a subject are therefore there, and say nothing: the empty text, and the last code point.
_UNBOUNDED = {
    name: ("", "\U0010ffff") for name in (*OF_SUBJECTS, "detail", *ADDED) if IN_FILE.field(name).type == pa.string()
}
_REPETITIVE = ["entry_id", "subject_id", "fingerprint", "output", "run_id", "status", "reason", "detail", "facts"]


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> datetime:
    """This moment, UTC."""
    return datetime.now(UTC)


class ScoreFile(TypedDict):
    """What the log says of a written file; JSON-ready."""

    path: str
    """Below the store."""
    size: int
    """Bytes."""
    rows: int
    modified_ms: int
    """Since the epoch (UTC)."""
    stats: str
    """JSON text of the Delta protocol."""
    artefacts: NotRequired[ShardArtefacts]
    """Files that its rows name."""


class FileWriter:
    """Writes rows of IN_FILE to one new Parquet file of a bundle, which no log names yet. Its name tells the claim by which it may
    be committed. No rows, no file; and none is left where its block raises. Methods raise MachineError where the storage cannot be
    written."""

    def __init__(self, uri: str, bundle_id: str, claim: Claim) -> None:
        self.path = f"bundle_id={bundle_id}/part-{claim.tag}-{uuid.uuid4()}.parquet"
        self.uri = files.join(uri, self.path)
        self._opened, self._statistics = ExitStack(), _Statistics()
        self._stream: pa.NativeFile | None = None
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def add(self, rows: pa.RecordBatch) -> None:
        """Write these rows, if there are any."""
        if len(rows) == 0:
            return
        writer = self._writer or self._begun()
        self._statistics.add(rows)
        with storing(self.uri):
            writer.write_batch(rows)

    def _begun(self) -> pq.ParquetWriter:
        import pyarrow.parquet as pq

        with storing(self.uri):
            self._stream = self._opened.enter_context(files.new_file(self.uri))
            options = {"compression": "zstd", "use_dictionary": _REPETITIVE, "store_schema": False}
            self._writer = pq.ParquetWriter(self._stream, IN_FILE, **options)
            self._opened.callback(_end, self._writer)
        return self._writer

    def finish(self, modified: datetime) -> ScoreFile | None:
        """The file's facts, as `commit` needs them; None where there is none."""
        if self._writer is None or self._stream is None:
            return None
        with storing(self.uri):
            self._writer.close()
            size = self._stream.tell()
            self._opened.close()
        return {
            "path": self.path,
            "size": size,
            "rows": self._statistics.rows,
            "modified_ms": int(modified.timestamp() * 1000),
            "stats": self._statistics.to_json(),
        }


def write_file(
    uri: str, bundle_id: str, claim: Claim, batches: Iterable[pa.RecordBatch], *, modified: datetime
) -> ScoreFile | None:
    """All of these rows by a `FileWriter`. None where there are none."""
    with FileWriter(uri, bundle_id, claim) as file:
        for rows in batches:
            file.add(rows)
        return file.finish(modified)


def added(written: ScoreFile, bundle_id: str, *, new_rows: bool = True) -> AddAction:
    """Action by which a commit makes a written file visible."""
    from deltalake.transaction import AddAction

    partition = {"bundle_id": bundle_id}
    return AddAction(written["path"], written["size"], partition, written["modified_ms"], new_rows, written["stats"])


def _end(writer: pq.ParquetWriter) -> None:
    """After a fault, which is raised then; no fault of the storage at its end takes its place."""
    with suppress(OSError):
        writer.close()


class _Statistics:
    """Row count, minima, maxima and null counts of a file, as the Delta protocol writes them; readers skip files by them."""

    def __init__(self) -> None:
        self.rows = 0
        # texts, numbers and times, as Arrow gives them
        self.minimum: dict[str, Any] = {name: low for name, (low, _) in _UNBOUNDED.items()}
        self.maximum: dict[str, Any] = {name: high for name, (_, high) in _UNBOUNDED.items()}
        self.nulls = dict.fromkeys(IN_FILE.names, 0)

    def add(self, rows: pa.RecordBatch) -> None:
        self.rows += len(rows)
        for name in IN_FILE.names:
            # Of every column: delta-rs takes a missing count for "no nulls", and its readers then skip null rows.
            self.nulls[name] += rows.column(name).null_count
        for name in _BOUNDED:
            low, high = pc.min_max(rows.column(name)).as_py().values()
            if low is not None:
                self.minimum[name] = min(low, self.minimum.get(name, low))
                self.maximum[name] = max(high, self.maximum.get(name, high))

    def to_json(self) -> str:
        # The protocol has milliseconds here: rounded outwards, so no reader skips a file that it needs.
        low, high = self.minimum["scored_at"], self.maximum["scored_at"]
        above = high if high == _whole(high) else _whole(high) + timedelta(milliseconds=1)
        bounds = {
            "minValues": self.minimum | {"scored_at": _protocol_time(low)},
            "maxValues": self.maximum | {"scored_at": _protocol_time(above)},
            "nullCount": self.nulls,
        }
        return json.dumps({"numRecords": self.rows} | bounds)


def _whole(moment: datetime) -> datetime:
    """Rounded down to milliseconds."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _protocol_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
