"""Engine `ray`: Ray Data runs flows, Ray Train fits networks."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, cast

import pyarrow as pa

from medray.engines.base import Fitted, Show
from medray.engines.memory import give_back
from medray.engines.ray import machine
from medray.engines.ray.careful import Children
from medray.engines.ray.children import side_by_side
from medray.engines.ray.connection import machine_errors, start
from medray.engines.ray.deadline import Reply, until_stopped
from medray.engines.ray.lanes import CarefulLane, DecodeWorker, Lane, Message, ScoreWorker, parcel
from medray.engines.ray.placement import Split, check_fraction, cut, opened_bytes, split_workers
from medray.engines.ray.prometheus import Meter
from medray.engines.ray.training import fit_on_cluster
from medray.engines.spec import RaySpec
from medray.errors import MachineError, UserError, from_json
from medray.flows.driver import collect
from medray.flows.flow import Flow, Receipt
from medray.learning.plan import FitPlan
from medray.progress import Live

if TYPE_CHECKING:
    from ray.data import Dataset


class Placed(NamedTuple):
    """What there is room for."""

    workers: int
    cpus: float
    """Each."""
    gpus: float
    """Each."""
    split: Split | None
    readers: int


class RayEngine:
    """A running cluster is joined at once. Without one, a machine without a GPU works in processes of the driver: they begin in a
    second, and each has what an actor of a Ray on this machine would have. That Ray, which takes ten, is started by training, for
    GPUs, or where the settings name `local`."""

    def __init__(self, spec: RaySpec, run: str = "") -> None:
        self.spec, self.meter, self.memory = spec, Meter(run), spec.memory_per_worker
        self.started = False
        self.alone = spec.address in (None, "local") and "RAY_ADDRESS" not in os.environ and not _is_running()
        """Whether Ray is, or will be, this machine alone, started by this engine."""
        self.without_ray = self.alone and spec.address is None and not _needs_actors(spec)
        """Whether flows are done by processes of the driver."""
        if spec.workers != "auto":
            _range(spec.workers)
        if self.without_ray or not self.alone:
            _ = self._placed
        self.kept = Children(max(1, int(self.cpus)) if self.without_ray else 1)
        weakref.finalize(self, self.kept.close)

    @cached_property
    def _placed(self) -> Placed:
        if not self.without_ray:
            return self._on_ray
        workers, cpus, gpus = self._placement({"CPU": machine.cpus()})
        return Placed(workers, cpus, gpus, None, workers)

    @cached_property
    def _on_ray(self) -> Placed:
        import ray

        if not _is_running():
            start(self.spec.address, trains_only=self.without_ray)
            self.started = True
        resources = ray.cluster_resources()
        workers, cpus, gpus = self._placement(resources)
        check_fraction(workers, gpus, resources.get("GPU", 0.0))
        split = split_workers(
            self.spec, resources.get("CPU", 0.0), _object_store(), workers=workers, each_cpu=cpus, each_gpu=gpus
        )
        return Placed(workers, cpus, gpus, split, split.decoders if split and gpus else workers)

    @property
    def workers(self) -> int:
        return self._placed.workers

    @property
    def readers(self) -> int:
        if self.alone and "_placed" not in vars(self):  # what Ray will count, without starting it
            most = None if self.spec.workers == "auto" else _range(self.spec.workers)[1]
            return min(filter(None, (most, machine.cpus())))
        return self._placed.readers

    @property
    def cpus(self) -> float:
        return self._placed.cpus

    @property
    def gpus(self) -> float:
        return self._placed.gpus

    @property
    def split(self) -> Split | None:
        return self._placed.split

    def _placement(self, resources: Mapping[str, float]) -> tuple[int, float, float]:
        """(workers, CPUs each, GPUs each). Raises UserError where the cluster cannot hold them: Ray would hang."""
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        asked = self.spec.workers
        if asked == "auto":
            asked = max(1, _fitting(gpus, self.spec.gpus_per_worker) or int(cpus))
        least, most = _range(asked)
        each_gpu = self.spec.gpus_per_worker
        if each_gpu == "auto":
            each_gpu = 1.0 if gpus >= least else 0.0
        each_cpu = self.spec.cpus_per_worker
        if each_cpu == "auto":
            each_cpu = min(1.0, int(1000 * cpus / least) / 1000)
        room = most
        for what, each, available in (("CPU", each_cpu, cpus), ("GPU", each_gpu, gpus)):
            if least * each > available:
                raise UserError(
                    f"the cluster has too few {what}s for the workers asked for",
                    where="[engine]",
                    found=f"{'' if least == most else 'at least '}{least} workers x {each:g} {what}s on a cluster "
                    f"with {available:g}",
                    expected=f"at most {available:g} {what}s in all",
                    do=f"lower [engine] workers or {what.lower()}s_per_worker",
                )
            if each:
                room = min(room, int(available / each + 1e-6))
        return room, each_cpu, each_gpu

    @property
    def scores_on_gpu(self) -> bool:
        if self.alone and "_placed" not in vars(self):
            import torch

            return torch.cuda.is_available()
        return self.gpus > 0

    # -- flows

    def run(self, flow: Flow) -> None:
        if not flow.plan or flow.over:
            return
        if flow.small or self.without_ray or (flow.sooner and self.alone):  # starting actors costs seconds
            collect(flow, self._of_children(flow, 1 if flow.small else self.readers))
            return
        collect(flow, self._receipts(flow))

    def _of_children(self, flow: Flow, children: int) -> Iterator[Receipt | None]:
        """Receipts of shards as child processes of the driver finish them; counted where a Ray is there to count."""
        meter = self.meter.begin(flow) if _is_running() else None
        if not flow.small:
            give_back()
        then = flow.next_imports if self.without_ray else ()  # else the next flow's workers are Ray's
        for done in side_by_side(flow, self.kept, children=children, memory=self.memory, then=then):
            if done is None:
                yield None
                continue
            number, receipt = done
            if meter is not None:
                meter(flow.plan[number], receipt)
            yield receipt

    def _receipts(self, flow: Flow) -> Iterator[Receipt | None]:
        """Receipts of every shard, as they come. Shards that a worker died of, or was lost with, are done again, with care."""
        split = self._split_of(flow)
        if split is not None:
            flow = cut(flow, split)
        missing, meter = dict(enumerate(flow.plan)), self.meter.begin(flow)

        def first_replies(dataset: Dataset) -> Iterator[Reply]:
            for reply in _replies(dataset):
                shard = missing.pop(reply.number, None)
                if shard is None:  # a second reply: its entries are committed, and must not be again
                    continue
                meter(shard, reply.receipt)
                yield reply

        for kind, retries in ((Lane, 0), (CarefulLane, 2)):
            if not missing or flow.over:
                return
            if kind is Lane and split is not None:
                workers, dataset = min(split.decoders, len(missing)), self._in_halves(flow, split, missing)
            else:
                workers = min(self.workers if self.gpus and flow.on_gpu else self.readers, len(missing))
                dataset = self._whole(flow, kind, missing, workers, retries=retries)
            give_back()
            replies = first_replies(dataset)
            with machine_errors():
                if flow.until is None:
                    yield from (reply.receipt for reply in replies)
                else:
                    yield from until_stopped(replies, flow.until, workers)
        if missing and not flow.over:
            raise MachineError(
                "workers were lost again and again",
                found=f"{len(missing)} of {len(flow.plan)} shards of the flow {flow.name!r} not done",
                do="look at the cluster with `ray status`; what was committed is safe, the same command goes on",
            )

    def _split_of(self, flow: Flow) -> Split | None:
        """How the flow is run by two kinds of workers; None: by one."""
        fits = self.split is not None and flow.may_split and flow.halves[0] and self.split.holds(opened_bytes(flow))
        return self.split if fits else None

    def _whole(self, flow: Flow, kind: type, shards: Mapping[int, pa.Table], workers: int, *, retries: int) -> Dataset:
        """Replies of actors that do all of a shard's work, lazily."""
        arguments = (flow.stages, flow.sink, flow.until, flow.failable, self.memory)
        gpus = self.gpus if flow.on_gpu else 0.0
        cpus = self.cpus if flow.on_gpu or self.split is None or not self.gpus else self.split.decoder_cpus
        return _mapped(_parcels(shards), kind, arguments, workers, cpus, gpus, shards=len(shards), retries=retries)

    def _in_halves(self, flow: Flow, split: Split, shards: Mapping[int, pa.Table]) -> Dataset:
        """Replies of the second of two kinds of actors, lazily."""
        opening, closing = flow.halves
        count = len(shards)
        arguments = (opening, flow.until, split.most_bytes, self.memory)
        decoders, scorers = min(split.decoders, count), min(split.scorers, count)
        opened = _mapped(_parcels(shards), DecodeWorker, arguments, decoders, split.decoder_cpus, 0.0, shards=count)
        arguments = (closing, flow.sink, flow.until, self.memory)
        replies = _mapped(opened, ScoreWorker, arguments, scorers, split.scorer_cpus, self.gpus, shards=count)
        # the object store is for parcels on their way: a DecodeWorker waits while there are enough, and nothing spills
        options = replies.context.execution_options
        options.resource_limits = options.resource_limits.copy(
            object_store_memory=split.store_bytes(opened_bytes(flow))
        )
        return replies

    # -- training

    def fit(self, plans: Sequence[FitPlan], show: Show) -> list[Fitted]:
        def shown(live: Live) -> None:
            self.meter.training(live)
            show(live)

        self.kept.close()
        on_ray = self._on_ray
        return fit_on_cluster(
            plans,
            shown,
            self.spec,
            workers=on_ray.workers,
            cpus=on_ray.cpus,
            gpus=on_ray.gpus,
            alone=self.alone and self.started,
        )

    def close(self) -> None:
        self.kept.close()
        if self.started:
            import ray

            ray.shutdown()


def _is_running() -> bool:
    """Whether this process is connected to a Ray; one that has not imported it is not."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _needs_actors(spec: RaySpec) -> bool:
    """Whether what is asked for, or may be there, is Ray's to place: GPUs, and two kinds of workers."""
    apart = spec.stages == "split" or spec.decode_workers != "auto"
    return apart or bool(spec.gpus_per_worker != "auto" and spec.gpus_per_worker) or machine.may_have_gpus()


def _range(workers: int | tuple[int, int]) -> tuple[int, int]:
    """(at least, at most). Raises UserError."""
    least, most = (workers, workers) if isinstance(workers, int) else workers
    if not 1 <= least <= most:
        raise UserError(
            "there has to be a worker" if isinstance(workers, int) else "these workers are no range",
            where="[engine] workers",
            found=str(workers if isinstance(workers, int) else list(workers)),
            expected="a number from 1 up, or [at least, at most]",
        )
    return least, most


def _object_store() -> float:
    """Bytes of object store of the cluster, as if every node with a CPU had what the smallest has."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    stores = [node.get("object_store_memory", 0.0) for node in nodes if node.get("CPU")]
    return len(stores) * min(stores, default=0.0)


def _fitting(gpus: float, each: float | str) -> int:
    """Workers for that many GPUs: one each, or several that share one."""
    return int(gpus) * int(1 / each + 1e-6) if isinstance(each, float) and 0 < each < 1 else int(gpus)


def _parcels(shards: Mapping[int, pa.Table]) -> Dataset:
    import ray.data

    _quiet_ray_data()
    return ray.data.from_arrow([parcel(number, shard) for number, shard in shards.items()])


def _mapped(
    dataset: Dataset,
    kind: type,
    arguments: tuple[object, ...],
    size: int,
    cpus: float,
    gpus: float,
    *,
    shards: int,
    retries: int = 0,
) -> Dataset:
    """What actors of this kind make of the dataset's blocks, one at a time, lazily."""
    import ray.data

    with warnings.catch_warnings():
        # Ray 2.60 announces named parameters for these two, and has none yet
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        return dataset.map_batches(
            kind,
            fn_constructor_args=arguments,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=size),
            num_cpus=cpus,
            num_gpus=gpus or None,
            max_restarts=10 + shards,  # Ray's default is to restart for ever; a shard that ends one is set aside
            max_task_retries=retries,
        )


def _replies(dataset: Dataset) -> Iterator[Reply]:
    """Replies of the actors, as they come. Raises the medray error that an actor met."""
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for text in cast("pa.Table", batch).column("reply").to_pylist():
            message: Message = json.loads(text)
            if "refused" in message:
                raise from_json(message["refused"])
            if "receipt" in message:
                receipt = Receipt.of_json(message["receipt"])
                yield Reply(receipt, message["worker"], message["turn"], message["number"])


def _quiet_ray_data() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # a shard whose worker has died is missing among the receipts, and done again with care
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
