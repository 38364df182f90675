"""ScoreSink: what a worker writes and what the driver commits. Knows the Delta protocol's statistics, not its log."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import NOT_ELIGIBLE
from medray.scores.table import GIVEN, IN_FILE, OF_SUBJECTS, Claim, entry_keys
from medray.storage import files
from medray.storage.arrow import among, rebatch
from medray.storage.delta import storing

if TYPE_CHECKING:
    from deltalake.transaction import AddAction

    from medray.scores.store import ScoreStore

MERGE_AFTER = 32
"""So many files committed, small ones are merged."""
_FILE_ROWS = 65_536  # rows held and written at once
_BOUNDED = ("key_hi", "key_lo", "output", "value", "run_id", "scored_at", "status", "reason")
# Of a column without bounds delta-rs tells PyArrow "at least null", and a filter on it then finds nothing. Those of
# texts that may point to a subject are therefore there, and say nothing: the empty text, and the last code point.
_UNTOLD = {
    name: ("", "\U0010ffff") for name in (*OF_SUBJECTS, "detail", "facts") if IN_FILE.field(name).type == pa.string()
}
_REPETITIVE = ["entry_id", "subject_id", "fingerprint", "output", "run_id", "status", "reason", "detail", "facts"]


class Written(Protocol):
    """What `commit` needs of a receipt (flows.Receipt)."""

    @property
    def payload(self) -> dict[str, Any]: ...


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class ScoreSink:
    """The flows.Sink of one claim. `write` runs in workers, opens no log and needs nothing but the storage."""

    uri: str
    claim: Claim
    store: ScoreStore | None = field(default=None, repr=False)
    """On the driver only: it stays behind when the sink is sent to a worker."""
    clock: Callable[[], datetime] = now
    _committed: set[str] = field(default_factory=set, repr=False)
    _unmerged: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"store": None, "_committed": set()}

    def write(self, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
        """Rows of GIVEN (other columns are ignored) to one Parquet file; no rows, no file.

        Returns {path below the table, size in bytes, rows, modified_ms, stats: JSON text of the Delta protocol}.
        """
        pieces = rebatch((_given(batch) for batch in batches), _FILE_ROWS)
        first = next(pieces, None)
        if first is None:
            return {"rows": 0}
        scored_at = self.clock()
        rows = (self._complete(piece, scored_at) for piece in chain([first], pieces))
        return write_file(self.uri, self.claim.bundle_id, rows, modified=scored_at)

    def _complete(self, given: pa.RecordBatch, scored_at: datetime) -> pa.RecordBatch:
        """GIVEN rows to the columns of a file."""
        keys = entry_keys(given)
        rows = len(given)
        columns = {name: given.column(name) for name in given.schema.names} | {
            "key_hi": pa.array(keys[:, 0]),
            "key_lo": pa.array(keys[:, 1]),
            "run_id": pa.repeat(self.claim.run_id, rows),
            "scored_at": pa.repeat(pa.scalar(scored_at, IN_FILE.field("scored_at").type), rows),
            "status": _status(given.column("reason")),
        }
        return pa.RecordBatch.from_arrays([columns[f.name] for f in IN_FILE], schema=IN_FILE)

    def commit(self, receipts: Sequence[Written]) -> None:
        """Make the files of these receipts visible, all or none. A receipt that was committed before is passed over.

        Raises Fenced when a later run has claimed the bundle; MachineError when the log cannot be written, or a file
        is not there.
        """
        if self.store is None:
            raise RuntimeError("commit runs on the driver, with the sink that ScoreStore.sink made")
        written = [r.payload for r in receipts if r.payload["rows"] and r.payload["path"] not in self._committed]
        if written:
            self.store.append(self.claim, written)
            self._committed.update(payload["path"] for payload in written)
            self._unmerged += len(written)
            if self._unmerged >= MERGE_AFTER:
                self.store.merge(self.claim)
                self._unmerged = 0


def _status(reasons: pa.Array) -> pa.Array:
    passed_over = among(reasons, NOT_ELIGIBLE)
    return pc.if_else(reasons.is_null(), "scored", pc.if_else(passed_over, "not_eligible", "failed"))


def _given(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The columns of GIVEN, in its types. Raises KeyError when one is missing, but for `facts`: none are known then."""
    columns = [
        pa.nulls(len(batch), f.type)
        if f.name == "facts" and f.name not in batch.schema.names
        else batch.column(f.name).cast(f.type)
        for f in GIVEN
    ]
    return pa.RecordBatch.from_arrays(columns, schema=GIVEN)


def write_file(uri: str, bundle_id: str, batches: Iterable[pa.RecordBatch], *, modified: datetime) -> dict[str, Any]:
    """Rows of IN_FILE to one new Parquet file of a bundle, which no log names yet: its facts, as `commit` needs them.

    No rows, no file. Raises MachineError where the storage cannot be written.
    """
    import pyarrow.parquet as pq

    given = (batch for batch in batches if len(batch))
    first = next(given, None)
    if first is None:
        return {"rows": 0}
    path = f"bundle_id={bundle_id}/part-{uuid.uuid4()}.parquet"
    place = files.join(uri, path)
    statistics = _Statistics()
    with ExitStack() as opened:
        with storing(place):
            stream = opened.enter_context(files.new_file(place))
            options = {"compression": "zstd", "use_dictionary": _REPETITIVE, "store_schema": False}
            writer = opened.enter_context(pq.ParquetWriter(stream, IN_FILE, **options))
        for rows in chain([first], given):
            statistics.add(rows)
            with storing(place):
                writer.write_batch(rows)
        with storing(place):
            writer.close()
            size = stream.tell()
            opened.close()
    return {
        "path": path,
        "size": size,
        "rows": statistics.rows,
        "modified_ms": int(modified.timestamp() * 1000),
        "stats": statistics.to_json(),
    }


def added(written: dict[str, Any], bundle_id: str, *, new_rows: bool = True) -> AddAction:
    """What a commit says of a written file."""
    from deltalake.transaction import AddAction

    partition = {"bundle_id": bundle_id}
    return AddAction(written["path"], written["size"], partition, written["modified_ms"], new_rows, written["stats"])


class _Statistics:
    """Row count, minima, maxima and null counts of a file, as the Delta protocol writes them; readers skip files by them."""

    def __init__(self) -> None:
        self.rows = 0
        self.minimum: dict[str, Any] = {name: low for name, (low, _) in _UNTOLD.items()}
        self.maximum: dict[str, Any] = {name: high for name, (_, high) in _UNTOLD.items()}
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
