"""Tallies of a scoring run: what its commits came to, for each of the bundles that one flow scores for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TypedDict, cast

import pyarrow as pa

from medray.errors import PASSING, ArchiveAway, MedrayError
from medray.flows.flow import TAKER, Receipt, SlowBatch
from medray.flows.lane import SLOWEST
from medray.scores import ScoreSink
from medray.scores.audit import RunOutcome
from medray.storage import files

AWAY = PASSING - {"changed"}
"""Reasons of entries that storage did not give."""
AWAY_ENTRIES = 100
"""Where so many entries, one after the other, fail for nothing but their storage, that is away; or where all of a run do."""


class SlowEntry(TypedDict):
    """A batch of entries that took long to read, under the key of its first entry."""

    key_hi: int
    seconds: float
    together: int


class ScoreTally:
    """Counts what passes through the commits of one bundle's sink, for the result and for the audit table (`counts`)."""

    def __init__(self, sink: ScoreSink, counts: RunOutcome) -> None:
        self.inner, self.counts = sink, counts
        self.entries, self.failed, self.not_eligible, self.samples = 0, 0, 0, 0
        self.by_reason: Counter[str] = Counter()
        self.passed_over: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.slowest: list[SlowBatch | SlowEntry] = []
        self.unread, self.unread_together, self.most_together = 0, 0, 0
        """Entries that failed for nothing but their storage: all, since one that did not, and the most without one."""
        self.known_unread = 0
        """Entries that the index could not read either: a link that leads nowhere says nothing of the storage."""
        self.faults: Counter[str] = Counter()
        self.outside: Counter[str] = Counter()

    def commit(self, receipts: Sequence[Receipt]) -> None:
        self.inner.commit(receipts)
        for receipt in receipts:
            self.entries += receipt.entries
            self.failed += receipt.failed
            self.not_eligible += receipt.not_eligible
            self.passed_over.update(receipt.passed_over)
            self.samples += receipt.samples
            self.by_reason.update(receipt.reasons)
            self.faults.update(receipt.faults)
            self.outside.update(receipt.outside)
            self._count_unread(receipt)
            self.seconds.update(receipt.seconds)
            self.slowest = sorted([*self.slowest, *receipt.slowest], key=lambda row: -row["seconds"])[:SLOWEST]
        self.counts |= {"scored": self.scored, "failed": self.failed, "not_eligible": self.not_eligible}
        self.counts["reasons"] = self.by_reason + self.passed_over

    def _count_unread(self, receipt: Receipt) -> None:
        unread = sum(count for reason, count in receipt.reasons.items() if reason in AWAY)
        self.unread += unread
        alone = unread == receipt.entries == receipt.failed
        self.unread_together = self.unread_together + unread if alone else 0
        self.most_together = max(self.most_together, self.unread_together)

    @property
    def storage_away(self) -> int:
        """How many entries failed because their storage is away; 0 where it was there, or at work for a few."""
        whole = self.entries == self.unread > self.known_unread
        away = whole or self.most_together - self.known_unread >= AWAY_ENTRIES
        return self.unread - self.known_unread if away else 0

    @property
    def scored(self) -> int:
        return self.entries - self.failed - self.not_eligible


Payloads = list[dict[str, object]]
"""What the sinks of all takers wrote of one shard."""


class SharedSink:
    """The flows.Sink of a flow whose takers are bundles: each one's rows go to its own files, and its receipts to its own tally.

    A bundle whose commit is refused (its run is overtaken by a later claim) is told to `give_up`, and takes no more; the others
    go on. The refusal is raised where nobody is left.
    """

    def __init__(
        self, tallies: Sequence[ScoreTally], root: str, give_up: Callable[[int, MedrayError], None] = lambda *_: None
    ) -> None:
        self.tallies, self.root, self.give_up = tallies, root, give_up
        self.sinks = [tally.inner for tally in tallies]
        self.ended: set[int] = set()

    def __getstate__(self) -> dict[str, object]:
        """What a worker needs."""
        return {"sinks": self.sinks}

    def write(self, batches: Iterator[pa.RecordBatch]) -> Mapping[str, object]:
        with ExitStack() as opened:
            writers = [opened.enter_context(sink.writer()) for sink in self.sinks]
            for batch in batches:
                if len(batch):
                    writers[batch.column(TAKER)[0].as_py()].add(batch)
            return {"takers": [writer.finish() for writer in writers]}

    def commit(self, receipts: Sequence[Receipt]) -> None:
        """Raises ArchiveAway where entries could not be read because all of the archive has gone: their failures are not
        kept, so that they are pending."""
        unread = [receipt for receipt in receipts if AWAY & receipt.reasons.keys()]
        if unread and files.is_away(self.root):
            self._commit([receipt for receipt in receipts if receipt not in unread])
            failed = (max(outcome.failed for outcome in receipt.takers) for receipt in unread)
            raise ArchiveAway(
                "the archive is no longer there: this run stops",
                where=self.root,
                found=f"{sum(failed):,} entries that could not be read",
                do="mount it again; the next run takes up what is left",
            )
        self._commit(receipts)

    def _commit(self, receipts: Sequence[Receipt]) -> None:
        for taker, tally in enumerate(self.tallies):
            if taker in self.ended:
                continue
            try:
                tally.commit(
                    [receipt.of(taker, cast(Payloads, receipt.payload["takers"])[taker]) for receipt in receipts]
                )
            except MedrayError as error:
                self.ended.add(taker)
                self.give_up(taker, error)
                if len(self.ended) == len(self.tallies):
                    raise
