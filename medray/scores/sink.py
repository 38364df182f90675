"""ScoreSink: what a worker writes and what the driver commits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self, cast

import pyarrow as pa
import pyarrow.compute as pc

from medray.errors import NOT_ELIGIBLE
from medray.scores import upkeep
from medray.scores.artefacts import ArtefactWriter
from medray.scores.file import EPOCH, FileWriter, ScoreFile, now
from medray.scores.log import ScoreLog
from medray.scores.table import ADDED, GIVEN, IN_FILE, OF_ARTEFACT, Claim, entry_keys
from medray.storage.arrow import among, rebatch

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
    not_before: datetime = EPOCH
    """No row is stamped earlier (`ScoreLog.next_stamp`), whatever the worker's clock says."""
    _committed: set[str] = field(default_factory=set[str], repr=False)
    _unmerged: int = 0

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "store": None, "_committed": set[str]()}

    def write(self, batches: Iterable[pa.RecordBatch]) -> dict[str, object]:
        """Rows of GIVEN (other columns are ignored) to one Parquet file, and their artefacts to files that lie there before
        it does; no rows, no file.

        Returns a ScoreFile; {"rows": 0} of no rows.
        """
        with self.writer() as writer:
            for batch in batches:
                writer.add(batch)
            return writer.finish()

    def writer(self) -> ShardWriter:
        """`write` step by step, for who has rows of several sinks."""
        return ShardWriter(self)

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


class ShardWriter:
    """Writes the rows of one shard for a sink. When its block raises, nothing of them is left."""

    def __init__(self, sink: ScoreSink) -> None:
        self.sink = sink
        self._file = FileWriter(sink.uri, sink.claim.bundle_id, sink.claim)
        self._artefacts = ArtefactWriter(sink.uri, sink.claim)
        self._waiting: list[pa.RecordBatch] = []
        self._scored_at: datetime | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.__exit__(kind, error, trace)
        finally:
            self._artefacts.__exit__(kind, error, trace)

    def add(self, batch: pa.RecordBatch) -> None:
        """Rows of GIVEN: they are held until they are _FILE_ROWS, their artefacts are written at once."""
        self._waiting.append(_given(batch, self._artefacts))
        if sum(map(len, self._waiting)) >= _FILE_ROWS:
            *pieces, rest = rebatch(self._waiting, _FILE_ROWS)
            self._waiting = [rest]
            self._write(pieces)

    def finish(self) -> dict[str, object]:
        """As `ScoreSink.write` returns it."""
        self._write(rebatch(self._waiting, _FILE_ROWS))
        written = None if self._scored_at is None else self._file.finish(self._scored_at)
        if written is None:
            return {"rows": 0}
        named = self._artefacts.written()
        return dict(written) | ({} if named is None else {"artefacts": named})

    def _write(self, pieces: Iterable[pa.RecordBatch]) -> None:
        for piece in pieces:
            self._scored_at = self._scored_at or max(self.sink.clock(), self.sink.not_before)
            self._file.add(self._complete(piece, self._scored_at))

    def _complete(self, given: pa.RecordBatch, scored_at: datetime) -> pa.RecordBatch:
        """Rows as `_given` makes them to the columns of a file."""
        keys = entry_keys(given)
        rows = len(given)
        columns = {name: given.column(name) for name in given.schema.names} | {
            "key_hi": pa.array(keys[:, 0]),
            "key_lo": pa.array(keys[:, 1]),
            "run_id": pa.repeat(self.sink.claim.run_id, rows),
            "scored_at": pa.repeat(pa.scalar(scored_at, IN_FILE.field("scored_at").type), rows),
            "status": _status(given.column("reason")),
        }
        return pa.RecordBatch.from_arrays([columns[f.name] for f in IN_FILE], schema=IN_FILE)


def _status(reasons: pa.Array) -> pa.Array:
    passed_over = among(reasons, NOT_ELIGIBLE)
    return pc.if_else(reasons.is_null(), "scored", pc.if_else(passed_over, "not_eligible", "failed"))


def _given(batch: pa.RecordBatch, artefacts: ArtefactWriter) -> pa.RecordBatch:
    """The columns of GIVEN, in their types; of artefacts, which are written here, the references.

    Raises KeyError when a column is missing that is not of ADDED; such a one is null then.
    """
    names = [name for name in GIVEN.names if name in batch.schema.names or name not in ADDED]
    rows = pa.RecordBatch.from_arrays(
        [batch.column(name).cast(GIVEN.field(name).type) for name in names], schema=pa.schema(map(GIVEN.field, names))
    )
    columns = {name: rows.column(name) for name in names}
    if columns.pop("artefact", None) is not None:
        columns |= artefacts.referenced(rows)
    fields = [IN_FILE.field(name) for name in (*GIVEN.names[:-1], *OF_ARTEFACT)]
    return pa.RecordBatch.from_arrays(
        [columns[f.name] if f.name in columns else pa.nulls(len(batch), f.type) for f in fields],
        schema=pa.schema(fields),
    )
