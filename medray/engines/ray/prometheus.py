"""What a flow and a training tell Prometheus, through Ray's own metrics: numbers of the driver, from receipts.

Each shard is told once, whatever was tried again for it. Labels are the run's and the flow's name, names of stages and
reason codes: no id of a run (there is a new one every night), nothing of an entry.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medray.flows.flow import Flow, Receipt, wanted
from medray.progress import Live

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge

OF_FLOWS = ("run", "flow")
COUNTERS = {
    "medray_entries_total": ("Entries worked on, failed ones included.", OF_FLOWS),
    "medray_entries_failed_total": ("Entries of which nothing came.", OF_FLOWS),
    "medray_entries_not_eligible_total": ("Entries that the model was not asked about; no failure.", OF_FLOWS),
    "medray_samples_total": ("Samples of the entries, failed ones included.", OF_FLOWS),
    "medray_samples_failed_total": ("Failed samples by reason code; an entry that cannot be read is one.",
                                    (*OF_FLOWS, "reason")),
    "medray_bytes_total": ("Bytes of the files of the entries worked on.", OF_FLOWS),
    "medray_stage_seconds_total": ("Seconds of workers by stage, writing included.", (*OF_FLOWS, "stage")),
}  # fmt: skip
GAUGES = {
    "medray_entries_left": ("Entries of the flow at hand that nobody has worked on.", OF_FLOWS),
    "medray_training_epoch": ("Epochs that are done.", ("run",)),
    "medray_training_workers": ("Workers that train now.", ("run",)),
}


class Meter:
    def __init__(self, run: str) -> None:
        self.run = run

    @cached_property
    def counters(self) -> dict[str, Counter]:
        from ray.util.metrics import Counter

        return {name: Counter(name, text, labels) for name, (text, labels) in COUNTERS.items()}

    @cached_property
    def gauges(self) -> dict[str, Gauge]:
        from ray.util.metrics import Gauge

        return {name: Gauge(name, text, labels) for name, (text, labels) in GAUGES.items()}

    def begin(self, flow: Flow) -> FlowMeter:
        return FlowMeter(self, flow)

    def training(self, live: Live) -> None:
        self.gauges["medray_training_epoch"].set(live["epoch"], {"run": self.run})
        if "workers" in live:
            self.gauges["medray_training_workers"].set(live["workers"], {"run": self.run})


class FlowMeter:
    """Tells what a shard of one flow came to."""

    def __init__(self, meter: Meter, flow: Flow) -> None:
        self.meter, self.labels = meter, {"run": meter.run, "flow": flow.name}
        self.left = sum(int(wanted(shard).sum()) for shard in flow.plan)
        self._show_left()

    def __call__(self, shard: pa.Table, receipt: Receipt) -> None:
        self._count("entries", receipt.entries)
        self._count("entries_failed", receipt.failed)
        self._count("entries_not_eligible", receipt.not_eligible)
        self._count("samples", receipt.samples)
        for reason, samples in receipt.reasons.items():
            self._count("samples_failed", samples, reason=reason)
        if "bytes" in shard.column_names:  # those of a shard are begun in order, and read once for all takers
            begun = int(np.searchsorted(wanted(shard).sum(axis=0).cumsum(), receipt.entries, side="right"))
            self._count("bytes", pc.sum(shard.column("bytes").slice(0, begun)).as_py() or 0)
        for stage, seconds in receipt.seconds.items():
            self._count("stage_seconds", seconds, stage=stage)
        self.left -= receipt.entries
        self._show_left()

    def _count(self, what: str, value: float, **labels: str) -> None:
        if value > 0:  # Ray refuses to count nothing
            self.meter.counters[f"medray_{what}_total"].inc(value, self.labels | labels)

    def _show_left(self) -> None:
        self.meter.gauges["medray_entries_left"].set(self.left, self.labels)
