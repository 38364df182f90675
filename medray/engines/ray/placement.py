"""Who runs where: workers that decode beside workers that score, and how much is on its way between them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pyarrow as pa

from medray.engines.spec import RaySpec
from medray.errors import UserError
from medray.flows.flow import Flow

PARCEL_BYTES = 2**26
"""What one parcel of opened entries should be: large enough that handing it over costs little beside reading it."""

PARCEL_ROWS = 256
"""Entries of a parcel where nobody knows how large they become."""

STORE_SHARE = 0.5
"""Share of Ray's object store for parcels on their way. Ray begins to write to disk at 0.8."""


@dataclass(frozen=True)
class Split:
    """How many workers decode, how many score, and with what: the two halves of the work."""

    decoders: int
    decoder_cpus: float
    scorers: int
    scorer_cpus: float
    most_bytes: int
    """What a parcel may be at most: as many as may be on their way fit into their share of the object store."""

    @property
    def under_way(self) -> int:
        """Parcels that keep everybody busy: one at each decoder; at each scorer one, one behind it, one to come."""
        return self.decoders + 3 * self.scorers

    def parcel_bytes(self, row_bytes: int) -> int:
        """What a parcel of such rows should be. Estimates leave out keys, hence the tenth."""
        return max(row_bytes, min(PARCEL_BYTES, int(0.9 * self.most_bytes)))

    def store_bytes(self, row_bytes: int) -> int:
        """The limit for Ray Data. Of two operators it lets the first have half."""
        return 2 * self.under_way * (self.parcel_bytes(row_bytes) if row_bytes else self.most_bytes)

    def holds(self, row_bytes: int) -> bool:
        """Whether one row fits at all."""
        return row_bytes <= self.most_bytes


def split_workers(
    spec: RaySpec, cpus: float, store: float, *, workers: int, each_cpu: float, each_gpu: float
) -> Split | None:
    """Both kinds of workers on a cluster with so many CPUs and so large an object store; None: every worker does all.

    Raises UserError where no CPU is left for those that were asked for.
    """
    left = cpus - workers * each_cpu
    if spec.stages == "fused" or (spec.stages == "auto" and not (each_gpu and left >= 1)):
        return None
    decoders = max(1, int(left)) if spec.decode_workers == "auto" else spec.decode_workers
    if left >= decoders:
        decoder_cpus, scorer_cpus = 1.0, each_cpu
    elif spec.cpus_per_worker == "auto":
        decoder_cpus = scorer_cpus = _share(cpus, decoders + workers)
    elif left > 0:
        decoder_cpus, scorer_cpus = _share(left, decoders), each_cpu
    else:
        raise UserError(
            "the scoring workers leave no CPU for workers that decode",
            where="[engine]",
            found=f"{workers} workers x {each_cpu:g} CPUs on a cluster with {cpus:g}",
            expected=f"some of {cpus:g} CPUs left",
            do='lower [engine] workers or cpus_per_worker, or set stages = "fused"',
        )
    # a decoder may have one more in hand before Ray Data knows how large its first one is
    at_most = 2 * decoders + 3 * workers
    return Split(decoders, decoder_cpus, workers, scorer_cpus, max(1, int(STORE_SHARE * store / at_most)))


def _share(cpus: float, workers: int) -> float:
    """CPUs of each where they are too few: a part of one that fits several times, so that no piece of a node is lost."""
    return max(0.001, int(1000 / math.ceil(workers / cpus)) / 1000)


def check_fraction(workers: int, each: float, gpus: float) -> None:
    """Raises UserError where parts of a GPU do not fit: two times 0.6 is no GPU's."""
    if 0 < each < 1 and workers > int(gpus) * int(1 / each + 1e-6):
        raise UserError(
            "the workers' parts of a GPU do not fit on the GPUs",
            where="[engine]",
            found=f"{workers} workers x {each:g} GPUs on a cluster with {gpus:g}",
            expected=f"at most {int(1 / each + 1e-6)} workers on each GPU",
            do="lower [engine] workers or gpus_per_worker",
        )


def check_whole(workers: int, each: float) -> None:
    """Raises UserError where training workers would share a GPU: NCCL refuses two on one."""
    if workers > 1 and 0 < each < 1:
        raise UserError(
            "training workers cannot share a GPU",
            where="[engine] gpus_per_worker",
            found=f"{each:g}, and {workers} workers",
            expected="1, or one worker",
            do="set gpus_per_worker = 1 for training; scoring may have less",
        )


def cut(flow: Flow, split: Split) -> Flow:
    """The flow with shards that are parcels when they are opened, several for each worker."""
    row_bytes = opened_bytes(flow)
    rows = sum(len(shard) for shard in flow.plan)
    most = split.parcel_bytes(row_bytes) // row_bytes if row_bytes else PARCEL_ROWS
    size = max(1, min(most, math.ceil(rows / (4 * split.decoders))))
    return replace(flow, plan=list(_pieces(flow.plan, size)))


def opened_bytes(flow: Flow) -> int:
    """About what one entry of the flow is when it is handed over; 0 where that is not known."""
    opening, _ = flow.halves
    return opening[-1].row_bytes if len(opening) == 1 else 0


def _pieces(plan: Iterable[pa.Table], size: int) -> Iterable[pa.Table]:
    for shard in plan:
        yield from (shard.slice(start, size) for start in range(0, len(shard), size))
