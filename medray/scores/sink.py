"""ScoreSink: what a worker writes and what the driver commits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Any, Protocol, cast

import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import NOT_ELIGIBLE
from medray.scores import upkeep
from medray.scores.file import ScoreFile, now, write_file
from medray.scores.log import ScoreLog
from medray.scores.table import GIVEN, IN_FILE, Claim, entry_keys
from medray.storage.arrow import rebatch

MERGE_AFTER = 32
"""So many files committed, small ones are merged."""
_FILE_ROWS = 65_536  # rows held and written at once


class ScoredShard(Protocol):
    """What `commit` needs of a receipt (flows.Receipt)."""

    @property
    def payload(self) -> Mapping[str, object]: ...


@dataclass
class ScoreSink:
    """The flows.Sink of one claim. `write` runs in workers, opens no log and needs nothing but the storage."""

    uri: str
    claim: Claim
    store: ScoreLog | None = field(default=None, repr=False)
    """On the driver only: it stays behind when the sink is sent to a worker."""
    clock: Callable[[], datetime] = now
    _committed: set[str] = field(default_factory=set, repr=False)
    _unmerged: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"store": None, "_committed": set()}

    def write(self, batches: Iterable[pa.RecordBatch]) -> dict[str, object]:
        """Rows of GIVEN (other columns are ignored) to one Parquet file; no rows, no file.

        Returns a ScoreFile; {"rows": 0} of no rows.
        """
        pieces = rebatch((_given(batch) for batch in batches), _FILE_ROWS)
        first = next(pieces, None)
        if first is None:
            return {"rows": 0}
        scored_at = self.clock()
        rows = (self._complete(piece, scored_at) for piece in chain([first], pieces))
        written = write_file(self.uri, self.claim.bundle_id, rows, modified=scored_at)
        return {"rows": 0} if written is None else dict(written)

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

    def commit(self, receipts: Sequence[ScoredShard]) -> None:
        """Make the files of these receipts visible, all or none. A receipt that was committed before is passed over.

        Raises Fenced when a later run has claimed the bundle; MachineError when the log cannot be written, or a file
        is not there.
        """
        if self.store is None:
            raise RuntimeError("commit runs on the driver, with the sink that ScoreStore.sink made")
        written = [cast(ScoreFile, receipt.payload) for receipt in receipts if receipt.payload["rows"]]
        written = [file for file in written if file["path"] not in self._committed]
        if written:
            self.store.append(self.claim, written)
            self._committed.update(file["path"] for file in written)
            self._unmerged += len(written)
            if self._unmerged >= MERGE_AFTER:
                upkeep.merge(self.store, self.claim)
                self._unmerged = 0


def _status(reasons: pa.Array) -> pa.Array:
    passed_over = pc.is_in(reasons, pa.array(sorted(NOT_ELIGIBLE)))
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
